//! Memory of CPU tensors: 64-byte aligned buffers, recycled through a pool.
//!
//! A denoising step frees and allocates the same sizes over and over; the pool keeps freed buffers by
//! size class, so that from the second step on nothing is asked of the system, whose fresh pages would be
//! zeroed and faulted in one by one. `NADIR_POOL=off` gives every tensor memory of its own.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{LazyLock, Mutex};

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

/// Free buffers by capacity, and the bytes they hold.
#[derive(Default)]
struct Pool {
    free: BTreeMap<usize, Vec<NonNull<u8>>>,
    held: usize,
}

// SAFETY: the pointers in the pool are owned by it alone.
unsafe impl Send for Pool {}

/// The pool keeps at most this much memory that nobody uses.
const MAX_HELD: usize = 1 << 30;

static POOL: LazyLock<Option<Mutex<Pool>>> = LazyLock::new(|| {
    let off = std::env::var("NADIR_POOL").is_ok_and(|v| v == "off");
    (!off).then(Mutex::default)
});

impl Buffer {
    /// `len` bytes of arbitrary content.
    pub(crate) fn uninit(len: usize) -> Self {
        let capacity = size_class(len);
        let recycled = POOL.as_ref().and_then(|pool| {
            let mut pool = pool.lock().unwrap_or_else(|e| e.into_inner());
            let ptr = pool.free.get_mut(&capacity)?.pop()?;
            pool.held -= capacity;
            Some(ptr)
        });
        let ptr = recycled.unwrap_or_else(|| Self::allocate(capacity));
        Self { ptr, len, capacity }
    }

    /// `len` zero bytes.
    pub(crate) fn zeroed(len: usize) -> Self {
        let capacity = size_class(len);
        Self { ptr: Self::allocate(capacity), len, capacity }
    }

    /// Zeroed memory. The system hands out large blocks lazily zeroed, so nothing is touched before it is
    /// written; that holds only for `calloc`, hence the natural alignment and the offset kept in front.
    fn allocate(capacity: usize) -> NonNull<u8> {
        let layout = layout(capacity);
        // SAFETY: the layout's size is not zero.
        let base = unsafe { alloc_zeroed(layout) };
        let offset = ALIGN - base as usize % ALIGN; // 16..=ALIGN: room for the byte that remembers it
        NonNull::new(base).map_or_else(
            || handle_alloc_error(layout),
            // SAFETY: 1 <= offset <= ALIGN, and the block is capacity + ALIGN long.
            |base| unsafe {
                base.add(offset - 1).write(offset as u8);
                base.add(offset)
            },
        )
    }

    /// Gives `ptr`, from [`Self::allocate`] with this capacity, back to the system.
    ///
    /// # Safety
    /// Nobody uses the memory any more, and it is freed once.
    unsafe fn free(ptr: NonNull<u8>, capacity: usize) {
        // SAFETY: `allocate` wrote the offset one byte in front, and allocated with this layout.
        unsafe {
            let offset = ptr.sub(1).read() as usize;
            dealloc(ptr.sub(offset).as_ptr(), layout(capacity));
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
        if let Some(pool) = POOL.as_ref() {
            let mut pool = pool.lock().unwrap_or_else(|e| e.into_inner());
            if pool.held + self.capacity <= MAX_HELD {
                pool.held += self.capacity;
                pool.free.entry(self.capacity).or_default().push(self.ptr);
                return;
            }
        }
        // SAFETY: self owns the memory and is being dropped.
        unsafe { Self::free(self.ptr, self.capacity) }
    }
}

/// Gives all memory that nobody uses back to the system. Worth a call after loading a model.
pub fn release_unused_memory() {
    let Some(pool) = POOL.as_ref() else { return };
    let mut pool = pool.lock().unwrap_or_else(|e| e.into_inner());
    let free = std::mem::take(&mut pool.free);
    pool.held = 0;
    for (capacity, pointers) in free {
        for ptr in pointers {
            // SAFETY: the pool owned the memory, and has let go of it above.
            unsafe { Buffer::free(ptr, capacity) }
        }
    }
}

/// Rounds up to a sixteenth of the next power of two, so that a class wastes at most 12.5 %.
fn size_class(len: usize) -> usize {
    let step = (len.next_power_of_two() / 16).max(ALIGN);
    len.max(1).next_multiple_of(step)
}

fn layout(capacity: usize) -> Layout {
    Layout::from_size_align(capacity + ALIGN, 16).expect("a tensor's size fits the address space")
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

    #[test]
    fn zeroed_memory_is_zero_even_after_reuse() {
        for _ in 0..3 {
            let mut b = Buffer::uninit(1 << 16);
            b.bytes_mut().fill(0xff);
            drop(b);
            assert!(Buffer::zeroed(1 << 16).bytes().iter().all(|&x| x == 0));
        }
    }
}
