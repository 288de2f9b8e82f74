//! `nadir corpus`: papers, pages and notes as texts to learn from.

use std::io::{Write, stdout};
use std::path::PathBuf;

use clap::Args;

use nadir::Error;
use nadir::data::corpus::{self, CorpusSettings, Measure, Report};
use nadir::text::byte_level::ByteLevel;

use super::progress::Progress;
use super::{interrupt, limits, terminal};

/// Make a corpus of papers, pages and notes: cleaned, each once, in chunks
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nadir corpus papers/ --out corpus.parquet
  nadir corpus papers/ notes.md abstracts.jsonl --text-field abstract --out corpus.parquet --skip-unreadable
  nadir corpus papers/ --out corpus.parquet --tokenizer models/phi-1_5 --chunk-tokens 255
  nadir train lm --train-data corpus.parquet -o run/phi --init-from models/phi-1_5 --recipe papers --lora-rank 16

Read are .txt, .md, .html, .jsonl and .pdf, in folders by their names. corpus.parquet has a row for each chunk: text, source,
chunk (its number there). Of documents that are the same, or nearly, the first stays. Beside it lie corpus.report.json and
corpus.dropped.csv, which say what was dropped and why.
Exit codes: 0 done, 1 failed, 2 a request that cannot be served as it is, 130 interrupted; then nothing is left.")]
pub struct Corpus {
    /// Files, and folders of them
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,

    /// The corpus: a .parquet file
    #[arg(short, long, value_name = "FILE", alias = "output")]
    out: PathBuf,

    /// Replace a corpus that is there
    #[arg(long)]
    overwrite: bool,

    #[command(flatten)]
    settings: CorpusSettings,

    /// Tokens of a chunk, at most, in place of words
    #[arg(long, value_name = "N", help_heading = "Chunks", requires = "tokenizer")]
    #[arg(conflicts_with = "chunk_words")]
    chunk_tokens: Option<usize>,

    /// Folder of the model or tokenizer whose tokens those are
    #[arg(long, value_name = "FOLDER", help_heading = "Chunks", requires = "chunk_tokens")]
    tokenizer: Option<PathBuf>,

    /// CPU threads [default: all]; nothing depends on them but speed
    #[arg(short, long, value_name = "N", allow_negative_numbers = true)]
    threads: Option<usize>,

    /// Errors only
    #[arg(short, long)]
    quiet: bool,
}

pub fn run(args: &Corpus) -> anyhow::Result<()> {
    limits::set_threads(args.threads)?;
    if args.out.extension().is_none_or(|end| end != "parquet") {
        let expected = "a file name that ends in .parquet";
        return Err(Error::argument("out", args.out.display(), expected).into());
    }
    if args.chunk_tokens == Some(0) {
        return Err(Error::argument("chunk_tokens", 0, "at least 1").into());
    }
    let tokenizer = args.tokenizer.as_deref().map(ByteLevel::open).transpose()?;
    let length = |text: &str| match &tokenizer {
        Some(tokenizer) => Ok(tokenizer.encode(text)?.len()),
        None => Ok(0),
    };
    let measure = args.chunk_tokens.map(|limit| Measure { limit, length: &length });
    let cancel = interrupt::switch();
    let mut progress = Progress::new(args.quiet);
    let mut shown = 0;
    let watch = &mut |done: usize, all: usize| {
        progress.start(all);
        (shown..done).for_each(|_| progress.step());
        shown = done.max(shown);
        cancel.check()
    };
    let report =
        corpus::build(&args.paths, &args.out, &args.settings, measure, args.overwrite, watch)?;
    drop(progress);
    if !args.quiet {
        let table = terminal::printable_text(&table(&report));
        write!(stdout(), "{table}").map_err(|e| Error::io("standard output", e))?;
        let [json, csv] = Report::beside(&args.out);
        terminal::say(&format!(
            "{}; what was dropped: {}, {}",
            args.out.display(),
            json.display(),
            csv.display()
        ));
    }
    Ok(())
}

fn table(report: &Report) -> String {
    let mut rows = vec![("files", report.files)];
    if report.other_files > 0 {
        rows.push(("other files, left alone", report.other_files));
    }
    rows.push(("documents", report.documents));
    let counts = report.counts();
    let dropped: Vec<_> =
        counts.iter().map(|(name, n)| (format!("  dropped: {name}"), *n)).collect();
    rows.extend(dropped.iter().map(|(name, n)| (name.as_str(), *n)));
    rows.extend([("  kept", report.kept), ("chunks", report.chunks), ("words", report.words)]);
    rows.iter().map(|(name, n)| format!("{name:<28}{n:>10}\n")).collect()
}
