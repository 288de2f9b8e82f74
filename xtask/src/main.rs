//! Chores of the nadir workspace: `cargo xtask --help`.
fn main() {}
