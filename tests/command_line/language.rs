//! `nadir bench lm`, with the model that ships.

use serde_json::Value;

use super::*;

const WORK: [&str; 5] = ["bench", "lm", "--prompt=8", "--tokens=4", "--repeat=2"];

#[test]
fn speed_is_measured_and_adds_up() {
    let desk = Desk::new();
    for batch in [1, 3] {
        let output = desk
            .run(&[&WORK[..], &["--json", "--device=cpu", &format!("--batch={batch}")]].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let number = |name: &str| match report[name].as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => x,
            found => panic!("{name}: {found:?}"),
        };
        let alike = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-9, "{a} and {b}");
        alike(number("prefill_tokens_per_s"), 8.0 / number("prefill_s"));
        alike(number("decode_tokens_per_s"), f64::from(batch) / number("decode_s"));
        alike(number("bytes_per_s"), number("bytes_per_step") / number("decode_s"));
        let share = number("bytes_per_s") / number("machine_bytes_per_s");
        alike(number("share_of_bandwidth"), share);
        // 4 blocks of 192 channels, 2048 tokens, a table tied to the head, f32: weights and their biases and norms; for each
        // answer a row of both tables, and keys and values of 10 tokens.
        let (c, v) = (192.0, 2048.0);
        let block = 12.0 * c * c + 13.0 * c;
        let weights = 4.0 * block + 2.0 * c + v * c;
        let each = 2.0 * c + 2.0 * 4.0 * 10.0 * c;
        alike(number("bytes_per_step"), 4.0 * (weights + f64::from(batch) * each));
    }
    let shown = text(&desk.run(&["bench", "lm", "--repeat=1"]).stdout);
    assert!(["prefill", "decode", "tokens/s", "GB/s"].iter().all(|word| shown.contains(word)));
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let desk = Desk::new();
    for (args, parts) in [
        (["--tokens=0", "-q"], ["--tokens", "at least 1"]),
        (["--batch=0", "-q"], ["--batch", "at least 1"]),
        (["--repeat=0", "-q"], ["--repeat", "at least 1"]),
        (["--prompt=0", "-q"], ["--prompt", "a text to go on from"]),
        (["--prompt=100000", "-q"], ["--prompt", "the model's context"]),
        (["--tokens=18446744073709551615", "-q"], ["--tokens", "leaves of the context"]),
        (["--model=nowhere", "-q"], ["nowhere", ""]),
    ] {
        let output = desk.run(&[&["bench", "lm"], &args[..]].concat());
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
        assert!(parts.iter().all(|part| error.contains(part)), "{args:?}: {error}");
        assert!(output.stdout.is_empty());
    }
}
