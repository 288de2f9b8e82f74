//! The contract between a family's kernels and its launchers, checked while building.
//!
//! A launcher declares each kernel once, in `kernels! { ... }` of `src/ops/FAMILY.rs` or of a file in
//! `src/ops/FAMILY/`. This module reads those declarations and the by-value structs that they name, and holds
//! them against
//!
//! - the `.entry` lines of the PTX: every kernel has a launcher and the reverse, with as many
//!   parameters, of the same sizes ([`check`]);
//! - the C++ types, by assertions compiled together with the kernels ([`assertions`]): which
//!   parameter is written, each element type, every field of a struct.
//!
//! It needs nothing but text, so the build script and the tests share it.

use std::fmt::Write;

use syn::parse::ParseStream;
use syn::{
    Expr, FnArg, ForeignItemFn, GenericArgument, Item, ItemStruct, Lit, Pat, PathArguments, Type,
};

/// An element type, as Rust and CUDA name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Scalar {
    rust: &'static str,
    cuda: &'static str,
    size: usize,
}

const fn scalar(rust: &'static str, cuda: &'static str, size: usize) -> Scalar {
    Scalar { rust, cuda, size }
}

const SCALARS: [Scalar; 9] = [
    scalar("f32", "float", 4),
    scalar("f16", "__half", 2),
    scalar("bf16", "__nv_bfloat16", 2),
    scalar("f64", "double", 8),
    scalar("i64", "long long", 8),
    scalar("u64", "unsigned long long", 8),
    scalar("i32", "int", 4),
    scalar("u32", "unsigned int", 4),
    scalar("u8", "unsigned char", 1),
];

/// The types that `T` and `U` stand for.
const FLOATS: &[Scalar] = SCALARS.first_chunk::<3>().expect("there are nine");

/// The element type of a parameter: one type, or what the kernel is instantiated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    Fixed(Scalar),
    T,
    U,
}

/// What a launcher passes in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// `In`, `Out<U>`, `Array<In<f32>, N>`: device pointers.
    Pointers { written: bool, element: Element, array: Option<usize> },
    /// A `#[repr(C)]` struct, by value.
    Struct(String),
}

/// One parameter of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Param {
    name: String,
    kind: Kind,
}

/// A kernel as its launcher declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kernel {
    name: String,
    params: Vec<Param>,
}

/// One instantiation of a kernel: its name in the PTX, and its parameters' types in C++.
struct Instance {
    name: String,
    types: Vec<String>,
}

impl Kernel {
    fn uses(&self, wanted: Element) -> bool {
        let of = |p: &Param| matches!(p.kind, Kind::Pointers { element, .. } if element == wanted);
        self.params.iter().any(of)
    }

    /// `silu` gives `silu_f32`, ...; with `U` beside `T`, `adamw` gives `adamw_f32_f32`, `adamw_f32_f16`, ...
    fn instances(&self) -> Vec<Instance> {
        let choices = |element| -> Vec<Option<Scalar>> {
            if self.uses(element) { FLOATS.iter().copied().map(Some).collect() } else { vec![None] }
        };
        let mut instances = Vec::new();
        for t in choices(Element::T) {
            for u in choices(Element::U) {
                let suffixes = [t, u].into_iter().flatten().map(|s| format!("_{}", s.rust));
                let name = format!("{}{}", self.name, suffixes.collect::<String>());
                let types = self.params.iter().map(|p| cuda_type(&p.kind, t, u)).collect();
                instances.push(Instance { name, types });
            }
        }
        instances
    }
}

/// The C++ type of a parameter where `T` and `U` stand for these.
fn cuda_type(kind: &Kind, t: Option<Scalar>, u: Option<Scalar>) -> String {
    match kind {
        Kind::Struct(name) => name.clone(),
        Kind::Pointers { written, element, array } => {
            let element = match element {
                Element::Fixed(scalar) => Some(*scalar),
                Element::T => t,
                Element::U => u,
            };
            let element = element.map_or("void", |scalar| scalar.cuda);
            let pointee = if *written { element.to_owned() } else { format!("const {element}") };
            match array {
                Some(n) => format!("Pointers<{pointee}, {n}>"),
                None => format!("{pointee}*"),
            }
        }
    }
}

/// A field of a by-value struct; `array` is its length when it is one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Field {
    name: String,
    scalar: Scalar,
    array: Option<usize>,
}

/// A `#[repr(C)]` struct whose fields are scalars or arrays of them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Struct {
    name: String,
    fields: Vec<Field>,
}

impl Struct {
    /// Offset of every field, and the size of all.
    fn layout(&self) -> (Vec<usize>, usize) {
        let (mut offsets, mut end, mut align) = (Vec::new(), 0usize, 1);
        for field in &self.fields {
            let size = field.scalar.size;
            align = align.max(size);
            end = end.next_multiple_of(size);
            offsets.push(end);
            end += size * field.array.unwrap_or(1);
        }
        (offsets, end.next_multiple_of(align))
    }
}

/// What the files of a family declare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declarations {
    kernels: Vec<Kernel>,
    structs: Vec<Struct>,
}

impl Declarations {
    /// Whether no kernel is launched.
    pub fn is_empty(&self) -> bool {
        self.kernels.is_empty()
    }

    /// Reads the launchers, and the structs they name, out of a family's Rust sources.
    ///
    /// # Errors
    /// One sentence that names the declaration which cannot be understood.
    pub fn parse(sources: &[String]) -> Result<Self, String> {
        let (mut kernels, mut items) = (Vec::new(), Vec::new());
        for source in sources {
            let file = syn::parse_file(source).map_err(|e| e.to_string())?;
            collect(file.items, &mut kernels, &mut items)?;
        }
        let mut structs: Vec<Struct> = Vec::new();
        for kernel in &kernels {
            for param in &kernel.params {
                let Kind::Struct(name) = &param.kind else { continue };
                if structs.iter().any(|s| s.name == *name) {
                    continue;
                }
                let read = by_value_struct(&items, name);
                structs.push(read.map_err(|e| {
                    format!("kernel `{}`, parameter `{}`: {e}", kernel.name, param.name)
                })?);
            }
        }
        Ok(Self { kernels, structs })
    }

    fn param_size(&self, param: &Param) -> usize {
        match &param.kind {
            Kind::Pointers { array, .. } => 8 * array.unwrap_or(1),
            Kind::Struct(name) => {
                self.structs.iter().find(|s| s.name == *name).map_or(0, |s| s.layout().1)
            }
        }
    }
}

/// Gathers the kernels of every `kernels! { ... }`, and all structs, in these items and the modules among them.
fn collect(
    items: Vec<Item>,
    kernels: &mut Vec<Kernel>,
    structs: &mut Vec<ItemStruct>,
) -> Result<(), String> {
    for item in items {
        match item {
            Item::Macro(item) if item.mac.path.is_ident("kernels") => {
                let all = |input: ParseStream| {
                    let mut found = Vec::new();
                    while !input.is_empty() {
                        found.push(input.parse::<ForeignItemFn>()?);
                    }
                    Ok(found)
                };
                let declared = item.mac.parse_body_with(all);
                for declared in declared.map_err(|e| format!("kernels!: {e}"))? {
                    kernels.push(kernel(&declared)?);
                }
            }
            Item::Struct(item) => structs.push(item),
            Item::Mod(module) => {
                let inner = module.content.map_or_else(Vec::new, |(_, items)| items);
                collect(inner, kernels, structs)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// `fn NAME(PARAM: KIND, ...);`
fn kernel(declared: &ForeignItemFn) -> Result<Kernel, String> {
    let name = declared.sig.ident.to_string();
    let mut params = Vec::new();
    for input in &declared.sig.inputs {
        let FnArg::Typed(input) = input else {
            return Err(format!("kernel `{name}`: `self` cannot be passed"));
        };
        let Pat::Ident(param) = &*input.pat else {
            return Err(format!("kernel `{name}`: a parameter needs a name"));
        };
        let param = param.ident.to_string();
        let kind =
            kind(&input.ty).map_err(|e| format!("kernel `{name}`, parameter `{param}`: {e}"))?;
        params.push(Param { name: param, kind });
    }
    let kernel = Kernel { name, params };
    if kernel.uses(Element::U) && !kernel.uses(Element::T) {
        return Err(format!("kernel `{}`: `U` without `T`: one type is `T`", kernel.name));
    }
    Ok(kernel)
}

fn kind(ty: &Type) -> Result<Kind, String> {
    let (name, arguments) = path(ty)?;
    let written = match name.as_str() {
        "In" => false,
        "Out" => true,
        "Array" => {
            let [GenericArgument::Type(of), length] = arguments[..] else {
                return Err("an array is `Array<In, LENGTH>` or `Array<Out, LENGTH>`".into());
            };
            let length = match length {
                GenericArgument::Const(length) => literal(length)?,
                _ => return Err(NOT_A_LENGTH.into()),
            };
            return match kind(of)? {
                Kind::Pointers { written, element, array: None } => {
                    Ok(Kind::Pointers { written, element, array: Some(length) })
                }
                _ => Err("only an array of `In` or `Out` can be passed".into()),
            };
        }
        _ if arguments.is_empty() => return Ok(Kind::Struct(name)),
        _ => return Err(format!("`{name}` is not one of In, Out, Array")),
    };
    let element = match arguments[..] {
        [] => Element::T,
        [GenericArgument::Type(ty)] => match path(ty)?.0.as_str() {
            "T" => Element::T,
            "U" => Element::U,
            _ => Element::Fixed(element(ty)?),
        },
        _ => return Err(format!("`{name}` takes one element type")),
    };
    Ok(Kind::Pointers { written, element, array: None })
}

/// A type's last name, and what stands between its angle brackets.
fn path(ty: &Type) -> Result<(String, Vec<&GenericArgument>), String> {
    let last = match ty {
        Type::Path(ty) => ty.path.segments.last(),
        _ => None,
    };
    let last = last.ok_or("expected the name of a type")?;
    let arguments = match &last.arguments {
        PathArguments::AngleBracketed(list) => list.args.iter().collect(),
        _ => Vec::new(),
    };
    Ok((last.ident.to_string(), arguments))
}

fn element(ty: &Type) -> Result<Scalar, String> {
    let (name, _) = path(ty)?;
    SCALARS
        .into_iter()
        .find(|s| s.rust == name)
        .ok_or_else(|| format!("`{name}` is not one of {}", SCALARS.map(|s| s.rust).join(", ")))
}

const NOT_A_LENGTH: &str = "a length must be a literal number";

fn literal(length: &Expr) -> Result<usize, String> {
    match length {
        Expr::Lit(literal) => match &literal.lit {
            Lit::Int(number) => number.base10_parse().map_err(|e| e.to_string()),
            _ => Err(NOT_A_LENGTH.into()),
        },
        _ => Err(NOT_A_LENGTH.into()),
    }
}

/// Finds `#[repr(C)] struct NAME { ... }` and reads its fields.
fn by_value_struct(structs: &[ItemStruct], name: &str) -> Result<Struct, String> {
    let mut named = structs.iter().filter(|s| s.ident == name);
    let item = named.next().ok_or_else(|| {
        format!("struct `{name}` is not defined beside it, nor in another file of its family")
    })?;
    if named.next().is_some() {
        return Err(format!("struct `{name}` is defined twice in the family's files"));
    }
    let is_repr_c = |a: &syn::Attribute| {
        a.path().is_ident("repr") && a.parse_args::<syn::Ident>().is_ok_and(|repr| repr == "C")
    };
    if !item.attrs.iter().any(is_repr_c) {
        return Err(format!("struct `{name}` is passed to a kernel: it needs #[repr(C)]"));
    }
    let fields = item.fields.iter().map(|field| {
        let ident = field.ident.as_ref();
        let field_name =
            ident.ok_or_else(|| format!("struct `{name}`: its fields need names"))?.to_string();
        let (ty, array) = match &field.ty {
            Type::Array(array) => (&*array.elem, Some(&array.len)),
            ty => (ty, None),
        };
        let read = element(ty).and_then(|scalar| Ok((scalar, array.map(literal).transpose()?)));
        let (scalar, array) =
            read.map_err(|e| format!("struct `{name}`, field `{field_name}`: {e}"))?;
        Ok(Field { name: field_name, scalar, array })
    });
    Ok(Struct { name: name.to_owned(), fields: fields.collect::<Result<_, String>>()? })
}

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

/// C++ that fails to compile when the types differ: the family's source, then one assertion for
/// every kernel's signature and every field of every struct that Rust passes.
pub fn assertions(kernels: &str, launchers: &str, declared: &Declarations) -> String {
    let mut text = format!(
        "// Generated by build.rs from {launchers}.\n#include \"{kernels}\"\n#include <cstddef>\n\
         namespace contract {{\n\
         template <typename A, typename B> constexpr bool same = false;\n\
         template <typename A> constexpr bool same<A, A> = true;\n}}\n"
    );
    for s in &declared.structs {
        let (offsets, size) = s.layout();
        let name = &s.name;
        for (field, offset) in s.fields.iter().zip(offsets) {
            let of = format!("{name}::{}", field.name);
            let array = field.array.map_or(String::new(), |n| format!("[{n}]"));
            let ty = format!("{}{array}", field.scalar.cuda);
            let _ = writeln!(
                text,
                "static_assert(contract::same<decltype({of}), {ty}>, \
                 \"{kernels}: {of}: expected {ty}, as {launchers} has it\");\n\
                 static_assert(offsetof({name}, {}) == {offset}, \
                 \"{kernels}: {of}: expected at byte {offset}, as {launchers} has it\");",
                field.name
            );
        }
        let _ = writeln!(
            text,
            "static_assert(sizeof({name}) == {size}, \
             \"{kernels}: {name}: expected {size} bytes, as {launchers} has it\");"
        );
    }
    for kernel in &declared.kernels {
        for Instance { name, types } in kernel.instances() {
            let types = types.join(", ");
            let _ = writeln!(
                text,
                "static_assert(contract::same<decltype({name}), void({types})>, \
                 \"{kernels}: {name}: expected ({types}), as {launchers} declares it\");"
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAUNCHERS: &str = r#"
        //! kernels! { fn in_a_comment(x: In); }
        const MESSAGE: &str = "kernels! { fn in_a_string(x: In); }";
        const QUOTE: char = '"';

        #[repr(C)]
        #[derive(Clone, Copy)]
        pub(crate) struct ScaleDims { pub len: u64, pub factor: f32, pub taps: [u32; 3] }

        kernels! {
            /// Why this block size.
            #[allow(dead_code)]
            fn scale(y: Out, x: In<f32>, dims: ScaleDims);
            fn gather(y: Out<f32>, parts: Array<In<i64>, 4>);
        }
    "#;

    fn parse(source: &str) -> Result<Declarations, String> {
        Declarations::parse(&[source.to_owned()])
    }

    fn ptx(entries: &[(&str, &[&str])]) -> String {
        let mut text = String::from(".version 9.0\n.target sm_80\n");
        for (name, params) in entries {
            let list: Vec<_> = params
                .iter()
                .enumerate()
                .map(|(i, p)| format!("\t.param {}", p.replace('_', &format!("{name}_param_{i}"))))
                .collect();
            let _ =
                write!(text, ".visible .entry {name}(\n{}\n)\n{{\n\tret;\n}}\n", list.join(",\n"));
        }
        text
    }

    const SCALE: &[&str] = &[".u64 _", ".u64 .ptr .align 1 _", ".align 8 .b8 _[24]"];
    const GATHER: &[&str] = &[".u64 _", ".align 8 .b8 _[32]"];

    fn errors(entries: &[(&str, &[&str])]) -> Vec<String> {
        let declared = parse(LAUNCHERS).unwrap();
        check("kernels/a.cu", "src/ops/a.rs", &ptx(entries), &declared).err().unwrap_or_default()
    }

    #[test]
    fn agreement_passes() {
        let all =
            [("scale_f32", SCALE), ("scale_f16", SCALE), ("scale_bf16", SCALE), ("gather", GATHER)];
        assert_eq!(errors(&all), Vec::<String>::new());
    }

    #[test]
    fn a_launcher_needs_its_kernel() {
        let found = errors(&[("scale_f32", SCALE), ("scale_bf16", SCALE), ("gather", GATHER)]);
        assert_eq!(
            found,
            [
                "src/ops/a.rs: launcher `scale` expects kernel `scale_f16`, which kernels/a.cu does not define"
            ]
        );
    }

    #[test]
    fn a_kernel_needs_its_launcher() {
        let all = [
            ("scale_f32", SCALE),
            ("scale_f16", SCALE),
            ("scale_bf16", SCALE),
            ("gather", GATHER),
            ("scatter", GATHER),
        ];
        let found = errors(&all);
        assert_eq!(found.len(), 1);
        assert!(
            found[0].starts_with("kernels/a.cu: kernel `scatter` has no launcher"),
            "{found:?}"
        );
    }

    #[test]
    fn counts_and_sizes_of_parameters_must_agree() {
        let short: &[&str] = &[".u64 _", ".align 8 .b8 _[24]"];
        let narrow: &[&str] = &[".u64 _", ".u64 _", ".align 4 .b8 _[20]"];
        let int: &[&str] = &[".u64 _", ".u32 _", ".align 8 .b8 _[24]"];
        let found = errors(&[
            ("scale_f32", short),
            ("scale_f16", narrow),
            ("scale_bf16", int),
            ("gather", GATHER),
        ]);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(
            found[0].contains("`scale_f32`: expected 3 parameters")
                && found[0].ends_with("found 2")
        );
        assert!(
            found[1].contains("`scale_f16`, parameter `dims`: expected 24 bytes")
                && found[1].contains("found 20")
        );
        assert!(
            found[2].contains("`scale_bf16`, parameter `x`: expected 8 bytes")
                && found[2].contains("found 4")
        );
    }

    #[test]
    fn examples_and_messages_declare_nothing() {
        let text =
            "//! kernels! { fn f(x: In); }\nconst S: &str = r#\"kernels! { fn f(x: In); }\"#;";
        assert!(parse(text).unwrap().is_empty());
        assert!(!parse(LAUNCHERS).unwrap().is_empty());
    }

    #[test]
    fn a_kernel_is_declared_once() {
        let declared = parse("kernels! { fn f(y: Out<u8>); fn f(y: Out<u8>); }").unwrap();
        let found = check("a.cu", "a.rs", &ptx(&[("f", &[".u64 _"])]), &declared).unwrap_err();
        assert_eq!(found, ["a.rs: kernel `f` is declared twice"]);
    }

    #[test]
    fn layout_follows_c() {
        let source =
            "#[repr(C)] struct D { a: u8, b: u64, c: [u8; 3], d: f32 } kernels! { fn f(d: D); }";
        let declared = parse(source).unwrap();
        #[repr(C)]
        struct D {
            a: u8,
            b: u64,
            c: [u8; 3],
            d: f32,
        }
        use std::mem::{offset_of, size_of};
        let offsets = vec![offset_of!(D, a), offset_of!(D, b), offset_of!(D, c), offset_of!(D, d)];
        assert_eq!(declared.structs[0].layout(), (offsets, size_of::<D>()));
    }

    #[test]
    fn unreadable_declarations_are_named() {
        let error = |source| parse(source).unwrap_err();
        assert_eq!(
            error("kernels! { fn f(x: In<f8>); }"),
            "kernel `f`, parameter `x`: `f8` is not one of f32, f16, bf16, f64, i64, u64, i32, u32, u8"
        );
        assert_eq!(
            error("kernels! { fn f(d: Dims); }"),
            "kernel `f`, parameter `d`: struct `Dims` is not defined beside it, nor in another file of its family"
        );
        assert_eq!(
            error("struct Dims { n: u32 } kernels! { fn f(d: Dims); }"),
            "kernel `f`, parameter `d`: struct `Dims` is passed to a kernel: it needs #[repr(C)]"
        );
        assert_eq!(error("kernels! { fn f(x: In) }"), "kernels!: expected `;`");
        assert_eq!(
            error("kernels! { fn f(x: Array<In, N>); }"),
            "kernel `f`, parameter `x`: a length must be a literal number"
        );
        assert_eq!(
            error("kernels! { fn f(x: Vec<In>); }"),
            "kernel `f`, parameter `x`: `Vec` is not one of In, Out, Array"
        );
        assert_eq!(
            error("kernels! { fn f(x: Array<Dims, 2>); }"),
            "kernel `f`, parameter `x`: only an array of `In` or `Out` can be passed"
        );
        assert_eq!(
            error("kernels! { fn f(x: In<U>); }"),
            "kernel `f`: `U` without `T`: one type is `T`"
        );
        assert!(
            error("kernels! { fn f(").contains("unclosed delimiter")
                || !error("kernels! { fn f(").is_empty()
        );
        assert_eq!(
            error("#[repr(C)] struct D { n: usize } kernels! { fn f(d: D); }"),
            "kernel `f`, parameter `d`: struct `D`, field `n`: `usize` is not one of f32, f16, bf16, f64, i64, u64, i32, u32, u8"
        );
        assert_eq!(
            error("#[repr(C, align(16))] struct D { n: u32 } kernels! { fn f(d: D); }"),
            "kernel `f`, parameter `d`: struct `D` is passed to a kernel: it needs #[repr(C)]"
        );
    }

    #[test]
    fn a_family_is_all_files_of_its_folder() {
        let dims = "#[repr(C)] struct Dims { n: u32 }".to_owned();
        let kernels = "mod forward { kernels! { fn f(x: In<u8>, d: Dims); } }".to_owned();
        let declared = Declarations::parse(&[kernels.clone(), dims.clone()]).unwrap();
        assert_eq!(declared.param_size(&declared.kernels[0].params[1]), 4);
        assert_eq!(
            Declarations::parse(&[kernels, dims.clone(), dims]).unwrap_err(),
            "kernel `f`, parameter `d`: struct `Dims` is defined twice in the family's files"
        );
    }

    #[test]
    fn two_types_give_every_pair() {
        let source = "kernels! {
            fn adamw(weights: Out<f32>, gradients: In<T>, copies: Array<Out<U>, 2>);
        }";
        let declared = parse(source).unwrap();
        let kernel = &declared.kernels[0];
        let instances = kernel.instances();
        let names: Vec<&str> = instances.iter().map(|i| i.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "adamw_f32_f32",
                "adamw_f32_f16",
                "adamw_f32_bf16",
                "adamw_f16_f32",
                "adamw_f16_f16",
                "adamw_f16_bf16",
                "adamw_bf16_f32",
                "adamw_bf16_f16",
                "adamw_bf16_bf16",
            ]
        );
        assert_eq!(instances[5].types, ["float*", "const __half*", "Pointers<__nv_bfloat16, 2>"]);
        assert_eq!(declared.param_size(&kernel.params[2]), 16);
    }

    #[test]
    fn assertions_name_every_type() {
        let declared = parse(LAUNCHERS).unwrap();
        let text = assertions("kernels/a.cu", "src/ops/a.rs", &declared);
        for needed in [
            "same<decltype(scale_f16), void(__half*, const float*, ScaleDims)>",
            "same<decltype(gather), void(float*, Pointers<const long long, 4>)>",
            "same<decltype(ScaleDims::taps), unsigned int[3]>",
            "offsetof(ScaleDims, factor) == 8",
            "sizeof(ScaleDims) == 24",
        ] {
            assert!(text.contains(needed), "{needed} is missing from\n{text}");
        }
    }
}
