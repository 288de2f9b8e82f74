//! Arithmetic and logic with one, two and three sources.

use super::{Decoder, Modifiers, Result};
use crate::isa::alu::{self, FTZ, RELU, SAT};
use crate::isa::lanes::{LANES, Lane, LaneFn, Slot, Wide, lane};
use crate::isa::*;
use crate::ptx::{Operand, Type};

impl<'u, 'a> Decoder<'u, 'a> {
    /// `.ftz`, `.sat`, `.relu` and the rounding, as the immediate of a lane function.
    pub(super) fn modifiers(&self, mods: &mut Modifiers<'a>, ty: Type) -> Result<u32> {
        let mut imm = mods.round().map_or(0, |r| r as u32);
        if matches!(ty, Type::F32 | Type::F16 | Type::F16x2) && mods.take("ftz") {
            imm |= FTZ;
        }
        if matches!(ty, Type::F32 | Type::F16 | Type::F16x2) && mods.take("sat") {
            imm |= SAT;
        }
        if matches!(ty, Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2) {
            if mods.take("relu") {
                imm |= RELU;
            }
            if imm & 3 != 0 {
                return self.fail("16-bit arithmetic only rounds to nearest");
            }
        }
        Ok(imm)
    }

    pub(super) fn unary(&mut self, mut mods: Modifiers<'a>, ops: &[Operand<'a>]) -> Result<()> {
        let ty = self.one_type(&mods.types())?;
        let [d, a] = self.operands(ops)?;
        if ty == Type::Pred && mods.base == "not" {
            self.finish(&mods)?;
            let (p, a) = (self.pred_dst(d)?, self.pred_src(a)?);
            let a = PredSrc { negated: !a.negated, ..a };
            self.push(Op::Logic {
                op: PredLogic::Or,
                p,
                a,
                b: PredSrc { p: FALSE_PRED, negated: false },
            });
            return Ok(());
        }
        let base = mods.base;
        let mut imm = 0;
        let mut op = base.to_string();
        match base {
            "abs" | "neg" if ty == Type::F32 && mods.take("ftz") => imm |= FTZ,
            "bfind" if mods.take("shiftamt") => op += ".shiftamt",
            "ex2" | "tanh" | "lg2" | "sin" | "cos" | "rsqrt" => {
                if !mods.take("approx") {
                    return self.fail(format!("'{base}' without .approx does not exist"));
                }
                op += ".approx";
                imm |= if mods.take("ftz") { FTZ } else { 0 };
            }
            "rcp" | "sqrt" => {
                if mods.take("approx") {
                    if ty == Type::F64 {
                        op += ".approx";
                    }
                    imm |= if mods.take("ftz") { FTZ } else { 0 };
                } else {
                    match mods.round() {
                        Some(round) => imm |= round as u32,
                        None => return self.fail(format!("'{base}' needs .approx or a rounding")),
                    }
                    imm |= if ty == Type::F32 && mods.take("ftz") { FTZ } else { 0 };
                }
            }
            _ => {}
        }
        self.finish(&mods)?;
        let (result, run) = match base {
            "popc" | "clz" | "bfind" => (4, alu::unary(&op, ty, imm)),
            _ => (ty.size(), alu::unary(&op, ty, imm)),
        };
        let source = self.src(a, ty)?;
        let d = self.dst(d, result)?;
        let rule = match base {
            "not" | "brev" => Rule::Mirror { controls: 0 },
            _ if matches!(ty, Type::F16x2 | Type::Bf16x2) => Rule::Halves,
            _ => Rule::Strict,
        };
        // The complement of a mask of undefined bits is not it: they stay where they are.
        let rule = if base == "not" { Rule::Union } else { rule };
        self.alu(
            run,
            &mods,
            ty,
            d,
            result == 8,
            [source, ZERO, ZERO],
            (ty.size() == 8) as u8,
            imm,
            rule,
        )
    }

    pub(super) fn binary(&mut self, mut mods: Modifiers<'a>, ops: &[Operand<'a>]) -> Result<()> {
        let ty = self.one_type(&mods.types())?;
        let [d, a, b] = self.operands(ops)?;
        let base = mods.base;
        if ty == Type::Pred {
            let op = match base {
                "and" => PredLogic::And,
                "or" => PredLogic::Or,
                "xor" => PredLogic::Xor,
                _ => return self.fail(format!("'{base}' does not work on predicates")),
            };
            self.finish(&mods)?;
            let (p, a, b) = (self.pred_dst(d)?, self.pred_src(a)?, self.pred_src(b)?);
            self.push(Op::Logic { op, p, a, b });
            return Ok(());
        }
        let writes_carry = mods.take("cc");
        if writes_carry || matches!(base, "addc" | "subc") {
            self.finish(&mods)?;
            if ty.is_float() || ty.size() < 4 || !matches!(base, "add" | "addc" | "sub" | "subc") {
                return self.fail("carry does not exist for this type");
            }
            let src = [self.src(a, ty)?, self.src(b, ty)?, ZERO];
            let (d, wide) = (self.dst(d, ty.size())?, ty.size() == 8);
            let (sub, reads) = (base.starts_with("sub"), base.ends_with('c'));
            self.push(Op::Carry {
                sub,
                multiply: None,
                reads,
                writes: writes_carry,
                wide,
                signed: false,
                d,
                src,
            });
            return Ok(());
        }
        let mut op = base.to_string();
        let mut imm = 0;
        let mut result = ty.size();
        if ty.is_float() {
            match base {
                "min" | "max" => {
                    if mods.take("NaN") {
                        op += ".NaN";
                    }
                    imm |= if mods.take("ftz") { FTZ } else { 0 };
                }
                "copysign" => {}
                "div" if mods.take("approx") => {
                    op += ".approx";
                    imm |= if mods.take("ftz") { FTZ } else { 0 };
                }
                "div" if mods.take("full") => {
                    imm |= if mods.take("ftz") { FTZ } else { 0 };
                }
                "div" => {
                    match mods.round() {
                        Some(round) => imm |= round as u32,
                        None => return self.fail("'div' needs .approx, .full or a rounding"),
                    }
                    imm |= if ty == Type::F32 && mods.take("ftz") { FTZ } else { 0 };
                }
                "add" | "sub" | "mul" => imm = self.modifiers(&mut mods, ty)?,
                _ => return self.fail(format!("'{base}' does not work on floating-point numbers")),
            }
        } else {
            match base {
                "mul" | "mul24" => {
                    let Some(part) = mods.take_word(&["lo", "hi", "wide"]) else {
                        return self.fail(format!("'{base}' needs .lo, .hi or .wide"));
                    };
                    op = format!("{base}.{part}");
                    if part == "wide" {
                        result *= 2;
                    }
                }
                "add" | "sub" if mods.take("sat") => op += ".sat",
                "min" | "max" if mods.take("relu") => op += ".relu",
                "bmsk" | "szext" => match mods.take_word(&["clamp", "wrap"]) {
                    Some(mode) => op = format!("{base}.{mode}"),
                    None => return self.fail(format!("'{base}' needs .clamp or .wrap")),
                },
                _ => {}
            }
            let is_bits = matches!(ty, Type::B16 | Type::B32 | Type::B64);
            let wants_bits = matches!(base, "and" | "or" | "xor" | "shl" | "bmsk");
            if is_bits != wants_bits && base != "shr" || ty.size() < 2 {
                return self.fail(format!(
                    "'{base}' does not work on type .{}",
                    format!("{ty:?}").to_lowercase()
                ));
            }
        }
        self.finish(&mods)?;
        let is_shift = matches!(base, "shl" | "shr");
        let b_type = if is_shift || matches!(base, "szext" | "bmsk") { Type::U32 } else { ty };
        let (a, b) = (self.src(a, ty)?, self.src(b, b_type)?);
        let d = self.dst(d, result)?;
        let wide_src = if ty.size() == 8 { if is_shift { 1 } else { 3 } } else { 0 };
        let rule = match base {
            "and" => Rule::And,
            "or" => Rule::Or,
            "xor" => Rule::Union,
            "shl" | "shr" => Rule::Mirror { controls: 2 },
            _ if matches!(ty, Type::F16x2 | Type::Bf16x2) => Rule::Halves,
            _ => Rule::Strict,
        };
        self.alu(
            alu::binary(&op, ty, imm),
            &mods,
            ty,
            d,
            result == 8,
            [a, b, ZERO],
            wide_src,
            imm,
            rule,
        )
    }

    pub(super) fn ternary(&mut self, mut mods: Modifiers<'a>, ops: &[Operand<'a>]) -> Result<()> {
        let types = mods.types();
        let base = mods.base;
        if matches!(base, "dp4a" | "dp2a") {
            return self.dot_product(mods, &types, ops);
        }
        if base == "lop3" {
            let ty = self.one_type(&types)?;
            self.finish(&mods)?;
            let [d, a, b, c, table] = self.operands(ops)?;
            let Operand::Int(table @ 0..=255) = table else {
                return self.fail("the table of 'lop3' is a byte");
            };
            if ty != Type::B32 {
                return self.fail("'lop3' works on .b32");
            }
            let src = [self.src(a, ty)?, self.src(b, ty)?, self.src(c, ty)?];
            let d = self.dst(d, 4)?;
            let imm = *table as u32;
            return self.alu(
                alu::ternary("lop3", ty, imm),
                &mods,
                ty,
                d,
                false,
                src,
                0,
                imm,
                Rule::Union,
            );
        }
        if base == "slct" {
            mods.take("ftz");
            self.finish(&mods)?;
            let [d, a, b, c] = self.operands(ops)?;
            let [ty, sign @ (Type::S32 | Type::F32)] = types[..] else {
                return self.fail("'slct' needs a type and .s32 or .f32");
            };
            if ty.size() < 4 || sign == Type::F32 {
                return self.unsupported("'slct' with these types is not supported");
            }
            let src = [self.src(a, ty)?, self.src(b, ty)?, self.src(c, sign)?];
            let d = self.dst(d, ty.size())?;
            let wide = ty.size() == 8;
            let run = alu::ternary(if wide { "slct64" } else { "slct32" }, ty, 0);
            return self.alu(
                run,
                &mods,
                ty,
                d,
                wide,
                src,
                if wide { 3 } else { 0 },
                0,
                Rule::Mirror { controls: 4 },
            );
        }
        let ty = self.one_type(&types)?;
        let [d, a, b, c] = self.operands(ops)?;
        let mut op = base.to_string();
        let mut imm = 0;
        let mut result = ty.size();
        let mut c_type = ty;
        let mut b_type = ty;
        let mut rule =
            if matches!(ty, Type::F16x2 | Type::Bf16x2) { Rule::Halves } else { Rule::Strict };
        match base {
            "fma" | "mad" if ty.is_float() => {
                op = "fma".into();
                imm = self.modifiers(&mut mods, ty)?;
            }
            "mad" | "madc" | "mad24" => {
                let Some(part) = mods.take_word(&["lo", "hi", "wide"]) else {
                    return self.fail(format!("'{base}' needs .lo, .hi or .wide"));
                };
                let writes = mods.take("cc");
                if writes || base == "madc" {
                    self.finish(&mods)?;
                    if part == "wide" || ty.size() < 4 || ty.is_float() {
                        return self.fail("carry does not exist for this form");
                    }
                    let src = [self.src(a, ty)?, self.src(b, ty)?, self.src(c, ty)?];
                    let (d, wide) = (self.dst(d, ty.size())?, ty.size() == 8);
                    let (reads, signed) = (base == "madc", ty.is_signed());
                    self.push(Op::Carry {
                        sub: false,
                        multiply: Some(part == "hi"),
                        reads,
                        writes,
                        wide,
                        signed,
                        d,
                        src,
                    });
                    return Ok(());
                }
                op = format!("{base}.{part}");
                if mods.take("sat") {
                    op += ".sat";
                }
                if part == "wide" {
                    result *= 2;
                    c_type = match ty {
                        Type::U16 => Type::U32,
                        Type::S16 => Type::S32,
                        Type::U32 => Type::U64,
                        Type::S32 => Type::S64,
                        _ => return self.fail("'mad.wide' works on 16 and 32 bits"),
                    };
                }
                if matches!(ty, Type::B16 | Type::B32 | Type::B64) || ty.is_float() {
                    return self.fail(format!("'{base}' does not work on this type"));
                }
            }
            "bfe" => {
                b_type = Type::U32;
                c_type = Type::U32;
                rule = Rule::Mirror { controls: 6 };
            }
            "shf" => {
                let (Some(side), Some(mode)) =
                    (mods.take_word(&["l", "r"]), mods.take_word(&["wrap", "clamp"]))
                else {
                    return self.fail("'shf' needs .l or .r and .wrap or .clamp");
                };
                op = format!("shf.{side}.{mode}");
                c_type = Type::U32;
                rule = Rule::Mirror { controls: 4 };
            }
            "prmt" => rule = Rule::Mirror { controls: 4 },
            _ => {}
        }
        self.finish(&mods)?;
        let src = [self.src(a, ty)?, self.src(b, b_type)?, self.src(c, c_type)?];
        let d = self.dst(d, result)?;
        let wide_src = (ty.size() == 8) as u8
            | ((b_type.size() == 8) as u8) << 1
            | ((c_type.size() == 8) as u8) << 2;
        self.alu(alu::ternary(&op, ty, imm), &mods, ty, d, result == 8, src, wide_src, imm, rule)
    }

    pub(super) fn dot_product(
        &mut self,
        mut mods: Modifiers<'a>,
        types: &[Type],
        ops: &[Operand<'a>],
    ) -> Result<()> {
        let mut imm = 0;
        if mods.base == "dp2a" {
            match mods.take_word(&["lo", "hi"]) {
                Some("hi") => imm |= 4,
                Some(_) => {}
                None => return self.fail("'dp2a' needs .lo or .hi"),
            }
        }
        self.finish(&mods)?;
        let [a_type @ (Type::U32 | Type::S32), b_type @ (Type::U32 | Type::S32)] = types[..] else {
            return self.fail("the types of a dot product are .u32 or .s32");
        };
        imm |= a_type.is_signed() as u32 | (b_type.is_signed() as u32) << 1;
        let [d, a, b, c] = self.operands(ops)?;
        let src = [self.src(a, a_type)?, self.src(b, b_type)?, self.src(c, a_type)?];
        let d = self.dst(d, 4)?;
        self.alu(
            alu::ternary(mods.base, a_type, imm),
            &mods,
            a_type,
            d,
            false,
            src,
            0,
            imm,
            Rule::Strict,
        )
    }

    pub(super) fn bfi(&mut self, mut mods: Modifiers<'a>, ops: &[Operand<'a>]) -> Result<()> {
        let ty = self.one_type(&mods.types())?;
        self.finish(&mods)?;
        let [d, a, b, from, count] = self.operands(ops)?;
        let (from, count) = (self.src(from, Type::U32)?, self.src(count, Type::U32)?);
        let both = self.temporary(false);
        let run = lane!(|a: u32, b: u32| -> u32 { (a & 255) | (b & 255) << 8 });
        self.push_extra(Op::Alu(Alu {
            run,
            d: both,
            src: [from, count, ZERO],
            imm: 0,
            wide: false,
            wide_src: 0,
            rule: Rule::Strict,
            flops: 0,
        }));
        let src = [self.src(a, ty)?, self.src(b, ty)?, both];
        let (d, wide) = (self.dst(d, ty.size())?, ty.size() == 8);
        let rule = Rule::Mirror { controls: 4 };
        self.alu(
            alu::ternary("bfi", ty, 0),
            &mods,
            ty,
            d,
            wide,
            src,
            if wide { 3 } else { 0 },
            0,
            rule,
        )
    }
}
