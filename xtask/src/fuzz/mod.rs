//! `cargo xtask fuzz`: damaged files of every kind against the real programs, each run under limits.
//!
//! A case is a file that is damaged by numbers drawn from the seed and the case's own number, and one run of the
//! program that reads it. It may succeed, or refuse the file: exit code 2, with the file and what is wrong in it. It
//! may not panic, be ended by a signal, or take more than 1.5 times the memory that undamaged files take.

mod bench;
mod limits;
mod mutate;
mod png;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use bench::{Bench, KINDS, Kind};
use limits::Outcome;
use mutate::Rng;

/// Time between two reports.
const REPORT: Duration = Duration::from_secs(300);

/// A process begins with the most memory that its parent, this one, had: less than this says nothing.
const MEASURABLE: u64 = 32 << 20;

/// What became of the cases of one kind.
#[derive(Default)]
struct Count {
    /// Most memory of an undamaged run, and of a damaged one, in bytes.
    usual: u64,
    most: u64,
    succeeded: u64,
    refused: u64,
    faults: u64,
}

/// Runs cases for some minutes, or one alone.
pub fn run(args: &[String]) -> Result<()> {
    let (mut minutes, mut seed, mut only) = (1, 0, None);
    for pair in args.chunks(2) {
        let [flag, value] = pair else { bail!("`{}` takes a number", pair[0]) };
        let number: u64 = value.parse().with_context(|| format!("{flag} {value}"))?;
        match flag.as_str() {
            "--minutes" => minutes = number,
            "--seed" => seed = number,
            "--case" => only = Some(number),
            _ => bail!("`fuzz` takes --minutes, --seed and --case, found `{flag}`"),
        }
    }

    let bench = Bench::new()?;
    let mut counts = KINDS.map(|_| Count::default());
    for (kind, count) in KINDS.into_iter().zip(&mut counts) {
        for name in Bench::names(kind) {
            let file = bench.original(name)?;
            let outcome = bench.read(kind, &file)?;
            // Kernels run on memory that is not what they were written for: a check may stop one.
            let fine = outcome.code == Some(0) || kind == Kind::Ptx && outcome.code == Some(2);
            ensure!(fine, "{} undamaged: {}", file.name, outcome.stderr);
            count.usual = count.usual.max(outcome.peak).max(MEASURABLE);
        }
    }

    let (end, mut said) = (Instant::now() + Duration::from_secs(60 * minutes), Instant::now());
    for case in only.map_or(0..u64::MAX, |case| case..case + 1) {
        if only.is_none() && Instant::now() >= end {
            break;
        }
        let at = (case % KINDS.len() as u64) as usize;
        let (kind, count) = (KINDS[at], &mut counts[at]);
        let mut rng = Rng::of_case(seed, case);
        let names = Bench::names(kind);
        let name: &&str = rng.pick(&names);
        let mut file = bench.original(name)?;
        kind.damage(&mut rng, &mut file);
        let outcome = bench.read(kind, &file)?;
        count.most = count.most.max(outcome.peak);
        match fault(&outcome, kind, count.usual, &file.name) {
            Some(fault) => {
                count.faults += 1;
                bench.keep(case, &file, &outcome)?;
                let said: String = outcome.stderr.trim().chars().take(400).collect();
                println!("case {case} ({}): {fault}: {said}", file.name);
            }
            None if outcome.code == Some(0) => count.succeeded += 1,
            None => count.refused += 1,
        }
        if only.is_some() {
            println!("{}", outcome.stderr);
        }
        if said.elapsed() > REPORT {
            said = Instant::now();
            print!("{}", report(&counts));
        }
    }
    print!("{}", report(&counts));
    let faults: u64 = counts.iter().map(|count| count.faults).sum();
    ensure!(faults == 0, "{faults} faults: the files are in {}", bench.faults().display());
    Ok(())
}

/// What a run did that no file may make it do.
fn fault(outcome: &Outcome, kind: Kind, usual: u64, file: &str) -> Option<String> {
    let Outcome { code, signal, peak, stderr } = outcome;
    if let Some(signal) = signal {
        return Some(format!("signal {signal}"));
    }
    if *peak > usual + usual / 2 {
        return Some(format!("{} MiB where {} are usual", peak >> 20, usual >> 20));
    }
    let named = kind.names(file).iter().any(|name| stderr.contains(name));
    match code {
        Some(0) => None,
        // Weights of any finite value may be a model's: that the numbers overflow is no fault of the file's form.
        Some(1) if stderr.contains("overflowed") || stderr.contains("are not finite") => None,
        Some(2) if named && !stderr.contains("panicked") => None,
        Some(2) => Some("it does not say where".to_owned()),
        _ => Some(format!("exit code {code:?}")),
    }
}

/// A line for each kind.
fn report(counts: &[Count]) -> String {
    let mut text = String::new();
    for (kind, count) in KINDS.iter().zip(counts) {
        let Count { usual, most, succeeded, refused, faults } = count;
        let cases = succeeded + refused + faults;
        let _ = writeln!(
            text,
            "{kind:?}: {cases} cases, {succeeded} succeeded, {refused} refused, {faults} faults; \
             at most {} MiB, undamaged {} MiB",
            most >> 20,
            usual >> 20
        );
    }
    text
}
