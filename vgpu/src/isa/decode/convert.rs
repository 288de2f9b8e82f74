//! `cvt`.

use super::{Decoder, Modifiers, Result};
use crate::isa::alu::{self, FTZ, RELU, SAT};
use crate::isa::convert::{self, INTEGRAL};
use crate::isa::float::Round;
use crate::isa::lanes::{LANES, Lane, LaneFn, Slot, Wide, lane};
use crate::isa::*;
use crate::ptx::{Operand, Type};

impl<'u, 'a> Decoder<'u, 'a> {
    pub(super) fn cvt(&mut self, mut mods: Modifiers<'a>, ops: &[Operand<'a>]) -> Result<()> {
        if mods.left.contains(&"tf32") {
            mods.take("tf32");
            let source = self.one_type(&mods.types())?;
            if !mods.take("rna") || source != Type::F32 {
                return self.fail("to tf32 only 'cvt.rna.tf32.f32' is supported");
            }
            self.finish(&mods)?;
            let [d, a] = self.operands(ops)?;
            let (a, d) = (self.src(a, Type::F32)?, self.dst(d, 4)?);
            let run = lane!(|a: f32| -> u32 { float::f32_to_tf32(a) });
            return self.alu(
                Some(run),
                &mods,
                source,
                d,
                false,
                [a, ZERO, ZERO],
                0,
                0,
                Rule::Strict,
            );
        }
        let types = mods.types();
        let [to, from] = types[..] else { return self.fail("'cvt' needs two types") };
        let integral = mods.take_one(&[
            ("rni", Round::Nearest),
            ("rzi", Round::Zero),
            ("rmi", Round::Down),
            ("rpi", Round::Up),
        ]);
        let round = mods.round();
        let mut imm = integral.map_or(0, |r| r as u32 | INTEGRAL) | round.map_or(0, |r| r as u32);
        for (name, flag) in [("ftz", FTZ), ("sat", SAT), ("relu", RELU)] {
            if mods.take(name) {
                imm |= flag;
            }
        }
        self.finish(&mods)?;
        if let Type::F16x2 | Type::Bf16x2 = to {
            let [d, a, b] = self.operands(ops)?;
            if from != Type::F32
                || !matches!(round, Some(Round::Nearest | Round::Zero))
                || imm & FTZ != 0
            {
                return self.fail("a packed conversion is from two .f32, with .rn or .rz");
            }
            let (a, b) = (self.src(a, from)?, self.src(b, from)?);
            let d = self.dst(d, 4)?;
            return self.alu(
                alu::binary("cvt2", to, imm),
                &mods,
                to,
                d,
                false,
                [a, b, ZERO],
                0,
                imm,
                Rule::Strict,
            );
        }
        let [d, a] = self.operands(ops)?;
        let (to_float, from_float) = (to.is_float(), from.is_float());
        if round.is_some() && integral.is_some() {
            return self.fail("two roundings");
        }
        if from_float && !to_float && integral.is_none() {
            return self
                .fail("from floating point to integer the rounding is .rni, .rzi, .rmi or .rpi");
        }
        if !from_float && to_float && round.is_none() {
            return self
                .fail("from integer to floating point the rounding is .rn, .rz, .rm or .rp");
        }
        if !from_float && !to_float && imm & !SAT != 0 {
            return self.fail("between integers there is only .sat");
        }
        if from_float
            && to_float
            && to.size() < from.size()
            && round.is_none()
            && integral.is_none()
        {
            return self.fail("a narrowing conversion needs a rounding");
        }
        if let Type::B8 | Type::B16 | Type::B32 | Type::B64 | Type::Pred = to {
            return self.fail("'cvt' does not know bit types");
        }
        let wide_register = self.register_bytes(d) == Some(8) && to.size() < 8;
        let size = if wide_register {
            to.size()
        } else {
            self.register_bytes(d).map_or(to.size(), |b| (b as usize).max(to.size()))
        };
        if size > 8 || (!to_float && to.size() > size) {
            return self.fail("the destination is too narrow");
        }
        let source = self.src_loose(a, from)?;
        let target = if wide_register { self.temporary(false) } else { self.dst(d, size)? };
        let rule = if !from_float && !to_float && imm == 0 {
            Rule::Mirror { controls: 0 }
        } else {
            Rule::Strict
        };
        let wide = to.size() == 8;
        self.alu(
            convert::select(to, from, imm),
            &mods,
            to,
            target,
            wide,
            [source, ZERO, ZERO],
            (from.size() == 8) as u8,
            imm,
            rule,
        )?;
        if wide_register {
            let d = self.dst(d, 8)?;
            self.widen(target, d, to.is_signed());
        }
        Ok(())
    }
}
