//! The devices of this machine, and which of them `--device` means.

use std::panic::catch_unwind;
use std::sync::OnceLock;

use cudarc::driver::{CudaContext, result, sys};

use super::gpu::{Gpu, describe, guarded};
use super::{COMPILER, MODULES};
use crate::error::{Error, Result};
use crate::types::Device;

/// Families that drawing a picture needs. `--device auto` takes the GPU only when all are in the build.
const NEEDED: [&str; 8] =
    ["attention", "conv", "elementwise", "embedding", "layout", "matmul", "norm", "resample"];

/// The oldest compute capability there are kernels for.
const OLDEST: (i32, i32) = (8, 0);

/// A CUDA device as its driver describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Properties {
    /// Its number, the N of `--device cuda:N`.
    pub ordinal: usize,
    /// The name of the card.
    pub name: String,
    /// Major and minor version of its instruction set.
    pub compute_capability: (i32, i32),
    /// Its memory, in bytes.
    pub memory: usize,
}

impl Properties {
    /// Whether this is the virtual device, whose clock says nothing of a card's.
    pub fn is_virtual(&self) -> bool {
        self.name.starts_with("vgpu ")
    }
}

impl std::fmt::Display for Properties {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (major, minor) = self.compute_capability;
        let gib = self.memory as f64 / (1u64 << 30) as f64;
        write!(f, "{}, compute capability {major}.{minor}, {gib:.1} GiB", self.name)
    }
}

/// Release of the CUDA compiler that built the kernels.
///
/// # Errors
/// `Cuda` with the reason when this build has no kernels.
pub fn compiler() -> Result<&'static str> {
    COMPILER.map_err(|reason| Error::Cuda(format!("this build has no kernels: {reason}")))
}

/// Release of CUDA that the driver is for, major and minor; none where it does not say.
pub(super) fn driver_release() -> Option<(i32, i32)> {
    let mut version = 0;
    // SAFETY: the driver writes the number there.
    let ask = || unsafe { sys::cuDriverGetVersion(&mut version).result() };
    guarded("cuDriverGetVersion", ask).ok()?.ok()?;
    Some((version / 1000, version % 1000 / 10))
}

/// The families of kernels in this build, in alphabetical order.
pub fn families() -> impl Iterator<Item = &'static str> {
    MODULES.iter().map(|module| module.family)
}

/// The CUDA devices of this machine.
///
/// # Errors
/// `Cuda` when there is no driver, or when it fails.
pub fn devices() -> Result<Vec<Properties>> {
    (0..device_count()?).map(properties).collect()
}

/// The device that `--device` asks for (`auto`, `cpu`, `cuda`, `cuda:N`), and one line that says why it was
/// chosen.
///
/// # Errors
/// `Argument` for another word, or for a device that this machine does not have; `Cuda` when `cuda` was asked
/// for and the driver or the build cannot serve it.
pub fn choose(request: &str) -> Result<(Device, String)> {
    match request {
        "cpu" => Ok((Device::Cpu, "cpu, as asked".into())),
        "auto" => Ok(match automatic() {
            Ok(gpu) => (Device::Cuda(gpu.ordinal), format!("cuda:{}: {gpu}", gpu.ordinal)),
            Err(Error::Cuda(reason)) => (Device::Cpu, format!("cpu, since {reason}")),
            Err(error) => (Device::Cpu, format!("cpu, since {error}")),
        }),
        _ => {
            let ordinal = match request.strip_prefix("cuda") {
                Some("") => Some(0),
                Some(rest) => rest.strip_prefix(':').and_then(|n| n.parse().ok()),
                None => None,
            };
            let ordinal: usize = ordinal.ok_or_else(|| {
                Error::argument("device", request, "one of auto, cpu, cuda, cuda:N")
            })?;
            compiler()?;
            let gpu = &Gpu::open(ordinal)?.properties;
            Ok((Device::Cuda(ordinal), format!("cuda:{ordinal}, as asked: {gpu}")))
        }
    }
}

/// The first device, when it can run whole models.
fn automatic() -> Result<Properties> {
    let built_by = compiler()?;
    if device_count()? == 0 {
        return Err(Error::Cuda("the driver finds no device".into()));
    }
    // Within a major release older drivers may do, says NVIDIA's guide to compatibility.
    let needed = built_by.split('.').next().and_then(|major| major.parse().ok());
    if let (Some(needed), Some((major, minor))) = (needed, driver_release())
        && major < needed
    {
        return Err(Error::Cuda(format!(
            "the driver is one for CUDA {major}.{minor}, and the kernels need CUDA {needed}"
        )));
    }
    let first = properties(0)?;
    if first.compute_capability < OLDEST {
        let (major, minor) = OLDEST;
        return Err(Error::Cuda(format!(
            "the kernels need compute capability {major}.{minor} ({first})"
        )));
    }
    let missing: Vec<_> = NEEDED.into_iter().filter(|f| families().all(|g| g != *f)).collect();
    if !missing.is_empty() {
        return Err(Error::Cuda(format!(
            "this build has no kernels yet for {} ({first})",
            missing.join(", ")
        )));
    }
    Ok(first)
}

/// Loads the driver and counts its devices, once.
pub(super) fn device_count() -> Result<usize> {
    static COUNT: OnceLock<Result<usize, String>> = OnceLock::new();
    let count = COUNT.get_or_init(|| {
        // SAFETY: opens libcuda, whose initialisers are the vendor's, and looks at nothing in it.
        let present = catch_unwind(|| unsafe { sys::is_culib_present() }).unwrap_or(false);
        if !present {
            return Err("no NVIDIA driver is installed (libcuda.so was not found)".into());
        }
        match guarded("cuInit", CudaContext::device_count) {
            Ok(Ok(count)) => Ok(count.max(0) as usize),
            Ok(Err(error)) => Err(describe("cuInit", error)),
            Err(Error::Cuda(reason)) => Err(reason),
            Err(error) => Err(error.to_string()),
        }
    });
    count.clone().map_err(Error::Cuda)
}

/// Asks the driver about a device, without taking it into use.
pub(super) fn properties(ordinal: usize) -> Result<Properties> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let count = device_count()?;
    if ordinal >= count {
        let expected = format!("this machine has {count} CUDA device(s), counted from 0");
        return Err(Error::argument("device", format!("cuda:{ordinal}"), expected));
    }
    let what = "asking for the device";
    guarded(what, || {
        let device = result::device::get(ordinal as i32)?;
        // SAFETY: the driver is initialised, and has just returned this device.
        let (major, minor, memory) = unsafe {
            let major = result::device::get_attribute(device, MAJOR)?;
            let minor = result::device::get_attribute(device, MINOR)?;
            (major, minor, result::device::total_mem(device)?)
        };
        let name = result::device::get_name(device)?;
        Ok(Properties { ordinal, name, compute_capability: (major, minor), memory })
    })?
    .map_err(|error| Error::Cuda(describe(what, error)))
}

/// Whether there is a device, and kernels, for tests to run on.
///
/// # Panics
/// When there is none, but `NADIR_REQUIRE_CUDA` is set: `cargo xtask test` sets it where it has staged a device, since
/// a test that lacks one passes by doing nothing.
#[cfg(test)]
pub(crate) fn is_there_for_tests() -> bool {
    let missing = match compiler().and_then(|_| device_count()) {
        Ok(0) => "the driver finds no device".to_owned(),
        Ok(_) => return true,
        Err(error) => error.to_string(),
    };
    assert!(std::env::var_os("NADIR_REQUIRE_CUDA").is_none(), "NADIR_REQUIRE_CUDA: {missing}");
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_devices_are_refused() {
        for request in ["gpu", "cuda:", "cuda:x", "cuda0", "cuda:-1", "CPU"] {
            assert!(matches!(choose(request), Err(Error::Argument { .. })), "{request}");
        }
    }

    #[test]
    fn cpu_and_auto_are_always_there() {
        assert_eq!(choose("cpu").unwrap().0, Device::Cpu);
        let (device, reason) = choose("auto").unwrap();
        assert!(reason.starts_with(&device.to_string()), "{device}: {reason}");
    }
}
