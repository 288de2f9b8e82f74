//! The language model that ships, by captions that it has not learned from.

use std::path::Path;

use nadir::data::Examples;
use nadir::data::text::{Framing, TextSet, TextSettings};
use nadir::tensor::Device;
use nadir::tensor::tape::no_grad;
use nadir::text::byte_level::ByteLevel;
use nadir::train::Task;
use nadir::train::lm::LmTask;
use nadir::train::random::{Purpose, Random};

/// 40 pictures of RSICD's test split, none of whose captions stands in the training split.
const CAPTIONS: &str = "tests/captions/rsicd-test.jsonl";

#[test]
fn it_knows_captions_that_it_has_not_seen() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("weights/rsicd-lm");
    let size: u64 = std::fs::read_dir(&folder)
        .unwrap()
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    assert!(size < 12_000_000, "{size} bytes");
    let tokenizer = ByteLevel::open(&folder).unwrap();
    let [start, end] = tokenizer.ends();
    let encode = |text: &str| tokenizer.encode(text);
    let framing = Framing { encode: &encode, start, end };
    let settings = TextSettings {
        document_template: Some("{class}: {text}".to_owned()),
        class_words: Some(root.join("data/rsicd-words.json")),
        ..TextSettings::default()
    };
    let set = TextSet::open(&[root.join(CAPTIONS)], &settings, &framing).unwrap();
    let task = LmTask::open(&folder, Device::Cpu).unwrap();
    let mut loss = 0.0;
    for batch in set.pass(32, 1).unwrap() {
        let mut random = Random::new(0, Purpose::Validation, 0);
        loss += no_grad(|| task.validate(&batch.unwrap(), &mut random)).unwrap()[0].1;
    }
    let perplexity = (loss / set.count() as f64).exp();
    // 16.0046 when it was trained, which leaves a thousandth for other processors' sums; a 5-gram has 18.04.
    assert!((perplexity / 16.0046 - 1.0).abs() < 1e-3, "{perplexity}");
}
