//! `nadir convert`: models between folders of diffusers and original checkpoints.

use std::path::{Path, PathBuf};

use clap::Args;

use nadir::Error;
use nadir::io::checkpoint;
use nadir::io::config::Config;
use nadir::pipeline::convert;

use super::args::Original;
use super::model::Model;
use super::terminal;

/// Makes safetensors of a pickle, with the same names.
const SCRIPT: &str = include_str!("../../scripts/pickle_to_safetensors.py");

/// Make a diffusers folder of an original checkpoint, or the other way round
///
/// Tensors keep their bits. What is made is complete or absent.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nadir convert v1-5-pruned.safetensors --out models/sd15
  nadir convert v2-1_768.safetensors --prediction v --out models/sd21
  nadir convert sd_xl_base_1.0.safetensors --out models/sdxl
  nadir convert models/my-sd --out my-sd.safetensors
  nadir convert control_canny.safetensors --out models/canny
  nadir convert models/canny --out control_canny.safetensors
  nadir convert --script > pickle_to_safetensors.py
  python pickle_to_safetensors.py model.ckpt model.safetensors

An original checkpoint has a UNet (model.diffusion_model.*), an autoencoder (first_stage_model.*) and a text encoder
(cond_stage_model.*, two in XL: conditioner.*), or a ControlNet (control_model.*). It has no tokenizer and no configuration: what its
shapes do not tell is as in Stable Diffusion 1.x, 2.x or XL, and a folder that is otherwise cannot be made one. A pickle (.ckpt, .pt, .bin) can run
code when it is loaded and is never read here; the script, which needs PyTorch, loads tensors of it and nothing else.")]
pub struct Convert {
    /// An original checkpoint (.safetensors), or a diffusers folder or `org/name` in the local hub cache
    #[arg(value_name = "MODEL", required_unless_present = "script")]
    model: Option<String>,

    /// Where to: a folder that is not there yet, or a .safetensors file, which is replaced
    #[arg(short, long, value_name = "PATH", required_unless_present = "script")]
    out: Option<PathBuf>,

    #[command(flatten)]
    original: Original,

    /// Weight files of a folder to prefer: `fp16` for `model.fp16.safetensors`
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    variant: Option<String>,

    /// Print the Python that makes safetensors of a pickle, and do nothing else
    #[arg(long, conflicts_with_all = ["model", "out"])]
    script: bool,
}

pub fn run(args: &Convert) -> anyhow::Result<()> {
    let (Some(model), Some(out)) = (&args.model, &args.out) else {
        print!("{SCRIPT}");
        return Ok(());
    };
    let model = Model::find(Some(model))?.with(&args.original);
    if model.folder.is_file() {
        check_names_folder(out)?;
        match checkpoint::is_controlnet(&model.folder)? {
            true => convert::controlnet_to_folder(&model.folder, out)?,
            false => convert::to_folder(&model.folder, &model.supplement, out)?,
        }
    } else {
        if out.extension().is_none_or(|e| e != "safetensors") {
            let expected = "a name that ends in .safetensors, since the model is a folder";
            return Err(Error::argument("out", out.display(), expected).into());
        }
        let variant = args.variant.as_deref();
        match model.folder.join("model_index.json").is_file() || !names_controlnet(&model.folder) {
            true => convert::to_file(&model.folder, variant, out)?,
            false => convert::controlnet_to_file(&model.folder, variant, out)?,
        }
    }
    terminal::say(&format!("wrote {}", out.display()));
    Ok(())
}

/// Whether a folder is a ControlNet's alone.
fn names_controlnet(folder: &Path) -> bool {
    Config::open(folder.join("config.json")).is_ok_and(|config| {
        config
            .value("_class_name")
            .and_then(|class| class.as_str())
            .is_some_and(|class| class.starts_with("ControlNet"))
    })
}

fn check_names_folder(out: &Path) -> nadir::Result<()> {
    if out.extension().is_some_and(|e| e == "safetensors") {
        let expected = "the name of a folder, since the model is a file";
        return Err(Error::argument("out", out.display(), expected));
    }
    Ok(())
}
