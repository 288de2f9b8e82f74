//! From papers to prompts by a command each, with a small model of Phi's architecture.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::{Desk, text};

const CLASSES: [&str; 7] = [
    "Water body",
    "Bare ground",
    "Woody Vegetation",
    "Cultivated Vegetation",
    "Crop Land",
    "Natural Vegetation",
    "Snow/Ice",
];

#[test]
fn papers_become_prompts_of_seven_classes() {
    let desk = Desk::new();
    let good = |args: &[&str]| {
        let output = desk.run(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        (text(&output.stdout), text(&output.stderr))
    };
    fs::create_dir(desk.path("papers")).unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    for name in ["paper.pdf", "owned.pdf", "scan.pdf"] {
        fs::copy(fixtures.join(name), desk.path("papers").join(name)).unwrap();
    }
    // 1. papers -> corpus
    let corpus = ["corpus", "papers/", "--out", "corpus.parquet", "--chunk-words=24"];
    let (shown, _) = good(&corpus);
    let row = |name: &str| {
        let line =
            shown.lines().find_map(|line| line.trim().strip_prefix(name)).unwrap_or_default();
        line.trim().parse::<usize>().unwrap_or_default()
    };
    // The picture of a page has no text.
    assert_eq!((row("documents"), row("kept")), (3, 2), "{shown}");
    assert!(row("chunks") > 5, "{shown}");
    // What stands for models/phi-1_5, in its form: it knows English as far as the corpus goes.
    let shape = json!({
        "architectures": ["PhiForCausalLM"], "model_type": "phi", "hidden_act": "gelu_new", "vocab_size": 320,
        "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 512, "partial_rotary_factor": 0.5, "tie_word_embeddings": false,
    });
    fs::write(desk.path("phi.json"), shape.to_string()).unwrap();
    let data = ["--train-data", "corpus.parquet"];
    let cpu = ["--device", "cpu"];
    good(&[&["train", "tokenizer", "-o", "tokenizer", "--vocab-size=320"], &data[..]].concat());
    let new = [
        "--tokenizer",
        "tokenizer",
        "--config",
        "phi.json",
        "--max-train-steps=80",
        "--learning-rate=3e-3",
    ];
    good(&[&["train", "lm", "-o", "phi-1_5"], &data[..], &new, &cpu].concat());
    // 2. corpus -> adapters
    let lora = ["--lora-rank=16", "--lora-alpha=8", "--lora-targets=linear"];
    let recipe = ["train", "lm", "-o", "run/phi", "--init-from", "phi-1_5", "--recipe", "papers"];
    let (_, said) = good(&[&recipe[..], &data, &lora, &cpu].concat());
    assert!(said.contains("perplexity"), "{said}");
    let adapters: Value =
        serde_json::from_slice(&fs::read(desk.path("run/phi/adapter_config.json")).unwrap())
            .unwrap();
    let targets = ["dense", "fc1", "fc2", "k_proj", "q_proj", "v_proj"];
    let found = adapters["target_modules"].as_array().unwrap().iter();
    let found: Vec<&str> =
        found.map(|name| name.as_str().unwrap().rsplit('.').next().unwrap()).collect();
    assert!(targets.iter().all(|target| found.contains(target)) && found.len() == 6, "{found:?}");
    // 3. adapters -> prompts
    let class = |name: &str| {
        format!(
            "[[class]]\nname = {name:?}\ninstructions = [\"What does a picture of {name} show? \"]\n"
        )
    };
    fs::write(desk.path("classes.toml"), CLASSES.map(class).concat()).unwrap();
    let prompts = [
        "lm",
        "prompts",
        "--classes",
        "classes.toml",
        "--per-class=3",
        "-m",
        "phi-1_5",
        "--lora",
        "run/phi",
    ];
    let (_, said) = good(&[&prompts[..], &["-o", "prompts.jsonl"], &cpu].concat());
    assert!(said.contains("21 prompts"), "{said}");
    let lines = fs::read_to_string(desk.path("prompts.jsonl")).unwrap();
    let mut by_class: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let prompt = line["prompt"].as_str().unwrap().to_owned();
        assert!(!prompt.is_empty() && !prompt.contains("What does"), "{prompt}");
        by_class.entry(line["class"].as_str().unwrap().to_owned()).or_default().push(prompt);
    }
    assert_eq!(by_class.len(), 7);
    for prompts in by_class.values_mut() {
        prompts.sort();
        prompts.dedup();
        assert_eq!(prompts.len(), 3, "{prompts:?}");
    }
}
