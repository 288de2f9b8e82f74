//! Noise against torch's generator (`golden/noise.py`) and the published known answers of Philox.

use nadir::noise::philox::philox4x32_10;
use nadir::noise::{Mt19937, NoiseSource, Philox, PhiloxLayout};
use nadir::tensor::DType;
use safetensors::SafeTensors;

const GOLDEN: &[u8] = include_bytes!("golden/noise.safetensors");
const SEEDS: [u64; 5] = [0, 42, (1 << 32) + 5, 1 << 63, u64::MAX];

fn golden<const BYTES: usize, T>(name: &str, from_le: fn([u8; BYTES]) -> T) -> Vec<T> {
    let file = SafeTensors::deserialize(GOLDEN).expect("golden file");
    let tensor = file.tensor(name).expect(name);
    let chunks = tensor.data().chunks_exact(BYTES);
    chunks.map(|bytes| from_le(bytes.try_into().unwrap())).collect()
}

#[test]
fn words_equal_torch() {
    for seed in SEEDS {
        let mut generator = Mt19937::new(seed);
        for (i, expected) in
            golden(&format!("words/{seed}"), u64::from_le_bytes).into_iter().enumerate()
        {
            let found = (generator.next_u32() as u64) << 32 | generator.next_u32() as u64;
            assert_eq!(found, expected, "seed {seed}, words {} and {}", 2 * i, 2 * i + 1);
        }
    }
}

/// Draws of many sizes from one generator, in the order in which torch made them.
fn draws(seed: u64, dtype: DType) -> Vec<f32> {
    let mut stream = NoiseSource::Torch.stream(seed);
    let sizes = golden("sizes", u64::from_le_bytes);
    sizes.into_iter().flat_map(|n| stream.randn(n as usize, dtype).unwrap()).collect()
}

#[test]
fn normals_equal_torch() {
    // f32: torch's vector logarithm, sine and cosine are within 1.5 ulp, ours are rounded once; at the largest
    // radius, 5.8, that is 1e-6 at most. 16 bits: the f32 value rounded, so where the two f32 values lie on two sides
    // of a rounding boundary the results are neighbours: one ulp of the dtype.
    for (dtype, name, ulp) in [
        (DType::F32, "f32", 0.0),
        (DType::BF16, "bf16", 1.0 / 128.0),
        (DType::F16, "f16", 1.0 / 1024.0),
    ] {
        for seed in SEEDS {
            let expected = golden(&format!("{name}/{seed}"), f32::from_le_bytes);
            let found = draws(seed, dtype);
            assert_eq!(found.len(), expected.len());
            for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
                let tolerance = 1e-6 + ulp * b.abs();
                assert!(
                    (a - b).abs() <= tolerance,
                    "{name}, seed {seed}, value {i}: {a} is not torch's {b}"
                );
            }
        }
    }
}

#[test]
fn seeds_reach_torch_by_their_low_32_bits() {
    assert_eq!(Mt19937::new(5).randn(40), Mt19937::new((1 << 32) + 5).randn(40));
}

/// The known answers that Random123 publishes for philox4x32-10 (`kat_vectors`).
#[test]
fn philox_words_equal_the_known_answers() {
    assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
    assert_eq!(
        philox4x32_10([u32::MAX; 4], [u32::MAX; 2]),
        [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]
    );
    assert_eq!(
        philox4x32_10([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
        [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
    );
}

/// The layout, restated value by value: which thread, which pass and which of its four words.
#[test]
fn philox_layout_is_a_grid_stride_loop() {
    let layout = PhiloxLayout { sms: 2, blocks_per_sm: 1 };
    let seed = (7 << 32) | 9;
    let mut generator = Philox::new(seed, layout);
    let mut calls = 0;
    for n in [1, 255, 257, 512, 2048, 2049, 5000] {
        let values = generator.randn(n);
        assert_eq!(values.len(), n);
        let threads = 256 * n.div_ceil(256).min(2);
        for (i, &value) in values.iter().enumerate() {
            let (pass, word, thread) = (i / (4 * threads), i / threads % 4, i % threads);
            let words = philox4x32_10([calls + pass as u32, 0, thread as u32, 0], [9, 7]);
            let [x, y] = [words[word / 2 * 2], words[word / 2 * 2 + 1]]
                .map(|w| (w as f64 + 0.5) / 4294967296.0);
            let angle = std::f64::consts::TAU * y;
            let direction = if word % 2 == 0 { angle.sin() } else { angle.cos() };
            assert_eq!(value, ((-2.0 * x.ln()).sqrt() * direction) as f32, "n {n}, value {i}");
        }
        calls += n.div_ceil(4 * threads) as u32;
    }
    assert!(generator.randn(0).is_empty());
}

#[test]
fn sources_are_read_and_written() {
    for text in ["torch", "philox", "philox:82x6"] {
        assert_eq!(text.parse::<NoiseSource>().unwrap().to_string(), text);
    }
    assert_eq!("philox:108x8".parse::<NoiseSource>().unwrap(), "philox".parse().unwrap());
    for text in [
        "",
        "Torch",
        "philox:",
        "philox:108",
        "philox:0x6",
        "philox:108x",
        "philox:1x99999",
        "philox:-1x2",
    ] {
        let error = text.parse::<NoiseSource>().unwrap_err().to_string();
        assert!(error.contains("philox:SMSxBLOCKS"), "{error}");
    }
    let error = NoiseSource::Torch.stream(0).randn(4, DType::I64).unwrap_err().to_string();
    assert!(error.contains("randn") && error.contains("i64") && error.contains("bf16"), "{error}");
}
