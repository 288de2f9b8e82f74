//! Damaged PTX is refused or runs into a check; it never takes the process along.

mod common;

use common::Rng;
use vgpu::{Arguments, Config, Error, Gpu};

const SAMPLE: &str = include_str!("golden/sample.ptx");

/// Words and marks, so that a swap moves whole tokens.
fn tokens(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let word = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || "_$%.".contains(c)))
            .unwrap_or(rest.len())
            .max(1);
        let (token, tail) = rest.split_at(word);
        out.push(token);
        rest = tail;
    }
    out
}

fn mutate(rng: &mut Rng, parts: &[&str]) -> String {
    let mut bytes = SAMPLE.as_bytes().to_vec();
    match rng.below(4) {
        0 => bytes.truncate(rng.below(bytes.len())),
        1 => {
            let mut swapped = parts.to_vec();
            for _ in 0..1 + rng.below(3) {
                swapped.swap(rng.below(parts.len()), rng.below(parts.len()));
            }
            return swapped.concat();
        }
        2 => {
            for _ in 0..1 + rng.below(4) {
                let at = rng.below(bytes.len());
                bytes[at] = rng.bits() as u8;
            }
        }
        _ => {
            // A number becomes another one.
            let digits: Vec<usize> =
                (0..bytes.len()).filter(|i| bytes[*i].is_ascii_digit()).collect();
            for _ in 0..1 + rng.below(3) {
                bytes[digits[rng.below(digits.len())]] = b'0' + rng.below(10) as u8;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn the_sample_is_fine() {
    let mut gpu = Gpu::new(Config::default()).unwrap();
    assert!(!gpu.load(SAMPLE).unwrap_or_else(|e| panic!("{e}")).names().is_empty());
}

#[test]
fn ten_thousand_damaged_files() {
    let parts = tokens(SAMPLE);
    let mut rng = Rng(42);
    let (mut refused, mut stopped, mut ran) = (0, 0, 0);
    for _ in 0..10_000 {
        let text = mutate(&mut rng, &parts);
        let mut gpu = Gpu::new(Config { budget: 3_000, threads: 1, ..Config::default() }).unwrap();
        let module = match gpu.load(&text) {
            Ok(module) => module,
            Err(Error::Syntax(e)) => {
                assert!(e.line >= 1 && !e.message.is_empty());
                refused += 1;
                continue;
            }
            Err(Error::OutOfMemory) => continue,
            Err(e) => panic!("{e}"),
        };
        // One kernel of what was accepted, on memory that is there.
        let Some(name) = module.names().first().map(|n| n.to_string()) else { continue };
        let kernel = module.function(&name).unwrap();
        let data = gpu.upload(&[0u32; 256]).unwrap();
        let mut args = Arguments::new();
        while args.len() + 8 <= kernel.argument_bytes() {
            args = args.pointer(data);
        }
        while args.len() < kernel.argument_bytes() {
            args = args.bytes(&[1]);
        }
        if kernel.static_shared() > 1 << 20 || kernel.argument_bytes() > 1 << 12 {
            continue;
        }
        match gpu.launch(&kernel, [1; 3], [40, 1, 1], 0, &args) {
            Ok(_) => ran += 1,
            Err(_) => stopped += 1,
        }
    }
    println!("{refused} refused, {stopped} stopped by a check, {ran} ran");
    assert!(refused > 1000 && stopped + ran > 100);
}

#[test]
fn what_is_refused_names_the_line() {
    let cases = [
        ("wgmma.fence.sync.aligned;", "'wgmma'"),
        ("add.frob.u32 %r1, %r1, %r1;", ".frob"),
        ("add.f32 %r1, %d1, %r1;", "64 bits"),
        ("bra nowhere;", "nowhere"),
        ("ld.global.u32 %r1, [%q];", "'%q'"),
        ("call other, ();", "'other'"),
        ("mov.u32 %r1, %envreg3;", "%envreg3"),
        ("@%r1 exit;", "predicate"),
    ];
    for (statement, part) in cases {
        let text = format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.entry k() {{\n.reg .b32 %r<4>; .reg .b64 %d<4>;\n{statement}\nret;\n}}"
        );
        let mut gpu = Gpu::new(Config::default()).unwrap();
        match gpu.load(&text) {
            Err(Error::Syntax(e)) => {
                assert!(e.line == 6 && e.message.contains(part), "{statement}: {e}")
            }
            Err(e) => panic!("{statement}: {e}"),
            Ok(_) => panic!("{statement} was accepted"),
        }
    }
}
