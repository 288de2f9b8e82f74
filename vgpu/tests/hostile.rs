//! Damaged PTX is refused or runs into a check; it never takes the process along.
#![cfg(vgpu_supported)]

mod common;

use std::ffi::{CString, c_void};
use std::process::Command;

use common::Rng;
use cudarc::driver::sys::{self, CUresult};
use vgpu::{Arguments, Config, Error, Gpu};

const SAMPLE: &str = include_str!("golden/sample.ptx");

/// Words and marks, so that a swap moves whole tokens.
fn tokens(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let word = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || "_$%.".contains(c)))
            .unwrap_or(rest.len())
            .max(1);
        let (token, tail) = rest.split_at(word);
        out.push(token);
        rest = tail;
    }
    out
}

fn mutate(rng: &mut Rng, parts: &[&str]) -> Vec<u8> {
    let mut bytes = SAMPLE.as_bytes().to_vec();
    match rng.below(4) {
        0 => bytes.truncate(rng.below(bytes.len())),
        1 => {
            let mut swapped = parts.to_vec();
            for _ in 0..1 + rng.below(3) {
                swapped.swap(rng.below(parts.len()), rng.below(parts.len()));
            }
            return swapped.concat().into_bytes();
        }
        2 => {
            for _ in 0..1 + rng.below(4) {
                let at = rng.below(bytes.len());
                bytes[at] = rng.bits() as u8;
            }
        }
        _ => {
            // A number becomes another one.
            let digits: Vec<usize> =
                (0..bytes.len()).filter(|i| bytes[*i].is_ascii_digit()).collect();
            for _ in 0..1 + rng.below(3) {
                bytes[digits[rng.below(digits.len())]] = b'0' + rng.below(10) as u8;
            }
        }
    }
    bytes
}

#[test]
fn the_sample_is_fine() {
    let mut gpu = Gpu::new(Config::default()).unwrap();
    assert!(!gpu.load(SAMPLE).unwrap_or_else(|e| panic!("{e}")).names().is_empty());
}

#[test]
fn ten_thousand_damaged_files() {
    let parts = tokens(SAMPLE);
    let mut rng = Rng(42);
    let (mut refused, mut stopped, mut ran) = (0, 0, 0);
    for _ in 0..10_000 {
        let text = String::from_utf8_lossy(&mutate(&mut rng, &parts)).into_owned();
        let mut gpu = Gpu::new(Config { budget: 3_000, threads: 1, ..Config::default() }).unwrap();
        let module = match gpu.load(&text) {
            Ok(module) => module,
            Err(Error::Syntax(e)) => {
                assert!(e.line >= 1 && !e.message.is_empty());
                refused += 1;
                continue;
            }
            Err(Error::OutOfMemory) => continue,
            Err(e) => panic!("{e}"),
        };
        // One kernel of what was accepted, on memory that is there.
        let Some(name) = module.names().first().map(|n| n.to_string()) else { continue };
        let kernel = module.function(&name).unwrap();
        let data = gpu.upload(&[0u32; 256]).unwrap();
        let mut args = Arguments::new();
        while args.len() + 8 <= kernel.argument_bytes() {
            args = args.pointer(data);
        }
        while args.len() < kernel.argument_bytes() {
            args = args.bytes(&[1]);
        }
        if kernel.static_shared() > 1 << 20 || kernel.argument_bytes() > 1 << 12 {
            continue;
        }
        match gpu.launch(&kernel, [1; 3], [40, 1, 1], 0, &args) {
            Ok(_) => ran += 1,
            Err(_) => stopped += 1,
        }
    }
    println!("{refused} refused, {stopped} stopped by a check, {ran} ran");
    assert!(refused > 1000 && stopped + ran > 100);
}

/// Set for the process that loads damaged files through the driver.
const CHILD: &str = "VGPU_TEST_HOSTILE";

#[test]
fn ten_thousand_damaged_files_through_the_driver() {
    let folder = common::stage("hostile");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "on_the_device", "--nocapture"])
        .env("LD_LIBRARY_PATH", &folder)
        .env("VGPU_BUDGET", "3000")
        .env("VGPU_THREADS", "1")
        .env(CHILD, "1")
        .output()
        .unwrap();
    // Every check that stopped a kernel has explained itself there: the end is enough.
    let said = String::from_utf8_lossy(&output.stderr);
    let tail: Vec<&str> = said.lines().rev().take(20).collect();
    assert!(
        output.status.success(),
        "{}: {}{tail:#?}",
        output.status,
        String::from_utf8_lossy(&output.stdout)
    );
    print!("{}", String::from_utf8_lossy(&output.stdout));
    std::fs::remove_dir_all(folder).unwrap();
}

/// A context of the device, where a fault stays until the context is destroyed.
fn context() -> sys::CUcontext {
    let mut context = std::ptr::null_mut();
    // SAFETY: the place for the result is a local.
    let code = unsafe { sys::cuCtxCreate_v2(&mut context, 0, 0) };
    assert_eq!(code, CUresult::CUDA_SUCCESS);
    context
}

/// Launches `kernel` on 40 threads with pointers to 1 KiB as arguments, and waits.
fn launch(kernel: sys::CUfunction) -> Result<Vec<u32>, CUresult> {
    let mut data: [sys::CUdeviceptr; 2] = [0; 2];
    let mut back = vec![0u32; 256];
    let ok = CUresult::CUDA_SUCCESS;
    // More than a damaged kernel can declare, so that no parameter is read past the end.
    let (mut words, mut arguments) = ([0u64; 1024], [std::ptr::null_mut::<c_void>(); 1024]);
    // SAFETY: buffers are of the sizes said; what the kernel does with them is the device's to check.
    let code = unsafe {
        for data in &mut data {
            assert_eq!(sys::cuMemAlloc_v2(data, 1024), ok);
            assert_eq!(sys::cuMemsetD32_v2(*data, 7, 256), ok);
        }
        for (i, (word, argument)) in words.iter_mut().zip(&mut arguments).enumerate() {
            *word = data[i % 2];
            *argument = std::ptr::from_mut(word).cast();
        }
        let parameters = arguments.as_mut_ptr();
        let stream = std::ptr::null_mut();
        match sys::cuLaunchKernel(
            kernel,
            1,
            1,
            1,
            40,
            1,
            1,
            0,
            stream,
            parameters,
            std::ptr::null_mut(),
        ) {
            CUresult::CUDA_SUCCESS => sys::cuMemcpyDtoH_v2(back.as_mut_ptr().cast(), data[1], 1024),
            code => code,
        }
    };
    if code == ok { Ok(back) } else { Err(code) }
}

#[test]
#[ignore = "started by the test above, with the device's library on its path"]
fn on_the_device() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    use CUresult::*;
    let kernels: Vec<CString> = SAMPLE
        .lines()
        .filter_map(|line| line.strip_prefix(".visible .entry ")?.strip_suffix('('))
        .map(|name| CString::new(name).unwrap())
        .collect();
    assert!(kernels.len() > 4 && kernels[0].as_bytes() == b"copy_coalesced");
    let parts = tokens(SAMPLE);
    let mut rng = Rng(43);
    let (mut refused, mut stopped, mut ran) = (0, 0, 0);
    // SAFETY: images end with a NUL; the places for results are locals; handles are of this context.
    unsafe {
        assert_eq!(sys::cuInit(0), CUDA_SUCCESS);
        let mut current = context();
        for i in 0..=10_000 {
            // The last one is whole: nothing that went before has spoilt the process.
            let is_whole = i == 10_000;
            let mut image =
                if is_whole { SAMPLE.as_bytes().to_vec() } else { mutate(&mut rng, &parts) };
            image.push(0);
            let mut module = std::ptr::null_mut();
            match sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) {
                CUDA_SUCCESS => {}
                // Syntax; no text or no .version; a newer version or target; a huge variable.
                CUDA_ERROR_INVALID_PTX
                | CUDA_ERROR_INVALID_IMAGE
                | CUDA_ERROR_UNSUPPORTED_PTX_VERSION
                | CUDA_ERROR_NO_BINARY_FOR_GPU
                | CUDA_ERROR_OUT_OF_MEMORY => {
                    assert!(!is_whole && module.is_null());
                    refused += 1;
                    continue;
                }
                code => panic!("{code:?} for\n{}", String::from_utf8_lossy(&image)),
            }
            let mut kernel = std::ptr::null_mut();
            let name = &kernels[if is_whole { 0 } else { rng.below(kernels.len()) }];
            match sys::cuModuleGetFunction(&mut kernel, module, name.as_ptr()) {
                CUDA_SUCCESS => {}
                // The name is among what was damaged.
                CUDA_ERROR_NOT_FOUND => {
                    assert!(!is_whole);
                    assert_eq!(sys::cuModuleUnload(module), CUDA_SUCCESS);
                    continue;
                }
                code => panic!("{code:?} for\n{}", String::from_utf8_lossy(&image)),
            }
            match launch(kernel) {
                Ok(back) => {
                    assert!(!is_whole || back[..40].iter().all(|word| *word == 7));
                    ran += 1;
                }
                Err(code) => {
                    assert!(!is_whole, "{code:?}");
                    stopped += 1;
                }
            }
            assert_eq!(sys::cuCtxDestroy_v2(current), CUDA_SUCCESS);
            current = context();
        }
    }
    println!("{refused} refused, {stopped} stopped by a check, {ran} ran");
    assert!(refused > 1000 && stopped + ran > 100);
}

#[test]
fn what_is_refused_names_the_line() {
    let cases = [
        ("wgmma.fence.sync.aligned;", "'wgmma'"),
        ("frobnicate.u32 %r1;", "'frobnicate'"),
        ("add.frob.u32 %r1, %r1, %r1;", ".frob"),
        ("add.f32 %r1, %d1, %r1;", "64 bits"),
        ("bra nowhere;", "nowhere"),
        ("ld.global.u32 %r1, [%q];", "'%q'"),
        ("call other, ();", "'other'"),
        ("mov.u32 %r1, %envoy3;", "%envoy3"),
        ("@%r1 exit;", "predicate"),
    ];
    for (statement, part) in cases {
        let text = format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.entry k() {{\n.reg .b32 %r<4>; .reg .b64 %d<4>;\n{statement}\nret;\n}}"
        );
        let mut gpu = Gpu::new(Config::default()).unwrap();
        match gpu.load(&text) {
            Err(Error::Syntax(e)) => {
                assert!(e.line == 6 && e.message.contains(part), "{statement}: {e}")
            }
            Err(e) => panic!("{statement}: {e}"),
            Ok(_) => panic!("{statement} was accepted"),
        }
    }
}
