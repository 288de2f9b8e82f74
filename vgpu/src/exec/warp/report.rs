//! What a warp says about itself: findings, where they are, where undefined values came from.

use super::{Checked, Finding, Warp, found};
use crate::exec::Env;
use crate::exec::fault::{Fault, FaultKind, Severity};
use crate::isa::lanes::LANES;
use crate::isa::{MemorySpace, NO_PRED, Op, Pred, Reg};

/// Origin of a register that nothing was written to.
pub(super) const NEVER: u32 = u32::MAX;

impl Warp {
    /// A finding about a lane, or the whole warp, at an instruction.
    pub(crate) fn fault(
        &self,
        env: &Env,
        lane: Option<usize>,
        pc: u32,
        kind: FaultKind,
        severity: Severity,
        message: String,
    ) -> Fault {
        let inst = &env.kernel.code[(pc as usize).min(env.kernel.code.len() - 1)];
        Fault {
            kind,
            severity,
            kernel: env.kernel.name.clone(),
            block: self.block,
            thread: lane.map(|lane| self.thread(env, lane)),
            ptx_line: inst.line,
            source: env.kernel.source(inst.loc),
            message,
        }
    }

    /// `threadIdx` of a lane.
    pub(crate) fn thread(&self, env: &Env, lane: usize) -> [u32; 3] {
        let [nx, ny, _] = env.block;
        let linear = (self.index * LANES + lane) as u32;
        [linear % nx, linear / nx % ny, linear / nx / ny]
    }

    /// Says that something is wrong that does not keep the kernel from going on; it goes on if the device
    /// was told so.
    #[cold]
    #[inline(never)]
    pub(crate) fn report(
        &self,
        env: &Env,
        kind: FaultKind,
        lane: usize,
        message: impl Into<String>,
    ) -> Checked<()> {
        if !env.keep_going {
            return found(kind, lane, message);
        }
        self.note(env, kind, Severity::Error, lane, message.into());
        Ok(())
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn warn(&self, env: &Env, kind: FaultKind, lane: usize, message: String) {
        self.note(env, kind, Severity::Warning, lane, message);
    }

    /// The lane of an access that cannot be done, when the kernel is to go on without it.
    #[cold]
    #[inline(never)]
    pub(super) fn skip(&self, env: &Env, what: Box<Finding>) -> Checked<u32> {
        match what.lane {
            Some(lane) if env.keep_going => {
                self.note(env, what.kind, Severity::Error, lane, what.message);
                Ok(1 << lane)
            }
            _ => Err(what),
        }
    }

    fn note(&self, env: &Env, kind: FaultKind, severity: Severity, lane: usize, message: String) {
        let fault = || self.fault(env, Some(lane), self.pc, kind, severity, message);
        env.findings.note(self.pc, kind, severity, fault);
    }

    /// Where the undefined value of a register came from, as the end of a sentence.
    #[cold]
    pub(crate) fn origin(&self, env: &Env, r: Reg) -> String {
        explain(env, self.origins[r as usize])
    }

    /// Where the undefined value of a predicate came from.
    #[cold]
    pub(crate) fn pred_origin(&self, env: &Env, p: Pred) -> String {
        explain(env, self.pred_origins[p as usize])
    }

    /// Remembers where undefined predicates come from: registers, or else the predicate that guards.
    #[cold]
    pub(crate) fn inherit_predicate(&mut self, d: &[Pred], sources: &[Reg], guard: Pred) {
        let from = sources.iter().find(|r| self.undef[**r as usize] != 0);
        let origin = match from {
            Some(r) => self.origins[*r as usize],
            None => self.pred_origins[guard as usize],
        };
        for p in d.iter().filter(|p| **p != NO_PRED) {
            self.pred_origins[*p as usize] = origin;
        }
    }

    /// Remembers that undefined bits of a register come from those of the first undefined one of others.
    #[cold]
    pub(crate) fn inherit(&mut self, d: Reg, sources: &[Reg], mask: u32) {
        if let Some(from) = sources.iter().find(|r| self.undef[**r as usize] & mask != 0) {
            self.origins[d as usize] = self.origins[*from as usize];
        }
    }
}

fn explain(env: &Env, origin: u32) -> String {
    let Some(inst) = env.kernel.code.get(origin as usize) else {
        return "; nothing was ever written to the register it comes from".into();
    };
    let space = |space: MemorySpace| match space {
        MemorySpace::Generic => String::new(),
        other => format!("{} ", other.name()),
    };
    let what = match &inst.op {
        Op::Load(t) => {
            format!("it was loaded from {}memory that nobody wrote at", space(t.at.space))
        }
        Op::Matrix(_) => "it was loaded from shared memory that nobody wrote at".into(),
        Op::Atomic(_) => "it was fetched from memory that nobody wrote at".into(),
        Op::Shuffle { .. } => "it comes from a lane that takes no part in the shuffle at".into(),
        _ => "it comes from".into(),
    };
    format!("; {what} {}", env.kernel.place(origin))
}
