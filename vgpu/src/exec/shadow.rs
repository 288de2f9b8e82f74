//! Who touched which memory, and whether that was ordered.
//!
//! Inside a block the unit is the warp: each has a vector clock that barriers, fences with atomics and
//! mbarriers join. Shared memory remembers, for every granule, its last writer and its last two readers; an
//! access races with one of them when the accessing warp's clock does not cover it. Two readers are enough
//! where all warps meet at the same barriers: of all readers since the last one, a writer is unordered with
//! any that is not itself, and one of the last two distinct ones is not.
//!
//! Between blocks the unit is the block: global memory remembers, for every word, a writer and a reader with
//! the bytes they touched. Blocks are ordered only through a fence, an atomic and another block's access to
//! the same atomic.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// How an access takes part in races.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    /// Conflicts with plain accesses only.
    Atomic,
}

/// The other party of a race.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conflict {
    /// Shared memory: the other warp, the instruction if it wrote, and whether it wrote.
    Warp { warp: u32, wrote: bool, pc: u32 },
    /// The bytes belong to a copy under way.
    InFlight,
}

/// State of one granule of shared memory. An access is `clock << 6 | warp << 1 | atomic`, 0 for none.
#[derive(Clone, Copy, Default)]
struct Cell {
    writer: u32,
    readers: [u32; 2],
    /// Instruction of the writer; the top bit says that an asynchronous copy is on its way here.
    pc: u32,
}

const IN_FLIGHT: u32 = 1 << 31;

/// Bytes of the largest access, as a power of two.
const COARSEST: u32 = 4;

/// Shadow of a block's shared memory.
pub(crate) struct SharedShadow {
    cells: Vec<Cell>,
    /// Bytes of a granule as a power of two; shrinks to the smallest access seen. Accesses are aligned
    /// to their size, so one never covers part of a granule.
    shift: u32,
    bytes: usize,
}

impl SharedShadow {
    pub(crate) fn new(bytes: usize) -> Self {
        let cells = vec![Cell::default(); bytes.div_ceil(1 << COARSEST)];
        Self { cells, shift: COARSEST, bytes }
    }

    pub(crate) fn reset(&mut self) {
        self.cells.fill(Cell::default());
    }

    #[cold]
    #[inline(never)]
    fn refine(&mut self, shift: u32) {
        let times = 1 << (self.shift - shift);
        let fine = self
            .cells
            .iter()
            .flat_map(|c| std::iter::repeat_n(*c, times))
            .take(self.bytes.div_ceil(1 << shift));
        self.cells = fine.collect();
        self.shift = shift;
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
        if bytes < 1 << self.shift {
            self.refine(bytes.trailing_zeros());
        }
        let me = clock[warp as usize] << 6 | warp << 1 | (access == Access::Atomic) as u32;
        let unordered = |stamp: u32| {
            let other = stamp >> 1 & 31;
            stamp != 0 && other != warp && clock[other as usize] < stamp >> 6
        };
        let first = at >> self.shift;
        let last = (at + bytes - 1) >> self.shift;
        for cell in &mut self.cells[first..=last] {
            if cell.pc & IN_FLIGHT != 0 {
                return Some(Conflict::InFlight);
            }
            let both_atomic = cell.writer & 1 == 1 && access == Access::Atomic;
            if unordered(cell.writer) && !both_atomic {
                return Some(Conflict::Warp {
                    warp: cell.writer >> 1 & 31,
                    wrote: true,
                    pc: cell.pc,
                });
            }
            if access == Access::Read {
                let [newest, other] = &mut cell.readers;
                if *newest >> 1 & 31 != warp {
                    if *other == 0 || *other >> 1 & 31 != warp {
                        *other = *newest;
                    } else {
                        std::mem::swap(newest, other);
                    }
                }
                *newest = me;
            } else {
                for reader in cell.readers {
                    if unordered(reader) {
                        return Some(Conflict::Warp {
                            warp: reader >> 1 & 31,
                            wrote: false,
                            pc: 0,
                        });
                    }
                }
                *cell = Cell { writer: me, readers: [0; 2], pc };
            }
        }
        None
    }

    /// Marks or unmarks the target of an asynchronous copy; says whether some of it was marked before.
    #[inline(always)]
    pub(crate) fn set_in_flight(&mut self, at: usize, bytes: usize, on: bool) -> bool {
        let last = (at + bytes - 1) >> self.shift;
        let mut before = 0;
        for cell in &mut self.cells[at >> self.shift..=last] {
            before |= cell.pc;
            cell.pc = if on { cell.pc | IN_FLIGHT } else { cell.pc & !IN_FLIGHT };
        }
        before & IN_FLIGHT != 0
    }
}

/// Bits of a stamp in a cell of global memory; below them an atomic bit and a mask of four bytes.
const STAMP_BITS: u32 = 27;
/// Stamps run out here, and every cell is cleared.
pub(crate) const LAST_STAMP: u32 = (1 << STAMP_BITS) - 1;

/// Order between the blocks of one launch.
///
/// A stamp names a block and one of its epochs; a new epoch begins with every release. Stamps grow over the
/// device's lifetime, so that what an earlier launch left behind is recognised by being too small.
pub(crate) struct GridOrder {
    /// Marks "several blocks read this"; the blocks' first stamps follow it.
    first: u32,
    blocks: u32,
    /// One thread runs all blocks: nobody changes a cell between its load and its store.
    alone: bool,
    next: AtomicU32,
    /// Block and epoch of the stamps after those of the blocks' first epochs.
    later: Mutex<Vec<(u32, u32)>>,
    /// What each atomic variable's last releases published: block to epoch.
    published: Mutex<HashMap<u64, HashMap<u32, u32>>>,
}

/// A block's view of the others.
#[derive(Default)]
pub(crate) struct BlockOrder {
    pub(crate) block: u32,
    stamp: u32,
    epoch: u32,
    fenced: bool,
    published: Option<u32>,
    /// Epochs of other blocks that are known to be over.
    seen: HashMap<u32, u32>,
}

impl GridOrder {
    /// Stamps for a launch, starting at `first`.
    pub(crate) fn new(first: u32, blocks: u32, alone: bool) -> Self {
        Self {
            first,
            blocks,
            alone,
            next: AtomicU32::new(first + 1 + blocks),
            later: Mutex::new(Vec::new()),
            published: Mutex::new(HashMap::new()),
        }
    }

    /// The first stamp that a following launch may use.
    pub(crate) fn end(&self) -> u32 {
        self.next.load(Relaxed)
    }

    pub(crate) fn enter(&self, block: u32) -> BlockOrder {
        BlockOrder { block, stamp: self.first + 1 + block, ..BlockOrder::default() }
    }

    fn origin(&self, stamp: u32) -> (u32, u32) {
        let index = stamp - self.first - 1;
        if index < self.blocks {
            return (index, 0);
        }
        let later = self.later.lock().unwrap_or_else(|e| e.into_inner());
        later.get((index - self.blocks) as usize).copied().unwrap_or((u32::MAX, 0))
    }

    /// The block behind a stamp, unless its access is ordered before `me`.
    fn unordered(&self, me: &BlockOrder, stamp: u32) -> Option<u32> {
        if stamp == me.stamp || stamp < self.first {
            return None;
        }
        if stamp == self.first {
            // Which blocks read is not known, so nothing can be said once some of them are ordered.
            return me.seen.is_empty().then_some(u32::MAX);
        }
        let (block, epoch) = self.origin(stamp);
        let is_ordered =
            block == me.block || me.seen.get(&block).is_some_and(|seen| *seen >= epoch);
        (!is_ordered).then_some(block)
    }

    /// Checks an access of a block to `start` bytes into an allocation with these cells and remembers it.
    /// Gives the other block of a race (`u32::MAX` for several).
    #[inline(always)]
    pub(crate) fn touch(
        &self,
        me: &BlockOrder,
        cells: &[AtomicU64],
        start: u64,
        bytes: u64,
        access: Access,
    ) -> Option<u32> {
        let end = start + bytes;
        if access == Access::Read && bytes > 4 && (start | bytes) & 3 == 0 {
            // Mostly this block, or several, read all of it before and nobody wrote: nothing changes.
            let is_settled = |cell: &AtomicU64| {
                let now = cell.load(Relaxed);
                let (writer, reader) = (now as u32, (now >> 32) as u32);
                let known = reader == self.first << 5 | 15 || reader == me.stamp << 5 | 15;
                known && writer < self.first << 5
            };
            let cells = &cells[(start / 4) as usize..(end / 4) as usize];
            if cells.iter().all(is_settled) {
                return None;
            }
        }
        for word in start / 4..end.div_ceil(4) {
            let low = start.saturating_sub(word * 4).min(3) as u32;
            let high = (end - word * 4).min(4) as u32;
            let mask = ((1 << high) - 1) & !((1 << low) - 1);
            let cell = &cells[word as usize];
            let mut now = cell.load(Relaxed);
            loop {
                let (writer, reader) = (now as u32, (now >> 32) as u32);
                if writer & mask != 0
                    && !(access == Access::Atomic && writer & 16 != 0)
                    && let Some(block) = self.unordered(me, writer >> 5)
                {
                    return Some(block);
                }
                let next = if access == Access::Read {
                    let stamp = reader >> 5;
                    let merged = if stamp < self.first {
                        me.stamp << 5 | mask
                    } else if stamp == me.stamp || stamp == self.first {
                        reader | mask
                    } else if self.origin(stamp).0 == me.block {
                        me.stamp << 5 | mask
                    } else {
                        self.first << 5 | (reader & 15) | mask
                    };
                    (merged as u64) << 32 | writer as u64
                } else {
                    if reader & mask != 0
                        && let Some(block) = self.unordered(me, reader >> 5)
                    {
                        return Some(block);
                    }
                    let atomic = ((access == Access::Atomic) as u32) << 4;
                    let kept = if writer >> 5 == me.stamp { writer & 15 } else { 0 };
                    (reader as u64) << 32 | (me.stamp << 5 | atomic | kept | mask) as u64
                };
                if next == now {
                    break;
                }
                if self.alone {
                    cell.store(next, Relaxed);
                    break;
                }
                match cell.compare_exchange_weak(now, next, Relaxed, Relaxed) {
                    Ok(_) => break,
                    Err(changed) => now = changed,
                }
            }
        }
        None
    }

    /// An atomic access to `address`, which may order blocks.
    pub(crate) fn synchronise(
        &self,
        me: &mut BlockOrder,
        address: u64,
        reads: bool,
        writes: bool,
        releases: bool,
    ) {
        if writes && (me.fenced || releases) {
            me.published = Some(me.epoch);
            me.epoch += 1;
            me.fenced = false;
            let mut later = self.later.lock().unwrap_or_else(|e| e.into_inner());
            me.stamp = self.first + 1 + self.blocks + later.len() as u32;
            later.push((me.block, me.epoch));
            self.next.store(me.stamp + 1, Relaxed);
        }
        let mut published = self.published.lock().unwrap_or_else(|e| e.into_inner());
        if reads && let Some(known) = published.get(&address) {
            for (block, epoch) in known {
                let seen = me.seen.entry(*block).or_insert(*epoch);
                *seen = (*seen).max(*epoch);
            }
        }
        if writes && let Some(epoch) = me.published {
            let known = published.entry(address).or_default();
            known.insert(me.block, epoch);
            for (block, epoch) in &me.seen {
                let seen = known.entry(*block).or_insert(*epoch);
                *seen = (*seen).max(*epoch);
            }
        }
    }
}

impl BlockOrder {
    /// A fence that other blocks see.
    pub(crate) fn fence(&mut self) {
        self.fenced = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn granules_shrink_without_forgetting_or_inventing_accesses() {
        let mut shadow = SharedShadow::new(32);
        // Neither warp's clock covers what the other did.
        let clock = [1, 0];
        let other = [0, 1];
        assert_eq!(shadow.touch(0, 16, Access::Write, 0, &clock, 7), None);
        assert_eq!(shadow.touch(16, 4, Access::Write, 0, &clock, 8), None);
        assert_eq!(shadow.touch(20, 4, Access::Write, 1, &other, 9), None);
        for at in (0..16).step_by(4) {
            let wrote = Some(Conflict::Warp { warp: 0, wrote: true, pc: 7 });
            assert_eq!(shadow.touch(at, 4, Access::Read, 1, &other, 9), wrote);
        }
        assert_eq!(shadow.touch(17, 1, Access::Read, 0, &clock, 8), None);
        let across = shadow.touch(16, 8, Access::Read, 0, &clock, 8);
        assert_eq!(across, Some(Conflict::Warp { warp: 1, wrote: true, pc: 9 }));
    }

    #[test]
    fn blocks_race_whether_one_thread_runs_them_or_several() {
        for alone in [true, false] {
            let order = GridOrder::new(5, 3, alone);
            let cells: [AtomicU64; 4] = Default::default();
            let blocks = [0, 1, 2].map(|block| order.enter(block));
            // Twice: the second time, nothing of the reads is new.
            for block in blocks.iter().chain(&blocks) {
                assert_eq!(order.touch(block, &cells, 0, 16, Access::Read), None);
            }
            assert_eq!(order.touch(&blocks[0], &cells, 4, 4, Access::Write), Some(u32::MAX));
            let launch = GridOrder::new(order.end(), 2, alone);
            let (me, other) = (launch.enter(0), launch.enter(1));
            assert_eq!(launch.touch(&me, &cells, 4, 4, Access::Write), None);
            assert_eq!(launch.touch(&me, &cells, 0, 16, Access::Read), None);
            assert_eq!(launch.touch(&other, &cells, 0, 16, Access::Read), Some(0));
        }
    }
}
