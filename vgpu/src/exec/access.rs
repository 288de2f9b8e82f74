//! Loads and stores of a warp, with every check they have to pass.

use super::Env;
use super::block::BlockCore;
use super::counters::Stats;
use super::fault::FaultKind;
use super::memory::{Allocation, Kind, LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};
use super::shadow::{Access, Conflict};
use super::warp::{ALL, Checked, Warp, found, lanes};
use crate::isa::lanes::LANES;
use crate::isa::{Address, MemorySpace, Order, Transfer, ZERO};

/// Where the lanes of a warp access memory: host pointers, and the allocation behind each.
pub(crate) struct Places {
    pub(crate) pointers: [*mut u8; LANES],
    /// Index of the allocation, for global memory.
    pub(crate) owners: [u32; LANES],
    /// Whether all lanes use the same allocation.
    pub(crate) uniform: bool,
}

/// Undefined bits of `bytes` bytes whose definedness (1 or 0 each) is given.
pub(crate) fn undefined_bits(defined: impl Iterator<Item = bool>) -> u64 {
    defined
        .enumerate()
        .fold(0, |bits, (i, is_defined)| if is_defined { bits } else { bits | 0xff << (8 * i) })
}

/// Reads an element of 1, 2, 4 or 8 bytes and extends it.
///
/// # Safety
/// The bytes must lie in memory that is alive.
#[inline(always)]
unsafe fn read(p: *const u8, size: usize, signed: bool) -> u64 {
    // SAFETY: as the caller promises.
    unsafe {
        match (size, signed) {
            (8, _) => p.cast::<u64>().read_unaligned(),
            (4, true) => p.cast::<i32>().read_unaligned() as i64 as u64,
            (4, false) => p.cast::<u32>().read_unaligned() as u64,
            (2, true) => p.cast::<i16>().read_unaligned() as i64 as u64,
            (2, false) => p.cast::<u16>().read_unaligned() as u64,
            (_, true) => p.cast::<i8>().read() as i64 as u64,
            (_, false) => p.read() as u64,
        }
    }
}

/// Marks a few bytes as defined; the usual sizes need no call.
#[inline(always)]
pub(crate) fn set_defined(flags: &mut [u8], at: usize, bytes: usize) {
    let flags = &mut flags[at..at + bytes];
    match flags.len() {
        16 => flags[..16].fill(1),
        8 => flags[..8].fill(1),
        4 => flags[..4].fill(1),
        _ => flags.iter_mut().for_each(|flag| *flag = 1),
    }
}

/// Whether a few bytes are all defined.
#[inline(always)]
pub(crate) fn all_defined(flags: &[u8], at: usize, bytes: usize) -> bool {
    let flags = &flags[at..at + bytes];
    match flags.len() {
        16 => flags[..16] == [1; 16],
        8 => flags[..8] == [1; 8],
        4 => flags[..4] == [1; 4],
        _ => flags.iter().all(|flag| *flag != 0),
    }
}

/// An access as messages name it.
pub(crate) fn describe(bytes: usize, what: &str, space: &str) -> String {
    format!("{bytes}-byte {what} {space} memory")
}

impl Warp {
    /// Addresses of the lanes; undefined ones are reported.
    #[inline(always)]
    pub(crate) fn addresses(&self, env: &Env, at: &Address, mask: u32) -> Checked<[u64; LANES]> {
        if env.checks {
            let dirty = self.undef[at.base as usize] & mask;
            if dirty != 0 {
                return found(
                    FaultKind::Undefined,
                    dirty.trailing_zeros() as usize,
                    "the address is undefined",
                );
            }
        }
        Ok(if at.wide {
            let base = self.wide(at.base);
            std::array::from_fn(|i| base[i].wrapping_add(at.offset as u64))
        } else {
            let base = self.narrow(at.base);
            std::array::from_fn(|i| base[i].wrapping_add(at.offset as u32) as u64)
        })
    }

    /// Takes the lanes of one state space out of `left`; generic addresses become addresses of that space.
    #[inline(always)]
    pub(crate) fn take_space(
        space: MemorySpace,
        addresses: &mut [u64; LANES],
        left: &mut u32,
    ) -> (MemorySpace, u32) {
        if space != MemorySpace::Generic {
            return (space, std::mem::take(left));
        }
        let window = |address: u64| address >> 56;
        let first = window(addresses[left.trailing_zeros() as usize]);
        let mask =
            lanes(*left).filter(|l| window(addresses[*l]) == first).fold(0, |m, l| m | 1 << l);
        *left &= !mask;
        let (space, base) = match first {
            1 => (MemorySpace::Shared, SHARED_WINDOW),
            2 => (MemorySpace::Local, LOCAL_WINDOW),
            3 => (MemorySpace::Param, PARAM_WINDOW),
            _ => (MemorySpace::Global, 0),
        };
        for lane in lanes(mask) {
            addresses[lane] -= base;
        }
        (space, mask)
    }

    /// Resolves global addresses: alignment, bounds, lifetime.
    #[inline(always)]
    pub(crate) fn global_places(
        &self,
        env: &Env,
        core: &mut BlockCore,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: usize,
        what: &str,
    ) -> Checked<Places> {
        self.check_alignment(addresses, mask, bytes, what, "global")?;
        let (mut low, mut high) = (u64::MAX, 0);
        for lane in 0..LANES {
            let off = mask >> lane & 1 == 0;
            low = low.min(if off { u64::MAX } else { addresses[lane] });
            high = high.max(if off { 0 } else { addresses[lane] });
        }
        let covers =
            |a: &Allocation| low >= a.base && high < a.end() && bytes as u64 <= a.end() - high;
        let recent = core.recent.min(env.allocations.len().wrapping_sub(1));
        let hit =
            env.allocations.get(recent).filter(|a| covers(a)).map(|a| (recent, a)).or_else(|| {
                let at = env.allocations.partition_point(|a| a.base <= low).checked_sub(1)?;
                env.allocations.get(at).filter(|a| covers(a)).map(|a| (at, a))
            });
        if let Some((at, allocation)) = hit
            && allocation.live.load(std::sync::atomic::Ordering::Relaxed)
        {
            core.recent = at;
            // Nothing looks at the pointers of lanes outside the mask.
            return Ok(Places {
                pointers: addresses.map(|address| allocation.pointer(address)),
                owners: [at as u32; LANES],
                uniform: true,
            });
        }
        self.scattered_places(env, addresses, mask, bytes, what)
    }

    /// Resolves global addresses in several allocations, or in none.
    #[inline(never)]
    fn scattered_places(
        &self,
        env: &Env,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: usize,
        what: &str,
    ) -> Checked<Places> {
        let mut places =
            Places { pointers: [std::ptr::null_mut(); LANES], owners: [0; LANES], uniform: false };
        for lane in lanes(mask) {
            let address = addresses[lane];
            let at = env.allocations.partition_point(|a| a.base <= address).checked_sub(1);
            let allocation = at
                .and_then(|at| env.allocations.get(at))
                .filter(|a| address < a.end() && bytes as u64 <= a.end() - address);
            match allocation {
                Some(a) if a.live.load(std::sync::atomic::Ordering::Relaxed) => {
                    places.pointers[lane] = a.pointer(address);
                    places.owners[lane] = at.unwrap_or(0) as u32;
                }
                _ => return self.missing(env, address, bytes, lane, what),
            }
        }
        Ok(places)
    }

    fn missing<T>(
        &self,
        env: &Env,
        address: u64,
        bytes: usize,
        lane: usize,
        what: &str,
    ) -> Checked<T> {
        use super::memory::Missing;
        let missing = match env.memory.find(address) {
            Some(a) if !a.live.load(std::sync::atomic::Ordering::Relaxed) => {
                Missing::NotYet { base: a.base, size: a.size }
            }
            _ => env.memory.missing(address),
        };
        let kind = match missing {
            Missing::Null => FaultKind::NullPointer,
            Missing::Freed { .. } | Missing::NotYet { .. } => FaultKind::UseAfterFree,
            Missing::Outside { .. } => FaultKind::OutOfBounds,
        };
        found(
            kind,
            lane,
            format!(
                "{}: {}",
                describe(bytes, what, "global"),
                missing.explain(address, bytes as u64)
            ),
        )
    }

    #[inline(always)]
    fn check_alignment(
        &self,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: usize,
        what: &str,
        space: &str,
    ) -> Checked<()> {
        let mut low_bits = 0;
        for lane in 0..LANES {
            low_bits |= if mask >> lane & 1 != 0 { addresses[lane] } else { 0 };
        }
        if low_bits & (bytes as u64 - 1) == 0 {
            return Ok(());
        }
        self.misaligned(addresses, mask, bytes, what, space)
    }

    #[cold]
    #[inline(never)]
    fn misaligned(
        &self,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: usize,
        what: &str,
        space: &str,
    ) -> Checked<()> {
        let lane = lanes(mask).find(|l| addresses[*l] & (bytes as u64 - 1) != 0).unwrap_or(0);
        let message = format!(
            "{} at 0x{:x}, which is not a multiple of {bytes}",
            describe(bytes, what, space),
            addresses[lane]
        );
        found(FaultKind::Misaligned, lane, message)
    }

    /// Checks addresses of a bounded space: shared, local or parameters.
    #[inline(always)]
    pub(crate) fn check_bounds(
        &self,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: usize,
        limit: usize,
        what: &str,
        space: &str,
    ) -> Checked<()> {
        self.check_alignment(addresses, mask, bytes, what, space)?;
        let mut high = 0;
        for lane in 0..LANES {
            high = if mask >> lane & 1 != 0 { addresses[lane].max(high) } else { high };
        }
        if limit >= bytes && high <= (limit - bytes) as u64 {
            return Ok(());
        }
        self.outside(addresses, mask, bytes, limit, what, space)
    }

    #[cold]
    #[inline(never)]
    fn outside(
        &self,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: usize,
        limit: usize,
        what: &str,
        space: &str,
    ) -> Checked<()> {
        let lane = lanes(mask)
            .find(|l| limit < bytes || addresses[*l] > (limit - bytes) as u64)
            .unwrap_or(0);
        let kind =
            if space == "shared" { FaultKind::SharedOutOfBounds } else { FaultKind::OutOfBounds };
        let message = format!(
            "{} at offset {} of {limit} bytes",
            describe(bytes, what, space),
            addresses[lane] as i64
        );
        found(kind, lane, message)
    }

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
    fn global_race(
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

    #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
    pub(crate) fn load(
        &mut self,
        env: &Env,
        core: &mut BlockCore,
        stats: &mut Stats,
        t: &Transfer,
        mask: u32,
    ) -> Checked<()> {
        let mut addresses = self.addresses(env, &t.at, mask)?;
        let size = t.size as usize;
        let bytes = size * t.regs.len();
        let strong = t.order != Order::Weak;
        self.polled |= strong;
        let mut left = mask;
        while left != 0 {
            let (space, lanes_here) = Self::take_space(t.at.space, &mut addresses, &mut left);
            match space {
                MemorySpace::Shared => {
                    self.check_bounds(
                        &addresses,
                        lanes_here,
                        bytes,
                        core.shared.len(),
                        "load from",
                        "shared",
                    )?;
                    if env.checks {
                        if strong {
                            for lane in lanes(lanes_here) {
                                core.synchronise(
                                    env,
                                    self,
                                    SHARED_WINDOW + addresses[lane],
                                    true,
                                    false,
                                    t.order,
                                );
                            }
                        } else {
                            self.touch_shared(
                                env,
                                core,
                                &addresses,
                                lanes_here,
                                bytes,
                                Access::Read,
                            )?;
                        }
                    }
                    if env.counting {
                        let used: Vec<u32> =
                            lanes(lanes_here).map(|l| addresses[l] as u32).collect();
                        stats.shared(self.pc as usize, &used, bytes as u32);
                    }
                    let base = core.shared.as_mut_ptr();
                    let pointers =
                        std::array::from_fn(|l| base.wrapping_add(addresses[l] as usize));
                    self.gather(t, &pointers, lanes_here);
                    if env.checks {
                        let defined = &core.shared_defined;
                        let is_clear =
                            |lane: usize| all_defined(defined, addresses[lane] as usize, bytes);
                        if lanes(lanes_here).all(is_clear) {
                            self.define(t, lanes_here);
                        } else {
                            self.load_defined(t, lanes_here, |lane, i| {
                                defined[addresses[lane] as usize + i] != 0
                            });
                        }
                    }
                }
                MemorySpace::Local => {
                    let limit = self.local.len() / LANES;
                    self.check_bounds(&addresses, lanes_here, bytes, limit, "load from", "local")?;
                    let base = self.local.as_mut_ptr();
                    let pointers = std::array::from_fn(|l| {
                        base.wrapping_add((l * limit).wrapping_add(addresses[l] as usize))
                    });
                    self.gather(t, &pointers, lanes_here);
                    if env.checks {
                        let defined = std::mem::take(&mut self.local_defined);
                        self.load_defined(t, lanes_here, |lane, i| {
                            defined[lane * limit + addresses[lane] as usize + i] != 0
                        });
                        self.local_defined = defined;
                    }
                }
                MemorySpace::Param => {
                    self.check_bounds(
                        &addresses,
                        lanes_here,
                        bytes,
                        env.params.len(),
                        "load from",
                        "parameter",
                    )?;
                    let base = env.params.as_ptr() as *mut u8;
                    if t.at.base == ZERO {
                        // All lanes read the same, and that was found to be inside the parameters.
                        let at = addresses[lanes_here.trailing_zeros() as usize] as usize;
                        self.broadcast(t, base.wrapping_add(at), lanes_here);
                    } else {
                        let pointers =
                            std::array::from_fn(|l| base.wrapping_add(addresses[l] as usize));
                        self.gather(t, &pointers, lanes_here);
                    }
                    self.define(t, lanes_here);
                }
                _ => {
                    let places =
                        self.global_places(env, core, &addresses, lanes_here, bytes, "load from")?;
                    if env.counting {
                        stats.global(
                            self.pc as usize,
                            lanes(lanes_here).map(|l| addresses[l]),
                            bytes as u64,
                        );
                    }
                    if env.checks {
                        if strong {
                            for lane in lanes(lanes_here) {
                                core.synchronise(env, self, addresses[lane], true, false, t.order);
                            }
                        } else if env.races {
                            self.touch_global(
                                env,
                                core,
                                &places,
                                &addresses,
                                lanes_here,
                                bytes,
                                Access::Read,
                            )?;
                        }
                    }
                    self.gather(t, &places.pointers, lanes_here);
                    if env.checks {
                        let first = lanes_here.trailing_zeros() as usize;
                        let all_defined = places.uniform
                            && env.allocations[places.owners[first] as usize].is_all_defined();
                        if all_defined {
                            self.define(t, lanes_here);
                        } else {
                            self.load_defined(t, lanes_here, |lane, i| {
                                env.allocations[places.owners[lane] as usize]
                                    .is_defined(addresses[lane] + i as u64)
                            });
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads each lane's elements from its pointer.
    #[inline(always)]
    fn gather(&mut self, t: &Transfer, pointers: &[*mut u8; LANES], mask: u32) {
        let size = t.size as usize;
        for (element, r) in t.regs.iter().enumerate() {
            let offset = element * size;
            if t.wide {
                let mut out = [0u64; LANES];
                for lane in lanes(mask) {
                    let p = pointers[lane].wrapping_add(offset);
                    // SAFETY: the caller checked that the access is inside memory that is alive.
                    out[lane] = unsafe { read(p, size, t.signed) };
                }
                self.put_wide(*r, &out, mask);
                continue;
            }
            let mut out = [0u32; LANES];
            match (size, t.signed) {
                (4, _) if mask == ALL => {
                    for lane in 0..LANES {
                        // SAFETY: as above.
                        out[lane] = unsafe {
                            pointers[lane].wrapping_add(offset).cast::<u32>().read_unaligned()
                        };
                    }
                }
                _ => {
                    for lane in lanes(mask) {
                        let p = pointers[lane].wrapping_add(offset);
                        // SAFETY: as above.
                        out[lane] = unsafe { read(p, size, t.signed) as u32 };
                    }
                }
            }
            self.put(*r, &out, mask);
        }
    }

    /// Reads the elements at one pointer into all lanes of a mask.
    #[inline(always)]
    fn broadcast(&mut self, t: &Transfer, from: *mut u8, mask: u32) {
        for (element, r) in t.regs.iter().enumerate() {
            let size = t.size as usize;
            // SAFETY: the caller checked that the access is inside memory that is alive.
            let value = unsafe { read(from.wrapping_add(element * size), size, t.signed) };
            if t.wide {
                self.put_wide(*r, &[value; LANES], mask);
            } else {
                self.put(*r, &[value as u32; LANES], mask);
            }
        }
    }

    /// Marks loaded registers as defined.
    fn define(&mut self, t: &Transfer, mask: u32) {
        for r in &t.regs {
            self.undef[*r as usize] &= !mask;
        }
    }

    /// Definedness of loaded registers, from that of their bytes.
    fn load_defined(&mut self, t: &Transfer, mask: u32, is_defined: impl Fn(usize, usize) -> bool) {
        let size = t.size as usize;
        for (element, r) in t.regs.iter().enumerate() {
            let mut dirty = 0;
            for lane in lanes(mask) {
                dirty |= (!(0..size).all(|i| is_defined(lane, element * size + i)) as u32) << lane;
            }
            self.undef[*r as usize] &= !mask;
            for lane in lanes(dirty) {
                let mut bits =
                    undefined_bits((0..size).map(|i| is_defined(lane, element * size + i)));
                let top = size * 8 - 1;
                if t.signed && size < 8 && bits >> top & 1 != 0 {
                    bits |= u64::MAX << top;
                }
                if !t.wide {
                    bits &= u32::MAX as u64;
                }
                self.shadow_set(*r, t.wide, lane, bits);
            }
        }
    }

    #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
    pub(crate) fn store(
        &mut self,
        env: &Env,
        core: &mut BlockCore,
        stats: &mut Stats,
        t: &Transfer,
        mask: u32,
    ) -> Checked<()> {
        let mut addresses = self.addresses(env, &t.at, mask)?;
        let size = t.size as usize;
        let bytes = size * t.regs.len();
        let strong = t.order != Order::Weak;
        let access = if strong { Access::Atomic } else { Access::Write };
        let dirty = if env.checks {
            t.regs.iter().fold(0, |m, r| m | self.undef[*r as usize]) & mask
        } else {
            0
        };
        let mut left = mask;
        while left != 0 {
            let (space, here) = Self::take_space(t.at.space, &mut addresses, &mut left);
            match space {
                MemorySpace::Shared => {
                    self.check_bounds(
                        &addresses,
                        here,
                        bytes,
                        core.shared.len(),
                        "store to",
                        "shared",
                    )?;
                    if env.checks {
                        self.touch_shared(env, core, &addresses, here, bytes, access)?;
                        if strong {
                            for lane in lanes(here) {
                                core.synchronise(
                                    env,
                                    self,
                                    SHARED_WINDOW + addresses[lane],
                                    false,
                                    true,
                                    t.order,
                                );
                            }
                        }
                    }
                    if env.counting {
                        let used: Vec<u32> = lanes(here).map(|l| addresses[l] as u32).collect();
                        stats.shared(self.pc as usize, &used, bytes as u32);
                    }
                    let base = core.shared.as_mut_ptr();
                    let pointers =
                        std::array::from_fn(|l| base.wrapping_add(addresses[l] as usize));
                    self.scatter(t, &pointers, here);
                    if env.checks {
                        let defined = &mut core.shared_defined;
                        if dirty & here == 0 {
                            for lane in lanes(here) {
                                set_defined(defined, addresses[lane] as usize, bytes);
                            }
                        } else {
                            self.store_defined(t, here, dirty, |lane, i, on| {
                                defined[addresses[lane] as usize + i] = on
                            });
                        }
                    }
                }
                MemorySpace::Local => {
                    let limit = self.local.len() / LANES;
                    self.check_bounds(&addresses, here, bytes, limit, "store to", "local")?;
                    let base = self.local.as_mut_ptr();
                    let pointers = std::array::from_fn(|l| {
                        base.wrapping_add((l * limit).wrapping_add(addresses[l] as usize))
                    });
                    self.scatter(t, &pointers, here);
                    if env.checks {
                        let mut defined = std::mem::take(&mut self.local_defined);
                        self.store_defined(t, here, dirty, |lane, i, on| {
                            defined[lane * limit + addresses[lane] as usize + i] = on
                        });
                        self.local_defined = defined;
                    }
                }
                MemorySpace::Param => {
                    return found(
                        FaultKind::IllegalInstruction,
                        here.trailing_zeros() as usize,
                        "store to a kernel parameter",
                    );
                }
                _ => {
                    let places =
                        self.global_places(env, core, &addresses, here, bytes, "store to")?;
                    let is_constant = |lane: usize| {
                        env.allocations[places.owners[lane] as usize].kind == Kind::Constant
                    };
                    let first = here.trailing_zeros() as usize;
                    let suspects = if places.uniform { 1 << first } else { here };
                    if let Some(lane) = lanes(suspects).find(|l| is_constant(*l)) {
                        return found(FaultKind::OutOfBounds, lane, "store to constant memory");
                    }
                    if env.counting {
                        stats.global(
                            self.pc as usize,
                            lanes(here).map(|l| addresses[l]),
                            bytes as u64,
                        );
                    }
                    if env.checks {
                        self.check_stored(t, dirty & here)?;
                        if env.races {
                            self.touch_global(env, core, &places, &addresses, here, bytes, access)?;
                        }
                        if strong {
                            for lane in lanes(here) {
                                core.synchronise(env, self, addresses[lane], false, true, t.order);
                            }
                        }
                    }
                    self.scatter(t, &places.pointers, here);
                    if env.checks {
                        self.define_global(env, &places, &addresses, here, bytes);
                        for lane in lanes(dirty & here) {
                            let allocation = &env.allocations[places.owners[lane] as usize];
                            for (element, r) in t.regs.iter().enumerate() {
                                let bits = self.shadow_get(*r, t.wide, lane);
                                for i in (0..size).filter(|i| bits >> (8 * i) & 0xff != 0) {
                                    allocation.set_defined(
                                        addresses[lane] + (element * size + i) as u64,
                                        1,
                                        false,
                                    );
                                }
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Marks the bytes of these lanes as defined.
    pub(crate) fn define_global(
        &self,
        env: &Env,
        places: &Places,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: usize,
    ) {
        let first = mask.trailing_zeros() as usize;
        if places.uniform && env.allocations[places.owners[first] as usize].is_all_defined() {
            return;
        }
        for lane in lanes(mask) {
            env.allocations[places.owners[lane] as usize].set_defined(
                addresses[lane],
                bytes as u64,
                true,
            );
        }
    }

    /// A value without one defined bit must not reach global memory. Partly defined ones may: packed
    /// structures have holes.
    fn check_stored(&self, t: &Transfer, dirty: u32) -> Checked<()> {
        let all = if t.size == 8 { u64::MAX } else { (1 << (t.size * 8)) - 1 };
        for lane in lanes(dirty) {
            for (element, r) in t.regs.iter().enumerate() {
                if self.shadow_get(*r, t.wide, lane) & all == all {
                    let which = if t.regs.len() > 1 {
                        format!("element {element} of ")
                    } else {
                        String::new()
                    };
                    return found(
                        FaultKind::Undefined,
                        lane,
                        format!("{which}the value stored to global memory is undefined"),
                    );
                }
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn scatter(&self, t: &Transfer, pointers: &[*mut u8; LANES], mask: u32) {
        let size = t.size as usize;
        for (element, r) in t.regs.iter().enumerate() {
            let offset = element * size;
            if size == 8 {
                let values = self.wide(*r);
                for lane in lanes(mask) {
                    // SAFETY: the caller checked that the access is inside memory that is alive.
                    unsafe {
                        pointers[lane]
                            .wrapping_add(offset)
                            .cast::<u64>()
                            .write_unaligned(values[lane])
                    };
                }
                continue;
            }
            let values = self.narrow(*r);
            if size == 4 && mask == ALL {
                for lane in 0..LANES {
                    let p = pointers[lane].wrapping_add(offset);
                    // SAFETY: as above.
                    unsafe { p.cast::<u32>().write_unaligned(values[lane]) };
                }
                continue;
            }
            for lane in lanes(mask) {
                let p = pointers[lane].wrapping_add(offset);
                // SAFETY: as above.
                unsafe {
                    match size {
                        4 => p.cast::<u32>().write_unaligned(values[lane]),
                        2 => p.cast::<u16>().write_unaligned(values[lane] as u16),
                        _ => p.write(values[lane] as u8),
                    }
                }
            }
        }
    }

    fn store_defined(
        &self,
        t: &Transfer,
        mask: u32,
        dirty: u32,
        mut set: impl FnMut(usize, usize, u8),
    ) {
        let size = t.size as usize;
        for lane in lanes(mask) {
            for (element, r) in t.regs.iter().enumerate() {
                let bits =
                    if dirty >> lane & 1 != 0 { self.shadow_get(*r, t.wide, lane) } else { 0 };
                for i in 0..size {
                    set(lane, element * size + i, (bits >> (8 * i) & 0xff == 0) as u8);
                }
            }
        }
    }
}
