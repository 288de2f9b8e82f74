//! Arithmetic against exact results, on edge values and random bits.
#![cfg(vgpu_supported)]

mod common;

use std::cmp::Ordering;

use common::Rng;
use vgpu::{Arguments, Config, Gpu};

/// Runs one instruction on triples of operands. `%a`, `%b`, `%c` are the sources, `%o` the result, all of
/// the given widths in bits.
fn run(instruction: &str, widths: [u32; 4], inputs: &[[u64; 3]]) -> Vec<u64> {
    let [a, b, c, o] = widths;
    let load = |name: &str, width: u32, at: u32| match width {
        64 => format!("ld.global.u64 %{name}, [%p+{at}];"),
        32 => format!("ld.global.u32 %{name}, [%p+{at}];"),
        _ => format!("ld.global.u16 %{name}, [%p+{at}];"),
    };
    let store = if o == 16 {
        "st.global.u16"
    } else if o == 32 {
        "st.global.u32"
    } else {
        "st.global.u64"
    };
    let ptx = format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 data) {{\n\
         .reg .b64 %p, %q; .reg .b32 %t, %n, %u; .reg .b{a} %a; .reg .b{b} %b; .reg .b{c} %c; .reg .b{o} %o; .reg .pred %x, %y;\n\
         ld.param.u64 %p, [data]; mov.u32 %t, %tid.x; mov.u32 %n, %ctaid.x; mov.u32 %u, %ntid.x;\n\
         mad.lo.u32 %t, %n, %u, %t; mul.wide.u32 %q, %t, 32; add.u64 %p, %p, %q;\n\
         {} {} {}\n{instruction}\n{store} [%p+24], %o;\nret;\n}}",
        load("a", a, 0),
        load("b", b, 8),
        load("c", c, 16)
    );
    let mut gpu = Gpu::new(Config::default()).unwrap();
    let kernel = gpu.load(&ptx).unwrap_or_else(|e| panic!("{e}\n{ptx}")).function("k").unwrap();
    let mut words: Vec<u64> = inputs.iter().flat_map(|[a, b, c]| [*a, *b, *c, 0]).collect();
    words.resize(words.len().next_multiple_of(4 * 64), 0);
    let blocks = words.len() as u32 / 256;
    let data = gpu.upload(&words).unwrap();
    gpu.launch(&kernel, [blocks, 1, 1], [64, 1, 1], 0, &Arguments::new().pointer(data))
        .unwrap_or_else(|e| panic!("{instruction}: {e}"));
    gpu.download::<u64>(data, inputs.len() * 4).unwrap().chunks(4).map(|row| row[3]).collect()
}

/// Random triples, half of them from values where things go wrong.
fn triples(rng: &mut Rng, edges: &[u64]) -> Vec<[u64; 3]> {
    (0..2000)
        .map(|_| {
            std::array::from_fn(|_| {
                if rng.below(2) == 0 { edges[rng.below(edges.len())] } else { rng.bits() }
            })
        })
        .collect()
}

const INTS: [u64; 14] = [
    0,
    1,
    2,
    31,
    32,
    33,
    63,
    64,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    1 << 63,
    u64::MAX,
];

fn check32(instruction: &str, exact: impl Fn(u32, u32, u32) -> u32) {
    let inputs = triples(&mut Rng(1), &INTS);
    for (input, found) in inputs.iter().zip(run(instruction, [32; 4], &inputs)) {
        let [a, b, c] = input.map(|v| v as u32);
        assert_eq!(found as u32, exact(a, b, c), "{instruction} of {a:#x}, {b:#x}, {c:#x}");
    }
}

fn check64(instruction: &str, exact: impl Fn(u64, u64, u64) -> u64) {
    let inputs = triples(&mut Rng(2), &INTS);
    for (input, found) in inputs.iter().zip(run(instruction, [64; 4], &inputs)) {
        let [a, b, c] = *input;
        assert_eq!(found, exact(a, b, c), "{instruction} of {a:#x}, {b:#x}, {c:#x}");
    }
}

#[test]
fn integers_of_32_bits() {
    check32("add.s32 %o, %a, %b;", |a, b, _| a.wrapping_add(b));
    check32("add.sat.s32 %o, %a, %b;", |a, b, _| (a as i32).saturating_add(b as i32) as u32);
    check32("sub.s32 %o, %a, %b;", |a, b, _| a.wrapping_sub(b));
    check32("mul.hi.u32 %o, %a, %b;", |a, b, _| ((a as u64 * b as u64) >> 32) as u32);
    check32("mul.hi.s32 %o, %a, %b;", |a, b, _| ((a as i32 as i64 * b as i32 as i64) >> 32) as u32);
    check32("mad.lo.s32 %o, %a, %b, %c;", |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    check32("mad.hi.u32 %o, %a, %b, %c;", |a, b, c| {
        (((a as u64 * b as u64) >> 32) as u32).wrapping_add(c)
    });
    check32("abs.s32 %o, %a;", |a, _, _| (a as i32).wrapping_abs() as u32);
    check32("min.s32 %o, %a, %b;", |a, b, _| (a as i32).min(b as i32) as u32);
    check32("max.u32 %o, %a, %b;", |a, b, _| a.max(b));
    check32("sad.s32 %o, %a, %b, %c;", |a, b, c| (a as i32).abs_diff(b as i32).wrapping_add(c));
    check32("shl.b32 %o, %a, %b;", |a, b, _| a.checked_shl(b).unwrap_or(0));
    check32("shr.u32 %o, %a, %b;", |a, b, _| a.checked_shr(b).unwrap_or(0));
    check32("shr.s32 %o, %a, %b;", |a, b, _| ((a as i32) >> b.min(31)) as u32);
    check32("shf.l.wrap.b32 %o, %a, %b, %c;", |a, b, c| {
        ((((b as u64) << 32 | a as u64) << (c & 31)) >> 32) as u32
    });
    check32("shf.r.clamp.b32 %o, %a, %b, %c;", |a, b, c| {
        (((b as u64) << 32 | a as u64) >> c.min(32)) as u32
    });
    check32("popc.b32 %o, %a;", |a, _, _| a.count_ones());
    check32("clz.b32 %o, %a;", |a, _, _| a.leading_zeros());
    check32("brev.b32 %o, %a;", |a, _, _| a.reverse_bits());
    check32("bfind.u32 %o, %a;", |a, _, _| if a == 0 { !0 } else { 31 - a.leading_zeros() });
    check32("not.b32 %o, %a;", |a, _, _| !a);
    check32("lop3.b32 %o, %a, %b, %c, 0xE8;", |a, b, c| (a & b) | (a & c) | (b & c));
    check32("prmt.b32 %o, %a, %b, %c;", |a, b, c| {
        let bytes = ((b as u64) << 32 | a as u64).to_le_bytes();
        u32::from_le_bytes(std::array::from_fn(|i| {
            let select = c >> (4 * i) & 15;
            let byte = bytes[(select & 7) as usize];
            if select & 8 != 0 { (byte as i8 >> 7) as u8 } else { byte }
        }))
    });
    check32("bfe.u32 %o, %a, %b, %c;", |a, b, c| {
        (0..(c & 255).min(32))
            .filter(|i| (b & 255) + i < 32 && a >> ((b & 255) + i) & 1 != 0)
            .fold(0, |m, i| m | 1 << i)
    });
    check32("bfe.s32 %o, %a, %b, %c;", |a, b, c| {
        let (from, count) = (b & 255, c & 255);
        // The sign is the field's top bit, or the register's where the field reaches past it.
        let sign = if count == 0 { 0 } else { a >> (from + count - 1).min(31) & 1 };
        (0..32)
            .filter(|i| (if *i < count && from + i < 32 { a >> (from + i) & 1 } else { sign }) != 0)
            .fold(0, |m, i| m | 1 << i)
    });
    check32("{ .reg .b32 %l; and.b32 %l, %c, 31; bfi.b32 %o, %a, %b, %l, 7; }", |a, b, c| {
        (0..7)
            .map(|i| (i, (c & 31) + i))
            .filter(|(_, at)| *at < 32)
            .fold(b, |m, (i, at)| m & !(1 << at) | (a >> i & 1) << at)
    });
    check32("add.cc.u32 %o, %a, %b;\naddc.u32 %o, %c, 0;", |a, b, c| {
        c.wrapping_add(a.checked_add(b).is_none() as u32)
    });
    check32("sub.cc.u32 %o, %a, %b;\nsubc.u32 %o, %c, 0;", |a, b, c| {
        c.wrapping_sub((a < b) as u32)
    });
    check32("div.u32 %o, %a, %b;", |a, b, _| a.checked_div(b).unwrap_or(!0));
    check32("rem.s32 %o, %a, %b;", |a, b, _| {
        if b == 0 { !0 } else { (a as i32).wrapping_rem(b as i32) as u32 }
    });
    check32("dp4a.s32.u32 %o, %a, %b, %c;", |a, b, c| {
        (0..4).fold(c, |s, i| {
            s.wrapping_add(((a >> (8 * i)) as i8 as i32 * (b >> (8 * i) & 255) as i32) as u32)
        })
    });
    check32("setp.lt.s32 %x, %a, %b;\nselp.b32 %o, %a, %c, %x;", |a, b, c| {
        if (a as i32) < b as i32 { a } else { c }
    });
}

#[test]
fn integers_of_64_bits() {
    check64("add.s64 %o, %a, %b;", |a, b, _| a.wrapping_add(b));
    check64("mad.lo.s64 %o, %a, %b, %c;", |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    check64("mul.hi.u64 %o, %a, %b;", |a, b, _| ((a as u128 * b as u128) >> 64) as u64);
    check64("mul.hi.s64 %o, %a, %b;", |a, b, _| {
        ((a as i64 as i128 * b as i64 as i128) >> 64) as u64
    });
    check64("min.s64 %o, %a, %b;", |a, b, _| (a as i64).min(b as i64) as u64);
    check64("{ .reg .b32 %l; cvt.u32.u64 %l, %b; shl.b64 %o, %a, %l; }", |a, b, _| {
        a.checked_shl(b as u32).unwrap_or(0)
    });
    check64("{ .reg .b32 %l; cvt.u32.u64 %l, %b; shr.s64 %o, %a, %l; }", |a, b, _| {
        ((a as i64) >> (b as u32).min(63)) as u64
    });
    check64("{ .reg .b32 %l, %h; mov.b64 {%l, %h}, %a; mov.b64 %o, {%h, %l}; }", |a, _, _| {
        a.rotate_left(32)
    });
    check64(
        "setp.hi.u64 %x, %a, %b;\nselp.b64 %o, %a, %c, %x;",
        |a, b, c| if a > b { a } else { c },
    );
}

const F32S: [u64; 14] = [
    0,
    0x8000_0000,
    0x3f80_0000,
    0xbf80_0000,
    1,
    0x8000_0001,
    0x007f_ffff,
    0x0080_0000,
    0x7f7f_ffff,
    0xff7f_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0x3f7f_ffff,
];

/// Operands near 1, where sums and products of single numbers are exact in double precision, and edges.
fn floats() -> Vec<[u64; 3]> {
    let mut rng = Rng(3);
    (0..2000)
        .map(|i| {
            std::array::from_fn(|_| match (i % 3, rng.below(F32S.len())) {
                (0, edge) => F32S[edge],
                _ => rng.bits() & 0x807f_ffff | (122 + rng.below(10) as u64) << 23,
            })
        })
        .collect()
}

/// Whether `found` is `exact` rounded towards minus infinity (`down`) or plus infinity, or truncated.
fn is_directed(found: f32, exact: f64, mode: &str) -> bool {
    if exact.is_nan() {
        return found.to_bits() == 0x7fff_ffff;
    }
    let f = found as f64;
    match mode {
        "rm" => f <= exact && (found.next_up() as f64 > exact || exact == f64::INFINITY),
        "rp" => f >= exact && ((found.next_down() as f64) < exact || exact == f64::NEG_INFINITY),
        _ if exact == 0.0 => f == 0.0,
        _ => {
            f.abs() <= exact.abs()
                && (found.abs().next_up() as f64 > exact.abs() || exact.is_infinite())
                && (f == 0.0 || (f > 0.0) == (exact > 0.0))
        }
    }
}

#[test]
fn single_precision() {
    let inputs = floats();
    type Exact = fn(f64, f64, f64) -> f64;
    let forms: [(&str, &str, Exact); 3] = [
        ("add", "%o, %a, %b;", |a, b, _| a + b),
        ("mul", "%o, %a, %b;", |a, b, _| a * b),
        ("sub", "%o, %a, %b;", |a, b, _| a - b),
    ];
    for (name, operands, exact) in forms {
        for mode in ["rm", "rp", "rz"] {
            let found = run(&format!("{name}.{mode}.f32 {operands}"), [32; 4], &inputs);
            for (input, found) in inputs.iter().zip(found) {
                let [a, b, c] = input.map(|v| f32::from_bits(v as u32));
                let value = exact(a as f64, b as f64, c as f64);
                // A sum of numbers too far apart is not exact in double precision: its parts then decide.
                let second = if name == "sub" { -b as f64 } else { b as f64 };
                let parts_agree = value - a as f64 == second && value - second == a as f64;
                let is_exact =
                    name == "mul" || parts_agree || value.is_nan() || value.is_infinite();
                assert!(
                    !is_exact || is_directed(f32::from_bits(found as u32), value, mode),
                    "{name}.{mode} of {a:e}, {b:e}: {found:#x}"
                );
            }
        }
    }
    type Case = (&'static str, fn(f32, f32, f32) -> f32);
    let nearest: [Case; 6] = [
        ("add.f32 %o, %a, %b;", |a, b, _| a + b),
        ("mul.rn.f32 %o, %a, %b;", |a, b, _| a * b),
        ("div.rn.f32 %o, %a, %b;", |a, b, _| a / b),
        ("fma.rn.f32 %o, %a, %b, %c;", |a, b, c| a.mul_add(b, c)),
        ("sqrt.rn.f32 %o, %a;", |a, _, _| a.sqrt()),
        ("rcp.rn.f32 %o, %a;", |a, _, _| 1.0 / a),
    ];
    for (instruction, exact) in nearest {
        for (input, found) in inputs.iter().zip(run(instruction, [32; 4], &inputs)) {
            let [a, b, c] = input.map(|v| f32::from_bits(v as u32));
            let value = exact(a, b, c);
            let bits = if value.is_nan() { 0x7fff_ffff } else { value.to_bits() };
            assert_eq!(found as u32, bits, "{instruction} of {a:e}, {b:e}, {c:e}");
        }
    }
    for (input, found) in inputs.iter().zip(run("min.f32 %o, %a, %b;", [32; 4], &inputs)) {
        let [a, b, _] = input.map(|v| f32::from_bits(v as u32));
        let value = match (a.is_nan(), b.is_nan()) {
            (true, true) => f32::from_bits(0x7fff_ffff),
            (true, false) => b,
            (false, true) => a,
            _ if a == b && a == 0.0 => f32::from_bits(a.to_bits() | b.to_bits()),
            _ => {
                if b < a {
                    b
                } else {
                    a
                }
            }
        };
        assert_eq!(found as u32, value.to_bits(), "min of {a:e}, {b:e}");
    }
    for (input, found) in inputs.iter().zip(run("add.ftz.sat.f32 %o, %a, %b;", [32; 4], &inputs)) {
        let flush = |x: f32| if x.is_subnormal() { 0.0 } else { x };
        let [a, b, _] = input.map(|v| f32::from_bits(v as u32));
        let sum = flush(flush(a) + flush(b));
        let value = if sum > 0.0 { sum.min(1.0) } else { 0.0 };
        assert_eq!(f32::from_bits(found as u32), value, "add.ftz.sat of {a:e}, {b:e}");
    }
}

#[test]
fn conversions() {
    let inputs = floats();
    for (mode, round) in [
        ("rni", f64::round_ties_even as fn(f64) -> f64),
        ("rzi", f64::trunc),
        ("rmi", f64::floor),
        ("rpi", f64::ceil),
    ] {
        let signed = run(&format!("cvt.{mode}.s32.f32 %o, %a;"), [32; 4], &inputs);
        let unsigned = run(&format!("cvt.{mode}.u32.f32 %o, %a;"), [32; 4], &inputs);
        let byte = run(&format!("cvt.{mode}.u8.f32 %o, %a;"), [32, 32, 32, 16], &inputs);
        for (i, input) in inputs.iter().enumerate() {
            let x = round(f32::from_bits(input[0] as u32) as f64);
            assert_eq!(signed[i] as i32, x as i32, "cvt.{mode}.s32.f32 of {x}");
            assert_eq!(unsigned[i] as u32, x as u32, "cvt.{mode}.u32.f32 of {x}");
            assert_eq!(byte[i] as u8, x as u8, "cvt.{mode}.u8.f32 of {x}");
        }
    }
    let ints = triples(&mut Rng(4), &INTS);
    let narrow = run("cvt.rn.f32.s64 %o, %a;", [64, 64, 64, 32], &ints);
    let saturated = run("cvt.sat.u8.s32 %o, %a;", [32, 32, 32, 16], &ints);
    let extended = run("cvt.s64.s8 %o, %a;", [16, 16, 16, 64], &ints);
    for (i, input) in ints.iter().enumerate() {
        assert_eq!(
            narrow[i] as u32,
            (input[0] as i64 as f32).to_bits(),
            "cvt.rn.f32.s64 of {}",
            input[0] as i64
        );
        assert_eq!(
            saturated[i] as u8,
            (input[0] as i32).clamp(0, 255) as u8,
            "cvt.sat.u8.s32 of {}",
            input[0] as i32
        );
        assert_eq!(extended[i] as i64, input[0] as i8 as i64, "cvt.s64.s8 of {:#x}", input[0]);
    }
}

/// A double's sign, whole significand and exponent: `significand * 2^exponent`. Finite.
fn parts(x: f64) -> (bool, u64, i32) {
    let bits = x.to_bits();
    let (exponent, fraction) = ((bits >> 52 & 0x7ff) as i32, bits & ((1 << 52) - 1));
    if exponent == 0 {
        (x.is_sign_negative(), fraction, -1074)
    } else {
        (x.is_sign_negative(), fraction | 1 << 52, exponent - 1075)
    }
}

/// A natural number of 4,608 bits: the exact sum of any product of two doubles and a third, in units of 2^-2148,
/// is below 2^4300.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Wide([u64; 72]);

impl Wide {
    const ZERO: Self = Self([0; 72]);

    /// `value * 2^(exponent + 2148)`.
    fn scaled(value: u128, exponent: i32) -> Self {
        let at = (exponent + 2148) as usize;
        let (word, bit) = (at / 64, at % 64);
        let mut out = Self::ZERO;
        out.0[word] = (value as u64) << bit;
        if bit == 0 {
            out.0[word + 1] = (value >> 64) as u64;
        } else {
            out.0[word + 1] = (value >> (64 - bit)) as u64;
            out.0[word + 2] = ((value >> 64) >> (64 - bit)) as u64;
        }
        out
    }

    fn order(&self, other: &Self) -> Ordering {
        self.0.iter().rev().cmp(other.0.iter().rev())
    }

    fn plus(&self, other: &Self) -> Self {
        let (mut out, mut carry) = (Self::ZERO, 0);
        for i in 0..72 {
            let sum = self.0[i] as u128 + other.0[i] as u128 + carry;
            (out.0[i], carry) = (sum as u64, sum >> 64);
        }
        out
    }

    /// `self - other`, which is not greater.
    fn minus(&self, other: &Self) -> Self {
        let (mut out, mut borrow) = (Self::ZERO, false);
        for i in 0..72 {
            let (a, first) = self.0[i].overflowing_sub(other.0[i]);
            let (b, second) = a.overflowing_sub(borrow as u64);
            (out.0[i], borrow) = (b, first || second);
        }
        out
    }
}

/// A number with its sign.
type Signed = (bool, Wide);

/// `a * b + c`.
fn exact_fma(a: f64, b: f64, c: f64) -> Signed {
    let ((sa, ma, ea), (sb, mb, eb), (sc, mc, ec)) = (parts(a), parts(b), parts(c));
    let product = (sa != sb, Wide::scaled(ma as u128 * mb as u128, ea + eb));
    let addend = (sc, Wide::scaled(mc as u128, ec));
    if product.0 == addend.0 {
        return (product.0, product.1.plus(&addend.1));
    }
    match product.1.order(&addend.1) {
        Ordering::Less => (addend.0, addend.1.minus(&product.1)),
        _ => (product.0, product.1.minus(&addend.1)),
    }
}

fn compare(a: &Signed, b: &Signed) -> Ordering {
    if a.1 == Wide::ZERO && b.1 == Wide::ZERO {
        return Ordering::Equal;
    }
    match (a.0, b.0) {
        (false, true) => Ordering::Greater,
        (true, false) => Ordering::Less,
        (false, false) => a.1.order(&b.1),
        (true, true) => b.1.order(&a.1),
    }
}

/// Sign of (`exact` - `x`); an infinity lies beyond every exact result.
fn side_of(x: f64, exact: impl Fn(f64) -> Ordering) -> Ordering {
    match x {
        f64::INFINITY => Ordering::Less,
        f64::NEG_INFINITY => Ordering::Greater,
        _ => exact(x),
    }
}

/// Whether `found` is the double that `mode` picks for a finite exact result; `exact(x)` compares that result
/// with a finite `x`.
fn is_rounded(found: f64, mode: &str, exact: impl Fn(f64) -> Ordering) -> bool {
    if found.is_nan() {
        return false;
    }
    let towards_zero = if exact(0.0) == Ordering::Less { "rp" } else { "rm" };
    match if mode == "rz" { towards_zero } else { mode } {
        // The greatest double that is not above.
        "rm" => {
            side_of(found, &exact) != Ordering::Less
                && (found == f64::MAX || side_of(found.next_up(), &exact) == Ordering::Less)
        }
        _ => {
            side_of(found, &exact) != Ordering::Greater
                && (found == f64::MIN || side_of(found.next_down(), &exact) == Ordering::Greater)
        }
    }
}

const F64S: [f64; 14] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    1.0 + f64::EPSILON,
    1.0 - f64::EPSILON / 2.0,
    f64::MIN_POSITIVE,
    -f64::MIN_POSITIVE,
    5e-324,
    -5e-324,
    2.225_073_858_507_201e-308,
    f64::MAX,
    f64::MIN,
    3.0,
];

/// Edges, numbers of about the same size (so that sums cancel and products round), and random bits.
fn doubles() -> Vec<[f64; 3]> {
    let mut rng = Rng(5);
    let mut number = |kind: usize| match kind {
        0 => F64S[rng.below(F64S.len())],
        1 => {
            f64::from_bits(rng.bits() & 0x800f_ffff_ffff_ffff | (1018 + rng.below(10) as u64) << 52)
        }
        _ => Some(f64::from_bits(rng.bits())).filter(|x| x.is_finite()).unwrap_or(f64::MAX),
    };
    let mut out: Vec<[f64; 3]> =
        (0..3000).map(|i| std::array::from_fn(|j| number([i, i / 3, i / 9][j] % 3))).collect();
    // Sums that almost cancel: the rounding then decides over the last bits of a product.
    for i in 0..500 {
        let [a, b, _] = out[i];
        let c = -(a * b);
        if c.is_finite() {
            out.push([a, b, c]);
        }
    }
    out
}

#[test]
fn double_precision() {
    let numbers = doubles();
    let inputs: Vec<[u64; 3]> = numbers.iter().map(|row| row.map(f64::to_bits)).collect();
    for mode in ["rz", "rm", "rp"] {
        type Operands = fn([f64; 3]) -> [f64; 3];
        let forms: [(&str, &str, Operands); 4] = [
            ("add", "%o, %a, %b;", |[a, b, _]| [a, 1.0, b]),
            ("sub", "%o, %a, %b;", |[a, b, _]| [a, 1.0, -b]),
            ("mul", "%o, %a, %b;", |[a, b, _]| [a, b, if a * b < 0.0 { -0.0 } else { 0.0 }]),
            ("fma", "%o, %a, %b, %c;", |row| row),
        ];
        for (name, operands, factors) in forms {
            let found = run(&format!("{name}.{mode}.f64 {operands}"), [64; 4], &inputs);
            for (row, found) in numbers.iter().zip(found) {
                let ([a, b, c], found) = (factors(*row), f64::from_bits(found));
                let exact = exact_fma(a, b, c);
                let is_right = is_rounded(found, mode, |x| {
                    let (sign, significand, exponent) = parts(x);
                    compare(&exact, &(sign, Wide::scaled(significand as u128, exponent)))
                });
                assert!(is_right, "{name}.{mode}.f64 of {row:?}: {found:e}");
                // An exact zero of a sum is -0 downwards and +0 otherwise, unless both terms have its sign.
                if found == 0.0 && exact.1 == Wide::ZERO && name != "mul" {
                    let product = a.is_sign_negative() != b.is_sign_negative();
                    let negative =
                        if product == c.is_sign_negative() { product } else { mode == "rm" };
                    assert_eq!(found.is_sign_negative(), negative, "{name}.{mode}.f64 of {row:?}");
                }
                if name == "mul" {
                    let negative = row[0].is_sign_negative() != row[1].is_sign_negative();
                    assert_eq!(found.is_sign_negative(), negative, "mul.{mode}.f64 of {row:?}");
                }
            }
        }
        let found = run(&format!("div.{mode}.f64 %o, %a, %b;"), [64; 4], &inputs);
        for (row, found) in numbers.iter().zip(found) {
            let ([a, b, _], found) = (*row, f64::from_bits(found));
            if b == 0.0 {
                assert!(if a == 0.0 { found.is_nan() } else { found == a / b }, "{row:?}: {found}");
                continue;
            }
            // a / b against x: a against x * b, the other way round for a negative b.
            let is_right = is_rounded(found, mode, |x| {
                let order = compare(&exact_fma(a, 1.0, 0.0), &exact_fma(x, b, 0.0));
                if b < 0.0 { order.reverse() } else { order }
            });
            assert!(is_right, "div.{mode}.f64 of {row:?}: {found:e}");
        }
        let found = run(&format!("sqrt.{mode}.f64 %o, %a;"), [64; 4], &inputs);
        for (row, found) in numbers.iter().zip(found) {
            let (a, found) = (row[0], f64::from_bits(found));
            if a <= 0.0 {
                let is_right =
                    if a < 0.0 { found.is_nan() } else { found.to_bits() == a.to_bits() };
                assert!(is_right, "sqrt.{mode}.f64 of {a:e}: {found:e}");
                continue;
            }
            // The root against x: a against x * x, where x is not negative.
            let is_right = is_rounded(found, mode, |x| {
                if x < 0.0 {
                    return Ordering::Greater;
                }
                compare(&exact_fma(a, 1.0, 0.0), &exact_fma(x, x, 0.0))
            });
            assert!(is_right, "sqrt.{mode}.f64 of {a:e}: {found:e}");
        }
    }
    for (left, instruction) in [(f64::NAN, "add"), (f64::INFINITY, "sub")] {
        for mode in ["rz", "rm", "rp"] {
            let row = [left.to_bits(), left.to_bits(), 0];
            let found = run(&format!("{instruction}.{mode}.f64 %o, %a, %b;"), [64; 4], &[row]);
            assert!(f64::from_bits(found[0]).is_nan(), "{instruction}.{mode}.f64 of {left}");
        }
    }
}
