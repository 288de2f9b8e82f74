//! Shared memory of a block.
//!
//! Between warps: each has a vector clock that barriers, fences with atomics and mbarriers join. Every granule
//! remembers its last writer and its last two readers; an access races with one of them when the accessing
//! warp's clock does not cover it. Two readers are enough where all warps meet at the same barriers: of all
//! readers since the last one, a writer is unordered with any that is not itself, and one of the last two
//! distinct ones is not.

use super::lanes::{LaneCell, LaneOrder};
use super::{Access, Conflict, PriorAccess, Site};

/// State of one granule. An access is `clock << 7 | warp << 2 | kind`, 0 for none.
#[derive(Clone, Copy, Default)]
struct Cell {
    writer: u32,
    readers: [u32; 2],
    /// Instructions of the writer and the readers.
    sites: [Site; 3],
    /// An asynchronous copy is on its way here.
    in_flight: bool,
}

const PLAIN: u32 = 0;
const STRONG: u32 = 1;
const ATOMIC: u32 = 2;
const SWAP: u32 = 3;
/// Clocks beyond this are not told apart from it: what they order is not reported.
const LAST_CLOCK: u32 = (1 << 25) - 1;

/// Bytes of the largest access, as a power of two.
const COARSEST: u32 = 4;

/// Shadow of a block's shared memory.
pub(crate) struct SharedShadow {
    cells: Vec<Cell>,
    /// The same granules for the lanes of warps; empty when they are not checked.
    lanes: Vec<LaneCell>,
    /// Bytes of a granule as a power of two; shrinks to the smallest access seen. Accesses are aligned
    /// to their size, so one never covers part of a granule.
    shift: u32,
    bytes: usize,
}

impl SharedShadow {
    pub(crate) fn new(bytes: usize, lanes: bool) -> Self {
        let granules = bytes.div_ceil(1 << COARSEST);
        Self {
            cells: vec![Cell::default(); granules],
            lanes: vec![LaneCell::default(); if lanes { granules } else { 0 }],
            shift: COARSEST,
            bytes,
        }
    }

    pub(crate) fn reset(&mut self) {
        self.cells.fill(Cell::default());
        self.lanes.fill(LaneCell::default());
    }

    #[cold]
    #[inline(never)]
    fn refine(&mut self, shift: u32) {
        fn split<T: Copy>(cells: &[T], times: usize, granules: usize) -> Vec<T> {
            cells.iter().flat_map(|c| std::iter::repeat_n(*c, times)).take(granules).collect()
        }
        let (times, granules) = (1 << (self.shift - shift), self.bytes.div_ceil(1 << shift));
        self.cells = split(&self.cells, times, granules);
        self.lanes = split(&self.lanes, times, granules);
        self.shift = shift;
    }

    #[inline(always)]
    fn granules(&mut self, at: usize, bytes: usize) -> std::ops::RangeInclusive<usize> {
        if bytes < 1 << self.shift {
            self.refine(bytes.trailing_zeros());
        }
        at >> self.shift..=(at + bytes - 1) >> self.shift
    }

    /// Checks an access of a warp and remembers it.
    #[inline(always)]
    pub(crate) fn touch(
        &mut self,
        at: usize,
        bytes: usize,
        access: Access,
        warp: u32,
        clock: &[u32],
        pc: u32,
    ) -> Option<Conflict> {
        let kind = match access {
            Access::Read | Access::Write => PLAIN,
            Access::StrongRead => return None,
            Access::StrongWrite => STRONG,
            Access::Atomic => ATOMIC,
            Access::Swap => SWAP,
        };
        let me = clock[warp as usize].min(LAST_CLOCK) << 7 | warp << 2 | kind;
        let unordered = |stamp: u32| {
            let other = stamp >> 2 & 31;
            stamp != 0 && other != warp && clock[other as usize] < stamp >> 7
        };
        let site = Site::new(pc);
        let granules = self.granules(at, bytes);
        for cell in &mut self.cells[granules] {
            if cell.in_flight {
                return Some(Conflict::InFlight);
            }
            if unordered(cell.writer) {
                let theirs = cell.writer & 3;
                let is_fine =
                    kind != PLAIN && theirs != PLAIN || access == Access::Read && theirs == SWAP;
                if !is_fine {
                    let warp = cell.writer >> 2 & 31;
                    let prior = if theirs == PLAIN {
                        PriorAccess::PlainWrite
                    } else {
                        PriorAccess::StrongWrite
                    };
                    return Some(Conflict::Warp { warp, prior, site: cell.sites[0] });
                }
            }
            if access == Access::Read {
                let [newest, other] = &mut cell.readers;
                if *newest >> 2 & 31 != warp {
                    if *other == 0 || *other >> 2 & 31 != warp {
                        *other = *newest;
                        cell.sites[2] = cell.sites[1];
                    } else {
                        std::mem::swap(newest, other);
                        cell.sites.swap(1, 2);
                    }
                }
                *newest = me;
                cell.sites[1] = site;
                continue;
            }
            // Who swaps expects that others have read the old value; their reads stay on record.
            if access == Access::Swap {
                let stays_plain = cell.writer >> 2 == me >> 2 && cell.writer & 3 == PLAIN;
                if !stays_plain {
                    cell.writer = me;
                    cell.sites[0] = site;
                }
                continue;
            }
            for (i, reader) in cell.readers.into_iter().enumerate() {
                if unordered(reader) {
                    let warp = reader >> 2 & 31;
                    return Some(Conflict::Warp {
                        warp,
                        prior: PriorAccess::Read,
                        site: cell.sites[1 + i],
                    });
                }
            }
            cell.overwrite(me, site);
        }
        None
    }

    /// Remembers a write without checking it.
    pub(crate) fn overwrite(&mut self, at: usize, bytes: usize, warp: u32, clock: &[u32], pc: u32) {
        let me = clock[warp as usize].min(LAST_CLOCK) << 7 | warp << 2 | PLAIN;
        let granules = self.granules(at, bytes);
        self.cells[granules].iter_mut().for_each(|cell| cell.overwrite(me, Site::new(pc)));
    }

    /// Checks an access of one lane, or of a whole warp together (`None`), against the warp's other lanes.
    #[inline(always)]
    pub(crate) fn touch_lane(
        &mut self,
        at: usize,
        bytes: usize,
        access: Access,
        warp: u32,
        lane: Option<u32>,
        order: &mut LaneOrder,
        pc: u32,
    ) -> Option<Conflict> {
        let (granules, site) = (self.granules(at, bytes), Site::new(pc));
        let mut found = None;
        for cell in &mut self.lanes[granules] {
            let conflict = cell.touch(order, access, warp, lane, site);
            found = found.or(conflict);
        }
        found
    }

    /// Marks or unmarks the target of an asynchronous copy; says whether some of it was marked before.
    #[inline(always)]
    pub(crate) fn set_in_flight(&mut self, at: usize, bytes: usize, on: bool) -> bool {
        let granules = self.granules(at, bytes);
        let mut before = false;
        for cell in &mut self.cells[granules] {
            before |= std::mem::replace(&mut cell.in_flight, on);
        }
        before
    }
}

impl Cell {
    #[inline(always)]
    fn overwrite(&mut self, writer: u32, site: Site) {
        // A volatile or atomic write of who wrote plainly just before is no more ordered than that.
        let stays_plain = self.writer >> 2 == writer >> 2 && self.writer & 3 == PLAIN;
        self.writer = if stays_plain && self.writer != 0 { writer & !3 } else { writer };
        self.readers = [0; 2];
        self.sites[0] = site;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn granules_shrink_without_forgetting_or_inventing_accesses() {
        let mut shadow = SharedShadow::new(32, true);
        // Neither warp's clock covers what the other did.
        let clock = [1, 0];
        let other = [0, 1];
        assert_eq!(shadow.touch(0, 16, Access::Write, 0, &clock, 7), None);
        assert_eq!(shadow.touch(16, 4, Access::Write, 0, &clock, 8), None);
        assert_eq!(shadow.touch(20, 4, Access::Write, 1, &other, 9), None);
        for at in (0..16).step_by(4) {
            let wrote = Some(Conflict::Warp {
                warp: 0,
                prior: PriorAccess::PlainWrite,
                site: Site::new(7),
            });
            assert_eq!(shadow.touch(at, 4, Access::Read, 1, &other, 9), wrote);
        }
        assert_eq!(shadow.touch(17, 1, Access::Read, 0, &clock, 8), None);
        let across = shadow.touch(16, 8, Access::Read, 0, &clock, 8);
        assert_eq!(
            across,
            Some(Conflict::Warp { warp: 1, prior: PriorAccess::PlainWrite, site: Site::new(9) })
        );
    }

    #[test]
    fn a_read_before_a_swap_is_no_race_but_one_of_a_sum_is() {
        let (clock, other) = ([1, 0], [0, 1]);
        let mut shadow = SharedShadow::new(4, false);
        assert_eq!(shadow.touch(0, 4, Access::Read, 0, &clock, 1), None);
        assert_eq!(shadow.touch(0, 4, Access::Swap, 0, &clock, 2), None);
        assert_eq!(shadow.touch(0, 4, Access::Read, 1, &other, 1), None);
        assert_eq!(shadow.touch(0, 4, Access::Swap, 1, &other, 2), None);
        // The readers were not forgotten: a plain write races with them.
        let read =
            Some(Conflict::Warp { warp: 1, prior: PriorAccess::StrongWrite, site: Site::new(2) });
        assert_eq!(shadow.touch(0, 4, Access::Write, 0, &clock, 3), read);
        let mut shadow = SharedShadow::new(4, false);
        assert_eq!(shadow.touch(0, 4, Access::Atomic, 0, &clock, 2), None);
        let added =
            Some(Conflict::Warp { warp: 0, prior: PriorAccess::StrongWrite, site: Site::new(2) });
        assert_eq!(shadow.touch(0, 4, Access::Read, 1, &other, 1), added);
        // A volatile write does not make the plain one before it harmless.
        let mut shadow = SharedShadow::new(4, false);
        assert_eq!(shadow.touch(0, 4, Access::Write, 0, &clock, 4), None);
        assert_eq!(shadow.touch(0, 4, Access::StrongWrite, 0, &clock, 5), None);
        assert!(shadow.touch(0, 4, Access::Atomic, 1, &other, 6).is_some());
    }
}
