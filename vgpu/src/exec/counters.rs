//! What a launch did, counted as a profiler would count it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::isa::{Class, DecodedKernel, Op};

/// Counts of one instruction of the code.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PerInstruction {
    /// Times a warp executed it.
    pub(crate) warps: u64,
    /// Lanes that took part.
    pub(crate) lanes: u64,
    pub(crate) diverged: u64,
    /// Bytes that lanes asked for.
    pub(crate) bytes: u64,
    /// 32-byte sectors touched, and the fewest that could hold the distinct bytes.
    pub(crate) sectors: u64,
    pub(crate) sectors_needed: u64,
    /// Passes over the banks of shared memory, and the fewest that could serve the bytes.
    pub(crate) wavefronts: u64,
    pub(crate) wavefronts_needed: u64,
}

/// Counts of one worker thread, an entry an instruction.
#[derive(Default)]
pub(crate) struct Stats {
    pub(crate) of: Vec<PerInstruction>,
    pub(crate) blocks: u64,
}

impl Stats {
    pub(crate) fn new(len: usize) -> Self {
        Self { of: vec![PerInstruction::default(); len], blocks: 0 }
    }

    #[inline(always)]
    pub(crate) fn step(&mut self, pc: usize, mask: u32) {
        let entry = &mut self.of[pc];
        entry.warps += 1;
        entry.lanes += mask.count_ones() as u64;
    }

    pub(crate) fn diverged(&mut self, pc: usize) {
        self.of[pc].diverged += 1;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.blocks += other.blocks;
        for (a, b) in self.of.iter_mut().zip(&other.of) {
            a.warps += b.warps;
            a.lanes += b.lanes;
            a.diverged += b.diverged;
            a.bytes += b.bytes;
            a.sectors += b.sectors;
            a.sectors_needed += b.sectors_needed;
            a.wavefronts += b.wavefronts;
            a.wavefronts_needed += b.wavefronts_needed;
        }
    }

    /// Counts a global access of `bytes` a lane at the given addresses.
    pub(crate) fn global(&mut self, pc: usize, addresses: impl Iterator<Item = u64>, bytes: u64) {
        const SECTOR: u64 = 32;
        let mut sectors = [0u64; 64];
        let mut count = 0;
        let mut starts = [0u64; 32];
        let mut lanes = 0;
        for address in addresses {
            starts[lanes] = address;
            lanes += 1;
            for sector in [address / SECTOR, (address + bytes - 1) / SECTOR] {
                if count == 0 || sectors[count - 1] != sector {
                    sectors[count] = sector;
                    count += 1;
                }
            }
        }
        let touched = distinct(&mut sectors[..count]);
        let unique = distinct(&mut starts[..lanes]);
        let entry = &mut self.of[pc];
        entry.bytes += lanes as u64 * bytes;
        entry.sectors += touched as u64;
        entry.sectors_needed += (unique as u64 * bytes).div_ceil(SECTOR);
    }

    /// Counts a shared access of `bytes` a lane: lanes that together ask for 128 bytes form one request,
    /// which takes as many passes as the most wanted bank has distinct words.
    pub(crate) fn shared(&mut self, pc: usize, addresses: &[u32], bytes: u32) {
        let per_request = (128 / bytes.max(4)) as usize;
        let (mut passes, mut requests) = (0, 0);
        for request in addresses.chunks(per_request) {
            let mut words = [0u32; 128];
            let mut count = 0;
            for address in request {
                for word in address / 4..=(address + bytes - 1) / 4 {
                    words[count] = word;
                    count += 1;
                }
            }
            let words = &mut words[..count];
            words.sort_unstable();
            let mut banks = [0u8; 32];
            let mut last = None;
            for word in words.iter() {
                if last != Some(*word) {
                    banks[*word as usize % 32] += 1;
                    last = Some(*word);
                }
            }
            passes += *banks.iter().max().unwrap_or(&0) as u64;
            requests += 1;
        }
        let entry = &mut self.of[pc];
        entry.bytes += addresses.len() as u64 * bytes as u64;
        entry.wavefronts += passes;
        entry.wavefronts_needed += requests;
    }
}

fn distinct(values: &mut [u64]) -> usize {
    if !values.is_sorted() {
        values.sort_unstable();
    }
    (0..values.len()).filter(|i| *i == 0 || values[*i] != values[*i - 1]).count()
}

/// Counts of the accesses at one PTX line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineCounters {
    /// Bytes that lanes asked for.
    pub bytes: u64,
    /// 32-byte sectors of global memory touched.
    pub sectors: u64,
    /// Sectors that the distinct bytes would fill at best.
    pub sectors_needed: u64,
    /// Passes over the banks of shared memory.
    pub wavefronts: u64,
    /// Passes without bank conflicts.
    pub wavefronts_needed: u64,
}

/// What one launch did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// The kernel's name as in the PTX.
    pub kernel: String,
    /// Blocks of the grid.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Static and dynamic shared memory of a block, in bytes.
    pub shared_bytes: u64,
    /// Warp instructions by class.
    pub instructions: BTreeMap<&'static str, u64>,
    /// Lanes that took part in them.
    pub lane_operations: u64,
    /// Bytes that lanes loaded from and stored to global memory.
    pub global_bytes: u64,
    /// Bytes that lanes loaded from and stored to shared memory.
    pub shared_traffic: u64,
    /// 32-byte sectors of global memory that requests touched.
    pub sectors: u64,
    /// Sectors that the distinct bytes would fill at best.
    pub sectors_needed: u64,
    /// Passes over the banks of shared memory.
    pub wavefronts: u64,
    /// Passes that bank conflicts added.
    pub bank_conflicts: u64,
    /// Branches at which a warp split.
    pub divergent_branches: u64,
    /// Barrier instructions.
    pub barriers: u64,
    /// Atomic instructions.
    pub atomics: u64,
    /// Tensor-core instructions.
    pub tensor_instructions: u64,
    /// Floating-point operations of them.
    pub tensor_flops: u64,
    /// Floating-point operations outside of them; a fused multiply-add counts as two.
    pub flops: u64,
    /// Accesses by PTX line.
    pub lines: BTreeMap<u32, LineCounters>,
    /// Registers a thread, from ptxas where one is known.
    pub registers: Option<u32>,
    /// Resident warps of a processor over its maximum, in thousandths; needs the registers.
    pub occupancy_permille: Option<u32>,
}

impl Counters {
    pub(crate) fn gather(
        kernel: &DecodedKernel,
        grid: [u32; 3],
        block: [u32; 3],
        shared: usize,
        stats: &Stats,
    ) -> Self {
        let mut c = Self {
            kernel: kernel.name.clone(),
            grid,
            block,
            shared_bytes: shared as u64,
            ..Self::default()
        };
        for (inst, n) in kernel.code.iter().zip(&stats.of) {
            if n.warps == 0 {
                continue;
            }
            if inst.class != Class::None {
                *c.instructions.entry(inst.class.name()).or_default() += n.warps;
                c.lane_operations += n.lanes;
            }
            c.divergent_branches += n.diverged;
            match inst.class {
                Class::Atomic => c.atomics += n.warps,
                Class::Single | Class::Double => c.flops += n.lanes * flops(&inst.op),
                Class::Half => c.flops += n.lanes * flops(&inst.op),
                _ => {}
            }
            match &inst.op {
                Op::Barrier { .. } => c.barriers += n.warps,
                Op::Mma(m) => {
                    c.tensor_instructions += n.warps;
                    c.tensor_flops += n.warps * 2 * 16 * m.n as u64 * m.k as u64;
                }
                _ => {}
            }
            if n.bytes == 0 {
                continue;
            }
            if n.sectors != 0 {
                c.global_bytes += n.bytes;
            } else {
                c.shared_traffic += n.bytes;
            }
            c.sectors += n.sectors;
            c.sectors_needed += n.sectors_needed;
            c.wavefronts += n.wavefronts;
            c.bank_conflicts += n.wavefronts - n.wavefronts_needed;
            let line = c.lines.entry(inst.line).or_default();
            line.bytes += n.bytes;
            line.sectors += n.sectors;
            line.sectors_needed += n.sectors_needed;
            line.wavefronts += n.wavefronts;
            line.wavefronts_needed += n.wavefronts_needed;
        }
        c
    }

    /// One line of JSON.
    pub fn json(&self) -> String {
        let mut out = String::new();
        let triple = |v: [u32; 3]| format!("[{},{},{}]", v[0], v[1], v[2]);
        let _ = write!(
            out,
            "{{\"kernel\":\"{}\",\"grid\":{},\"block\":{},\"shared_bytes\":{}",
            self.kernel.replace('\\', "\\\\").replace('"', "\\\""),
            triple(self.grid),
            triple(self.block),
            self.shared_bytes
        );
        let classes: Vec<String> =
            self.instructions.iter().map(|(name, n)| format!("\"{name}\":{n}")).collect();
        let _ = write!(out, ",\"instructions\":{{{}}}", classes.join(","));
        for (name, value) in self.totals() {
            let _ = write!(out, ",\"{name}\":{value}");
        }
        let lines: Vec<String> = self
            .lines
            .iter()
            .map(|(line, c)| {
                format!(
                    "\"{line}\":{{\"bytes\":{},\"sectors\":{},\"sectors_needed\":{},\"wavefronts\":{},\"wavefronts_needed\":{}}}",
                    c.bytes, c.sectors, c.sectors_needed, c.wavefronts, c.wavefronts_needed
                )
            })
            .collect();
        let _ = write!(out, ",\"lines\":{{{}}}", lines.join(","));
        if let Some(registers) = self.registers {
            let _ = write!(out, ",\"registers\":{registers}");
        }
        if let Some(occupancy) = self.occupancy_permille {
            let _ = write!(out, ",\"occupancy\":{:.3}", occupancy as f64 / 1000.0);
        }
        out + "}"
    }

    fn totals(&self) -> [(&'static str, u64); 14] {
        [
            ("warp_instructions", self.instructions.values().sum()),
            ("lane_operations", self.lane_operations),
            ("global_bytes", self.global_bytes),
            ("shared_traffic", self.shared_traffic),
            ("sectors", self.sectors),
            ("sectors_needed", self.sectors_needed),
            ("wavefronts", self.wavefronts),
            ("bank_conflicts", self.bank_conflicts),
            ("divergent_branches", self.divergent_branches),
            ("barriers", self.barriers),
            ("atomics", self.atomics),
            ("tensor_instructions", self.tensor_instructions),
            ("tensor_flops", self.tensor_flops),
            ("flops", self.flops),
        ]
    }

    /// The same for people.
    pub fn table(&self) -> String {
        let mut out = format!(
            "{}  grid {:?}  block {:?}  shared {} B\n",
            self.kernel, self.grid, self.block, self.shared_bytes
        );
        for (name, value) in self.totals() {
            let _ = writeln!(out, "  {name:<22}{value:>16}");
        }
        for class in Class::ALL {
            if let Some(n) = self.instructions.get(class.name()) {
                let _ = writeln!(out, "    {:<20}{n:>16}", class.name());
            }
        }
        for (line, c) in &self.lines {
            let _ = writeln!(
                out,
                "  PTX line {line:<6} bytes {:<10} sectors {}/{}  wavefronts {}/{}",
                c.bytes, c.sectors, c.sectors_needed, c.wavefronts, c.wavefronts_needed
            );
        }
        out
    }
}

/// Floating-point operations of one lane.
fn flops(op: &Op) -> u64 {
    match op {
        Op::Alu(alu) => alu.flops as u64,
        _ => 0,
    }
}
