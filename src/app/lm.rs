//! `nadir lm`: text from a language model, and how well it predicts one.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::io::{IsTerminal, Write, stdout};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::json;

use nadir::data::text::{TextSettings, documents};
use nadir::nn::lora::Adapter;
use nadir::pipeline::language::{
    Answer, Finish, LanguageModel, LanguageOptions, Perplexity, Sampling, TextRequest, TextRun,
    Windows,
};
use nadir::tensor::DType;
use nadir::text::chat::Message;
use nadir::{Error, Result};

use super::args::typed;
use super::model::Model;
use super::prompts::{self, Prompts};
use super::{draw, interrupt, limits, terminal};

/// The model that ships and that is used when none is named.
const DEFAULT: &str = "rsicd-lm";

/// The largest file of prompts or text.
const MAX_FILE: u64 = 1 << 30;

/// Language models
#[derive(Debug, Subcommand)]
pub enum Lm {
    Generate(Box<Generate>),
    Prompts(Box<Prompts>),
    Perplexity(PerplexityArgs),
}

/// Go on from a text
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nadir lm generate \"An aerial view of\" -m models/gpt2
  nadir lm generate \"river:\" -m models/captions -n 5 --temperature 0.7 --seed 1
  nadir lm generate \"river:\" -m models/captions --lora run/coasts:0.8
  nadir lm generate \"What is a fjord?\" -m models/smollm2 --chat --max-new-tokens 200
  nadir lm generate --prompts prompts.txt -m models/phi-1_5 --greedy --json > answers.jsonl

Answers go to standard output as they are written, in the order of the prompts; all else goes to standard error. An
answer depends on model, prompt, settings and seed, not on those beside it.
Exit codes: 0 done, 1 failed, 2 a request that cannot be served as it is, 130 interrupted.")]
pub struct Generate {
    /// Texts to go on from
    #[arg(value_name = "PROMPT")]
    prompt: Vec<String>,

    /// File with more of them: a line each, or .jsonl (objects with a prompt)
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,

    #[command(flatten)]
    execution: Execution,

    /// Answers to each prompt, with the seeds SEED, SEED+1, ...
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1, help_heading = "Answer")]
    num_answers: usize,

    /// Tokens of an answer, at most
    #[arg(long, value_name = "N", default_value_t = 128, help_heading = "Answer")]
    max_new_tokens: usize,

    /// Text that ends an answer, and is no part of it; may be repeated
    #[arg(long, value_name = "TEXT", help_heading = "Answer")]
    stop: Vec<String>,

    /// Go on where the model would end the text
    #[arg(long, help_heading = "Answer")]
    ignore_eos: bool,

    /// Take prompts as what a user says, in the form that the model was made for
    #[arg(long, help_heading = "Answer")]
    chat: bool,

    /// What the model is told before the user says anything
    #[arg(long, value_name = "TEXT", requires = "chat", help_heading = "Answer")]
    system: Option<String>,

    /// Seed of the first answer to each prompt [default: a random one, which is printed]
    #[arg(short, long, value_name = "N", help_heading = "Answer")]
    seed: Option<u64>,

    #[command(flatten)]
    sampling: Sampling,

    /// The likeliest token always: --temperature 0
    #[arg(long, help_heading = "Sampling", conflicts_with = "temperature")]
    greedy: bool,

    /// Answers computed at once; they do not depend on it, memory and speed do
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Model")]
    batch: usize,

    /// Print a JSON object for each answer: prompt, seed, text, number of tokens, why it ended
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// Which model, and how it computes.
#[derive(Debug, Args)]
pub struct Execution {
    /// Model: a transformers folder, `org/name` in the local hub cache, or a model that ships
    #[arg(short, long, value_name = "MODEL", default_value = DEFAULT, help_heading = "Model")]
    model: String,

    /// Add this low-rank adapter, as peft saves it, to the model's weights, WEIGHT times [default: 1]; may be repeated
    #[arg(long, value_name = "FILE[:WEIGHT]", help_heading = "Model", value_parser = typed::<Adapter>)]
    lora: Vec<Adapter>,

    /// auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Model")]
    device: String,

    /// Numbers that weights and activations are held in: f32, bf16 or f16
    #[arg(long, value_name = "TYPE", default_value = "f32", help_heading = "Model")]
    #[arg(value_parser = typed::<DType>)]
    dtype: DType,

    /// Hold matrices in 8 bits, with a scale for each output: a quarter of f32's memory; on a CPU
    #[arg(long, help_heading = "Model")]
    int8: bool,

    /// CPU threads [default: all]; nothing depends on them but speed
    #[arg(short, long, value_name = "N", help_heading = "Model")]
    threads: Option<usize>,

    /// Errors only
    #[arg(short, long, help_heading = "Output")]
    pub quiet: bool,
}

/// Say how well a model predicts a text
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nadir lm perplexity wikitext.txt -m models/gpt2 --stride 512
  nadir lm perplexity captions.parquet -m models/captions --apart

A text is cut into windows of the model's context, as transformers' page on the perplexity of fixed-length models does.")]
pub struct PerplexityArgs {
    /// A text, .jsonl (objects with a text) or .parquet (a column text, or captions)
    #[arg(value_name = "FILE")]
    file: PathBuf,

    #[command(flatten)]
    execution: Execution,

    #[command(flatten)]
    windows: Windows,

    /// Score each text of a .jsonl or .parquet by itself, from its start to its end, as in training
    ///
    /// Without it they are one text, with an empty line between two.
    #[arg(long, help_heading = "Windows")]
    apart: bool,

    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

pub fn run(command: Lm) -> anyhow::Result<()> {
    match command {
        Lm::Generate(args) => generate(*args),
        Lm::Prompts(args) => prompts::run(&args),
        Lm::Perplexity(args) => perplexity(&args),
    }
}

impl Execution {
    /// Loads the model, and says so.
    pub fn open(&self) -> anyhow::Result<LanguageModel> {
        limits::set_threads(self.threads)?;
        let folder = Model::find(Some(&self.model))?.folder;
        let say = |line: &str| {
            if !self.quiet {
                terminal::say(line)
            }
        };
        let device = draw::choose_device(&self.device, say)?;
        let clock = Instant::now();
        let (dtype, int8, adapters) = (self.dtype, self.int8, self.lora.clone());
        let options = LanguageOptions { dtype, int8, device, adapters };
        let model = LanguageModel::open(&folder, &options)?;
        let seconds = clock.elapsed().as_secs_f64();
        let bits = if int8 { ", matrices in 8 bits" } else { "" };
        say(&format!("{} in {dtype}{bits}, loaded in {seconds:.1} s", self.model));
        Ok(model)
    }
}

/// A prompt as it was given, and what is asked of the model.
struct Asked {
    prompt: String,
    request: TextRequest,
}

fn generate(args: Generate) -> anyhow::Result<()> {
    // 1. what needs no model
    let mut sampling = args.sampling;
    if args.greedy {
        sampling.temperature = 0.0;
    }
    sampling.check()?;
    let at_least_1 = |name, n: usize| match n {
        0 => Err(Error::argument(name, 0, "at least 1")),
        n => Ok(n),
    };
    at_least_1("max_new_tokens", args.max_new_tokens)?;
    at_least_1("num_answers", args.num_answers)?;
    at_least_1("batch", args.batch)?;
    let mut prompts = args.prompt.clone();
    if let Some(file) = &args.prompts {
        prompts.extend(read_prompts(file)?);
    }
    if prompts.is_empty() {
        return Err(Error::argument("prompts", "no prompt", "a text to go on from").into());
    }
    // 2. the model
    let model = args.execution.open()?;
    let seed = args.seed.unwrap_or_else(|| {
        // The standard library keys its hash maps from the system's random numbers.
        let seed = RandomState::new().hash_one(0) & u64::from(u32::MAX);
        if sampling.temperature > 0.0 && !args.execution.quiet {
            terminal::say(&format!("seed {seed}"));
        }
        seed
    });
    // 3. requests
    let mut asked = VecDeque::new();
    let mut capacity = 0;
    for prompt in prompts {
        let tokens = match args.chat {
            true => {
                let message = |role: &str, content: &str| Message {
                    role: role.to_owned(),
                    content: content.to_owned(),
                };
                let system = args.system.iter().map(|text| message("system", text));
                let messages: Vec<_> = system.chain([message("user", &prompt)]).collect();
                // A template writes what begins a text itself.
                model.tokenizer().encode(&model.chat()?.prompt(&messages)?)?
            }
            false => model.prompt(&prompt)?,
        };
        capacity = capacity.max(TextRun::room(&model, tokens.len(), args.max_new_tokens)?);
        for i in 0..args.num_answers {
            let request = TextRequest {
                prompt: tokens.clone(),
                sampling,
                seed: seed.wrapping_add(i as u64),
                max_new_tokens: args.max_new_tokens,
                stop: args.stop.clone(),
                ignore_eos: args.ignore_eos,
            };
            asked.push_back(Asked { prompt: prompt.clone(), request });
        }
    }
    // 4. answers
    let run = TextRun::new(&model, args.batch.min(asked.len()), capacity)?;
    let mut output = Output::new(args.json, &asked);
    let speed = answer(run, asked, &mut output)?;
    if !args.execution.quiet {
        terminal::say(&speed.to_string());
    }
    Ok(())
}

/// Prompts in the lines of a file.
fn read_prompts(path: &Path) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Line {
        prompt: String,
    }
    let text = nadir::io::read_file(path, MAX_FILE)?;
    let is_json = path.extension().is_some_and(|end| end == "jsonl" || end == "ndjson");
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let prompt = |(i, line): (usize, &str)| {
        if !is_json {
            return Ok(line.to_owned());
        }
        let line: std::result::Result<Line, _> = serde_json::from_str(line);
        line.map(|line| line.prompt).map_err(|e| {
            let expected = "an object with a prompt";
            let advice = "A line is {\"prompt\": \"...\"}.";
            Error::file(path, format!("line {}", i + 1), expected, e.to_string(), advice)
        })
    };
    lines.map(prompt).collect()
}

/// How fast it went.
#[derive(Default)]
struct Speed {
    prompts: (usize, Duration),
    steps: (usize, Duration),
}

impl std::fmt::Display for Speed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rate = |(tokens, time): (usize, Duration)| match tokens {
            0 => "none".to_owned(),
            _ => format!("{tokens} at {:.0}/s", tokens as f64 / time.as_secs_f64()),
        };
        write!(f, "tokens: of prompts {}, of answers {}", rate(self.prompts), rate(self.steps))
    }
}

fn answer(mut run: TextRun, mut asked: VecDeque<Asked>, output: &mut Output) -> Result<Speed> {
    let cancel = interrupt::switch();
    let mut speed = Speed::default();
    while !(run.is_empty() && asked.is_empty()) {
        cancel.check()?;
        let mut pieces = Vec::new();
        if run.has_room()
            && let Some(Asked { request, .. }) = asked.pop_front()
        {
            let (tokens, clock) = (request.prompt.len(), Instant::now());
            pieces.push(run.join(request)?);
            speed.prompts.0 += tokens;
            speed.prompts.1 += clock.elapsed();
        } else {
            let clock = Instant::now();
            pieces = run.step()?;
            speed.steps.0 += pieces.len();
            speed.steps.1 += clock.elapsed();
        }
        for piece in pieces {
            output.add(piece.id, &piece.text, piece.answer);
        }
        output.write()?;
    }
    Ok(speed)
}

/// Answers on their way to standard output, in their order: the first that is not finished as it grows.
struct Output {
    json: bool,
    /// Whether a terminal would obey what is written.
    escape: bool,
    prompts: Vec<(String, u64)>,
    texts: Vec<(String, Option<Answer>)>,
    /// The answer whose turn it is, and how much of it is written.
    turn: usize,
    written: usize,
}

impl Output {
    fn new(json: bool, asked: &VecDeque<Asked>) -> Self {
        let prompts = asked.iter().map(|one| (one.prompt.clone(), one.request.seed)).collect();
        let texts = vec![Default::default(); asked.len()];
        Self { json, escape: stdout().is_terminal(), prompts, texts, turn: 0, written: 0 }
    }

    fn add(&mut self, id: usize, text: &str, answer: Option<Answer>) {
        let (whole, finished) = &mut self.texts[id];
        whole.push_str(text);
        *finished = answer;
    }

    fn write(&mut self) -> Result<()> {
        let mut out = stdout().lock();
        let failed = |e| Error::io("standard output", e);
        while let Some((text, finished)) = self.texts.get(self.turn) {
            if self.json {
                let Some(answer) = finished else { break };
                let (prompt, seed) = &self.prompts[self.turn];
                let line = json!({
                    "prompt": prompt,
                    "seed": seed,
                    "text": text,
                    "tokens": answer.tokens.len(),
                    "finish": match answer.finish {
                        Finish::End => "end",
                        Finish::Stop => "stop",
                        Finish::Length => "length",
                    },
                });
                writeln!(out, "{line}").map_err(failed)?;
            } else {
                let new = &text[self.written..];
                let new = if self.escape { terminal::printable_text(new) } else { new.to_owned() };
                out.write_all(new.as_bytes()).map_err(failed)?;
                self.written = text.len();
                if finished.is_none() {
                    break;
                }
                out.write_all(b"\n").map_err(failed)?;
            }
            (self.turn, self.written) = (self.turn + 1, 0);
        }
        out.flush().map_err(failed)
    }
}

fn perplexity(args: &PerplexityArgs) -> anyhow::Result<()> {
    let extension = args.file.extension().and_then(|end| end.to_str()).unwrap_or_default();
    let texts = match extension {
        "jsonl" | "ndjson" | "parquet" => {
            documents(std::slice::from_ref(&args.file), &TextSettings::default())?.concat()
        }
        _ => vec![nadir::io::read_file(&args.file, MAX_FILE)?],
    };
    let model = args.execution.open()?;
    let tokenizer = model.tokenizer();
    let texts = match args.apart {
        true => texts,
        false => vec![texts.join("\n\n")],
    };
    let (mut all, mut total, mut behind) = (Perplexity::default(), 0, 0);
    let mut tokens = Vec::with_capacity(texts.len());
    for text in &texts {
        let one = match args.apart {
            true => {
                let [start, end] = tokenizer.ends();
                [&[start][..], &tokenizer.encode(text)?, &[end]].concat()
            }
            false => tokenizer.encode_prompt(text)?,
        };
        total += one.len();
        tokens.push(one);
    }
    let cancel = interrupt::switch();
    let (clock, mut said) = (Instant::now(), Instant::now());
    for one in &tokens {
        all.add(model.decoder(), one, args.windows, &mut |scored| {
            cancel.check()?;
            if !args.execution.quiet && said.elapsed() > Duration::from_secs(10) {
                said = Instant::now();
                terminal::say(&format!("{} of {total} tokens", behind + scored));
            }
            Ok(())
        })?;
        behind += one.len();
    }
    if all.tokens == 0 {
        let advice = "The first token has nothing before it that would predict it.";
        return Err(Error::file(
            &args.file,
            "text",
            "two tokens or more",
            total.to_string(),
            advice,
        )
        .into());
    }
    if !args.execution.quiet {
        let rate = all.tokens as f64 / clock.elapsed().as_secs_f64();
        terminal::say(&format!("{} tokens scored, {rate:.0}/s", all.tokens));
    }
    let mut out = stdout().lock();
    let line = match args.json {
        true => json!({
            "perplexity": all.value(),
            "nats_per_token": all.nats / all.tokens as f64,
            "tokens": all.tokens,
        })
        .to_string(),
        false => format!("{:.4}", all.value()),
    };
    writeln!(out, "{line}").map_err(|e| Error::io("standard output", e))?;
    Ok(())
}
