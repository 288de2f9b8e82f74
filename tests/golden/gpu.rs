//! The device that tests run on.

use nadir::tensor::{Device, cuda};

/// The first GPU.
pub fn gpu() -> Option<Device> {
    match cuda::choose("cuda") {
        Ok((device, _)) => Some(device),
        Err(error) => {
            assert!(std::env::var_os("NADIR_REQUIRE_CUDA").is_none(), "{error}");
            None
        }
    }
}

/// Whether the device is the virtual one, which can be told to fail.
#[allow(dead_code, reason = "not all tests that share this file ask")]
pub fn is_virtual() -> bool {
    gpu().is_some() && cuda::devices().unwrap()[0].is_virtual()
}
