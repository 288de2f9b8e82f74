//! The statements that can be compared, their operands, and the kernel around one.

use std::fmt::Write;

const CATALOGUE: &str = include_str!("../../tests/golden/catalogue.txt");

/// Threads that run a statement: whole warps, since some statements are a warp's.
pub const THREADS: usize = 256;

/// Registers of 32, 64 and 16 bits, and predicates, that a statement may use.
const WORDS: usize = 10;
const DOUBLES: usize = 5;
const HALVES: usize = 4;
const PREDICATES: usize = 4;

/// A thread's registers, each in a word of 64 bits; the last holds the predicates.
pub const RECORD: usize = WORDS + DOUBLES + HALVES + 1;

/// What these forms do is not a function of their registers: memory, control, time, placement. A wgmma's or a
/// barrier's effects are held by tests of their own.
const LEFT_OUT: &[&str] = &[
    "[",
    "label",
    "%clock",
    "%smid",
    "%nsmid",
    "%warpid",
    "%nwarpid",
    "%dynamic",
    "%lanemask",
    "ret",
    "exit",
    "trap",
    "brkpt",
    "nanosleep",
    "bar.",
    "barrier",
    "membar",
    "fence",
    "cp.",
    "wgmma",
    "griddepcontrol",
    "setmaxnreg",
    "mbarrier",
    "cvta",
    "isspacep",
    "activemask",
];

/// All texts of a pattern: `<a,b>` stands for either.
fn expand(pattern: &str) -> Vec<String> {
    let Some(open) = pattern.find('<') else { return vec![pattern.to_owned()] };
    let close = open + pattern[open..].find('>').expect("every < has its >");
    let tails = expand(&pattern[close + 1..]);
    let choices = pattern[open + 1..close].split(',');
    choices.flat_map(|c| tails.iter().map(move |t| format!("{}{c}{t}", &pattern[..open]))).collect()
}

/// The statements of the catalogue that are functions of their registers and that the virtual device executes.
pub fn all() -> Vec<String> {
    let patterns = CATALOGUE.lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
    let left_out = |s: &str| LEFT_OUT.iter().any(|word| s.contains(word));
    patterns.flat_map(expand).filter(|s| !left_out(s) && vgpu::supports(s).is_ok()).collect()
}

/// A kernel that loads all registers of a thread, runs the statement and stores them.
pub fn kernel(statement: &str) -> String {
    let opcode = statement.split([' ', ';']).next().unwrap_or_default();
    // The carry is not a register: it is made before it is read, and moved into one after it is written.
    // What a subtraction leaves there only a subtraction may read.
    let (make, read) = if opcode.starts_with("sub") { ("sub", "subc") } else { ("add", "addc") };
    let reads_carry = ["addc", "subc", "madc"].iter().any(|name| opcode.starts_with(name));
    let before = if reads_carry { format!("{make}.cc.u32 %r9, %r8, %r7;") } else { String::new() };
    let after =
        if opcode.contains(".cc") { format!("{read}.u32 %r9, 0, 0;") } else { String::new() };

    let mut out = format!(
        ".version 8.6\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 data) {{\n\
         .reg .b64 %at, %d<{DOUBLES}>; .reg .b32 %t, %n, %u, %r<{WORDS}>; .reg .b16 %h<{HALVES}>;\n\
         .reg .pred %p<{PREDICATES}>; .reg .b64 %x;\n\
         ld.param.u64 %at, [data]; mov.u32 %t, %tid.x; mul.wide.u32 %x, %t, {}; add.u64 %at, %at, %x;\n",
        RECORD * 8
    );
    let registers = registers();
    for (i, (name, bits)) in registers.iter().enumerate() {
        writeln!(out, "ld.global.u{bits} %{name}, [%at+{}];", i * 8).unwrap();
    }
    let flags = registers.len() * 8;
    writeln!(out, "ld.global.u32 %t, [%at+{flags}];").unwrap();
    for p in 0..PREDICATES {
        writeln!(out, "and.b32 %u, %t, {}; setp.ne.u32 %p{p}, %u, 0;", 1 << p).unwrap();
    }
    writeln!(out, "{before}\n{statement}\n{after}").unwrap();
    for (i, (name, bits)) in registers.iter().enumerate() {
        writeln!(out, "st.global.u{bits} [%at+{}], %{name};", i * 8).unwrap();
    }
    writeln!(out, "mov.u32 %t, 0;").unwrap();
    for p in 0..PREDICATES {
        writeln!(out, "selp.u32 %u, {}, 0, %p{p}; or.b32 %t, %t, %u;", 1 << p).unwrap();
    }
    writeln!(out, "st.global.u32 [%at+{flags}], %t;\nret;\n}}").unwrap();
    out
}

/// Names and bits of the registers of a record, in its order.
pub fn registers() -> Vec<(String, u32)> {
    let of = |letter: char, count: usize, bits: u32| {
        (0..count).map(move |i| (format!("{letter}{i}"), bits))
    };
    of('r', WORDS, 32).chain(of('d', DOUBLES, 64)).chain(of('h', HALVES, 16)).collect()
}

/// xorshift64*, the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn pick(&mut self, values: &[u64]) -> u64 {
        values[(self.next() >> 33) as usize % values.len()]
    }
}

const EDGES_16: &[u64] = &[
    0, 1, 0x8000, 0x8001, 0x3ff, 0x400, 0x3c00, 0xbc00, 0x7bff, 0x7c00, 0xfc00, 0x7e00, 0x7c01,
    0x7f, 0x80, 0x3f80, 0xbf80, 0x7f7f, 0x7f80, 0xff80, 0x7fc0, 0xffff, 0x4248, 0x4049,
];
const EDGES_32: &[u64] = &[
    0,
    1,
    2,
    7,
    8,
    15,
    31,
    32,
    33,
    63,
    0x7fff_ffff,
    0x8000_0000,
    0x8000_0001,
    0xffff_ffff,
    0x7f_ffff,
    0x80_0000,
    0x807f_ffff,
    0x3f80_0000,
    0xbf80_0000,
    0x3f80_0001,
    0x3f7f_ffff,
    0x7f7f_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0x7f80_0001,
    0x4f00_0000,
    0xcf00_0000,
    0x4f80_0000,
    0x5f00_0000,
    0x3f00_0000,
    0xbf00_0000,
    0x4020_0000,
    0xc020_0000,
    0x4b00_0001,
    0x3300_0000,
];
const EDGES_64: &[u64] = &[
    0,
    1,
    2,
    31,
    32,
    63,
    64,
    65,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
    0x000f_ffff_ffff_ffff,
    0x0010_0000_0000_0000,
    0x3ff0_0000_0000_0000,
    0xbff0_0000_0000_0000,
    0x7fef_ffff_ffff_ffff,
    0x7ff0_0000_0000_0000,
    0xfff0_0000_0000_0000,
    0x7ff8_0000_0000_0000,
    0x7ff0_0000_0000_0001,
    0x43e0_0000_0000_0000,
    0x41e0_0000_0000_0000,
    0x3810_0000_0000_0000,
    0x369f_ffff_ffff_ffff,
    0x47ef_ffff_f000_0000,
    0x3fe0_0000_0000_0000,
];

/// Operands of all threads: half extreme values, a quarter random bits, a quarter numbers of common sizes.
pub fn operands(statement: &str) -> Vec<u64> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let registers = registers();
    let mask = mask(statement);
    // Of positions and lengths PTX reads the low eight bits, ptxas's code for 64 bits all of them.
    let field =
        statement.contains("64") && (statement.starts_with("bfe") || statement.starts_with("bfi"));
    let mut out = Vec::with_capacity(THREADS * RECORD);
    for _ in 0..THREADS {
        for (name, bits) in &registers {
            let tame = f64::from((random.next() >> 40) as u32) / f64::from(1 << 22) - 2.0; // in -2..2
            let value = match (element(statement), bits) {
                _ if mask.as_deref() == Some(name) => u64::from(u32::MAX),
                (_, 32) if field => random.next() & 0xff,
                (Some(Element::F16), 32) => pair(half, tame, &mut random),
                (Some(Element::BF16), 32) => pair(bfloat, tame, &mut random),
                (Some(Element::F32), 32) => u64::from((tame as f32).to_bits()),
                (Some(Element::F64), 64) => tame.to_bits(),
                _ => match (random.next() >> 62, bits) {
                    (0, _) => random.next(),
                    (1, 16) => half(tame),
                    (1, 32) => u64::from((tame as f32 * 64.0).to_bits()),
                    (1, _) => (tame * 64.0).to_bits(),
                    (_, 16) => random.pick(EDGES_16),
                    (_, 32) if random.next() >> 62 == 0 => {
                        random.pick(EDGES_16) << 16 | random.pick(EDGES_16)
                    }
                    (_, 32) => random.pick(EDGES_32),
                    _ => random.pick(EDGES_64),
                },
            };
            out.push(value & (u64::MAX >> (64 - bits)));
        }
        out.push(random.next() & ((1 << PREDICATES) - 1));
    }
    out
}

/// The operand that says which lanes take part: all must.
fn mask(statement: &str) -> Option<String> {
    let warp =
        ["shfl", "vote", "match", "redux", "elect"].iter().any(|name| statement.starts_with(name));
    let last = statement.trim_end_matches(';').rsplit([' ', ',']).next()?;
    warp.then(|| last.trim_start_matches('%').to_owned())
}

/// What the operands of a matrix product hold. Its sums are compared, so they are of common sizes.
enum Element {
    F16,
    BF16,
    F32,
    F64,
}

fn element(statement: &str) -> Option<Element> {
    if !statement.starts_with("mma") {
        return None;
    }
    [
        (".bf16", Element::BF16),
        (".f16.f16", Element::F16),
        (".tf32", Element::F32),
        (".f64", Element::F64),
    ]
    .into_iter()
    .find_map(|(name, element)| statement.contains(name).then_some(element))
}

fn pair(of: fn(f64) -> u64, tame: f64, random: &mut Random) -> u64 {
    let other = f64::from((random.next() >> 40) as u32) / f64::from(1 << 22) - 2.0;
    of(tame) << 16 | of(other)
}

fn bfloat(x: f64) -> u64 {
    u64::from((x as f32).to_bits() >> 16)
}

/// The bits of a number in 2^-14..4 as half precision, cut.
fn half(x: f64) -> u64 {
    let bits = (x as f32).to_bits();
    let exponent = ((bits >> 23) & 0xff) as i32 - 127 + 15;
    let sign = u64::from(bits >> 31) << 15;
    if exponent <= 0 {
        sign
    } else {
        sign | (exponent as u64) << 10 | u64::from(bits >> 13 & 0x3ff)
    }
}

/// A floating-point type, by its bits and those of its fraction.
#[derive(Clone, Copy)]
pub struct Format {
    pub bits: u32,
    pub fraction: u32,
}

const F16: Format = Format { bits: 16, fraction: 10 };
const BF16: Format = Format { bits: 16, fraction: 7 };
const F32: Format = Format { bits: 32, fraction: 23 };
const F64: Format = Format { bits: 64, fraction: 52 };

/// The sum of a thread's results is exact, so that all devices have the same. NaN payloads are not promised.
pub fn is_exact(statement: &str) -> bool {
    let rounded =
        statement.starts_with("mma") && !statement.contains(".s32") && !statement.contains(".f64");
    !rounded && !statement.contains(".approx") && !statement.contains(".full")
}

/// FNV-1a of the registers after a statement, all NaNs taken for one.
pub fn digest(statement: &str, output: &[u64]) -> u64 {
    let registers = registers();
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for record in output.chunks_exact(RECORD) {
        for (i, &value) in record.iter().enumerate() {
            let mut value = value;
            for (format, shift) in types(statement, registers.get(i).map_or(0, |(_, bits)| *bits)) {
                let sign = 1u64 << (format.bits - 1);
                let infinity = (sign - 1) >> format.fraction << format.fraction;
                if value >> shift & (sign - 1) > infinity {
                    value |= (sign | (sign - 1)) << shift;
                }
            }
            for byte in value.to_le_bytes() {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
    }
    hash
}

/// As what a register of a statement's result is read, and from which bit; nothing when not as numbers.
pub fn types(statement: &str, bits: u32) -> &'static [(Format, u32)] {
    let kinds = statement.split([' ', ';']).next().unwrap_or_default();
    // The result's type is named first, but for the products of matrices, where all are alike.
    let first = kinds.split('.').skip(1).find(|part| {
        ["f16", "f16x2", "bf16", "bf16x2", "f32", "f64", "u32", "s32", "b32"].contains(part)
    });
    match (first, bits) {
        (Some("f32"), 32) => &[(F32, 0)],
        (Some("f64"), 64) => &[(F64, 0)],
        (Some("f16"), 16) => &[(F16, 0)],
        (Some("bf16"), 16) => &[(BF16, 0)],
        (Some("f16" | "f16x2"), 32) => &[(F16, 0), (F16, 16)],
        (Some("bf16x2"), 32) => &[(BF16, 0), (BF16, 16)],
        _ => &[],
    }
}
