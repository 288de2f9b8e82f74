//! Accesses held against what other lanes, warps and blocks did.

use super::Places;
use crate::exec::Env;
use crate::exec::block::BlockCore;
use crate::exec::fault::FaultKind;
use crate::exec::memory::Allocation;
use crate::exec::shadow::{Access, Conflict, PriorAccess, Site};
use crate::exec::warp::{Checked, Warp, lanes};
use crate::isa::lanes::LANES;
use crate::isa::{Op, Transfer};

/// How often a value that another block is about to write is looked at again.
const PATIENCE: usize = 64;

impl Warp {
    /// Checks an access of these lanes to shared memory for races, and for copies under way.
    #[inline(always)]
    pub(crate) fn touch_shared(
        &mut self,
        env: &Env,
        core: &mut BlockCore,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: usize,
        access: Access,
    ) -> Checked<()> {
        let warp = self.index as u32;
        for lane in lanes(mask) {
            let at = addresses[lane] as usize;
            if let Some(conflict) = core.shadow.touch(at, bytes, access, warp, &self.clock, self.pc)
            {
                self.shared_conflict(env, core, conflict, at, bytes, access, lane)?;
            }
        }
        if env.race_warp {
            for lane in lanes(mask) {
                self.touch_lane(env, core, addresses[lane] as usize, bytes, access, lane, false)?;
            }
        }
        Ok(())
    }

    /// Checks an access of one lane to shared memory against the warp's other lanes; `together` when it is
    /// one of the whole warp that this lane only names the address for.
    #[inline(always)]
    pub(crate) fn touch_lane(
        &mut self,
        env: &Env,
        core: &mut BlockCore,
        at: usize,
        bytes: usize,
        access: Access,
        lane: usize,
        together: bool,
    ) -> Checked<()> {
        let (warp, order) = (self.index as u32, &mut self.lane_order);
        let who = (!together).then_some(lane as u32);
        match core.shadow.touch_lane(at, bytes, access, warp, who, order, self.pc) {
            None => Ok(()),
            Some(conflict) => self.shared_conflict(env, core, conflict, at, bytes, access, lane),
        }
    }

    /// Bytes that a lane is about to store with the current instruction.
    fn stored(&self, env: &Env, lane: usize) -> Option<Vec<u8>> {
        let Op::Store(t) = &env.kernel.code[self.pc as usize].op else { return None };
        let Transfer { regs, size, wide, .. } = &**t;
        let value = |r: &u32| {
            if *wide { self.wide(*r)[lane] } else { self.narrow(*r)[lane] as u64 }.to_le_bytes()
        };
        Some(regs.iter().flat_map(|r| value(r).into_iter().take(*size as usize)).collect())
    }

    /// Judges a conflict in shared memory.
    #[cold]
    #[inline(never)]
    pub(crate) fn shared_conflict(
        &self,
        env: &Env,
        core: &mut BlockCore,
        conflict: Conflict,
        at: usize,
        bytes: usize,
        access: Access,
        lane: usize,
    ) -> Checked<()> {
        let verb = access.verb();
        let me = self.index as u32;
        let (prior, other, by, kind, between) = match conflict {
            Conflict::InFlight => {
                let message = format!(
                    "{verb} of {bytes} bytes of shared memory at offset {at}, where an asynchronous copy has not been waited for"
                );
                return self.report(env, FaultKind::AsyncCopy, lane, message);
            }
            Conflict::Warp { warp, prior, site } if env.race_shared => {
                let by = format!("warp {me}");
                let other = format!("warp {warp} {}", tell(env, prior, site));
                (prior, other, by, FaultKind::SharedRace, "no barrier lies between")
            }
            Conflict::Lane { lane: who, prior, site, weakly } => {
                let is_same_store = site.pc() == Some(self.pc) && weakly;
                let other = match who {
                    Some(who) => {
                        let [x, y, z] = self.thread(env, who as usize);
                        format!("thread ({x}, {y}, {z})")
                    }
                    None => "several of them".into(),
                };
                let other = format!("{other} {}", tell(env, prior, site));
                let by = format!("lane {lane} of warp {me}");
                let between = if is_same_store && access == Access::Write {
                    "one of the two is lost"
                } else if weakly {
                    "what lies between makes the lanes meet but does not order memory, as __syncwarp does"
                } else {
                    "no __syncwarp or barrier lies between"
                };
                if access == Access::Write
                    && prior == PriorAccess::PlainWrite
                    && let (Some(mine), Some(who)) = (self.stored(env, lane), who)
                {
                    let theirs = match is_same_store {
                        true => self.stored(env, who as usize).unwrap_or_default(),
                        false => core.shared[at..at + bytes].to_vec(),
                    };
                    if mine == theirs {
                        return Ok(());
                    }
                }
                if weakly {
                    let message = format!(
                        "{verb} of {bytes} bytes at offset {at} by {by}; {other} and {between}"
                    );
                    self.warn(env, FaultKind::WarpRace, lane, message);
                    return Ok(());
                }
                (prior, other, by, FaultKind::WarpRace, between)
            }
            _ => return Ok(()),
        };
        let is_same = prior == PriorAccess::PlainWrite
            && access == Access::Write
            && self.stored(env, lane).is_some_and(|mine| core.shared[at..at + bytes] == mine);
        let message =
            format!("{verb} of {bytes} bytes at offset {at} by {by}; {other} and {between}");
        if is_same {
            self.warn(env, kind, lane, format!("{message}; both write the same value"));
        } else {
            self.report(env, kind, lane, message)?;
        }
        if kind == FaultKind::SharedRace && access != Access::Read {
            core.shadow.overwrite(at, bytes, me, &self.clock, self.pc);
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
        if places.uniform {
            for lane in lanes(mask) {
                cells.prefetch(addresses[lane] - allocation.base);
            }
        }
        for lane in lanes(mask) {
            if places.owners[lane] != owner {
                owner = places.owners[lane];
                allocation = &env.allocations[owner as usize];
                cells = allocation.cells();
            }
            let start = addresses[lane] - allocation.base;
            let conflict =
                env.order.touch(&core.order, cells, start, bytes as u64, access, self.pc);
            if let Some(conflict) = conflict {
                self.global_conflict(env, core, allocation, conflict, start, bytes, access, lane)?;
            }
        }
        Ok(())
    }

    /// Judges a conflict between blocks, `start` bytes into an allocation.
    #[cold]
    #[inline(never)]
    fn global_conflict(
        &self,
        env: &Env,
        core: &BlockCore,
        allocation: &Allocation,
        conflict: Conflict,
        start: u64,
        bytes: usize,
        access: Access,
        lane: usize,
    ) -> Checked<()> {
        let Conflict::Block { block, prior, site } = conflict else { return Ok(()) };
        let address = allocation.base + start;
        let other = match block {
            None => "several other blocks".into(),
            Some(block) => {
                let [nx, ny, _] = env.grid;
                format!("block ({}, {}, {})", block % nx, block / nx % ny, block / nx / ny)
            }
        };
        let message = format!(
            "{} of {bytes} bytes at 0x{address:x} ({start} bytes into a {}-byte allocation); {other} {} and no fence with an atomic lies between",
            access.verb(),
            allocation.size,
            tell(env, prior, site)
        );
        let is_same = prior == PriorAccess::PlainWrite
            && access == Access::Write
            && self.stored(env, lane).is_some_and(|mine| {
                // The other block's value may be on its way: it was checked before it is written.
                (0..PATIENCE).any(|_| {
                    // SAFETY: the access was checked to be inside memory that is alive.
                    let now =
                        unsafe { std::slice::from_raw_parts(allocation.pointer(address), bytes) };
                    now == mine || {
                        std::thread::yield_now();
                        false
                    }
                })
            });
        if is_same {
            let message = format!("{message}; both write the same value");
            self.warn(env, FaultKind::GlobalRace, lane, message);
        } else {
            self.report(env, FaultKind::GlobalRace, lane, message)?;
        }
        if access != Access::Read {
            env.order.overwrite(&core.order, allocation.cells(), start, bytes as u64, self.pc);
        }
        Ok(())
    }
}

/// What the other party of a race did.
fn tell(env: &Env, prior: PriorAccess, site: Site) -> String {
    let verb = match prior {
        PriorAccess::Read => "read",
        PriorAccess::PlainWrite => "wrote",
        PriorAccess::StrongWrite => "had an atomic or volatile access",
    };
    match site.pc() {
        Some(pc) => format!("{verb} there at {}", env.kernel.place(pc)),
        None => format!("{verb} there"),
    }
}
