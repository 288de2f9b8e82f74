//! The figures of a caption model's card: its perplexity of texts that are in no text it has learned from, beside that of an
//! interpolated Kneser-Ney 5-gram of the same tokens; how often what it writes is such a text; how often that names what it
//! was asked for. Prints them as JSON.
//!
//!     cargo run --release --example language_card -- MODEL --learned rsicd-train.jsonl --test rsicd-test.jsonl \
//!         --document-template "{class}: {text}" --class-words classes.json --answers answers.jsonl --names names.json
//!
//! Answers are what `nadir lm generate --json` prints; names are parts of words by prompt, {"river:": ["river", "stream"]}.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use clap::Parser;
use nadir::data::Examples;
use nadir::data::text::{Framing, TextSet, TextSettings};
use nadir::tensor::Device;
use nadir::tensor::tape::no_grad;
use nadir::text::byte_level::ByteLevel;
use nadir::text::ngram::KneserNey;
use nadir::train::Task;
use nadir::train::lm::LmTask;
use nadir::train::random::{Purpose, Random};
use serde_json::{Value, json};

#[derive(Parser)]
struct Arguments {
    /// Folder of the model
    model: PathBuf,
    /// What it has learned from
    #[arg(long)]
    learned: PathBuf,
    /// What it has not
    #[arg(long)]
    test: PathBuf,
    #[command(flatten)]
    data: TextSettings,
    /// What it has written
    #[arg(long)]
    answers: Option<PathBuf>,
    /// What names a prompt's class
    #[arg(long, requires = "answers")]
    names: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let args = Arguments::parse();
    let tokenizer = ByteLevel::open(&args.model)?;
    let [start, end] = tokenizer.ends();
    let encode = |text: &str| tokenizer.encode(text);
    let framing = Framing { encode: &encode, start, end };
    let open = |path: &Path, settings: &TextSettings| {
        TextSet::open(&[path.to_path_buf()], settings, &framing)
    };
    // 1. documents, and the sentences that they are made of
    let (learned, test) = (open(&args.learned, &args.data)?, open(&args.test, &args.data)?);
    let plain = TextSettings { document_template: None, ..args.data.clone() };
    let sentences: HashSet<Vec<u32>> =
        open(&args.learned, &plain)?.documents().map(<[u32]>::to_vec).collect();
    let of_test = open(&args.test, &plain)?;
    let mut known = of_test.documents().map(|sentence| sentences.contains(sentence));
    let all = test.documents().count();
    let new = test.keeping(|_| !known.next().unwrap_or(true))?;
    // 2. perplexities
    let task = LmTask::open(&args.model, Device::Cpu)?;
    let mut loss = 0.0;
    for batch in new.pass(64, 1)? {
        let batch = batch?;
        let mut random = Random::new(0, Purpose::Validation, 0);
        loss += no_grad(|| task.validate(&batch, &mut random))?[0].1;
    }
    let ngram = KneserNey::new(learned.documents(), 5, tokenizer.vocabulary())?;
    let mut found = json!({
        "test documents": all,
        "test documents not learned from": new.documents().count(),
        "tokens": new.count(),
        "perplexity": (loss / new.count() as f64).exp(),
        "perplexity of the 5-gram": ngram.perplexity(new.documents()),
    });
    // 3. what it writes
    if let Some(path) = &args.answers {
        let names: BTreeMap<String, Vec<String>> = match &args.names {
            Some(path) => serde_json::from_slice(&std::fs::read(path)?)?,
            None => BTreeMap::new(),
        };
        let (mut count, mut learned) = (0, 0);
        let mut named: BTreeMap<String, [usize; 2]> = BTreeMap::new();
        for line in std::fs::read_to_string(path)?.lines() {
            let answer: Value = serde_json::from_str(line)?;
            let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
            let (prompt, text) = (text("prompt"), text("text"));
            // As it would stand in a file.
            let tokens = tokenizer.encode(text.trim())?;
            let sentence = [&[start][..], &tokens, &[end]].concat();
            count += 1;
            learned += usize::from(sentences.contains(&sentence));
            if let Some(names) = names.get(&prompt) {
                let [total, right] = named.entry(prompt).or_default();
                *total += 1;
                *right += usize::from(names.iter().any(|name| text.contains(name)));
            }
        }
        found["answers"] = json!(count);
        found["answers that are a sentence learned from"] = json!(learned);
        found["answers that name the class, of all"] = named
            .into_iter()
            .map(|(prompt, [total, right])| (prompt, json!([right, total])))
            .collect::<serde_json::Map<_, _>>()
            .into();
    }
    println!("{found:#}");
    Ok(())
}
