//! Device memory: allocations, their definedness and who touched them in the running launch.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use super::fault::{Fault, FaultKind, Severity};
use super::shadow::GridCells;

/// First device address. Linux places no mapping of a process here.
const FIRST_ADDRESS: u64 = 0x1000_0000_0000;
/// Every allocation starts on such a boundary, as `cuMemAlloc` promises at least 256.
const ALIGNMENT: u64 = 512;
/// Addresses between allocations that belong to none, so that a small overrun hits nothing.
const GAP: u64 = 512;
/// What fresh memory holds: a signalling pattern that is no plausible value of any type.
const FRESH: u8 = 0xcb;

/// Allocations beyond this many bytes start as zeros.
const LARGE: u64 = 64 << 20;

/// Generic addresses of shared memory start here.
pub(crate) const SHARED_WINDOW: u64 = 1 << 56;
/// Generic addresses of a thread's local memory.
pub(crate) const LOCAL_WINDOW: u64 = 2 << 56;
/// Generic addresses of the kernel's parameters.
pub(crate) const PARAM_WINDOW: u64 = 3 << 56;

/// What an allocation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemoryKind {
    Device,
    /// Page-locked or managed host memory: its device address is its host address.
    Host,
    /// `.global` and `.const` variables of a module.
    Variable,
    Constant,
}

/// A range of device addresses with memory behind it.
pub(crate) struct Allocation {
    pub(crate) base: u64,
    pub(crate) size: u64,
    pub(crate) kind: MemoryKind,
    data: *mut u8,
    /// Backing memory owned by this allocation, in 16-byte units.
    owned: Option<Box<[u128]>>,
    /// Until a stream reaches the allocation, and after it reaches the free.
    pub(crate) live: AtomicBool,
    all_defined: AtomicBool,
    /// One byte a byte, 1 when defined; only consulted while `all_defined` is false.
    defined: OnceLock<Box<[AtomicU8]>>,
    /// Who touched it.
    cells: OnceLock<GridCells>,
}

// SAFETY: the memory behind `data` is owned by the allocation or by the host program, which the
// driver API makes responsible for it. Kernels access it through raw pointers only.
unsafe impl Send for Allocation {}
// SAFETY: see above; the rest is atomics.
unsafe impl Sync for Allocation {}

impl Allocation {
    pub(crate) fn end(&self) -> u64 {
        self.base + self.size
    }

    /// Host pointer to a device address inside the allocation. Lanes that a mask turns off may ask for any
    /// address; nobody follows their pointers.
    #[inline(always)]
    pub(crate) fn pointer(&self, address: u64) -> *mut u8 {
        self.data.wrapping_add(address.wrapping_sub(self.base) as usize)
    }

    pub(crate) fn is_all_defined(&self) -> bool {
        self.all_defined.load(Relaxed)
    }

    fn defined(&self) -> &[AtomicU8] {
        self.defined.get_or_init(|| {
            let fill = self.all_defined.load(Relaxed) as u8;
            zeroed_u8(self.size as usize, fill)
        })
    }

    /// Whether the byte at an address holds a defined value.
    pub(crate) fn is_defined(&self, address: u64) -> bool {
        self.all_defined.load(Relaxed)
            || self.defined()[(address - self.base) as usize].load(Relaxed) != 0
    }

    /// Marks bytes as defined or not.
    pub(crate) fn set_defined(&self, address: u64, bytes: u64, defined: bool) {
        if defined && bytes == self.size {
            self.all_defined.store(true, Relaxed);
            return;
        }
        if self.all_defined.load(Relaxed) {
            if defined {
                return;
            }
            self.defined().iter().for_each(|b| b.store(1, Relaxed));
            self.all_defined.store(false, Relaxed);
        }
        let start = (address - self.base) as usize;
        for byte in &self.defined()[start..start + bytes as usize] {
            byte.store(defined as u8, Relaxed);
        }
    }

    /// What is to be said about a copy of bytes to the host, where some of them are undefined. Structures
    /// have holes, of at most 15 bytes: those are a warning.
    pub(crate) fn undefined_copy(&self, address: u64, bytes: u64) -> Option<Fault> {
        if self.is_all_defined() {
            return None;
        }
        let start = (address - self.base) as usize;
        let (mut count, mut run, mut longest, mut first) = (0, 0, 0, None);
        for (i, byte) in self.defined()[start..start + bytes as usize].iter().enumerate() {
            run = if byte.load(Relaxed) == 0 { run + 1 } else { 0 };
            if run > 0 {
                count += 1;
                longest = longest.max(run);
                first.get_or_insert(i);
            }
        }
        let first = first?;
        let severity =
            if longest > 15 || count == bytes { Severity::Error } else { Severity::Warning };
        let message = format!(
            "copy to the host of {bytes} bytes at 0x{address:x} ({start} bytes into a {}-byte allocation), {count} of which nobody wrote; the first is byte {first}",
            self.size
        );
        Some(Fault::of_host(FaultKind::Undefined, severity, message))
    }

    pub(crate) fn cells(&self) -> &GridCells {
        self.cells.get_or_init(|| GridCells::new(self.size as usize))
    }
}

fn zeroed_u8(len: usize, fill: u8) -> Box<[AtomicU8]> {
    let bytes = vec![fill; len].into_boxed_slice();
    // SAFETY: AtomicU8 has the size and alignment of u8.
    unsafe { Box::from_raw(Box::into_raw(bytes) as *mut [AtomicU8]) }
}

/// Why an address range cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    Null,
    Freed {
        base: u64,
        size: u64,
    },
    /// Allocated, but not yet in stream order.
    NotYet {
        base: u64,
        size: u64,
    },
    /// The nearest allocation below, if there is one.
    Outside {
        below: Option<(u64, u64)>,
    },
}

impl Missing {
    /// What is wrong with `bytes` at `address`.
    pub(crate) fn explain(&self, address: u64, bytes: u64) -> String {
        match self {
            Self::Null => format!("address 0x{address:x} is NULL or close to it"),
            Self::Freed { base, size } => {
                format!(
                    "address 0x{address:x} is {} bytes into a {size}-byte allocation at 0x{base:x} that was freed",
                    address - base
                )
            }
            Self::NotYet { base, size } => format!(
                "address 0x{address:x} is in a {size}-byte allocation at 0x{base:x} that this stream is not ordered with"
            ),
            Self::Outside { below: Some((base, size)) } => {
                let end = base + size;
                let place = if address >= end {
                    format!("{} bytes past the end", address - end)
                } else {
                    format!("{} bytes before the end", end - address)
                };
                format!(
                    "{bytes} bytes at 0x{address:x} are {place} of the {size}-byte allocation at 0x{base:x}"
                )
            }
            Self::Outside { below: None } => format!("address 0x{address:x} is in no allocation"),
        }
    }
}

/// All of the device's memory.
pub(crate) struct Memory {
    live: BTreeMap<u64, Arc<Allocation>>,
    freed: BTreeMap<u64, u64>,
    next: u64,
    pub(crate) used: u64,
    pub(crate) total: u64,
}

impl Memory {
    pub(crate) fn new(total: u64) -> Self {
        Self { live: BTreeMap::new(), freed: BTreeMap::new(), next: FIRST_ADDRESS, used: 0, total }
    }

    /// Fresh memory, or `None` when the card has no more. Addresses are never used twice.
    pub(crate) fn allocate(&mut self, size: u64, kind: MemoryKind) -> Option<u64> {
        if size == 0 || size > self.total - self.used {
            return None;
        }
        let units = size.div_ceil(16) as usize;
        // Large memory comes from the system's zero pages, which cost nothing until they are touched.
        let mut owned = if size > LARGE {
            vec![0u128; units]
        } else {
            vec![u128::from_ne_bytes([FRESH; 16]); units]
        }
        .into_boxed_slice();
        let base = self.next;
        self.next = (base + size + GAP).next_multiple_of(ALIGNMENT);
        self.used += size;
        let data = owned.as_mut_ptr().cast();
        let allocation = Allocation {
            base,
            size,
            kind,
            data,
            owned: Some(owned),
            live: AtomicBool::new(true),
            all_defined: AtomicBool::new(false),
            defined: OnceLock::new(),
            cells: OnceLock::new(),
        };
        self.live.insert(base, Arc::new(allocation));
        Some(base)
    }

    /// Makes host memory usable by kernels under its own address.
    pub(crate) fn register_host(&mut self, data: *mut u8, size: u64) {
        let allocation = Allocation {
            base: data as u64,
            size,
            kind: MemoryKind::Host,
            data,
            owned: None,
            live: AtomicBool::new(true),
            all_defined: AtomicBool::new(true),
            defined: OnceLock::new(),
            cells: OnceLock::new(),
        };
        self.freed.remove(&(data as u64));
        self.live.insert(data as u64, Arc::new(allocation));
    }

    /// Ends an allocation that starts at `base`; false when there is none.
    pub(crate) fn free(&mut self, base: u64) -> bool {
        let Some(allocation) = self.live.remove(&base) else { return false };
        allocation.live.store(false, Relaxed);
        if allocation.owned.is_some() {
            self.used -= allocation.size;
        }
        self.freed.insert(base, allocation.size);
        true
    }

    /// The allocation that holds an address.
    pub(crate) fn find(&self, address: u64) -> Option<&Arc<Allocation>> {
        let (_, allocation) = self.live.range(..=address).next_back()?;
        (address < allocation.end()).then_some(allocation)
    }

    /// The allocation that holds all of a range.
    pub(crate) fn range(&self, address: u64, bytes: u64) -> Result<&Arc<Allocation>, Missing> {
        match self.find(address) {
            Some(a) if bytes <= a.end() - address => Ok(a),
            _ => Err(self.missing(address)),
        }
    }

    /// As `range`, where the allocation has begun and not ended in the order of streams.
    pub(crate) fn live_range(&self, address: u64, bytes: u64) -> Result<&Arc<Allocation>, Missing> {
        let allocation = self.range(address, bytes)?;
        match allocation.live.load(Relaxed) {
            true => Ok(allocation),
            false => Err(Missing::NotYet { base: allocation.base, size: allocation.size }),
        }
    }

    /// Why there is nothing at an address.
    pub(crate) fn missing(&self, address: u64) -> Missing {
        if address < 1 << 16 {
            return Missing::Null;
        }
        if let Some((base, size)) = self.freed.range(..=address).next_back()
            && address - base < *size
        {
            return Missing::Freed { base: *base, size: *size };
        }
        Missing::Outside {
            below: self.live.range(..=address).next_back().map(|(base, a)| (*base, a.size)),
        }
    }

    /// Everything that lives, in the order of addresses, for the duration of a launch.
    pub(crate) fn snapshot(&self) -> Vec<Arc<Allocation>> {
        self.live.values().cloned().collect()
    }

    /// Forgets who touched what.
    pub(crate) fn clear_cells(&self) {
        self.live.values().filter_map(|a| a.cells.get()).for_each(GridCells::clear);
    }
}
