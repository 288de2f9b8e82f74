//! Token ids against transformers' CLIPTokenizer (`golden/tokenizer.py`).

use std::fs;
use std::path::{Path, PathBuf};

use nadir::text::tokenizer::ClipTokenizer;
use nadir::text::weighting::{self, LongPrompt, Syntax};
use serde::Deserialize;
use serde_json::{Map, Value};
use tempfile::TempDir;

#[derive(Deserialize)]
struct Golden {
    folders: std::collections::BTreeMap<String, Folder>,
    captions: Vec<Entry>,
}

#[derive(Deserialize)]
struct Folder {
    files: Map<String, Value>,
    texts: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    text: String,
    ids: Vec<u32>,
    removed: Option<String>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/tokenizer.json")).unwrap()
}

fn clip() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/clip-tokenizer")
}

/// A folder as older versions wrote it: vocab.json, merges.txt, and `files`.
fn old_folder(files: &Map<String, Value>) -> TempDir {
    let json: Value =
        serde_json::from_slice(&fs::read(clip().join("tokenizer.json")).unwrap()).unwrap();
    let merges = json["model"]["merges"].as_array().unwrap().iter().map(|m| match m.as_array() {
        Some(pair) => format!("{} {}\n", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        None => format!("{}\n", m.as_str().unwrap()),
    });
    let folder = TempDir::new().unwrap();
    let write = |name: &str, text: String| fs::write(folder.path().join(name), text).unwrap();
    write("vocab.json", json["model"]["vocab"].to_string());
    write("merges.txt", std::iter::once("#version: 0.2\n".to_owned()).chain(merges).collect());
    for (name, content) in files {
        write(name, content.to_string());
    }
    folder
}

#[test]
fn captions_have_the_ids_of_transformers() {
    let tokenizer = ClipTokenizer::open(clip()).unwrap();
    let captions = golden().captions;
    assert_eq!(captions.len(), 200);
    for Entry { text, ids, .. } in captions {
        let found = tokenizer.encode(&text).unwrap().ids;
        assert_eq!(found[..ids.len()], ids, "{text}");
        assert!(found[ids.len()..].iter().all(|&id| id == tokenizer.pad()));
    }
}

#[test]
fn awkward_texts_have_the_ids_of_transformers_in_every_kind_of_folder() {
    for (name, Folder { files, texts }) in golden().folders {
        let folder = old_folder(&files);
        let tokenizer = ClipTokenizer::open(folder.path()).unwrap();
        assert_eq!(tokenizer.max_length(), 77);
        for Entry { text, ids, removed } in texts {
            let found = tokenizer.encode(&text).unwrap();
            assert_eq!(found.ids, ids, "{name}: {text:?}");
            assert_eq!(found.truncated, removed, "{name}: {text:?}");
        }
    }
}

#[test]
fn one_file_and_two_files_agree() {
    let one = ClipTokenizer::open(clip()).unwrap();
    let folder = old_folder(&Map::new());
    let two = ClipTokenizer::open(folder.path()).unwrap();
    assert_eq!((one.start(), one.end(), one.pad(), one.vocabulary()), (49406, 49407, 49407, 49408));
    assert_eq!((two.start(), two.end(), two.pad(), two.vocabulary()), (49406, 49407, 49407, 49408));
    for Entry { text, .. } in golden().captions {
        assert_eq!(one.encode(&text).unwrap(), two.encode(&text).unwrap());
    }
}

#[test]
fn weights_stand_beside_their_tokens() {
    let tokenizer = ClipTokenizer::open(clip()).unwrap();
    let encode =
        |prompt: &str, syntax, long| weighting::encode(&tokenizer, prompt, syntax, long).unwrap();

    let tokens = encode("a (red:1.3) barn", Syntax::Explicit, LongPrompt::Truncate);
    assert_eq!(tokens.chunks.len(), 1);
    assert_eq!(tokens.chunks[0].ids, tokenizer.encode("a red barn").unwrap().ids);
    assert_eq!(tokens.chunks[0].weights[..5], [1.0, 1.0, 1.3, 1.0, 1.0]);
    assert_eq!(tokens.chunks[0].weights.len(), 77);
    assert!(tokens.chunks.iter().any(|chunk| chunk.is_weighted()));

    // Without weights it is the plain tokenizer, brackets, truncation and all.
    for Entry { text, .. } in golden().captions.into_iter().take(20) {
        let text = format!("{text} (with) [brackets]");
        let tokens = encode(&text, Syntax::Explicit, LongPrompt::Truncate);
        let plain = tokenizer.encode(&text).unwrap();
        assert!(!tokens.chunks.iter().any(|chunk| chunk.is_weighted()));
        assert_eq!((&tokens.chunks[0].ids, &tokens.truncated), (&plain.ids, &plain.truncated));
    }
}

#[test]
fn long_prompts_are_cut_or_chunked() {
    let tokenizer = ClipTokenizer::open(clip()).unwrap();
    let prompt = ["river"; 160].join(" ");
    let river = tokenizer.text_ids("river").unwrap();
    assert_eq!(river.len(), 1);

    let cut = weighting::encode(&tokenizer, &prompt, Syntax::Plain, LongPrompt::Truncate).unwrap();
    assert_eq!(cut.chunks.len(), 1);
    assert_eq!(cut.truncated.unwrap(), ["river"; 85].join(" "));

    let mut whole =
        weighting::encode(&tokenizer, &prompt, Syntax::Plain, LongPrompt::Chunk).unwrap();
    assert_eq!(whole.truncated, None);
    let lengths: Vec<usize> =
        whole.chunks.iter().map(|c| c.ids.iter().filter(|&&id| id == river[0]).count()).collect();
    assert_eq!(lengths, [75, 75, 10]);
    for chunk in &whole.chunks {
        assert_eq!(
            (chunk.ids.len(), chunk.ids[0], chunk.ids[76]),
            (77, tokenizer.start(), tokenizer.end())
        );
    }
    whole.pad_to(5, &tokenizer);
    assert_eq!(whole.chunks.len(), 5);
    assert_eq!(whole.chunks[4].ids, tokenizer.encode("").unwrap().ids);
}

#[test]
fn what_is_no_prompt_or_no_tokenizer_is_an_error() {
    let tokenizer = ClipTokenizer::open(clip()).unwrap();
    for prompt in ["a\0b", &"a ".repeat(40_000)] {
        assert!(tokenizer.encode(prompt).unwrap_err().to_string().starts_with("prompt: "));
        let error = weighting::encode(&tokenizer, prompt, Syntax::Webui, LongPrompt::Chunk);
        assert!(error.unwrap_err().to_string().starts_with("prompt: "));
    }
    assert!(tokenizer.decode(&[49408]).unwrap_err().to_string().contains("outside the vocabulary"));

    let error = |folder: &Path| ClipTokenizer::open(folder).err().unwrap().to_string();
    assert!(error(Path::new("no/such/folder")).contains("no such folder"));
    let folder = TempDir::new().unwrap();
    assert!(error(folder.path()).contains("tokenizer.json, or vocab.json and merges.txt"));

    let file = folder.path().join("tokenizer.json");
    let bpe = |suffix: &str, vocab: &str, merges: &str| {
        format!(
            r#"{{"model": {{"type": "BPE", "end_of_word_suffix": "{suffix}", "vocab": {vocab}, "merges": {merges}}}}}"#
        )
    };
    let small = r#"{"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "a</w>": 3, "b</w>": 4}"#;
    for (text, words) in [
        ("{".to_owned(), "a tokenizer's JSON"),
        (r#"{"model": {"type": "WordPiece", "vocab": {}, "merges": []}}"#.to_owned(), "WordPiece"),
        (bpe("", small, "[]"), "BPE with suffix </w>"),
        (bpe("</w>", r#"{"a</w>": 0}"#, "[]"), "<|startoftext|>"),
        (bpe("</w>", small, r#"["a"]"#), "pairs of tokens"),
        (bpe("</w>", small, r#"["a z</w>"]"#), "tokenizer"),
        (
            bpe("</w>", r#"{"<|startoftext|>": 0, "<|endoftext|>": 9000000, "a</w>": 3}"#, "[]"),
            "id 9000000",
        ),
    ] {
        fs::write(&file, &text).unwrap();
        let message = error(folder.path());
        assert!(message.contains(words), "{text}: {message}");
    }
    fs::write(&file, bpe("</w>", small, r#"[["a", "b</w>"]]"#)).unwrap();
    for (config, words) in [
        (r#"{"pad_token": 3}"#, "pad_token"),
        (r#"{"pad_token": "<pad>", "model_max_length": "long"}"#, "model_max_length"),
        (r#"{"padding_side": "left"}"#, "padding_side"),
        ("[]", "a tokenizer's JSON"),
    ] {
        fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
        let message = error(folder.path());
        assert!(message.contains(words), "{config}: {message}");
    }
}
