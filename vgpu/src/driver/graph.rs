//! Graphs: captured or built work with its dependencies, and what is instantiated from it.

use std::ffi::{c_int, c_uint, c_void};

use super::error::{self, Code};
use super::queue::{KernelLaunch, Work};
use super::state::State;
use super::{Handle, Outcome, api, put, with_context, with_state};

/// A node: work and the nodes before it.
#[derive(Clone)]
pub(crate) struct Node {
    work: Work,
    after: Vec<usize>,
    handle: u64,
}

#[derive(Clone, Default)]
pub(crate) struct Graph {
    nodes: Vec<Node>,
}

/// An instantiated graph.
pub(crate) struct GraphExec {
    pub(super) graph: Graph,
    /// Frees at a launch what the last one left allocated.
    auto_free: bool,
}

/// `CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH`.
const AUTO_FREE: u64 = 1;

/// `CUDA_KERNEL_NODE_PARAMS_v2`.
#[repr(C)]
pub struct KernelNodeParams {
    function: Handle,
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
    kernel: Handle,
    context: Handle,
}

/// Node handles of a graph: its number in the high bits, the node's index in the low ones.
const NODE_TAG: u64 = 1 << 52;

impl Graph {
    /// Appends work that comes after other nodes; gives its index.
    pub(crate) fn add(&mut self, work: Work, after: Vec<usize>) -> usize {
        self.nodes.push(Node { work, after, handle: 0 });
        self.nodes.len() - 1
    }

    /// Addresses of its allocation nodes.
    pub(super) fn allocations(&self) -> impl Iterator<Item = u64> {
        self.nodes.iter().filter_map(|node| match node.work {
            Work::Allocate(address) => Some(address),
            _ => None,
        })
    }

    /// Whether a node frees an address.
    pub(super) fn frees(&self, address: u64) -> bool {
        self.nodes.iter().any(|node| matches!(node.work, Work::Free(a) if a == address))
    }

    /// Nodes that no other depends on.
    pub(crate) fn leaves(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|i| !self.nodes.iter().any(|n| n.after.contains(i))).collect()
    }
}

fn kind(work: &Work) -> c_int {
    match work {
        Work::Kernel(_) => 0,
        Work::Copy { .. } => 1,
        Work::Set { .. } => 2,
        Work::Host { .. } => 3,
        Work::Wait { .. } => 6,
        Work::Record { .. } => 7,
        Work::Allocate(_) => 10,
        Work::Free(_) => 11,
        Work::Nothing => 5,
    }
}

impl State {
    fn graph_of(&mut self, handle: Handle) -> Result<&mut Graph, Code> {
        self.graphs.get_mut(&(handle as u64)).ok_or(error::INVALID_VALUE)
    }

    /// Graph and node behind a node's handle.
    fn node_of(&self, node: Handle) -> Result<(u64, usize), Code> {
        let handle = node as u64;
        let found = self.graphs.iter().find_map(|(id, g)| {
            g.nodes.iter().position(|n| n.handle == handle).map(|at| (*id, at))
        });
        found.filter(|_| handle >= NODE_TAG).ok_or(error::INVALID_VALUE)
    }

    fn name_node(&mut self, graph: u64, at: usize) -> Result<u64, Code> {
        let fresh = NODE_TAG | self.handle();
        let node = self
            .graphs
            .get_mut(&graph)
            .and_then(|g| g.nodes.get_mut(at))
            .ok_or(error::INVALID_VALUE)?;
        if node.handle == 0 {
            node.handle = fresh;
        }
        Ok(node.handle)
    }

    /// Puts the nodes into a stream, in an order that the dependencies allow.
    fn launch_graph(&mut self, exec: Handle, stream: u64) -> Outcome {
        let exec = self.execs.get(&(exec as u64)).ok_or(error::INVALID_VALUE)?;
        let (graph, auto_free) = (exec.graph.clone(), exec.auto_free);
        self.open_graph_memory(&graph, auto_free, stream)?;
        let mut done = vec![false; graph.nodes.len()];
        for _ in 0..graph.nodes.len() {
            let ready: Vec<usize> = (0..graph.nodes.len())
                .filter(|i| !done[*i] && graph.nodes[*i].after.iter().all(|a| done[*a]))
                .collect();
            let pick =
                if self.settings.seed == 0 { 0 } else { self.random.below(ready.len().max(1)) };
            let Some(next) = ready.get(pick) else { return Err(error::INVALID_VALUE) };
            done[*next] = true;
            self.enqueue(stream, graph.nodes[*next].work.clone())?;
        }
        Ok(())
    }

    /// # Safety
    /// The structure is what a program gave.
    unsafe fn kernel_node(&self, params: &KernelNodeParams) -> Result<KernelLaunch, Code> {
        let function = if params.function.is_null() { params.kernel } else { params.function };
        // SAFETY: as the caller promises.
        let bytes = unsafe { self.gather_params(function, params.params, params.extra) }?;
        self.prepare(function, params.grid, params.block, params.shared, bytes, false)
    }

    /// # Safety
    /// `list` holds `count` handles.
    unsafe fn dependencies(&self, list: *const Handle, count: usize) -> Result<Vec<usize>, Code> {
        // SAFETY: as the caller promises.
        (0..count).map(|i| self.node_of(unsafe { list.add(i).read() }).map(|(_, at)| at)).collect()
    }
}

fn instantiate(out: *mut Handle, graph: Handle, flags: u64) -> Outcome {
    with_context(|state| {
        let graph = state.graph_of(graph)?.clone();
        let is_held = |address| {
            state.execs.values().any(|exec| exec.graph.allocations().any(|a| a == address))
        };
        if graph.allocations().any(is_held) {
            eprintln!("vgpu: a graph that allocates memory is instantiated a second time");
            return Err(error::INVALID_VALUE);
        }
        let id = state.handle();
        state.execs.insert(id, GraphExec { graph, auto_free: flags & AUTO_FREE != 0 });
        // SAFETY: the program's pointer.
        unsafe { put(out, id as Handle) }
    })
}

/// Replaces the work of an instantiated graph by that of one with the same shape.
fn update(exec: Handle, graph: Handle) -> Result<(), Code> {
    with_context(|state| {
        let new = state.graph_of(graph)?.clone();
        let exec = state.execs.get_mut(&(exec as u64)).ok_or(error::INVALID_VALUE)?;
        let old = &exec.graph;
        let same = old.nodes.len() == new.nodes.len()
            && old
                .nodes
                .iter()
                .zip(&new.nodes)
                .all(|(a, b)| kind(&a.work) == kind(&b.work) && a.after == b.after);
        if !same {
            return Err(error::GRAPH_EXEC_UPDATE_FAILURE);
        }
        exec.graph = new;
        Ok(())
    })
}

api! {
    fn cuGraphCreate(out: *mut Handle, _flags: c_uint) {
        with_context(|state| {
            let id = state.handle();
            state.graphs.insert(id, Graph::default());
            // SAFETY: the program's pointer.
            unsafe { put(out, id as Handle) }
        })
    }

    fn cuGraphDestroy(graph: Handle) {
        with_state(|state| {
            state.graphs.remove(&(graph as u64)).ok_or(error::INVALID_VALUE)?;
            state.collect_graph_memory();
            Ok(())
        })
    }

    fn cuGraphClone(out: *mut Handle, graph: Handle) {
        with_context(|state| {
            let mut copy = state.graph_of(graph)?.clone();
            if copy.allocations().next().is_some() {
                return Err(error::NOT_SUPPORTED);
            }
            copy.nodes.iter_mut().for_each(|n| n.handle = 0);
            let id = state.handle();
            state.graphs.insert(id, copy);
            // SAFETY: the program's pointer.
            unsafe { put(out, id as Handle) }
        })
    }

    fn cuGraphAddKernelNode_v2(out: *mut Handle, graph: Handle, after: *const Handle, count: usize, params: *const KernelNodeParams) {
        if params.is_null() {
            return Err(error::INVALID_VALUE);
        }
        with_context(|state| {
            // SAFETY: the program's structure.
            let launch = unsafe { state.kernel_node(&*params) }?;
            // SAFETY: the program's list.
            let after = unsafe { state.dependencies(after, count) }?;
            let at = state.graph_of(graph)?.add(Work::Kernel(Box::new(launch)), after);
            let node = state.name_node(graph as u64, at)?;
            // SAFETY: the program's pointer.
            unsafe { put(out, node as Handle) }
        })
    }

    fn cuGraphAddEmptyNode(out: *mut Handle, graph: Handle, after: *const Handle, count: usize) {
        with_context(|state| {
            // SAFETY: the program's list.
            let after = unsafe { state.dependencies(after, count) }?;
            let at = state.graph_of(graph)?.add(Work::Nothing, after);
            let node = state.name_node(graph as u64, at)?;
            // SAFETY: the program's pointer.
            unsafe { put(out, node as Handle) }
        })
    }

    fn cuGraphGetNodes(graph: Handle, nodes: *mut Handle, count: *mut usize) {
        with_context(|state| {
            let total = state.graph_of(graph)?.nodes.len();
            if count.is_null() {
                return Err(error::INVALID_VALUE);
            }
            if !nodes.is_null() {
                // SAFETY: the program's count of its list.
                let room = unsafe { count.read() };
                for at in 0..total.min(room) {
                    let handle = state.name_node(graph as u64, at)?;
                    // SAFETY: within the program's list.
                    unsafe { nodes.add(at).write(handle as Handle) };
                }
            }
            // SAFETY: the program's pointer.
            unsafe { put(count, total) }
        })
    }

    fn cuGraphNodeGetType(node: Handle, out: *mut c_int) {
        with_context(|state| {
            let (graph, at) = state.node_of(node)?;
            // SAFETY: the program's pointer.
            unsafe { put(out, kind(&state.graphs[&graph].nodes[at].work)) }
        })
    }

    fn cuGraphKernelNodeGetParams_v2(node: Handle, params: *mut KernelNodeParams) {
        with_context(|state| {
            let (graph, at) = state.node_of(node)?;
            let Work::Kernel(launch) = &state.graphs[&graph].nodes[at].work else { return Err(error::INVALID_VALUE) };
            let found = KernelNodeParams {
                function: launch.function as Handle,
                grid: launch.grid,
                block: launch.block,
                shared: launch.dynamic_shared,
                params: std::ptr::null_mut(),
                extra: std::ptr::null_mut(),
                kernel: std::ptr::null_mut(),
                context: std::ptr::null_mut(),
            };
            // SAFETY: the program's pointer.
            unsafe { put(params, found) }
        })
    }

    fn cuGraphKernelNodeSetParams_v2(node: Handle, params: *const KernelNodeParams) {
        if params.is_null() {
            return Err(error::INVALID_VALUE);
        }
        with_context(|state| {
            let (graph, at) = state.node_of(node)?;
            // SAFETY: the program's structure.
            let launch = unsafe { state.kernel_node(&*params) }?;
            let slot = state.graphs.get_mut(&graph).and_then(|g| g.nodes.get_mut(at)).ok_or(error::INVALID_VALUE)?;
            slot.work = Work::Kernel(Box::new(launch));
            Ok(())
        })
    }

    fn cuGraphExecKernelNodeSetParams_v2(exec: Handle, node: Handle, params: *const KernelNodeParams) {
        if params.is_null() {
            return Err(error::INVALID_VALUE);
        }
        with_context(|state| {
            let (_, at) = state.node_of(node)?;
            // SAFETY: the program's structure.
            let launch = unsafe { state.kernel_node(&*params) }?;
            let exec = state.execs.get_mut(&(exec as u64)).ok_or(error::INVALID_VALUE)?;
            match exec.graph.nodes.get_mut(at).map(|n| &mut n.work) {
                Some(Work::Kernel(old)) if old.function == launch.function || old.kernel.params == launch.kernel.params => {
                    **old = launch;
                    Ok(())
                }
                _ => Err(error::INVALID_VALUE),
            }
        })
    }

    fn cuGraphInstantiateWithFlags(out: *mut Handle, graph: Handle, flags: u64) {
        instantiate(out, graph, flags)
    }

    fn cuGraphInstantiate_v2(out: *mut Handle, graph: Handle, _error_node: *mut Handle, _log: *mut u8, _len: usize) {
        instantiate(out, graph, 0)
    }

    fn cuGraphInstantiateWithParams(out: *mut Handle, graph: Handle, params: *mut c_void) {
        // SAFETY: the program's structure begins with the flags.
        let flags = if params.is_null() { 0 } else { unsafe { params.cast::<u64>().read() } };
        instantiate(out, graph, flags)
    }

    fn cuGraphUpload(exec: Handle, stream: Handle) {
        with_context(|state| {
            state.stream_id(stream)?;
            if state.execs.contains_key(&(exec as u64)) { Ok(()) } else { Err(error::INVALID_VALUE) }
        })
    }

    fn cuGraphLaunch(exec: Handle, stream: Handle) {
        with_context(|state| {
            let stream = state.stream_id(stream)?;
            state.launch_graph(exec, stream)
        })
    }

    fn cuGraphExecUpdate_v2(exec: Handle, graph: Handle, result: *mut c_uint) {
        let outcome = update(exec, graph);
        if !result.is_null() {
            // CU_GRAPH_EXEC_UPDATE_SUCCESS or _ERROR_TOPOLOGY_CHANGED
            let number = match outcome {
                Ok(()) => 0,
                Err(_) => 2,
            };
            // SAFETY: the program's structure begins with this number.
            unsafe { put(result, number) }?;
        }
        outcome
    }

    fn cuGraphExecDestroy(exec: Handle) {
        with_state(|state| {
            state.execs.remove(&(exec as u64)).ok_or(error::INVALID_VALUE)?;
            state.collect_graph_memory();
            Ok(())
        })
    }
}
