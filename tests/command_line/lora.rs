//! Pictures of a model with low-rank adapters.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nadir::io::safetensors::save;
use nadir::tensor::Tensor;

use super::{Desk, STEPS, text};

/// An adapter of rank 1 for a layer of the model that ships: some matrix, `value` times.
fn write(path: &Path, layer: &str, value: f32) {
    // Not all alike: the mean of a layer's inputs is 0.
    let matrix = |shape: [usize; 2], value: f32| {
        let elements = (0..64).map(|i| value * (i % 7 - 3) as f32).collect();
        Tensor::from_vec(elements, shape).unwrap()
    };
    let tensors = [
        (format!("unet.{layer}.lora_A.weight"), matrix([1, 64], 1.0)),
        (format!("unet.{layer}.lora_B.weight"), matrix([64, 1], value)),
    ];
    save(path, &tensors, &BTreeMap::new()).unwrap();
}

const LAYER: &str = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v";

#[test]
fn adapters_change_the_picture_which_tells_of_them() {
    let desk = Desk::new();
    write(&desk.path("a.safetensors"), LAYER, 0.02);
    write(&desk.path("b.safetensors"), LAYER, -0.01);
    let draw = |adapters: &[&str], name: &str| {
        let given = adapters.iter().flat_map(|adapter| ["--lora", adapter]);
        let args = ["generate", "a river", "-s1", STEPS, "-o", name].into_iter().chain(given);
        desk.picture(&args.collect::<Vec<_>>())
    };
    let plain = draw(&[], "plain.png");
    let adapted = draw(&["a.safetensors:0.5"], "adapted.png");
    assert_ne!(adapted, plain);
    assert_eq!(draw(&["a.safetensors:0"], "nothing.png"), plain);
    // 0.5 * 0.02 - 0.01 = 0, but for the rounding of the weights.
    let both = draw(&["a.safetensors:0.5", "b.safetensors"], "both.png");
    let distance = |picture: &image::RgbImage| {
        let pairs = picture.as_raw().iter().zip(plain.as_raw());
        pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap()
    };
    assert!(distance(&both) <= 1 && distance(&adapted) > 1);

    let recipe = |name: &str| nadir::io::png::read_replay(&desk.path(name)).unwrap();
    let (without, with) = (recipe("plain.png"), recipe("adapted.png"));
    assert_ne!(with["model_hash"], without["model_hash"]);
    assert_ne!(with["model_hash"], recipe("nothing.png")["model_hash"]);
    assert_eq!(with["lora"][0]["path"], "a.safetensors");
    assert_eq!(with["lora"][0]["weight"], 0.5);
    assert!(without.get("lora").is_none());

    // Drawn again, with the adapter elsewhere too.
    assert_eq!(desk.picture(&["replay", "adapted.png", "-o", "again.png"]), adapted);
    let [first, again] = ["adapted.png", "again.png"].map(|name| fs::read(desk.path(name)));
    assert_eq!(first.unwrap(), again.unwrap());
    fs::rename(desk.path("a.safetensors"), desk.path("moved.safetensors")).unwrap();
    let moved = ["replay", "adapted.png", "--lora", "moved.safetensors", "-o", "moved.png"];
    let output = desk.run(&moved);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(!text(&output.stderr).contains("changed"), "{}", text(&output.stderr));
    assert_eq!(super::read(&desk.path("moved.png")), adapted);
    // Another file under its name.
    let output = desk.run(&["replay", "adapted.png", "--lora", "b.safetensors", "-o", "other.png"]);
    assert_eq!(text(&output.stderr).matches("b.safetensors has changed").count(), 1);
}

#[test]
fn an_adapter_that_does_not_fit_is_refused() {
    let desk = Desk::new();
    write(&desk.path("a.safetensors"), LAYER, 0.02);
    write(&desk.path("x.safetensors"), "mid_block.nothing", 0.02);
    fs::write(desk.path("cut.safetensors"), [9; 5]).unwrap();
    for (adapter, messages) in [
        ("x.safetensors", ["x.safetensors", "unet.mid_block.nothing.lora_A.weight"]),
        ("cut.safetensors", ["cut.safetensors", "header"]),
        ("none.safetensors:0.5", ["none.safetensors", "No such file"]),
        ("a.safetensors:nan", ["--lora", "finite weight"]),
    ] {
        let output = desk.run(&["generate", "a river", STEPS, "--lora", adapter]);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        for message in messages {
            assert!(error.contains(message), "{message:?} is not in {error}");
        }
    }
    desk.files(&["generate", "a river", "-s1", STEPS, "--lora", "a.safetensors"]);
    let output = desk.run(&["replay", "nadir-1.png", "--lora=a", "--lora=b"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--lora"), "{}", text(&output.stderr));
    assert_eq!(
        desk.entries(),
        ["a.safetensors", "cut.safetensors", "nadir-1.png", "x.safetensors"]
    );
}

#[test]
fn adapters_are_trained_and_drawn_with() {
    let desk = Desk::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (set, model) = (root.join("data/blue-marble.parquet"), super::weights());
    let train = |args: &[&str]| {
        let first = ["train", "diffusion", "--train-data", set.to_str().unwrap(), "-o", "run"];
        let second = ["--resolution", "32", "--train_batch_size=1", "--max_train_steps", "2"];
        desk.run(&[&first[..], &second, args].concat())
    };
    let from = ["--init-from", model.to_str().unwrap()];
    for (args, message) in [
        (&["--lora-rank", "2"][..], "--init-from"),
        (&["--lora-rank", "0"], "--lora-rank"),
        (&["--lora-rank", "1000000000000"], "--lora-rank"),
        (&["--rank", "2", "--lora-alpha", "nan"], "--lora-alpha"),
        (&["--rank", "2", "--lora-targets", "norms"], "attention, linear or conv"),
        (&["--lora-alpha", "2"], "--lora-rank"),
    ] {
        let begins: &[&str] = if message == "--init-from" { &[] } else { &from };
        let output = train(&[begins, args].concat());
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
        assert!(error.contains(message), "{args:?}: {error}");
    }
    let output = train(&[&from[..], &["--lora-rank=2", "--learning_rate=0.1"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let draw =
        |more: &[&str]| desk.picture(&[&["generate", "a coast", "-s1", STEPS], more].concat());
    assert_ne!(draw(&["--lora", "run"]), draw(&[]));
}
