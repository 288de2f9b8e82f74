//! Barriers of the block.

use super::{ALL, Checked, Pause, Warp, found, lanes};
use crate::exec::Env;
use crate::exec::block::BlockCore;
use crate::exec::fault::FaultKind;
use crate::isa::lanes::LANES;
use crate::isa::*;

impl Warp {
    /// Arrives at a barrier of the block.
    pub(super) fn barrier(
        &mut self,
        env: &Env,
        core: &mut BlockCore,
        how: (BarrierKind, Reg, Option<Reg>, bool),
        guard: u32,
    ) -> Checked<Option<Pause>> {
        let (kind, id, count, aligned) = how;
        if guard == 0 {
            self.pc += 1;
            return Ok(None);
        }
        let mut arriving = guard;
        if aligned && guard != self.live {
            let all = self.live;
            let groups = self.assemble(guard, |_, _| all)?;
            match groups[..] {
                [group] => arriving = group,
                _ => return Ok(None),
            }
        }
        let first = arriving.trailing_zeros() as usize;
        if env.undefined {
            let dirty = self.undef[id as usize] | count.map_or(0, |c| self.undef[c as usize]);
            if dirty & arriving != 0 {
                let message = "the barrier's number or count is undefined";
                self.report(env, FaultKind::Undefined, first, message)?;
            }
        }
        let pred = match kind {
            BarrierKind::RedAnd(_, p) | BarrierKind::RedOr(_, p) | BarrierKind::RedPopc(_, p) => {
                if let Some(lane) = lanes(self.pred_undef[p.p as usize] & arriving).next() {
                    let message = format!(
                        "the predicate of this barrier is undefined{}",
                        self.pred_origin(env, p.p)
                    );
                    self.report(env, FaultKind::Undefined, lane, message)?;
                }
                self.pred(p)
            }
            _ => 0,
        };
        let number = self.narrow(id)[first];
        let count = count.map(|c| self.narrow(c)[first]);
        if number > 15 {
            return found(
                FaultKind::IllegalInstruction,
                first,
                format!("barrier {number} does not exist; there are 16"),
            );
        }
        if let Some(count) = count
            && (count == 0 || count % LANES as u32 != 0)
        {
            return found(
                FaultKind::IllegalInstruction,
                first,
                format!("a barrier for {count} threads; it must be a multiple of 32"),
            );
        }
        core.arrive(self, number as usize, count, kind, arriving, pred)?;
        let next = self.pc + 1;
        for lane in lanes(self.active) {
            self.lane_pc[lane] = next;
        }
        if !matches!(kind, BarrierKind::Arrive) {
            self.waiting |= arriving;
        }
        if !self.reschedule() {
            return Ok(Some(Pause::Waiting));
        }
        Ok(None)
    }

    /// Goes on after a barrier.
    pub(crate) fn release(
        &mut self,
        lanes_released: u32,
        kind: BarrierKind,
        count: u32,
        total: u32,
    ) {
        self.waiting &= !lanes_released;
        self.lane_order.synchronise(lanes_released, lanes_released == self.live);
        match kind {
            BarrierKind::RedAnd(p, _) => {
                self.set_pred(p, if count == total { ALL } else { 0 }, lanes_released, 0)
            }
            BarrierKind::RedOr(p, _) => {
                self.set_pred(p, if count != 0 { ALL } else { 0 }, lanes_released, 0)
            }
            BarrierKind::RedPopc(d, _) => {
                self.put(d, &[count; LANES], lanes_released);
                self.undef[d as usize] &= !lanes_released;
            }
            _ => {}
        }
    }
}
