//! Launches and occupancy.

use std::ffi::{c_int, c_uint, c_void};

use super::error::{self, Code};
use super::queue::{HostFn, KernelLaunch, Work};
use super::state::State;
use super::{Handle, Outcome, api, put, with_context};
use crate::exec::demangle;

/// `CUlaunchConfig`.
#[repr(C)]
pub struct LaunchConfig {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    stream: Handle,
    attributes: *const LaunchAttribute,
    count: c_uint,
}

/// `CUlaunchAttribute`: a number, padding, and 64 bytes of value.
#[repr(C)]
pub struct LaunchAttribute {
    id: c_uint,
    pad: [u8; 4],
    value: [c_uint; 16],
}

/// End, buffer and size in the `extra` list of a launch.
const EXTRA_END: usize = 0;
const EXTRA_BUFFER: usize = 1;
const EXTRA_SIZE: usize = 2;

fn refuse<T>(code: Code, why: String) -> Result<T, Code> {
    eprintln!("vgpu: launch refused: {why}");
    Err(code)
}

impl State {
    /// Arguments as one block of bytes, from either of the two ways to give them.
    ///
    /// # Safety
    /// The pointers are what a program gave `cuLaunchKernel`.
    pub(super) unsafe fn gather_params(
        &self,
        function: Handle,
        params: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) -> Result<Vec<u8>, Code> {
        let kernel = &self.functions.get(&(function as u64)).ok_or(error::INVALID_HANDLE)?.kernel;
        let mut bytes = vec![0u8; kernel.param_bytes];
        if !params.is_null() {
            for (i, param) in kernel.params.iter().enumerate() {
                // SAFETY: the program gave one pointer a parameter.
                let from = unsafe { params.add(i).read() };
                if from.is_null() {
                    return refuse(
                        error::INVALID_VALUE,
                        format!("parameter {i} of {} is NULL", kernel.name),
                    );
                }
                // SAFETY: the program's value has the size that the kernel declares.
                let value = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), param.size) };
                bytes[param.offset..param.offset + param.size].copy_from_slice(value);
            }
            return Ok(bytes);
        }
        if extra.is_null() {
            return match kernel.params.len() {
                0 => Ok(bytes),
                n => refuse(
                    error::INVALID_VALUE,
                    format!(
                        "{} takes {n} parameters and got neither kernelParams nor extra",
                        kernel.name
                    ),
                ),
            };
        }
        let (mut buffer, mut size) = (std::ptr::null::<u8>(), None);
        let mut at = 0;
        loop {
            // SAFETY: the list ends with CU_LAUNCH_PARAM_END.
            let key = unsafe { extra.add(at).read() } as usize;
            if key == EXTRA_END {
                break;
            }
            // SAFETY: every other key has a value.
            let value = unsafe { extra.add(at + 1).read() };
            match key {
                EXTRA_BUFFER => buffer = value.cast(),
                // SAFETY: the size is given by pointer.
                EXTRA_SIZE => size = Some(unsafe { value.cast::<usize>().read() }),
                other => {
                    return refuse(error::INVALID_VALUE, format!("unknown key {other} in extra"));
                }
            }
            at += 2;
        }
        match size {
            Some(size) if !buffer.is_null() && size == bytes.len() => {
                // SAFETY: the program's buffer has that size.
                bytes.copy_from_slice(unsafe { std::slice::from_raw_parts(buffer, size) });
                Ok(bytes)
            }
            Some(size) => refuse(
                error::INVALID_VALUE,
                format!("extra holds {size} bytes, {} takes {}", kernel.name, bytes.len()),
            ),
            None => refuse(error::INVALID_VALUE, "extra has no size".into()),
        }
    }

    /// Checks a launch as the driver does.
    pub(super) fn prepare(
        &self,
        function: Handle,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        params: Vec<u8>,
        cooperative: bool,
    ) -> Result<KernelLaunch, Code> {
        let entry = self.functions.get(&(function as u64)).ok_or(error::INVALID_HANDLE)?;
        let kernel = &entry.kernel;
        let threads: u64 = block.iter().map(|n| *n as u64).product();
        let name = demangle(&kernel.name);
        if let Some(refused) = &kernel.refused {
            return refuse(error::NOT_SUPPORTED, format!("{name}: {refused}"));
        }
        if grid.contains(&0) || block.contains(&0) {
            return refuse(
                error::INVALID_VALUE,
                format!("{name}: grid {grid:?} or block {block:?} is empty"),
            );
        }
        if threads > 1024
            || block[2] > 64
            || grid[0] > i32::MAX as u32
            || grid[1] > 65_535
            || grid[2] > 65_535
        {
            return refuse(
                error::INVALID_VALUE,
                format!("{name}: grid {grid:?} of blocks {block:?} is beyond the device's limits"),
            );
        }
        if grid.iter().map(|n| *n as u64).product::<u64>() > u32::MAX as u64 / 64 {
            return refuse(
                error::NOT_SUPPORTED,
                format!("{name}: a grid of {grid:?} is more than this device executes"),
            );
        }
        if kernel.required_threads.is_some_and(|required| required != block)
            || kernel.max_threads.is_some_and(|max| threads > max as u64)
        {
            return refuse(
                error::LAUNCH_OUT_OF_RESOURCES,
                format!("{name}: {threads} threads, against its launch bounds"),
            );
        }
        if let Some(registers) = entry.registers
            && registers as u64 * threads.next_multiple_of(32) > super::card::REGISTERS as u64
        {
            return refuse(
                error::LAUNCH_OUT_OF_RESOURCES,
                format!("{name}: {threads} threads of {registers} registers"),
            );
        }
        if shared > entry.max_dynamic_shared {
            let why = format!(
                "{name}: {shared} bytes of dynamic shared memory, where {} are allowed (CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)",
                entry.max_dynamic_shared
            );
            return refuse(error::INVALID_VALUE, why);
        }
        if cooperative {
            let resident = self.card.resident_blocks(
                threads as u32,
                kernel.static_shared as u32 + shared,
                entry.known_registers(),
            );
            let blocks: u64 = grid.iter().map(|n| *n as u64).product();
            if blocks > resident as u64 * self.card.processors as u64 {
                return refuse(
                    error::COOPERATIVE_LAUNCH_TOO_LARGE,
                    format!("{name}: {blocks} blocks do not fit the card at once"),
                );
            }
        }
        Ok(KernelLaunch {
            function: function as u64,
            kernel: kernel.clone(),
            registers: entry.registers,
            grid,
            block,
            dynamic_shared: shared,
            params,
            cooperative,
        })
    }
}

fn launch(
    function: Handle,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: Handle,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
    cooperative: bool,
) -> Outcome {
    with_context(|state| {
        let stream = state.stream_id(stream)?;
        if !params.is_null() && !extra.is_null() {
            return refuse(error::INVALID_VALUE, "both kernelParams and extra are given".into());
        }
        // SAFETY: the program's pointers.
        let params = unsafe { state.gather_params(function, params, extra) }?;
        let ready = state.prepare(function, grid, block, shared, params, cooperative)?;
        state.enqueue(stream, Work::Kernel(Box::new(ready)))
    })
}

fn occupancy(function: Handle, threads: c_int, shared: usize) -> Result<u32, Code> {
    with_context(|state| {
        let entry = state.functions.get(&(function as u64)).ok_or(error::INVALID_HANDLE)?;
        if threads <= 0 {
            return Err(error::INVALID_VALUE);
        }
        if threads > 1024 {
            return Ok(0);
        }
        let shared = entry.kernel.static_shared as u64 + shared as u64;
        if shared > state.card.shared_optin as u64 {
            return Ok(0);
        }
        Ok(state.card.resident_blocks(threads as u32, shared as u32, entry.known_registers()))
    })
}

fn best_block(
    grid: *mut c_int,
    block: *mut c_int,
    function: Handle,
    size_of: Option<unsafe extern "C" fn(c_int) -> usize>,
    shared: usize,
    limit: c_int,
) -> Outcome {
    let processors = with_context(|state| Ok(state.card.processors))?;
    let max = with_context(|state| {
        Ok(state
            .functions
            .get(&(function as u64))
            .ok_or(error::INVALID_HANDLE)?
            .kernel
            .max_threads
            .unwrap_or(1024))
    })?;
    let top = if limit > 0 { limit.min(1024) } else { 1024 }.min(max as c_int);
    let mut best = (0, 0, 0);
    for threads in (32..=top.max(32)).rev().step_by(32) {
        // SAFETY: the program's function, called with a block size as documented.
        let dynamic = size_of.map_or(shared, |f| unsafe { f(threads) });
        let blocks = occupancy(function, threads, dynamic)?;
        if blocks * threads as u32 > best.0 {
            best = (blocks * threads as u32, threads, blocks);
        }
    }
    // SAFETY: the program's pointers.
    unsafe { put(block, best.1).and(put(grid, (best.2 * processors) as c_int)) }
}

api! {
    fn cuLaunchKernel(
        function: Handle,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared: c_uint,
        stream: Handle,
        params: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) {
        launch(function, [grid_x, grid_y, grid_z], [block_x, block_y, block_z], shared, stream, params, extra, false)
    }

    fn cuLaunchCooperativeKernel(
        function: Handle,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared: c_uint,
        stream: Handle,
        params: *mut *mut c_void,
    ) {
        launch(function, [grid_x, grid_y, grid_z], [block_x, block_y, block_z], shared, stream, params, std::ptr::null_mut(), true)
    }

    fn cuLaunchKernelEx(config: *const LaunchConfig, function: Handle, params: *mut *mut c_void, extra: *mut *mut c_void) {
        if config.is_null() {
            return Err(error::INVALID_VALUE);
        }
        // SAFETY: the program's structure.
        let config = unsafe { &*config };
        let attributes = if config.count == 0 || config.attributes.is_null() {
            &[][..]
        } else {
            // SAFETY: the program gave that many attributes.
            unsafe { std::slice::from_raw_parts(config.attributes, config.count as usize) }
        };
        let mut cooperative = false;
        for attribute in attributes {
            match attribute.id {
                2 => cooperative = attribute.value[0] != 0,                                   // COOPERATIVE
                4 if attribute.value[..3].iter().any(|n| *n > 1) => return Err(error::NOT_SUPPORTED), // CLUSTER_DIMENSION
                _ => {}
            }
        }
        launch(function, config.grid, config.block, config.shared, config.stream, params, extra, cooperative)
    }

    fn cuLaunchHostFunc(stream: Handle, function: Option<HostFn>, data: *mut c_void) {
        with_context(|state| {
            let stream = state.stream_id(stream)?;
            let function = function.ok_or(error::INVALID_VALUE)?;
            state.enqueue(stream, Work::Host { function, data })
        })
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks: *mut c_int, function: Handle, threads: c_int, shared: usize) {
        let found = occupancy(function, threads, shared)?;
        // SAFETY: the program's pointer.
        unsafe { put(blocks, found as c_int) }
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks: *mut c_int, function: Handle, threads: c_int, shared: usize, _flags: c_uint) {
        let found = occupancy(function, threads, shared)?;
        // SAFETY: the program's pointer.
        unsafe { put(blocks, found as c_int) }
    }

    fn cuOccupancyMaxPotentialBlockSize(
        grid: *mut c_int,
        block: *mut c_int,
        function: Handle,
        size_of: Option<unsafe extern "C" fn(c_int) -> usize>,
        shared: usize,
        limit: c_int,
    ) {
        best_block(grid, block, function, size_of, shared, limit)
    }

    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: *mut c_int,
        block: *mut c_int,
        function: Handle,
        size_of: Option<unsafe extern "C" fn(c_int) -> usize>,
        shared: usize,
        limit: c_int,
        _flags: c_uint,
    ) {
        best_block(grid, block, function, size_of, shared, limit)
    }

    fn cuOccupancyAvailableDynamicSMemPerBlock(bytes: *mut usize, function: Handle, blocks: c_int, _threads: c_int) {
        with_context(|state| {
            let entry = state.functions.get(&(function as u64)).ok_or(error::INVALID_HANDLE)?;
            if blocks <= 0 {
                return Err(error::INVALID_VALUE);
            }
            let each = (state.card.shared_per_processor / blocks as u32).saturating_sub(super::card::RESERVED_SHARED);
            let free = each.min(state.card.shared_optin).saturating_sub(entry.kernel.static_shared as u32);
            // SAFETY: the program's pointer.
            unsafe { put(bytes, free as usize) }
        })
    }

    fn cuOccupancyMaxActiveClusters(clusters: *mut c_int, _function: Handle, _config: *const LaunchConfig) {
        // SAFETY: the program's pointer.
        unsafe { put(clusters, 0) }?;
        Err(error::NOT_SUPPORTED)
    }
}
