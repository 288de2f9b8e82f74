//! Syntax tree to decoded kernels.

use std::collections::{HashMap, HashSet};

use super::alu::{self, FTZ, RELU, SAT};
use super::convert::{self, INTEGRAL};
use super::float::Round;
use super::lanes::{CompareFn, LANES, Lane, LaneFn, Slot, Wide, compare, lane};
use super::*;
use crate::ptx::{
    Function, Instruction, Operand, Space, Statement, SyntaxError, Type, Unit, Variable,
};

type Result<T> = std::result::Result<T, SyntaxError>;

/// Bytes of local memory on top of the static need where functions call themselves.
const RECURSION_BYTES: usize = 64 << 10;
/// Registers of one kernel, in slots: beyond this a file is not a real one.
const MAX_SLOTS: u32 = 1 << 20;

/// Where a variable of the module lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Symbol {
    pub(crate) space: Space,
    pub(crate) address: u64,
}

/// Decodes every function of the unit: kernels for running, the rest so that what it refuses is known at load.
pub(crate) fn decode_unit(unit: &Unit, symbols: &HashMap<&str, Symbol>) -> Result<Vec<Kernel>> {
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
    decode_unit(&unit, &HashMap::new()).map(|_| ()).map_err(|e| e.message)
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

/// An opcode and what is left of its modifiers.
struct Mods<'a> {
    base: &'a str,
    left: Vec<&'a str>,
}

impl<'a> Mods<'a> {
    fn new(opcode: &'a str) -> Self {
        let mut parts = opcode.split('.');
        let base = parts.next().unwrap_or("");
        Self { base, left: parts.collect() }
    }

    fn take(&mut self, modifier: &str) -> bool {
        let found = self.left.iter().position(|m| *m == modifier);
        if let Some(at) = found {
            self.left.remove(at);
        }
        found.is_some()
    }

    /// Takes the first modifier that is one of these.
    fn take_one<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
        let at = self.left.iter().position(|m| table.iter().any(|(name, _)| name == m))?;
        let name = self.left.remove(at);
        table.iter().find(|(n, _)| *n == name).map(|(_, value)| *value)
    }

    /// Takes the first modifier that is one of these, as text.
    fn take_word(&mut self, words: &[&'static str]) -> Option<&'static str> {
        let at = self.left.iter().position(|m| words.contains(m))?;
        let name = self.left.remove(at);
        words.iter().find(|w| **w == name).copied()
    }

    fn types(&mut self) -> Vec<Type> {
        let types: Vec<Type> = self.left.iter().filter_map(|m| Type::parse(m)).collect();
        self.left.retain(|m| Type::parse(m).is_none());
        types
    }

    fn round(&mut self) -> Option<Round> {
        self.take_one(&[
            ("rn", Round::Nearest),
            ("rz", Round::Zero),
            ("rm", Round::Down),
            ("rp", Round::Up),
        ])
    }
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
            guard: NO_GUARD,
            class: Class::None,
        }
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(SyntaxError::new(self.line, message))
    }

    fn kernel(mut self, entry: &'u Function<'a>) -> Result<Kernel> {
        // Shared variables are laid out first: dynamic memory begins behind all of them, wherever they are declared.
        self.layout_shared(entry)?;
        self.add_function(entry)?;
        let mut next = 0;
        while next < self.functions.len() {
            self.current = next;
            self.body(next)?;
            next += 1;
        }
        let local = self.frames();
        let recursive = self.functions.iter().any(|f| f.info.recursive);
        let declared_registers = self.slots - Special::End as u32 - self.constant_list.len() as u32;
        let version = self.unit.target.trim_start_matches("sm_");
        let target =
            version.trim_end_matches(|c: char| c.is_ascii_alphabetic()).parse().unwrap_or(0);
        Ok(Kernel {
            name: entry.name.to_string(),
            code: self.code,
            slots: self.slots,
            preds: self.preds as u16,
            constants: self.constant_list,
            params: self.params,
            param_bytes: self.param_bytes,
            static_shared: self.shared_bytes,
            dynamic_shared_at: self.shared_bytes.next_multiple_of(self.shared_align),
            functions: self.functions.into_iter().map(|f| f.info).collect(),
            local_bytes: local + if recursive { RECURSION_BYTES } else { 0 },
            max_threads: entry.max_threads,
            required_threads: entry.required_threads,
            locs: self.locs,
            files: self.unit.files.iter().map(|(i, f)| (*i, f.to_string())).collect(),
            declared_registers,
            ptx_version: self.unit.version,
            target,
        })
    }

    /// Bytes of local memory along the deepest chain of calls; marks functions that call themselves.
    fn frames(&mut self) -> usize {
        fn visit(
            functions: &[FunctionInfo],
            at: usize,
            path: &mut Vec<usize>,
            depth: &mut [Option<usize>],
            loops: &mut [bool],
        ) -> usize {
            if let Some(start) = path.iter().position(|f| *f == at) {
                path[start..].iter().for_each(|f| loops[*f] = true);
                return 0;
            }
            if let Some(known) = depth[at] {
                return known;
            }
            path.push(at);
            let below = functions[at]
                .callees
                .iter()
                .map(|c| visit(functions, *c, path, depth, loops))
                .max()
                .unwrap_or(0);
            path.pop();
            let total = below + functions[at].info.frame as usize;
            depth[at] = Some(total);
            total
        }
        let count = self.functions.len();
        let (mut depth, mut loops) = (vec![None; count], vec![false; count]);
        let total = visit(&self.functions, 0, &mut Vec::new(), &mut depth, &mut loops);
        for (function, recursive) in self.functions.iter_mut().zip(loops) {
            function.info.recursive = recursive;
        }
        total
    }

    /// Places the shared variables that the kernel or a function it reaches uses.
    fn layout_shared(&mut self, entry: &'u Function<'a>) -> Result<()> {
        let unit = self.unit;
        let mut reached = vec![entry];
        let mut names = HashSet::new();
        let mut next = 0;
        while let Some(function) = reached.get(next) {
            next += 1;
            let body: &'u [Statement<'a>] = function.body.as_deref().unwrap_or(&[]);
            for statement in body {
                let Statement::Instruction(instruction) = statement else { continue };
                for operand in &instruction.operands {
                    operand_names(operand, &mut names);
                }
                if instruction.opcode.starts_with("call") {
                    let defined = unit
                        .functions
                        .iter()
                        .filter(|f| f.body.is_some() && names.contains(f.name));
                    for callee in defined {
                        if !reached.iter().any(|f| std::ptr::eq(*f, callee)) {
                            reached.push(callee);
                        }
                    }
                }
            }
        }
        for variable in
            unit.variables.iter().filter(|v| v.space == Space::Shared && names.contains(v.name))
        {
            self.place_shared(variable)?;
        }
        for statement in reached.iter().flat_map(|f| f.body.iter().flatten()) {
            if let Statement::Variable(variable) = statement
                && variable.space == Space::Shared
            {
                self.place_shared(variable)?;
            }
        }
        Ok(())
    }

    fn place_shared(&mut self, variable: &Variable<'a>) -> Result<()> {
        self.line = variable.line;
        if variable.is_unsized {
            self.shared_align = self.shared_align.max(variable.align);
            self.dynamic_names.push(variable.name);
            return Ok(());
        }
        let at = self.shared_bytes.next_multiple_of(variable.align);
        if at + variable.size > 1 << 24 {
            return self
                .fail(format!("shared variable '{}' does not fit any device", variable.name));
        }
        self.shared_bytes = at + variable.size;
        self.shared.insert(variable.name, at as u32);
        Ok(())
    }

    /// Index of a function, laid out and queued for decoding.
    fn add_function(&mut self, function: &'u Function<'a>) -> Result<usize> {
        if let Some(at) = self.functions.iter().position(|f| f.function.name == function.name) {
            return Ok(at);
        }
        let mut frame = 0u32;
        let mut results = Vec::new();
        let mut params = Vec::new();
        if function.is_entry {
            let mut offset = 0usize;
            for param in &function.params {
                offset = offset.next_multiple_of(param.align);
                self.params.push(Param { offset, size: param.size });
                params.push((offset as u32, param.size as u32));
                offset += param.size;
            }
            if offset > 32764 {
                return Err(SyntaxError::new(
                    function.line,
                    format!("{offset} bytes of parameters; at most 32764 are possible"),
                ));
            }
            self.param_bytes = offset;
        } else {
            for (list, variables) in
                [(&mut results, &function.results), (&mut params, &function.params)]
            {
                for variable in variables {
                    frame = frame.next_multiple_of(variable.align as u32);
                    list.push((frame, variable.size as u32));
                    frame = frame.saturating_add(variable.size as u32);
                }
            }
        }
        let info = Callee { entry: 0, slots: 0..0, preds: 0..0, frame, recursive: false };
        self.functions.push(FunctionInfo { function, results, params, callees: Vec::new(), info });
        Ok(self.functions.len() - 1)
    }

    fn body(&mut self, at: usize) -> Result<()> {
        let function = self.functions[at].function;
        let (first_slot, first_pred) = (self.slots, self.preds);
        let entry = self.code.len() as u32;
        self.frame = self.functions[at].info.frame;
        let mut names = HashMap::new();
        for (variable, (offset, _)) in function.results.iter().zip(&self.functions[at].results) {
            names.insert(variable.name, Name::Local(*offset));
        }
        for (variable, (offset, _)) in function.params.iter().zip(&self.functions[at].params) {
            let name = if function.is_entry { Name::Param(*offset) } else { Name::Local(*offset) };
            names.insert(variable.name, name);
        }
        self.scopes = vec![names];
        self.scope_numbers = vec![0];
        let mut last_scope = 0;
        self.fixups.clear();
        let mut labels: HashMap<(u32, &'a str), u32> = HashMap::new();
        let mut tables: HashMap<&'a str, &'u [&'a str]> = HashMap::new();
        let body: &'u [Statement<'a>] = function.body.as_deref().unwrap_or(&[]);
        for statement in body {
            if let Statement::BranchTargets { label, targets, .. } = statement {
                tables.insert(label, targets);
            }
        }
        let mut loc = 0;
        for statement in body {
            match statement {
                Statement::Open => {
                    last_scope += 1;
                    self.scope_numbers.push(last_scope);
                    self.scopes.push(HashMap::new());
                }
                Statement::Close => {
                    self.scope_numbers.pop();
                    self.scopes.pop();
                }
                Statement::Label(name, line) => {
                    let scope = self.scope_numbers.last().copied().unwrap_or(0);
                    if labels.insert((scope, *name), self.code.len() as u32).is_some() {
                        return Err(SyntaxError::new(
                            *line,
                            format!("label '{name}' is defined twice"),
                        ));
                    }
                }
                Statement::BranchTargets { .. } => {}
                Statement::Loc(found) => {
                    if self.locs.last() != Some(found) {
                        self.locs.push(*found);
                    }
                    loc = self.locs.len() as u32 - 1;
                }
                Statement::Register { name, ty, count, line } => {
                    self.line = *line;
                    self.declare(name, *ty, *count)?;
                }
                Statement::Variable(variable) => self.variable(variable)?,
                Statement::Instruction(instruction) => {
                    self.line = instruction.line;
                    let first = self.code.len();
                    self.instruction(instruction, &tables)?;
                    for inst in &mut self.code[first..] {
                        inst.loc = loc;
                    }
                }
            }
        }
        // Falling off the end returns.
        self.guard = NO_GUARD;
        self.class = Class::None;
        self.push(if function.is_entry { Op::Exit } else { Op::Return });
        for fixup in std::mem::take(&mut self.fixups) {
            let found =
                fixup.scopes.iter().rev().find_map(|scope| labels.get(&(*scope, fixup.label)));
            let Some(target) = found else {
                let message = format!("label '{}' is not defined in this function", fixup.label);
                return Err(SyntaxError::new(fixup.line, message));
            };
            match &mut self.code[fixup.inst].op {
                Op::Branch { target: t } => *t = *target,
                Op::BranchIndexed { targets, .. } => targets[fixup.entry] = *target,
                _ => unreachable!("only branches have labels"),
            }
        }
        if self.preds >= u16::MAX as u32 {
            return self.fail("too many predicate registers");
        }
        let info = &mut self.functions[at].info;
        info.entry = entry;
        info.slots = first_slot..self.slots;
        info.preds = first_pred as u16..self.preds as u16;
        info.frame = self.frame.next_multiple_of(16);
        Ok(())
    }

    fn declare(&mut self, name: &'a str, ty: Type, count: Option<u32>) -> Result<()> {
        let number = count.unwrap_or(1);
        let bytes = ty.size().max(2) as u8;
        let name_of = if ty == Type::Pred {
            let first = self.preds;
            self.preds = self.preds.saturating_add(number);
            if self.preds >= u16::MAX as u32 {
                return self.fail("too many predicate registers");
            }
            match count {
                Some(count) => Name::Predicates { first: first as Pred, count },
                None => Name::Predicate(first as Pred),
            }
        } else {
            let each = if bytes == 8 { 2 } else { 1 };
            let slot = self.slots;
            self.slots = self.slots.saturating_add(number.saturating_mul(each));
            if self.slots > MAX_SLOTS {
                return self.fail("too many registers");
            }
            match count {
                Some(count) => Name::Registers { slot, bytes, count },
                None => Name::Register { slot, bytes },
            }
        };
        let scope = self.scopes.len() - 1;
        self.scopes[scope].insert(name, name_of);
        Ok(())
    }

    fn variable(&mut self, variable: &Variable<'a>) -> Result<()> {
        self.line = variable.line;
        let name = match variable.space {
            Space::Local | Space::Param => {
                let at = self.frame as usize;
                let at = at.next_multiple_of(variable.align);
                if at + variable.size > 512 << 10 {
                    return self.fail(format!(
                        "'{}' does not fit a thread's 512 KiB of local memory",
                        variable.name
                    ));
                }
                self.frame = (at + variable.size) as u32;
                Name::Local(at as u32)
            }
            Space::Shared if variable.is_unsized => Name::Shared(DYNAMIC),
            Space::Shared => Name::Shared(self.shared[variable.name]),
            Space::Global | Space::Const => {
                return self
                    .fail("global and constant variables inside a function are not supported");
            }
        };
        let scope = self.scopes.len() - 1;
        self.scopes[scope].insert(variable.name, name);
        Ok(())
    }

    fn lookup(&self, name: &str) -> Option<Name> {
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

    fn shared_offset(&self, offset: u32) -> u64 {
        if offset == DYNAMIC {
            self.shared_bytes.next_multiple_of(self.shared_align) as u64
        } else {
            offset as u64
        }
    }

    fn push(&mut self, op: Op) {
        self.code.push(Inst { op, guard: self.guard, class: self.class, line: self.line, loc: 0 });
        self.class = Class::None;
    }

    /// Emits before the instruction being decoded, without using up its class.
    fn push_extra(&mut self, op: Op) {
        self.code.push(Inst { op, guard: self.guard, class: Class::None, line: self.line, loc: 0 });
    }

    fn constant(&mut self, bits: u64, wide: bool) -> Reg {
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

    fn temporary(&mut self, wide: bool) -> Reg {
        let slot = self.slots;
        self.slots += 1 + wide as u32;
        slot
    }

    fn temporary_pred(&mut self) -> Pred {
        self.preds += 1;
        (self.preds - 1) as Pred
    }

    /// A source register of a type; immediates become constants.
    fn src(&mut self, operand: &Operand<'a>, ty: Type) -> Result<Reg> {
        let size = ty.size();
        match operand {
            Operand::Name(name) => {
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

    fn widen(&mut self, from: Reg, to: Reg, signed: bool) {
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

    fn narrow(&mut self, from: Reg, to: Reg) {
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
    fn src_loose(&mut self, operand: &Operand<'a>, ty: Type) -> Result<Reg> {
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
    fn dst(&mut self, operand: &Operand<'a>, size: usize) -> Result<Reg> {
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
    fn register_bytes(&self, operand: &Operand<'a>) -> Option<u8> {
        match operand {
            Operand::Name(name) => match self.lookup(name)? {
                Name::Register { bytes, .. } => Some(bytes),
                _ => None,
            },
            _ => None,
        }
    }

    fn pred_dst(&self, operand: &Operand<'a>) -> Result<Pred> {
        match operand {
            Operand::Name("_") => Ok(NO_PRED),
            Operand::Name(name) => match self.lookup(name) {
                Some(Name::Predicate(p)) => Ok(p),
                _ => self.fail(format!("'{name}' is not a predicate")),
            },
            _ => self.fail("the destination is not a predicate"),
        }
    }

    fn pred_src(&self, operand: &Operand<'a>) -> Result<PredSrc> {
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
    fn pair<'o>(operand: &'o Operand<'a>) -> (&'o Operand<'a>, Option<&'o Operand<'a>>) {
        match operand {
            Operand::Pair(both) => (&both.0, Some(&both.1)),
            other => (other, None),
        }
    }

    fn address(&mut self, operand: &Operand<'a>, space: MemorySpace) -> Result<Address> {
        let Operand::Memory { base, offset, more } = operand else {
            return self.fail("the operand is not an address in brackets");
        };
        if *more != 0 {
            return self.fail("addresses with coordinates are not supported");
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

    fn operands<'o, const N: usize>(
        &self,
        list: &'o [Operand<'a>],
    ) -> Result<&'o [Operand<'a>; N]> {
        match list.try_into() {
            Ok(array) => Ok(array),
            Err(_) => self.fail(format!("{N} operands expected, found {}", list.len())),
        }
    }

    fn one_type(&self, types: &[Type]) -> Result<Type> {
        match types {
            [ty] => Ok(*ty),
            [] => self.fail("the instruction has no type"),
            _ => self.fail("the instruction has more than one type"),
        }
    }

    fn finish(&self, mods: &Mods) -> Result<()> {
        match mods.left.first() {
            None => Ok(()),
            Some(modifier) => {
                self.fail(format!("'.{modifier}' of '{}' is not supported", mods.base))
            }
        }
    }

    fn alu(
        &mut self,
        run: Option<LaneFn>,
        mods: &Mods,
        ty: Type,
        d: Reg,
        wide: bool,
        src: [Reg; 3],
        wide_src: u8,
        imm: u32,
        rule: Rule,
    ) -> Result<()> {
        let Some(run) = run else {
            return self.fail(format!(
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
        let mut mods = Mods::new(instruction.opcode);
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
            other => self.fail(format!("instruction '{other}' is not supported")),
        }
    }

    fn mov(&mut self, mut mods: Mods<'a>, ops: &[Operand<'a>]) -> Result<()> {
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
                    _ => return self.fail(format!("'{name}' is not supported")),
                };
                let wide = matches!(which, Clock::Wide | Clock::Nanoseconds);
                let d = self.dst(d, if wide { 8 } else { 4 })?;
                self.push(Op::Clock { d, which });
                Ok(())
            }
            (d, Operand::Name(name))
                if Special::parse(name).is_none()
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
    fn variable_address(&mut self, ty: Type, d: &Operand<'a>, name: &str) -> Result<()> {
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

    fn unpack(&mut self, ty: Type, parts: &[Operand<'a>], a: &Operand<'a>) -> Result<()> {
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

    fn pack(&mut self, ty: Type, d: &Operand<'a>, parts: &[Operand<'a>]) -> Result<()> {
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

    /// `.ftz`, `.sat`, `.relu` and the rounding, as the immediate of a lane function.
    fn modifiers(&self, mods: &mut Mods<'a>, ty: Type) -> Result<u32> {
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

    fn unary(&mut self, mut mods: Mods<'a>, ops: &[Operand<'a>]) -> Result<()> {
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

    fn binary(&mut self, mut mods: Mods<'a>, ops: &[Operand<'a>]) -> Result<()> {
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
                "div" if mods.take("approx") || mods.take("full") => {
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

    fn ternary(&mut self, mut mods: Mods<'a>, ops: &[Operand<'a>]) -> Result<()> {
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
                return self.fail("'slct' with these types is not supported");
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

    fn dot_product(
        &mut self,
        mut mods: Mods<'a>,
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

    fn bfi(&mut self, mut mods: Mods<'a>, ops: &[Operand<'a>]) -> Result<()> {
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

    fn cvt(&mut self, mut mods: Mods<'a>, ops: &[Operand<'a>]) -> Result<()> {
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

    fn comparison(&mut self, mods: &mut Mods<'a>) -> Result<(&'static str, Join)> {
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

    fn compare_operands(
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

    fn compare_fn(&self, op: &str, ty: Type, high: bool, ftz: bool) -> Result<CompareFn> {
        match compare::select(op, ty, high, ftz) {
            Some(run) => Ok(run),
            None => self.fail(format!(
                "comparison '{op}' does not exist for type .{}",
                format!("{ty:?}").to_lowercase()
            )),
        }
    }

    fn setp(&mut self, mut mods: Mods<'a>, ops: &[Operand<'a>]) -> Result<()> {
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

    fn set(&mut self, mut mods: Mods<'a>, ops: &[Operand<'a>]) -> Result<()> {
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

    fn testp(&mut self, mut mods: Mods<'a>, ops: &[Operand<'a>]) -> Result<()> {
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
                    "normal" => compare!($ty, |a, b| a.is_normal()),
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

    fn space(&self, mods: &mut Mods<'a>) -> MemorySpace {
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
    fn cache_hints(&self, mods: &mut Mods<'a>) {
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

    fn order(&self, mods: &mut Mods<'a>, plain: Order) -> Order {
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

    fn transfer(&mut self, mut mods: Mods<'a>, ops: &[Operand<'a>]) -> Result<()> {
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
            return self.fail(format!("'{}' of this type and vector is not supported", mods.base));
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

    fn atomic(&mut self, mut mods: Mods<'a>, ops: &[Operand<'a>]) -> Result<()> {
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

    fn convert_address(&mut self, mut mods: Mods<'a>, ops: &[Operand<'a>]) -> Result<()> {
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
            self.push(Op::Convert { d, a: temporary, to_generic: !to, space, wide });
            return Ok(());
        }
        let (a, d) = (self.src(a, ty)?, self.dst(d, ty.size())?);
        self.push(Op::Convert { d, a, to_generic: !to, space, wide });
        Ok(())
    }

    fn control(
        &mut self,
        mut mods: Mods<'a>,
        ops: &'u [Operand<'a>],
        tables: &HashMap<&'a str, &'u [&'a str]>,
    ) -> Result<()> {
        match mods.base {
            "bra" => {
                mods.take("uni");
                self.finish(&mods)?;
                let [Operand::Name(label)] = ops else { return self.fail("'bra' needs a label") };
                self.fix_later(0, label);
                self.push(Op::Branch { target: 0 });
            }
            "brx" => {
                mods.take("uni");
                if !mods.take("idx") {
                    return self.fail("'brx' needs .idx");
                }
                self.finish(&mods)?;
                let [index, Operand::Name(table)] = ops else {
                    return self.fail("'brx.idx' needs an index and a table");
                };
                let index = self.src(index, Type::U32)?;
                let Some(targets) = tables.get(table) else {
                    return self.fail(format!("'{table}' is not a table of branch targets"));
                };
                for (i, label) in targets.iter().enumerate() {
                    self.fix_later(i, label);
                }
                self.push(Op::BranchIndexed { index, targets: vec![0; targets.len()].into() });
            }
            "call" => {
                mods.take("uni");
                self.finish(&mods)?;
                self.call(ops)?;
            }
            "ret" => {
                mods.take("uni");
                self.finish(&mods)?;
                self.operands::<0>(ops)?;
                let is_entry = self.functions[self.current].function.is_entry;
                self.push(if is_entry { Op::Exit } else { Op::Return });
            }
            base => {
                self.finish(&mods)?;
                self.operands::<0>(ops)?;
                self.push(match base {
                    "exit" => Op::Exit,
                    "trap" => Op::Trap,
                    _ => Op::Breakpoint,
                });
            }
        }
        Ok(())
    }

    /// Notes that the next instruction branches to a label.
    fn fix_later(&mut self, entry: usize, label: &'a str) {
        let (inst, line, scopes) = (self.code.len(), self.line, self.scope_numbers.clone());
        self.fixups.push(Fixup { inst, entry, label, line, scopes });
    }

    /// Offset and size of a `.param` variable of the current frame.
    fn frame_offsets(&self, list: &[Operand<'a>]) -> Result<Vec<u32>> {
        list.iter()
            .map(|operand| match operand {
                Operand::Name(name) => match self.lookup(name) {
                    Some(Name::Local(offset)) => Ok(offset),
                    _ => self.fail(format!("'{name}' is not a .param variable of this function")),
                },
                _ => self.fail("arguments of calls are .param variables"),
            })
            .collect()
    }

    fn call(&mut self, ops: &'u [Operand<'a>]) -> Result<()> {
        let (results, name, arguments): (&[Operand], _, &[Operand]) = match ops {
            [Operand::List(results), Operand::Name(name), Operand::List(arguments)] => {
                (results, name, arguments)
            }
            [Operand::List(results), Operand::Name(name)] => (results, name, &[]),
            [Operand::Name(name), Operand::List(arguments)] => (&[], name, arguments),
            [Operand::Name(name)] => (&[], name, &[]),
            _ => return self.fail("indirect calls are not supported"),
        };
        let (results, arguments) = (self.frame_offsets(results)?, self.frame_offsets(arguments)?);
        let unit = self.unit;
        // A declaration may precede the definition.
        let candidates = || unit.functions.iter().filter(|f| f.name == *name && !f.is_entry);
        let Some(function) =
            candidates().find(|f| f.body.is_some()).or_else(|| candidates().next())
        else {
            return self.fail(format!("function '{name}' is not defined"));
        };
        if function.results.len() != results.len() || function.params.len() != arguments.len() {
            return self.fail(format!(
                "'{name}' is called with other parameters than it is declared with"
            ));
        }
        if function.body.is_none() {
            let which = match *name {
                "vprintf" => Builtin::Printf,
                "__assertfail" => Builtin::Assert,
                _ => return self.fail(format!("external function '{name}' is not supported")),
            };
            self.push(Op::Builtin {
                which,
                inputs: arguments.into(),
                output: results.first().copied(),
            });
            return Ok(());
        }
        let index = self.add_function(function)?;
        let current = self.current;
        self.functions[current].callees.push(index);
        let copies = |mine: &[u32], theirs: &[(u32, u32)]| -> Box<[Copied]> {
            mine.iter()
                .zip(theirs)
                .map(|(caller, (callee, bytes))| Copied {
                    caller: *caller,
                    callee: *callee,
                    bytes: *bytes,
                })
                .collect()
        };
        let inputs = copies(&arguments, &self.functions[index].params);
        let outputs = copies(&results, &self.functions[index].results);
        self.push(Op::Call { function: index as u32, inputs, outputs });
        Ok(())
    }

    fn need_sync(&self, mods: &mut Mods<'a>) -> Result<()> {
        if mods.take("sync") {
            Ok(())
        } else {
            self.fail(format!("'{}' without .sync does not exist since sm_70", mods.base))
        }
    }

    fn communicate(&mut self, mut mods: Mods<'a>, ops: &[Operand<'a>]) -> Result<()> {
        let types = mods.types();
        let ty = self.one_type(&types);
        match mods.base {
            "activemask" => {
                self.finish(&mods)?;
                let [d] = self.operands(ops)?;
                let d = self.dst(d, 4)?;
                self.push(Op::ActiveMask { d });
            }
            "elect" => {
                self.need_sync(&mut mods)?;
                self.finish(&mods)?;
                let [d, mask] = self.operands(ops)?;
                let (d, p) = Self::pair(d);
                let d = self.dst(d, 4)?;
                let p = p.map_or(Ok(NO_PRED), |p| self.pred_dst(p))?;
                let mask = self.src(mask, Type::U32)?;
                self.push(Op::Elect { d, p, mask });
            }
            "shfl" => {
                self.need_sync(&mut mods)?;
                let mode = mods.take_one(&[
                    ("up", ShuffleMode::Up),
                    ("down", ShuffleMode::Down),
                    ("bfly", ShuffleMode::Butterfly),
                    ("idx", ShuffleMode::Index),
                ]);
                let Some(mode) = mode else {
                    return self.fail("'shfl' needs .up, .down, .bfly or .idx");
                };
                self.finish(&mods)?;
                if ty? != Type::B32 {
                    return self.fail("'shfl' works on .b32");
                }
                let [d, a, b, c, mask] = self.operands(ops)?;
                let (d, p) = Self::pair(d);
                let d = self.dst(d, 4)?;
                let p = p.map_or(Ok(NO_PRED), |p| self.pred_dst(p))?;
                let (a, b) = (self.src(a, Type::B32)?, self.src(b, Type::B32)?);
                let (c, mask) = (self.src(c, Type::B32)?, self.src(mask, Type::B32)?);
                self.push(Op::Shuffle { mode, d, p, a, b, c, mask });
            }
            "vote" => {
                self.need_sync(&mut mods)?;
                let mode = mods.take_one(&[
                    ("all", VoteMode::All),
                    ("any", VoteMode::Any),
                    ("uni", VoteMode::Uniform),
                    ("ballot", VoteMode::Ballot),
                ]);
                let Some(mode) = mode else {
                    return self.fail("'vote' needs .all, .any, .uni or .ballot");
                };
                self.finish(&mods)?;
                let [d, a, mask] = self.operands(ops)?;
                let (a, mask) = (self.pred_src(a)?, self.src(mask, Type::B32)?);
                let (d, p) = match (mode, ty?) {
                    (VoteMode::Ballot, Type::B32) => (self.dst(d, 4)?, NO_PRED),
                    (VoteMode::All | VoteMode::Any | VoteMode::Uniform, Type::Pred) => {
                        (SINK, self.pred_dst(d)?)
                    }
                    _ => return self.fail("'vote' gives .pred, its ballot .b32"),
                };
                self.push(Op::Vote { mode, d, p, a, mask });
            }
            "match" => {
                self.need_sync(&mut mods)?;
                let all = match mods.take_word(&["any", "all"]) {
                    Some(word) => word == "all",
                    None => return self.fail("'match' needs .any or .all"),
                };
                self.finish(&mods)?;
                let ty = ty?;
                if !matches!(ty, Type::B32 | Type::B64) {
                    return self.fail("'match' works on .b32 and .b64");
                }
                let [d, a, mask] = self.operands(ops)?;
                let (d, p) = Self::pair(d);
                let d = self.dst(d, 4)?;
                let p = p.map_or(Ok(NO_PRED), |p| self.pred_dst(p))?;
                let (a, mask) = (self.src(a, ty)?, self.src(mask, Type::B32)?);
                self.push(Op::Match { all, d, p, a, wide: ty.size() == 8, mask });
            }
            _ => {
                self.need_sync(&mut mods)?;
                let word = mods.take_word(&["add", "min", "max", "and", "or", "xor"]);
                self.finish(&mods)?;
                let op = match (word, ty?) {
                    (Some("add"), Type::U32 | Type::S32) => ReduceOp::Add,
                    (Some("min"), Type::U32) => ReduceOp::Min,
                    (Some("max"), Type::U32) => ReduceOp::Max,
                    (Some("min"), Type::S32) => ReduceOp::MinSigned,
                    (Some("max"), Type::S32) => ReduceOp::MaxSigned,
                    (Some("and"), Type::B32) => ReduceOp::And,
                    (Some("or"), Type::B32) => ReduceOp::Or,
                    (Some("xor"), Type::B32) => ReduceOp::Xor,
                    _ => return self.fail("'redux' of this operation and type is not supported"),
                };
                let [d, a, mask] = self.operands(ops)?;
                let (a, mask) = (self.src(a, Type::B32)?, self.src(mask, Type::B32)?);
                let d = self.dst(d, 4)?;
                self.push(Op::Reduce { op, d, a, mask });
            }
        }
        Ok(())
    }

    fn synchronise(&mut self, mut mods: Mods<'a>, ops: &[Operand<'a>]) -> Result<()> {
        match mods.base {
            "membar" => {
                let Some(level) = mods.take_word(&["cta", "gl", "sys"]) else {
                    return self.fail("'membar' needs a level");
                };
                self.finish(&mods)?;
                self.push(Op::Fence { gpu: level != "cta" });
            }
            "fence" => {
                if mods.take("proxy") {
                    if mods.take_word(&["alias", "async", "async::generic"]).is_none() {
                        return self.fail("this 'fence.proxy' is not supported");
                    }
                    self.space(&mut mods);
                    self.finish(&mods)?;
                    self.push(Op::Nop);
                    return Ok(());
                }
                if mods.take("mbarrier_init") {
                    mods.take("release");
                    mods.take("cluster");
                    self.finish(&mods)?;
                    self.push(Op::Fence { gpu: false });
                    return Ok(());
                }
                mods.take_word(&["sc", "acq_rel", "acquire", "release"]);
                let Some(scope) = mods.take_word(&["cta", "cluster", "gpu", "sys"]) else {
                    return self.fail("'fence' needs a scope");
                };
                self.finish(&mods)?;
                self.push(Op::Fence { gpu: matches!(scope, "gpu" | "sys") });
            }
            "nanosleep" => {
                self.one_type(&mods.types())?;
                self.finish(&mods)?;
                let [a] = self.operands(ops)?;
                self.src(a, Type::U32)?;
                self.push(Op::Sleep);
            }
            "griddepcontrol" => {
                if mods.take_word(&["launch_dependents", "wait"]).is_none() {
                    return self.fail("'griddepcontrol' needs an action");
                }
                self.finish(&mods)?;
                self.push(Op::Nop);
            }
            "setmaxnreg" => {
                mods.take_word(&["inc", "dec"]);
                mods.take("sync");
                mods.take("aligned");
                mods.types();
                self.finish(&mods)?;
                self.push(Op::Nop);
            }
            "pmevent" => {
                mods.take("mask");
                self.finish(&mods)?;
                self.push(Op::Nop);
            }
            base => {
                mods.take("cta");
                if mods.take("warp") {
                    self.need_sync(&mut mods)?;
                    self.finish(&mods)?;
                    let [mask] = self.operands(ops)?;
                    let mask = self.src(mask, Type::U32)?;
                    self.push(Op::WarpBarrier { mask });
                    return Ok(());
                }
                let aligned = mods.take("aligned") || base == "bar";
                let (kind, rest) = match mods.take_word(&["sync", "arrive", "red"]) {
                    Some("sync") => (BarrierKind::Sync, ops),
                    Some("arrive") => (BarrierKind::Arrive, ops),
                    Some(_) => {
                        let how = mods.take_word(&["and", "or", "popc"]);
                        mods.types();
                        let [d, rest @ .., p] = ops else {
                            return self.fail("operands are missing");
                        };
                        let p = self.pred_src(p)?;
                        let kind = match how {
                            Some("and") => BarrierKind::RedAnd(self.pred_dst(d)?, p),
                            Some("or") => BarrierKind::RedOr(self.pred_dst(d)?, p),
                            Some(_) => BarrierKind::RedPopc(self.dst(d, 4)?, p),
                            None => return self.fail("'bar.red' needs .and, .or or .popc"),
                        };
                        (kind, rest)
                    }
                    None => return self.fail(format!("this form of '{base}' is not supported")),
                };
                self.finish(&mods)?;
                let (id, count) = match rest {
                    [id] => (self.src(id, Type::U32)?, None),
                    [id, count] => (self.src(id, Type::U32)?, Some(self.src(count, Type::U32)?)),
                    _ => return self.fail("a barrier and at most a count expected"),
                };
                if kind == BarrierKind::Arrive && count.is_none() {
                    return self.fail("'arrive' needs a thread count");
                }
                self.push(Op::Barrier { kind, id, count, aligned });
            }
        }
        Ok(())
    }

    fn copy(&mut self, mut mods: Mods<'a>, ops: &[Operand<'a>]) -> Result<()> {
        if !mods.take("async") {
            return self.fail("this form of 'cp' is not supported");
        }
        if mods.take("commit_group") {
            self.finish(&mods)?;
            self.operands::<0>(ops)?;
            self.push(Op::AsyncCommit);
            return Ok(());
        }
        if mods.take("wait_all") {
            self.finish(&mods)?;
            self.operands::<0>(ops)?;
            self.push(Op::AsyncWait { pending: None });
            return Ok(());
        }
        if mods.take("wait_group") {
            self.finish(&mods)?;
            let [Operand::Int(pending @ 0..=1_000_000)] = ops else {
                return self.fail("'wait_group' needs a number of groups");
            };
            self.push(Op::AsyncWait { pending: Some(*pending as u32) });
            return Ok(());
        }
        if mods.take("mbarrier") {
            if !mods.take("arrive") {
                return self.fail("this form of 'cp.async.mbarrier' is not supported");
            }
            let no_increment = mods.take("noinc");
            let space = self.space(&mut mods);
            mods.types();
            self.finish(&mods)?;
            let [at] = self.operands(ops)?;
            let at = self.address(at, space)?;
            self.push(Op::Mbarrier(Box::new(Mbarrier::AsyncArrive { at, no_increment })));
            return Ok(());
        }
        let level = mods.take_word(&["ca", "cg"]);
        let shared = mods.take("shared") || mods.take("shared::cta");
        let global = mods.take("global");
        mods.take_word(&["L2::64B", "L2::128B", "L2::256B"]);
        if level.is_none() || !shared || !global {
            return self.fail("this form of 'cp.async' is not supported");
        }
        self.finish(&mods)?;
        let [to, from, Operand::Int(bytes), rest @ ..] = ops else {
            return self.fail("'cp.async' needs two addresses and a size");
        };
        let to = self.address(to, MemorySpace::Shared)?;
        let from = self.address(from, MemorySpace::Global)?;
        if !(matches!(bytes, 4 | 8 | 16) && (level == Some("ca") || *bytes == 16)) {
            return self.fail("'cp.async.ca' copies 4, 8 or 16 bytes, '.cg' 16");
        }
        let (mut source_bytes, mut ignore) = (None, None);
        match rest {
            [] => {}
            [one] => match self.pred_src(one) {
                Ok(p) if !matches!(one, Operand::Int(_)) => ignore = Some(p),
                _ => source_bytes = Some(self.src(one, Type::U32)?),
            },
            _ => return self.fail("cache policies are not supported"),
        }
        self.push(Op::AsyncCopy(Box::new(AsyncCopy {
            to,
            from,
            bytes: *bytes as u8,
            source_bytes,
            ignore,
        })));
        Ok(())
    }

    fn mbarrier(&mut self, mut mods: Mods<'a>, ops: &[Operand<'a>]) -> Result<()> {
        const ACTIONS: [&str; 9] = [
            "init",
            "inval",
            "arrive",
            "arrive_drop",
            "expect_tx",
            "complete_tx",
            "test_wait",
            "try_wait",
            "pending_count",
        ];
        // `.arrive.expect_tx` has two of them; the first one names the action.
        let Some(action) = mods.take_word(&ACTIONS) else {
            return self.fail("'mbarrier' needs an action");
        };
        let expects = matches!(action, "arrive" | "arrive_drop") && mods.take("expect_tx");
        let no_complete = mods.take("noComplete");
        let parity = mods.take("parity");
        mods.take_word(&["release", "acquire", "relaxed"]);
        mods.take_word(&["cta", "cluster"]);
        let space = self.space(&mut mods);
        mods.types();
        self.finish(&mods)?;
        let op = match (action, ops) {
            ("init", [at, count]) => {
                Mbarrier::Init { at: self.address(at, space)?, count: self.src(count, Type::U32)? }
            }
            ("inval", [at]) => Mbarrier::Invalidate { at: self.address(at, space)? },
            ("expect_tx", [at, bytes]) => Mbarrier::ExpectTransactions {
                at: self.address(at, space)?,
                bytes: self.src(bytes, Type::U32)?,
            },
            ("arrive" | "arrive_drop", [state, at, rest @ ..]) if !no_complete => {
                let at = self.address(at, space)?;
                let state = match state {
                    Operand::Name("_") => None,
                    state => Some(self.dst(state, 8)?),
                };
                let one = self.constant(1, false);
                let (count, transactions) = match (expects, rest) {
                    (false, []) => (one, None),
                    (false, [count]) => (self.src(count, Type::U32)?, None),
                    (true, [bytes]) => (one, Some(self.src(bytes, Type::U32)?)),
                    _ => return self.fail("too many or too few operands"),
                };
                Mbarrier::Arrive { at, state, count, transactions, drop: action == "arrive_drop" }
            }
            ("test_wait" | "try_wait", [d, at, state] | [d, at, state, _]) => Mbarrier::Wait {
                at: self.address(at, space)?,
                d: self.pred_dst(d)?,
                state: self.src(state, if parity { Type::U32 } else { Type::U64 })?,
                parity,
            },
            ("pending_count", [d, state]) => {
                Mbarrier::PendingCount { d: self.dst(d, 4)?, state: self.src(state, Type::U64)? }
            }
            _ => return self.fail("this form of 'mbarrier' is not supported"),
        };
        self.push(Op::Mbarrier(Box::new(op)));
        Ok(())
    }

    fn matrix(&mut self, mut mods: Mods<'a>, ops: &[Operand<'a>]) -> Result<()> {
        self.need_sync(&mut mods)?;
        let ok = mods.take("aligned") && mods.take("m8n8") && mods.take("b16");
        let count = mods.take_one(&[("x1", 1), ("x2", 2), ("x4", 4)]);
        let transposed = mods.take("trans");
        let space = self.space(&mut mods);
        self.finish(&mods)?;
        let (true, Some(count), MemorySpace::Shared | MemorySpace::Generic) = (ok, count, space)
        else {
            return self.fail(format!("this form of '{}' is not supported", mods.base));
        };
        let store = mods.base == "stmatrix";
        let [first, second] = self.operands(ops)?;
        let (list, at) = if store { (second, first) } else { (first, second) };
        let at = self.address(at, space)?;
        let regs = self.fragment(list, count, store)?;
        self.push(Op::Matrix(Box::new(MatrixTransfer { at, regs, transposed, store })));
        Ok(())
    }

    fn fragment(
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

    fn mma(&mut self, mut mods: Mods<'a>, ops: &[Operand<'a>]) -> Result<()> {
        self.need_sync(&mut mods)?;
        let shape =
            mods.take_one(&[("m16n8k4", 4u8), ("m16n8k8", 8), ("m16n8k16", 16), ("m16n8k32", 32)]);
        let ok = mods.take("aligned") && mods.take("row") && mods.take("col");
        let (true, Some(k)) = (ok, shape) else {
            return self.fail("this shape or layout of 'mma' is not supported");
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
            return self.fail(format!("'mma' of .{a_type} and .{b_type} is not supported"));
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
            return self.fail("'mma' of this shape and these types is not supported");
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

fn operand_names<'a>(operand: &Operand<'a>, names: &mut HashSet<&'a str>) {
    match operand {
        Operand::Name(name) | Operand::Memory { base: Some(name), .. } => {
            names.insert(name);
        }
        Operand::Vector(list) | Operand::List(list) => {
            list.iter().for_each(|o| operand_names(o, names))
        }
        _ => {}
    }
}

/// What an opcode counts as, before its operands are known.
fn classify(mods: &Mods) -> Class {
    let ty = mods.left.iter().filter_map(|m| Type::parse(m)).next();
    match mods.base {
        "mov" => Class::Move,
        "cvt" | "cvta" => Class::Conversion,
        "setp" | "set" | "selp" | "testp" | "isspacep" => Class::Predicate,
        "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" | "rcp" | "sqrt" => Class::Special,
        "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "brkpt" => Class::Control,
        "atom" | "red" => Class::Atomic,
        "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" => Class::Communication,
        "bar" | "barrier" | "membar" | "fence" | "mbarrier" | "nanosleep" => Class::Synchronisation,
        "ldmatrix" | "stmatrix" => Class::Shared,
        "cp" => Class::AsyncCopy,
        "mma" => Class::Tensor,
        "and" | "or" | "xor" | "not" if ty == Some(Type::Pred) => Class::Predicate,
        _ => match ty {
            Some(Type::F32) => Class::Single,
            Some(Type::F64) => Class::Double,
            Some(Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2) => Class::Half,
            _ => Class::Integer,
        },
    }
}
