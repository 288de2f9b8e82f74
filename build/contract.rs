//! The contract between a family's kernels and its launchers, checked while building.
//!
//! A launcher declares each kernel once, in `kernels! { ... }` of `src/ops/FAMILY.rs`. This module
//! reads those declarations and the by-value structs that they name, and holds them against
//!
//! - the `.entry` lines of the PTX: every kernel has a launcher and the reverse, with as many
//!   parameters, of the same sizes ([`check`]);
//! - the C++ types, by assertions compiled together with the kernels ([`assertions`]): which
//!   parameter is written, each element type, every field of a struct.
//!
//! It needs nothing but text, so the build script and the tests share it.

use std::fmt::Write;

/// The types that a kernel is instantiated for when a parameter is `In` or `Out` without a type.
const FLOATS: [Scalar; 3] = [Scalar::F32, Scalar::F16, Scalar::BF16];

/// An element type, as Rust and CUDA name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    F32,
    F16,
    BF16,
    F64,
    I64,
    U64,
    I32,
    U32,
    U8,
}

impl Scalar {
    const ALL: [Scalar; 9] = {
        use Scalar::*;
        [F32, F16, BF16, F64, I64, U64, I32, U32, U8]
    };

    fn rust(self) -> &'static str {
        match self {
            Scalar::F32 => "f32",
            Scalar::F16 => "f16",
            Scalar::BF16 => "bf16",
            Scalar::F64 => "f64",
            Scalar::I64 => "i64",
            Scalar::U64 => "u64",
            Scalar::I32 => "i32",
            Scalar::U32 => "u32",
            Scalar::U8 => "u8",
        }
    }

    fn cuda(self) -> &'static str {
        match self {
            Scalar::F32 => "float",
            Scalar::F16 => "__half",
            Scalar::BF16 => "__nv_bfloat16",
            Scalar::F64 => "double",
            Scalar::I64 => "long long",
            Scalar::U64 => "unsigned long long",
            Scalar::I32 => "int",
            Scalar::U32 => "unsigned int",
            Scalar::U8 => "unsigned char",
        }
    }

    fn size(self) -> usize {
        match self {
            Scalar::F64 | Scalar::I64 | Scalar::U64 => 8,
            Scalar::F32 | Scalar::I32 | Scalar::U32 => 4,
            Scalar::F16 | Scalar::BF16 => 2,
            Scalar::U8 => 1,
        }
    }

    fn parse(name: &str) -> Option<Scalar> {
        Scalar::ALL.into_iter().find(|s| s.rust() == name)
    }
}

/// What a launcher passes in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// `In`, `Out<T>`, `Array<In, N>`: device pointers; no element type means the instantiated one.
    Pointers { written: bool, element: Option<Scalar>, array: Option<usize> },
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

impl Kernel {
    /// Names of the instantiations with their element types: `silu` gives `silu_f32`, ...
    fn entries(&self) -> Vec<(String, Option<Scalar>)> {
        let generic =
            self.params.iter().any(|p| matches!(p.kind, Kind::Pointers { element: None, .. }));
        if generic {
            FLOATS.iter().map(|&t| (format!("{}_{}", self.name, t.rust()), Some(t))).collect()
        } else {
            vec![(self.name.clone(), None)]
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
            let size = field.scalar.size();
            align = align.max(size);
            end = end.next_multiple_of(size);
            offsets.push(end);
            end += size * field.array.unwrap_or(1);
        }
        (offsets, end.next_multiple_of(align))
    }
}

/// What `src/ops/FAMILY.rs` declares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declarations {
    kernels: Vec<Kernel>,
    structs: Vec<Struct>,
}

impl Declarations {
    /// Whether the file launches any kernel.
    pub fn is_empty(&self) -> bool {
        self.kernels.is_empty()
    }

    /// Reads the launchers and the structs they name out of a Rust source file.
    ///
    /// # Errors
    /// One sentence that names the declaration which cannot be understood.
    pub fn parse(source: &str) -> Result<Self, String> {
        let tokens = tokens(source);
        let mut kernels = Vec::new();
        let mut at = 0;
        while at + 2 < tokens.len() {
            if tokens[at..at + 3] == ["kernels", "!", "{"] {
                let mut cursor = Cursor { tokens: &tokens, at: at + 3 };
                while cursor.peek() != "}" {
                    kernels.push(cursor.kernel()?);
                }
                at = cursor.at;
            }
            at += 1;
        }

        let mut structs: Vec<Struct> = Vec::new();
        for kernel in &kernels {
            for param in &kernel.params {
                let Kind::Struct(name) = &param.kind else {
                    continue;
                };
                if structs.iter().all(|s| s.name != *name) {
                    structs.push(find_struct(&tokens, name).map_err(|e| {
                        format!("kernel `{}`, parameter `{}`: {e}", kernel.name, param.name)
                    })?);
                }
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

/// Finds `#[repr(C)] struct NAME { ... }` and reads its fields.
fn find_struct(tokens: &[String], name: &str) -> Result<Struct, String> {
    let mut repr_c = false;
    let mut cursor = Cursor { tokens, at: 0 };
    while cursor.at < tokens.len() {
        match cursor.peek() {
            "#" => repr_c |= cursor.attribute().starts_with("repr(C"),
            "struct" if cursor.peek_at(1) == name => {
                if !repr_c {
                    return Err(format!(
                        "struct `{name}` is passed to a kernel: it needs #[repr(C)]"
                    ));
                }
                cursor.at += 2;
                return cursor.fields(name);
            }
            "pub" | "(" | "crate" | "super" | ")" => cursor.at += 1,
            _ => {
                repr_c = false;
                cursor.at += 1;
            }
        }
    }
    Err(format!("struct `{name}` is not defined in this file"))
}

struct Cursor<'a> {
    tokens: &'a [String],
    at: usize,
}

impl Cursor<'_> {
    fn peek(&self) -> &str {
        self.peek_at(0)
    }

    /// The token `ahead` of here; the end of the file reads as the end of every block.
    fn peek_at(&self, ahead: usize) -> &str {
        self.tokens.get(self.at + ahead).map_or("}", String::as_str)
    }

    fn next(&mut self) -> String {
        let token = self.peek().to_owned();
        self.at += 1;
        token
    }

    fn expect(&mut self, wanted: &str, place: &str) -> Result<(), String> {
        let found = self.next();
        if found == wanted {
            Ok(())
        } else {
            Err(format!("{place}: expected `{wanted}`, found `{found}`"))
        }
    }

    fn number(&mut self, place: &str) -> Result<usize, String> {
        let text = self.next();
        text.parse()
            .map_err(|_| format!("{place}: a length must be a literal number, found `{text}`"))
    }

    /// Skips `#[...]` and returns what stands inside.
    fn attribute(&mut self) -> String {
        self.at += 2;
        let (mut depth, mut text) = (1, String::new());
        while self.at < self.tokens.len() {
            let token = self.next();
            depth += (token == "[") as i32 - (token == "]") as i32;
            if depth == 0 {
                break;
            }
            text += &token;
        }
        text
    }

    /// `fn NAME(PARAM: KIND, ...);`
    fn kernel(&mut self) -> Result<Kernel, String> {
        while self.peek() == "#" {
            self.attribute();
        }
        self.expect("fn", "kernels!")?;
        let name = self.next();
        let place = format!("kernel `{name}`");
        self.expect("(", &place)?;
        let mut params = Vec::new();
        while self.peek() != ")" {
            let param = self.next();
            let place = format!("kernel `{name}`, parameter `{param}`");
            self.expect(":", &place)?;
            let kind = self.kind(&place)?;
            params.push(Param { name: param, kind });
            if self.peek() != ")" {
                self.expect(",", &place)?;
            }
        }
        self.expect(")", &place)?;
        self.expect(";", &place)?;
        Ok(Kernel { name, params })
    }

    fn kind(&mut self, place: &str) -> Result<Kind, String> {
        let name = self.next();
        let written = match name.as_str() {
            "In" => false,
            "Out" => true,
            "Array" => return self.array(place),
            _ => return Ok(Kind::Struct(name)),
        };
        let mut element = None;
        if self.peek() == "<" {
            self.at += 1;
            element = Some(self.scalar(place)?);
            self.expect(">", place)?;
        }
        Ok(Kind::Pointers { written, element, array: None })
    }

    /// `<In, 8>`, of `Array<In, 8>`.
    fn array(&mut self, place: &str) -> Result<Kind, String> {
        self.expect("<", place)?;
        let inner = self.kind(place)?;
        self.expect(",", place)?;
        let length = self.number(place)?;
        self.expect(">", place)?;
        match inner {
            Kind::Pointers { written: false, element, array: None } => {
                Ok(Kind::Pointers { written: false, element, array: Some(length) })
            }
            _ => Err(format!("{place}: only an array of `In` can be passed")),
        }
    }

    fn scalar(&mut self, place: &str) -> Result<Scalar, String> {
        let name = self.next();
        Scalar::parse(&name).ok_or_else(|| {
            let known = Scalar::ALL.map(Scalar::rust).join(", ");
            format!("{place}: `{name}` is not one of {known}")
        })
    }

    /// `{ pub a: u32, b: [f32; 8], }`
    fn fields(&mut self, name: &str) -> Result<Struct, String> {
        self.expect("{", &format!("struct `{name}`"))?;
        let mut fields = Vec::new();
        while self.peek() != "}" {
            while self.peek() == "#" {
                self.attribute();
            }
            if self.peek() == "pub" {
                self.at += 1;
                if self.peek() == "(" {
                    while self.next() != ")" {}
                }
            }
            let field = self.next();
            let place = format!("struct `{name}`, field `{field}`");
            self.expect(":", &place)?;
            let (scalar, array) = if self.peek() == "[" {
                self.at += 1;
                let scalar = self.scalar(&place)?;
                self.expect(";", &place)?;
                let length = self.number(&place)?;
                self.expect("]", &place)?;
                (scalar, Some(length))
            } else {
                (self.scalar(&place)?, None)
            };
            fields.push(Field { name: field, scalar, array });
            if self.peek() != "}" {
                self.expect(",", &place)?;
            }
        }
        Ok(Struct { name: name.to_owned(), fields })
    }
}

/// Words and punctuation of a Rust source; comments and literals of text are dropped, so that
/// neither an example nor a message is taken for a declaration.
fn tokens(source: &str) -> Vec<String> {
    let bytes = source.as_bytes();
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b >= 0x80;
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &source[at..];
        if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
        } else if rest.starts_with("/*") {
            at += rest.find("*/").map_or(rest.len(), |end| end + 2);
        } else if let Some(hashes) = raw_string(rest) {
            let close = format!("\"{}", "#".repeat(hashes));
            let body = hashes + 2;
            at += rest[body..].find(&close).map_or(rest.len(), |end| body + end + close.len());
        } else if bytes[at] == b'"' {
            at += 1;
            while at < bytes.len() && bytes[at] != b'"' {
                at += if bytes[at] == b'\\' { 2 } else { 1 };
            }
            at += 1;
        } else if let Some(length) = char_literal(rest) {
            at += length;
        } else if word(bytes[at]) {
            let length = rest.bytes().position(|b| !word(b)).unwrap_or(rest.len());
            tokens.push(rest[..length].to_owned());
            at += length;
        } else {
            if !bytes[at].is_ascii_whitespace() {
                tokens.push((bytes[at] as char).to_string());
            }
            at += 1;
        }
    }
    tokens
}

/// The number of hashes when a raw string starts here.
fn raw_string(rest: &str) -> Option<usize> {
    let tail = rest.strip_prefix('r')?;
    let hashes = tail.bytes().take_while(|&b| b == b'#').count();
    tail[hashes..].starts_with('"').then_some(hashes)
}

/// The length of the character literal that starts here; a lifetime is none.
fn char_literal(rest: &str) -> Option<usize> {
    let tail = rest.strip_prefix('\'')?;
    let mut chars = tail.char_indices();
    let (_, first) = chars.next()?;
    if first == '\\' {
        return tail[2..].find('\'').map(|end| end + 4);
    }
    match chars.next()? {
        (end, '\'') => Some(end + 2),
        _ => None,
    }
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
        for (name, _) in kernel.entries() {
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
            let ty = format!("{}{array}", field.scalar.cuda());
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
        for (name, element) in kernel.entries() {
            let params: Vec<String> = kernel.params.iter().map(|p| cuda_type(p, element)).collect();
            let params = params.join(", ");
            let _ = writeln!(
                text,
                "static_assert(contract::same<decltype({name}), void({params})>, \
                 \"{kernels}: {name}: expected ({params}), as {launchers} declares it\");"
            );
        }
    }
    text
}

fn cuda_type(param: &Param, instance: Option<Scalar>) -> String {
    match &param.kind {
        Kind::Struct(name) => name.clone(),
        Kind::Pointers { written, element, array } => {
            let element = element.or(instance).map_or("void", Scalar::cuda);
            let pointee = if *written { element.to_owned() } else { format!("const {element}") };
            match array {
                Some(n) => format!("Pointers<{pointee}, {n}>"),
                None => format!("{pointee}*"),
            }
        }
    }
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
        let declared = Declarations::parse(LAUNCHERS).unwrap();
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
        assert!(Declarations::parse(text).unwrap().is_empty());
        assert!(!Declarations::parse(LAUNCHERS).unwrap().is_empty());
    }

    #[test]
    fn a_kernel_is_declared_once() {
        let declared =
            Declarations::parse("kernels! { fn f(y: Out<u8>); fn f(y: Out<u8>); }").unwrap();
        let found = check("a.cu", "a.rs", &ptx(&[("f", &[".u64 _"])]), &declared).unwrap_err();
        assert_eq!(found, ["a.rs: kernel `f` is declared twice"]);
    }

    #[test]
    fn layout_follows_c() {
        let source =
            "#[repr(C)] struct D { a: u8, b: u64, c: [u8; 3], d: f32 } kernels! { fn f(d: D); }";
        let declared = Declarations::parse(source).unwrap();
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
        let error = |source| Declarations::parse(source).unwrap_err();
        assert_eq!(
            error("kernels! { fn f(x: In<f8>); }"),
            "kernel `f`, parameter `x`: `f8` is not one of f32, f16, bf16, f64, i64, u64, i32, u32, u8"
        );
        assert_eq!(
            error("kernels! { fn f(d: Dims); }"),
            "kernel `f`, parameter `d`: struct `Dims` is not defined in this file"
        );
        assert_eq!(
            error("struct Dims { n: u32 } kernels! { fn f(d: Dims); }"),
            "kernel `f`, parameter `d`: struct `Dims` is passed to a kernel: it needs #[repr(C)]"
        );
        assert_eq!(error("kernels! { fn f(x: In) }"), "kernel `f`: expected `;`, found `}`");
        assert_eq!(
            error("kernels! { fn f(x: Array<In, N>); }"),
            "kernel `f`, parameter `x`: a length must be a literal number, found `N`"
        );
        assert_eq!(error("kernels! { fn f("), "kernel `f`, parameter `}`: expected `:`, found `}`");
    }

    #[test]
    fn assertions_name_every_type() {
        let declared = Declarations::parse(LAUNCHERS).unwrap();
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
