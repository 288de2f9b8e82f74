//! Weights that are drawn from their names, here and by `draw` of `golden/common.py`, and folders that hold them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use nadir::Result;
use nadir::io::safetensors::save;
use nadir::io::{TensorInfo, TensorSource};
use nadir::nn::Params;
use nadir::noise::Mt19937;
use nadir::tensor::{DType, Device, Tensor};
use tempfile::TempDir;

use crate::golden::path;

/// The weights of a folder of goldens that has a `weights.json`.
pub struct Drawn {
    shapes: BTreeMap<String, Vec<usize>>,
    /// The largest element of a matrix or a convolution of a shape.
    largest: fn(&[usize]) -> f64,
    dtype: DType,
}

impl Drawn {
    /// Of the family `name` of language models.
    pub fn of(name: &str) -> Self {
        Self::at(&format!("decoder/{name}"), |_| 0.3, DType::F32)
    }

    /// Outputs are about as large as inputs. The components in `models/` are f16, as files often are.
    pub fn by_inputs(folder: &str) -> Self {
        let dtype = if folder.starts_with("models/") { DType::F16 } else { DType::F32 };
        Self::at(folder, by_inputs, dtype)
    }

    /// Those that a network asks for, drawn as [`Self::by_inputs`].
    pub fn asked<T>(load: impl FnOnce(&Params) -> Result<T>) -> Result<Self> {
        let asked = Arc::new(Mutex::new(BTreeMap::new()));
        let seen = asked.clone();
        let initial = move |name: &str, shape: &[usize]| {
            seen.lock().unwrap().insert(name.to_owned(), shape.to_vec());
            Tensor::zeros(shape, DType::F32, Device::Cpu)
        };
        load(&Params::initial(initial, DType::F32, Device::Cpu))?;
        let shapes = std::mem::take(&mut *asked.lock().unwrap());
        Ok(Self { shapes, largest: by_inputs, dtype: DType::F32 })
    }

    /// Those of these names and shapes, drawn as [`Self::by_inputs`].
    pub fn of_shapes(shapes: BTreeMap<String, Vec<usize>>, dtype: DType) -> Self {
        Self { shapes, largest: by_inputs, dtype }
    }

    /// Writes them as a file.
    pub fn save(&self, path: &Path) {
        let read = |name: String| (name.clone(), self.read(&name).unwrap());
        let tensors: Vec<_> = self.names().into_iter().map(read).collect();
        save(path, &tensors, &BTreeMap::new()).unwrap();
    }

    fn at(folder: &str, largest: fn(&[usize]) -> f64, dtype: DType) -> Self {
        let path = path(&format!("{folder}/weights.json"));
        let shapes = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        Self { shapes, largest, dtype }
    }
}

fn by_inputs(shape: &[usize]) -> f64 {
    (3.0 / shape[1..].iter().product::<usize>() as f64).sqrt()
}

impl TensorSource for Drawn {
    fn names(&self) -> Vec<String> {
        self.shapes.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        Some(TensorInfo { shape: self.shapes.get(name)?.clone(), dtype: self.dtype })
    }

    fn read(&self, name: &str) -> Result<Tensor> {
        let shape = &self.shapes[name];
        let mut generator = Mt19937::new(u64::from(crc32fast::hash(name.as_bytes())));
        let values = (0..shape.iter().product()).map(|_| {
            let uniform = f64::from(generator.next_u32() % (1 << 24)) / f64::from(1 << 23) - 1.0;
            let value = match (shape.len(), name.ends_with("weight")) {
                (1, true) => 1.0 + 0.3 * uniform,
                (1, false) => 0.2 * uniform,
                _ => (self.largest)(shape) * uniform,
            };
            value as f32
        });
        Tensor::from_vec(values.collect(), &shape[..])?.to_dtype(self.dtype)
    }

    fn origin(&self, _: &str) -> String {
        "drawn".into()
    }
}

/// Writes a component into `to` as the library whose it is would: the configuration, and the weights, drawn by inputs.
pub fn write(folder: &str, to: &Path) {
    let config = std::fs::read_to_string(path(folder).join("config.json")).unwrap();
    let file = match config.contains("\"_class_name\"") {
        true => "diffusion_pytorch_model.safetensors",
        false => "model.safetensors",
    };
    std::fs::create_dir_all(to).unwrap();
    std::fs::write(to.join("config.json"), config).unwrap();
    Drawn::by_inputs(folder).save(&to.join(file));
}

/// The component `models/{name}`, as a folder which is gone when this is.
pub fn component(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(&format!("models/{name}"), folder.path());
    folder
}
