//! Accesses held against what other warps and blocks did.

use super::Places;
use crate::exec::Env;
use crate::exec::block::BlockCore;
use crate::exec::fault::FaultKind;
use crate::exec::memory::Allocation;
use crate::exec::shadow::{Access, Conflict};
use crate::exec::warp::{Checked, Warp, found, lanes};
use crate::isa::lanes::LANES;

impl Warp {
    /// Reports a race in shared memory.
    #[cold]
    #[inline(never)]
    pub(crate) fn shared_race<T>(
        &self,
        env: &Env,
        conflict: Conflict,
        at: usize,
        bytes: usize,
        access: Access,
        lane: usize,
    ) -> Checked<T> {
        let verb = if access == Access::Read { "read" } else { "write" };
        match conflict {
            Conflict::InFlight => found(
                FaultKind::AsyncCopy,
                lane,
                format!(
                    "{verb} of {bytes} bytes of shared memory at offset {at}, where an asynchronous copy has not been waited for"
                ),
            ),
            Conflict::Warp { warp, wrote, pc } => {
                let other = if wrote {
                    format!(
                        "warp {warp} wrote there (PTX line {})",
                        env.kernel.code[pc as usize].line
                    )
                } else {
                    format!("warp {warp} read there")
                };
                let message = format!(
                    "{verb} of {bytes} bytes at offset {at} by warp {}; {other} and no barrier lies between",
                    self.index
                );
                found(FaultKind::SharedRace, lane, message)
            }
        }
    }

    /// Checks an access of these lanes to shared memory for races.
    #[inline(always)]
    pub(crate) fn touch_shared(
        &self,
        env: &Env,
        core: &mut BlockCore,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: usize,
        access: Access,
    ) -> Checked<()> {
        for lane in lanes(mask) {
            let at = addresses[lane] as usize;
            if let Some(conflict) =
                core.shadow.touch(at, bytes, access, self.index as u32, &self.clock, self.pc)
            {
                return self.shared_race(env, conflict, at, bytes, access, lane);
            }
        }
        Ok(())
    }

    /// Checks an access of these lanes to global memory for races between blocks.
    #[inline(always)]
    pub(crate) fn touch_global(
        &self,
        env: &Env,
        core: &BlockCore,
        places: &Places,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: usize,
        access: Access,
    ) -> Checked<()> {
        let mut owner = places.owners[mask.trailing_zeros() as usize & 31];
        let mut allocation = &env.allocations[owner as usize];
        let mut cells = allocation.cells();
        for lane in lanes(mask) {
            if places.owners[lane] != owner {
                owner = places.owners[lane];
                allocation = &env.allocations[owner as usize];
                cells = allocation.cells();
            }
            let start = addresses[lane] - allocation.base;
            if let Some(block) = env.order.touch(&core.order, cells, start, bytes as u64, access) {
                return self.global_race(env, allocation, block, start, bytes, access, lane);
            }
        }
        Ok(())
    }

    /// Reports a race between blocks, `start` bytes into an allocation.
    #[cold]
    #[inline(never)]
    pub(super) fn global_race(
        &self,
        env: &Env,
        allocation: &Allocation,
        block: u32,
        start: u64,
        bytes: usize,
        access: Access,
        lane: usize,
    ) -> Checked<()> {
        let verb = if access == Access::Read { "read" } else { "write" };
        let other = if block == u32::MAX {
            "several other blocks".into()
        } else {
            let [nx, ny, _] = env.grid;
            format!("block ({}, {}, {})", block % nx, block / nx % ny, block / nx / ny)
        };
        let message = format!(
            "{verb} of {bytes} bytes at 0x{:x} ({start} bytes into a {}-byte allocation), which {other} also accesses, with no fence and atomic between",
            allocation.base + start,
            allocation.size
        );
        found(FaultKind::GlobalRace, lane, message)
    }
}
