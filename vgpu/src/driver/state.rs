//! What the driver knows: contexts, modules, memory, streams, events, graphs.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Handle;
use super::card::{Card, DRIVER_VERSION};
use super::error::{self, Code};
use super::failure::FailurePlan;
use super::graph::{Graph, GraphExec};
use super::graph_memory::GraphMemory;
use super::queue::{Event, Stream};
use crate::exec::{Checks, Memory, Random, Settings};
use crate::isa::DecodedKernel;
use crate::module::Module;

/// The legacy default stream under its two names, and the per-thread one.
pub(crate) const LEGACY: u64 = 0;
pub(crate) const LEGACY_NAME: u64 = 1;
pub(crate) const PER_THREAD: u64 = 2;

std::thread_local! {
    /// Contexts that are current to this thread, the top last.
    static CONTEXTS: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// A context; all of them share the one device's memory.
pub(crate) struct Context {
    pub(crate) is_primary: bool,
    pub(crate) flags: u32,
    pub(crate) limits: HashMap<u32, usize>,
}

/// A kernel handle and its attributes.
pub(crate) struct FunctionEntry {
    pub(crate) module: u64,
    pub(crate) kernel: Arc<DecodedKernel>,
    /// Dynamic shared memory that launches may ask for.
    pub(crate) max_dynamic_shared: u32,
    pub(crate) carveout: i32,
    pub(crate) registers: Option<u32>,
}

pub(crate) struct ModuleEntry {
    pub(crate) module: Module,
    /// Registers of its kernels as ptxas counts them.
    pub(crate) registers: HashMap<String, u32>,
    /// Handles that were given out, so that a name has one.
    pub(crate) functions: HashMap<String, u64>,
}

/// Page-locked or managed host memory.
pub(crate) struct HostBlock {
    pub(crate) size: usize,
    pub(crate) flags: u32,
    /// What to free, when the driver allocated it.
    pub(crate) owned: Option<std::alloc::Layout>,
    pub(crate) is_managed: bool,
}

pub(crate) struct State {
    pub(crate) card: Card,
    /// As `cuDriverGetVersion` gives it.
    pub(crate) driver: i32,
    pub(crate) settings: Settings,
    pub(crate) counters_file: Option<std::path::PathBuf>,
    pub(crate) ptxas: Option<std::path::PathBuf>,
    pub(crate) memory: Memory,
    pub(crate) stamp: u32,
    pub(crate) launches: u64,
    pub(crate) failures: FailurePlan,
    /// The error that ended the context.
    pub(crate) sticky: Option<Code>,
    next_handle: u64,
    pub(crate) contexts: HashMap<u64, Context>,
    pub(crate) primary: Option<(u64, u32)>,
    pub(crate) primary_flags: u32,
    pub(crate) modules: HashMap<u64, ModuleEntry>,
    pub(crate) functions: HashMap<u64, FunctionEntry>,
    pub(crate) host: BTreeMap<u64, HostBlock>,
    /// Allocations whose free is queued.
    pub(crate) freeing: HashMap<u64, ()>,
    /// Memory of graphs by address.
    pub(crate) graph_memory: HashMap<u64, GraphMemory>,
    pub(crate) streams: BTreeMap<u64, Stream>,
    pub(crate) events: HashMap<u64, Event>,
    pub(crate) graphs: HashMap<u64, Graph>,
    pub(crate) execs: HashMap<u64, GraphExec>,
    /// Memory pools and their attributes.
    pub(crate) pools: HashMap<u64, HashMap<u32, u64>>,
    pub(crate) default_pool: u64,
    pub(crate) current_pool: u64,
    pub(crate) sequence: u64,
    pub(crate) random: Random,
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// A whole number from the environment; anything else is said and ignored.
fn number(name: &str, default: u64) -> u64 {
    match variable(name).map(|v| v.parse()) {
        None => default,
        Some(Ok(value)) => value,
        Some(Err(_)) => {
            eprintln!("vgpu: {name} is not a whole number; {default} is used");
            default
        }
    }
}

/// `VGPU_DRIVER`: the version of an older driver, as `cuDriverGetVersion` gives it: 12020 for CUDA 12.2.
pub(crate) fn driver_version() -> i32 {
    number("VGPU_DRIVER", DRIVER_VERSION as u64).min(DRIVER_VERSION as u64) as i32
}

impl State {
    /// A device as the environment describes it.
    pub(crate) fn from_environment() -> Result<Self, Code> {
        if !crate::exec::supported() {
            eprintln!("vgpu: this CPU lacks AVX2 or FMA, which the interpreter needs");
            return Err(error::SYSTEM_DRIVER_MISMATCH);
        }
        let name = variable("VGPU_CARD").unwrap_or_default();
        let Some(card) = Card::named(&name) else {
            eprintln!("vgpu: VGPU_CARD={name} is not a100, rtx4090 or h100");
            return Err(error::NO_DEVICE);
        };
        let checks = variable("VGPU_CHECKS").map_or(Checks::ALL, |text| {
            Checks::parse(&text).unwrap_or_else(|why| {
                eprintln!("vgpu: VGPU_CHECKS={text}: {why}; all checks are on");
                Checks::ALL
            })
        });
        let keep_going = match variable("VGPU_ERRORS").as_deref() {
            None | Some("stop") => false,
            Some("continue") => true,
            Some(other) => {
                eprintln!("vgpu: VGPU_ERRORS={other} is neither stop nor continue; it is ignored");
                false
            }
        };
        let counters_file = variable("VGPU_COUNTERS").map(Into::into);
        let seed = number("VGPU_SEED", 0);
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let settings = Settings {
            checks,
            keep_going,
            counting: counters_file.is_some(),
            seed,
            budget: number("VGPU_BUDGET", 1 << 27),
            threads: number("VGPU_THREADS", threads).max(1) as usize,
            processors: card.processors,
        };
        let mut state = Self {
            memory: Memory::new(card.memory),
            card,
            driver: driver_version(),
            settings,
            counters_file,
            ptxas: variable("VGPU_PTXAS").map(Into::into),
            stamp: 1,
            launches: 0,
            failures: FailurePlan::new(
                variable("VGPU_FAIL_ALLOC").as_deref(),
                variable("VGPU_FAIL_LAUNCH").as_deref(),
            ),
            sticky: None,
            next_handle: 0x10_0000,
            contexts: HashMap::new(),
            primary: None,
            primary_flags: 0,
            modules: HashMap::new(),
            functions: HashMap::new(),
            host: BTreeMap::new(),
            freeing: HashMap::new(),
            graph_memory: HashMap::new(),
            streams: BTreeMap::new(),
            events: HashMap::new(),
            graphs: HashMap::new(),
            execs: HashMap::new(),
            pools: HashMap::new(),
            default_pool: 0,
            current_pool: 0,
            sequence: 0,
            random: Random::new(seed),
        };
        state.default_pool = state.handle();
        state.current_pool = state.default_pool;
        state.pools.insert(state.default_pool, HashMap::new());
        state.add_default_streams();
        Ok(state)
    }

    fn add_default_streams(&mut self) {
        self.streams.insert(LEGACY, Stream::new(false, 0));
        self.streams.insert(PER_THREAD, Stream::new(false, 0));
    }

    /// A number for a new object; never used twice, so that a stale handle is noticed.
    pub(crate) fn handle(&mut self) -> u64 {
        self.next_handle += 16;
        self.next_handle
    }

    /// The stream behind a handle.
    pub(crate) fn stream_id(&self, stream: Handle) -> Result<u64, Code> {
        let id = match stream as u64 {
            LEGACY_NAME => LEGACY,
            id => id,
        };
        if self.streams.contains_key(&id) { Ok(id) } else { Err(error::INVALID_HANDLE) }
    }

    /// The context that is current to the calling thread.
    pub(crate) fn current(&self) -> Option<u64> {
        CONTEXTS.with_borrow(|stack| stack.last().copied())
    }

    pub(crate) fn push_context(&self, context: u64) {
        CONTEXTS.with_borrow_mut(|stack| stack.push(context));
    }

    pub(crate) fn pop_context(&self) -> Option<u64> {
        CONTEXTS.with_borrow_mut(Vec::pop)
    }

    /// Replaces the top of the stack; 0 removes it.
    pub(crate) fn set_context(&self, context: u64) {
        self.pop_context();
        if context != 0 {
            self.push_context(context);
        }
    }

    pub(crate) fn check_context(&self) -> Result<(), Code> {
        match self.current() {
            Some(id) if self.contexts.contains_key(&id) => self.sticky.map_or(Ok(()), Err),
            Some(_) => Err(error::CONTEXT_IS_DESTROYED),
            None => Err(error::INVALID_CONTEXT),
        }
    }

    pub(crate) fn add_context(&mut self, is_primary: bool, flags: u32) -> u64 {
        let id = self.handle();
        self.contexts.insert(id, Context { is_primary, flags, limits: HashMap::new() });
        id
    }

    /// Ends a context. With the last one everything on the device goes.
    pub(crate) fn remove_context(&mut self, id: u64) -> Result<(), Code> {
        self.contexts.remove(&id).ok_or(error::INVALID_CONTEXT)?;
        if self.contexts.is_empty() {
            self.clear();
        }
        Ok(())
    }

    /// Frees all that programs made.
    pub(crate) fn clear(&mut self) {
        self.sticky = None;
        self.streams.clear();
        self.add_default_streams();
        self.events.clear();
        self.graphs.clear();
        self.execs.clear();
        self.functions.clear();
        for (_, mut entry) in std::mem::take(&mut self.modules) {
            entry.module.unload(&mut self.memory);
        }
        self.freeing.clear();
        self.graph_memory.clear();
        let bases: Vec<u64> = self
            .memory
            .snapshot()
            .iter()
            .map(|a| a.base)
            .filter(|b| !self.host.contains_key(b))
            .collect();
        for base in bases {
            self.memory.free(base);
        }
    }

    /// Says what a check found and ends the context.
    pub(crate) fn fail(&mut self, fault: &crate::exec::Fault) -> Code {
        eprintln!("{fault}");
        self.end_context(fault.kind.code())
    }

    /// Ends the context with an error that every later call reports.
    pub(crate) fn end_context(&mut self, code: Code) -> Code {
        self.sticky.get_or_insert(code);
        for stream in self.streams.values_mut() {
            stream.clear();
        }
        code
    }
}
