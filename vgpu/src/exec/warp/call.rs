//! Calls, returns and the frames between.

use super::{Checked, Frame, Saved, Warp, found, lanes};
use crate::exec::Env;
use crate::exec::fault::FaultKind;
use crate::isa::lanes::LANES;
use crate::isa::*;

impl Warp {
    /// Byte offset of a lane's local memory.
    #[inline(always)]
    pub(crate) fn local_at(&self, lane: usize, address: u64) -> usize {
        lane * (self.local.len() / LANES) + address as usize
    }

    pub(super) fn copy_local(&mut self, lane: usize, from: u32, to: u32, bytes: u32) {
        let (from, to) = (self.local_at(lane, from as u64), self.local_at(lane, to as u64));
        self.local.copy_within(from..from + bytes as usize, to);
        if !self.local_defined.is_empty() {
            self.local_defined.copy_within(from..from + bytes as usize, to);
        }
    }

    pub(super) fn call(
        &mut self,
        env: &Env,
        function: u32,
        inputs: &[Copied],
        outputs: &[Copied],
        guard: u32,
    ) -> Checked<()> {
        let callee = &env.kernel.functions[function as usize];
        for lane in lanes(self.active & !guard) {
            self.lane_pc[lane] = self.pc + 1;
        }
        for lane in lanes(guard) {
            let caller = self.function[lane];
            let base = self.base[lane];
            let next = base + env.kernel.functions[caller as usize].frame;
            if (next + callee.frame) as usize > env.kernel.local_bytes {
                let message = format!(
                    "{} nested calls do not fit {} bytes of local memory",
                    self.depth[lane], env.kernel.local_bytes
                );
                return found(FaultKind::StackOverflow, lane, message);
            }
            for copy in inputs {
                self.copy_local(lane, base + copy.caller, next + copy.callee, copy.bytes);
            }
            let saved = callee.recursive.then(|| self.save(callee, lane));
            self.stacks[lane].push(Frame {
                pc: self.pc + 1,
                base,
                outputs,
                callee_function: function,
                caller_function: caller,
                saved,
            });
            self.base[lane] = next;
            self.function[lane] = function;
            self.depth[lane] += 1;
            self.lane_pc[lane] = callee.entry;
        }
        self.reschedule();
        Ok(())
    }

    pub(super) fn save(&self, callee: &Callee, lane: usize) -> Saved {
        let slots = callee
            .slots
            .clone()
            .map(|s| (self.regs[s as usize].0[lane], self.undef[s as usize]))
            .collect();
        let bit = |word: u32| word >> lane & 1 != 0;
        let preds = callee
            .preds
            .clone()
            .map(|p| (bit(self.preds[p as usize]), bit(self.pred_undef[p as usize])))
            .collect();
        Saved { slots, preds }
    }

    pub(super) fn ret(&mut self, env: &Env, guard: u32) {
        for lane in lanes(self.active & !guard) {
            self.lane_pc[lane] = self.pc + 1;
        }
        for lane in lanes(guard) {
            let Some(frame) = self.stacks[lane].pop() else { continue };
            // SAFETY: the list belongs to the call instruction, which lives as long as the kernel.
            for copy in unsafe { &*frame.outputs } {
                self.copy_local(
                    lane,
                    self.base[lane] + copy.callee,
                    frame.base + copy.caller,
                    copy.bytes,
                );
            }
            if let Some(saved) = &frame.saved {
                let callee = &env.kernel.functions[frame.callee_function as usize];
                for (slot, (value, undef)) in callee.slots.clone().zip(&saved.slots) {
                    // Constants and temporaries come back as they were, too.
                    self.regs[slot as usize].0[lane] = *value;
                    let bit = 1 << lane;
                    self.undef[slot as usize] = self.undef[slot as usize] & !bit | undef & bit;
                }
                for (pred, (value, undef)) in callee.preds.clone().zip(&saved.preds) {
                    let bit = 1 << lane;
                    let set = |word: u32, on: bool| if on { word | bit } else { word & !bit };
                    self.preds[pred as usize] = set(self.preds[pred as usize], *value);
                    self.pred_undef[pred as usize] = set(self.pred_undef[pred as usize], *undef);
                }
            }
            self.base[lane] = frame.base;
            self.function[lane] = frame.caller_function;
            self.depth[lane] -= 1;
            self.lane_pc[lane] = frame.pc;
        }
        self.reschedule();
    }
}
