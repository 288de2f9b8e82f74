//! The direction of the arrows between nadir's modules, as ARCHITECTURE.md shows them; and that no test is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Every module of the library and those it may name, itself aside. A module stands below all that may name it, so
/// that there is no circle.
const ALLOWED: [(&str, &[&str]); 15] = [
    ("types", &[]),
    ("error", &["types"]),
    ("cpu", &["types", "error"]),
    ("tensor", &["types", "error", "cpu"]),
    ("io", &["error", "cpu", "tensor"]),
    ("text", &["error", "io"]),
    ("noise", &["error", "tensor"]),
    ("data", &["error", "cpu", "tensor", "io", "noise"]),
    ("ops", &["error", "cpu", "tensor"]),
    ("nn", &["error", "tensor", "io", "ops"]),
    ("models", &["error", "tensor", "io", "ops", "nn"]),
    ("pipeline", &["error", "tensor", "io", "text", "noise", "data", "ops", "nn", "models"]),
    (
        "metrics",
        &["error", "cpu", "tensor", "io", "noise", "data", "ops", "nn", "models", "pipeline"],
    ),
    (
        "train",
        &["error", "tensor", "io", "text", "noise", "data", "ops", "nn", "models", "pipeline"],
    ),
    ("evaluation", &["error", "tensor", "io", "data", "models", "pipeline", "train"]),
];

/// What stands at the root of the crate without being a module, and the module that it belongs to.
const AT_ROOT: [(&str, &str); 3] =
    [("Error", "error"), ("Result", "error"), ("dispatch_float", "tensor")];

#[test]
fn a_module_is_below_those_that_use_it() {
    let mut below = BTreeSet::new();
    for (module, uses) in ALLOWED {
        for used in uses {
            assert!(below.contains(used), "{module} may use {used}, which does not stand below it");
        }
        below.insert(module);
    }
}

#[test]
fn arrows_point_the_allowed_way() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let allowed: BTreeMap<_, _> = ALLOWED.into_iter().collect();
    let (mut faults, mut seen) = (Vec::new(), BTreeSet::new());
    for file in rust_files(&source) {
        let path = file.strip_prefix(&source).unwrap();
        let module = path.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        // The crate's root names all modules; the command line is another crate, which sees what is public.
        if ["lib", "main", "app"].contains(&module) {
            continue;
        }
        let uses = allowed.get(module).unwrap_or_else(|| panic!("no rule for src/{module}"));
        let text = std::fs::read_to_string(&file).unwrap();
        let tokens: TokenStream = text.parse().unwrap();
        let mut arrows = Vec::new();
        collect(tokens, depth(path), &mut arrows);
        for (target, line) in arrows {
            let at_root = AT_ROOT.into_iter().find(|(name, _)| *name == target);
            let target = at_root.map_or(target.as_str(), |(_, module)| module);
            if target != module && !uses.contains(&target) {
                faults.push(format!("src/{}:{line}: {module} -> {target}", path.display()));
            }
            seen.insert((module.to_owned(), target.to_owned()));
        }
    }
    assert!(faults.is_empty(), "arrows against the house's direction:\n{}", faults.join("\n"));
    // The reading works: these arrows are certainly there, in each of the forms that paths take.
    for (from, to) in [("error", "types"), ("tensor", "cpu"), ("ops", "tensor"), ("io", "error")] {
        assert!(seen.contains(&(from.to_owned(), to.to_owned())), "{from} -> {to} was not seen");
    }
}

#[test]
fn paths_are_read_in_every_form() {
    let text = r#"
        //! crate::comment
        use crate::tensor::{DType, Shape};
        use crate::{cpu::{simd, math}, error::Result, nn as network};
        use super::sibling;
        use super::super::io::hub;
        mod tests {
            use super::super::sibling;
            use super::super::super::text::weighting;
            fn f() { crate::noise::normal(); println!("crate::string"); }
        }
        macro_rules! m { () => { $crate::models::unet::Unet } }
    "#;
    let mut arrows = Vec::new();
    collect(text.parse().unwrap(), 2, &mut arrows);
    let names: Vec<_> = arrows.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["tensor", "cpu", "error", "nn", "io", "text", "noise", "models"]);
}

/// Their names say so, `a_gpu_`; the runner has to know where they are.
#[test]
fn what_needs_a_device_is_run_on_the_virtual_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let runner = std::fs::read_to_string(root.join("xtask/src/test.rs")).unwrap();
    let tests = root.join("tests");
    let named = concat!("fn a_", "gpu_");
    let mut targets = BTreeSet::new();
    for file in rust_files(&tests) {
        if std::fs::read_to_string(&file).unwrap().contains(named) {
            let first = file.strip_prefix(&tests).unwrap().iter().next().unwrap();
            targets.insert(first.to_str().unwrap().trim_end_matches(".rs").to_owned());
        }
    }
    assert!(targets.len() > 10, "{targets:?}");
    let left_out: Vec<_> =
        targets.iter().filter(|target| !runner.contains(&format!("\"{target}\","))).collect();
    assert!(left_out.is_empty(), "xtask/src/test.rs runs them nowhere: {left_out:?}");
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files
}

/// How many `super` lead from a file, relative to `src`, to the crate's root.
fn depth(path: &Path) -> usize {
    path.iter().count() - usize::from(path.ends_with("mod.rs"))
}

/// The names at the crate's root that paths in `tokens` begin with, and their lines. `depth` modules lie between the
/// tokens and the root.
fn collect(tokens: TokenStream, depth: usize, arrows: &mut Vec<(String, usize)>) {
    let tokens: Vec<_> = tokens.into_iter().collect();
    let ident =
        |i: usize, name: &str| matches!(tokens.get(i), Some(TokenTree::Ident(t)) if t == name);
    let colons = |i: usize| {
        let colon = |i| matches!(tokens.get(i), Some(TokenTree::Punct(p)) if p.as_char() == ':');
        colon(i) && colon(i + 1)
    };
    let mut i = 0;
    while i < tokens.len() {
        // The token behind `crate::`, or behind as many `super::` as lead out of the file's module.
        let mut after = i;
        if ident(i, "crate") && colons(i + 1) {
            after = i + 3;
        } else {
            let mut supers = 0;
            while ident(i + 3 * supers, "super") && colons(i + 3 * supers + 1) {
                supers += 1;
            }
            if supers > 0 && supers >= depth {
                after = i + 3 * supers;
            }
        }
        match tokens.get(after) {
            Some(first) if after > i => {
                roots(first, arrows);
                i = after;
            }
            Some(TokenTree::Group(group)) => {
                let module = group.delimiter() == Delimiter::Brace
                    && i >= 2
                    && ident(i - 2, "mod")
                    && matches!(tokens[i - 1], TokenTree::Ident(_));
                collect(group.stream(), depth + usize::from(module), arrows);
                i += 1;
            }
            _ => i += 1,
        }
    }
}

/// The first names of `name::..` or of `{name::.., name, ..}`.
fn roots(first: &TokenTree, arrows: &mut Vec<(String, usize)>) {
    match first {
        TokenTree::Ident(name) => arrows.push((name.to_string(), name.span().start().line)),
        TokenTree::Group(group) => {
            let mut begins = true;
            for token in group.stream() {
                match &token {
                    TokenTree::Punct(p) if p.as_char() == ',' => begins = true,
                    _ if begins => {
                        roots(&token, arrows);
                        begins = false;
                    }
                    _ => {}
                }
            }
        }
        _ => {}
    }
}
