//! Memory of streams, of captures, and copies that are too short or too early.
#![cfg(vgpu_supported)]

mod common;

use common::{PRELUDE, python};

/// A stream, a buffer to look at, and `capture`, which runs `work` in a capture and instantiates it.
const CAPTURE: &str = r#"
stream, out, zero = c_void_p(), allocate(64, 0), c_size_t(0)
assert cuda.cuStreamCreate(byref(stream), 1) == 0
def capture(work, flags=0):
    graph, exec = c_void_p(), c_void_p()
    assert cuda.cuStreamBeginCapture_v2(stream, 0) == 0
    work()
    assert cuda.cuStreamEndCapture(stream, byref(graph)) == 0
    assert cuda.cuGraphInstantiateWithFlags(byref(exec), graph, c_uint64(flags)) == 0
    return graph, exec
def replay(exec):
    return cuda.cuGraphLaunch(exec, stream) or cuda.cuStreamSynchronize(stream)
def captured_allocation():
    address = c_uint64()
    assert cuda.cuMemAllocAsync(byref(address), c_size_t(64), stream) == 0
    assert cuda.cuMemsetD8Async(address, 7, c_size_t(64), stream) == 0
    assert cuda.cuMemcpyDtoDAsync_v2(c_uint64(out), address, c_size_t(64), stream) == 0
    return address
def free(address):
    return cuda.cuMemFreeAsync(address, stream)
"#;

fn run(body: &str) {
    python(&format!("{PRELUDE}{CAPTURE}{body}"), &[]);
}

#[test]
fn a_graph_allocates_and_frees_at_every_launch() {
    run("
other = allocate(64, 1)
def work():
    global address
    address = captured_allocation()
    assert free(address) == 0 and free(address) == 1, 'freed once'
    assert free(c_uint64(other)) == 1, 'only what the graph allocates'
graph, exec = capture(work)
assert download(out, 64)[1][0] == 0, 'nothing ran yet'
for _ in range(3):
    assert replay(exec) == 0 and set(download(out, 64)[1]) == {7}
assert download(other, 64) == (0, [1] * 64), 'a failed free is no free'
clone = c_void_p()
assert cuda.cuGraphClone(byref(clone), graph) == 801
assert cuda.cuGraphInstantiateWithFlags(byref(clone), graph, c_uint64(0)) == 1
assert cuda.cuMemFree_v2(address) == 1, 'the graph freed it'
assert cuda.cuGraphExecDestroy(exec) == 0 and cuda.cuGraphDestroy(graph) == 0
assert cuda.cuMemcpyDtoH_v2((ctypes.c_uint8 * 64)(), address, c_size_t(64)) == 1, 'gone with its graph'
");
}

#[test]
fn memory_that_a_graph_leaves_is_freed_by_the_program() {
    run("
def work():
    global address
    address = captured_allocation()
graph, exec = capture(work)
for way in [free, cuda.cuMemFree_v2]:
    assert replay(exec) == 0 and download(address.value, 64) == (0, [7] * 64)
    assert replay(exec) == 1, 'still allocated'
    assert way(address) == 0 and way(address) == 1
graph, exec = capture(work, 1)
for _ in range(3):
    assert replay(exec) == 0 and download(address.value, 64) == (0, [7] * 64)
assert free(address) == 0 and cuda.cuStreamSynchronize(stream) == 0
assert download(address.value, 64)[0] == 700, 'not allocated now'
");
}

#[test]
fn nothing_may_be_copied_from_nowhere() {
    run("
null = c_void_p()
assert cuda.cuMemcpyHtoD_v2(c_uint64(0), null, zero) == 0
assert cuda.cuMemcpyDtoH_v2(null, c_uint64(0), zero) == 0
assert cuda.cuMemcpyDtoD_v2(c_uint64(out + 64), c_uint64(0), zero) == 0
assert cuda.cuMemcpyHtoDAsync_v2(c_uint64(out + 64), null, zero, stream) == 0
assert cuda.cuMemcpyDtoHAsync_v2(null, c_uint64(out), zero, stream) == 0
assert cuda.cuMemcpyDtoDAsync_v2(c_uint64(0), c_uint64(0), zero, stream) == 0
assert cuda.cuMemsetD8_v2(c_uint64(0), 1, zero) == 0
assert cuda.cuMemcpyHtoD_v2(c_uint64(0), null, c_size_t(1)) == 1
assert cuda.cuCtxSynchronize() == 0
");
}

#[test]
fn what_nobody_wrote_is_not_copied_to_the_host() {
    let body = "
fresh = allocate(64)
assert cuda.cuMemsetD8_v2(c_uint64(fresh), 1, c_size_t(60)) == 0
assert download(fresh, 64)[0] == 0, 'a hole is a warning'
assert cuda.cuMemcpyDtoD_v2(c_uint64(out), c_uint64(fresh), c_size_t(64)) == 0
assert download(out, 60)[0] == 0
assert download(out + 60, 4)[0] == 719, 'all of it is an error'
";
    let Some(said) = python(&format!("{PRELUDE}{CAPTURE}{body}"), &[]) else { return };
    let warning = "warning: undefined value: copy to the host of 64 bytes";
    assert!(said.contains(warning) && said.contains("the first is byte 60"), "{said}");
}

#[test]
fn an_instruction_that_is_not_executed_fails_only_its_kernel() {
    let body = r#"
text = NOTHING + b"""
.visible .entry transposes() {
.reg .b32 %r<4>; mov.u32 %r1, 0;
movmatrix.sync.aligned.m8n8.trans.b16 %r2, %r1;
ret; }"""
code, function = load(text, b'transposes')
assert code == 0 and launch(function, 32) == 801
code, function = load(text)
assert code == 0 and launch(function, 32) == 0 and cuda.cuCtxSynchronize() == 0
assert load(text.replace(b'movmatrix', b'moomatrix'))[0] == 218, 'no PTX at all'
assert load(text.replace(b'movmatrix.sync', b'wgmma.fence.sync'))[0] == 218, 'not for this target'
"#;
    let Some(said) = python(&format!("{PRELUDE}{body}"), &[]) else { return };
    let refused = "launch refused: transposes: PTX line 7: instruction 'movmatrix'";
    assert!(said.contains(refused), "{said}");
}
