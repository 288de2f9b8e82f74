//! `nadir bench`: how fast a model computes on this machine.

use std::io::Write;
use std::time::Instant;

use clap::{Args, Subcommand};
use serde::Serialize;

use nadir::cpu::memory;
use nadir::pipeline::language::{LanguageModel, Sampling, TextRequest, TextRun};
use nadir::tensor::{Device, cuda};
use nadir::{Error, Result};

use super::lm::Execution;
use super::{interrupt, terminal};

/// Measure speed on this machine
#[derive(Debug, Subcommand)]
pub enum Bench {
    Lm(Lm),
}

/// Measure how fast a language model reads prompts and writes answers
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nadir bench lm
  nadir bench lm -m models/gpt2 --prompt 512 --tokens 128 --dtype bf16
  nadir bench lm -m models/gpt2 --batch 8 --int8 --json

Reading a prompt (prefill) is bound by arithmetic, writing (decoding) by memory: a token takes every weight once, and all
that the model remembers of the text. The share is of what the same threads read in a second when they do nothing else.
Times are medians. Close what else the machine computes; times of a virtual device mean nothing and are refused.")]
pub struct Lm {
    #[command(flatten)]
    execution: Execution,

    /// Tokens of the prompt [default: 512, or half of the model's context where that is less]
    #[arg(long, value_name = "N", help_heading = "Work")]
    prompt: Option<usize>,

    /// Tokens of the answer [default: 64, or what the prompt leaves of the context where that is less]
    #[arg(long, value_name = "N", help_heading = "Work")]
    tokens: Option<usize>,

    /// Answers at a time
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Work")]
    batch: usize,

    /// Times that all of it is done; the first one, which is not counted, comes on top
    #[arg(long, value_name = "N", default_value_t = 5, help_heading = "Work")]
    repeat: usize,

    /// Print a JSON object
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// What was measured.
#[derive(Serialize)]
struct Report {
    batch: usize,
    prompt_tokens: usize,
    answer_tokens: usize,
    /// Of a prompt.
    prefill_s: f64,
    prefill_tokens_per_s: f64,
    /// Of a token of every answer.
    decode_s: f64,
    decode_tokens_per_s: f64,
    /// That a step reads, in the middle of the answers.
    bytes_per_step: usize,
    bytes_per_s: f64,
    /// What the machine reads; of a CPU.
    machine_bytes_per_s: Option<f64>,
    share_of_bandwidth: Option<f64>,
}

pub fn run(command: Bench) -> anyhow::Result<()> {
    match command {
        Bench::Lm(args) => language(&args),
    }
}

fn language(args: &Lm) -> anyhow::Result<()> {
    for (name, found) in
        [("tokens", args.tokens), ("batch", Some(args.batch)), ("repeat", Some(args.repeat))]
    {
        if found == Some(0) {
            return Err(Error::argument(name, 0, "at least 1").into());
        }
    }
    let model = args.execution.open()?;
    let device = model.decoder().device();
    if let Device::Cuda(ordinal) = device
        && cuda::devices()?.get(ordinal).is_some_and(cuda::Properties::is_virtual)
    {
        let expected =
            "a device whose times mean something: `nadir profile` counts a virtual one's work";
        return Err(
            Error::argument("device", format!("{device}, which is virtual"), expected).into()
        );
    }
    let context = model.decoder().config().max_position_embeddings;
    let prompt = args.prompt.unwrap_or(512.min(context / 2));
    // The first token comes with the prompt, so that each after it takes a step.
    let left = context - TextRun::room(&model, prompt, 1)?;
    let tokens = args.tokens.unwrap_or(64.min(left));
    if tokens == 0 || tokens > left {
        let expected = format!("at most {left}, what the prompt leaves of the context");
        return Err(Error::argument("tokens", tokens, expected).into());
    }
    let (mut prefill, mut decode, mut bandwidth) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=args.repeat {
        // In turn with the model: what a shared machine gives changes within seconds.
        if device == Device::Cpu {
            bandwidth.push(memory::read_bandwidth());
        }
        let (first, steps) = answers(&model, args.batch, prompt, tokens)?;
        if round > 0 {
            prefill.extend(first);
            decode.extend(steps);
        }
    }
    let (prefill_s, decode_s) = (median(prefill), median(decode));
    let bytes_per_step = model.decoder().step_bytes(args.batch, prompt + tokens / 2);
    let bytes_per_s = bytes_per_step as f64 / decode_s;
    let bandwidth = (device == Device::Cpu).then(|| median(bandwidth));
    let report = Report {
        batch: args.batch,
        prompt_tokens: prompt,
        answer_tokens: tokens,
        prefill_s,
        prefill_tokens_per_s: prompt as f64 / prefill_s,
        decode_s,
        decode_tokens_per_s: args.batch as f64 / decode_s,
        bytes_per_step,
        bytes_per_s,
        machine_bytes_per_s: bandwidth,
        share_of_bandwidth: bandwidth.map(|all| bytes_per_s / all),
    };
    let text = if args.json { serde_json::to_string(&report)? } else { report.table() };
    // Nobody may be reading.
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(())
}

/// Seconds of each prompt, and of each step of the answers to all of them.
fn answers(
    model: &LanguageModel,
    batch: usize,
    prompt: usize,
    tokens: usize,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let vocabulary = model.tokenizer().vocabulary() as u64;
    let mut run = TextRun::new(model, batch, prompt + tokens)?;
    let mut prefill = Vec::with_capacity(batch);
    for answer in 0..batch as u64 {
        interrupt::switch().check()?;
        let request = TextRequest {
            // Any tokens: speed does not depend on which.
            prompt: (0..prompt as u64).map(|i| ((i * 7919 + answer) % vocabulary) as u32).collect(),
            sampling: Sampling { temperature: 0.0, ..Sampling::default() },
            seed: 0,
            max_new_tokens: tokens + 1,
            stop: Vec::new(),
            ignore_eos: true,
        };
        let clock = Instant::now();
        run.join(request)?;
        prefill.push(clock.elapsed().as_secs_f64());
    }
    let mut decode = Vec::with_capacity(tokens);
    while !run.is_empty() {
        interrupt::switch().check()?;
        let clock = Instant::now();
        run.step()?;
        decode.push(clock.elapsed().as_secs_f64());
    }
    Ok((prefill, decode))
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

impl Report {
    fn table(&self) -> String {
        let [prefill, decode] = [self.prefill_s, self.decode_s].map(|seconds| seconds * 1e3);
        let share = match (self.machine_bytes_per_s, self.share_of_bandwidth) {
            (Some(all), Some(share)) if share > 1.0 => {
                format!(
                    ", more than the {:.1} GB/s that memory gives: caches hold the model",
                    all / 1e9
                )
            }
            (Some(all), Some(share)) => {
                format!(
                    ", {:.0} % of the {:.1} GB/s that the machine reads",
                    share * 100.0,
                    all / 1e9
                )
            }
            _ => String::new(),
        };
        let answers =
            if self.batch == 1 { "answer".into() } else { format!("{} answers", self.batch) };
        let lines = [
            format!(
                "prefill  {:>9.2} ms   {:>8.0} tokens/s   a prompt of {} tokens",
                prefill, self.prefill_tokens_per_s, self.prompt_tokens
            ),
            format!(
                "decode   {:>9.2} ms   {:>8.0} tokens/s   a token of the {answers}, {} tokens long",
                decode, self.decode_tokens_per_s, self.answer_tokens
            ),
            format!(
                "memory   {:>9.1} MB a step, {:.1} GB/s{share}",
                self.bytes_per_step as f64 / 1e6,
                self.bytes_per_s / 1e9
            ),
        ];
        terminal::printable_text(&lines.join("\n"))
    }
}
