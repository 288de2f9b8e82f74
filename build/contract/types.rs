//! What a launcher can pass to a kernel, in Rust and in CUDA.

/// An element type, as Rust and CUDA name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scalar {
    pub(super) rust: &'static str,
    pub(super) cuda: &'static str,
    pub(super) size: usize,
}

const fn scalar(rust: &'static str, cuda: &'static str, size: usize) -> Scalar {
    Scalar { rust, cuda, size }
}

pub(super) const SCALARS: [Scalar; 9] = [
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
pub(super) const FLOATS: &[Scalar] = SCALARS.first_chunk::<3>().expect("there are nine");

/// The element type of a parameter: one type, or what the kernel is instantiated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    Fixed(Scalar),
    T,
    U,
}

/// What a launcher passes in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `In`, `Out<U>`, `Array<In<f32>, N>`: device pointers.
    Pointers { written: bool, element: Element, array: Option<usize> },
    /// A `#[repr(C)]` struct, by value.
    Struct(String),
}

/// One parameter of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Param {
    pub(super) name: String,
    pub(super) kind: Kind,
}

/// A kernel as its launcher declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kernel {
    pub(super) name: String,
    pub(super) params: Vec<Param>,
}

/// One instantiation of a kernel: its name in the PTX, and its parameters' types in C++.
pub(super) struct Instance {
    pub(super) name: String,
    pub(super) types: Vec<String>,
}

impl Kernel {
    pub(super) fn uses(&self, wanted: Element) -> bool {
        let of = |p: &Param| matches!(p.kind, Kind::Pointers { element, .. } if element == wanted);
        self.params.iter().any(of)
    }

    /// `silu` gives `silu_f32`, ...; with `U` beside `T`, `adamw` gives `adamw_f32_f32`, `adamw_f32_f16`, ...
    pub(super) fn instances(&self) -> Vec<Instance> {
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
pub(super) struct Field {
    pub(super) name: String,
    pub(super) scalar: Scalar,
    pub(super) array: Option<usize>,
}

/// A `#[repr(C)]` struct whose fields are scalars or arrays of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Struct {
    pub(super) name: String,
    pub(super) fields: Vec<Field>,
}

impl Struct {
    /// Offset of every field, and the size of all.
    pub(super) fn layout(&self) -> (Vec<usize>, usize) {
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
