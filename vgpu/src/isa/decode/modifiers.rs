//! Opcodes and their modifiers.

use crate::isa::Class;
use crate::isa::float::Round;
use crate::ptx::Type;

/// An opcode and what is left of its modifiers.
pub(super) struct Modifiers<'a> {
    pub(super) base: &'a str,
    pub(super) left: Vec<&'a str>,
}

impl<'a> Modifiers<'a> {
    pub(super) fn new(opcode: &'a str) -> Self {
        let mut parts = opcode.split('.');
        let base = parts.next().unwrap_or("");
        Self { base, left: parts.collect() }
    }

    pub(super) fn take(&mut self, modifier: &str) -> bool {
        let found = self.left.iter().position(|m| *m == modifier);
        if let Some(at) = found {
            self.left.remove(at);
        }
        found.is_some()
    }

    /// Takes the first modifier that is one of these.
    pub(super) fn take_one<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
        let at = self.left.iter().position(|m| table.iter().any(|(name, _)| name == m))?;
        let name = self.left.remove(at);
        table.iter().find(|(n, _)| *n == name).map(|(_, value)| *value)
    }

    /// Takes the first modifier that is one of these, as text.
    pub(super) fn take_word(&mut self, words: &[&'static str]) -> Option<&'static str> {
        let at = self.left.iter().position(|m| words.contains(m))?;
        let name = self.left.remove(at);
        words.iter().find(|w| **w == name).copied()
    }

    pub(super) fn types(&mut self) -> Vec<Type> {
        let types: Vec<Type> = self.left.iter().filter_map(|m| Type::parse(m)).collect();
        self.left.retain(|m| Type::parse(m).is_none());
        types
    }

    pub(super) fn round(&mut self) -> Option<Round> {
        self.take_one(&[
            ("rn", Round::Nearest),
            ("rz", Round::Zero),
            ("rm", Round::Down),
            ("rp", Round::Up),
        ])
    }
}

/// What an opcode counts as, before its operands are known.
pub(super) fn classify(mods: &Modifiers) -> Class {
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
