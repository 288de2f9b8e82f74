//! `ldmatrix`, `stmatrix`, `mma`.

use super::{Decoder, Modifiers, Result};
use crate::isa::*;
use crate::ptx::{Operand, Type};

impl<'u, 'a> Decoder<'u, 'a> {
    pub(super) fn matrix(&mut self, mut mods: Modifiers<'a>, ops: &[Operand<'a>]) -> Result<()> {
        self.need_sync(&mut mods)?;
        let ok = mods.take("aligned") && mods.take("m8n8") && mods.take("b16");
        let count = mods.take_one(&[("x1", 1), ("x2", 2), ("x4", 4)]);
        let transposed = mods.take("trans");
        let space = self.space(&mut mods);
        self.finish(&mods)?;
        let (true, Some(count), MemorySpace::Shared | MemorySpace::Generic) = (ok, count, space)
        else {
            return self.unsupported(format!("this form of '{}' is not supported", mods.base));
        };
        let store = mods.base == "stmatrix";
        let [first, second] = self.operands(ops)?;
        let (list, at) = if store { (second, first) } else { (first, second) };
        let at = self.address(at, space)?;
        let regs = self.fragment(list, count, store)?;
        self.push(Op::Matrix(Box::new(MatrixTransfer { at, regs, transposed, store })));
        Ok(())
    }

    pub(super) fn fragment(
        &mut self,
        operand: &Operand<'a>,
        count: usize,
        is_source: bool,
    ) -> Result<Vec<Reg>> {
        let parts = match operand {
            Operand::Vector(parts) => parts.as_slice(),
            one => std::slice::from_ref(one),
        };
        if parts.len() != count {
            return self.fail(format!("{count} registers expected, found {}", parts.len()));
        }
        parts
            .iter()
            .map(|p| if is_source { self.src(p, Type::B32) } else { self.dst(p, 4) })
            .collect()
    }

    pub(super) fn mma(&mut self, mut mods: Modifiers<'a>, ops: &[Operand<'a>]) -> Result<()> {
        self.need_sync(&mut mods)?;
        let shape =
            mods.take_one(&[("m16n8k4", 4u8), ("m16n8k8", 8), ("m16n8k16", 16), ("m16n8k32", 32)]);
        let ok = mods.take("aligned") && mods.take("row") && mods.take("col");
        let (true, Some(k)) = (ok, shape) else {
            return self.unsupported("this shape or layout of 'mma' is not supported");
        };
        let saturate = mods.take("satfinite");
        let [d_type, a_type, b_type, c_type] = mods.left[..] else {
            return self.fail("'mma' needs four types");
        };
        mods.left.clear();
        let element = |name: &str| match name {
            "f16" => Some(MmaType::F16),
            "bf16" => Some(MmaType::Bf16),
            "tf32" => Some(MmaType::Tf32),
            "s8" => Some(MmaType::S8),
            "u8" => Some(MmaType::U8),
            _ => None,
        };
        let (Some(a), Some(b)) = (element(a_type), element(b_type)) else {
            return self.unsupported(format!("'mma' of .{a_type} and .{b_type} is not supported"));
        };
        let is_int = |t: MmaType| matches!(t, MmaType::S8 | MmaType::U8);
        let valid = match (a, k) {
            (MmaType::F16 | MmaType::Bf16, 8 | 16) | (MmaType::Tf32, 4 | 8) => a == b && !saturate,
            (MmaType::S8 | MmaType::U8, 16 | 32) => is_int(b),
            _ => false,
        };
        let (half_d, half_c) = (d_type == "f16", c_type == "f16");
        let accumulator = if is_int(a) { "s32" } else { "f32" };
        let fits = |half: bool, name: &str| name == accumulator || half && a == MmaType::F16;
        if !valid || !fits(half_d, d_type) || !fits(half_c, c_type) {
            return self.unsupported("'mma' of this shape and these types is not supported");
        }
        let [d, a_ops, b_ops, c] = self.operands(ops)?;
        let bytes = match a {
            MmaType::F16 | MmaType::Bf16 => 2,
            MmaType::Tf32 => 4,
            _ => 1,
        };
        let (a_count, b_count) = (16 * k as usize * bytes / 128, 8 * k as usize * bytes / 128);
        let mma = Mma {
            n: 8,
            k,
            a_type: a,
            b_type: b,
            half_c,
            half_d,
            saturate,
            a: self.fragment(a_ops, a_count, true)?,
            b: self.fragment(b_ops, b_count, true)?,
            c: self.fragment(c, if half_c { 2 } else { 4 }, true)?,
            d: self.fragment(d, if half_d { 2 } else { 4 }, false)?,
        };
        self.push(Op::Mma(Box::new(mma)));
        Ok(())
    }
}
