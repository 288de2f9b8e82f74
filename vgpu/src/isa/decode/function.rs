//! Functions: shared memory, frames, registers, labels.

use std::collections::{HashMap, HashSet};

use super::vocabulary::is_ptx;
use super::{DYNAMIC, Decoder, FunctionInfo, NO_GUARD, Name, Result};
use crate::isa::*;
use crate::ptx::{Function, Operand, Space, Statement, SyntaxError, Type, Variable};

/// Bytes of local memory on top of the static need where functions call themselves.
const RECURSION_BYTES: usize = 64 << 10;
/// Registers of one kernel, in slots: beyond this a file is not a real one.
const MAX_SLOTS: u32 = 1 << 20;

impl<'u, 'a> Decoder<'u, 'a> {
    pub(super) fn kernel(mut self, entry: &'u Function<'a>) -> Result<DecodedKernel> {
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
        let target = self.target();
        Ok(DecodedKernel {
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
            refused: self.refused,
            uses_workspace: self.uses_workspace,
        })
    }

    /// Bytes of local memory along the deepest chain of calls; marks functions that call themselves.
    pub(super) fn frames(&mut self) -> usize {
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
    pub(super) fn layout_shared(&mut self, entry: &'u Function<'a>) -> Result<()> {
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

    pub(super) fn place_shared(&mut self, variable: &Variable<'a>) -> Result<()> {
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
    pub(super) fn add_function(&mut self, function: &'u Function<'a>) -> Result<usize> {
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

    pub(super) fn body(&mut self, at: usize) -> Result<()> {
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
                    if let Err(error) = self.instruction(instruction, &tables) {
                        if !error.is_ptx || !is_ptx(instruction.opcode, self.target()) {
                            return Err(error);
                        }
                        // The driver would load this: only launching the kernel is an error.
                        self.code.truncate(first);
                        self.fixups.retain(|fixup| fixup.inst < first);
                        self.refused.get_or_insert(error);
                        self.push(Op::Trap);
                    }
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

    pub(super) fn declare(&mut self, name: &'a str, ty: Type, count: Option<u32>) -> Result<()> {
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

    pub(super) fn variable(&mut self, variable: &Variable<'a>) -> Result<()> {
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
