//! `setp`, `set`, `testp`.

use super::{Decoder, Modifiers, Result};
use crate::isa::lanes::{CompareFn, LANES, Lane, LaneFn, Slot, Wide, compare, lane};
use crate::isa::*;
use crate::ptx::{Operand, Type};

impl<'u, 'a> Decoder<'u, 'a> {
    pub(super) fn comparison(&mut self, mods: &mut Modifiers<'a>) -> Result<(&'static str, Join)> {
        const OPS: [&str; 18] = [
            "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu",
            "gtu", "geu", "num", "nan",
        ];
        let Some(op) = mods.take_word(&OPS) else {
            return self.fail(format!("'{}' needs a comparison", mods.base));
        };
        let join = mods
            .take_one(&[("and", Join::And), ("or", Join::Or), ("xor", Join::Xor)])
            .unwrap_or(Join::None);
        Ok((op, join))
    }

    pub(super) fn compare_operands(
        &mut self,
        ty: Type,
        a: &Operand<'a>,
        b: &Operand<'a>,
        rest: &[Operand<'a>],
        join: Join,
    ) -> Result<(Reg, Reg, PredSrc)> {
        let with = match (join, rest) {
            (Join::None, []) => PredSrc { p: FALSE_PRED, negated: false },
            (Join::None, _) | (_, []) => {
                return self.fail("a third source goes with .and, .or or .xor");
            }
            (_, [c]) => self.pred_src(c)?,
            _ => return self.fail("too many operands"),
        };
        Ok((self.src(a, ty)?, self.src(b, ty)?, with))
    }

    pub(super) fn compare_fn(
        &self,
        op: &str,
        ty: Type,
        high: bool,
        ftz: bool,
    ) -> Result<CompareFn> {
        match compare::select(op, ty, high, ftz) {
            Some(run) => Ok(run),
            None => self.fail(format!(
                "comparison '{op}' does not exist for type .{}",
                format!("{ty:?}").to_lowercase()
            )),
        }
    }

    pub(super) fn setp(&mut self, mut mods: Modifiers<'a>, ops: &[Operand<'a>]) -> Result<()> {
        let ty = self.one_type(&mods.types())?;
        let (op, join) = self.comparison(&mut mods)?;
        let ftz = mods.take("ftz");
        self.finish(&mods)?;
        let [d, a, b, rest @ ..] = ops else {
            return self.fail("'setp' needs a destination and two sources");
        };
        let (a, b, with) = self.compare_operands(ty, a, b, rest, join)?;
        let (p, q) = Self::pair(d);
        let p = self.pred_dst(p)?;
        let q = q.map_or(Ok(NO_PRED), |q| self.pred_dst(q))?;
        let run = self.compare_fn(op, ty, false, ftz)?;
        if let Type::F16x2 | Type::Bf16x2 = ty {
            // The two predicates belong to the two halves.
            self.push(Op::Compare { run, a, b, p, q: NO_PRED, join, with });
            let run = self.compare_fn(op, ty, true, ftz)?;
            self.push(Op::Compare { run, a, b, p: q, q: NO_PRED, join, with });
        } else {
            self.push(Op::Compare { run, a, b, p, q, join, with });
        }
        Ok(())
    }

    pub(super) fn set(&mut self, mut mods: Modifiers<'a>, ops: &[Operand<'a>]) -> Result<()> {
        let types = mods.types();
        let [to, ty] = types[..] else { return self.fail("'set' needs two types") };
        let (op, join) = self.comparison(&mut mods)?;
        let ftz = mods.take("ftz");
        self.finish(&mods)?;
        let [d, a, b, rest @ ..] = ops else {
            return self.fail("'set' needs a destination and two sources");
        };
        let (a, b, with) = self.compare_operands(ty, a, b, rest, join)?;
        let packed = matches!(ty, Type::F16x2 | Type::Bf16x2);
        let one = match to {
            Type::U32 | Type::S32 => 0xffff_ffff,
            Type::U16 | Type::S16 => 0xffff,
            Type::F32 => 0x3f80_0000,
            Type::F16 | Type::F16x2 => 0x3c00,
            Type::Bf16 | Type::Bf16x2 => 0x3f80,
            _ => return self.fail("'set' does not give this type"),
        };
        let d = self.dst(d, to.size())?;
        let run = self.compare_fn(op, ty, false, ftz)?;
        let p = self.temporary_pred();
        self.push(Op::Compare { run, a, b, p, q: NO_PRED, join, with });
        let select = |this: &mut Self, d: Reg, p: Pred, bits: u64| {
            let a = this.constant(bits, false);
            this.push(Op::Select { d, a, b: ZERO, p: PredSrc { p, negated: false }, wide: false });
        };
        if !packed {
            select(self, d, p, one);
            return Ok(());
        }
        let (low, high) = match to {
            Type::U32 | Type::S32 => (0xffff, 0xffff_0000),
            Type::F16x2 | Type::Bf16x2 => (one, one << 16),
            _ => return self.fail("a packed 'set' gives .f16x2, .bf16x2, .u32 or .s32"),
        };
        let run = self.compare_fn(op, ty, true, ftz)?;
        let q = self.temporary_pred();
        self.push(Op::Compare { run, a, b, p: q, q: NO_PRED, join, with });
        let (x, y) = (self.temporary(false), self.temporary(false));
        select(self, x, p, low);
        select(self, y, q, high);
        let run = lane!(|a: u32, b: u32| -> u32 { a | b });
        self.push(Op::Alu(Alu {
            run,
            d,
            src: [x, y, ZERO],
            imm: 0,
            wide: false,
            wide_src: 0,
            rule: Rule::Union,
            flops: 0,
        }));
        Ok(())
    }

    pub(super) fn testp(&mut self, mut mods: Modifiers<'a>, ops: &[Operand<'a>]) -> Result<()> {
        let ty = self.one_type(&mods.types())?;
        let Some(op) =
            mods.take_word(&["finite", "infinite", "number", "notanumber", "normal", "subnormal"])
        else {
            return self.fail("'testp' needs a test");
        };
        self.finish(&mods)?;
        let [p, a] = self.operands(ops)?;
        macro_rules! tests {
            ($ty:ty) => {
                match op {
                    "finite" => compare!($ty, |a, b| a.is_finite()),
                    "infinite" => compare!($ty, |a, b| a.is_infinite()),
                    "number" => compare!($ty, |a, b| !a.is_nan()),
                    "notanumber" => compare!($ty, |a, b| a.is_nan()),
                    // Zeros count, by PTX's definition.
                    "normal" => compare!($ty, |a, b| a.is_normal() || a == 0.0),
                    _ => compare!($ty, |a, b| a.is_subnormal()),
                }
            };
        }
        let run = match ty {
            Type::F32 => tests!(f32),
            Type::F64 => tests!(f64),
            _ => return self.fail("'testp' works on .f32 and .f64"),
        };
        let (a, p) = (self.src(a, ty)?, self.pred_dst(p)?);
        let with = PredSrc { p: FALSE_PRED, negated: false };
        self.push(Op::Compare { run, a, b: ZERO, p, q: NO_PRED, join: Join::None, with });
        Ok(())
    }
}
