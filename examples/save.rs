//! Loads a diffusers folder and saves it again: `cargo xtask golden --check` compares both by diffusers.
//!
//!     cargo run --release --example save -- FOLDER COPY --keep plain --dtype bf16

use std::path::PathBuf;

use anyhow::bail;
use clap::Parser;
use nadir::nn::Keep;
use nadir::pipeline::{LoadOptions, TextToImage};
use nadir::tensor::DType;

#[derive(Parser)]
struct Arguments {
    folder: PathBuf,
    copy: PathBuf,
    /// What layers keep of their weights: frozen, plain or trainable.
    #[arg(long, default_value = "frozen")]
    keep: String,
    /// What the networks hold, and the copy's weights are rounded to: f32, bf16 or f16.
    #[arg(long)]
    dtype: Option<String>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let keep = match arguments.keep.as_str() {
        "frozen" => Keep::Frozen,
        "plain" => Keep::Plain,
        "trainable" => Keep::Trainable,
        other => bail!("--keep {other}: one of frozen, plain, trainable"),
    };
    let dtype: Option<DType> = arguments.dtype.as_deref().map(str::parse).transpose()?;
    let options =
        LoadOptions { keep, dtype: dtype.unwrap_or(DType::F32), ..LoadOptions::default() };
    let model = TextToImage::load(&arguments.folder, &options)?;
    model.save(&arguments.folder, None, &arguments.copy, dtype)?;
    Ok(())
}
