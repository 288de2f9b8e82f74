//! The folders of `clip.py`, with the weights that it draws.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nadir::io::safetensors::save;
use nadir::noise::Mt19937;
use nadir::tensor::Tensor;
use tempfile::TempDir;

/// A folder like one that transformers has saved, which is gone when this is.
#[allow(dead_code, reason = "not all tests that share this file ask")]
pub fn folder(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(name, folder.path());
    folder
}

/// The same, in the folder `to`.
pub fn write(name: &str, to: &Path) {
    let golden = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from)
        .join("tests/golden");
    let from = golden.join("clip").join(name);
    std::fs::create_dir_all(to).unwrap();
    for file in ["config.json", "preprocessor_config.json"] {
        std::fs::copy(from.join(file), to.join(file)).unwrap();
    }
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(golden.join("pipelines/tokenizer").join(file), to.join(file)).unwrap();
    }
    let shapes = std::fs::read_to_string(from.join("weights.json")).unwrap();
    let shapes: BTreeMap<String, Vec<usize>> = serde_json::from_str(&shapes).unwrap();
    let tensors: Vec<_> =
        shapes.iter().map(|(name, shape)| (name.clone(), draw(name, shape))).collect();
    save(&to.join("model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
}

/// The values that `draw` of `clip.py` makes.
fn draw(name: &str, shape: &[usize]) -> Tensor {
    let mut generator = Mt19937::new(u64::from(crc32fast::hash(name.as_bytes())));
    let deviation = (6.0 / shape.iter().skip(1).product::<usize>() as f64).sqrt();
    let values = (0..shape.iter().product()).map(|_| {
        let uniform = f64::from(generator.next_u32() % (1 << 24)) / f64::from(1 << 23) - 1.0;
        let value = match (shape.len(), name.ends_with("weight")) {
            (1, true) => 1.0 + 0.3 * uniform,
            (1, false) => 0.2 * uniform,
            _ => uniform * deviation,
        };
        value as f32
    });
    Tensor::from_vec(values.collect(), shape).unwrap()
}
