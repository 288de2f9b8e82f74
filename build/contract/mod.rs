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

mod assertions;
mod declarations;
mod entries;
mod types;

pub use assertions::assertions;
pub use declarations::Declarations;
pub use entries::check;

#[cfg(test)]
mod tests {
    use std::fmt::Write;

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
