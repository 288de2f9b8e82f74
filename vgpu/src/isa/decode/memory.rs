//! Loads, stores, atomics, conversions of addresses.

use super::{Decoder, Modifiers, Name, Result};
use crate::isa::*;
use crate::ptx::{Operand, Type};

impl<'u, 'a> Decoder<'u, 'a> {
    pub(super) fn space(&self, mods: &mut Modifiers<'a>) -> MemorySpace {
        mods.take_one(&[
            ("global", MemorySpace::Global),
            ("shared", MemorySpace::Shared),
            ("shared::cta", MemorySpace::Shared),
            ("local", MemorySpace::Local),
            ("const", MemorySpace::Const),
            ("param", MemorySpace::Param),
            ("param::entry", MemorySpace::Param),
            ("param::func", MemorySpace::Param),
        ])
        .unwrap_or(MemorySpace::Generic)
    }

    /// Cache hints change nothing here.
    pub(super) fn cache_hints(&self, mods: &mut Modifiers<'a>) {
        mods.take_word(&["ca", "cg", "cs", "lu", "cv", "wb", "wt"]);
        mods.take_word(&[
            "L1::evict_normal",
            "L1::evict_unchanged",
            "L1::evict_first",
            "L1::evict_last",
            "L1::no_allocate",
        ]);
        mods.take_word(&["L2::evict_normal", "L2::evict_first", "L2::evict_last"]);
        mods.take_word(&["L2::64B", "L2::128B", "L2::256B"]);
    }

    pub(super) fn order(&self, mods: &mut Modifiers<'a>, plain: Order) -> Order {
        let order = mods.take_one(&[
            ("weak", plain),
            ("relaxed", Order::Relaxed),
            ("volatile", Order::Relaxed),
            ("acquire", Order::Acquire),
            ("release", Order::Release),
            ("acq_rel", Order::AcquireRelease),
        ]);
        mods.take_word(&["cta", "cluster", "gpu", "sys"]);
        order.unwrap_or(plain)
    }

    pub(super) fn transfer(&mut self, mut mods: Modifiers<'a>, ops: &[Operand<'a>]) -> Result<()> {
        let is_store = mods.base == "st";
        let order = self.order(&mut mods, Order::Weak);
        let space = self.space(&mut mods);
        mods.take("nc");
        mods.take("unified");
        self.cache_hints(&mut mods);
        let ty = self.one_type(&mods.types())?;
        let count = mods.take_one(&[("v2", 2), ("v4", 4), ("v8", 8)]).unwrap_or(1);
        self.finish(&mods)?;
        if matches!(ty, Type::Pred | Type::F16x2 | Type::Bf16x2)
            || ty.size() * count > 32
            || (ty.size() * count > 16 && space != MemorySpace::Global)
        {
            return self
                .unsupported(format!("'{}' of this type and vector is not supported", mods.base));
        }
        let [first, second] = self.operands(ops)?;
        let (value, place) = if is_store { (second, first) } else { (first, second) };
        let at = self.address(place, space)?;
        if is_store && matches!(at.space, MemorySpace::Const | MemorySpace::Param) {
            return self.fail(format!("{} memory cannot be written", at.space.name()));
        }
        let parts = match value {
            Operand::Vector(parts) if count > 1 => parts.as_slice(),
            Operand::Vector(_) => return self.fail("a vector of registers needs .v2, .v4 or .v8"),
            one if count == 1 => std::slice::from_ref(one),
            _ => return self.fail("a vector access needs {registers}"),
        };
        if parts.len() != count {
            return self.fail(format!("{count} registers expected, found {}", parts.len()));
        }
        let mut regs = Vec::new();
        let mut wide = ty.size() == 8;
        for part in parts {
            if is_store {
                regs.push(self.src_loose(part, ty)?);
            } else {
                let bytes = self.register_bytes(part).unwrap_or(ty.size().max(2) as u8) as usize;
                if bytes < ty.size() {
                    return self.fail("the destination is narrower than the type");
                }
                if ty.size() < 8 && bytes == 8 {
                    wide = true;
                }
                regs.push(self.dst(part, bytes)?);
            }
        }
        let transfer = Box::new(Transfer {
            at,
            size: ty.size() as u8,
            regs,
            wide,
            signed: ty.is_signed(),
            order,
        });
        self.class = match at.space {
            MemorySpace::Shared => Class::Shared,
            MemorySpace::Local => Class::Local,
            MemorySpace::Param => Class::Param,
            _ => Class::Global,
        };
        self.push(if is_store { Op::Store(transfer) } else { Op::Load(transfer) });
        Ok(())
    }

    pub(super) fn atomic(&mut self, mut mods: Modifiers<'a>, ops: &[Operand<'a>]) -> Result<()> {
        use AtomicOp::*;
        use Type::*;
        let returns = mods.base == "atom";
        let order = self.order(&mut mods, Order::Relaxed);
        let space = self.space(&mut mods);
        let op = mods.take_one(&[
            ("add", Add),
            ("min", Min),
            ("max", Max),
            ("inc", Inc),
            ("dec", Dec),
            ("and", And),
            ("or", Or),
            ("xor", Xor),
            ("exch", Exchange),
            ("cas", CompareAndSwap),
        ]);
        let Some(op) = op else { return self.fail(format!("'{}' needs an operation", mods.base)) };
        let noftz = mods.take("noftz");
        let ty = self.one_type(&mods.types())?;
        self.finish(&mods)?;
        let valid = match op {
            Add => {
                matches!(ty, U32 | S32 | U64 | F32 | F64)
                    || noftz && matches!(ty, F16 | F16x2 | Bf16 | Bf16x2)
            }
            Min | Max => {
                matches!(ty, U32 | S32 | U64 | S64)
                    || noftz && matches!(ty, F16 | F16x2 | Bf16 | Bf16x2)
            }
            Inc | Dec => ty == U32,
            And | Or | Xor => matches!(ty, B32 | B64),
            Exchange => returns && matches!(ty, B32 | B64),
            CompareAndSwap => returns && matches!(ty, B16 | B32 | B64),
        };
        if !valid
            || !matches!(space, MemorySpace::Generic | MemorySpace::Global | MemorySpace::Shared)
        {
            return self.fail(format!(
                "'{}' of this operation and type does not exist or is not supported",
                mods.base
            ));
        }
        let (d, rest) = match (returns, ops) {
            (true, [d, rest @ ..]) => (Some(d), rest),
            (false, rest) => (None, rest),
            _ => return self.fail("operands are missing"),
        };
        let (place, b, c) = match (op, rest) {
            (CompareAndSwap, [place, b, c]) => (place, b, Some(c)),
            (CompareAndSwap, _) => return self.fail("'cas' needs an address and two values"),
            (_, [place, b]) => (place, b, None),
            _ => return self.fail("an address and one value expected"),
        };
        let at = self.address(place, space)?;
        let b = self.src(b, ty)?;
        let c = c.map_or(Ok(ZERO), |c| self.src(c, ty))?;
        let d = match d {
            Some(d) => Some(self.dst(d, ty.size())?),
            None => None,
        };
        self.push(Op::Atomic(Box::new(Atomic { at, op, ty, d, b, c, order })));
        Ok(())
    }

    pub(super) fn convert_address(
        &mut self,
        mut mods: Modifiers<'a>,
        ops: &[Operand<'a>],
    ) -> Result<()> {
        let to = mods.take("to");
        let space = self.space(&mut mods);
        let types = mods.types();
        self.finish(&mods)?;
        if space == MemorySpace::Generic {
            return self.fail(format!("'{}' needs a state space", mods.base));
        }
        let [d, a] = self.operands(ops)?;
        if mods.base == "isspacep" {
            let (p, a) = (self.pred_dst(d)?, self.src(a, Type::U64)?);
            self.push(Op::IsSpace { p, a, space });
            return Ok(());
        }
        let ty = self.one_type(&types)?;
        if !matches!(ty, Type::U32 | Type::U64) {
            return self.fail("addresses are .u32 or .u64");
        }
        let wide = ty == Type::U64;
        if let Operand::Name(name) = a
            && !matches!(self.lookup(name), Some(Name::Register { .. }))
        {
            // Address of a variable first, conversion second.
            let temporary = self.temporary(wide);
            let scope = self.scopes.len() - 1;
            self.scopes[scope]
                .insert("%address", Name::Register { slot: temporary, bytes: ty.size() as u8 });
            self.variable_address(ty, &Operand::Name("%address"), name)?;
            let d = self.dst(d, ty.size())?;
            self.push(Op::ConvertAddress { d, a: temporary, to_generic: !to, space, wide });
            return Ok(());
        }
        let (a, d) = (self.src(a, ty)?, self.dst(d, ty.size())?);
        self.push(Op::ConvertAddress { d, a, to_generic: !to, space, wide });
        Ok(())
    }
}
