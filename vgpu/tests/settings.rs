//! What the variables `VGPU_*` change.
#![cfg(vgpu_supported)]

mod common;

use common::{PRELUDE, python};

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

/// Two blocks write one word with different values, which is a race; then a warp reads what its lanes wrote.
const RACES: &str = r#"
RACES = HEAD + b"""
.visible .entry races(.param .u64 data) {
.reg .b32 %r<8>; .reg .b64 %d<4>;
.shared .align 4 .b8 s[256];
ld.param.u64 %d1, [data];
mov.u32 %r1, %ctaid.x;
st.global.u32 [%d1], %r1;
mov.u32 %r2, %tid.x;
shl.b32 %r3, %r2, 2;
st.shared.u32 [%r3], %r2;
xor.b32 %r4, %r3, 4;
ld.shared.u32 %r5, [%r4];
ld.global.u32 %r6, [%d1+100000];
ret;
}"""
def run():
    code, function = load(RACES, b'races')
    assert code == 0
    assert launch(function, 32, 2, allocate(64, 0)) == 0
    return cuda.cuCtxSynchronize()
"#;

#[test]
fn checks_are_chosen_one_by_one() {
    let run = |checks: &str, code: u32, found: &[&str]| -> Option<()> {
        let script = format!("{PRELUDE}{RACES}\nassert run() == {code}");
        let said = python(&script, &[("VGPU_CHECKS", checks), ("VGPU_THREADS", "1")])?;
        assert!(found.iter().all(|part| said.contains(part)), "{checks}: {said}");
        Some(())
    };
    // The order is that of the blocks: the first one races within its warp, and reads past the end.
    let cases: [(&str, u32, &[&str]); 7] = [
        ("on", 719, &["race between the lanes of a warp"]),
        ("race-warp", 719, &["race between the lanes of a warp"]),
        ("race,-undefined", 719, &["race between the lanes of a warp"]),
        ("-race", 700, &["out-of-bounds access"]),
        ("off", 700, &["out-of-bounds access"]),
        ("undefined", 700, &["out-of-bounds access"]),
        ("racy", 719, &["'racy' is none of on, off, undefined"]),
    ];
    for (checks, code, found) in cases {
        if run(checks, code, found).is_none() {
            return;
        }
    }
}

#[test]
fn the_device_goes_on_after_errors_when_it_is_told_to() {
    let script = format!(
        "{PRELUDE}{RACES}
assert run() == 0
code, back = download(allocate(64, 3), 64)
assert code == 0 and set(back) == {{3}}
assert download(allocate(64), 64)[0] == 0
"
    );
    let settings = [("VGPU_ERRORS", "continue"), ("VGPU_THREADS", "1")];
    let Some(said) = python(&script, &settings) else { return };
    for part in [
        "race between the lanes of a warp",
        "race between blocks in global memory",
        "out-of-bounds access",
        "copy to the host of 64 bytes",
    ] {
        assert_eq!(said.matches(part).count(), 1, "'{part}' once in\n{said}");
    }
}
