//! Addresses of the lanes: definedness, state space, alignment, bounds, lifetime.

use super::{Places, describe};
use crate::exec::Env;
use crate::exec::block::BlockCore;
use crate::exec::fault::FaultKind;
use crate::exec::memory::{Allocation, LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};
use crate::exec::warp::{Checked, Warp, found, lanes};
use crate::isa::lanes::LANES;
use crate::isa::{Address, MemorySpace};

impl Warp {
    /// Addresses of the lanes; undefined ones are reported.
    #[inline(always)]
    pub(crate) fn addresses(&self, env: &Env, at: &Address, mask: u32) -> Checked<[u64; LANES]> {
        if env.undefined {
            let dirty = self.undef[at.base as usize] & mask;
            if dirty != 0 {
                let message = format!("the address is undefined{}", self.origin(env, at.base));
                self.report(env, FaultKind::Undefined, dirty.trailing_zeros() as usize, message)?;
            }
        }
        Ok(if at.wide {
            let base = self.wide(at.base);
            std::array::from_fn(|i| base[i].wrapping_add(at.offset as u64))
        } else {
            let base = self.narrow(at.base);
            std::array::from_fn(|i| base[i].wrapping_add(at.offset as u32) as u64)
        })
    }

    /// Takes the lanes of one state space out of `left`; generic addresses become addresses of that space.
    #[inline(always)]
    pub(crate) fn take_space(
        space: MemorySpace,
        addresses: &mut [u64; LANES],
        left: &mut u32,
    ) -> (MemorySpace, u32) {
        if space != MemorySpace::Generic {
            return (space, std::mem::take(left));
        }
        let window = |address: u64| address >> 56;
        let first = window(addresses[left.trailing_zeros() as usize]);
        let mask =
            lanes(*left).filter(|l| window(addresses[*l]) == first).fold(0, |m, l| m | 1 << l);
        *left &= !mask;
        let (space, base) = match first {
            1 => (MemorySpace::Shared, SHARED_WINDOW),
            2 => (MemorySpace::Local, LOCAL_WINDOW),
            3 => (MemorySpace::Param, PARAM_WINDOW),
            _ => (MemorySpace::Global, 0),
        };
        for lane in lanes(mask) {
            addresses[lane] -= base;
        }
        (space, mask)
    }

    /// Resolves global addresses: alignment, bounds, lifetime.
    #[inline(always)]
    pub(crate) fn global_places(
        &self,
        env: &Env,
        core: &mut BlockCore,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: usize,
        what: &str,
    ) -> Checked<Places> {
        self.check_alignment(addresses, mask, bytes, what, "global")?;
        let (mut low, mut high) = (u64::MAX, 0);
        for lane in 0..LANES {
            let off = mask >> lane & 1 == 0;
            low = low.min(if off { u64::MAX } else { addresses[lane] });
            high = high.max(if off { 0 } else { addresses[lane] });
        }
        let covers =
            |a: &Allocation| low >= a.base && high < a.end() && bytes as u64 <= a.end() - high;
        let recent = core.recent.min(env.allocations.len().wrapping_sub(1));
        let hit =
            env.allocations.get(recent).filter(|a| covers(a)).map(|a| (recent, a)).or_else(|| {
                let at = env.allocations.partition_point(|a| a.base <= low).checked_sub(1)?;
                env.allocations.get(at).filter(|a| covers(a)).map(|a| (at, a))
            });
        if let Some((at, allocation)) = hit
            && allocation.live.load(std::sync::atomic::Ordering::Relaxed)
        {
            core.recent = at;
            // Nothing looks at the pointers of lanes outside the mask.
            return Ok(Places {
                pointers: addresses.map(|address| allocation.pointer(address)),
                owners: [at as u32; LANES],
                uniform: true,
            });
        }
        self.scattered_places(env, addresses, mask, bytes, what)
    }

    /// Resolves global addresses in several allocations, or in none.
    #[inline(never)]
    pub(super) fn scattered_places(
        &self,
        env: &Env,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: usize,
        what: &str,
    ) -> Checked<Places> {
        let mut places =
            Places { pointers: [std::ptr::null_mut(); LANES], owners: [0; LANES], uniform: false };
        for lane in lanes(mask) {
            let address = addresses[lane];
            let at = env.allocations.partition_point(|a| a.base <= address).checked_sub(1);
            let allocation = at
                .and_then(|at| env.allocations.get(at))
                .filter(|a| address < a.end() && bytes as u64 <= a.end() - address);
            match allocation {
                Some(a) if a.live.load(std::sync::atomic::Ordering::Relaxed) => {
                    places.pointers[lane] = a.pointer(address);
                    places.owners[lane] = at.unwrap_or(0) as u32;
                }
                _ => return self.missing(env, address, bytes, lane, what),
            }
        }
        Ok(places)
    }

    pub(super) fn missing<T>(
        &self,
        env: &Env,
        address: u64,
        bytes: usize,
        lane: usize,
        what: &str,
    ) -> Checked<T> {
        use crate::exec::memory::Missing;
        let missing = match env.memory.find(address) {
            Some(a) if !a.live.load(std::sync::atomic::Ordering::Relaxed) => {
                Missing::NotYet { base: a.base, size: a.size }
            }
            _ => env.memory.missing(address),
        };
        let kind = match missing {
            Missing::Null => FaultKind::NullPointer,
            Missing::Freed { .. } | Missing::NotYet { .. } => FaultKind::UseAfterFree,
            Missing::Outside { .. } => FaultKind::OutOfBounds,
        };
        found(
            kind,
            lane,
            format!(
                "{}: {}",
                describe(bytes, what, "global"),
                missing.explain(address, bytes as u64)
            ),
        )
    }

    #[inline(always)]
    pub(super) fn check_alignment(
        &self,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: usize,
        what: &str,
        space: &str,
    ) -> Checked<()> {
        let mut low_bits = 0;
        for lane in 0..LANES {
            low_bits |= if mask >> lane & 1 != 0 { addresses[lane] } else { 0 };
        }
        if low_bits & (bytes as u64 - 1) == 0 {
            return Ok(());
        }
        self.misaligned(addresses, mask, bytes, what, space)
    }

    #[cold]
    #[inline(never)]
    pub(super) fn misaligned(
        &self,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: usize,
        what: &str,
        space: &str,
    ) -> Checked<()> {
        let lane = lanes(mask).find(|l| addresses[*l] & (bytes as u64 - 1) != 0).unwrap_or(0);
        let message = format!(
            "{} at 0x{:x}, which is not a multiple of {bytes}",
            describe(bytes, what, space),
            addresses[lane]
        );
        found(FaultKind::Misaligned, lane, message)
    }

    /// Checks addresses of a bounded space: shared, local or parameters.
    #[inline(always)]
    pub(crate) fn check_bounds(
        &self,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: usize,
        limit: usize,
        what: &str,
        space: &str,
    ) -> Checked<()> {
        self.check_alignment(addresses, mask, bytes, what, space)?;
        let mut high = 0;
        for lane in 0..LANES {
            high = if mask >> lane & 1 != 0 { addresses[lane].max(high) } else { high };
        }
        if limit >= bytes && high <= (limit - bytes) as u64 {
            return Ok(());
        }
        self.outside(addresses, mask, bytes, limit, what, space)
    }

    #[cold]
    #[inline(never)]
    pub(super) fn outside(
        &self,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: usize,
        limit: usize,
        what: &str,
        space: &str,
    ) -> Checked<()> {
        let lane = lanes(mask)
            .find(|l| limit < bytes || addresses[*l] > (limit - bytes) as u64)
            .unwrap_or(0);
        let kind =
            if space == "shared" { FaultKind::SharedOutOfBounds } else { FaultKind::OutOfBounds };
        let message = format!(
            "{} at offset {} of {limit} bytes",
            describe(bytes, what, space),
            addresses[lane] as i64
        );
        found(kind, lane, message)
    }
}
