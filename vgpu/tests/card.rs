//! The virtual device gives, bit for bit, what a real card gave for every exact form of the catalogue.
#![cfg(vgpu_supported)]

#[path = "../examples/card/statement.rs"]
#[allow(dead_code, reason = "the example uses the rest")]
mod statement;

use statement::{THREADS, digest, kernel, operands};
use vgpu::{Arguments, Config, Gpu};

#[test]
fn exact_instructions_are_a_cards() {
    let mut wrong = Vec::new();
    let lines = include_str!("golden/h100.txt").lines().filter(|line| !line.starts_with('#'));
    let mut count = 0;
    for line in lines {
        let (statement, expected) = line.rsplit_once(' ').expect("a statement and its digest");
        let input = operands(statement);
        let mut gpu = Gpu::new(Config::default()).unwrap();
        let function = gpu.load(&kernel(statement)).unwrap().function("k").unwrap();
        let data = gpu.upload(&input).unwrap();
        let arguments = Arguments::new().pointer(data);
        gpu.launch(&function, [1; 3], [THREADS as u32, 1, 1], 0, &arguments).unwrap();
        let output = gpu.download(data, input.len()).unwrap();
        if format!("{:016x}", digest(statement, &output)) != expected {
            wrong.push(statement);
        }
        count += 1;
    }
    assert!(wrong.is_empty(), "not as the card: {wrong:#?}");
    assert!(count > 600, "{count} statements alone were recorded");
}
