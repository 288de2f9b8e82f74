//! Programs that know nothing of this crate run on the staged library.

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

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
    if let Some(said) = python(script, &[("VGPU_CARD", "h100")]) {
        assert!(said.contains("where no allocation starts"), "{said}");
    }
}

/// Runs a script with the device as its driver; what it said on stderr, or `None` where there is no Python.
fn python(script: &str, settings: &[(&str, &str)]) -> Option<String> {
    static FOLDERS: AtomicU32 = AtomicU32::new(0);
    let folder = common::stage(&format!("python{}", FOLDERS.fetch_add(1, Relaxed)));
    let ran = Command::new("python3")
        .args(["-c", script])
        .env("LD_LIBRARY_PATH", &folder)
        .envs(settings.iter().copied())
        .output();
    let _ = std::fs::remove_dir_all(folder);
    match ran {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{said}");
            Some(said)
        }
        Err(e) => {
            eprintln!("SKIPPED: python3 does not run ({e})");
            None
        }
    }
}

/// What scripts begin with: a context, and a kernel that does nothing.
const PRELUDE: &str = r#"
import ctypes
from ctypes import byref, c_int, c_size_t, c_uint64, c_void_p
cuda = ctypes.CDLL('libcuda.so.1')
assert cuda.cuInit(0) == 0
context = c_void_p()
assert cuda.cuCtxCreate_v2(byref(context), 0, 0) == 0
PTX = b'.version 8.0\n.target sm_80\n.address_size 64\n.visible .entry nothing() { ret; }'
def load():
    module, function = c_void_p(), c_void_p()
    code = cuda.cuModuleLoadData(byref(module), PTX)
    return code or cuda.cuModuleGetFunction(byref(function), module, b'nothing'), function
def launch(function):
    none = c_void_p()
    return cuda.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, none, none, none)
"#;

#[test]
fn the_allocation_that_was_named_fails() {
    // Six ways to allocate, in turn; each fails once and works when it is tried again.
    let script = format!(
        "{PRELUDE}
out, pitch, size, stream = c_uint64(), c_size_t(), c_size_t(64), c_void_p()
ways = [lambda: cuda.cuMemAlloc_v2(byref(out), size), lambda: load()[0],
        lambda: cuda.cuMemAllocPitch_v2(byref(out), byref(pitch), size, size, 4),
        lambda: cuda.cuMemAllocAsync(byref(out), size, stream),
        lambda: cuda.cuMemAllocManaged(byref(out), size, 1), lambda: cuda.cuMemHostAlloc(byref(out), size, 0)]
import os
n = int(os.environ['VGPU_FAIL_ALLOC'])
assert [way() for way in ways] == [2 if i + 1 == n else 0 for i in range(6)]
assert ways[n - 1]() == 0 and cuda.cuCtxSynchronize() == 0
"
    );
    for n in 1..=6 {
        let Some(said) = python(&script, &[("VGPU_FAIL_ALLOC", &n.to_string())]) else { return };
        assert!(said.contains(&format!("allocation {n} refused")), "{said}");
    }
}

#[test]
fn the_launch_that_was_named_ends_its_context() {
    let script = format!(
        "{PRELUDE}
import os
code = int(os.environ['CODE'])
function = load()[1]
assert launch(function) == 0 and cuda.cuCtxSynchronize() == 0
assert launch(function) == 0 and cuda.cuCtxSynchronize() == code
address = c_uint64()
assert launch(function) == code and cuda.cuMemAlloc_v2(byref(address), c_size_t(4)) == code
assert cuda.cuCtxDestroy_v2(context) == 0 and cuda.cuCtxCreate_v2(byref(context), 0, 0) == 0
assert launch(load()[1]) == 0 and cuda.cuCtxSynchronize() == 0
"
    );
    for (setting, code) in [("2", "719"), ("2:999", "999")] {
        let settings = [("VGPU_FAIL_LAUNCH", setting), ("CODE", code)];
        let Some(said) = python(&script, &settings) else { return };
        assert!(said.contains("launch 2 of nothing failed"), "{said}");
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
