//! Memory of CPU tensors: 64-byte aligned buffers, recycled through a pool.
//!
//! A denoising step frees and allocates the same sizes over and over; the pool keeps freed buffers by
//! size class, so that from the second step on nothing is asked of the system, whose fresh pages would be
//! zeroed and faulted in one by one. `NADIR_POOL=off` gives every tensor memory of its own.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{LazyLock, Mutex, MutexGuard};

use crate::cpu::memory;
use crate::error::{Error, Result};
use crate::types::Device;

/// One vector register of AVX-512, and a cache line.
const ALIGN: usize = 64;

/// An aligned, untyped buffer.
pub(crate) struct Buffer {
    ptr: NonNull<u8>,
    /// Bytes asked for.
    len: usize,
    /// Bytes allocated: a size class.
    capacity: usize,
}

// SAFETY: a Buffer owns its memory exclusively, like Vec<u8>; shared access is read-only through &self.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

/// Free buffers by capacity, and the bytes that they, and those in use, take.
#[derive(Default)]
struct Pool {
    free: BTreeMap<usize, Vec<NonNull<u8>>>,
    held: usize,
    used: usize,
    /// The most that was in use at once since [`release_unused_memory`].
    most_used: usize,
}

// SAFETY: the pointers in the pool are owned by it alone.
unsafe impl Send for Pool {}

impl Pool {
    /// A free buffer of this capacity, which is in use from now on.
    fn take(&mut self, capacity: usize) -> Option<NonNull<u8>> {
        let ptr = self.free.get_mut(&capacity)?.pop()?;
        self.held -= capacity;
        self.use_more(capacity);
        Some(ptr)
    }

    fn use_more(&mut self, capacity: usize) {
        self.used += capacity;
        self.most_used = self.most_used.max(self.used);
    }

    /// Takes back what was in use, if it may be kept.
    fn keep(&mut self, ptr: NonNull<u8>, capacity: usize) -> bool {
        self.used -= capacity;
        let kept = self.held + capacity <= self.most(self.used);
        if kept {
            self.held += capacity;
            self.free.entry(capacity).or_default().push(ptr);
        }
        kept
    }

    /// How much may be held beside what is in use.
    fn most(&self, used: usize) -> usize {
        self.most_used.max(used).saturating_add(SLACK) - used
    }

    /// Gives unused memory back to the system, the largest buffers first, until at most `most` bytes are held.
    fn shrink(&mut self, most: usize) {
        while self.held > most {
            let Some(mut largest) = self.free.last_entry() else { break };
            let capacity = *largest.key();
            let ptr = largest.get_mut().pop();
            if largest.get().is_empty() {
                largest.remove();
            }
            if let Some(ptr) = ptr {
                self.held -= capacity;
                // SAFETY: the pool owned the memory, and has just let go of it.
                unsafe { Buffer::free(ptr, capacity) }
            }
        }
    }
}

/// The system promises more than it has and ends the process that takes it at its word: from this size on, what is
/// asked for is first held against what is free. Below, asking would cost more than it is worth.
const CHECKED: usize = 64 << 20;

/// What is in use and what the pool keeps are together at most this much more than what was ever in use at once: a loop
/// finds again all that its last round let go of, and what an earlier part of the work needed adds little to the most
/// that a later one does.
const SLACK: usize = 384 << 20;

/// Less than this is not worth a buffer that others could fill.
const BRIEF: usize = 256 << 10;

static POOL: LazyLock<Option<Mutex<Pool>>> = LazyLock::new(|| {
    let off = std::env::var("NADIR_POOL").is_ok_and(|v| v == "off");
    (!off).then(Mutex::default)
});

/// The pool, if there is one.
fn pool() -> Option<MutexGuard<'static, Pool>> {
    Some(POOL.as_ref()?.lock().unwrap_or_else(|e| e.into_inner()))
}

impl Buffer {
    /// `len` bytes of arbitrary content.
    ///
    /// # Errors
    /// `OutOfMemory`; likewise below.
    pub(crate) fn uninit(len: usize) -> Result<Self> {
        let capacity = size_class(len);
        let unused = pool().and_then(|mut pool| pool.take(capacity));
        let ptr = unused.map_or_else(|| Self::fresh(capacity), Ok)?;
        Ok(Self::of(ptr, len, capacity))
    }

    /// As [`Self::uninit`], for content that is soon let go of: unused memory of any size will do, rather than fresh
    /// memory, whose pages cost more than most of what is done with them.
    pub(crate) fn brief(len: usize) -> Result<Self> {
        let unused = pool().filter(|_| len >= BRIEF).and_then(|mut pool| {
            let mut classes = pool.free.range(size_class(len)..);
            let (&capacity, _) = classes.find(|(_, free)| !free.is_empty())?;
            Some(Self::of(pool.take(capacity)?, len, capacity))
        });
        unused.map_or_else(|| Self::uninit(len), Ok)
    }

    /// `len` zero bytes.
    pub(crate) fn zeroed(len: usize) -> Result<Self> {
        let capacity = size_class(len);
        if let Some(ptr) = pool().and_then(|mut pool| pool.take(capacity)) {
            let mut buffer = Self::of(ptr, len, capacity);
            buffer.bytes_mut().fill(0);
            return Ok(buffer);
        }
        Ok(Self::of(Self::fresh(capacity)?, len, capacity))
    }

    /// [Allocated](Self::allocate) memory, for which the pool makes room.
    fn fresh(capacity: usize) -> Result<NonNull<u8>> {
        if let Some(mut pool) = pool() {
            let most = pool.most(pool.used.saturating_add(capacity));
            pool.shrink(most);
        }
        let ptr = Self::allocate(capacity)?;
        if let Some(mut pool) = pool() {
            pool.use_more(capacity);
        }
        Ok(ptr)
    }

    /// Memory from [`Self::allocate`] with this capacity, or a class of it from the pool.
    fn of(ptr: NonNull<u8>, len: usize, capacity: usize) -> Self {
        #[cfg(test)]
        in_use::add(capacity as isize);
        Self { ptr, len, capacity }
    }

    /// Zeroed memory from the system, which may first need back what the pool holds.
    fn allocate(capacity: usize) -> Result<NonNull<u8>> {
        let fits = |space: memory::Space| capacity as u64 <= space.free;
        let attempt = || {
            let checked = capacity < CHECKED || memory::tightest().is_none_or(fits);
            checked.then(|| Self::ask(capacity)).flatten()
        };
        attempt()
            .or_else(|| {
                release_unused_memory();
                attempt()
            })
            .ok_or_else(|| out_of_memory(capacity))
    }

    /// Zeroed memory, if the system has it. It hands out large blocks lazily zeroed, so that nothing is touched
    /// before it is written; that holds only for `calloc`, hence the natural alignment and the offset kept in front.
    fn ask(capacity: usize) -> Option<NonNull<u8>> {
        let layout = Layout::from_size_align(capacity.checked_add(ALIGN)?, 16).ok()?;
        // SAFETY: the layout's size is not zero.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let offset = ALIGN - base.addr().get() % ALIGN; // 16..=ALIGN: room for the byte that remembers it
        // SAFETY: 1 <= offset <= ALIGN, and the block is capacity + ALIGN long.
        unsafe {
            base.add(offset - 1).write(offset as u8);
            Some(base.add(offset))
        }
    }

    /// Gives `ptr`, from [`Self::allocate`] with this capacity, back to the system.
    ///
    /// # Safety
    /// Nobody uses the memory any more, and it is freed once.
    unsafe fn free(ptr: NonNull<u8>, capacity: usize) {
        // SAFETY: `ask` wrote the offset one byte in front, and found the same layout to be valid.
        unsafe {
            let offset = ptr.sub(1).read() as usize;
            let layout = Layout::from_size_align_unchecked(capacity + ALIGN, 16);
            dealloc(ptr.sub(offset).as_ptr(), layout);
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: ptr is valid for capacity >= len bytes for the life of self.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and &mut self is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        #[cfg(test)]
        in_use::add(-(self.capacity as isize));
        if pool().is_some_and(|mut pool| pool.keep(self.ptr, self.capacity)) {
            return;
        }
        // SAFETY: self owns the memory and is being dropped.
        unsafe { Self::free(self.ptr, self.capacity) }
    }
}

/// The host cannot give `asked` bytes.
pub(super) fn out_of_memory(asked: usize) -> Error {
    let (space, asked) = (memory::tightest(), asked as u64);
    let (free, total) = (space.map(|space| space.free), space.map(|space| space.total));
    Error::OutOfMemory { device: Device::Cpu, asked, free, total }
}

/// Gives all memory that nobody uses back to the system. Worth a call after loading a model.
pub fn release_unused_memory() {
    if let Some(mut pool) = pool() {
        pool.shrink(0);
        pool.most_used = pool.used;
    }
}

/// Bytes of the buffers that a thread has made and that are still there.
#[cfg(test)]
pub(crate) mod in_use {
    use std::cell::Cell;

    thread_local! {
        static NOW: Cell<isize> = const { Cell::new(0) };
        static MOST: Cell<isize> = const { Cell::new(0) };
    }

    pub(super) fn add(bytes: isize) {
        NOW.set(NOW.get() + bytes);
        MOST.set(MOST.get().max(NOW.get()));
    }

    pub(crate) fn now() -> isize {
        NOW.get()
    }

    /// The most while `f` ran, beside its result.
    pub(crate) fn most<R>(f: impl FnOnce() -> R) -> (isize, R) {
        MOST.set(NOW.get());
        let result = f();
        (MOST.get(), result)
    }
}

/// Rounds up to a sixteenth of the next power of two, so that a class wastes at most 12.5 %.
fn size_class(len: usize) -> usize {
    let step = (len.checked_next_power_of_two().unwrap_or(len) / 16).max(ALIGN);
    len.max(1).checked_next_multiple_of(step).unwrap_or(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_classes_waste_little_and_are_stable() {
        for len in [0, 1, 63, 64, 65, 1000, 4096, 4097, 1 << 20, (1 << 20) + 1, 123_456_789] {
            let class = size_class(len);
            assert!(class >= len && class.is_multiple_of(ALIGN), "{len} -> {class}");
            assert!(class <= len + len / 7 + ALIGN, "{len} -> {class}");
            assert_eq!(size_class(class), class);
        }
    }

    /// What makes a step of a loop cost no allocation after the first.
    #[test]
    fn freed_memory_is_used_again() {
        if POOL.is_none() {
            return; // NADIR_POOL=off
        }
        // Sizes of one class that no other test of this process asks for.
        for (len, next) in [(777_777, 777_777), (5_555_555, 5_555_000)] {
            assert_eq!(size_class(len), size_class(next));
            let first = Buffer::uninit(len).unwrap();
            let address = first.ptr;
            let second = Buffer::uninit(len).unwrap();
            assert_ne!(second.ptr, address, "memory that is in use");
            drop(first);
            let again = Buffer::uninit(next).unwrap();
            assert_eq!((again.ptr, again.len), (address, next));
        }
    }

    /// What one part of the work let go of adds little to the most that another needs, and all of it is there for the next
    /// round.
    #[test]
    fn the_pool_holds_what_was_in_use_and_little_more() {
        if POOL.is_none() {
            return; // NADIR_POOL=off
        }
        let footprint = || {
            let pool = pool().unwrap();
            (pool.used + pool.held, pool.most_used)
        };
        let buffers = |sizes: [usize; 4]| sizes.map(|mib| Buffer::uninit(mib << 20).unwrap());
        for _ in 0..3 {
            let first = buffers([90, 91, 93, 95]);
            let addresses = first.each_ref().map(|buffer| buffer.ptr);
            drop(first);
            let again = buffers([90, 91, 93, 95]);
            assert!(again.iter().all(|buffer| addresses.contains(&buffer.ptr)));
            drop(again);
            // Of other classes: kept with the first, they were more than the bound.
            for sizes in [[130, 140, 150, 160], [170, 180, 190, 200]] {
                drop(buffers(sizes));
                let (footprint, most_used) = footprint();
                assert!(footprint <= most_used + SLACK, "{footprint} for {most_used}");
            }
        }
    }

    #[test]
    fn brief_content_goes_into_any_memory_that_is_large_enough() {
        if POOL.is_none() {
            return; // NADIR_POOL=off
        }
        // Of a class that no other test of this process asks for, and larger than any of theirs that it gives back.
        let large = Buffer::uninit(61 << 20).unwrap();
        let address = large.ptr;
        drop(large);
        let brief = Buffer::brief(59 << 20).unwrap();
        assert_eq!((brief.ptr, brief.len), (address, 59 << 20));
        drop(brief);
        // As much as it is worth, to those who ask for it.
        assert_eq!(Buffer::uninit(61 << 20).unwrap().ptr, address);
        assert_ne!(Buffer::brief(BRIEF - 1).unwrap().ptr, address);
    }

    #[test]
    fn zeroed_memory_is_zero_even_after_reuse() {
        for _ in 0..3 {
            let mut b = Buffer::uninit(1 << 16).unwrap();
            b.bytes_mut().fill(0xff);
            drop(b);
            assert!(Buffer::zeroed(1 << 16).unwrap().bytes().iter().all(|&x| x == 0));
        }
    }

    #[test]
    fn more_than_there_is_is_an_error_with_the_figures() {
        // More than the machine has; more than can be addressed; more than can be rounded up to a size class.
        for len in [1 << 46, isize::MAX as usize, usize::MAX] {
            for buffer in [Buffer::uninit(len), Buffer::zeroed(len)] {
                let Err(Error::OutOfMemory { device: Device::Cpu, asked, free, total }) = buffer
                else {
                    panic!("{len} bytes")
                };
                assert!(asked >= len as u64, "{asked}");
                if cfg!(target_os = "linux") {
                    assert!(free.unwrap() < asked && total.unwrap() < asked, "{free:?} {total:?}");
                }
            }
        }
    }
}
