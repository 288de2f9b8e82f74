//! Counters equal what one counts by hand.
#![cfg(vgpu_supported)]

mod common;

use common::{gpu, kernel};
use vgpu::{Arguments, Counters, Gpu};

/// Runs a kernel on zeroed buffers.
fn count(ptx: &str, name: &str, grid: u32, block: [u32; 3], pointers: usize) -> Counters {
    let mut gpu: Gpu = gpu();
    let kernel = kernel(&mut gpu, ptx, name).unwrap();
    let mut args = Arguments::new();
    for _ in 0..pointers {
        args = args.pointer(gpu.upload(&vec![0u32; 1 << 14]).unwrap());
    }
    gpu.launch(&kernel, [grid, 1, 1], block, 0, &args).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// 32-byte sectors touched and needed.
fn sectors(c: &Counters) -> (u64, u64) {
    (c.sectors, c.sectors_needed)
}

#[test]
fn global_memory() {
    let Some(ptx) = common::compile("counters.cu") else { return };
    let line = [64, 1, 1];
    // 4 blocks of 2 warps, one load and one store each: 16 requests of 128 bytes.
    let c = count(&ptx, "copy_coalesced", 4, line, 2);
    assert_eq!((sectors(&c), c.global_bytes), ((16 * 4, 16 * 4), 16 * 128));
    // Every lane in a sector of its own, where four sectors would do.
    let c = count(&ptx, "copy_strided", 4, line, 2);
    assert_eq!(sectors(&c), (16 * 32, 16 * 4));
    // Loads that start 4 bytes into a sector touch a fifth one; stores do not.
    let c = count(&ptx, "copy_offset", 4, line, 2);
    assert_eq!(sectors(&c), (8 * 5 + 8 * 4, 16 * 4));
    // 16 bytes a lane: 512 bytes a request.
    let c = count(&ptx, "copy_vectors", 4, line, 2);
    assert_eq!((sectors(&c), c.global_bytes), ((16 * 16, 16 * 16), 16 * 512));
    // One address for all lanes: one sector a load.
    let c = count(&ptx, "broadcast", 4, line, 2);
    assert_eq!(sectors(&c), (8 + 8 * 4, 8 + 8 * 4));
}

#[test]
fn shared_memory() {
    let Some(ptx) = common::compile("counters.cu") else { return };
    let square = [32, 32, 1];
    // 32 stores of one pass, 32 loads whose lanes all meet in one bank.
    let c = count(&ptx, "transpose_conflicts", 1, square, 2);
    assert_eq!(
        (c.wavefronts, c.bank_conflicts, c.shared_traffic),
        (32 + 32 * 32, 32 * 31, 2 * 4096)
    );
    // 33 words a row spread them over all banks.
    let c = count(&ptx, "transpose_padded", 1, square, 2);
    assert_eq!((c.wavefronts, c.bank_conflicts), (64, 0));
    assert_eq!(c.barriers, 32);
}

#[test]
fn matrix_loads() {
    let Some(ptx) = common::compile("counters.cu") else { return };
    let of_ldmatrix = |name: &str| {
        let c = count(&ptx, name, 1, [32, 1, 1], 1);
        // 32 rows of 16 bytes: the only access of 512 bytes that is one instruction and no store.
        let line = ptx
            .lines()
            .enumerate()
            .skip_while(|(_, l)| !l.contains(&format!(".entry {name}")))
            .find(|(_, l)| l.contains("ldmatrix.sync"))
            .unwrap();
        c.lines[&(line.0 as u32 + 1)]
    };
    // Four matrices, each of eight rows in the same four banks: eight passes a matrix.
    let plain = of_ldmatrix("ldmatrix_plain");
    assert_eq!((plain.wavefronts, plain.wavefronts_needed), (32, 4));
    let swizzled = of_ldmatrix("ldmatrix_swizzled");
    assert_eq!((swizzled.wavefronts, swizzled.wavefronts_needed), (4, 4));
}

#[test]
fn control_and_atomics() {
    let Some(ptx) = common::compile("counters.cu") else { return };
    let c = count(&ptx, "diverging", 2, [64, 1, 1], 1);
    // 4 warps, each with a branch that splits it, two atomics in its arms and one after them.
    assert_eq!((c.divergent_branches, c.atomics, c.barriers), (4, 12, 4));
}

#[test]
fn tensor_instructions_of_a_gemm() {
    let Some(ptx) = common::compile("families.cu") else { return };
    let mut gpu = gpu();
    let gemm = kernel(&mut gpu, &ptx, "gemm").unwrap();
    let (m, n, k) = (128usize, 192, 96);
    let (a, b) = (gpu.upload(&vec![0u16; m * k]).unwrap(), gpu.upload(&vec![0u16; n * k]).unwrap());
    let c = gpu.allocate(m * n * 4).unwrap();
    let args =
        Arguments::new().pointer(a).pointer(b).pointer(c).int(m as i32).int(n as i32).int(k as i32);
    let counters =
        gpu.launch(&gemm, [(n / 64) as u32, (m / 64) as u32, 1], [128, 1, 1], 0, &args).unwrap();
    // m16n8k16: each does 16 x 8 x 16 multiply-adds.
    assert_eq!(counters.tensor_instructions as usize, m * n * k / (16 * 8 * 16));
    assert_eq!(counters.tensor_flops as usize, 2 * m * n * k);
    // Its swizzle leaves no conflict in shared memory: every matrix row load is one pass.
    assert_eq!(counters.bank_conflicts, 0);
}
