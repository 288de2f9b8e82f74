//! Memory that belongs to graphs: allocated by a node at every launch, always at the address that the capture
//! was given, and freed by another node or by the program.

use std::sync::atomic::Ordering::Relaxed;

use super::Outcome;
use super::error::{self, Code};
use super::graph::Graph;
use super::queue::Work;
use super::state::State;
use crate::exec::MemoryKind;

/// An address that an allocation node of a graph was given.
pub(crate) struct GraphMemory {
    /// The graph that was captured.
    graph: u64,
    /// A launch allocated it, and nobody has freed it since.
    open: bool,
}

impl State {
    /// An allocation node for a stream that is captured.
    pub(super) fn capture_allocation(&mut self, stream: u64, bytes: usize) -> Result<u64, Code> {
        let graph = self.captured_graph(stream).ok_or(error::STREAM_CAPTURE_INVALIDATED)?;
        self.failures.allocation()?;
        let address =
            self.memory.allocate(bytes as u64, MemoryKind::Device).ok_or(error::OUT_OF_MEMORY)?;
        if let Some(allocation) = self.memory.find(address) {
            allocation.live.store(false, Relaxed);
        }
        self.graph_memory.insert(address, GraphMemory { graph, open: false });
        self.enqueue(stream, Work::Allocate(address))?;
        Ok(address)
    }

    /// The graph that a stream is captured into.
    pub(super) fn captured_graph(&self, stream: u64) -> Option<u64> {
        self.streams.get(&stream)?.capturing.as_ref().map(|c| c.graph)
    }

    /// A free node for a stream that is captured: of the graph's own memory, once.
    pub(super) fn capture_free(&mut self, stream: u64, graph: u64, address: u64) -> Outcome {
        let is_own = self.graph_memory.get(&address).is_some_and(|m| m.graph == graph);
        let is_freed = self.graphs.get(&graph).is_some_and(|g| g.frees(address));
        if !is_own || is_freed {
            eprintln!(
                "vgpu: a captured cuMemFreeAsync of 0x{address:x}, which is not memory that this capture allocated and has not freed"
            );
            return Err(error::INVALID_VALUE);
        }
        self.enqueue(stream, Work::Free(address))
    }

    /// Takes note that the program frees what a launch of a graph allocated; `None` when the address is not
    /// a graph's.
    pub(super) fn close_graph_memory(&mut self, address: u64) -> Option<Outcome> {
        let memory = self.graph_memory.get_mut(&address)?;
        if std::mem::take(&mut memory.open) {
            return Some(Ok(()));
        }
        eprintln!("vgpu: free of 0x{address:x}, which is a graph's and not allocated now");
        Some(Err(error::INVALID_VALUE))
    }

    /// Before a launch: memory that is still allocated from the last one is freed, or an error.
    pub(super) fn open_graph_memory(
        &mut self,
        graph: &Graph,
        auto_free: bool,
        stream: u64,
    ) -> Outcome {
        for address in graph.allocations() {
            let is_open = self.graph_memory.get(&address).is_some_and(|m| m.open);
            if is_open && !auto_free {
                eprintln!(
                    "vgpu: graph launched again while its memory at 0x{address:x} is allocated (CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH frees it)"
                );
                return Err(error::INVALID_VALUE);
            }
            if is_open {
                self.enqueue(stream, Work::Free(address))?;
            }
        }
        for address in graph.allocations() {
            if let Some(memory) = self.graph_memory.get_mut(&address) {
                memory.open = !graph.frees(address);
            }
        }
        Ok(())
    }

    /// Executes an allocation, of a graph or of a stream.
    pub(super) fn begin_allocation(&mut self, address: u64) {
        if let Some(allocation) = self.memory.find(address) {
            allocation.live.store(true, Relaxed);
            if self.graph_memory.contains_key(&address) {
                allocation.set_defined(address, allocation.size, false);
            }
        }
    }

    /// Executes a free, of a graph or of a stream.
    pub(super) fn end_allocation(&mut self, address: u64) {
        if !self.graph_memory.contains_key(&address) {
            self.freeing.remove(&address);
            self.memory.free(address);
            return;
        }
        if let Some(allocation) = self.memory.find(address) {
            allocation.live.store(false, Relaxed);
        }
        self.collect_graph_memory();
    }

    /// Gives back addresses whose graphs are gone.
    pub(super) fn collect_graph_memory(&mut self) {
        let is_held = |address: u64, memory: &GraphMemory| {
            let queued =
                |work: &Work| matches!(work, Work::Allocate(a) | Work::Free(a) if *a == address);
            memory.open
                || self.graphs.values().any(|g| g.allocations().any(|a| a == address))
                || self.execs.values().any(|e| e.graph.allocations().any(|a| a == address))
                || self.streams.values().any(|s| s.queue.iter().any(|(_, work)| queued(work)))
        };
        let gone: Vec<u64> = self
            .graph_memory
            .iter()
            .filter(|(address, memory)| !is_held(**address, memory))
            .map(|(address, _)| *address)
            .collect();
        for address in gone {
            self.graph_memory.remove(&address);
            self.memory.free(address);
        }
    }
}
