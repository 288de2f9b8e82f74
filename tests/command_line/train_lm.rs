//! `nadir train tokenizer` and `nadir train lm`, as far as the command line has to do with them.

use std::fs;
use std::path::Path;

use crate::{Desk, text};

/// A thousand captions.
fn shipped() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/blue-marble.parquet").display().to_string()
}

const SHAPE: [&str; 8] = [
    "--layers=1",
    "--width=16",
    "--heads=2",
    "--context=64",
    "--block-size=64",
    "-t1",
    "-o",
    "run",
];

#[test]
fn a_language_model_and_adapters_are_trained() {
    let desk = Desk::new();
    let set = shipped();
    let good = |args: &[&str]| {
        let output = desk.run(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stderr)
    };
    let template = ["--document-template", "{class}: {text}"];
    let tokenizer = ["train", "tokenizer", "--train_data", &set, "-o", "tokenizer", "--normalize"];
    let said = good(&[&tokenizer[..], &template, &["--vocab_size", "400"]].concat());
    assert!(said.contains("1000 texts, 400 tokens"), "{said}");
    let train =
        ["train", "lm", "--train_data", &set, "--max_train_steps", "2", "--train-batch-size=4"];
    let new =
        ["--tokenizer", "tokenizer", "--validation-split=0.2", "--validation-prompts", "ocean:"];
    let said = good(&[&train[..], &SHAPE, &template, &new].concat());
    assert!(said.contains("texts, ") && said.contains("perplexity"), "{said}");
    for name in
        ["config.json", "model.safetensors", "tokenizer.json", "report.html", "checkpoint-2"]
    {
        assert!(desk.path("run").join(name).exists(), "{name}");
    }
    let shown = fs::read_to_string(desk.path("run/validation/step-00000002-00.txt")).unwrap();
    assert!(shown.starts_with("ocean:\nocean:"), "{shown}");
    // Beginning with it, and with adapters of it.
    let rest = ["--block-size=64", "--init-from", "run", "--lora-rank=2", "--lora-targets=linear"];
    good(&[&train[..], &rest, &["-o", "adapters"]].concat());
    good(&[&train[..], &rest, &["-o", "more", "--lora-init-from", "adapters"]].concat());
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        assert!(desk.path("more").join(name).is_file(), "{name}");
    }
    assert!(!desk.path("more/model.safetensors").exists());
}

#[test]
fn what_no_language_model_can_be_trained_on_is_an_error() {
    let desk = Desk::new();
    fs::write(desk.path("texts.txt"), "one text\nand another one\n").unwrap();
    fs::write(desk.path("empty.txt"), "\n\n").unwrap();
    let refused = |args: &[&str], parts: &[&str]| {
        let output = desk.run(args);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
        assert!(parts.iter().all(|part| error.contains(part)), "{args:?}: {error}");
    };
    let tokenizer = ["train", "tokenizer", "-o", "tokenizer", "--train-data"];
    refused(&[&tokenizer[..], &["none.txt"]].concat(), &["none.txt"]);
    refused(&[&tokenizer[..], &["texts.txt", "--vocab-size", "256"]].concat(), &["--vocab-size"]);
    let output = desk.run(&[&tokenizer[..], &["texts.txt", "--vocab-size", "300"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));

    let train = |data: &str, args: &[&str], parts: &[&str]| {
        let given = |own: &&&str| !args.iter().any(|arg| own.split('=').next() == Some(arg));
        let shape: Vec<&str> = SHAPE.iter().filter(given).copied().collect();
        refused(&[&["train", "lm", "--train-data", data], &shape[..], args].concat(), parts);
    };
    let own = ["--tokenizer", "tokenizer"];
    let with = |more: &[&'static str]| [&own[..], more].concat();
    train("texts.txt", &[], &["--init-from"]);
    train("none.jsonl", &own, &["none.jsonl"]);
    train("empty.txt", &own, &["empty.txt", "texts"]);
    train("texts.txt", &["--tokenizer", "nowhere"], &["nowhere"]);
    train("texts.txt", &with(&["--block-size", "65"]), &["--block-size", "64"]);
    train("texts.txt", &with(&["--block-size", "0"]), &["--block-size"]);
    train("texts.txt", &with(&["--heads", "3"]), &["n_head"]);
    train("texts.txt", &with(&["--token-dropout", "NaN"]), &["--token-dropout"]);
    train("texts.txt", &with(&["--document-template", "x"]), &["--document-template", "{text}"]);
    train("texts.txt", &with(&["--class-words", "texts.txt"]), &["texts.txt", "classes"]);
    train("texts.txt", &with(&["--validation-split", "0.9"]), &["--validation-split"]);
    train(
        "texts.txt",
        &with(&["--validation-data", "a", "--validation-split", "0.1"]),
        &["cannot"],
    );
    train("texts.txt", &with(&["--lora-rank", "2"]), &["--init-from"]);
    train("texts.txt", &with(&["--recipe", "none"]), &["papers"]);
    // A model of another kind; a tokenizer with more tokens than the model.
    fs::create_dir(desk.path("other")).unwrap();
    fs::copy(desk.path("tokenizer/tokenizer.json"), desk.path("other/tokenizer.json")).unwrap();
    fs::write(desk.path("other/config.json"), "{\"model_type\": \"t5\"}").unwrap();
    let init = ["train", "lm", "--train-data", "texts.txt", "-o", "run", "--init-from", "other"];
    refused(&init, &["t5", "gpt2"]);
    let config = "{\"model_type\": \"gpt2\", \"vocab_size\": 9, \"n_embd\": 8, \"n_layer\": 1, \"n_head\": 1}";
    fs::write(desk.path("config.json"), config).unwrap();
    let config = ["--tokenizer", "tokenizer", "--config", "config.json"];
    let new = ["train", "lm", "--train-data", "texts.txt", "-o", "run"];
    refused(&[&new[..], &config].concat(), &["vocabulary", "at most 9 tokens"]);
}
