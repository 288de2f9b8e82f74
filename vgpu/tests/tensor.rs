//! Every form of `mma.sync`, its fragments packed by other projects' maps (golden/fragments.py, golden/cute.py),
//! against products in double precision, and every form of `ldmatrix` and `stmatrix` against CuTe's layouts.
#![cfg(vgpu_supported)]

mod common;

use std::fmt::Write;

use common::Rng;
use serde_json::Value;
use vgpu::{Arguments, Config, Gpu};

/// Elements of a matrix that a lane's values are: `[lane][value] -> (row, column)`.
type Map = Vec<Vec<(usize, usize)>>;

/// Where the maps come from: fragments.txt and cute.json were made from different projects.
#[derive(Clone, Copy, Debug)]
enum Source {
    TensorLayouts,
    Cute,
}

fn map(source: Source, name: &str, matrix: &str) -> Map {
    let out = match source {
        Source::TensorLayouts => tensor_layouts_map(name, matrix),
        Source::Cute => {
            let rows = if matrix == "B" { 8 } else { 16 };
            let positions = cute(["mma", name, matrix]).into_iter();
            positions.map(|lane| lane.iter().map(|p| (p % rows, p / rows)).collect()).collect()
        }
    };
    assert!(out.len() == 32 && !out[31].is_empty(), "no map for {name} {matrix}");
    out
}

fn tensor_layouts_map(name: &str, matrix: &str) -> Map {
    let mut out = vec![Vec::new(); 32];
    for line in include_str!("golden/fragments.txt").lines() {
        if let Some(rest) = line.strip_prefix(&format!("{name} {matrix} ")) {
            let n: Vec<usize> = rest.split(' ').map(|w| w.parse().unwrap()).collect();
            assert_eq!(out[n[0]].len(), n[1]);
            out[n[0]].push((n[2], n[3]));
        }
    }
    out
}

/// A table of cute.json: `[lane][value] -> position`.
fn cute(path: [&str; 3]) -> Vec<Vec<usize>> {
    let golden: Value = serde_json::from_str(include_str!("golden/cute.json")).unwrap();
    let lanes = golden[path[0]][path[1]][path[2]].as_array().unwrap();
    let position = |v: &Value| v.as_u64().unwrap() as usize;
    lanes.iter().map(|lane| lane.as_array().unwrap().iter().map(position).collect()).collect()
}

/// A random element: its bits and its value. Small integers, so that all sums are exact everywhere.
fn element(rng: &mut Rng, ty: &str) -> (u32, f64) {
    let value = rng.below(17) as i32 - 8;
    let single = (value as f32).to_bits();
    match ty {
        // Rebasing the exponent and cutting the mantissa is exact for so few bits.
        "f16" if value == 0 => (0, 0.0),
        "f16" => (
            (single >> 16 & 0x8000) | ((single >> 23 & 0xff) - 112) << 10 | (single >> 13 & 0x3ff),
            value as f64,
        ),
        "bf16" => (single >> 16, value as f64),
        "tf32" => (single, value as f64),
        "u8" => (value.unsigned_abs(), value.abs() as f64),
        _ => (value as u8 as u32, value as f64),
    }
}

fn half_to_f64(h: u32) -> f64 {
    let (exponent, mantissa) = ((h >> 10 & 31) as i32, (h & 0x3ff) as f64);
    let magnitude = if exponent == 0 {
        mantissa * 2f64.powi(-24)
    } else {
        (1024.0 + mantissa) * 2f64.powi(exponent - 25)
    };
    if h & 0x8000 != 0 { -magnitude } else { magnitude }
}

fn check(shape: &str, a_type: &str, b_type: &str, sums: &str) {
    for source in [Source::TensorLayouts, Source::Cute] {
        check_maps(source, shape, a_type, b_type, sums);
    }
}

fn check_maps(source: Source, shape: &str, a_type: &str, b_type: &str, sums: &str) {
    let k: usize = shape.split('k').nth(1).unwrap().parse().unwrap();
    let name = format!("{shape} {}", if a_type == "u8" { "s8" } else { a_type });
    let (maps_a, maps_b, maps_c) =
        (map(source, &name, "A"), map(source, &name, "B"), map(source, &name, "C"));
    let bits = match a_type {
        "f16" | "bf16" => 16,
        "tf32" => 32,
        _ => 8,
    };
    let each = 32 / bits;
    let (na, nb) = (16 * k / 32 / each, 8 * k / 32 / each);
    let nc = if sums == "f16" { 2 } else { 4 };
    let stride = na + nb + 2 * nc;

    let regs = |from: usize, n: usize| {
        (from..from + n).map(|r| format!("%r{r}")).collect::<Vec<_>>().join(", ")
    };
    let mut ptx = String::from(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 data) {\n\
         .reg .b32 %r<32>; .reg .b64 %p, %q; .reg .b32 %t;\nld.param.u64 %p, [data]; mov.u32 %t, %tid.x;\n",
    );
    let _ = writeln!(ptx, "mul.wide.u32 %q, %t, {}; add.u64 %p, %p, %q;", stride * 4);
    for r in 0..na + nb + nc {
        let _ = writeln!(ptx, "ld.global.u32 %r{r}, [%p+{}];", r * 4);
    }
    let _ = writeln!(
        ptx,
        "mma.sync.aligned.{shape}.row.col.{sums}.{a_type}.{b_type}.{sums} {{{}}}, {{{}}}, {{{}}}, {{{}}};",
        regs(na + nb + nc, nc),
        regs(0, na),
        regs(na, nb),
        regs(na + nb, nc)
    );
    for r in na + nb + nc..stride {
        let _ = writeln!(ptx, "st.global.u32 [%p+{}], %r{r};", r * 4);
    }
    ptx += "ret;\n}\n";

    let mut rng = Rng(k as u64);
    let (mut a, mut b, mut c) = (vec![[0f64; 32]; 16], vec![[0f64; 32]; 8], [[0f64; 8]; 16]);
    let mut words = vec![0u32; 32 * stride];
    for lane in 0..32 {
        let row = &mut words[lane * stride..][..stride];
        for (v, (m, i)) in maps_a[lane].iter().enumerate() {
            let (bits_of, value) = element(&mut rng, a_type);
            row[v / each] |= bits_of << (v % each * bits);
            a[*m][*i] = value;
        }
        for (v, (n, i)) in maps_b[lane].iter().enumerate() {
            let (bits_of, value) = element(&mut rng, b_type);
            row[na + v / each] |= bits_of << (v % each * bits);
            b[*n][*i] = value;
        }
        for (v, (m, n)) in maps_c[lane].iter().enumerate() {
            let (half, value) = element(&mut rng, "f16");
            c[*m][*n] = value;
            match sums {
                "f16" => row[na + nb + v / 2] |= half << (v % 2 * 16),
                "s32" => row[na + nb + v] = value as i32 as u32,
                _ => row[na + nb + v] = (value as f32).to_bits(),
            }
        }
    }
    let mut gpu = Gpu::new(Config::default()).unwrap();
    let kernel = gpu.load(&ptx).unwrap_or_else(|e| panic!("{e}\n{ptx}")).function("k").unwrap();
    let data = gpu.upload(&words).unwrap();
    gpu.launch(&kernel, [1; 3], [32, 1, 1], 0, &Arguments::new().pointer(data))
        .unwrap_or_else(|e| panic!("{e}"));
    let out: Vec<u32> = gpu.download(data, words.len()).unwrap();
    for lane in 0..32 {
        for (v, (m, n)) in maps_c[lane].iter().enumerate() {
            let at = lane * stride + na + nb + nc;
            let found = match sums {
                "f16" => half_to_f64(out[at + v / 2] >> (v % 2 * 16) & 0xffff),
                "s32" => out[at + v] as i32 as f64,
                _ => f32::from_bits(out[at + v]) as f64,
            };
            let exact = c[*m][*n] + (0..k).map(|i| a[*m][i] * b[*n][i]).sum::<f64>();
            // Whole numbers: exact in single precision, and with at most 16 products up to 64 in halves, too.
            assert_eq!(
                found, exact,
                "{source:?} {shape} {a_type} {b_type} {sums}: row {m}, column {n}"
            );
        }
    }
}

#[test]
fn halves() {
    for shape in ["m16n8k8", "m16n8k16"] {
        check(shape, "f16", "f16", "f32");
        check(shape, "f16", "f16", "f16");
        check(shape, "bf16", "bf16", "f32");
    }
}

#[test]
fn singles() {
    for shape in ["m16n8k4", "m16n8k8"] {
        check(shape, "tf32", "tf32", "f32");
    }
}

#[test]
fn bytes() {
    for shape in ["m16n8k16", "m16n8k32"] {
        for a in ["s8", "u8"] {
            for b in ["s8", "u8"] {
                check(shape, a, b, "s32");
            }
        }
    }
}

/// Moves matrices between shared memory and registers. Each lane stores its values after the move at
/// `[lane * 4]` words.
fn move_matrices(body: &str, input: &[u32]) -> Vec<u32> {
    let ptx = format!(
        ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 data) {{\n\
         .reg .b32 %r<4>, %t, %o, %s, %f; .reg .b64 %p, %q; .shared .align 16 .b8 tile[512];\n\
         ld.param.u64 %p, [data]; mov.u32 %t, %tid.x; mul.wide.u32 %q, %t, 16; add.u64 %q, %p, %q;\n\
         mul.lo.u32 %o, %t, 16; mov.u32 %s, tile; add.u32 %f, %s, %o;\n\
         ld.global.v4.u32 {{%r0, %r1, %r2, %r3}}, [%q];\n{body}\n\
         st.global.v4.u32 [%q], {{%r0, %r1, %r2, %r3}};\nret;\n}}"
    );
    let mut gpu = Gpu::new(Config::default()).unwrap();
    let kernel = gpu.load(&ptx).unwrap_or_else(|e| panic!("{e}\n{ptx}")).function("k").unwrap();
    let data = gpu.upload(input).unwrap();
    gpu.launch(&kernel, [1; 3], [32, 1, 1], 0, &Arguments::new().pointer(data))
        .unwrap_or_else(|e| panic!("{e}"));
    gpu.download(data, input.len()).unwrap()
}

#[test]
fn matrices_of_shared_memory() {
    // Element i of the matrices is the number i + 1: two elements a word.
    let elements: Vec<u32> = (0..128).map(|i| (2 * i + 1) | (2 * i + 2) << 16).collect();
    let fill = "st.shared.v4.u32 [%f], {%r0, %r1, %r2, %r3}; bar.warp.sync 0xffffffff;";
    let drain = "bar.warp.sync 0xffffffff; ld.shared.v4.u32 {%r0, %r1, %r2, %r3}, [%f];";
    for (count, registers) in [(1, "%r0"), (2, "%r0, %r1"), (4, "%r0, %r1, %r2, %r3")] {
        for trans in ["", ".trans"] {
            let name = format!("x{count}{trans}");
            let (from, to) =
                (cute(["ldmatrix", &name, "source"]), cute(["ldmatrix", &name, "destination"]));
            // A lane's address is where its row begins; its row are the next 8 elements. Lanes that the
            // layout gives no row of their own point at one again.
            for (lane, row) in from.iter().enumerate() {
                assert_eq!(row[0], lane % (8 * count) * 8, "{name}: the row of lane {lane}");
            }
            let address = format!("rem.u32 %o, %t, {}; mad.lo.u32 %f, %o, 16, %s;", 8 * count);
            let form = format!("sync.aligned.m8n8.{name}.shared.b16");
            let loaded = move_matrices(
                &format!("{fill}\n{address}\nldmatrix.{form} {{{registers}}}, [%f];"),
                &elements,
            );
            let mut packed = vec![0u32; 128];
            for (lane, values) in to.iter().enumerate() {
                for (v, position) in values.iter().enumerate() {
                    let word = lane * 4 + v / 2;
                    let found = loaded[word] >> (v % 2 * 16) & 0xffff;
                    assert_eq!(found as usize, position + 1, "ldmatrix {name}: lane {lane}, {v}");
                    packed[word] |= (*position as u32 + 1) << (v % 2 * 16);
                }
            }
            // The store is the load's inverse.
            let zero = "{ .reg .b32 %z; mov.u32 %z, 0; st.shared.v4.u32 [%f], {%z, %z, %z, %z}; }";
            let stored = move_matrices(
                &format!(
                    "{zero} bar.warp.sync 0xffffffff;\nmov.u32 %t, %f; {{ .reg .b32 %i; mov.u32 %i, %tid.x; \
                     rem.u32 %o, %i, {}; }} mad.lo.u32 %f, %o, 16, %s;\n\
                     stmatrix.{form} [%f], {{{registers}}};\nmov.u32 %f, %t; {drain}",
                    8 * count
                ),
                &packed,
            );
            assert_eq!(stored[..32 * count], elements[..32 * count], "stmatrix {name}");
        }
    }
}
