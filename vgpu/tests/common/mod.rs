//! What the tests share: CUDA C++ to PTX, and random numbers.
#![allow(dead_code, reason = "every test binary uses its own part")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use vgpu::{Config, Error, Function, Gpu};

/// The CUDA compiler: $NVCC, $CUDA_HOME, the PATH, or what `cargo xtask cuda` installed.
pub fn nvcc() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("cuda");
    let candidates = [
        std::env::var_os("NVCC").map(PathBuf::from),
        std::env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin/nvcc")),
        std::env::var_os("PATH").and_then(|path| {
            std::env::split_paths(&path).map(|d| d.join("nvcc")).find(|p| p.is_file())
        }),
        find(&target, "nvcc", 8),
    ];
    candidates.into_iter().flatten().find(|p| p.is_file())
}

/// A tool that stands beside nvcc.
pub fn beside_nvcc(name: &str) -> Option<PathBuf> {
    nvcc().map(|p| p.with_file_name(name)).filter(|p| p.is_file())
}

fn find(dir: &Path, name: &str, depth: u32) -> Option<PathBuf> {
    let entries: Vec<_> = std::fs::read_dir(dir).ok()?.flatten().map(|e| e.path()).collect();
    let here =
        entries.iter().find(|p| p.is_file() && p.file_name().is_some_and(|n| n == name)).cloned();
    here.or_else(|| {
        (depth > 0)
            .then(|| entries.iter().filter(|p| p.is_dir()).find_map(|d| find(d, name, depth - 1)))?
    })
}

/// PTX of a file beside the tests, or `None`, said loudly, when there is no nvcc.
pub fn compile(file: &str) -> Option<String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels").join(file);
    compile_path(&source, &["-arch=sm_80"])
}

/// PTX of any CUDA file.
pub fn compile_path(source: &Path, options: &[&str]) -> Option<String> {
    let Some(nvcc) = nvcc() else {
        eprintln!(
            "SKIPPED: no nvcc ($NVCC, $CUDA_HOME, PATH, cargo xtask cuda), so {} was not compiled",
            source.display()
        );
        return None;
    };
    let stem = source.file_stem().unwrap().to_string_lossy().into_owned();
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!(
        "{stem}-{}-{:?}.ptx",
        std::process::id(),
        std::thread::current().id()
    ));
    let mut command = Command::new(&nvcc);
    command
        .args(["-ptx", "-lineinfo", "-O3", "-std=c++17"])
        .args(options)
        .arg(source)
        .arg("-o")
        .arg(&out);
    let output =
        command.output().unwrap_or_else(|e| panic!("{} does not run: {e}", nvcc.display()));
    assert!(
        output.status.success(),
        "nvcc failed on {}:\n{}",
        source.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    let ptx = std::fs::read_to_string(&out).unwrap();
    let _ = std::fs::remove_file(out);
    Some(ptx)
}

/// A folder of its own with `libcuda.so` and `libcuda.so.1`, as `cargo xtask vgpu` makes it.
pub fn stage(name: &str) -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let library = exe.with_file_name("libvgpu.so");
    assert!(library.is_file(), "{} was not built with the tests", library.display());
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["libcuda.so", "libcuda.so.1"] {
        std::fs::copy(&library, folder.join(name)).unwrap();
    }
    folder
}

/// A device that checks and counts.
pub fn gpu() -> Gpu {
    Gpu::new(Config { counters: true, ..Config::default() }).unwrap()
}

/// The only kernel of a text whose name contains `part`.
pub fn kernel(gpu: &mut Gpu, ptx: &str, part: &str) -> Result<Function, Error> {
    let module = gpu.load(ptx)?;
    let names: Vec<&str> = module.names().into_iter().filter(|n| n.contains(part)).collect();
    assert_eq!(
        names.len(),
        1,
        "kernels with '{part}' in their name: {names:?} of {:?}",
        module.names()
    );
    module.function(names[0])
}

/// Repeatable random numbers.
pub struct Rng(pub u64);

impl Rng {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Uniform in [-1, 1).
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn vec(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.unit()).collect()
    }
}

/// Single to bfloat16, to nearest even.
pub fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// bfloat16 to double.
pub fn from_bf16(x: u16) -> f64 {
    f32::from_bits((x as u32) << 16) as f64
}

/// Runs a script with the device as its driver; what it said on stderr, or `None` where there is no Python.
pub fn python(script: &str, settings: &[(&str, &str)]) -> Option<String> {
    static FOLDERS: AtomicU32 = AtomicU32::new(0);
    let folder = stage(&format!("python{}", FOLDERS.fetch_add(1, Relaxed)));
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
pub const PRELUDE: &str = r#"
import ctypes
from ctypes import byref, c_int, c_size_t, c_uint64, c_void_p
cuda = ctypes.CDLL('libcuda.so.1')
assert cuda.cuInit(0) == 0
context = c_void_p()
assert cuda.cuCtxCreate_v2(byref(context), 0, 0) == 0
HEAD = b'.version 8.0\n.target sm_80\n.address_size 64\n'
NOTHING = HEAD + b'.visible .entry nothing() { ret; }'
def load(text=NOTHING, name=b'nothing'):
    module, function = c_void_p(), c_void_p()
    code = cuda.cuModuleLoadData(byref(module), text)
    return code or cuda.cuModuleGetFunction(byref(function), module, name), function
def launch(function, threads=1, blocks=1, *values):
    none = c_void_p()
    values = [c_uint64(v) for v in values]
    pointers = (c_void_p * (len(values) + 1))(*[ctypes.addressof(v) for v in values])
    return cuda.cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, 0, none, pointers, none)
def allocate(size, fill=None):
    address = c_uint64()
    assert cuda.cuMemAlloc_v2(byref(address), c_size_t(size)) == 0
    assert fill is None or cuda.cuMemsetD8_v2(address, fill, c_size_t(size)) == 0
    return address.value
def download(address, size):
    back = (ctypes.c_uint8 * size)()
    code = cuda.cuMemcpyDtoH_v2(back, c_uint64(address), c_size_t(size))
    return code, list(back)
"#;
