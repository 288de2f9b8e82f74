//! The command line: arguments, what they mean together, and what is shown while they are carried out.

mod args;
mod bench;
mod canvas;
mod classify;
mod clip_score;
mod convert;
mod corpus;
mod data;
mod deadline;
mod destination;
mod doctor;
mod draw;
mod evaluate;
mod generate;
mod interrupt;
mod limits;
mod lm;
mod manifest;
mod metrics;
mod model;
mod profile;
mod progress;
mod prompts;
mod recipe;
mod replay;
mod scene;
mod segment;
mod serve;
mod similarity;
mod super_resolve;
mod synthesize;
mod terminal;
mod train;
mod train_lm;
mod train_segment;
mod training_recipe;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command};
use nadir::Error;

/// A request that cannot be served as it is.
const USAGE: u8 = 2;

/// What Rust programs end with after a panic.
const BUG: u8 = 101;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let args = args::dashed(std::env::args_os());
    let cli = Cli::parse_from(training_recipe::expanded(Cli::command(), args));
    // Parsers of the library catch panics of their own, which are no more than files that they do not like; what arrives here
    // is nadir's.
    let shown = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !nadir::io::is_parsing() {
            shown(panic);
        }
    }));
    match catch_unwind(AssertUnwindSafe(|| run(cli.command))) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            let code = exit_code(&error);
            match error.downcast_ref::<Error>() {
                Some(Error::Interrupted) => terminal::say(&format!("interrupted: {error}")),
                _ => terminal::say(&format!("error: {}", in_our_words(&error))),
            }
            ExitCode::from(code)
        }
        Err(_) => {
            let version = env!("CARGO_PKG_VERSION");
            terminal::say(&format!(
                "This is a bug in nadir {version}: please report it, with the command line."
            ));
            ExitCode::from(BUG)
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    nadir::cpu::simd::choose()?;
    // Those that keep nothing when they are interrupted just end.
    if !matches!(command, Command::Doctor(_) | Command::Data(_)) {
        interrupt::listen()?;
    }
    match command {
        Command::Generate(args) => generate::run(args)?,
        Command::Replay(args) => replay::run(args)?,
        Command::Convert(args) => convert::run(&args)?,
        Command::Data(command) => data::run(command)?,
        Command::Corpus(args) => corpus::run(&args)?,
        Command::Serve(args) => serve::run(&args)?,
        Command::Synthesize(args) => synthesize::run(*args)?,
        Command::Classify(args) => classify::run(&args)?,
        Command::Scene(args) => canvas::run(*args)?,
        Command::Segment(args) => segment::run(&args)?,
        Command::SuperResolve(args) => super_resolve::run(&args)?,
        Command::Evaluate(command) => evaluate::run(command)?,
        Command::Train(args) => train::run(args)?,
        Command::Lm(command) => lm::run(command)?,
        Command::Metrics(command) => metrics::run(command)?,
        Command::Bench(command) => bench::run(command)?,
        Command::Profile(args) => profile::run(args)?,
        Command::Doctor(args) => return Ok(doctor::run(&args)),
    }
    Ok(ExitCode::SUCCESS)
}

/// An error as the command line has it: the library's fields are flags here.
fn in_our_words(error: &anyhow::Error) -> String {
    match error.downcast_ref::<Error>() {
        Some(Error::Argument { name, found, expected }) => {
            format!("{}: {found} is not possible: {expected}", args::flag(name))
        }
        _ => error.to_string(),
    }
}

/// 2 where the user can do something about it, 130 after Ctrl-C, likewise after other signals; otherwise 1.
fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Error>() {
        Some(Error::Interrupted) => interrupt::exit_code(),
        Some(
            Error::Argument { .. }
            | Error::Cuda(_)
            | Error::DeviceLost { .. }
            | Error::File { .. }
            | Error::Io { .. }
            | Error::NoKernel { .. }
            | Error::OutOfMemory { .. }
            | Error::Weights(_),
        ) => USAGE,
        _ => 1,
    }
}
