//! `nadir train tokenizer`: what language models are trained with.

use std::path::PathBuf;

use clap::Args;

use nadir::Error;
use nadir::data::text::{TextSettings, documents};
use nadir::io::atomic;
use nadir::text::byte_level::{self, TokenizerSettings};

use super::terminal;

/// Train a tokenizer on texts: byte-level BPE, as GPT-2 has it
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nadir train tokenizer --train-data corpus.parquet --vocab-size 8000 -o run/tokenizer
  nadir train tokenizer --train-data captions.jsonl --normalize --document-template \"{class}: {text}\" -o run/tokenizer

A file is lines, or .jsonl (objects with a text, or captions), or .parquet (a column text, or captions). The folder gets
tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer reads.")]
pub struct TrainTokenizer {
    /// File of texts; several may be given
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    train_data: Vec<PathBuf>,

    /// Folder for the tokenizer
    #[arg(short, long = "output-dir", value_name = "FOLDER", alias = "output")]
    output_dir: PathBuf,

    #[command(flatten)]
    tokenizer: TokenizerSettings,

    #[command(flatten)]
    data: TextSettings,
}

pub fn train_tokenizer(args: &TrainTokenizer) -> anyhow::Result<()> {
    let folder = &args.output_dir;
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    atomic::check_writable(folder)?;
    let texts: Vec<String> = documents(&args.train_data, &args.data)?.concat();
    let count = byte_level::train(&texts, &args.tokenizer, folder)?;
    terminal::say(&format!("{} texts, {count} tokens: {}", texts.len(), folder.display()));
    Ok(())
}
