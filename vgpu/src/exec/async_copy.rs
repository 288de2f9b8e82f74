//! Asynchronous copies into shared memory and the barrier objects that announce them.
//!
//! The data of a copy lands at the wait that covers it and not before, which is what a program may rely on.

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

use super::Env;
use super::access::set_defined;
use super::block::{BlockCore, MbarrierState, join};
use super::counters::Stats;
use super::fault::FaultKind;
use super::memory::SHARED_WINDOW;
use super::shadow::Access;
use super::warp::{Checked, Landing, Warp, found, lanes};
use crate::isa::lanes::LANES;
use crate::isa::{Address, AsyncCopy, Mbarrier, MemorySpace};

const NO_GROUP: u32 = u32::MAX;

/// Copies as many bytes as `to` holds, without a call for the usual 16.
#[inline(always)]
fn copy_piece(to: &mut [u8], from: &[u8]) {
    #[cold]
    #[inline(never)]
    fn partly(to: &mut [u8], from: &[u8]) {
        to.copy_from_slice(&from[..to.len()]);
    }
    match (<&mut [u8; 16]>::try_from(&mut *to), from.first_chunk::<16>()) {
        (Ok(to), Some(from)) => *to = u128::from_ne_bytes(*from).to_ne_bytes(),
        _ => partly(to, from),
    }
}

impl Warp {
    /// Addresses in shared memory, whether given as such or generically.
    fn shared_addresses(&self, env: &Env, at: &Address, mask: u32) -> Checked<[u64; LANES]> {
        let mut addresses = self.addresses(env, at, mask)?;
        if at.space == MemorySpace::Generic {
            if let Some(lane) = lanes(mask).find(|l| addresses[*l] >> 56 != 1) {
                return found(
                    FaultKind::IllegalInstruction,
                    lane,
                    "the address is not in shared memory",
                );
            }
            addresses.iter_mut().for_each(|a| *a = a.wrapping_sub(SHARED_WINDOW));
        }
        Ok(addresses)
    }

    #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
    pub(crate) fn async_copy(
        &mut self,
        env: &Env,
        core: &mut BlockCore,
        stats: &mut Stats,
        copy: &AsyncCopy,
        mask: u32,
    ) -> Checked<()> {
        let bytes = copy.bytes as usize;
        let to = self.shared_addresses(env, &copy.to, mask)?;
        self.check_bounds(&to, mask, bytes, core.shared.len(), "asynchronous copy to", "shared")?;
        let mut wanted = [bytes; LANES];
        if let Some(r) = copy.source_bytes {
            if env.undefined
                && let Some(lane) = lanes(self.undef[r as usize] & mask).next()
            {
                let message = format!(
                    "the source size of an asynchronous copy is undefined{}",
                    self.origin(env, r)
                );
                self.report(env, FaultKind::Undefined, lane, message)?;
            }
            for lane in lanes(mask) {
                wanted[lane] = self.narrow(r)[lane] as usize;
                if wanted[lane] > bytes {
                    let message =
                        format!("source size {} of a {bytes}-byte asynchronous copy", wanted[lane]);
                    return found(FaultKind::IllegalInstruction, lane, message);
                }
            }
        }
        if let Some(p) = copy.ignore {
            let ignored = self.pred(p);
            for lane in lanes(mask & ignored) {
                wanted[lane] = 0;
            }
        }
        let reading = lanes(mask).filter(|l| wanted[*l] != 0).fold(0, |m, l| m | 1 << l);
        let mut data = [[0u8; 16]; LANES];
        let mut defined = [u16::MAX; LANES];
        if reading != 0 {
            let from = self.addresses(env, &copy.from, reading)?;
            // The part that is not read may lie outside; alignment is that of the whole copy.
            let whole = lanes(reading).filter(|l| wanted[*l] == bytes).fold(0, |m, l| m | 1 << l);
            for (some, size) in [(whole, bytes), (reading & !whole, 1)] {
                if some == 0 {
                    continue;
                }
                let places =
                    self.global_places(env, core, &from, some, size, "asynchronous copy from")?;
                for lane in lanes(some) {
                    _mm_prefetch::<_MM_HINT_T0>(places.pointers[lane].cast());
                }
                if env.race_global {
                    self.touch_global(env, core, &places, &from, some, size, Access::Read)?;
                }
                for lane in lanes(some) {
                    let allocation = &env.allocations[places.owners[lane] as usize];
                    let count = wanted[lane];
                    if count as u64 > allocation.end() - from[lane] {
                        let message = format!(
                            "asynchronous copy of {count} bytes at 0x{:x} runs past its allocation",
                            from[lane]
                        );
                        return found(FaultKind::OutOfBounds, lane, message);
                    }
                    if from[lane] & (bytes as u64 - 1) != 0 {
                        let message =
                            format!("{bytes}-byte asynchronous copy from 0x{:x}", from[lane]);
                        return found(FaultKind::Misaligned, lane, message);
                    }
                    // SAFETY: the range was checked to be inside memory that is alive.
                    let source =
                        unsafe { std::slice::from_raw_parts(places.pointers[lane], count) };
                    copy_piece(&mut data[lane][..count], source);
                    if env.undefined && !allocation.is_all_defined() {
                        for i in
                            (0..count).filter(|i| !allocation.is_defined(from[lane] + *i as u64))
                        {
                            defined[lane] &= !(1 << i);
                        }
                    }
                }
            }
            if env.counting {
                stats.global(self.pc as usize, lanes(reading).map(|l| from[l]), bytes as u64);
            }
        }
        if env.shadows {
            // The write may happen any time from now on, so it must not race with what others do now.
            self.touch_shared(env, core, &to, mask, bytes, Access::Write)?;
        }
        self.landings.reserve(LANES);
        for lane in lanes(mask) {
            if env.async_copies {
                self.overlapping |= core.shadow.set_in_flight(to[lane] as usize, bytes, true);
            }
            self.landings.push(Landing {
                lane: lane as u8,
                bytes: bytes as u8,
                to: to[lane] as u32,
                data: data[lane],
                defined: defined[lane],
                group: NO_GROUP,
            });
        }
        Ok(())
    }

    pub(crate) fn async_commit(&mut self, mask: u32) {
        for landing in self.landings.iter_mut().rev() {
            if landing.group == NO_GROUP && mask >> landing.lane & 1 != 0 {
                landing.group = self.committed[landing.lane as usize];
            }
        }
        for lane in lanes(mask) {
            self.committed[lane] += 1;
        }
    }

    #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
    pub(crate) fn async_wait(
        &mut self,
        env: &Env,
        core: &mut BlockCore,
        pending: Option<u32>,
        mask: u32,
    ) -> Checked<()> {
        if self.landings.is_empty() {
            return Ok(());
        }
        let committed = self.committed;
        self.land(env, core, |landing| {
            let waits = mask >> landing.lane & 1 != 0;
            waits
                && match pending {
                    None => true,
                    Some(n) => {
                        landing.group != NO_GROUP
                            && landing.group < committed[landing.lane as usize].saturating_sub(n)
                    }
                }
        })
    }

    /// Writes the data of the copies that are done.
    #[inline(always)]
    fn land(
        &mut self,
        env: &Env,
        core: &mut BlockCore,
        is_done: impl Fn(&Landing) -> bool,
    ) -> Checked<()> {
        let mut landings = std::mem::take(&mut self.landings);
        let mut race = None;
        landings.retain(|landing| {
            if !is_done(landing) {
                return true;
            }
            let (at, bytes) = (landing.to as usize, landing.bytes as usize);
            copy_piece(&mut core.shared[at..at + bytes], &landing.data);
            if env.async_copies {
                core.shadow.set_in_flight(at, bytes, false);
            }
            if env.undefined {
                if landing.defined == u16::MAX {
                    set_defined(&mut core.shared_defined, at, bytes);
                } else {
                    for (i, flag) in core.shared_defined[at..at + bytes].iter_mut().enumerate() {
                        *flag = (landing.defined >> i & 1) as u8;
                    }
                }
            }
            if env.shadows {
                let (warp, write, lane) = (self.index as u32, Access::Write, landing.lane as usize);
                let conflict = core.shadow.touch(at, bytes, write, warp, &self.clock, self.pc);
                if let Some(conflict) = conflict {
                    race.get_or_insert((conflict, at, bytes, lane));
                }
                if env.race_warp {
                    let (who, order) = (Some(lane as u32), &mut self.lane_order);
                    let conflict =
                        core.shadow.touch_lane(at, bytes, write, warp, who, order, self.pc);
                    if let Some(conflict) = conflict {
                        race.get_or_insert((conflict, at, bytes, lane));
                    }
                }
            }
            false
        });
        self.landings = landings;
        if let Some((conflict, at, bytes, lane)) = race {
            self.shared_conflict(env, core, conflict, at, bytes, Access::Write, lane)?;
        }
        // Another copy to the same place may still be under way: one of another lane of the same
        // instruction, as a later copy to a place that is in flight is an error.
        if env.async_copies && self.overlapping {
            for landing in &self.landings {
                core.shadow.set_in_flight(landing.to as usize, landing.bytes as usize, true);
            }
        }
        Ok(())
    }

    /// Runs an operation on a barrier object; true when a wait failed and the warp should give way.
    pub(crate) fn mbarrier(
        &mut self,
        env: &Env,
        core: &mut BlockCore,
        m: &Mbarrier,
        mask: u32,
    ) -> Checked<bool> {
        self.polled = true;
        if let Mbarrier::PendingCount { d, state } = m {
            let out = self.wide(*state).map(|s| (s & 0xf_ffff) as u32);
            self.put(*d, &out, mask);
            self.undef[*d as usize] &= !mask;
            return Ok(false);
        }
        let at = match m {
            Mbarrier::Init { at, .. }
            | Mbarrier::Invalidate { at }
            | Mbarrier::Arrive { at, .. }
            | Mbarrier::ExpectTransactions { at, .. }
            | Mbarrier::Wait { at, .. }
            | Mbarrier::AsyncArrive { at, .. } => at,
            Mbarrier::PendingCount { .. } => return Ok(false),
        };
        let addresses = self.shared_addresses(env, at, mask)?;
        self.check_bounds(
            &addresses,
            mask,
            8,
            core.shared.len(),
            "mbarrier operation on",
            "shared",
        )?;
        if env.undefined {
            let sources: &[u32] = match m {
                Mbarrier::Init { count, .. } | Mbarrier::Arrive { count, .. } => &[*count],
                Mbarrier::ExpectTransactions { bytes, .. } => &[*bytes],
                Mbarrier::Wait { state, .. } => &[*state],
                _ => &[],
            };
            if let Some(lane) =
                sources.iter().flat_map(|r| lanes(self.undef[*r as usize] & mask)).next()
            {
                let message = "an operand of the mbarrier operation is undefined";
                self.report(env, FaultKind::Undefined, lane, message)?;
            }
        }
        if let Mbarrier::AsyncArrive { .. } = m {
            self.land(env, core, |landing| mask >> landing.lane & 1 != 0)?;
        }
        let mut failed = false;
        let mut open = 0;
        for lane in lanes(mask) {
            let key = addresses[lane] as u32;
            if let Mbarrier::Init { count, .. } = m {
                let count = self.narrow(*count)[lane];
                if env.shadows {
                    self.touch_shared(env, core, &addresses, 1 << lane, 8, Access::Write)?;
                }
                core.mbarriers.insert(key, MbarrierState::new(count));
                continue;
            }
            if env.shadows {
                self.touch_shared(env, core, &addresses, 1 << lane, 8, Access::Read)?;
            }
            let Some(barrier) = core.mbarriers.get_mut(&key) else {
                return found(
                    FaultKind::IllegalInstruction,
                    lane,
                    format!("there is no initialised mbarrier at offset {key}"),
                );
            };
            match m {
                Mbarrier::Invalidate { .. } => {
                    core.mbarriers.remove(&key);
                }
                Mbarrier::ExpectTransactions { bytes, .. } => {
                    barrier.transactions += self.narrow(*bytes)[lane] as i64;
                }
                Mbarrier::Arrive { state, count, transactions, drop, .. } => {
                    let count = self.narrow(*count)[lane] as i64;
                    if let Some(bytes) = transactions {
                        barrier.transactions += self.narrow(*bytes)[lane] as i64;
                    }
                    let token = barrier.phase << 20 | (barrier.pending as u64 & 0xf_ffff);
                    if count > barrier.pending {
                        let message = format!(
                            "{count} arrivals at an mbarrier that waits for {} more",
                            barrier.pending
                        );
                        return found(FaultKind::IllegalInstruction, lane, message);
                    }
                    barrier.pending -= count;
                    if *drop {
                        barrier.expected -= count;
                    }
                    join(&mut barrier.arriving, &self.clock);
                    self.clock[self.index] += 1;
                    barrier.settle();
                    if let Some(d) = state {
                        self.wide_mut(*d)[lane] = token;
                        self.undef[*d as usize] &= !(1 << lane);
                    }
                }
                Mbarrier::AsyncArrive { no_increment, .. } => {
                    if *no_increment {
                        barrier.pending -= 1;
                    }
                    join(&mut barrier.arriving, &self.clock);
                    self.clock[self.index] += 1;
                    barrier.settle();
                }
                Mbarrier::Wait { state, parity, .. } => {
                    let is_over = if *parity {
                        barrier.phase & 1 != (self.narrow(*state)[lane] & 1) as u64
                    } else {
                        barrier.phase > self.wide(*state)[lane] >> 20
                    };
                    if is_over {
                        open |= 1 << lane;
                        join(&mut self.clock, &barrier.done);
                    } else {
                        failed = true;
                    }
                }
                Mbarrier::Init { .. } | Mbarrier::PendingCount { .. } => {}
            }
        }
        if let Mbarrier::Wait { d, .. } = m {
            self.set_pred(*d, open, mask, 0);
            if open != 0 {
                self.lane_order.synchronise(open, true);
            }
        }
        Ok(failed)
    }
}
