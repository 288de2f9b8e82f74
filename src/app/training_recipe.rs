//! `nadir train ... --recipe NAME`: the flags that a name stands for, put behind those that were given.

use std::ffi::OsString;

use clap::parser::ValueSource;
use clap::{ArgMatches, Command};

/// Settings of published runs of `nadir train diffusion`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DiffusionRecipe {
    /// Of "Exploring diffusion models for realistic satellite imagery", which fine-tunes Stable Diffusion 1.5 on RSICD:
    /// 224x224, four times a batch of 1, gradient checkpointing, flips, rate 1e-6, averages, 3,500 steps; it ran in 16 bits
    /// (--mixed-precision fp16), here in f32
    #[value(name = "rsicd-sd15")]
    RsicdSd15,
}

/// Those of `nadir train classify`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ClassifyRecipe {
    /// Of the same work: batches of 8 at 512x512, rate 1e-3, flips, brightness and contrast by 0.2, a tenth held out (and
    /// not augmented), at most 35 epochs, ended by 5 without a lower loss, seed 42
    Downstream,
}

/// Those of `nadir train segment`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SegmentRecipe {
    /// Of the same work's classifier, whose dependencies name segmentation too: batches of 8, rate 1e-3, flips, a tenth held
    /// out, at most 35 epochs, ended by 5 without a lower loss, seed 42
    Downstream,
}

/// Those of `nadir train lm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LmRecipe {
    /// Of the same work, which taught papers to a small language model: blocks of 256 tokens, context 512, rate 2e-5, weight
    /// decay 0.01, 5 epochs, 0.11 held out
    Papers,
}

/// Task, name, flags. Flags that are the default stand here too: a recipe does not change with the defaults.
const RECIPES: [(&str, &str, &[&str]); 4] = [
    (
        "diffusion",
        "rsicd-sd15",
        &[
            "--resolution=224",
            "--random-flip",
            "--train-batch-size=1",
            "--gradient-accumulation-steps=4",
            "--gradient-checkpointing",
            "--max-train-steps=3500",
            "--learning-rate=1e-6",
            "--lr-scheduler=constant",
            "--lr-warmup-steps=0",
            "--adam-beta1=0.9",
            "--adam-beta2=0.999",
            "--adam-epsilon=1e-8",
            "--adam-weight-decay=1e-2",
            "--max-grad-norm=1",
            "--use-ema",
            "--ema-decay=0.9999",
            "--proportion-empty-prompts=0",
            "--checkpointing-steps=500",
            "--validation-prompts=A satellite image of a crop field",
        ],
    ),
    (
        "classify",
        "downstream",
        &[
            "--resolution=512",
            "--random-flip",
            "--brightness=0.2",
            "--contrast=0.2",
            "--train-batch-size=8",
            "--learning-rate=1e-3",
            "--validation-split=0.1",
            "--seed=42",
            "--num-train-epochs=35",
            "--early-stopping-patience=5",
        ],
    ),
    (
        "segment",
        "downstream",
        &[
            "--random-flip",
            "--train-batch-size=8",
            "--learning-rate=1e-3",
            "--validation-split=0.1",
            "--seed=42",
            "--num-train-epochs=35",
            "--early-stopping-patience=5",
        ],
    ),
    (
        "lm",
        "papers",
        &[
            "--block-size=256",
            "--context=512",
            "--learning-rate=2e-5",
            "--adam-weight-decay=0.01",
            "--num-train-epochs=5",
            "--validation-split=0.11",
        ],
    ),
];

/// Flags that leave no room for another.
const INSTEAD: [(&str, &[&str]); 5] = [
    ("context", &["init_from", "config"]),
    ("validation_split", &["validation_data"]),
    ("num_train_epochs", &["max_train_steps", "checkpointing_steps"]),
    ("max_train_steps", &["num_train_epochs"]),
    ("checkpointing_steps", &["num_train_epochs"]),
];

/// `args` of `command`, with the flags of a recipe that is named among them; whatever else was given stays.
pub fn expanded(command: Command, args: Vec<OsString>) -> Vec<OsString> {
    // What cannot be parsed is told when it is parsed for good.
    let Ok(matches) = command.try_get_matches_from(&args) else { return args };
    let task = matches.subcommand_matches("train").and_then(ArgMatches::subcommand);
    let Some((task, matches)) = task else { return args };
    let named = matches.try_get_raw("recipe").ok().flatten().and_then(|mut names| names.next());
    let recipe =
        RECIPES.iter().find(|(of, name, _)| *of == task && named == Some((*name).as_ref()));
    let Some((_, _, flags)) = recipe else { return args };
    // A task does not have all the flags that another has.
    let given = |id: &str| {
        matches.try_contains_id(id).is_ok()
            && matches.value_source(id) == Some(ValueSource::CommandLine)
    };
    let id = |flag: &str| {
        flag.trim_start_matches("--").split('=').next().unwrap_or_default().replace('-', "_")
    };
    let wanted = flags.iter().filter(|flag| {
        let id = id(flag);
        let instead =
            INSTEAD.iter().find(|(other, _)| *other == id).map_or(&[][..], |(_, all)| all);
        !given(&id) && !instead.iter().any(|other| given(other))
    });
    args.iter().cloned().chain(wanted.map(OsString::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    use crate::app::args::{Cli, dashed};

    fn expand(args: &str) -> Vec<String> {
        let args = dashed(args.split(' ').map(OsString::from));
        let all = expanded(Cli::command(), args);
        // Every flag of a recipe exists, and takes its value.
        Cli::try_parse_from(&all).unwrap();
        all.into_iter().map(|arg| arg.into_string().unwrap()).collect()
    }

    #[test]
    fn a_recipe_is_what_was_published_and_gives_way_to_what_is_given() {
        let command = "nadir train diffusion --train-data d -o o --init-from m";
        assert_eq!(expand(command).len(), 9);
        let all = expand(&format!("{command} --recipe rsicd-sd15"));
        let has = |all: &[String], flag: &str| all.iter().any(|arg| arg == flag);
        for flag in
            ["--learning-rate=1e-6", "--max-train-steps=3500", "--use-ema", "--resolution=224"]
        {
            assert!(has(&all, flag), "{all:?}");
        }
        let all = expand(&format!(
            "{command} --recipe rsicd-sd15 --learning_rate 1e-5 --use-ema=false --num-train-epochs 2"
        ));
        for flag in [
            "--learning-rate=1e-6",
            "--use-ema",
            "--max-train-steps=3500",
            "--checkpointing-steps=500",
        ] {
            assert!(!has(&all, flag), "{flag} in {all:?}");
        }
        assert!(has(&all, "--gradient-accumulation-steps=4"));
        let command = "nadir train classify --train-data d -o o --recipe downstream";
        assert!(has(&expand(command), "--num-train-epochs=35"));
        let all = expand(&format!("{command} --max-train-steps 5"));
        assert!(!has(&all, "--num-train-epochs=35") && has(&all, "--early-stopping-patience=5"));
        let command = "nadir train lm --train-data d -o o --recipe papers";
        let all = expand(&format!("{command} --tokenizer t"));
        assert!(has(&all, "--context=512") && has(&all, "--validation-split=0.11"));
        let all = expand(&format!("{command} --init-from m --validation-data v"));
        assert!(!has(&all, "--context=512") && !has(&all, "--validation-split=0.11"));
        assert!(has(&all, "--learning-rate=2e-5"));
    }
}
