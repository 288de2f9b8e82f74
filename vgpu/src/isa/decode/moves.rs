//! `mov`: registers, packed parts, addresses of variables.

use super::{Decoder, Modifiers, Name, Result};
use crate::isa::alu;
use crate::isa::lanes::{LANES, Lane, LaneFn, Slot, Wide, lane};
use crate::isa::*;
use crate::ptx::{Operand, Type};

impl<'u, 'a> Decoder<'u, 'a> {
    pub(super) fn mov(&mut self, mut mods: Modifiers<'a>, ops: &[Operand<'a>]) -> Result<()> {
        let ty = self.one_type(&mods.types())?;
        self.finish(&mods)?;
        let [d, a] = self.operands(ops)?;
        let mirror = Rule::Mirror { controls: 0 };
        match (d, a) {
            _ if ty == Type::Pred => {
                let (p, a) = (self.pred_dst(d)?, self.pred_src(a)?);
                self.push(Op::Logic {
                    op: PredLogic::Or,
                    p,
                    a,
                    b: PredSrc { p: FALSE_PRED, negated: false },
                });
                Ok(())
            }
            (Operand::Vector(parts), a) => self.unpack(ty, parts, a),
            (d, Operand::Vector(parts)) => self.pack(ty, d, parts),
            (
                d,
                Operand::Name(
                    name @ ("%clock" | "%clock_hi" | "%clock64" | "%globaltimer"
                    | "%globaltimer_lo" | "%globaltimer_hi"),
                ),
            ) => {
                let which = match *name {
                    "%clock" => Clock::Low,
                    "%clock_hi" => Clock::High,
                    "%clock64" => Clock::Wide,
                    "%globaltimer" => Clock::Nanoseconds,
                    _ => return self.unsupported(format!("'{name}' is not supported")),
                };
                let wide = matches!(which, Clock::Wide | Clock::Nanoseconds);
                let d = self.dst(d, if wide { 8 } else { 4 })?;
                self.push(Op::Clock { d, which });
                Ok(())
            }
            (d, Operand::Name(name))
                if Special::parse(name).is_none()
                    && !name.starts_with("%envreg")
                    && !matches!(self.lookup(name), Some(Name::Register { .. })) =>
            {
                self.variable_address(ty, d, name)
            }
            (d, a) => {
                let (source, wide) = (self.src(a, ty)?, ty.size() == 8);
                let d = self.dst(d, ty.size())?;
                self.alu(
                    alu::unary("mov", ty, 0),
                    &mods,
                    ty,
                    d,
                    wide,
                    [source, ZERO, ZERO],
                    wide as u8,
                    0,
                    mirror,
                )
            }
        }
    }

    /// `mov` of a variable's address in its own space.
    pub(super) fn variable_address(&mut self, ty: Type, d: &Operand<'a>, name: &str) -> Result<()> {
        if !matches!(ty.size(), 4 | 8) {
            return self.fail("an address does not fit this type");
        }
        let wide = ty.size() == 8;
        let d = self.dst(d, ty.size())?;
        let value =
            match self.lookup(name) {
                Some(Name::Local(offset)) => {
                    self.push(Op::LocalAddress { d, offset, wide });
                    return Ok(());
                }
                Some(Name::Shared(offset)) => self.shared_offset(offset),
                Some(Name::Param(offset)) => offset as u64,
                Some(Name::Predicate(_)) => {
                    return self.fail(format!("'{name}' is a predicate, a number is wanted"));
                }
                _ => match self.symbols.get(name) {
                    Some(symbol) => symbol.address,
                    None => return self.fail(format!(
                        "'{name}' is not a register, special register or variable that is supported"
                    )),
                },
            };
        let source = self.constant(value, wide);
        let mov = alu::unary("mov", if wide { Type::B64 } else { Type::B32 }, 0);
        let Some(run) = mov else { return self.fail("no such move") };
        let rule = Rule::Mirror { controls: 0 };
        self.push(Op::Alu(Alu {
            run,
            d,
            src: [source, ZERO, ZERO],
            imm: 0,
            wide,
            wide_src: wide as u8,
            rule,
            flops: 0,
        }));
        Ok(())
    }

    pub(super) fn unpack(
        &mut self,
        ty: Type,
        parts: &[Operand<'a>],
        a: &Operand<'a>,
    ) -> Result<()> {
        let source = self.src(a, ty)?;
        let wide = ty.size() == 8;
        let bytes = match (ty.size(), parts.len()) {
            (8, 2) => 4,
            (8, 4) | (4, 2) => 2,
            _ => {
                return self.fail(format!(
                    "{} parts do not make up {} bits",
                    parts.len(),
                    ty.size() * 8
                ));
            }
        };
        for (i, part) in parts.iter().enumerate() {
            let d = self.dst(part, bytes)?;
            if d == SINK {
                continue;
            }
            let run = match (wide, bytes) {
                (true, 4) => lane!(|a: u64; imm| -> u32 { (a >> imm) as u32 }),
                (true, _) => lane!(|a: u64; imm| -> u16 { (a >> imm) as u16 }),
                (false, _) => lane!(|a: u32; imm| -> u16 { (a >> imm) as u16 }),
            };
            let imm = (i * bytes * 8) as u32;
            let rule = Rule::Mirror { controls: 0 };
            self.push(Op::Alu(Alu {
                run,
                d,
                src: [source, ZERO, ZERO],
                imm,
                wide: false,
                wide_src: wide as u8,
                rule,
                flops: 0,
            }));
        }
        Ok(())
    }

    pub(super) fn pack(&mut self, ty: Type, d: &Operand<'a>, parts: &[Operand<'a>]) -> Result<()> {
        let d = self.dst(d, ty.size())?;
        let part = match (ty.size(), parts.len()) {
            (8, 2) => Type::B32,
            (8, 4) | (4, 2) => Type::B16,
            _ => {
                return self.fail(format!(
                    "{} parts do not make up {} bits",
                    parts.len(),
                    ty.size() * 8
                ));
            }
        };
        let mut sources = Vec::new();
        for operand in parts {
            sources.push(self.src(operand, part)?);
        }
        let rule = Rule::Mirror { controls: 0 };
        let join = |this: &mut Self, d: Reg, a: Reg, b: Reg, wide: bool| {
            let run = if wide {
                lane!(|a: u32, b: u32| -> u64 { a as u64 | (b as u64) << 32 })
            } else {
                lane!(|a: u16, b: u16| -> u32 { a as u32 | (b as u32) << 16 })
            };
            this.push(Op::Alu(Alu {
                run,
                d,
                src: [a, b, ZERO],
                imm: 0,
                wide,
                wide_src: 0,
                rule,
                flops: 0,
            }));
        };
        match sources[..] {
            [a, b] => join(self, d, a, b, ty.size() == 8),
            [a, b, e, f] => {
                let (low, high) = (self.temporary(false), self.temporary(false));
                join(self, low, a, b, false);
                join(self, high, e, f, false);
                join(self, d, low, high, true);
            }
            _ => return self.fail("two or four parts expected"),
        }
        Ok(())
    }
}
