//! Syntax tree to decoded kernels.

mod arithmetic;
mod async_copy;
mod compare;
mod control;
mod convert;
mod function;
mod matrix;
mod memory;
mod modifiers;
mod moves;
mod operands;
mod synchronise;
mod vocabulary;

use std::collections::HashMap;

use super::*;
use crate::ptx::{Function, Instruction, Space, SyntaxError, Type, Unit};
use modifiers::{Modifiers, classify};

type Result<T> = std::result::Result<T, SyntaxError>;

/// Where a variable of the module lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Symbol {
    pub(crate) space: Space,
    pub(crate) address: u64,
}

/// Decodes every function of the unit: kernels for running, the rest so that what it refuses is known at load.
pub(crate) fn decode_unit(
    unit: &Unit,
    symbols: &HashMap<&str, Symbol>,
) -> Result<Vec<DecodedKernel>> {
    let mut kernels = Vec::new();
    for function in unit.functions.iter().filter(|f| f.body.is_some()) {
        let kernel = Decoder::new(unit, symbols).kernel(function)?;
        if function.is_entry {
            kernels.push(kernel);
        }
    }
    Ok(kernels)
}

/// Whether the device executes an instruction, given as one PTX statement: `add.f32 %r0, %r1, %r2;`. Its
/// operands may name registers `%p0..%p7` (predicates), `%h0..%h7` (16 bits), `%r0..%r15` (32 bits) and
/// `%d0..%d15` (64 bits) and the label `label`.
///
/// # Errors
/// What the device would say when it refuses a module with this instruction.
pub fn supports(instruction: &str) -> std::result::Result<(), String> {
    let text = format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n.entry probe(.param .u64 arg) {{ .reg .pred %p<8>; .reg .b16 %h<8>; \
         .reg .b32 %r<16>; .reg .b64 %d<16>; label: {instruction}; ret; }}"
    );
    let unit = crate::ptx::parse(&text).map_err(|e| e.message)?;
    let kernels = decode_unit(&unit, &HashMap::new()).map_err(|e| e.message)?;
    match kernels.into_iter().find_map(|kernel| kernel.refused) {
        Some(refused) => Err(refused.message),
        None => Ok(()),
    }
}

#[derive(Clone, Copy, Debug)]
enum Name {
    /// Bytes of the register; several of them when declared as `%r<count>`.
    Register {
        slot: Reg,
        bytes: u8,
    },
    Predicate(Pred),
    Registers {
        slot: Reg,
        bytes: u8,
        count: u32,
    },
    Predicates {
        first: Pred,
        count: u32,
    },
    /// Kernel parameter: offset in the parameter block.
    Param(u32),
    /// Variable in the frame: offset.
    Local(u32),
    /// Shared variable: offset.
    Shared(u32),
}

struct FunctionInfo<'u, 'a> {
    function: &'u Function<'a>,
    /// Offsets of results and parameters in its frame.
    results: Vec<(u32, u32)>,
    params: Vec<(u32, u32)>,
    callees: Vec<usize>,
    info: Callee,
}

/// A branch whose target is not known yet.
struct Fixup<'a> {
    inst: usize,
    /// Place in a table of targets.
    entry: usize,
    label: &'a str,
    line: u32,
    /// Scopes in which the label may be, innermost last.
    scopes: Vec<u32>,
}

struct Decoder<'u, 'a> {
    unit: &'u Unit<'a>,
    symbols: &'u HashMap<&'u str, Symbol>,
    code: Vec<Inst>,
    slots: u32,
    preds: u32,
    constants: HashMap<(u64, bool), Reg>,
    constant_list: Vec<Constant>,
    functions: Vec<FunctionInfo<'u, 'a>>,
    shared: HashMap<&'a str, u32>,
    shared_bytes: usize,
    shared_align: usize,
    dynamic_names: Vec<&'a str>,
    scopes: Vec<HashMap<&'a str, Name>>,
    current: usize,
    frame: u32,
    params: Vec<Param>,
    param_bytes: usize,
    locs: Vec<Loc>,
    /// Numbers of the open scopes; labels belong to theirs.
    scope_numbers: Vec<u32>,
    fixups: Vec<Fixup<'a>>,
    line: u32,
    /// The first instruction that is not executed.
    refused: Option<SyntaxError>,
    uses_workspace: bool,
    guard: PredSrc,
    /// Class of the instruction being decoded; taken by the first operation it becomes.
    class: Class,
}

const NO_GUARD: PredSrc = PredSrc { p: FALSE_PRED, negated: true };

/// Largest address of the dynamic part, marked until its place is known.
const DYNAMIC: u32 = u32::MAX;

impl<'u, 'a> Decoder<'u, 'a> {
    fn new(unit: &'u Unit<'a>, symbols: &'u HashMap<&'u str, Symbol>) -> Self {
        Self {
            unit,
            symbols,
            code: Vec::new(),
            slots: Special::End as u32,
            preds: 1,
            constants: HashMap::new(),
            constant_list: Vec::new(),
            functions: Vec::new(),
            shared: HashMap::new(),
            shared_bytes: 0,
            shared_align: 16,
            dynamic_names: Vec::new(),
            scopes: Vec::new(),
            current: 0,
            frame: 0,
            params: Vec::new(),
            param_bytes: 0,
            locs: vec![Loc { file: 0, line: 0, inlined_at: None }],
            scope_numbers: Vec::new(),
            fixups: Vec::new(),
            line: 0,
            refused: None,
            uses_workspace: false,
            guard: NO_GUARD,
            class: Class::None,
        }
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(SyntaxError::new(self.line, message))
    }

    /// Refuses what may well be PTX, but is not executed.
    fn unsupported<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(SyntaxError { is_ptx: true, ..SyntaxError::new(self.line, message) })
    }

    /// Number of the target: 80 for `sm_80`.
    fn target(&self) -> u32 {
        let version = self.unit.target.trim_start_matches("sm_");
        version.trim_end_matches(|c: char| c.is_ascii_alphabetic()).parse().unwrap_or(0)
    }

    fn instruction(
        &mut self,
        instruction: &'u Instruction<'a>,
        tables: &HashMap<&'a str, &'u [&'a str]>,
    ) -> Result<()> {
        self.guard = match instruction.guard {
            None => NO_GUARD,
            Some((name, negated)) => match self.lookup(name) {
                Some(Name::Predicate(p)) => PredSrc { p, negated },
                _ => return self.fail(format!("'{name}' is not a predicate")),
            },
        };
        let mut mods = Modifiers::new(instruction.opcode);
        let ops = instruction.operands.as_slice();
        self.class = classify(&mods);
        match mods.base {
            "mov" => self.mov(mods, ops),
            "abs" | "neg" | "not" | "cnot" | "popc" | "clz" | "brev" | "bfind" | "sqrt" | "rcp"
            | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" => self.unary(mods, ops),
            "add" | "sub" | "addc" | "subc" | "mul" | "div" | "rem" | "min" | "max" | "and"
            | "or" | "xor" | "shl" | "shr" | "copysign" | "mul24" | "bmsk" | "szext" => {
                self.binary(mods, ops)
            }
            "fma" | "mad" | "madc" | "mad24" | "sad" | "bfe" | "shf" | "prmt" | "lop3" | "dp4a"
            | "dp2a" | "slct" => self.ternary(mods, ops),
            "bfi" => self.bfi(mods, ops),
            "cvt" => self.cvt(mods, ops),
            "setp" => self.setp(mods, ops),
            "set" => self.set(mods, ops),
            "testp" => self.testp(mods, ops),
            "selp" => {
                let ty = self.one_type(&mods.types())?;
                self.finish(&mods)?;
                let [d, a, b, p] = self.operands(ops)?;
                if ty == Type::Pred || ty.size() < 2 {
                    return self.fail("'selp' does not select this type");
                }
                let (a, b) = (self.src(a, ty)?, self.src(b, ty)?);
                let op = Op::Select {
                    d: self.dst(d, ty.size())?,
                    a,
                    b,
                    p: self.pred_src(p)?,
                    wide: ty.size() == 8,
                };
                self.push(op);
                Ok(())
            }
            "ld" | "ldu" | "st" => self.transfer(mods, ops),
            "atom" | "red" => self.atomic(mods, ops),
            "cvta" | "isspacep" => self.convert_address(mods, ops),
            "prefetch" | "prefetchu" => {
                mods.take_one(&[("global", ()), ("local", ())]);
                mods.take_one(&[
                    ("L1", ()),
                    ("L2", ()),
                    ("L2::evict_last", ()),
                    ("L2::evict_normal", ()),
                ]);
                self.finish(&mods)?;
                let [at] = self.operands(ops)?;
                self.address(at, MemorySpace::Generic)?;
                self.push(Op::Prefetch);
                Ok(())
            }
            "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "brkpt" => {
                self.control(mods, ops, tables)
            }
            "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" => {
                self.communicate(mods, ops)
            }
            "bar" | "barrier" | "membar" | "fence" | "nanosleep" | "griddepcontrol" | "pmevent"
            | "setmaxnreg" => self.synchronise(mods, ops),
            "cp" => self.copy(mods, ops),
            "mbarrier" => self.mbarrier(mods, ops),
            "ldmatrix" | "stmatrix" => self.matrix(mods, ops),
            "mma" => self.mma(mods, ops),
            other => self.unsupported(format!("instruction '{other}' is not supported")),
        }
    }
}
