//! Execution of kernels: grids of blocks over threads, blocks of warps, warps of lanes.

mod access;
mod async_copy;
mod atomics;
mod block;
mod builtin;
mod checks;
mod counters;
mod fault;
mod findings;
mod memory;
mod random;
mod shadow;
mod tensor;
mod warp;

pub use checks::Checks;
pub use counters::{Counters, LineCounters};
pub(crate) use fault::demangle;
pub use fault::{Fault, FaultKind, Severity};
pub(crate) use memory::{Allocation, Memory, MemoryKind};
pub(crate) use random::Random;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::isa::{DecodedKernel, Op, Order};
use atomics::Locks;
use block::{Block, Status};
use counters::Stats;
use findings::Findings;
use shadow::{GridOrder, LAST_STAMP};

/// Warp instructions after which a block that shares its thread with others gives way.
const SLICE: u32 = 20_000;
/// Bytes of a cooperative grid's workspace.
const WORKSPACE: u64 = 64;
/// Blocks that one thread starts while others wait, for kernels that are not cooperative.
const RESIDENT: usize = 64;

/// How launches run; the same for the whole device.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) checks: Checks,
    /// Go on after findings that allow it.
    pub(crate) keep_going: bool,
    pub(crate) counting: bool,
    pub(crate) seed: u64,
    /// Instructions that one warp may execute.
    pub(crate) budget: u64,
    pub(crate) threads: usize,
    /// Multiprocessors of the card.
    pub(crate) processors: u32,
}

/// A kernel's launch, ready to run.
pub(crate) struct Launch<'a> {
    pub(crate) kernel: &'a DecodedKernel,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) dynamic_shared: usize,
    pub(crate) params: &'a [u8],
    pub(crate) cooperative: bool,
}

/// What the blocks of a launch share.
pub(crate) struct Env<'a> {
    pub(crate) kernel: &'a DecodedKernel,
    pub(crate) allocations: Vec<Arc<Allocation>>,
    pub(crate) memory: &'a Memory,
    pub(crate) params: &'a [u8],
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) dynamic_shared: usize,
    pub(crate) shared_bytes: usize,
    /// Look for undefined values.
    pub(crate) undefined: bool,
    /// Remember who touched shared memory.
    pub(crate) shadows: bool,
    /// Races between warps, between lanes, between blocks.
    pub(crate) race_shared: bool,
    pub(crate) race_warp: bool,
    pub(crate) race_global: bool,
    /// Remember what is ordered with what.
    pub(crate) orders: bool,
    pub(crate) async_copies: bool,
    pub(crate) keep_going: bool,
    pub(crate) findings: Findings,
    pub(crate) counting: bool,
    /// The kernel has fences or ordered accesses.
    pub(crate) fences: bool,
    /// Blocks can wait for each other.
    polls: bool,
    pub(crate) order: GridOrder,
    pub(crate) locks: Locks,
    pub(crate) printed: Mutex<Vec<u8>>,
    pub(crate) seed: u64,
    pub(crate) budget: u64,
    pub(crate) processors: u32,
    /// Address of a cooperative grid's workspace, or 0.
    pub(crate) workspace: u64,
    pub(crate) grid_id: u64,
    started: Instant,
}

impl Env<'_> {
    /// The device's clock, in nanoseconds.
    pub(crate) fn now(&self, executed: u64) -> u64 {
        // At least one tick an instruction, so that two readings of a warp differ.
        (self.started.elapsed().as_nanos() as u64).max(executed)
    }
}

/// Whether this CPU can execute kernels.
pub(crate) fn supported() -> bool {
    crate::isa::lanes::supported()
}

fn has_fences(kernel: &DecodedKernel) -> bool {
    kernel.code.iter().any(|inst| match &inst.op {
        Op::Fence { .. } => true,
        Op::Load(t) | Op::Store(t) => t.order.acquires() || t.order.releases(),
        Op::Atomic(a) => a.order.acquires() || a.order.releases(),
        _ => false,
    })
}

/// Whether blocks of the kernel can wait for each other: only a loop with such an access can.
fn can_poll(kernel: &DecodedKernel) -> bool {
    kernel.code.iter().any(|inst| match &inst.op {
        Op::Atomic(_) => true,
        Op::Load(t) => t.order != Order::Weak,
        _ => false,
    })
}

/// What became of a launch.
pub(crate) struct Outcome {
    pub(crate) result: Result<Counters, Box<Fault>>,
    /// Findings that did not end it.
    pub(crate) findings: Vec<Fault>,
}

/// Runs a launch to its end. `stamp` is the first race stamp that no earlier launch used.
pub(crate) fn run(
    launch: &Launch,
    memory: &mut Memory,
    settings: &Settings,
    stamp: &mut u32,
    grid_id: u64,
) -> Outcome {
    // Where the blocks of a cooperative grid count themselves in.
    let needs_workspace = launch.cooperative && launch.kernel.uses_workspace;
    let workspace = needs_workspace.then(|| memory.allocate(WORKSPACE, MemoryKind::Variable));
    let workspace = workspace.flatten().unwrap_or(0);
    if let Some(allocation) = memory.find(workspace) {
        // SAFETY: just allocated with that size.
        unsafe { allocation.pointer(workspace).write_bytes(0, WORKSPACE as usize) };
        allocation.set_defined(workspace, WORKSPACE, true);
    }
    let outcome = execute(launch, memory, settings, stamp, grid_id, workspace);
    if workspace != 0 {
        memory.free(workspace);
    }
    outcome
}

fn execute(
    launch: &Launch,
    memory: &Memory,
    settings: &Settings,
    stamp: &mut u32,
    grid_id: u64,
    workspace: u64,
) -> Outcome {
    let (kernel, checks) = (launch.kernel, settings.checks);
    let blocks = launch.grid.iter().product::<u32>();
    if *stamp as u64 + blocks as u64 * 2 + 2 > LAST_STAMP as u64 / 2 {
        memory.clear_cells();
        *stamp = 1;
    }
    let shared_bytes = if launch.dynamic_shared > 0 {
        kernel.dynamic_shared_at + launch.dynamic_shared
    } else {
        kernel.static_shared
    };
    let threads = settings.threads.clamp(1, blocks.max(1) as usize);
    let env = Env {
        kernel,
        allocations: memory.snapshot(),
        memory,
        params: launch.params,
        grid: launch.grid,
        block: launch.block,
        dynamic_shared: launch.dynamic_shared,
        shared_bytes,
        undefined: checks.undefined,
        shadows: checks.shadows_shared(),
        race_shared: checks.race_shared,
        race_warp: checks.race_warp,
        race_global: checks.race_global && blocks > 1,
        orders: checks.races(),
        async_copies: checks.async_copy,
        keep_going: settings.keep_going,
        findings: Findings::default(),
        counting: settings.counting,
        fences: has_fences(kernel),
        polls: can_poll(kernel),
        order: GridOrder::new(*stamp, blocks, threads == 1),
        locks: Locks::new(),
        printed: Mutex::new(Vec::new()),
        seed: settings.seed,
        budget: settings.budget,
        processors: settings.processors,
        workspace,
        grid_id,
        started: Instant::now(),
    };
    let mut order: Vec<u32> = (0..blocks).collect();
    if settings.seed != 0 {
        Random::new(settings.seed).shuffle(&mut order);
    }
    let next = AtomicU32::new(0);
    let stop = AtomicBool::new(false);
    let fault = Mutex::new(None);
    let total = Mutex::new(Stats::new(if env.counting { kernel.code.len() } else { 0 }));
    // Blocks of a cooperative launch are resident from the start.
    let share = if launch.cooperative { (blocks as usize).div_ceil(threads) } else { 1 };
    let worker = || {
        let mut stats = Stats::new(if env.counting { kernel.code.len() } else { 0 });
        if let Err(found) = work(&env, &order, &next, &stop, share, &mut stats) {
            stop.store(true, Relaxed);
            let mut first = fault.lock().unwrap_or_else(|e| e.into_inner());
            first.get_or_insert(found);
        }
        total.lock().unwrap_or_else(|e| e.into_inner()).merge(&stats);
    };
    if threads == 1 {
        worker();
    } else {
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(worker);
            }
        });
    }
    *stamp = env.order.end();
    let printed = env.printed.into_inner().unwrap_or_else(|e| e.into_inner());
    if !printed.is_empty() {
        use std::io::Write;
        // A closed standard output is no reason to fail a kernel.
        let _ = std::io::stdout().lock().write_all(&printed);
        let _ = std::io::stdout().flush();
    }
    let result = match fault.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some(fault) => Err(fault),
        None => {
            let stats = total.into_inner().unwrap_or_else(|e| e.into_inner());
            Ok(if settings.counting {
                Counters::gather(kernel, launch.grid, launch.block, shared_bytes, &stats)
            } else {
                Counters::default()
            })
        }
    };
    Outcome { result, findings: env.findings.into_faults() }
}

/// One thread's share of the blocks. A block that does not finish within its slice may be waiting for
/// another, so more blocks become resident and they take turns.
fn work(
    env: &Env,
    order: &[u32],
    next: &AtomicU32,
    stop: &AtomicBool,
    share: usize,
    stats: &mut Stats,
) -> Result<(), Box<Fault>> {
    let mut under_way: VecDeque<Block> = VecDeque::new();
    let mut spare: Vec<Block> = Vec::new();
    let fetch = |spare: &mut Vec<Block>| {
        let at = next.fetch_add(1, Relaxed) as usize;
        let linear = *order.get(at)?;
        let mut block = spare.pop().unwrap_or_else(|| Block::new(env));
        block.start(env, linear);
        Some(block)
    };
    while under_way.len() < share
        && let Some(block) = fetch(&mut spare)
    {
        under_way.push_back(block);
    }
    while !stop.load(Relaxed) {
        let mut block = match under_way.pop_front() {
            Some(block) => block,
            None => match fetch(&mut spare) {
                Some(block) => block,
                None => break,
            },
        };
        match block.run(env, stats, SLICE)? {
            Status::Done => spare.push(block),
            Status::Running => {
                under_way.push_back(block);
                if under_way.len() < RESIDENT
                    && env.polls
                    && let Some(another) = fetch(&mut spare)
                {
                    under_way.push_front(another);
                }
            }
        }
    }
    Ok(())
}
