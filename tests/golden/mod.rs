//! Reads the golden tensors (`README.md` beside this file) and compares with them.

#[allow(dead_code, reason = "not all tests draw weights")]
pub mod drawn;

use std::path::PathBuf;

use nadir::Result;
use nadir::io::TensorSource;
use nadir::io::safetensors::SafeTensors;
use nadir::tensor::{DType, Tensor};

/// The repository, or what a bundle has of it (`cargo xtask gpu-bundle`): cargo sets the variable as well.
pub fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or(env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// A file or folder of `tests/golden/`.
pub fn path(name: &str) -> PathBuf {
    root().join("tests/golden").join(name)
}

/// The tensors in `tests/golden/{folder}/golden.safetensors`.
pub fn open(folder: &str) -> Result<SafeTensors> {
    SafeTensors::open(path(folder).join("golden.safetensors"))
}

/// Asserts that `ours` is `theirs` within `tolerance` times the largest magnitude in `theirs`.
#[track_caller]
pub fn assert_close(what: &str, ours: &Tensor, theirs: &Tensor, tolerance: f32) {
    assert_eq!(ours.dims(), theirs.dims(), "{what}");
    let ours = ours.to_dtype(DType::F32).and_then(|t| t.to_vec::<f32>()).unwrap();
    let theirs = theirs.to_vec::<f32>().unwrap();
    let largest = theirs.iter().fold(0f32, |m, x| m.max(x.abs()));
    let error = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs());
    // f32::max passes NaN over; a sum does not.
    let error =
        if ours.iter().sum::<f32>().is_finite() { error.fold(0f32, f32::max) } else { f32::NAN };
    let relative = error / largest;
    println!("{what}: {relative:.1e} of the largest value");
    assert!(relative <= tolerance, "{what}: off by {relative:e} of the largest value {largest}");
}

/// Asserts that two tensors are equal bit for bit.
#[track_caller]
pub fn assert_same(what: &str, a: &Tensor, b: &Tensor) {
    assert_eq!(a.dims(), b.dims(), "{what}");
    let bits = |t: &Tensor| -> Vec<u32> {
        t.to_vec::<f32>().unwrap().iter().map(|x| x.to_bits()).collect()
    };
    assert!(bits(a) == bits(b), "{what}: not bit-identical");
}

/// The tensor `name` of a golden file.
#[track_caller]
pub fn get(golden: &SafeTensors, name: &str) -> Tensor {
    golden.read(name).unwrap()
}
