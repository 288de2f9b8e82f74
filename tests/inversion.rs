//! Textual inversions against diffusers, of what `golden/inversion.py` writes; and the command line that is given them.

#[path = "golden/case.rs"]
#[allow(dead_code, reason = "the tests of other pipelines use the rest")]
mod case;
mod golden;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use case::{Case, check_drawn, psnr};
use golden::drawn::Drawn;
use golden::{assert_close, get};
use nadir::Result;
use nadir::io::TensorSource;
use nadir::io::config::Config;
use nadir::io::safetensors::save;
use nadir::models::clip::{ClipText, ClipTextConfig};
use nadir::nn::Params;
use nadir::nn::lora::Adapters;
use nadir::pipeline::{Inversion, LoadOptions, TextToImage};
use nadir::tensor::{DType, Device, Tensor};
use nadir::text::tokenizer::ClipTokenizer;
use tempfile::TempDir;

const TOKENS: [&str; 2] = ["<river>", "<haze>"];

fn embedding(token: &str) -> Tensor {
    Drawn::by_inputs("inversion").read(token).unwrap()
}

/// A file with one tensor.
fn write(folder: &Path, file: &str, key: &str, tensor: Tensor) -> PathBuf {
    let path = folder.join(file);
    save(&path, &[(key.to_owned(), tensor)], &BTreeMap::new()).unwrap();
    path
}

/// diffusers' file, and the web UI's.
fn files() -> (TempDir, [PathBuf; 2]) {
    let desk = tempfile::tempdir().unwrap();
    let river = write(desk.path(), "river.safetensors", "<river>", embedding("<river>"));
    let haze = write(desk.path(), "<haze>.safetensors", "emb_params", embedding("<haze>"));
    (desk, [river, haze])
}

#[test]
fn prompts_are_those_of_diffusers() -> Result<()> {
    let (case, golden) = (Case::of("inversion", "drawn")?, golden::open("inversion")?);
    let mut tokenizer = ClipTokenizer::open(golden::path("pipelines/tokenizer"))?;
    let mut rows = BTreeMap::new();
    for token in TOKENS {
        let vectors = embedding(token).to_vec::<f32>()?;
        let ids = tokenizer.learn(token, vectors.len() / 32)?;
        rows.extend(ids.iter().map(|id| *id as usize).zip(vectors.chunks(32).map(<[f32]>::to_vec)));
    }
    let mut added = Adapters::default();
    added.set_rows("text_encoder", "embeddings.token_embedding.weight", rows);
    let weights = added.merged("text_encoder", Drawn::by_inputs("models/clip_l"));
    let params = Params::new(weights, DType::F32, Device::Cpu);
    let config = ClipTextConfig::read(&Config::open(golden::path("models/clip_l/config.json"))?)?;
    let vocab_size = tokenizer.vocabulary();
    assert_eq!(vocab_size, config.vocab_size + 4);
    let encoder = ClipText::load(ClipTextConfig { vocab_size, ..config }, &params)?;
    for name in ["prompt", "negative_prompt"] {
        let prompt = case.json["arguments"][name].as_str().unwrap();
        let ids: Vec<i64> = tokenizer.encode(prompt)?.ids.into_iter().map(i64::from).collect();
        let states = encoder.forward(&Tensor::from_vec(ids, [1, 77])?, 0)?;
        // As in `models.rs`.
        assert_close(name, &states, &get(&golden, name), 1e-5);
    }
    Ok(())
}

#[test]
fn pictures_are_those_of_diffusers() -> Result<()> {
    let case = Case::of("inversion", "drawn")?;
    let (_desk, files) = files();
    let embeddings = files.map(|path| Inversion { path, token: None }).to_vec();
    let load = |embeddings| {
        TextToImage::load(case.folder(), &LoadOptions { embeddings, ..LoadOptions::default() })
    };
    let model = load(embeddings)?;
    check_drawn(&case, "drawn", &model, &case.request(), Device::Cpu)?;
    assert_ne!(model.fingerprint(), load(Vec::new())?.fingerprint());
    Ok(())
}

#[test]
fn a_token_stands_behind_the_file() {
    let (_desk, [river, _]) = files();
    let parse = |text: &str| text.parse::<Inversion>();
    let file = river.to_str().unwrap();
    assert_eq!(parse(file).unwrap(), Inversion { path: river.clone(), token: None });
    for token in ["<sea>", "a:b", "word"] {
        let found = parse(&format!("{file}:{token}")).unwrap();
        assert_eq!(found, Inversion { path: river.clone(), token: Some(token.into()) });
        assert_eq!(found.to_string(), format!("{file}:{token}"));
    }
    assert!(parse(&format!("{file}: ")).is_err());
}

fn nadir(at: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nadir"));
    command.args(args).current_dir(at).env_remove("NADIR_WEIGHTS").output().unwrap()
}

#[test]
fn the_command_line_teaches_words() -> Result<()> {
    let case = Case::of("inversion", "drawn")?;
    let (desk, _) = files();
    let at = desk.path();
    let arguments = &case.json["arguments"];
    let text = |name: &str| arguments[name].as_str().unwrap();
    let model = case.folder().to_str().unwrap();
    let common = ["-m", model, "--steps=6", "-s3", "-W48", "-H64", "--cfg-scale=7.5"];
    let draw = |prompt: &str, args: &[&str], out: &str| {
        let asked = ["generate", prompt, "-n", text("negative_prompt"), "-o", out];
        nadir(at, &[&asked[..], &common, args].concat())
    };
    let picture = |name: &str| image::open(at.join(name)).unwrap().into_rgb8().into_raw();
    let given = ["--embedding=river.safetensors", "--embedding=<haze>.safetensors"];
    let output = draw(text("prompt"), &given, "out.png");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let theirs = get(&golden::open("inversion/drawn")?, "image").to_vec()?;
    let found = psnr(&picture("out.png"), &theirs);
    assert!(found >= 50.0, "{found} dB");
    // Under another name it is the same word.
    let renamed = text("prompt").replace("<river>", "<sea>").replace("<River>", "<SEA>");
    let output = draw(&renamed, &["--embedding=river.safetensors:<sea>", given[1]], "sea.png");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(picture("sea.png") == picture("out.png"));
    // The picture knows it, wherever the file has gone.
    std::fs::rename(at.join("river.safetensors"), at.join("moved.safetensors")).unwrap();
    let moved = ["replay", "sea.png", "-o", "again.png", "--embedding=moved.safetensors"];
    let again = nadir(at, &[&moved[..], &["--embedding=<haze>.safetensors"]].concat());
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert!(!String::from_utf8_lossy(&again.stderr).contains("has changed"));
    assert!(picture("again.png") == picture("out.png"));

    write(at, "wide.safetensors", "<wide>", Tensor::zeros([2, 48], DType::F32, Device::Cpu)?);
    write(at, "known.safetensors", "a</w>", Tensor::zeros([32], DType::F32, Device::Cpu)?);
    let ones = || Tensor::from_vec(vec![1f32; 32], [32]).unwrap();
    let several = [("clip_l".to_owned(), ones()), ("clip_g".to_owned(), ones())];
    save(&at.join("sdxl.safetensors"), &several, &BTreeMap::new())?;
    let damaged = Tensor::from_vec(vec![f32::NAN; 32], [32])?;
    write(at, "nan.safetensors", "<nan>", damaged);
    std::fs::write(at.join("old.pt"), b"PK\x03\x04").unwrap();
    for (file, words) in [
        ("wide.safetensors", &["<wide>", "48", "32"][..]),
        ("known.safetensors", &["--embedding", "a</w>"]),
        ("sdxl.safetensors", &["clip_g", "SDXL"]),
        ("nan.safetensors", &["<nan>", "finite"]),
        ("old.pt", &["old.pt", "pickle_to_safetensors.py"]),
        ("none.safetensors", &["none.safetensors"]),
        ("moved.safetensors:", &["--embedding"]),
    ] {
        let output = draw("a", &["--embedding", file], "refused.png");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{file}: {told}");
        assert!(words.iter().all(|word| told.contains(word)), "{file}: {told}");
        assert!(!told.contains("panicked") && !at.join("refused.png").exists(), "{file}: {told}");
    }
    Ok(())
}
