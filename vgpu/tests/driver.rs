//! Programs that know nothing of this crate run on the staged library.
#![cfg(vgpu_supported)]

mod common;

use std::path::Path;
use std::process::Command;

#[test]
fn a_c_program() {
    let Some(ptx) = common::compile("driver.cu") else { return };
    let header = common::nvcc().unwrap().parent().unwrap().parent().unwrap().join("include");
    if !header.join("cuda.h").is_file() {
        eprintln!("SKIPPED: no cuda.h beside nvcc, so the C program was not built");
        return;
    }
    let folder = common::stage("driver");
    let (program, text) = (folder.join("driver"), folder.join("driver.ptx"));
    std::fs::write(&text, ptx).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/driver.c");
    let built = Command::new("gcc")
        .args(["-O1", "-Wall", "-Werror", "-o"])
        .arg(&program)
        .arg(&source)
        .arg("-I")
        .arg(&header)
        .arg("-L")
        .arg(&folder)
        .arg("-lcuda")
        .output();
    let built = match built {
        Ok(output) => output,
        Err(e) => {
            eprintln!("SKIPPED: gcc does not run ({e}), so the C program was not built");
            return;
        }
    };
    assert!(built.status.success(), "gcc: {}", String::from_utf8_lossy(&built.stderr));
    for seed in ["0", "1", "2"] {
        let counters = folder.join(format!("counters-{seed}.json"));
        let output = Command::new(&program)
            .arg(&text)
            .env("LD_LIBRARY_PATH", &folder)
            .env("VGPU_SEED", seed)
            .env("VGPU_COUNTERS", &counters)
            .env("VGPU_PTXAS", common::beside_nvcc("ptxas").unwrap_or_default())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{}\n{said}", output.status);
        // The report of the planted fault names all that a programmer needs.
        for part in [
            "out-of-bounds",
            "kernel out_of_bounds",
            "block (0, 0, 0)",
            "thread (0, 0, 0)",
            "PTX line",
            "driver.cu:",
        ] {
            assert!(said.contains(part), "no '{part}' in\n{said}");
        }
        let lines = std::fs::read_to_string(&counters).unwrap();
        let is_json = |l: &str| l.starts_with("{\"kernel\":\"") && l.ends_with('}');
        assert!(lines.lines().count() >= 5 && lines.lines().all(is_json), "{lines}");
        if common::beside_nvcc("ptxas").is_some() {
            let is_complete =
                |l: &str| l.contains("\"registers\":") && l.contains("\"occupancy\":");
            assert!(lines.lines().all(is_complete), "{lines}");
        }
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn ctypes_of_python() {
    let script = "
import ctypes
cuda = ctypes.CDLL('libcuda.so.1')
assert cuda.cuInit(0) == 0
device, context, address = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
assert cuda.cuDeviceGet(ctypes.byref(device), 0) == 0
name = ctypes.create_string_buffer(64)
assert cuda.cuDeviceGetName(name, 64, device) == 0 and name.value == b'vgpu H100', name.value
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
assert cuda.cuCtxSetCurrent(context) == 0
assert cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(64)) == 0
assert cuda.cuMemsetD8_v2(address, 7, ctypes.c_size_t(64)) == 0
back = (ctypes.c_uint8 * 64)()
assert cuda.cuMemcpyDtoH_v2(back, address, ctypes.c_size_t(64)) == 0 and set(back) == {7}
# Work waits in its stream until something asks for it: who reads too early sees old data.
stream, pinned = ctypes.c_void_p(), ctypes.c_void_p()
assert cuda.cuStreamCreate(ctypes.byref(stream), 1) == 0
assert cuda.cuMemHostAlloc(ctypes.byref(pinned), ctypes.c_size_t(64), 0) == 0
view = (ctypes.c_uint8 * 64).from_address(pinned.value)
assert cuda.cuMemsetD8Async(address, 9, ctypes.c_size_t(64), stream) == 0
assert cuda.cuMemcpyDtoHAsync_v2(pinned, address, ctypes.c_size_t(64), stream) == 0
assert set(view) == {0} and cuda.cuStreamQuery(stream) == 600
assert cuda.cuStreamSynchronize(stream) == 0 and set(view) == {9}
assert cuda.cuMemFree_v2(address) == 0 and cuda.cuMemFree_v2(address) == 1
";
    if let Some(said) = common::python(script, &[("VGPU_CARD", "h100")]) {
        assert!(said.contains("where no allocation starts"), "{said}");
    }
}

#[test]
fn no_build_folder_holds_a_driver() {
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_path_buf();
    for folder in [deps.clone(), deps.parent().unwrap().to_path_buf()] {
        let found: Vec<_> = std::fs::read_dir(&folder)
            .unwrap()
            .flatten()
            .map(|e| e.file_name())
            .filter(|n| n.to_string_lossy().starts_with("libcuda.so"))
            .collect();
        assert!(
            found.is_empty(),
            "{found:?} in {}: cargo run would load it instead of a real driver",
            folder.display()
        );
    }
}
