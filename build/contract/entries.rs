//! Holds the `.entry` lines of a PTX file against the declarations.

use super::declarations::Declarations;
use super::types::Instance;

/// A kernel as the PTX lists it: name, and every parameter's type and size.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    name: String,
    params: Vec<(String, usize)>,
}

/// Reads the `.visible .entry` lines of a PTX file.
fn entries(ptx: &str) -> Result<Vec<Entry>, String> {
    let mut found = Vec::new();
    for text in ptx.split(".visible .entry ").skip(1) {
        let name = text.split(['(', '\n', ' ']).next().unwrap_or_default().to_owned();
        let header = text.split(['{', ';']).next().unwrap_or_default();
        let list = header.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
        let list = list.map_or("", |(list, _)| list);
        let mut params = Vec::new();
        for line in list.split(',').map(str::trim).filter(|line| !line.is_empty()) {
            let size = param_size(line).ok_or_else(|| {
                format!("kernel `{name}`: cannot read the PTX parameter `{line}`")
            })?;
            params.push((line.to_owned(), size));
        }
        found.push(Entry { name, params });
    }
    Ok(found)
}

/// Bytes of one `.param` line: `.param .u64 x`, `.param .align 4 .b8 x[20]`.
fn param_size(line: &str) -> Option<usize> {
    let width = line.split_whitespace().find_map(|word| {
        let bits = word.strip_prefix(['.']).and_then(|w| w.strip_prefix(['b', 'u', 's', 'f']))?;
        bits.parse::<usize>().ok()
    })?;
    let length = match line.split_once('[') {
        Some((_, rest)) => rest.split_once(']')?.0.parse().ok()?,
        None => 1,
    };
    Some(width / 8 * length)
}

/// Holds the kernels of a compiled family against its launchers.
///
/// `kernels` and `launchers` are the two files' names, for the messages.
///
/// # Errors
/// Every disagreement, a line each: a kernel without a launcher, a launcher without a kernel, a
/// different number of parameters, a parameter of another size.
pub fn check(
    kernels: &str,
    launchers: &str,
    ptx: &str,
    declared: &Declarations,
) -> Result<(), Vec<String>> {
    let compiled = entries(ptx).map_err(|e| vec![format!("{kernels}: {e}")])?;
    let mut errors = Vec::new();
    let mut known = Vec::new();
    for kernel in &declared.kernels {
        for Instance { name, .. } in kernel.instances() {
            known.push(name.clone());
            let Some(entry) = compiled.iter().find(|e| e.name == name) else {
                errors.push(format!(
                    "{launchers}: launcher `{}` expects kernel `{name}`, which {kernels} does not define",
                    kernel.name
                ));
                continue;
            };
            if entry.params.len() != kernel.params.len() {
                errors.push(format!(
                    "{kernels}: kernel `{name}`: expected {} parameters (launcher `{}` in {launchers}), found {}",
                    kernel.params.len(),
                    kernel.name,
                    entry.params.len()
                ));
                continue;
            }
            for (param, (line, found)) in kernel.params.iter().zip(&entry.params) {
                let expected = declared.param_size(param);
                if expected != *found {
                    errors.push(format!(
                        "{kernels}: kernel `{name}`, parameter `{}`: expected {expected} bytes \
                         (launcher `{}` in {launchers}), found {found} (`{line}`)",
                        param.name, kernel.name
                    ));
                }
            }
        }
    }
    for (i, name) in known.iter().enumerate() {
        if known[..i].contains(name) {
            errors.push(format!("{launchers}: kernel `{name}` is declared twice"));
        }
    }
    for entry in compiled.iter().filter(|e| !known.contains(&e.name)) {
        errors.push(format!(
            "{kernels}: kernel `{}` has no launcher: declare it in `kernels! {{ ... }}` of {launchers}, or remove it",
            entry.name
        ));
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}
