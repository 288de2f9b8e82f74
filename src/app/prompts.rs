//! `nadir lm prompts`: prompts for pictures of each class, by a language model.

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use clap::Args;

use nadir::io::atomic;
use nadir::pipeline::language::Sampling;
use nadir::pipeline::language::classes;
use nadir::pipeline::language::prompts::{self, PromptSettings, Written};
use nadir::{Error, Result};

use super::lm::Execution;
use super::progress::Progress;
use super::{interrupt, terminal};

/// Write prompts for pictures of each class
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nadir lm prompts --classes data/classes.toml --per-class 50 --temperature 1 -o prompts.jsonl
  nadir lm prompts --classes classes.toml -m models/phi-1_5 --lora run/phi --temperature 0.2 --repetition-penalty 1.1 \\
      --max-new-tokens 256 --max-draws 50 -o prompts.jsonl

classes.toml has a table [[class]] for each, with a name, instructions that the model is given and that are no part of a
prompt, beginnings that are, and named_by, parts of words one of which a prompt holds (data/classes.toml is one for seven
classes). A draw that is empty, that says what the model was told or what another one says, or that does not name its class is
not taken, and there is another. A line of the output has class, label, prompt, what the model was given and the seed:
`nadir lm generate GIVEN --seed SEED` writes it again. A .txt file has the prompts alone.
Exit codes: 0 done, 1 failed, 2 a request that cannot be served as it is, 130 interrupted; then nothing is left.")]
pub struct Prompts {
    /// TOML file with the classes
    #[arg(long, value_name = "FILE")]
    classes: PathBuf,

    #[command(flatten)]
    execution: Execution,

    /// Prompts of each class, no two the same
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50, help_heading = "Prompts")]
    per_class: usize,

    /// Draws for each prompt that is wanted, on average, before a class is given up
    #[arg(long, value_name = "N", default_value_t = 20, help_heading = "Prompts")]
    max_draws: usize,

    /// Tokens of a prompt, at most; a longer one ends with its last whole sentence
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = "Prompts")]
    max_new_tokens: usize,

    /// Seed of each class's first draw; the next have the next seeds
    #[arg(short, long, value_name = "N", default_value_t = 0, help_heading = "Prompts")]
    seed: u64,

    #[command(flatten)]
    sampling: Sampling,

    /// Draws computed at once; they do not depend on it, memory and speed do
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Model")]
    batch: usize,

    /// A .jsonl or a .txt file, which is replaced [default: JSONL on standard output]
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,
}

pub fn run(args: &Prompts) -> anyhow::Result<()> {
    let is = |end: &str| {
        args.output.as_deref().and_then(Path::extension).is_some_and(|found| found == end)
    };
    if let Some(path) = &args.output {
        if !is("jsonl") && !is("txt") {
            let expected = "a file name that ends in .jsonl or .txt";
            return Err(Error::argument("output", path.display(), expected).into());
        }
        let folder = path.parent().filter(|parent| *parent != Path::new(""));
        let folder = folder.unwrap_or(Path::new("."));
        atomic::check_folder(path, folder)?;
        atomic::check_writable(folder)?;
    }
    let classes = classes::open(&args.classes)?;
    let model = args.execution.open()?;
    let settings = PromptSettings {
        per_class: args.per_class,
        max_draws: args.max_draws,
        sampling: args.sampling,
        seed: args.seed,
        max_new_tokens: args.max_new_tokens,
        batch: args.batch,
    };
    let cancel = interrupt::switch();
    let mut progress = Progress::new(args.execution.quiet);
    progress.start(classes.len().saturating_mul(args.per_class));
    let mut shown = 0;
    let written = prompts::write(&model, &classes, &settings, &mut |done| {
        (shown..done).for_each(|_| progress.step());
        shown = done;
        cancel.check()
    })?;
    drop(progress);
    if !args.execution.quiet {
        terminal::say(&summary(&written));
    }
    save(&written, args.output.as_deref(), is("txt"))?;
    Ok(())
}

fn summary(written: &Written) -> String {
    let refused = written.refused.iter().map(|(why, n)| format!("{n} {}", why.name()));
    let refused: Vec<String> = refused.collect();
    let behind = match refused.as_slice() {
        [] => "none refused".to_owned(),
        all => format!("refused: {}", all.join(", ")),
    };
    format!("{} prompts; {behind}", written.prompts.len())
}

fn save(written: &Written, path: Option<&Path>, plain: bool) -> Result<()> {
    let fill = |out: &mut dyn Write| {
        for one in &written.prompts {
            if plain {
                writeln!(out, "{}", one.prompt)?;
                continue;
            }
            let line = serde_json::to_string(one)?;
            writeln!(out, "{line}")?;
        }
        Ok(())
    };
    match path {
        Some(path) => atomic::write(path, fill),
        None => fill(&mut stdout().lock()).map_err(|e| Error::io("standard output", e)),
    }
}
