//! `nadir train lm` and `nadir train tokenizer`: language models on texts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use nadir::Error;
use nadir::data::Examples;
use nadir::data::text::{Framing, TextSet, TextSettings, documents};
use nadir::io::atomic;
use nadir::io::config::read_json;
use nadir::tensor::DType;
use nadir::text::byte_level::{self, ByteLevel, TokenizerSettings};
use nadir::train::diffusion::LoraSettings;
use nadir::train::lm::{LmTask, NewDecoder, Prompts};

use super::terminal;
use super::train::{RunArgs, carry_out, check_adapters, prepare};
use super::training_recipe::LmRecipe;

/// Train a causal language model on texts
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nadir train tokenizer --train-data corpus.parquet -o run/tokenizer
  nadir train lm --train-data corpus.parquet -o run/lm --tokenizer run/tokenizer --layers 6 --width 256 \\
      --train-batch-size 32 --max-train-steps 5000 --learning-rate 1e-3 --lr-warmup-steps 100 --validation-split 0.05
  nadir train lm --train-data corpus.parquet -o run/phi --init-from models/phi-1_5 --recipe papers \\
      --lora-rank 16 --lora-alpha 8 --lora-targets linear

A file is lines, or .jsonl (objects with a text, or captions), or .parquet (a column text, or captions); each text is a
document. The folder gets a model that `nadir lm` and transformers read, checkpoint-STEP/, metrics.csv, logs/ for
TensorBoard and report.html. With --lora-rank it gets peft's adapter_model.safetensors and adapter_config.json in place of
a model.")]
pub struct TrainLm {
    /// File of texts; several may be given
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    train_data: Vec<PathBuf>,

    /// Files of texts that are held out, in place of a share of the others
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "validation_split")]
    validation_data: Vec<PathBuf>,

    #[command(flatten)]
    run: RunArgs,

    #[command(flatten)]
    data: TextSettings,

    /// Settings of a published run, where no others are given
    #[arg(long, value_enum)]
    recipe: Option<LmRecipe>,

    /// Begin with the model in this transformers folder
    #[arg(long, value_name = "FOLDER", alias = "model-name-or-path")]
    #[arg(conflicts_with_all = ["tokenizer", "config", "layers", "width", "heads", "context"])]
    #[arg(required_unless_present = "tokenizer")]
    init_from: Option<PathBuf>,

    /// Folder of the tokenizer of a new model
    #[arg(long, value_name = "FOLDER", help_heading = "New model")]
    tokenizer: Option<PathBuf>,

    /// config.json of a new model, in place of a GPT-2
    #[arg(long, value_name = "FILE", help_heading = "New model")]
    #[arg(conflicts_with_all = ["layers", "width", "heads", "context"])]
    config: Option<PathBuf>,

    #[command(flatten)]
    new: NewDecoder,

    /// Share of the tokens before a place that the model sees as random others while it learns
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    #[arg(help_heading = "Training")]
    token_dropout: f64,

    /// Beginnings that are gone on with at every validation, by the likeliest token each time
    #[arg(long, value_name = "TEXT", num_args = 1.., help_heading = "Validation")]
    validation_prompts: Vec<String>,

    /// Numbers that the model is exported in: f32, bf16 or f16 [default: f32]
    #[arg(long, value_name = "TYPE", value_parser = super::args::typed::<DType>)]
    export_dtype: Option<DType>,

    #[command(flatten)]
    lora: LoraSettings,

    /// Begin with the adapters in this peft folder, of the same layers and rank
    #[arg(long, value_name = "FOLDER", requires = "lora_rank", help_heading = "Low-rank adapters")]
    lora_init_from: Option<PathBuf>,
}

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

pub fn train_lm(args: TrainLm) -> anyhow::Result<()> {
    check_adapters(&args.lora, args.init_from.as_deref())?;
    prepare(&args.run)?;
    let settings = &args.run.settings;
    // 1. texts
    let folder = args.init_from.as_deref().or(args.tokenizer.as_deref()).unwrap_or(Path::new(""));
    let tokenizer = Arc::new(ByteLevel::open(folder)?);
    let [start, end] = tokenizer.ends();
    let encode = |text: &str| tokenizer.encode(text);
    let framing = Framing { encode: &encode, start, end };
    let open = |paths: &[PathBuf]| TextSet::open(paths, &args.data, &framing);
    let all = open(&args.train_data)?;
    let (data, held_out) = match settings.validation_split {
        _ if !args.validation_data.is_empty() => (all, Some(open(&args.validation_data)?)),
        0.0 => (all, None),
        share => {
            let (data, held_out) = all.split(share, settings.seed)?;
            (data, Some(held_out))
        }
    };
    terminal::say(&format!("{} tokens to learn from", data.count()));
    // 2. the model
    let prompts = args.validation_prompts.iter().map(|prompt| {
        let tokens = tokenizer.encode(prompt)?;
        Ok((prompt.clone(), [start].into_iter().chain(tokens).collect()))
    });
    let prompts = prompts.collect::<nadir::Result<_>>()?;
    let name = args.train_data[0].display().to_string();
    carry_out(&args.run, "texts", &name, (&data, held_out.as_ref()), |_, compute| {
        let seed = settings.seed;
        let task = match (&args.init_from, &args.config) {
            (Some(folder), _) => LmTask::open(folder, compute)?,
            (None, Some(file)) => LmTask::new(file, read_json(file)?, seed, compute)?,
            (None, None) => {
                let config = args.new.config(tokenizer.vocabulary(), [start, end]);
                LmTask::new(Path::new("the new model"), config, seed, compute)?
            }
        };
        let shape = task.shape();
        if tokenizer.vocabulary() > shape.vocab_size {
            let (expected, found) = (shape.vocab_size, tokenizer.vocabulary());
            let advice = "Tokenizer and model do not belong together.";
            let (expected, found) = (format!("at most {expected} tokens"), found.to_string());
            return Err(Error::file(folder, "vocabulary", expected, found, advice));
        }
        if args.data.block_size > shape.max_position_embeddings {
            let expected =
                format!("at most {}, the model's context", shape.max_position_embeddings);
            return Err(Error::argument("block_size", args.data.block_size, expected));
        }
        let task = task.adapting(&args.lora, args.lora_init_from.as_deref(), seed)?;
        let task = task.exporting(args.export_dtype).beside(ByteLevel::files(folder));
        let tokenizer = tokenizer.clone();
        let decode = Box::new(move |tokens: &[u32]| tokenizer.decode(tokens));
        task.sampling(Prompts { prompts, end, decode }).dropping(args.token_dropout)
    })
}
