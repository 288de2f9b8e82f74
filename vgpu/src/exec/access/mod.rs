//! Loads and stores of a warp, with every check they have to pass.

mod address;
mod load;
mod race;
mod store;

use crate::isa::lanes::LANES;

/// Where the lanes of a warp access memory: host pointers, and the allocation behind each.
pub(crate) struct Places {
    pub(crate) pointers: [*mut u8; LANES],
    /// Index of the allocation, for global memory.
    pub(crate) owners: [u32; LANES],
    /// Whether all lanes use the same allocation.
    pub(crate) uniform: bool,
}

/// Undefined bits of `bytes` bytes whose definedness (1 or 0 each) is given.
pub(crate) fn undefined_bits(defined: impl Iterator<Item = bool>) -> u64 {
    defined
        .enumerate()
        .fold(0, |bits, (i, is_defined)| if is_defined { bits } else { bits | 0xff << (8 * i) })
}

/// Reads an element of 1, 2, 4 or 8 bytes and extends it.
///
/// # Safety
/// The bytes must lie in memory that is alive.
#[inline(always)]
unsafe fn read(p: *const u8, size: usize, signed: bool) -> u64 {
    // SAFETY: as the caller promises.
    unsafe {
        match (size, signed) {
            (8, _) => p.cast::<u64>().read_unaligned(),
            (4, true) => p.cast::<i32>().read_unaligned() as i64 as u64,
            (4, false) => p.cast::<u32>().read_unaligned() as u64,
            (2, true) => p.cast::<i16>().read_unaligned() as i64 as u64,
            (2, false) => p.cast::<u16>().read_unaligned() as u64,
            (_, true) => p.cast::<i8>().read() as i64 as u64,
            (_, false) => p.read() as u64,
        }
    }
}

/// Marks a few bytes as defined; the usual sizes need no call.
#[inline(always)]
pub(crate) fn set_defined(flags: &mut [u8], at: usize, bytes: usize) {
    let flags = &mut flags[at..at + bytes];
    match flags.len() {
        16 => flags[..16].fill(1),
        8 => flags[..8].fill(1),
        4 => flags[..4].fill(1),
        _ => flags.iter_mut().for_each(|flag| *flag = 1),
    }
}

/// Whether a few bytes are all defined.
#[inline(always)]
pub(crate) fn all_defined(flags: &[u8], at: usize, bytes: usize) -> bool {
    let flags = &flags[at..at + bytes];
    match flags.len() {
        16 => flags[..16] == [1; 16],
        8 => flags[..8] == [1; 8],
        4 => flags[..4] == [1; 4],
        _ => flags.iter().all(|flag| *flag != 0),
    }
}

/// An access as messages name it.
pub(crate) fn describe(bytes: usize, what: &str, space: &str) -> String {
    format!("{bytes}-byte {what} {space} memory")
}
