//! A lane that a predicate turns off may hold any address: nobody looks there.
#![cfg(vgpu_supported)]

mod common;

use vgpu::{Arguments, Checks, Config, Gpu};

/// Lanes 8 and up access `data + 4 * (lane - 8)`; the others hold addresses before the allocation, and in
/// the other state spaces addresses close to the end of the address space.
fn text(body: &str) -> String {
    format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 data) {{\n\
         .reg .pred %p; .reg .b32 %r<8>; .reg .b64 %d<8>;\n\
         .shared .align 16 .b8 s[1024]; .local .align 16 .b8 l[256];\n\
         ld.param.u64 %d1, [data];\nmov.u32 %r1, %tid.x;\nsetp.ge.u32 %p, %r1, 8;\nsub.s32 %r2, %r1, 8;\n\
         mul.wide.s32 %d2, %r2, 4;\nadd.s64 %d3, %d1, %d2;\nmul.lo.s32 %r3, %r2, 16;\ncvt.s64.s32 %d4, %r3;\n\
         add.s64 %d5, %d1, %d4;\nmov.u32 %r4, 7;\n{body}\nret;\n}}"
    )
}

#[test]
fn lanes_that_are_off_may_point_anywhere() {
    let cases = [
        ("load", "@%p ld.global.u32 %r4, [%d3];\n@%p st.global.u32 [%d3], %r4;"),
        ("store", "@%p st.global.u32 [%d3], %r4;"),
        ("atomic", "@%p red.global.add.u32 [%d3], %r4;"),
        ("local", "@%p st.local.u32 [%r2], %r4;\n@%p ld.local.u32 %r4, [%r2];"),
        ("shared", "@%p st.shared.u32 [%r3], %r4;\n@%p ld.shared.u32 %r4, [%r3];"),
        (
            "generic shared",
            "cvta.shared.u64 %d6, %d4;\n@%p st.u32 [%d6], %r4;\n@%p ld.u32 %r4, [%d6];",
        ),
        (
            "asynchronous copy",
            "@%p cp.async.cg.shared.global [%r3], [%d5], 16;\ncp.async.wait_all;",
        ),
    ];
    for (name, body) in cases {
        // A local address takes whole words only: four bytes a lane.
        let body = if name == "local" {
            format!("shl.b32 %r2, %r2, 2;\n{body}")
        } else {
            body.to_string()
        };
        for checks in [Checks::ALL, Checks::NONE] {
            let mut gpu = Gpu::new(Config { checks, ..Config::default() }).unwrap();
            let kernel = gpu.load(&text(&body)).unwrap().function("k").unwrap();
            let data = gpu.upload(&[5u32; 256]).unwrap();
            let args = Arguments::new().pointer(data);
            if let Err(e) = gpu.launch(&kernel, [1; 3], [32, 1, 1], 0, &args) {
                panic!("{name}: {e}");
            }
        }
    }
}
