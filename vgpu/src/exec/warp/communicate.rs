//! Shuffles, votes, matches, reductions: lanes of a warp with each other.

use super::{ALL, Warp, lanes};
use crate::exec::Env;
use crate::isa::lanes::LANES;
use crate::isa::*;

impl Warp {
    pub(super) fn communicate(&mut self, env: &Env, op: &Op, group: u32) {
        match op {
            Op::Shuffle { mode, d, p, a, b, c, .. } => {
                let (values, offsets, clamps) =
                    (*self.narrow(*a), *self.narrow(*b), *self.narrow(*c));
                let mut out = [0; LANES];
                let mut valid = 0;
                let mut undefined = 0;
                let control = self.undef[*b as usize] | self.undef[*c as usize];
                let mut masks = [0u64; LANES];
                for lane in lanes(group) {
                    let (offset, clamp, segment) =
                        (offsets[lane] & 31, clamps[lane] & 31, clamps[lane] >> 8 & 31);
                    let lane32 = lane as u32;
                    let max = (lane32 & segment) | (clamp & !segment);
                    let min = lane32 & segment;
                    let (source, inside) = match mode {
                        ShuffleMode::Up => {
                            let source = lane32 as i32 - offset as i32;
                            (source as u32, source >= max as i32)
                        }
                        ShuffleMode::Down => (lane32 + offset, lane32 + offset <= max),
                        ShuffleMode::Butterfly => (lane32 ^ offset, lane32 ^ offset <= max),
                        ShuffleMode::Index => {
                            let source = min | (offset & !segment);
                            (source, source <= max)
                        }
                    };
                    let from = if inside { source as usize & 31 } else { lane };
                    valid |= (inside as u32) << lane;
                    out[lane] = values[from];
                    if env.undefined {
                        if group >> from & 1 == 0 || control >> lane & 1 != 0 {
                            undefined |= 1 << lane;
                        } else {
                            masks[lane] = self.shadow_get(*a, false, from);
                        }
                    }
                }
                if env.undefined {
                    if undefined != 0 {
                        self.origins[*d as usize] = self.pc;
                    } else if self.undef[*a as usize] & group != 0 {
                        self.inherit(*d, &[*a], group);
                    }
                    self.undef[*d as usize] &= !group;
                    for lane in lanes(group) {
                        if masks[lane] != 0 {
                            self.shadow_set(*d, false, lane, masks[lane]);
                        }
                    }
                    self.mark(*d, false, undefined, 0);
                }
                self.put(*d, &out, group);
                self.set_pred(*p, valid, group, control);
            }
            Op::Vote { mode, d, p, a, .. } => {
                let votes = self.pred(*a) & group;
                let unclear = if self.pred_undef[a.p as usize] & group != 0 { ALL } else { 0 };
                if unclear != 0 && *mode != VoteMode::Ballot && *p != NO_PRED {
                    self.pred_origins[*p as usize] = self.pred_origins[a.p as usize];
                }
                match mode {
                    VoteMode::Ballot => {
                        self.put(*d, &[votes; LANES], group);
                        if env.undefined {
                            if unclear != 0 {
                                self.origins[*d as usize] = self.pred_origins[a.p as usize];
                            }
                            self.mark(*d, false, unclear & group, group);
                        }
                    }
                    VoteMode::All => {
                        self.set_pred(*p, if votes == group { ALL } else { 0 }, group, unclear)
                    }
                    VoteMode::Any => {
                        self.set_pred(*p, if votes != 0 { ALL } else { 0 }, group, unclear)
                    }
                    VoteMode::Uniform => self.set_pred(
                        *p,
                        if votes == 0 || votes == group { ALL } else { 0 },
                        group,
                        unclear,
                    ),
                }
            }
            Op::Match { all, d, p, a, wide, .. } => {
                let unclear = if self.undef[*a as usize] & group != 0 { ALL } else { 0 };
                let value = |lane: usize| {
                    if *wide { self.wide(*a)[lane] } else { self.narrow(*a)[lane] as u64 }
                };
                let mut out = [0; LANES];
                let mut same = 0;
                for lane in lanes(group) {
                    let equal = lanes(group)
                        .filter(|l| value(*l) == value(lane))
                        .fold(0, |m, l| m | 1 << l);
                    out[lane] = if *all && equal != group { 0 } else { equal };
                    same |= ((equal == group) as u32) << lane;
                }
                self.put(*d, &out, group);
                self.set_pred(*p, same, group, unclear);
                if env.undefined {
                    self.inherit(*d, &[*a], group);
                    self.mark(*d, false, unclear & group, group);
                }
            }
            Op::Reduce { op, d, a, .. } => {
                let values = *self.narrow(*a);
                let unclear = if self.undef[*a as usize] & group != 0 { ALL } else { 0 };
                let result = lanes(group).map(|l| values[l]).reduce(|x, y| match op {
                    ReduceOp::Add => x.wrapping_add(y),
                    ReduceOp::Min => x.min(y),
                    ReduceOp::Max => x.max(y),
                    ReduceOp::MinSigned => (x as i32).min(y as i32) as u32,
                    ReduceOp::MaxSigned => (x as i32).max(y as i32) as u32,
                    ReduceOp::And => x & y,
                    ReduceOp::Or => x | y,
                    ReduceOp::Xor => x ^ y,
                });
                self.put(*d, &[result.unwrap_or(0); LANES], group);
                if env.undefined {
                    self.inherit(*d, &[*a], group);
                    self.mark(*d, false, unclear & group, group);
                }
            }
            Op::Elect { d, p, .. } => {
                let leader = group.trailing_zeros();
                self.put(*d, &[leader; LANES], group);
                self.undef[*d as usize] &= !group;
                self.set_pred(*p, 1 << leader, group, 0);
            }
            _ => {}
        }
    }
}
