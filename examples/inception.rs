//! Times InceptionV3 over chips of 64x64, resizing included, beside `benches/peers/torch_inception.py`. Prints one JSON
//! line.
//!
//!     cargo run --release --example inception -- FILE [CHIPS [BATCH]]

use std::path::Path;
use std::time::Instant;

use nadir::Result;
use nadir::io::image::RgbImage;
use nadir::metrics::{Extractor, Resize};
use nadir::tensor::Device;

fn main() -> Result<()> {
    nadir::cpu::simd::choose()?;
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default| args.get(i).map_or(default, |n| n.parse().expect("a number"));
    let file = args.first().expect("the file of weights");
    let (chips, batch) = (number(1, 256), number(2, 8));
    let extractor = Extractor::inception(Path::new(file), Resize::TensorFlow, Device::Cpu)?;
    let level = |at: usize| (at * 7919 / 64 % 251) as u8;
    let size = 64 * 64 * 3;
    let chip = |i: usize| {
        RgbImage::from_raw(64, 64, (i * size..(i + 1) * size).map(level).collect()).expect("whole")
    };
    let pictures: Vec<RgbImage> = (0..chips).map(chip).collect();
    extractor.see(&pictures[..batch.min(chips)])?;
    let start = Instant::now();
    let mut last = Vec::new();
    for part in pictures.chunks(batch) {
        last = extractor.see(part)?.features.to_vec::<f32>()?;
    }
    let seconds = start.elapsed().as_secs_f64();
    let last = &last[last.len() - 2048..][..4];
    println!(
        "{}",
        serde_json::json!({
            "engine": "nadir",
            "chips": chips,
            "seconds": seconds,
            "chips_per_s": chips as f64 / seconds,
            "last": last,
        })
    );
    Ok(())
}
