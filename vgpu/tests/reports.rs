//! What a report says: both sides, names as in the source, where an undefined value came from.
#![cfg(vgpu_supported)]

mod common;

use vgpu::{Arguments, Config, Error, Fault, Gpu, Severity};

fn fault(gpu: &mut Gpu, ptx: &str, part: &str, threads: u32) -> Fault {
    let kernel = common::kernel(gpu, ptx, part).unwrap();
    let data = gpu.upload(&[0u32; 1024]).unwrap();
    let fresh = gpu.allocate(4096).unwrap();
    let args = Arguments::new().pointer(data).pointer(fresh);
    match gpu.launch(&kernel, [2, 1, 1], [threads, 1, 1], 0, &args) {
        Err(Error::Fault(fault)) => *fault,
        other => panic!("{part}: {:?}", other.map(|_| ())),
    }
}

/// Line of the first occurrence of a marker in the kernels' source.
fn line(marker: &str) -> String {
    let source = include_str!("kernels/reports.cu");
    let at = source.lines().position(|l| l.contains(marker)).expect("the marker is there");
    format!("reports.cu:{}", at + 1)
}

#[test]
fn reports_name_both_sides_and_origins() {
    let Some(ptx) = common::compile("reports.cu") else { return };
    // Kernel, threads of a block, and what the report has to say, `@` before a marker of the source.
    let cases: &[(&str, u32, &[&str])] = &[
        (
            "warps",
            64,
            &["by warp", "wrote there at PTX line", "@warp writes", "source", "no barrier"],
        ),
        ("readers", 64, &["write of 4 bytes", "read there at PTX line", "@warp reads"]),
        ("lanes", 32, &["thread (1, 0, 0) wrote there", "@lane writes", "no __syncwarp"]),
        ("blocks", 32, &["block (0, 0, 0) wrote there at PTX line", "@block writes"]),
        ("shared_input", 32, &["block (0, 0, 0) read there at PTX line", "@block reads"]),
        ("templated", 32, &["in kernel void report::templated<float, 3>(float*, float*)"]),
        ("loaded", 32, &["it was loaded from global memory that nobody wrote", "@loads fresh"]),
        ("parked", 32, &["it was loaded from shared memory that nobody wrote", "@loads parked"]),
        ("register", 32, &["nothing was ever written to the register it comes from"]),
        ("shuffled", 32, &["it comes from a lane that takes no part in the shuffle", "@shuffles"]),
    ];
    for (name, threads, parts) in cases {
        // One thread runs the blocks in their order.
        let mut gpu = Gpu::new(Config { threads: 1, ..Config::default() }).unwrap();
        let said = fault(&mut gpu, &ptx, name, *threads).to_string();
        for part in *parts {
            let wanted = part.strip_prefix('@').map_or(part.to_string(), line);
            assert!(said.contains(&wanted), "{name}: no '{wanted}' in\n{said}");
        }
    }
}

#[test]
fn fresh_memory_is_not_downloaded() {
    let mut gpu = Gpu::new(Config::default()).unwrap();
    let fresh = gpu.allocate(256).unwrap();
    let fault = gpu.download::<u32>(fresh, 64).unwrap_err().fault().cloned().unwrap();
    assert!(fault.severity == Severity::Error && fault.message.contains("256 of which nobody"));
    gpu.write(fresh, &[1u32; 63]).unwrap();
    assert_eq!(gpu.download::<u32>(fresh, 63).unwrap(), [1; 63]);
}

#[test]
fn constants_that_ptx_and_the_driver_provide() {
    let text = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 data) {\n\
        .reg .b32 %r<4>; .reg .b64 %d<2>;\nld.param.u64 %d1, [data];\nmov.u32 %r1, WARP_SZ;\n\
        st.global.u32 [%d1], %r1;\nmov.u32 %r2, %envreg2;\nst.global.u32 [%d1+4], %r2;\nmov.u32 %r3, %envreg31;\n\
        st.global.u32 [%d1+8], %r3;\nst.global.u32 [%d1+WARP_SZ], WARP_SZ;\nret;\n}";
    let mut gpu = Gpu::new(Config::default()).unwrap();
    let kernel = gpu.load(text).unwrap().function("k").unwrap();
    let data = gpu.upload(&[9u32; 9]).unwrap();
    gpu.launch(&kernel, [1; 3], [1; 3], 0, &Arguments::new().pointer(data)).unwrap();
    assert_eq!(gpu.download::<u32>(data, 9).unwrap(), [32, 0, 0, 9, 9, 9, 9, 9, 32]);
}

#[test]
fn a_kernel_that_is_not_executed_may_be_loaded() {
    let text = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k() {\n\
        .reg .b32 %r<4>;\nmin.xorsign.abs.f32 %r1, %r1, %r1;\nret;\n}\n.visible .entry fine() { ret; }";
    let mut gpu = Gpu::new(Config::default()).unwrap();
    let module = gpu.load(text).unwrap();
    let (k, fine) = (module.function("k").unwrap(), module.function("fine").unwrap());
    assert!(gpu.launch(&fine, [1; 3], [1; 3], 0, &Arguments::new()).is_ok());
    match gpu.launch(&k, [1; 3], [1; 3], 0, &Arguments::new()) {
        Err(Error::Syntax(e)) => assert!(e.line == 6 && e.message.contains("xorsign"), "{e}"),
        other => panic!("{:?}", other.map(|_| ())),
    }
}
