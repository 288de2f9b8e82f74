//! A block: its warps, shared memory, barriers and the order in which warps take turns.

use std::collections::HashMap;

use super::Env;
use super::counters::Stats;
use super::fault::{Fault, FaultKind, Severity};
use super::random::Random;
use super::shadow::{BlockOrder, SharedShadow};
use super::warp::{Checked, Finding, Pause, Warp, found, lanes};
use crate::isa::BarrierKind;
use crate::isa::lanes::LANES;

/// What the warps of a block share.
pub(crate) struct BlockCore {
    pub(crate) index: [u32; 3],
    pub(crate) shared: Box<[u8]>,
    pub(crate) shared_defined: Box<[u8]>,
    pub(crate) shadow: SharedShadow,
    pub(crate) order: BlockOrder,
    barriers: [Barrier; 16],
    /// Clocks that releases left at atomic variables, by generic address.
    locations: HashMap<u64, Vec<u32>>,
    pub(crate) mbarriers: HashMap<u32, MbarrierState>,
    /// Index of the allocation that was used last.
    pub(crate) recent: usize,
}

/// One of the sixteen barriers.
#[derive(Default)]
struct Barrier {
    count: Option<u32>,
    /// Threads that arrived, whole warps counting 32.
    threads: u32,
    arrivals: Vec<Arrival>,
    /// Lanes whose predicate was true, and lanes in all.
    votes: u32,
    voters: u32,
    clock: Vec<u32>,
}

struct Arrival {
    warp: usize,
    lanes: u32,
    kind: BarrierKind,
}

/// A barrier object in shared memory.
pub(crate) struct MbarrierState {
    pub(crate) expected: i64,
    pub(crate) pending: i64,
    /// Bytes of bulk copies still to come.
    pub(crate) transactions: i64,
    pub(crate) phase: u64,
    pub(crate) arriving: Vec<u32>,
    /// Clock of the phases that are over.
    pub(crate) done: Vec<u32>,
}

/// Componentwise maximum.
pub(crate) fn join(into: &mut Vec<u32>, other: &[u32]) {
    if into.len() < other.len() {
        into.resize(other.len(), 0);
    }
    for (a, b) in into.iter_mut().zip(other) {
        *a = (*a).max(*b);
    }
}

impl MbarrierState {
    pub(crate) fn new(count: u32) -> Self {
        let count = count as i64;
        Self {
            expected: count,
            pending: count,
            transactions: 0,
            phase: 0,
            arriving: Vec::new(),
            done: Vec::new(),
        }
    }

    pub(crate) fn settle(&mut self) {
        if self.pending <= 0 && self.transactions == 0 {
            self.phase += 1;
            self.pending = self.expected;
            let arrived = std::mem::take(&mut self.arriving);
            join(&mut self.done, &arrived);
        }
    }
}

impl BlockCore {
    /// Counts lanes in at a barrier.
    pub(crate) fn arrive(
        &mut self,
        warp: &mut Warp,
        id: usize,
        count: Option<u32>,
        kind: BarrierKind,
        lanes: u32,
        pred: u32,
    ) -> Checked<()> {
        let barrier = &mut self.barriers[id];
        if barrier.arrivals.is_empty() {
            barrier.count = count;
        } else if barrier.count != count {
            let show = |c: Option<u32>| c.map_or("all".into(), |c| c.to_string());
            let message = format!(
                "barrier {id} for {} threads, where others wait for {}",
                show(count),
                show(barrier.count)
            );
            return found(FaultKind::BarrierDivergence, lanes.trailing_zeros() as usize, message);
        }
        let same_sort =
            |a: &BarrierKind| std::mem::discriminant(a) == std::mem::discriminant(&kind);
        let is_reduction = |k: &BarrierKind| !matches!(k, BarrierKind::Sync | BarrierKind::Arrive);
        if let Some(other) = barrier
            .arrivals
            .iter()
            .find(|a| !same_sort(&a.kind) && (is_reduction(&a.kind) || is_reduction(&kind)))
        {
            let message = format!(
                "barrier {id} is reduced by some threads and not by others (warp {})",
                other.warp
            );
            return found(FaultKind::BarrierDivergence, lanes.trailing_zeros() as usize, message);
        }
        barrier.threads += if lanes == warp.live { LANES as u32 } else { lanes.count_ones() };
        barrier.votes += (pred & lanes).count_ones();
        barrier.voters += lanes.count_ones();
        join(&mut barrier.clock, &warp.clock);
        warp.clock[warp.index] += 1;
        barrier.arrivals.push(Arrival { warp: warp.index, lanes, kind });
        Ok(())
    }

    /// A fence orders what the warp did so far before the atomics that follow.
    pub(crate) fn fence(&mut self, env: &Env, warp: &mut Warp, gpu: bool) {
        if !env.orders {
            return;
        }
        warp.fenced = Some(warp.clock.clone());
        warp.clock[warp.index] += 1;
        if gpu {
            self.order.fence();
        }
    }

    /// An atomic or volatile access, which may order warps and blocks.
    pub(crate) fn synchronise(
        &mut self,
        env: &Env,
        warp: &mut Warp,
        address: u64,
        reads: bool,
        writes: bool,
        order: crate::isa::Order,
    ) {
        if !(env.orders && env.fences) {
            return;
        }
        if reads {
            warp.lane_order.acquire(address);
            if let Some(known) = self.locations.get(&address) {
                join(&mut warp.clock, known);
            }
        }
        if writes {
            if order.releases() || warp.fenced.is_some() {
                warp.lane_order.release(address);
            }
            if order.releases() {
                join(self.locations.entry(address).or_default(), &warp.clock);
                warp.clock[warp.index] += 1;
            } else if let Some(fenced) = &warp.fenced {
                join(self.locations.entry(address).or_default(), fenced);
            }
        }
        if env.race_global && address >> 56 == 0 {
            env.order.synchronise(&mut self.order, address, reads, writes, order.releases());
        }
    }
}

/// What became of a block.
pub(crate) enum Status {
    Running,
    Done,
}

pub(crate) struct Block {
    pub(crate) core: BlockCore,
    warps: Vec<Warp>,
    turns: Random,
}

impl Block {
    pub(crate) fn new(env: &Env) -> Self {
        let threads = env.block.iter().product::<u32>() as usize;
        let warps = threads.div_ceil(LANES);
        let shared = env.shared_bytes;
        let core = BlockCore {
            index: [0; 3],
            shared: vec![0xcb; shared].into_boxed_slice(),
            shared_defined: vec![0; if env.undefined { shared } else { 0 }].into_boxed_slice(),
            shadow: SharedShadow::new(if env.shadows { shared } else { 0 }, env.race_warp),
            order: BlockOrder::default(),
            barriers: Default::default(),
            locations: HashMap::new(),
            mbarriers: HashMap::new(),
            recent: 0,
        };
        Self {
            core,
            warps: (0..warps).map(|i| Warp::new(env, i, warps)).collect(),
            turns: Random::new(0),
        }
    }

    /// Makes this the block with that linear index.
    pub(crate) fn start(&mut self, env: &Env, linear: u32) {
        let [nx, ny, _] = env.grid;
        self.core.index = [linear % nx, linear / nx % ny, linear / nx / ny];
        self.core.order = env.order.enter(linear);
        self.core.shared.fill(0xcb);
        self.core.shared_defined.fill(0);
        self.core.shadow.reset();
        self.core.barriers = Default::default();
        self.core.locations.clear();
        self.core.mbarriers.clear();
        self.turns = Random::new(env.seed ^ (linear as u64) << 20);
        for warp in &mut self.warps {
            warp.start(env, self.core.index);
        }
    }

    /// Runs for about `budget` warp instructions.
    pub(crate) fn run(
        &mut self,
        env: &Env,
        stats: &mut Stats,
        budget: u32,
    ) -> Result<Status, Box<Fault>> {
        let mut left = budget as i64;
        let mut order: Vec<usize> = (0..self.warps.len()).collect();
        while left > 0 {
            self.turns.shuffle(&mut order);
            let (mut done, mut ran) = (0, false);
            for at in &order {
                let warp = &mut self.warps[*at];
                if warp.live == 0 {
                    done += 1;
                    continue;
                }
                if warp.live & !warp.blocked & !warp.waiting == 0 {
                    continue;
                }
                ran = true;
                // Short and uneven turns: warps of a real processor interleave as they like.
                let turn = 256 + (self.turns.next() & 511) as u32;
                left -= turn as i64;
                match warp.run(env, &mut self.core, stats, turn) {
                    Ok(Pause::Done) => done += 1,
                    Ok(Pause::Turn | Pause::Waiting) => {}
                    Err(what) => return Err(self.fault(env, *at, *what)),
                }
                self.release(env);
            }
            if done == self.warps.len() {
                stats.blocks += 1;
                return Ok(Status::Done);
            }
            if !ran && !self.release(env) {
                return Err(self.stuck(env));
            }
        }
        Ok(Status::Running)
    }

    /// Opens the barriers that are complete.
    fn release(&mut self, _env: &Env) -> bool {
        let mut opened = false;
        for id in 0..16 {
            let barrier = &self.core.barriers[id];
            if barrier.arrivals.is_empty() {
                continue;
            }
            let complete = match barrier.count {
                Some(count) => barrier.threads >= count,
                None => {
                    let missing = |warp: &Warp| {
                        let here = barrier
                            .arrivals
                            .iter()
                            .filter(|a| a.warp == warp.index)
                            .fold(0, |m, a| m | a.lanes);
                        warp.live & !here != 0
                    };
                    !self.warps.iter().any(missing)
                }
            };
            if !complete {
                continue;
            }
            let mut barrier = std::mem::take(&mut self.core.barriers[id]);
            if barrier.count.is_none() {
                // Lanes that exited count as arrived: what they did is before what follows.
                for warp in self.warps.iter_mut().filter(|w| w.born & !w.live != 0) {
                    join(&mut barrier.clock, &warp.clock);
                    warp.clock[warp.index] += 1;
                }
            }
            for arrival in &barrier.arrivals {
                if matches!(arrival.kind, BarrierKind::Arrive) {
                    continue;
                }
                let warp = &mut self.warps[arrival.warp];
                warp.release(arrival.lanes, arrival.kind, barrier.votes, barrier.voters);
                join(&mut warp.clock, &barrier.clock);
            }
            opened = true;
        }
        opened
    }

    fn fault(&self, env: &Env, warp: usize, what: Finding) -> Box<Fault> {
        let running = &self.warps[warp];
        let pc = running.pc;
        Box::new(running.fault(env, what.lane, pc, what.kind, Severity::Error, what.message))
    }

    /// Nobody in the block can go on: says who waits where.
    fn stuck(&self, env: &Env) -> Box<Fault> {
        let code = &env.kernel.code;
        let line = |pc: u32| code[(pc as usize).min(code.len() - 1)].line;
        let mut places: Vec<String> = Vec::new();
        let mut culprit = None;
        for warp in self.warps.iter().filter(|w| w.live != 0) {
            let mut groups: Vec<(u32, bool, u32)> = Vec::new();
            for lane in lanes(warp.live) {
                let at_barrier = warp.waiting >> lane & 1 != 0;
                let pc = warp.lane_pc[lane] - at_barrier as u32;
                match groups.iter_mut().find(|g| g.0 == pc && g.1 == at_barrier) {
                    Some(group) => group.2 |= 1 << lane,
                    None => groups.push((pc, at_barrier, 1 << lane)),
                }
            }
            if groups.len() > 1 || culprit.is_none() {
                let (pc, _, mask) = groups[0];
                if culprit.as_ref().is_none_or(|(_, _, _, split)| !split) {
                    culprit =
                        Some((warp.index, mask.trailing_zeros() as usize, pc, groups.len() > 1));
                }
            }
            for (pc, at_barrier, mask) in groups {
                let how = if at_barrier { "barrier" } else { "warp-wide instruction" };
                if places.len() < 8 {
                    places.push(format!(
                        "warp {} lanes 0x{mask:08x} at the {how} of PTX line {}",
                        warp.index,
                        line(pc)
                    ));
                }
            }
        }
        let (warp, lane, pc, split) = culprit.unwrap_or((0, 0, 0, false));
        let exited: usize =
            self.warps.iter().map(|w| (w.born & !w.live).count_ones() as usize).sum();
        let message =
            format!("nobody can go on: {}; {exited} threads have exited", places.join(", "));
        let kind = if split { FaultKind::BarrierDivergence } else { FaultKind::Deadlock };
        Box::new(self.warps[warp].fault(env, Some(lane), pc, kind, Severity::Error, message))
    }
}
