//! What lanes, warps and blocks do together: shuffles, votes, barriers, fences.

use super::{Decoder, Modifiers, Result};
use crate::isa::*;
use crate::ptx::{Operand, Type};

impl<'u, 'a> Decoder<'u, 'a> {
    pub(super) fn need_sync(&self, mods: &mut Modifiers<'a>) -> Result<()> {
        if mods.take("sync") {
            Ok(())
        } else {
            self.fail(format!("'{}' without .sync does not exist since sm_70", mods.base))
        }
    }

    pub(super) fn communicate(
        &mut self,
        mut mods: Modifiers<'a>,
        ops: &[Operand<'a>],
    ) -> Result<()> {
        let types = mods.types();
        let ty = self.one_type(&types);
        match mods.base {
            "activemask" => {
                self.finish(&mods)?;
                let [d] = self.operands(ops)?;
                let d = self.dst(d, 4)?;
                self.push(Op::ActiveMask { d });
            }
            "elect" => {
                self.need_sync(&mut mods)?;
                self.finish(&mods)?;
                let [d, mask] = self.operands(ops)?;
                let (d, p) = Self::pair(d);
                let d = self.dst(d, 4)?;
                let p = p.map_or(Ok(NO_PRED), |p| self.pred_dst(p))?;
                let mask = self.src(mask, Type::U32)?;
                self.push(Op::Elect { d, p, mask });
            }
            "shfl" => {
                self.need_sync(&mut mods)?;
                let mode = mods.take_one(&[
                    ("up", ShuffleMode::Up),
                    ("down", ShuffleMode::Down),
                    ("bfly", ShuffleMode::Butterfly),
                    ("idx", ShuffleMode::Index),
                ]);
                let Some(mode) = mode else {
                    return self.fail("'shfl' needs .up, .down, .bfly or .idx");
                };
                self.finish(&mods)?;
                if ty? != Type::B32 {
                    return self.fail("'shfl' works on .b32");
                }
                let [d, a, b, c, mask] = self.operands(ops)?;
                let (d, p) = Self::pair(d);
                let d = self.dst(d, 4)?;
                let p = p.map_or(Ok(NO_PRED), |p| self.pred_dst(p))?;
                let (a, b) = (self.src(a, Type::B32)?, self.src(b, Type::B32)?);
                let (c, mask) = (self.src(c, Type::B32)?, self.src(mask, Type::B32)?);
                self.push(Op::Shuffle { mode, d, p, a, b, c, mask });
            }
            "vote" => {
                self.need_sync(&mut mods)?;
                let mode = mods.take_one(&[
                    ("all", VoteMode::All),
                    ("any", VoteMode::Any),
                    ("uni", VoteMode::Uniform),
                    ("ballot", VoteMode::Ballot),
                ]);
                let Some(mode) = mode else {
                    return self.fail("'vote' needs .all, .any, .uni or .ballot");
                };
                self.finish(&mods)?;
                let [d, a, mask] = self.operands(ops)?;
                let (a, mask) = (self.pred_src(a)?, self.src(mask, Type::B32)?);
                let (d, p) = match (mode, ty?) {
                    (VoteMode::Ballot, Type::B32) => (self.dst(d, 4)?, NO_PRED),
                    (VoteMode::All | VoteMode::Any | VoteMode::Uniform, Type::Pred) => {
                        (SINK, self.pred_dst(d)?)
                    }
                    _ => return self.fail("'vote' gives .pred, its ballot .b32"),
                };
                self.push(Op::Vote { mode, d, p, a, mask });
            }
            "match" => {
                self.need_sync(&mut mods)?;
                let all = match mods.take_word(&["any", "all"]) {
                    Some(word) => word == "all",
                    None => return self.fail("'match' needs .any or .all"),
                };
                self.finish(&mods)?;
                let ty = ty?;
                if !matches!(ty, Type::B32 | Type::B64) {
                    return self.fail("'match' works on .b32 and .b64");
                }
                let [d, a, mask] = self.operands(ops)?;
                let (d, p) = Self::pair(d);
                let d = self.dst(d, 4)?;
                let p = p.map_or(Ok(NO_PRED), |p| self.pred_dst(p))?;
                let (a, mask) = (self.src(a, ty)?, self.src(mask, Type::B32)?);
                self.push(Op::Match { all, d, p, a, wide: ty.size() == 8, mask });
            }
            _ => {
                self.need_sync(&mut mods)?;
                let word = mods.take_word(&["add", "min", "max", "and", "or", "xor"]);
                self.finish(&mods)?;
                let op = match (word, ty?) {
                    (Some("add"), Type::U32 | Type::S32) => ReduceOp::Add,
                    (Some("min"), Type::U32) => ReduceOp::Min,
                    (Some("max"), Type::U32) => ReduceOp::Max,
                    (Some("min"), Type::S32) => ReduceOp::MinSigned,
                    (Some("max"), Type::S32) => ReduceOp::MaxSigned,
                    (Some("and"), Type::B32) => ReduceOp::And,
                    (Some("or"), Type::B32) => ReduceOp::Or,
                    (Some("xor"), Type::B32) => ReduceOp::Xor,
                    _ => {
                        return self
                            .unsupported("'redux' of this operation and type is not supported");
                    }
                };
                let [d, a, mask] = self.operands(ops)?;
                let (a, mask) = (self.src(a, Type::B32)?, self.src(mask, Type::B32)?);
                let d = self.dst(d, 4)?;
                self.push(Op::Reduce { op, d, a, mask });
            }
        }
        Ok(())
    }

    pub(super) fn synchronise(
        &mut self,
        mut mods: Modifiers<'a>,
        ops: &[Operand<'a>],
    ) -> Result<()> {
        match mods.base {
            "membar" => {
                let Some(level) = mods.take_word(&["cta", "gl", "sys"]) else {
                    return self.fail("'membar' needs a level");
                };
                self.finish(&mods)?;
                self.push(Op::Fence { gpu: level != "cta" });
            }
            "fence" => {
                if mods.take("proxy") {
                    if mods.take_word(&["alias", "async", "async::generic"]).is_none() {
                        return self.unsupported("this 'fence.proxy' is not supported");
                    }
                    self.space(&mut mods);
                    self.finish(&mods)?;
                    self.push(Op::Nop);
                    return Ok(());
                }
                if mods.take("mbarrier_init") {
                    mods.take("release");
                    mods.take("cluster");
                    self.finish(&mods)?;
                    self.push(Op::Fence { gpu: false });
                    return Ok(());
                }
                mods.take_word(&["sc", "acq_rel", "acquire", "release"]);
                let Some(scope) = mods.take_word(&["cta", "cluster", "gpu", "sys"]) else {
                    return self.fail("'fence' needs a scope");
                };
                self.finish(&mods)?;
                self.push(Op::Fence { gpu: matches!(scope, "gpu" | "sys") });
            }
            "nanosleep" => {
                self.one_type(&mods.types())?;
                self.finish(&mods)?;
                let [a] = self.operands(ops)?;
                self.src(a, Type::U32)?;
                self.push(Op::Sleep);
            }
            "griddepcontrol" => {
                if mods.take_word(&["launch_dependents", "wait"]).is_none() {
                    return self.fail("'griddepcontrol' needs an action");
                }
                self.finish(&mods)?;
                self.push(Op::Nop);
            }
            "setmaxnreg" => {
                mods.take_word(&["inc", "dec"]);
                mods.take("sync");
                mods.take("aligned");
                mods.types();
                self.finish(&mods)?;
                self.push(Op::Nop);
            }
            "pmevent" => {
                mods.take("mask");
                self.finish(&mods)?;
                self.push(Op::Nop);
            }
            base => {
                mods.take("cta");
                if mods.take("warp") {
                    self.need_sync(&mut mods)?;
                    self.finish(&mods)?;
                    let [mask] = self.operands(ops)?;
                    let mask = self.src(mask, Type::U32)?;
                    self.push(Op::WarpBarrier { mask });
                    return Ok(());
                }
                let aligned = mods.take("aligned") || base == "bar";
                let (kind, rest) = match mods.take_word(&["sync", "arrive", "red"]) {
                    Some("sync") => (BarrierKind::Sync, ops),
                    Some("arrive") => (BarrierKind::Arrive, ops),
                    Some(_) => {
                        let how = mods.take_word(&["and", "or", "popc"]);
                        mods.types();
                        let [d, rest @ .., p] = ops else {
                            return self.fail("operands are missing");
                        };
                        let p = self.pred_src(p)?;
                        let kind = match how {
                            Some("and") => BarrierKind::RedAnd(self.pred_dst(d)?, p),
                            Some("or") => BarrierKind::RedOr(self.pred_dst(d)?, p),
                            Some(_) => BarrierKind::RedPopc(self.dst(d, 4)?, p),
                            None => return self.fail("'bar.red' needs .and, .or or .popc"),
                        };
                        (kind, rest)
                    }
                    None => {
                        return self.unsupported(format!("this form of '{base}' is not supported"));
                    }
                };
                self.finish(&mods)?;
                let (id, count) = match rest {
                    [id] => (self.src(id, Type::U32)?, None),
                    [id, count] => (self.src(id, Type::U32)?, Some(self.src(count, Type::U32)?)),
                    _ => return self.fail("a barrier and at most a count expected"),
                };
                if kind == BarrierKind::Arrive && count.is_none() {
                    return self.fail("'arrive' needs a thread count");
                }
                self.push(Op::Barrier { kind, id, count, aligned });
            }
        }
        Ok(())
    }
}
