//! Allocation, copies, fills, page-locked host memory, pools.

use std::alloc::Layout;
use std::ffi::{c_int, c_uint, c_void};

use super::error::{self, Code};
use super::queue::{Place, Work, checksum};
use super::state::{HostBlock, LEGACY, State};
use super::{DevicePtr, Handle, Outcome, api, put, with_context};
use crate::exec::MemoryKind;

/// `CU_MEM_HOST...` memory is aligned to pages.
const PAGE: usize = 4096;

/// `CUDA_MEMCPY2D`.
#[repr(C)]
pub struct Copy2d {
    src_x_bytes: usize,
    src_y: usize,
    src_type: c_uint,
    src_host: *const c_void,
    src_device: DevicePtr,
    src_array: *mut c_void,
    src_pitch: usize,
    dst_x_bytes: usize,
    dst_y: usize,
    dst_type: c_uint,
    dst_host: *mut c_void,
    dst_device: DevicePtr,
    dst_array: *mut c_void,
    dst_pitch: usize,
    width_bytes: usize,
    height: usize,
}

impl State {
    /// Page-locked memory that holds a host range.
    fn pinned(&self, pointer: u64, bytes: usize) -> bool {
        self.host
            .range(..=pointer)
            .next_back()
            .is_some_and(|(base, block)| pointer + bytes as u64 <= base + block.size as u64)
    }

    /// An address as an end of a copy: host memory under its own address is host memory.
    fn place(&self, address: u64) -> Place {
        if self.memory.find(address).is_some_and(|a| a.kind != MemoryKind::Host) {
            Place::Device(address)
        } else {
            Place::Host(address as *mut u8)
        }
    }

    /// Makes sure that a range lies in one allocation before a copy of it is accepted.
    fn check_range(&self, address: u64, bytes: usize) -> Outcome {
        if bytes == 0 {
            return Ok(());
        }
        match self.memory.range(address, bytes as u64) {
            Ok(_) => Ok(()),
            Err(missing) => {
                eprintln!("vgpu: copy refused: {}", missing.explain(address, bytes as u64));
                Err(error::INVALID_VALUE)
            }
        }
    }

    /// A copy that is over when the call returns.
    fn copy_now(&mut self, to: Place, from: Place, bytes: usize) -> Outcome {
        self.forbid_while_capturing()?;
        if bytes == 0 {
            return Ok(());
        }
        self.synchronise(LEGACY)?;
        self.wait_for_blocking_streams()?;
        self.copy(&to, &from, bytes, None)
    }

    /// What a call on the legacy stream waits for.
    pub(crate) fn wait_for_blocking_streams(&mut self) -> Outcome {
        let blocking: Vec<u64> =
            self.streams.iter().filter(|(_, s)| !s.non_blocking).map(|(id, _)| *id).collect();
        for id in blocking {
            self.synchronise(id)?;
        }
        Ok(())
    }

    /// A copy in stream order. Pageable host memory is read before the call returns and written before it
    /// returns; page-locked memory when the copy's turn has come.
    fn copy_in_stream(&mut self, to: Place, from: Place, bytes: usize, stream: Handle) -> Outcome {
        let stream = self.stream_id(stream)?;
        if bytes == 0 {
            return Ok(());
        }
        let capturing = self.streams.get(&stream).is_some_and(|s| s.capturing.is_some());
        let mut expected = None;
        let from = match from {
            Place::Host(pointer) if !capturing => {
                if self.pinned(pointer as u64, bytes) {
                    // SAFETY: page-locked memory that the program gave to be read.
                    expected = Some(unsafe { checksum(pointer, bytes) })
                        .filter(|_| self.settings.checks.host);
                    Place::Host(pointer)
                } else {
                    // SAFETY: host memory that the program gave to be read.
                    Place::Staged(unsafe { std::slice::from_raw_parts(pointer, bytes) }.into())
                }
            }
            other => other,
        };
        let pageable_target =
            matches!(to, Place::Host(pointer) if !self.pinned(pointer as u64, bytes));
        self.enqueue(stream, Work::Copy { to, from, bytes, checksum: expected })?;
        if pageable_target && !capturing { self.synchronise(stream) } else { Ok(()) }
    }

    fn fill(
        &mut self,
        to: u64,
        value: u32,
        width: usize,
        count: usize,
        rows: usize,
        pitch: usize,
        stream: Option<Handle>,
    ) -> Outcome {
        if count == 0 || rows == 0 {
            return Ok(());
        }
        if !to.is_multiple_of(width as u64) {
            return Err(error::INVALID_VALUE);
        }
        let span = (rows - 1)
            .checked_mul(pitch)
            .and_then(|s| s.checked_add(count.checked_mul(width)?))
            .ok_or(error::INVALID_VALUE)?;
        self.check_range(to, span)?;
        let work = Work::Set { to, value, width, count, rows, pitch };
        match stream {
            Some(stream) => {
                let stream = self.stream_id(stream)?;
                self.enqueue(stream, work)
            }
            None => {
                self.forbid_while_capturing()?;
                self.enqueue(LEGACY, work)
            }
        }
    }

    fn allocate(&mut self, out: *mut DevicePtr, bytes: usize) -> Outcome {
        if bytes == 0 || out.is_null() {
            return Err(error::INVALID_VALUE);
        }
        self.failures.allocation()?;
        let address =
            self.memory.allocate(bytes as u64, MemoryKind::Device).ok_or(error::OUT_OF_MEMORY)?;
        // SAFETY: the program's pointer.
        unsafe { put(out, address) }
    }

    fn allocate_in_stream(&mut self, out: *mut DevicePtr, bytes: usize, stream: Handle) -> Outcome {
        let stream = self.stream_id(stream)?;
        if self.captured_graph(stream).is_some() {
            if bytes == 0 || out.is_null() {
                return Err(error::INVALID_VALUE);
            }
            let address = self.capture_allocation(stream, bytes)?;
            // SAFETY: the program's pointer.
            return unsafe { put(out, address) };
        }
        self.allocate(out, bytes)?;
        // SAFETY: just written.
        let address = unsafe { out.read() };
        if let Some(allocation) = self.memory.find(address) {
            allocation.live.store(false, std::sync::atomic::Ordering::Relaxed);
        }
        self.enqueue(stream, Work::Allocate(address))
    }

    fn allocate_host(
        &mut self,
        out: *mut *mut c_void,
        bytes: usize,
        flags: u32,
        is_managed: bool,
    ) -> Outcome {
        if bytes == 0 || out.is_null() {
            return Err(error::INVALID_VALUE);
        }
        let layout = Layout::from_size_align(bytes, PAGE).map_err(|_| error::INVALID_VALUE)?;
        self.failures.allocation()?;
        // SAFETY: the size is not zero.
        let pointer = unsafe { std::alloc::alloc_zeroed(layout) };
        if pointer.is_null() {
            return Err(error::OUT_OF_MEMORY);
        }
        self.host.insert(
            pointer as u64,
            HostBlock { size: bytes, flags, owned: Some(layout), is_managed },
        );
        self.memory.register_host(pointer, bytes as u64);
        // SAFETY: the program's pointer.
        unsafe { put(out, pointer.cast()) }
    }

    fn free_host(&mut self, pointer: u64) -> Outcome {
        match self.host.get(&pointer) {
            Some(block) if block.owned.is_some() => {}
            _ => return Err(error::INVALID_VALUE),
        }
        self.synchronise_all()?;
        if let Some(HostBlock { owned: Some(layout), .. }) = self.host.remove(&pointer) {
            self.memory.free(pointer);
            // SAFETY: allocated by `allocate_host` with this layout.
            unsafe { std::alloc::dealloc(pointer as *mut u8, layout) };
        }
        Ok(())
    }
}

/// `cuPointerGetAttribute` of one attribute.
pub(super) fn pointer_attribute(
    state: &State,
    out: *mut c_void,
    attribute: c_int,
    pointer: u64,
) -> Outcome {
    let allocation = state.memory.find(pointer).ok_or(error::INVALID_VALUE)?;
    let is_host = allocation.kind == MemoryKind::Host;
    let block = state.host.get(&allocation.base);
    // SAFETY: the program's pointer has the type that the attribute's number implies.
    unsafe {
        match attribute {
            1 => put(out.cast(), state.current().unwrap_or(0)), // CONTEXT
            2 => put(out.cast::<c_uint>(), if is_host { 1 } else { 2 }), // MEMORY_TYPE
            3 => put(out.cast(), pointer),                      // DEVICE_POINTER
            4 if is_host => put(out.cast(), pointer),           // HOST_POINTER
            7 => put(out.cast::<u64>(), allocation.base),       // BUFFER_ID
            8 => put(out.cast::<c_uint>(), block.is_some_and(|b| b.is_managed) as c_uint), // IS_MANAGED
            9 => put(out.cast::<c_int>(), 0), // DEVICE_ORDINAL
            11 => put(out.cast::<u64>(), allocation.base), // RANGE_START_ADDR
            12 => put(out.cast::<usize>(), allocation.size as usize), // RANGE_SIZE
            _ => Err(error::INVALID_VALUE),
        }
    }
}

fn copy_2d(copy: *const Copy2d, stream: Option<Handle>) -> Outcome {
    if copy.is_null() {
        return Err(error::INVALID_VALUE);
    }
    // SAFETY: the program's structure.
    let c = unsafe { &*copy };
    with_context(|state| {
        let end = |ty: c_uint,
                   host: u64,
                   device: u64,
                   x: usize,
                   y: usize,
                   pitch: usize|
         -> Result<(u64, usize), Code> {
            let base = match ty {
                1 => host,
                2 | 4 => device,
                _ => return Err(error::NOT_SUPPORTED),
            };
            let pitch = if pitch == 0 { c.width_bytes } else { pitch };
            if pitch < c.width_bytes + x {
                return Err(error::INVALID_VALUE);
            }
            Ok((base + (y * pitch + x) as u64, pitch))
        };
        let (from, from_pitch) =
            end(c.src_type, c.src_host as u64, c.src_device, c.src_x_bytes, c.src_y, c.src_pitch)?;
        let (to, to_pitch) =
            end(c.dst_type, c.dst_host as u64, c.dst_device, c.dst_x_bytes, c.dst_y, c.dst_pitch)?;
        for row in 0..c.height {
            let (source, target) = (from + (row * from_pitch) as u64, to + (row * to_pitch) as u64);
            let source = if c.src_type == 2 { Place::Device(source) } else { state.place(source) };
            let target = if c.dst_type == 2 { Place::Device(target) } else { state.place(target) };
            match stream {
                Some(stream) => state.copy_in_stream(target, source, c.width_bytes, stream)?,
                None => state.copy_now(target, source, c.width_bytes)?,
            }
        }
        Ok(())
    })
}

/// Host memory as an end of a copy; where nothing is copied it may be NULL.
fn host_end(pointer: *const c_void, bytes: usize) -> Result<Place, Code> {
    if pointer.is_null() && bytes > 0 {
        Err(error::INVALID_VALUE)
    } else {
        Ok(Place::Host(pointer as *mut u8))
    }
}

api! {
    fn cuMemAlloc_v2(out: *mut DevicePtr, bytes: usize) {
        with_context(|state| {
            state.forbid_while_capturing()?;
            state.allocate(out, bytes)
        })
    }

    fn cuMemAllocPitch_v2(out: *mut DevicePtr, pitch: *mut usize, width: usize, height: usize, _element: c_uint) {
        with_context(|state| {
            let row = width.next_multiple_of(512);
            // SAFETY: the program's pointer.
            unsafe { put(pitch, row) }?;
            state.allocate(out, row.checked_mul(height).ok_or(error::INVALID_VALUE)?)
        })
    }

    fn cuMemFree_v2(address: DevicePtr) {
        with_context(|state| {
            if address == 0 {
                return Ok(());
            }
            state.forbid_while_capturing()?;
            if state.host.get(&address).is_some_and(|b| b.is_managed) {
                return state.free_host(address);
            }
            if let Some(closed) = state.close_graph_memory(address) {
                closed?;
                state.synchronise_all()?;
                state.end_allocation(address);
                return Ok(());
            }
            let is_base = state.memory.find(address).is_some_and(|a| a.base == address && a.kind == MemoryKind::Device);
            if !is_base || state.freeing.contains_key(&address) {
                eprintln!("vgpu: free of 0x{address:x}, where no allocation starts");
                return Err(error::INVALID_VALUE);
            }
            state.synchronise_all()?;
            state.memory.free(address);
            Ok(())
        })
    }

    fn cuMemAllocAsync(out: *mut DevicePtr, bytes: usize, stream: Handle) {
        with_context(|state| state.allocate_in_stream(out, bytes, stream))
    }

    fn cuMemAllocFromPoolAsync(out: *mut DevicePtr, bytes: usize, pool: Handle, stream: Handle) {
        with_context(|state| {
            if !state.pools.contains_key(&(pool as u64)) {
                return Err(error::INVALID_HANDLE);
            }
            state.allocate_in_stream(out, bytes, stream)
        })
    }

    fn cuMemFreeAsync(address: DevicePtr, stream: Handle) {
        with_context(|state| {
            let stream = state.stream_id(stream)?;
            if let Some(graph) = state.captured_graph(stream) {
                return state.capture_free(stream, graph, address);
            }
            if let Some(closed) = state.close_graph_memory(address) {
                closed?;
                return state.enqueue(stream, Work::Free(address));
            }
            let is_base = state.memory.find(address).is_some_and(|a| a.base == address && a.kind == MemoryKind::Device);
            if !is_base || state.freeing.insert(address, ()).is_some() {
                eprintln!("vgpu: asynchronous free of 0x{address:x}, where no allocation starts");
                return Err(error::INVALID_VALUE);
            }
            state.enqueue(stream, Work::Free(address))
        })
    }

    fn cuMemAllocManaged(out: *mut DevicePtr, bytes: usize, flags: c_uint) {
        with_context(|state| state.allocate_host(out.cast(), bytes, flags, true))
    }

    fn cuMemHostAlloc(out: *mut *mut c_void, bytes: usize, flags: c_uint) {
        with_context(|state| state.allocate_host(out, bytes, flags, false))
    }

    fn cuMemAllocHost_v2(out: *mut *mut c_void, bytes: usize) {
        with_context(|state| state.allocate_host(out, bytes, 0, false))
    }

    fn cuMemFreeHost(pointer: *mut c_void) {
        with_context(|state| state.free_host(pointer as u64))
    }

    fn cuMemHostRegister_v2(pointer: *mut c_void, bytes: usize, flags: c_uint) {
        with_context(|state| {
            if pointer.is_null() || bytes == 0 {
                return Err(error::INVALID_VALUE);
            }
            if state.pinned(pointer as u64, 1) {
                return Err(error::HOST_MEMORY_ALREADY_REGISTERED);
            }
            state.host.insert(pointer as u64, HostBlock { size: bytes, flags, owned: None, is_managed: false });
            state.memory.register_host(pointer.cast(), bytes as u64);
            Ok(())
        })
    }

    fn cuMemHostUnregister(pointer: *mut c_void) {
        with_context(|state| {
            match state.host.get(&(pointer as u64)) {
                Some(block) if block.owned.is_none() => {}
                _ => return Err(error::HOST_MEMORY_NOT_REGISTERED),
            }
            state.synchronise_all()?;
            state.host.remove(&(pointer as u64));
            state.memory.free(pointer as u64);
            Ok(())
        })
    }

    fn cuMemHostGetDevicePointer_v2(out: *mut DevicePtr, pointer: *mut c_void, _flags: c_uint) {
        with_context(|state| {
            if !state.pinned(pointer as u64, 1) {
                return Err(error::INVALID_VALUE);
            }
            // SAFETY: the program's pointer.
            unsafe { put(out, pointer as u64) }
        })
    }

    fn cuMemHostGetFlags(out: *mut c_uint, pointer: *mut c_void) {
        with_context(|state| {
            let flags = state.host.get(&(pointer as u64)).map(|b| b.flags).ok_or(error::INVALID_VALUE)?;
            // SAFETY: the program's pointer.
            unsafe { put(out, flags) }
        })
    }

    fn cuMemGetAddressRange_v2(base: *mut DevicePtr, size: *mut usize, address: DevicePtr) {
        with_context(|state| {
            let allocation = state.memory.find(address).ok_or(error::NOT_FOUND)?;
            let (start, len) = (allocation.base, allocation.size as usize);
            // SAFETY: the program's pointers, either of which may be NULL.
            unsafe {
                if !base.is_null() {
                    put(base, start)?;
                }
                if !size.is_null() {
                    put(size, len)?;
                }
            }
            Ok(())
        })
    }

    fn cuMemcpyHtoD_v2(to: DevicePtr, from: *const c_void, bytes: usize) {
        with_context(|state| {
            let from = host_end(from, bytes)?;
            state.check_range(to, bytes)?;
            state.copy_now(Place::Device(to), from, bytes)
        })
    }

    fn cuMemcpyDtoH_v2(to: *mut c_void, from: DevicePtr, bytes: usize) {
        with_context(|state| {
            let to = host_end(to, bytes)?;
            state.check_range(from, bytes)?;
            state.copy_now(to, Place::Device(from), bytes)
        })
    }

    fn cuMemcpyDtoD_v2(to: DevicePtr, from: DevicePtr, bytes: usize) {
        with_context(|state| {
            state.check_range(to, bytes)?;
            state.check_range(from, bytes)?;
            if bytes == 0 {
                return Ok(());
            }
            // Device-to-device copies do not wait for the host.
            state.enqueue(LEGACY, Work::Copy { to: Place::Device(to), from: Place::Device(from), bytes, checksum: None })
        })
    }

    fn cuMemcpy(to: DevicePtr, from: DevicePtr, bytes: usize) {
        with_context(|state| {
            let (to, from) = (state.place(to), state.place(from));
            state.copy_now(to, from, bytes)
        })
    }

    fn cuMemcpyAsync(to: DevicePtr, from: DevicePtr, bytes: usize, stream: Handle) {
        with_context(|state| {
            let (to, from) = (state.place(to), state.place(from));
            state.copy_in_stream(to, from, bytes, stream)
        })
    }

    fn cuMemcpyHtoDAsync_v2(to: DevicePtr, from: *const c_void, bytes: usize, stream: Handle) {
        with_context(|state| {
            let from = host_end(from, bytes)?;
            state.check_range(to, bytes)?;
            state.copy_in_stream(Place::Device(to), from, bytes, stream)
        })
    }

    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: DevicePtr, bytes: usize, stream: Handle) {
        with_context(|state| {
            let to = host_end(to, bytes)?;
            state.check_range(from, bytes)?;
            state.copy_in_stream(to, Place::Device(from), bytes, stream)
        })
    }

    fn cuMemcpyDtoDAsync_v2(to: DevicePtr, from: DevicePtr, bytes: usize, stream: Handle) {
        with_context(|state| {
            state.check_range(to, bytes)?;
            state.check_range(from, bytes)?;
            state.copy_in_stream(Place::Device(to), Place::Device(from), bytes, stream)
        })
    }

    fn cuMemcpyPeer(to: DevicePtr, _to_context: Handle, from: DevicePtr, _from_context: Handle, bytes: usize) {
        with_context(|state| state.copy_now(Place::Device(to), Place::Device(from), bytes))
    }

    fn cuMemcpyPeerAsync(to: DevicePtr, _to_context: Handle, from: DevicePtr, _from_context: Handle, bytes: usize, stream: Handle) {
        with_context(|state| state.copy_in_stream(Place::Device(to), Place::Device(from), bytes, stream))
    }

    fn cuMemcpy2D_v2(copy: *const Copy2d) {
        copy_2d(copy, None)
    }

    fn cuMemcpy2DUnaligned_v2(copy: *const Copy2d) {
        copy_2d(copy, None)
    }

    fn cuMemcpy2DAsync_v2(copy: *const Copy2d, stream: Handle) {
        copy_2d(copy, Some(stream))
    }

    fn cuMemsetD8_v2(to: DevicePtr, value: u8, count: usize) {
        with_context(|state| state.fill(to, value as u32, 1, count, 1, 0, None))
    }

    fn cuMemsetD16_v2(to: DevicePtr, value: u16, count: usize) {
        with_context(|state| state.fill(to, value as u32, 2, count, 1, 0, None))
    }

    fn cuMemsetD32_v2(to: DevicePtr, value: u32, count: usize) {
        with_context(|state| state.fill(to, value, 4, count, 1, 0, None))
    }

    fn cuMemsetD2D8_v2(to: DevicePtr, pitch: usize, value: u8, width: usize, height: usize) {
        with_context(|state| state.fill(to, value as u32, 1, width, height, pitch, None))
    }

    fn cuMemsetD2D32_v2(to: DevicePtr, pitch: usize, value: u32, width: usize, height: usize) {
        with_context(|state| state.fill(to, value, 4, width, height, pitch, None))
    }

    fn cuMemsetD8Async(to: DevicePtr, value: u8, count: usize, stream: Handle) {
        with_context(|state| state.fill(to, value as u32, 1, count, 1, 0, Some(stream)))
    }

    fn cuMemsetD16Async(to: DevicePtr, value: u16, count: usize, stream: Handle) {
        with_context(|state| state.fill(to, value as u32, 2, count, 1, 0, Some(stream)))
    }

    fn cuMemsetD32Async(to: DevicePtr, value: u32, count: usize, stream: Handle) {
        with_context(|state| state.fill(to, value, 4, count, 1, 0, Some(stream)))
    }

    fn cuMemPrefetchAsync_v2(_address: DevicePtr, _bytes: usize, _location: u64, _flags: c_uint, _stream: Handle) {
        with_context(|_| Ok(()))
    }

    fn cuMemAdvise_v2(_address: DevicePtr, _bytes: usize, _advice: c_int, _location: u64) {
        with_context(|_| Ok(()))
    }

    fn cuDeviceGetDefaultMemPool(pool: *mut Handle, _device: c_int) {
        // SAFETY: the program's pointer.
        super::with_state(|state| unsafe { put(pool, state.default_pool as Handle) })
    }

    fn cuDeviceGetMemPool(pool: *mut Handle, _device: c_int) {
        // SAFETY: the program's pointer.
        super::with_state(|state| unsafe { put(pool, state.current_pool as Handle) })
    }

    fn cuDeviceSetMemPool(_device: c_int, pool: Handle) {
        super::with_state(|state| {
            if !state.pools.contains_key(&(pool as u64)) {
                return Err(error::INVALID_VALUE);
            }
            state.current_pool = pool as u64;
            Ok(())
        })
    }

    fn cuMemPoolCreate(pool: *mut Handle, _properties: *const c_void) {
        with_context(|state| {
            let id = state.handle();
            state.pools.insert(id, Default::default());
            // SAFETY: the program's pointer.
            unsafe { put(pool, id as Handle) }
        })
    }

    fn cuMemPoolDestroy(pool: Handle) {
        with_context(|state| {
            let id = pool as u64;
            if id == state.default_pool || state.pools.remove(&id).is_none() {
                return Err(error::INVALID_VALUE);
            }
            if state.current_pool == id {
                state.current_pool = state.default_pool;
            }
            Ok(())
        })
    }

    fn cuMemPoolTrimTo(pool: Handle, _keep: usize) {
        with_context(|state| if state.pools.contains_key(&(pool as u64)) { Ok(()) } else { Err(error::INVALID_VALUE) })
    }

    fn cuMemPoolSetAttribute(pool: Handle, attribute: c_uint, value: *mut c_void) {
        with_context(|state| {
            let attributes = state.pools.get_mut(&(pool as u64)).ok_or(error::INVALID_VALUE)?;
            if value.is_null() || !(1..=8).contains(&attribute) {
                return Err(error::INVALID_VALUE);
            }
            // SAFETY: the first three attributes are int, the rest cuuint64_t.
            let read = unsafe { if attribute <= 3 { *value.cast::<u32>() as u64 } else { *value.cast::<u64>() } };
            attributes.insert(attribute, read);
            Ok(())
        })
    }

    fn cuMemPoolGetAttribute(pool: Handle, attribute: c_uint, value: *mut c_void) {
        with_context(|state| {
            let attributes = state.pools.get(&(pool as u64)).ok_or(error::INVALID_VALUE)?;
            let set = attributes.get(&attribute).copied();
            // SAFETY: the first three attributes are int, the rest cuuint64_t.
            unsafe {
                match attribute {
                    1..=3 => put(value.cast::<u32>(), set.unwrap_or(1) as u32),
                    4 => put(value.cast::<u64>(), set.unwrap_or(0)),
                    5..=8 => put(value.cast::<u64>(), state.memory.used),
                    _ => Err(error::INVALID_VALUE),
                }
            }
        })
    }
}
