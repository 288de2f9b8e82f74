//! Reads the `kernels! { ... }` of a family out of its Rust sources.

use syn::parse::ParseStream;
use syn::{
    Expr, FnArg, ForeignItemFn, GenericArgument, Item, ItemStruct, Lit, Pat, PathArguments, Type,
};

use super::types::{Element, Field, Kernel, Kind, Param, SCALARS, Scalar, Struct};

/// What the files of a family declare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declarations {
    pub(super) kernels: Vec<Kernel>,
    pub(super) structs: Vec<Struct>,
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

    pub(super) fn param_size(&self, param: &Param) -> usize {
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
