//! Order between the lanes of one warp.
//!
//! Lanes of a warp run independently of each other since Volta. What orders their accesses to shared memory
//! is `__syncwarp`, a barrier, or a fence with an atomic. A shuffle or a vote makes lanes meet, but CUDA does
//! not promise that one sees what the other wrote before.
//!
//! Time is counted in such events. An access remembers its lane and time; another lane's access is ordered
//! after it when the two have met since.

use std::collections::HashMap;

use super::{Access, Conflict, PriorAccess, Site};
use crate::isa::lanes::LANES;

/// Largest time that fits a cell. A warp that gets there is not checked any longer.
const LAST_TIME: u32 = (1 << 19) - 1;

/// Up to which time lanes know what others did.
#[derive(Default)]
struct Met {
    /// All lanes of each other.
    all: u32,
    /// Each lane (row) of each other, once some but not all of them met.
    pairs: Option<Box<[[u32; LANES]; LANES]>>,
}

impl Met {
    fn join(&mut self, group: u32, is_all: bool, time: u32) {
        if is_all {
            self.all = time;
            self.pairs = None;
            return;
        }
        let pairs = self.pairs.get_or_insert_with(|| Box::new([[0; LANES]; LANES]));
        let mut known = [0; LANES];
        let inside = |lane: &usize| group >> lane & 1 != 0;
        for lane in (0..LANES).filter(inside) {
            for other in 0..LANES {
                known[other] = pairs[lane][other].max(known[other]);
            }
            known[lane] = time;
        }
        for lane in (0..LANES).filter(inside) {
            pairs[lane] = known;
        }
    }

    /// Whether `me` knows what `other` did at that time; without `other`, what somebody did.
    fn knows(&self, me: Option<u32>, other: Option<u32>, time: u32) -> bool {
        time <= self.all
            || self.pairs.as_ref().is_some_and(|pairs| match (me, other) {
                (Some(me), Some(other)) => time <= pairs[me as usize][other as usize],
                // Which lanes it was is not known: they are taken to be among those that met.
                (Some(me), None) => pairs[me as usize].iter().any(|known| time <= *known),
                (None, _) => false,
            })
    }
}

/// A warp's view of its lanes.
pub(crate) struct LaneOrder {
    now: u32,
    /// Something was accessed at this time.
    used: bool,
    ordered: Met,
    met: Met,
    /// Times up to which a fence and an atomic made things known, by the atomic's generic address.
    released: HashMap<u64, u32>,
}

impl Default for LaneOrder {
    fn default() -> Self {
        let (ordered, met) = Default::default();
        Self { now: 1, used: false, ordered, met, released: HashMap::new() }
    }
}

impl LaneOrder {
    /// Time that is over: what happened until then is before what follows.
    fn tick(&mut self) -> u32 {
        self.now += std::mem::take(&mut self.used) as u32;
        self.now - 1
    }

    /// `__syncwarp` or a barrier of these lanes; `is_all` when no other lane is left.
    pub(crate) fn synchronise(&mut self, group: u32, is_all: bool) {
        let time = self.tick();
        self.ordered.join(group, is_all, time);
    }

    /// A shuffle or another instruction that these lanes execute together.
    pub(crate) fn meet(&mut self, group: u32, is_all: bool) {
        let time = self.tick();
        self.met.join(group, is_all, time);
    }

    /// An atomic or volatile write after a fence.
    pub(crate) fn release(&mut self, address: u64) {
        let time = self.tick();
        self.released.insert(address, time);
    }

    /// An atomic or volatile read. Whoever reads, all lanes are taken to know then.
    pub(crate) fn acquire(&mut self, address: u64) {
        if let Some(time) = self.released.get(&address) {
            self.ordered.all = self.ordered.all.max(*time);
        }
    }
}

/// The last write and the last reads of a granule: time << 13 | warp << 8 | several << 7 | kind << 5 | lane.
#[derive(Clone, Copy, Default)]
pub(super) struct LaneCell {
    write: u32,
    read: u32,
    sites: [Site; 2],
}

const SEVERAL: u32 = 1 << 7;

fn kind(access: Access) -> u32 {
    match access {
        Access::Read | Access::Write => 0,
        Access::StrongRead | Access::StrongWrite => 1,
        Access::Atomic => 2,
        Access::Swap => 3,
    }
}

impl LaneCell {
    /// Checks an access of a lane, or of all lanes together (`None`), and remembers it.
    #[inline(always)]
    pub(super) fn touch(
        &mut self,
        order: &mut LaneOrder,
        access: Access,
        warp: u32,
        lane: Option<u32>,
        site: Site,
    ) -> Option<Conflict> {
        let me = order.now << 13
            | warp << 8
            | if lane.is_none() { SEVERAL } else { 0 }
            | kind(access) << 5
            | lane.unwrap_or(0);
        order.used = true;
        let same_warp = |stamp: u32| stamp != 0 && stamp >> 8 & 31 == warp;
        let mut conflict = None;
        let write = self.write;
        let is_new = |stamp: u32| stamp >> 13 > order.ordered.all && same_warp(stamp);
        if is_new(write) && ((write | me) & SEVERAL != 0 || write & 31 != me & 31) {
            conflict = order.conflict(access, lane, write, true, self.sites[0], site);
        }
        if access.reads_only() {
            let read = self.read;
            let others = if is_new(read) && (read & 31 != me & 31) { SEVERAL } else { 0 };
            let kept = if is_new(read) { read & SEVERAL } else { 0 };
            self.read = me | others | kept;
            self.sites[1] = site;
        } else {
            let read = self.read;
            let is_mine = (read | me) & SEVERAL == 0 && read & 31 == me & 31;
            if conflict.is_none() && is_new(read) && !is_mine {
                conflict = order.conflict(access, lane, read, false, self.sites[1], site);
            }
            self.write = me;
            self.sites[0] = site;
        }
        conflict
    }
}

impl LaneOrder {
    /// Whether an access conflicts with an earlier one of another lane.
    #[cold]
    #[inline(never)]
    fn conflict(
        &self,
        access: Access,
        lane: Option<u32>,
        earlier: u32,
        wrote: bool,
        site: Site,
        my_site: Site,
    ) -> Option<Conflict> {
        let time = earlier >> 13;
        let other = (earlier & SEVERAL == 0).then_some(earlier & 31);
        if self.now >= LAST_TIME || self.ordered.knows(lane, other, time) {
            return None;
        }
        let (mine, theirs) = (kind(access), earlier >> 5 & 3);
        // Atomics do not race with each other nor with volatile accesses, a swap not with a read before it.
        let is_fine = mine.min(theirs) > 0 && mine.max(theirs) > 1
            || mine == 3 && !wrote
            || theirs == 3 && access.reads_only();
        if is_fine {
            return None;
        }
        // Lanes of one store that write the same place: one of them wins, which may be meant. Volatile
        // accesses do not race, but who relies on their order within a warp mostly relies on lockstep.
        let weakly = self.met.knows(lane, other, time)
            || mine == 1 && theirs == 1
            || wrote && !access.reads_only() && site == my_site && time == self.now;
        let prior = match (wrote, theirs) {
            (false, _) => PriorAccess::Read,
            (true, 0) => PriorAccess::PlainWrite,
            _ => PriorAccess::StrongWrite,
        };
        Some(Conflict::Lane { lane: other, prior, site, weakly })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(cell: &mut LaneCell, order: &mut LaneOrder, access: Access, lane: u32) -> bool {
        matches!(
            cell.touch(order, access, 3, Some(lane), Site::new(lane)),
            Some(Conflict::Lane { weakly: false, .. })
        )
    }

    #[test]
    fn lanes_that_met_in_part_know_of_each_other_and_of_nobody_else() {
        let (mut order, mut cells) = (LaneOrder::default(), [LaneCell::default(); 2]);
        assert!(!touch(&mut cells[0], &mut order, Access::Write, 0));
        assert!(!touch(&mut cells[1], &mut order, Access::Write, 1));
        // 1 and 2 meet, then 0 and 1, so that 1 knows of both, and 0 through 1 nothing of 2 but of 1.
        order.synchronise(0b110, false);
        order.synchronise(0b011, false);
        assert!(touch(&mut cells[0].clone(), &mut order, Access::Read, 2));
        assert!(!touch(&mut cells[0].clone(), &mut order, Access::Read, 1));
        assert!(!touch(&mut cells[1].clone(), &mut order, Access::Read, 0));
        assert!(!touch(&mut cells[1].clone(), &mut order, Access::Read, 2));
        order.synchronise(u32::MAX, true);
        assert!(!touch(&mut cells[0], &mut order, Access::Read, 2));
        // Two have read; either may write, but not without meeting.
        assert!(!touch(&mut cells[0], &mut order, Access::Read, 5));
        assert!(touch(&mut cells[0].clone(), &mut order, Access::Write, 2));
        assert!(touch(&mut cells[0], &mut order, Access::Write, 5));
    }

    #[test]
    fn a_shuffle_orders_weakly() {
        let (mut order, mut cell) = (LaneOrder::default(), LaneCell::default());
        assert_eq!(cell.touch(&mut order, Access::Write, 0, Some(7), Site::new(1)), None);
        order.meet(u32::MAX, true);
        let found = cell.touch(&mut order, Access::Read, 0, Some(8), Site::new(2));
        let weakly = true;
        let wanted = Conflict::Lane {
            lane: Some(7),
            prior: PriorAccess::PlainWrite,
            site: Site::new(1),
            weakly,
        };
        assert_eq!(found, Some(wanted));
        // Another warp is no business of this order.
        assert_eq!(cell.touch(&mut order, Access::Read, 1, Some(8), Site::new(2)), None);
    }
}
