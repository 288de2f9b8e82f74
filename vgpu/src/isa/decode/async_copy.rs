//! `cp.async` and `mbarrier`.

use super::{Decoder, Modifiers, Result};
use crate::isa::*;
use crate::ptx::{Operand, Type};

impl<'u, 'a> Decoder<'u, 'a> {
    pub(super) fn copy(&mut self, mut mods: Modifiers<'a>, ops: &[Operand<'a>]) -> Result<()> {
        if !mods.take("async") {
            return self.unsupported("this form of 'cp' is not supported");
        }
        if mods.take("commit_group") {
            self.finish(&mods)?;
            self.operands::<0>(ops)?;
            self.push(Op::AsyncCommit);
            return Ok(());
        }
        if mods.take("wait_all") {
            self.finish(&mods)?;
            self.operands::<0>(ops)?;
            self.push(Op::AsyncWait { pending: None });
            return Ok(());
        }
        if mods.take("wait_group") {
            self.finish(&mods)?;
            let [Operand::Int(pending @ 0..=1_000_000)] = ops else {
                return self.fail("'wait_group' needs a number of groups");
            };
            self.push(Op::AsyncWait { pending: Some(*pending as u32) });
            return Ok(());
        }
        if mods.take("mbarrier") {
            if !mods.take("arrive") {
                return self.unsupported("this form of 'cp.async.mbarrier' is not supported");
            }
            let no_increment = mods.take("noinc");
            let space = self.space(&mut mods);
            mods.types();
            self.finish(&mods)?;
            let [at] = self.operands(ops)?;
            let at = self.address(at, space)?;
            self.push(Op::Mbarrier(Box::new(Mbarrier::AsyncArrive { at, no_increment })));
            return Ok(());
        }
        let level = mods.take_word(&["ca", "cg"]);
        let shared = mods.take("shared") || mods.take("shared::cta");
        let global = mods.take("global");
        mods.take_word(&["L2::64B", "L2::128B", "L2::256B"]);
        if level.is_none() || !shared || !global {
            return self.unsupported("this form of 'cp.async' is not supported");
        }
        self.finish(&mods)?;
        let [to, from, Operand::Int(bytes), rest @ ..] = ops else {
            return self.fail("'cp.async' needs two addresses and a size");
        };
        let to = self.address(to, MemorySpace::Shared)?;
        let from = self.address(from, MemorySpace::Global)?;
        if !(matches!(bytes, 4 | 8 | 16) && (level == Some("ca") || *bytes == 16)) {
            return self.fail("'cp.async.ca' copies 4, 8 or 16 bytes, '.cg' 16");
        }
        let (mut source_bytes, mut ignore) = (None, None);
        match rest {
            [] => {}
            [one] => match self.pred_src(one) {
                Ok(p) if !matches!(one, Operand::Int(_)) => ignore = Some(p),
                _ => source_bytes = Some(self.src(one, Type::U32)?),
            },
            _ => return self.unsupported("cache policies are not supported"),
        }
        self.push(Op::AsyncCopy(Box::new(AsyncCopy {
            to,
            from,
            bytes: *bytes as u8,
            source_bytes,
            ignore,
        })));
        Ok(())
    }

    pub(super) fn mbarrier(&mut self, mut mods: Modifiers<'a>, ops: &[Operand<'a>]) -> Result<()> {
        const ACTIONS: [&str; 9] = [
            "init",
            "inval",
            "arrive",
            "arrive_drop",
            "expect_tx",
            "complete_tx",
            "test_wait",
            "try_wait",
            "pending_count",
        ];
        // `.arrive.expect_tx` has two of them; the first one names the action.
        let Some(action) = mods.take_word(&ACTIONS) else {
            return self.fail("'mbarrier' needs an action");
        };
        let expects = matches!(action, "arrive" | "arrive_drop") && mods.take("expect_tx");
        let no_complete = mods.take("noComplete");
        let parity = mods.take("parity");
        mods.take_word(&["release", "acquire", "relaxed"]);
        mods.take_word(&["cta", "cluster"]);
        let space = self.space(&mut mods);
        mods.types();
        self.finish(&mods)?;
        let op = match (action, ops) {
            ("init", [at, count]) => {
                Mbarrier::Init { at: self.address(at, space)?, count: self.src(count, Type::U32)? }
            }
            ("inval", [at]) => Mbarrier::Invalidate { at: self.address(at, space)? },
            ("expect_tx", [at, bytes]) => Mbarrier::ExpectTransactions {
                at: self.address(at, space)?,
                bytes: self.src(bytes, Type::U32)?,
            },
            ("arrive" | "arrive_drop", [state, at, rest @ ..]) if !no_complete => {
                let at = self.address(at, space)?;
                let state = match state {
                    Operand::Name("_") => None,
                    state => Some(self.dst(state, 8)?),
                };
                let one = self.constant(1, false);
                let (count, transactions) = match (expects, rest) {
                    (false, []) => (one, None),
                    (false, [count]) => (self.src(count, Type::U32)?, None),
                    (true, [bytes]) => (one, Some(self.src(bytes, Type::U32)?)),
                    _ => return self.fail("too many or too few operands"),
                };
                Mbarrier::Arrive { at, state, count, transactions, drop: action == "arrive_drop" }
            }
            ("test_wait" | "try_wait", [d, at, state] | [d, at, state, _]) => Mbarrier::Wait {
                at: self.address(at, space)?,
                d: self.pred_dst(d)?,
                state: self.src(state, if parity { Type::U32 } else { Type::U64 })?,
                parity,
            },
            ("pending_count", [d, state]) => {
                Mbarrier::PendingCount { d: self.dst(d, 4)?, state: self.src(state, Type::U64)? }
            }
            _ => return self.unsupported("this form of 'mbarrier' is not supported"),
        };
        self.push(Op::Mbarrier(Box::new(op)));
        Ok(())
    }
}
