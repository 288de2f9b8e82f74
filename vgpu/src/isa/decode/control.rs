//! Branches, calls, exits.

use std::collections::HashMap;

use super::{Decoder, Fixup, Modifiers, Name, Result};
use crate::isa::*;
use crate::ptx::{Operand, Type};

impl<'u, 'a> Decoder<'u, 'a> {
    pub(super) fn control(
        &mut self,
        mut mods: Modifiers<'a>,
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
    pub(super) fn fix_later(&mut self, entry: usize, label: &'a str) {
        let (inst, line, scopes) = (self.code.len(), self.line, self.scope_numbers.clone());
        self.fixups.push(Fixup { inst, entry, label, line, scopes });
    }

    /// Offset and size of a `.param` variable of the current frame.
    pub(super) fn frame_offsets(&self, list: &[Operand<'a>]) -> Result<Vec<u32>> {
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

    pub(super) fn call(&mut self, ops: &'u [Operand<'a>]) -> Result<()> {
        let (results, name, arguments): (&[Operand], _, &[Operand]) = match ops {
            [Operand::List(results), Operand::Name(name), Operand::List(arguments)] => {
                (results, name, arguments)
            }
            [Operand::List(results), Operand::Name(name)] => (results, name, &[]),
            [Operand::Name(name), Operand::List(arguments)] => (&[], name, arguments),
            [Operand::Name(name)] => (&[], name, &[]),
            _ => return self.unsupported("indirect calls are not supported"),
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
                "malloc" | "free" => {
                    return self.unsupported(format!("device function '{name}' is not supported"));
                }
                _ => return self.fail(format!("external function '{name}' is not defined")),
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
}
