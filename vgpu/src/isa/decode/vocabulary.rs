//! The words of PTX, to tell an instruction that the device lacks from one that does not exist.
//! Source: PTX ISA 9.0, "Instruction Set" and "Instruction Statements".

/// Opcodes, by the oldest target that has them.
const OPCODES: [(u32, &str); 12] = [
    (
        0,
        "abs activemask add addc and atom bar barrier bfe bfi bfind bra brev brkpt brx call clz cnot \
         copysign cos cvt cvta div ex2 exit fma isspacep ld ldu lg2 mad mad24 madc max membar min mov mul \
         mul24 neg not or pmevent popc prefetch prefetchu prmt rcp red rem ret rsqrt sad selp set setp shl \
         shr sin slct sqrt st sub subc testp tex trap txq vote xor",
    ),
    (20, "suld suq sured sust tld4 vabsdiff vadd vmad vmax vmin vset vshl vshr vsub"),
    (30, "fns istypep shfl vabsdiff2 vabsdiff4 vadd2 vadd4"),
    (32, "shf"),
    (50, "lop3"),
    (52, "alloca stackrestore stacksave"),
    (61, "dp2a dp4a"),
    (70, "bmsk fence match mma nanosleep szext wmma"),
    (75, "ldmatrix movmatrix tanh"),
    (80, "applypriority cp createpolicy discard mbarrier redux"),
    (90, "elect getctarank griddepcontrol mapa multimem setmaxnreg stmatrix tensormap wgmma"),
    (100, "clusterlaunchcontrol tcgen05"),
];

/// Modifiers without those that have a colon.
const MODIFIERS: &str = "u8 s8 b8 u16 s16 b16 u32 s32 b32 u64 s64 b64 b128 f16 f16x2 bf16 bf16x2 f32 f32x2 f64 tf32 \
    pred e4m3 e5m2 e4m3x2 e5m2x2 e4m3x4 e5m2x4 e2m1 e2m1x2 e2m1x4 e2m3 e3m2 e2m3x2 e3m2x2 ue8m0 ue8m0x2 ue4m3 s2 u2 s4 \
    u4 s4x8 b1 b4x16 b6x16 texref samplerref surfref rn rz rm rp rna rs rni rzi rmi rpi ftz sat satfinite relu approx \
    full NaN xorsign abs noftz wide hi lo cc uni idx sync aligned async warp arrive wait red cta gpu sys cluster sc \
    acq_rel acquire release relaxed volatile mmio weak global shared local const param generic to ca cg cs lu cv wb wt \
    nc v2 v4 v8 add min max inc dec and or xor exch cas popc all any ballot up down bfly eq ne lt le gt ge ls hs equ \
    neu ltu leu gtu geu num nan finite infinite number notanumber normal subnormal clamp wrap l r shiftamt f4e b4e rc8 \
    ecl ecr rc16 h0 h1 b0 b1 b2 b3 commit_group wait_group wait_all bulk tensor reduce prefetch mbarrier init inval \
    arrive_drop expect_tx complete_tx test_wait try_wait pending_count parity noinc noComplete alias proxy load store \
    mma x1 x2 x4 x8 x16 x32 x64 x128 trans row col m8n8 m16n8 m16n16 m8n16 m8n8k4 m8n8k16 m8n8k32 m8n8k128 m16n8k4 \
    m16n8k8 m16n8k16 m16n8k32 m16n8k64 m16n8k128 m16n8k256 m16n16k16 m16n16k8 m32n8k16 m8n32k16 sp kind block_scale \
    fence 1d 2d 3d 4d 5d a1d a2d cube acube 2dms a2dms base clear zero trap p cp ld st alloc dealloc \
    relinquish_alloc_permit shift commit gpu_scope launch_dependents fractional evict_last evict_first evict_normal \
    evict_unchanged no_allocate range a b c d g read im2col tile multicast mma_async";

/// Whether the driver is likely to accept an opcode with these modifiers for a target, though this device does
/// not execute it.
pub(super) fn is_ptx(opcode: &str, target: u32) -> bool {
    let mut parts = opcode.split('.');
    let base = parts.next().unwrap_or("");
    let oldest = OPCODES
        .iter()
        .find(|(_, names)| names.split_whitespace().any(|name| name == base))
        .map(|(oldest, _)| if opcode.starts_with("cp.async.bulk") { 90 } else { *oldest });
    oldest.is_some_and(|oldest| oldest <= target)
        && parts.all(|part| {
            // `m64n128k16` of wgmma, `L2::128B` and the like.
            let is_shape = part.starts_with('m') && part.contains('n') && part.contains('k');
            part.contains("::") || is_shape || MODIFIERS.split_whitespace().any(|m| m == part)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_exists_is_told_from_what_does_not() {
        assert!(is_ptx("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16", 90));
        assert!(is_ptx("tex.2d.v4.f32.f32", 80));
        assert!(is_ptx("min.xorsign.abs.f32", 86));
        assert!(is_ptx("wmma.load.a.sync.aligned.row.m16n16k16.f16", 80));
        for nonsense in ["frobnicate.u32", "add.frob.u32", "wgmma.fence.sync.aligned", ""] {
            assert!(!is_ptx(nonsense, 80), "{nonsense}");
        }
    }
}
