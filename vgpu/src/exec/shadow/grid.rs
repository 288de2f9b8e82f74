//! Global memory, between the blocks of a launch.
//!
//! Global memory remembers, for every word, a writer and a reader with the bytes they touched. Blocks are
//! ordered only through a fence, an atomic and another block's access to the same atomic.

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::{Access, Conflict, PriorAccess, Site};

/// Bits of a stamp in a cell of global memory; below them a flag and a mask of four bytes. The writer, in the
/// low half, has the flag when it was volatile or atomic; the reader, in the high half, when the *writer* was
/// a read-modify-write.
const STAMP_BITS: u32 = 27;
const FLAG: u32 = 16;
const BYTES: u32 = 15;
/// Stamps run out here, and every cell is cleared.
pub(crate) const LAST_STAMP: u32 = (1 << STAMP_BITS) - 1;

/// Shadow of an allocation: a cell a word, and the instructions behind it.
pub(crate) struct GridCells {
    cells: Box<[AtomicU64]>,
    writers: Box<[AtomicU16]>,
    readers: Box<[AtomicU16]>,
}

fn zeroed<T, Z: Copy + Default>(len: usize) -> Box<[T]> {
    const { assert!(size_of::<T>() == size_of::<Z>() && align_of::<T>() == align_of::<Z>()) }
    // Straight from the system's zero pages: shadow of memory that is never raced for costs nothing.
    let words = vec![Z::default(); len].into_boxed_slice();
    // SAFETY: callers name an atomic and its integer, which have one size and alignment.
    unsafe { Box::from_raw(Box::into_raw(words) as *mut [T]) }
}

impl GridCells {
    /// For so many bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        let words = bytes.div_ceil(4);
        Self {
            cells: zeroed::<AtomicU64, u64>(words),
            writers: zeroed::<AtomicU16, u16>(words),
            readers: zeroed::<AtomicU16, u16>(words),
        }
    }

    /// Says that the cell of a byte is about to be looked at.
    #[inline(always)]
    pub(crate) fn prefetch(&self, start: u64) {
        let cell = self.cells.as_ptr().wrapping_add((start / 4) as usize);
        // SAFETY: a hint, which reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(cell.cast()) };
    }

    pub(crate) fn clear(&self) {
        self.cells.iter().for_each(|cell| cell.store(0, Relaxed));
    }
}

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

    /// The block behind a stamp (`None` for several), unless its access is ordered before `me`.
    fn unordered(&self, me: &BlockOrder, stamp: u32) -> Option<Option<u32>> {
        if stamp == me.stamp || stamp < self.first {
            return None;
        }
        if stamp == self.first {
            // Which blocks read is not known, so nothing can be said once some of them are ordered.
            return me.seen.is_empty().then_some(None);
        }
        let (block, epoch) = self.origin(stamp);
        let is_ordered =
            block == me.block || me.seen.get(&block).is_some_and(|seen| *seen >= epoch);
        (!is_ordered).then_some(Some(block))
    }

    /// Checks an access of a block to `start` bytes into an allocation with these cells and remembers it.
    #[inline(always)]
    pub(crate) fn touch(
        &self,
        me: &BlockOrder,
        shadow: &GridCells,
        start: u64,
        bytes: u64,
        access: Access,
        pc: u32,
    ) -> Option<Conflict> {
        let end = start + bytes;
        let cells = &shadow.cells;
        if access == Access::StrongRead {
            return None;
        }
        if access == Access::Read && bytes > 4 && (start | bytes) & 3 == 0 {
            // Mostly this block, or several, read all of it before and nobody wrote: nothing changes.
            let is_settled = |cell: &AtomicU64| {
                let now = cell.load(Relaxed);
                let (writer, reader) = (now as u32, (now >> 32) as u32 & !FLAG);
                let known = reader == self.first << 5 | BYTES || reader == me.stamp << 5 | BYTES;
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
            let word = word as usize;
            let cell = &cells[word];
            let mut now = cell.load(Relaxed);
            loop {
                let next = match self.next(me, now, mask, access) {
                    Ok(next) => next,
                    Err((block, prior)) => {
                        let sites = if prior == PriorAccess::Read {
                            &shadow.readers
                        } else {
                            &shadow.writers
                        };
                        let site = Site(sites[word].load(Relaxed));
                        return Some(Conflict::Block { block, prior, site });
                    }
                };
                if next == now {
                    break;
                }
                let is_read = access == Access::Read;
                if self.alone {
                    cell.store(next, Relaxed);
                } else if let Err(changed) = cell.compare_exchange_weak(now, next, Relaxed, Relaxed)
                {
                    now = changed;
                    continue;
                }
                let sites = if is_read { &shadow.readers } else { &shadow.writers };
                sites[word].store(Site::new(pc).0, Relaxed);
                break;
            }
        }
        None
    }

    /// A cell after an access, or the other block of a race (`None` for several) and what it did.
    #[inline(always)]
    fn next(
        &self,
        me: &BlockOrder,
        now: u64,
        mask: u32,
        access: Access,
    ) -> Result<u64, (Option<u32>, PriorAccess)> {
        let (writer, reader) = (now as u32, (now >> 32) as u32);
        let was_atomic = reader & FLAG != 0;
        if writer & mask != 0 {
            // Strong accesses do not race with each other, nor does a read with what is only ever changed
            // by atomics: whoever reads so looks again with a compare-and-swap.
            let is_fine = match access {
                Access::Read => was_atomic,
                Access::Write => false,
                _ => writer & FLAG != 0,
            };
            if !is_fine && let Some(block) = self.unordered(me, writer >> 5) {
                let prior = if writer & FLAG == 0 {
                    PriorAccess::PlainWrite
                } else {
                    PriorAccess::StrongWrite
                };
                return Err((block, prior));
            }
        }
        if access == Access::Read {
            let stamp = reader >> 5;
            let merged = if stamp < self.first {
                me.stamp << 5 | mask
            } else if stamp == me.stamp {
                reader & !FLAG | mask
            } else if stamp == self.first {
                // Of several readers only such bytes are on record as two of them are known to have read.
                reader & !FLAG
            } else if self.origin(stamp).0 == me.block {
                me.stamp << 5 | mask
            } else {
                self.first << 5 | reader & BYTES & mask
            };
            return Ok(((merged | reader & FLAG) as u64) << 32 | writer as u64);
        }
        let is_atomic = matches!(access, Access::Atomic | Access::Swap);
        if reader & mask != 0
            && !is_atomic
            && let Some(block) = self.unordered(me, reader >> 5)
        {
            return Err((block, PriorAccess::Read));
        }
        Ok(self.written(me, writer, reader, mask, access))
    }

    #[inline(always)]
    fn written(&self, me: &BlockOrder, writer: u32, reader: u32, mask: u32, access: Access) -> u64 {
        let is_mine = writer >> 5 == me.stamp;
        let kept = if is_mine { writer & BYTES } else { 0 };
        // A strong write of who wrote plainly in the same epoch is no more ordered than that.
        let was_plain = is_mine && writer & mask != 0 && writer & FLAG == 0;
        let is_strong = access != Access::Write && !was_plain;
        let is_atomic = is_strong && access != Access::StrongWrite;
        let flag = |on: bool| if on { FLAG } else { 0 };
        let writer = me.stamp << 5 | flag(is_strong) | kept | mask;
        ((reader & !FLAG | flag(is_atomic)) as u64) << 32 | writer as u64
    }

    /// Remembers a plain write without checking it.
    #[cold]
    pub(crate) fn overwrite(
        &self,
        me: &BlockOrder,
        shadow: &GridCells,
        start: u64,
        bytes: u64,
        pc: u32,
    ) {
        let end = start + bytes;
        for word in start / 4..end.div_ceil(4) {
            let low = start.saturating_sub(word * 4).min(3) as u32;
            let high = (end - word * 4).min(4) as u32;
            let mask = ((1 << high) - 1) & !((1 << low) - 1);
            let cell = &shadow.cells[word as usize];
            let _ = cell.fetch_update(Relaxed, Relaxed, |now| {
                let (writer, reader) = (now as u32, (now >> 32) as u32);
                Some(self.written(me, writer, reader, mask, Access::Write))
            });
            shadow.writers[word as usize].store(Site::new(pc).0, Relaxed);
        }
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

    fn block(found: Option<Conflict>) -> Option<Option<u32>> {
        found.map(|conflict| match conflict {
            Conflict::Block { block, .. } => block,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn blocks_race_whether_one_thread_runs_them_or_several() {
        for alone in [true, false] {
            let order = GridOrder::new(5, 3, alone);
            let cells = GridCells::new(16);
            let blocks = [0, 1, 2].map(|block| order.enter(block));
            // Twice: the second time, nothing of the reads is new.
            for me in blocks.iter().chain(&blocks) {
                assert_eq!(order.touch(me, &cells, 0, 16, Access::Read, 7), None);
            }
            let race = order.touch(&blocks[0], &cells, 4, 4, Access::Write, 8);
            let wanted =
                Conflict::Block { block: None, prior: PriorAccess::Read, site: Site::new(7) };
            assert_eq!(race, Some(wanted));
            let launch = GridOrder::new(order.end(), 2, alone);
            let (me, other) = (launch.enter(0), launch.enter(1));
            assert_eq!(launch.touch(&me, &cells, 4, 4, Access::Write, 9), None);
            assert_eq!(launch.touch(&me, &cells, 0, 16, Access::Read, 7), None);
            let race = launch.touch(&other, &cells, 0, 16, Access::Read, 7);
            let wanted = Conflict::Block {
                block: Some(0),
                prior: PriorAccess::PlainWrite,
                site: Site::new(9),
            };
            assert_eq!(race, Some(wanted));
        }
    }

    #[test]
    fn bytes_of_one_word_belong_to_different_blocks() {
        let (order, cells) = (GridOrder::new(5, 4, false), GridCells::new(4));
        let blocks = [0, 1, 2, 3].map(|block| order.enter(block));
        for access in [Access::Read, Access::Write, Access::Read] {
            for (at, me) in blocks.iter().enumerate() {
                assert_eq!(order.touch(me, &cells, at as u64, 1, access, 1), None);
            }
        }
        assert_eq!(block(order.touch(&blocks[0], &cells, 3, 1, Access::Read, 2)), Some(Some(3)));
        let cells = GridCells::new(4);
        for me in &blocks[..2] {
            assert_eq!(order.touch(me, &cells, 2, 2, Access::Read, 1), None);
        }
        assert_eq!(order.touch(&blocks[2], &cells, 0, 2, Access::Write, 1), None);
        assert_eq!(block(order.touch(&blocks[2], &cells, 2, 1, Access::Write, 1)), Some(None));
    }

    #[test]
    fn what_atomics_alone_change_may_be_read() {
        let (order, cells) = (GridOrder::new(5, 2, true), GridCells::new(8));
        let (me, other) = (order.enter(0), order.enter(1));
        for who in [&me, &other] {
            assert_eq!(order.touch(who, &cells, 0, 4, Access::Read, 1), None);
            assert_eq!(order.touch(who, &cells, 0, 4, Access::Atomic, 2), None);
        }
        // A plain write is another matter, before the atomic as after it, and so is a volatile one.
        assert_eq!(block(order.touch(&me, &cells, 0, 4, Access::Write, 3)), Some(Some(1)));
        assert_eq!(order.touch(&me, &cells, 4, 4, Access::Write, 3), None);
        assert_eq!(order.touch(&me, &cells, 4, 4, Access::Atomic, 3), None);
        assert_eq!(block(order.touch(&other, &cells, 4, 4, Access::Read, 1)), Some(Some(0)));
        let cells = GridCells::new(4);
        assert_eq!(order.touch(&me, &cells, 0, 4, Access::StrongWrite, 3), None);
        assert_eq!(order.touch(&other, &cells, 0, 4, Access::StrongRead, 3), None);
        assert_eq!(block(order.touch(&other, &cells, 0, 4, Access::Read, 3)), Some(Some(0)));
    }
}
