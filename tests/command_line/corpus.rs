//! `nadir corpus`, and what reads its files.

use std::fs;

use crate::{Desk, text};

#[test]
fn a_corpus_is_what_a_model_learns_from() {
    let desk = Desk::new();
    fs::create_dir(desk.path("papers")).unwrap();
    for i in 0..12 {
        let words: Vec<String> =
            (0..60).map(|j| format!("w{}", (i * 7 + j * (i + 1)) % 50)).collect();
        let page = format!("<p>Paper number {i} says: {}.</p>", words.join(" "));
        fs::write(desk.path(&format!("papers/{i}.html")), page).unwrap();
    }
    fs::write(desk.path("papers/short.md"), "# Short").unwrap();
    fs::copy(desk.path("papers/3.html"), desk.path("papers/copy.html")).unwrap();
    let good = |args: &[&str]| {
        let output = desk.run(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        (text(&output.stdout), text(&output.stderr))
    };
    let corpus = ["corpus", "papers", "--min-letters=0.3", "-o", "corpus.parquet"];
    let (shown, said) = good(&corpus);
    let rows: Vec<Vec<&str>> =
        shown.lines().map(|line| line.split_whitespace().collect()).collect();
    for row in ["documents 14", "dropped: too short 1", "dropped: duplicate 1", "kept 12"] {
        assert!(rows.contains(&row.split(' ').collect()), "{shown}");
    }
    assert!(said.contains("corpus.report.json") && said.contains("corpus.dropped.csv"), "{said}");
    let csv = fs::read_to_string(desk.path("corpus.dropped.csv")).unwrap();
    assert!(csv.contains("papers/copy.html,duplicate,papers/3.html,1,"), "{csv}");
    let (_, said) = good(&[
        "train",
        "tokenizer",
        "--train-data",
        "corpus.parquet",
        "-o",
        "tokenizer",
        "--vocab-size=300",
    ]);
    assert!(said.contains("12 texts"), "{said}");
    let train = [
        "train",
        "lm",
        "--train-data",
        "corpus.parquet",
        "--tokenizer",
        "tokenizer",
        "-o",
        "run",
        "--layers=1",
        "--width=16",
        "--heads=2",
        "--context=64",
        "--block-size=64",
        "--max-train-steps=1",
        "-t1",
    ];
    good(&train);
    let (perplexity, _) =
        good(&["lm", "perplexity", "corpus.parquet", "-m", "run", "--apart", "-q"]);
    assert!(perplexity.trim().parse::<f64>().unwrap() > 1.0, "{perplexity}");
    // Chunks by a tokenizer's own count.
    let tokens = ["--tokenizer", "tokenizer", "--chunk-tokens=40", "--overwrite"];
    let (shown, _) = good(&[&corpus[..], &tokens].concat());
    let chunks = shown.lines().find_map(|line| line.strip_prefix("chunks")).unwrap();
    assert!(chunks.trim().parse::<usize>().unwrap() > 24, "{shown}");
    // What is wrong ends with 2 and leaves what was there.
    for (args, part) in [
        (&["corpus", "papers", "-o", "corpus.parquet"][..], "corpus.report.json"),
        (&["corpus", "papers", "-o", "corpus.txt"], "--out"),
        (&["corpus", "none", "-o", "a.parquet"], "none"),
        (&["corpus", "papers/short.md", "-o", "a.parquet"], "1 too short"),
        (&["corpus", "papers", "-o", "a.parquet", "--similarity=2"], "--similarity"),
        (&["corpus", "papers", "-o", "a.parquet", "--chunk-tokens=5"], "--tokenizer"),
        (&["corpus", "-o", "a.parquet"], "PATH"),
    ] {
        let output = desk.run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).contains(part), "{args:?}: {}", text(&output.stderr));
    }
    assert!(!desk.path("a.parquet").exists());
}
