//! Weights that are drawn from their names, here and in `decoder.py`.

use std::collections::BTreeMap;

use nadir::Result;
use nadir::io::{TensorInfo, TensorSource};
use nadir::noise::Mt19937;
use nadir::tensor::{DType, Tensor};

use crate::golden;

/// The weights that `draw` of `golden/decoder.py` makes.
pub struct Drawn(BTreeMap<String, Vec<usize>>);

impl Drawn {
    /// Of the family `name`.
    pub fn of(name: &str) -> Self {
        let path = golden::path(&format!("decoder/{name}/weights.json"));
        Self(serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap())
    }
}

impl TensorSource for Drawn {
    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        Some(TensorInfo { shape: self.0.get(name)?.clone(), dtype: DType::F32 })
    }

    fn read(&self, name: &str) -> Result<Tensor> {
        let shape = &self.0[name];
        let mut generator = Mt19937::new(u64::from(crc32fast::hash(name.as_bytes())));
        let values = (0..shape.iter().product()).map(|_| {
            let uniform = f64::from(generator.next_u32() % (1 << 24)) / f64::from(1 << 23) - 1.0;
            let value = match (shape.len(), name.ends_with("weight")) {
                (1, true) => 1.0 + 0.3 * uniform,
                (1, false) => 0.2 * uniform,
                _ => 0.3 * uniform,
            };
            value as f32
        });
        Tensor::from_vec(values.collect(), &shape[..])
    }

    fn origin(&self, _: &str) -> String {
        "drawn".into()
    }
}
