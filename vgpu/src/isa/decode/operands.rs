//! Operands to slots: registers, constants, predicates, addresses.

use super::{DYNAMIC, Decoder, Modifiers, Name, Result};
use crate::isa::lanes::{LANES, Lane, LaneFn, Slot, Wide, lane};
use crate::isa::*;
use crate::ptx::{Operand, Space, Type};

impl<'u, 'a> Decoder<'u, 'a> {
    pub(super) fn lookup(&self, name: &str) -> Option<Name> {
        let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        for scope in self.scopes.iter().rev() {
            if let Some(found) = scope.get(name) {
                return Some(*found);
            }
            // `%r12` of `%r<20>`; a name may itself end in digits, so every split counts.
            for skip in 1..=digits {
                let (prefix, number) = name.split_at(name.len() - skip);
                if number.len() > 1 && number.starts_with('0') {
                    continue;
                }
                let Ok(number) = number.parse::<u32>() else { continue };
                match scope.get(prefix) {
                    Some(Name::Registers { slot, bytes, count }) if number < *count => {
                        let each = if *bytes == 8 { 2 } else { 1 };
                        return Some(Name::Register { slot: slot + number * each, bytes: *bytes });
                    }
                    Some(Name::Predicates { first, count }) if number < *count => {
                        return Some(Name::Predicate(first + number as Pred));
                    }
                    _ => {}
                }
            }
        }
        if let Some(offset) = self.shared.get(name) {
            return Some(Name::Shared(*offset));
        }
        if self.dynamic_names.contains(&name) {
            return Some(Name::Shared(DYNAMIC));
        }
        None
    }

    pub(super) fn shared_offset(&self, offset: u32) -> u64 {
        if offset == DYNAMIC {
            self.shared_bytes.next_multiple_of(self.shared_align) as u64
        } else {
            offset as u64
        }
    }

    pub(super) fn push(&mut self, op: Op) {
        self.code.push(Inst { op, guard: self.guard, class: self.class, line: self.line, loc: 0 });
        self.class = Class::None;
    }

    /// Emits before the instruction being decoded, without using up its class.
    pub(super) fn push_extra(&mut self, op: Op) {
        self.code.push(Inst { op, guard: self.guard, class: Class::None, line: self.line, loc: 0 });
    }

    pub(super) fn constant(&mut self, bits: u64, wide: bool) -> Reg {
        let bits = if wide { bits } else { bits & 0xffff_ffff };
        if bits == 0 {
            return ZERO;
        }
        if let Some(slot) = self.constants.get(&(bits, wide)) {
            return *slot;
        }
        let slot = self.temporary(wide);
        self.constants.insert((bits, wide), slot);
        self.constant_list.push(Constant { slot, bits, wide });
        slot
    }

    pub(super) fn temporary(&mut self, wide: bool) -> Reg {
        let slot = self.slots;
        self.slots += 1 + wide as u32;
        slot
    }

    pub(super) fn temporary_pred(&mut self) -> Pred {
        self.preds += 1;
        (self.preds - 1) as Pred
    }

    /// A source register of a type; immediates become constants.
    pub(super) fn src(&mut self, operand: &Operand<'a>, ty: Type) -> Result<Reg> {
        let size = ty.size();
        match operand {
            Operand::Name(name) => {
                if name.starts_with("%envreg") && size == 4 {
                    // The driver's own registers: two of them hold the address of a cooperative grid's
                    // workspace, the others nothing.
                    return Ok(match *name {
                        "%envreg1" | "%envreg2" => {
                            self.uses_workspace = true;
                            Special::parse(name).map_or(ZERO, |(special, _)| special as Reg)
                        }
                        _ => ZERO,
                    });
                }
                if let Some((special, wide)) = Special::parse(name) {
                    return match (wide, size) {
                        (false, 2 | 4) | (true, 8) => Ok(special as Reg),
                        (false, 8) => {
                            let d = self.temporary(true);
                            self.widen(special as Reg, d, false);
                            Ok(d)
                        }
                        _ => self.fail(
                            format!("'{name}' does not have the size of .{ty:?}").to_lowercase(),
                        ),
                    };
                }
                match self.lookup(name) {
                    Some(Name::Register { slot, bytes }) => {
                        if bytes as usize == size.max(2) {
                            Ok(slot)
                        } else {
                            self.fail(format!(
                                "register '{name}' has {} bits, the instruction wants {}",
                                bytes as usize * 8,
                                size * 8
                            ))
                        }
                    }
                    Some(Name::Predicate(_)) => {
                        self.fail(format!("'{name}' is a predicate, a number is wanted"))
                    }
                    _ => self.fail(format!("'{name}' is not a register")),
                }
            }
            Operand::Int(value) => {
                let bits = *value as u64;
                let bits = match ty {
                    Type::F32 | Type::F64 if *value != 0 => {
                        return self.fail("an integer where a floating-point constant belongs");
                    }
                    _ if size < 4 => bits & ((1 << (size * 8)) - 1),
                    _ => bits,
                };
                Ok(self.constant(bits, size == 8))
            }
            Operand::F32(bits) if matches!(ty, Type::F32 | Type::B32) => {
                Ok(self.constant(*bits as u64, false))
            }
            Operand::F64(bits) if matches!(ty, Type::F64 | Type::B64) => {
                Ok(self.constant(*bits, true))
            }
            Operand::F64(bits) if ty == Type::F32 => {
                Ok(self.constant((f64::from_bits(*bits) as f32).to_bits() as u64, false))
            }
            _ => self.fail("this operand is not a number of the instruction's type"),
        }
    }

    pub(super) fn widen(&mut self, from: Reg, to: Reg, signed: bool) {
        let run = if signed {
            lane!(|a: i32| -> i64 { a as i64 })
        } else {
            lane!(|a: u32| -> u64 { a as u64 })
        };
        let rule = Rule::Mirror { controls: 0 };
        self.push_extra(Op::Alu(Alu {
            run,
            d: to,
            src: [from, ZERO, ZERO],
            imm: 0,
            wide: true,
            wide_src: 0,
            rule,
            flops: 0,
        }));
    }

    pub(super) fn narrow(&mut self, from: Reg, to: Reg) {
        let run = lane!(|a: u64| -> u32 { a as u32 });
        let rule = Rule::Mirror { controls: 0 };
        self.push_extra(Op::Alu(Alu {
            run,
            d: to,
            src: [from, ZERO, ZERO],
            imm: 0,
            wide: false,
            wide_src: 1,
            rule,
            flops: 0,
        }));
    }

    /// A source that may sit in a register wider than its type, as loads, stores and conversions allow.
    pub(super) fn src_loose(&mut self, operand: &Operand<'a>, ty: Type) -> Result<Reg> {
        if let Operand::Name(name) = operand
            && let Some(Name::Register { slot, bytes }) = self.lookup(name)
            && bytes as usize >= ty.size()
        {
            if bytes == 8 && ty.size() < 8 {
                let d = self.temporary(false);
                self.narrow(slot, d);
                return Ok(d);
            }
            return Ok(slot);
        }
        self.src(operand, ty)
    }

    /// A destination register of `size` bytes.
    pub(super) fn dst(&mut self, operand: &Operand<'a>, size: usize) -> Result<Reg> {
        let Operand::Name(name) = operand else {
            return self.fail("the destination is not a register");
        };
        if *name == "_" {
            return Ok(SINK);
        }
        match self.lookup(name) {
            Some(Name::Register { slot, bytes }) if bytes as usize == size.max(2) => Ok(slot),
            Some(Name::Register { bytes, .. }) => self.fail(format!(
                "register '{name}' has {} bits, the result has {}",
                bytes as usize * 8,
                size * 8
            )),
            _ => self.fail(format!("'{name}' is not a register")),
        }
    }

    /// Bytes of a register operand.
    pub(super) fn register_bytes(&self, operand: &Operand<'a>) -> Option<u8> {
        match operand {
            Operand::Name(name) => match self.lookup(name)? {
                Name::Register { bytes, .. } => Some(bytes),
                _ => None,
            },
            _ => None,
        }
    }

    pub(super) fn pred_dst(&self, operand: &Operand<'a>) -> Result<Pred> {
        match operand {
            Operand::Name("_") => Ok(NO_PRED),
            Operand::Name(name) => match self.lookup(name) {
                Some(Name::Predicate(p)) => Ok(p),
                _ => self.fail(format!("'{name}' is not a predicate")),
            },
            _ => self.fail("the destination is not a predicate"),
        }
    }

    pub(super) fn pred_src(&self, operand: &Operand<'a>) -> Result<PredSrc> {
        let (name, negated) = match operand {
            Operand::Name(name) => (name, false),
            Operand::Not(name) => (name, true),
            Operand::Int(value) => return Ok(PredSrc { p: FALSE_PRED, negated: *value != 0 }),
            _ => return self.fail("the operand is not a predicate"),
        };
        match self.lookup(name) {
            Some(Name::Predicate(p)) => Ok(PredSrc { p, negated }),
            _ => self.fail(format!("'{name}' is not a predicate")),
        }
    }

    /// `a` or `a|b`.
    pub(super) fn pair<'o>(operand: &'o Operand<'a>) -> (&'o Operand<'a>, Option<&'o Operand<'a>>) {
        match operand {
            Operand::Pair(both) => (&both.0, Some(&both.1)),
            other => (other, None),
        }
    }

    pub(super) fn address(&mut self, operand: &Operand<'a>, space: MemorySpace) -> Result<Address> {
        let Operand::Memory { base, offset, more } = operand else {
            return self.fail("the operand is not an address in brackets");
        };
        if *more != 0 {
            return self.unsupported("addresses with coordinates are not supported");
        }
        let mut at = Address { space, base: ZERO, wide: true, offset: *offset };
        let Some(base) = base else { return Ok(at) };
        match self.lookup(base) {
            Some(Name::Register { slot, bytes: bytes @ (4 | 8) }) => {
                at.base = slot;
                at.wide = bytes == 8;
            }
            Some(Name::Param(offset)) => {
                if space != MemorySpace::Param {
                    return self.fail(format!("'{base}' is a parameter, not {}", space.name()));
                }
                at.offset += offset as i64;
            }
            Some(Name::Local(offset)) => {
                if !matches!(space, MemorySpace::Param | MemorySpace::Local) {
                    return self.fail(format!("'{base}' is not in {} memory", space.name()));
                }
                at.space = MemorySpace::Local;
                let d = self.temporary(true);
                self.push_extra(Op::LocalAddress { d, offset, wide: true });
                at.base = d;
            }
            Some(Name::Shared(offset)) => {
                if !matches!(space, MemorySpace::Shared | MemorySpace::Generic) {
                    return self.fail(format!("'{base}' is shared, not {}", space.name()));
                }
                at.space = MemorySpace::Shared;
                at.offset += self.shared_offset(offset) as i64;
            }
            _ => match self.symbols.get(base) {
                Some(symbol) => {
                    at.offset = at.offset.wrapping_add(symbol.address as i64);
                    at.space = if symbol.space == Space::Const {
                        MemorySpace::Const
                    } else {
                        MemorySpace::Global
                    };
                    if space != at.space && space != MemorySpace::Generic {
                        return self.fail(format!("'{base}' is not in {} memory", space.name()));
                    }
                }
                None => return self.fail(format!("'{base}' is neither a register nor a variable")),
            },
        }
        Ok(at)
    }

    pub(super) fn operands<'o, const N: usize>(
        &self,
        list: &'o [Operand<'a>],
    ) -> Result<&'o [Operand<'a>; N]> {
        match list.try_into() {
            Ok(array) => Ok(array),
            Err(_) => self.fail(format!("{N} operands expected, found {}", list.len())),
        }
    }

    pub(super) fn one_type(&self, types: &[Type]) -> Result<Type> {
        match types {
            [ty] => Ok(*ty),
            [] => self.fail("the instruction has no type"),
            _ => self.fail("the instruction has more than one type"),
        }
    }

    pub(super) fn finish(&self, mods: &Modifiers) -> Result<()> {
        match mods.left.first() {
            None => Ok(()),
            Some(modifier) => {
                self.unsupported(format!("'.{modifier}' of '{}' is not supported", mods.base))
            }
        }
    }

    pub(super) fn alu(
        &mut self,
        run: Option<LaneFn>,
        mods: &Modifiers,
        ty: Type,
        d: Reg,
        wide: bool,
        src: [Reg; 3],
        wide_src: u8,
        imm: u32,
        rule: Rule,
    ) -> Result<()> {
        let Some(run) = run else {
            return self.unsupported(format!(
                "'{}' with type .{} is not supported",
                mods.base,
                format!("{ty:?}").to_lowercase()
            ));
        };
        let each = match mods.base {
            "fma" | "mad" => 2,
            "add" | "sub" | "mul" | "div" | "sqrt" | "rcp" | "rsqrt" | "ex2" | "lg2" | "sin"
            | "cos" | "tanh" => 1,
            _ => 0,
        };
        let flops = match ty {
            Type::F16x2 | Type::Bf16x2 => each * 2,
            ty if ty.is_float() => each,
            _ => 0,
        };
        self.push(Op::Alu(Alu { run, d, src, imm, wide, wide_src, rule, flops }));
        Ok(())
    }
}
