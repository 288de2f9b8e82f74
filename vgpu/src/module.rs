//! Loading of modules: variables get addresses and values, kernels get decoded.

use std::collections::HashMap;

use crate::exec::{Memory, MemoryKind};
use crate::isa::DecodedKernel;
use crate::isa::decode::{Symbol, decode_unit};
use crate::ptx::{Init, Space, SyntaxError, Type, Unit, Variable, parse};

/// A `.global` or `.const` variable in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Global {
    pub(crate) address: u64,
    pub(crate) size: u64,
}

/// A loaded module.
pub(crate) struct Module {
    pub(crate) kernels: HashMap<String, std::sync::Arc<DecodedKernel>>,
    pub(crate) globals: HashMap<String, Global>,
}

/// Why a module was not loaded.
#[derive(Debug)]
pub(crate) enum LoadError {
    Syntax(SyntaxError),
    OutOfMemory,
}

impl From<SyntaxError> for LoadError {
    fn from(error: SyntaxError) -> Self {
        Self::Syntax(error)
    }
}

impl Module {
    /// Loads PTX text. On an error no device memory stays allocated.
    pub(crate) fn load(text: &str, memory: &mut Memory) -> Result<Self, LoadError> {
        let unit = parse(text)?;
        let mut module = Self { kernels: HashMap::new(), globals: HashMap::new() };
        let loaded = module.fill(&unit, memory);
        if loaded.is_err() {
            module.unload(memory);
        }
        loaded.map(|()| module)
    }

    fn fill(&mut self, unit: &Unit, memory: &mut Memory) -> Result<(), LoadError> {
        let in_memory =
            |v: &&Variable| matches!(v.space, Space::Global | Space::Const) && !v.is_extern;
        let mut symbols = HashMap::new();
        for variable in unit.variables.iter().filter(in_memory) {
            let kind = if variable.space == Space::Const {
                MemoryKind::Constant
            } else {
                MemoryKind::Variable
            };
            let size = variable.size.max(1) as u64;
            let address = memory.allocate(size, kind).ok_or(LoadError::OutOfMemory)?;
            self.globals.insert(variable.name.to_string(), Global { address, size });
            symbols.insert(variable.name, Symbol { space: variable.space, address });
        }
        for variable in unit.variables.iter().filter(in_memory) {
            initialise(variable, &symbols, memory)?;
        }
        for kernel in decode_unit(unit, &symbols)? {
            self.kernels.insert(kernel.name.clone(), std::sync::Arc::new(kernel));
        }
        Ok(())
    }

    /// Frees the module's variables.
    pub(crate) fn unload(&mut self, memory: &mut Memory) {
        for global in self.globals.values() {
            memory.free(global.address);
        }
        self.globals.clear();
        self.kernels.clear();
    }
}

fn initialise(
    variable: &Variable,
    symbols: &HashMap<&str, Symbol>,
    memory: &Memory,
) -> Result<(), SyntaxError> {
    let Some(symbol) = symbols.get(variable.name) else { return Ok(()) };
    let Some(allocation) = memory.find(symbol.address) else { return Ok(()) };
    // Variables without an initialiser are zero; what the initialiser does not reach, too.
    // SAFETY: the allocation was made with the variable's size and nothing runs yet.
    unsafe { allocation.pointer(symbol.address).write_bytes(0, variable.size) };
    let mut bytes = vec![0u8; variable.init.len() * variable.ty.size().max(1)];
    let each = variable.ty.size().max(1);
    for (chunk, init) in bytes.chunks_mut(each).zip(&variable.init) {
        let value = match init {
            Init::Bits(bits) => *bits,
            Init::Float(x) if variable.ty == Type::F32 => (*x as f32).to_bits() as u64,
            Init::Float(x) => x.to_bits(),
            Init::Symbol(name, offset) => match symbols.get(name) {
                Some(symbol) if each == 8 => symbol.address.wrapping_add(*offset as u64),
                _ => {
                    return Err(SyntaxError::new(
                        variable.line,
                        format!("'{name}' cannot initialise '{}'", variable.name),
                    ));
                }
            },
        };
        chunk.copy_from_slice(&value.to_le_bytes()[..chunk.len()]);
    }
    // SAFETY: as above; the parser admits no more initialisers than elements.
    unsafe {
        std::ptr::copy_nonoverlapping(
            bytes.as_ptr(),
            allocation.pointer(symbol.address),
            bytes.len(),
        )
    };
    allocation.set_defined(symbol.address, allocation.size, true);
    Ok(())
}
