//! Which lanes run next, and which wait for each other.

use super::{Checked, Warp, found, lanes};
use crate::exec::fault::FaultKind;
use crate::isa::lanes::LANES;

/// Backward branches of a diverged group before another one has its turn.
const PATIENCE: u32 = 64;

impl Warp {
    /// Remembers where the running lanes are.
    pub(super) fn park(&mut self) {
        for lane in lanes(self.active) {
            self.lane_pc[lane] = self.pc;
        }
    }

    pub(super) fn runnable(&self) -> u32 {
        self.live & !self.blocked & !self.waiting
    }

    /// Picks the group that runs next; false when no lane can.
    pub(crate) fn reschedule(&mut self) -> bool {
        let candidates = self.runnable();
        self.active = 0;
        self.wait_min = u32::MAX;
        if candidates == 0 {
            return false;
        }
        let deepest = lanes(candidates).map(|l| self.depth[l]).max().unwrap_or(0);
        let pc = lanes(candidates)
            .filter(|l| self.depth[*l] == deepest)
            .map(|l| self.lane_pc[l])
            .min()
            .unwrap_or(0);
        for lane in lanes(candidates) {
            if self.depth[lane] == deepest {
                if self.lane_pc[lane] == pc {
                    self.active |= 1 << lane;
                } else {
                    self.wait_min = self.wait_min.min(self.lane_pc[lane]);
                }
            }
        }
        self.pc = pc;
        true
    }

    /// Counts backward branches since which an atomic or volatile access happened: only such a loop can
    /// be waiting for another lane.
    pub(super) fn look_for_spinning(&mut self) {
        if std::mem::take(&mut self.polled) {
            self.backward += 1;
            if self.backward > PATIENCE {
                self.rotate();
            }
        }
    }

    /// Lets another group have a turn when the running one only branches backwards.
    pub(super) fn rotate(&mut self) {
        self.park();
        self.backward = 0;
        let others = self.runnable() & !self.active;
        if others == 0 {
            return;
        }
        // Lanes take turns in a circle, so that none is forgotten.
        let next = (1..=LANES).map(|i| (self.last_turn + i) % LANES).find(|l| others >> l & 1 != 0);
        let Some(chosen) = next else { return };
        self.last_turn = chosen;
        let (pc, depth) = (self.lane_pc[chosen], self.depth[chosen]);
        self.active = lanes(others)
            .filter(|l| self.lane_pc[*l] == pc && self.depth[*l] == depth)
            .fold(0, |m, l| m | 1 << l);
        self.pc = pc;
        // This group is ahead of others on purpose: no meeting until it stops by itself.
        self.wait_min = u32::MAX;
    }

    /// Splits the running group: `jump` goes to `target`, the rest to the next instruction.
    pub(super) fn diverge(&mut self, jump: u32, target: u32) {
        let next = self.pc + 1;
        for lane in lanes(self.active) {
            self.lane_pc[lane] = if jump >> lane & 1 != 0 { target } else { next };
        }
        self.reschedule();
    }

    /// Collects the lanes that execute a warp-wide instruction together.
    ///
    /// `mask` are the lanes that arrive now, `required` gives for each the lanes it names. Groups that are
    /// complete are returned, the rest wait. When nobody is complete the result is empty and another group
    /// has been scheduled.
    pub(super) fn assemble(
        &mut self,
        mask: u32,
        required: impl Fn(&Self, usize) -> u32,
    ) -> Checked<Vec<u32>> {
        let arrived = mask | self.blocked_here();
        let mut groups = Vec::new();
        let mut left = arrived;
        while left != 0 {
            let first = left.trailing_zeros() as usize;
            let wanted = required(self, first);
            let same =
                lanes(left).filter(|l| required(self, *l) == wanted).fold(0, |m, l| m | 1 << l);
            left &= !same;
            if let Some(lane) = lanes(same & !wanted).next() {
                let message = format!(
                    "lane {lane} executes a .sync instruction with member mask 0x{wanted:08x}, which does not name it"
                );
                return found(FaultKind::IllegalInstruction, lane, message);
            }
            if wanted & self.live & !same == 0 {
                groups.push(same);
            }
        }
        let ready = groups.iter().fold(0, |all, g| all | g);
        let stay = arrived & !ready;
        if stay != 0 {
            for lane in lanes(stay) {
                self.lane_pc[lane] = self.pc;
            }
            // Lanes that the guard lets pass go on by themselves.
            let pass = (self.active & !mask) | ready;
            self.blocked = self.blocked & !ready | stay;
            self.active = pass;
            if pass == 0 {
                self.reschedule();
            } else if ready == 0 {
                self.pc += 1;
            }
        } else {
            self.blocked &= !ready;
            self.active |= ready;
        }
        Ok(groups)
    }

    pub(super) fn blocked_here(&self) -> u32 {
        if self.blocked == 0 {
            return 0;
        }
        let depth = self.depth[self.active.trailing_zeros() as usize & 31];
        lanes(self.blocked)
            .filter(|l| self.lane_pc[*l] == self.pc && self.depth[*l] == depth)
            .fold(0, |m, l| m | 1 << l)
    }

    /// Whether all live lanes are here to execute an instruction of the whole warp. If not, those that
    /// are wait.
    pub(super) fn whole_warp(&mut self, guard: u32) -> Checked<bool> {
        if guard == self.live {
            return Ok(true);
        }
        if guard == 0 {
            self.pc += 1;
            return Ok(false);
        }
        let live = self.live;
        Ok(!self.assemble(guard, |_, _| live)?.is_empty())
    }
}
