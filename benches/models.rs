//! Times the networks of the model that ships: one step of the denoiser, the decoder, the text encoder.
//!
//!     cargo bench --bench models
//!
//! For a model of Stable Diffusion's size, beside other engines, see `benches/peers/`.

use std::path::Path;

use criterion::{Criterion, criterion_group, criterion_main};
use nadir::Result;
use nadir::io::config::Config;
use nadir::io::folder::PipelineFolder;
use nadir::models::clip::{ClipText, ClipTextConfig};
use nadir::models::unet::{Unet, UnetConfig};
use nadir::models::vae::{Vae, VaeConfig};
use nadir::nn::Params;
use nadir::tensor::{DType, Device, Tensor};

fn load<T>(
    name: &str,
    dtype: DType,
    build: impl FnOnce(&Config, &Params) -> Result<T>,
) -> Result<T> {
    let folder = PipelineFolder::open(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/eurosat-64"),
        None,
    )?;
    build(&folder.config(name)?, &Params::new(folder.weights(name)?, dtype, Device::Cpu))
}

/// Values of about unit variance that follow no pattern a network would notice.
fn noise(shape: &[usize], dtype: DType) -> Result<Tensor> {
    let n = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..n).map(|i| (i as f32 * 12.9898).sin() * 1.4).collect();
    Tensor::from_vec(values, shape)?.to_dtype(dtype)
}

fn networks(criterion: &mut Criterion, dtype: DType) -> Result<()> {
    let mut group = criterion.benchmark_group(dtype.name());
    group.sample_size(10);

    let text_encoder =
        load("text_encoder", dtype, |c, p| ClipText::load(ClipTextConfig::read(c)?, p))?;
    let ids = Tensor::from_vec((1000..1077).collect::<Vec<i64>>(), [1, 77])?;
    group.bench_function("text encoder, 77 tokens", |b| {
        b.iter(|| text_encoder.forward(&ids, 0).unwrap())
    });

    let unet = load("unet", dtype, |c, p| Unet::load(UnetConfig::read(c)?, p))?;
    let latents = noise(&[2, 16, 16, 4], dtype)?;
    let context = unet.context(&noise(&[2, 77, text_encoder.config().hidden_size], dtype)?)?;
    let temb = unet.embed_timesteps(&[501.0])?;
    group.bench_function("guidance step, 64x64 pixels", |b| {
        b.iter(|| unet.forward(&latents, &temb, &context).unwrap());
    });

    let vae = load("vae", dtype, |c, p| Vae::load(VaeConfig::read(c)?, p))?;
    let latent = noise(&[1, 16, 16, 4], dtype)?;
    group.bench_function("decoder, 64x64 pixels", |b| b.iter(|| vae.decode(&latent).unwrap()));
    Ok(())
}

fn models(criterion: &mut Criterion) {
    for dtype in [DType::F32, DType::BF16] {
        networks(criterion, dtype).unwrap();
    }
}

criterion_group!(benches, models);
criterion_main!(benches);
