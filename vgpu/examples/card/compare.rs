//! Runs the statements on both devices and prints what differs.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write;
use std::sync::Arc;

use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use vgpu::{Arguments, Config, Gpu};

use crate::statement::{
    Format, RECORD, THREADS, all, digest, is_exact, kernel, operands, registers, types,
};

/// Results of a statement that are not the same bits.
#[derive(Default)]
struct Difference {
    threads: usize,
    /// Both are NaN, and their payloads differ.
    nans: usize,
    /// Largest distance of two finite results of one sign, in units in the last place of their type.
    ulps: u64,
    /// Results of different sign or class: finite against infinite or NaN, or flags.
    kinds: usize,
    example: String,
}

/// Compares all statements; writes what the card gives to the file that the command line names, if any.
///
/// # Errors
/// When there is no card, or a device cannot be used at all.
pub fn run() -> Result<(), Box<dyn Error>> {
    let context = CudaContext::new(0)?;
    let name = context.name()?;
    if name.starts_with("vgpu") {
        return Err("the driver found is the virtual one: unset LD_LIBRARY_PATH".into());
    }
    let statements = all();
    println!("{name}; {} statements, {THREADS} threads each\n", statements.len());

    let mut recorded =
        format!("# {name}: made by `cargo run --release -p vgpu --example card FILE`.\n");
    let (mut equal, mut refused) = (0, Vec::new());
    let mut differing = BTreeMap::new();
    for statement in &statements {
        let (ptx, input) = (kernel(statement), operands(statement));
        let found = match on_card(&context, &ptx, &input) {
            Ok(found) => found,
            Err(error) => {
                refused.push(format!("{statement} ({error})"));
                continue;
            }
        };
        if is_exact(statement) {
            writeln!(recorded, "{statement} {:016x}", digest(statement, &found))?;
        }
        let expected = on_virtual(&ptx, &input).map_err(|e| format!("{statement}: {e}"))?;
        match compare(statement, &input, &found, &expected) {
            None => equal += 1,
            Some(difference) => {
                differing.insert(statement.clone(), difference);
            }
        }
    }

    println!("equal in every bit: {equal}\n");
    println!("| differs | threads | NaN payload alone | other class or flag | ulp | example |");
    println!("|---|---|---|---|---|---|");
    for (statement, d) in &differing {
        let Difference { threads, nans, ulps, kinds, example } = d;
        println!("| `{statement}` | {threads} | {nans} | {kinds} | {ulps} | {example} |");
    }
    println!("\nrefused by the card: {}", refused.len());
    for line in &refused {
        println!("- {line}");
    }
    if let Some(file) = std::env::args_os().nth(1) {
        std::fs::write(file, recorded)?;
    }
    Ok(())
}

fn on_card(
    context: &Arc<CudaContext>,
    ptx: &str,
    input: &[u64],
) -> Result<Vec<u64>, Box<dyn Error>> {
    let stream = context.default_stream();
    let function = context.load_module(Ptx::from_src(ptx))?.load_function("k")?;
    let mut data = stream.clone_htod(input)?;
    let config = LaunchConfig {
        grid_dim: (1, 1, 1),
        block_dim: (THREADS as u32, 1, 1),
        shared_mem_bytes: 0,
    };
    let mut launch = stream.launch_builder(&function);
    launch.arg(&mut data);
    // SAFETY: the kernel takes one pointer and works on the record of each thread.
    unsafe { launch.launch(config) }?;
    Ok(stream.clone_dtoh(&data)?)
}

fn on_virtual(ptx: &str, input: &[u64]) -> Result<Vec<u64>, vgpu::Error> {
    let mut gpu = Gpu::new(Config::default())?;
    let function = gpu.load(ptx)?.function("k")?;
    let data = gpu.upload(input)?;
    gpu.launch(&function, [1; 3], [THREADS as u32, 1, 1], 0, &Arguments::new().pointer(data))?;
    gpu.download(data, input.len())
}

fn compare(statement: &str, input: &[u64], found: &[u64], expected: &[u64]) -> Option<Difference> {
    let registers = registers();
    let mut out = Difference::default();
    for thread in 0..THREADS {
        let record = thread * RECORD..(thread + 1) * RECORD;
        let (f, e) = (&found[record.clone()], &expected[record.clone()]);
        if f == e {
            continue;
        }
        out.threads += 1;
        for (i, (&f, &e)) in f.iter().zip(e).enumerate().filter(|(_, (f, e))| f != e) {
            let (name, bits) = registers.get(i).cloned().unwrap_or(("flags".into(), 0));
            let types = types(statement, bits);
            for (format, shift) in types {
                let part = |v: u64| v >> shift & (u64::MAX >> (64 - format.bits));
                match format.distance(part(f), part(e)) {
                    Distance::Nans => out.nans += usize::from(f != e),
                    Distance::Ulps(ulps) => out.ulps = out.ulps.max(ulps),
                    Distance::Kinds => out.kinds += 1,
                }
            }
            out.kinds += usize::from(types.is_empty());
            if out.example.is_empty() {
                let sources: Vec<String> = sources(statement)
                    .filter_map(|source| {
                        let at = registers.iter().position(|(name, _)| *name == source)?;
                        Some(format!("{source}={:x}", input[record.start + at]))
                    })
                    .collect();
                out.example = format!("{}: {name} card {f:x}, virtual {e:x}", sources.join(" "));
            }
        }
    }
    (out.threads > 0).then_some(out)
}

/// The registers that a statement names, the first left out unless it is read as well.
fn sources(statement: &str) -> impl Iterator<Item = String> {
    let words = statement.split(|c: char| !c.is_ascii_alphanumeric() && c != '%');
    words.skip(1).filter_map(|w| w.strip_prefix('%').map(str::to_owned)).take(5)
}

enum Distance {
    Nans,
    Ulps(u64),
    Kinds,
}

impl Format {
    fn distance(self, a: u64, b: u64) -> Distance {
        let sign = 1 << (self.bits - 1);
        let infinity = (sign - 1) >> self.fraction << self.fraction;
        let (x, y) = (a & (sign - 1), b & (sign - 1));
        match (x > infinity, y > infinity) {
            (true, true) => Distance::Nans,
            (false, false) if (a ^ b) & sign == 0 && (x == infinity) == (y == infinity) => {
                Distance::Ulps(x.abs_diff(y))
            }
            _ => Distance::Kinds,
        }
    }
}
