//! Whole images against diffusers, on the small random pipelines of `golden/pipelines.py`; and against
//! themselves, drawn alone or in company.

#[path = "golden/case.rs"]
mod case;
mod golden;

use std::fs;
use std::sync::Arc;

use case::{Case, Drawn, assert_drawn_alike, check_f32, generate, levels, psnr, seeds};
use image::RgbImage;
use nadir::pipeline::{Cancel, Event, InitImage, Request, Run, Settings, SlotId, TextToImage};
use nadir::tensor::{DType, Device, Tensor};
use nadir::text::weighting::LongPrompt;
use nadir::{Error, Result};

/// In 16 bits nobody gets the picture of f32. Ours may be further from it than torch's of the same dtype by 3 dB, over
/// the seeds that the golden file knows: the error of a single picture is a matter of luck.
fn check_16_bits(name: &str, dtype: DType) -> Result<()> {
    let case = Case::open(name)?;
    let torch: Vec<f64> =
        serde_json::from_value(case.json[format!("{dtype}_psnr")].clone()).unwrap();
    let requests = seeds(&case.request(), torch.len());
    let exact = generate(&case.load(DType::F32, Device::Cpu)?, requests.clone(), torch.len())?;
    let rounded = generate(&case.load(dtype, Device::Cpu)?, requests, torch.len())?;
    let ours: Vec<f64> = rounded
        .iter()
        .zip(&exact)
        .map(|(a, b)| psnr(a.picture.as_raw(), &levels(&b.picture)))
        .collect();
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (ours, torch) = (mean(&ours), mean(&torch));
    // Torch's pictures are not rounded to levels. That matters for errors of less than a level, f16's: they change few
    // levels, but those by a whole one; an error of 0.8 rms on average, the normal distribution's, as many of a level.
    let allowed = if dtype == DType::BF16 {
        torch - 3.0
    } else {
        let rms = 10f64.powf(-(torch - 3.0) / 20.0);
        -10.0 * (rms * rms + 0.8 * rms / 255.0).log10()
    };
    println!("{name}: {ours:.1} dB in {dtype}, {allowed:.1} allowed, torch {torch:.1}");
    assert!(ours >= allowed, "{name}: {ours} dB in {dtype}, not {allowed}; torch {torch}");
    Ok(())
}

macro_rules! cases {
    ($($name:ident)*) => {
        mod f32_is_diffusers {
            $(#[test] fn $name() -> nadir::Result<()> { super::check_f32(stringify!($name), super::Device::Cpu) })*
        }
        mod bf16_is_as_close_as_torch {
            $(#[test] fn $name() -> nadir::Result<()> { super::check_16_bits(stringify!($name), super::DType::BF16) })*
        }
        mod f16_is_as_close_as_torch {
            $(#[test] fn $name() -> nadir::Result<()> { super::check_16_bits(stringify!($name), super::DType::F16) })*
        }
        /// The names of the folders in `golden/pipelines/` that are cases.
        const CASES: &[&str] = &[$(stringify!($name)),*];
    };
}

cases! {
    pndm ddim_v_zero_snr euler_karras dpmpp_2m_karras unipc_v heun ddim_eta euler_a_clip_skip dpmpp_2m_sde lcm
    img2img_pndm img2img_euler inpaint_ddim inpaint_euler_a inpaint9_dpmpp inpaint9_unipc
    eurosat
}

#[test]
fn no_case_is_left_out() {
    for entry in fs::read_dir(golden::path("pipelines")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        assert!(
            !entry.path().join("case.json").exists() || CASES.contains(&name.as_str()),
            "{name}"
        );
    }
}

/// An image does not depend on how many are drawn with it, on its place among them, or on the threads.
fn check_company(name: &str, dtype: DType) -> Result<()> {
    let case = Case::open(name)?;
    let model = case.load(dtype, Device::Cpu)?;
    let mut request = Request { seed: 1, ..case.request() };
    request.settings.steps = Some(3);
    let requests = seeds(&request, 7);
    let draw = |requests: &[Request], limit: usize, threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| generate(&model, requests.to_vec(), limit))
    };
    let alone = draw(&requests, 1, 1)?;
    assert_ne!(alone[0].picture, alone[1].picture);
    for (limit, threads) in [(1, 2), (2, 1), (2, 2), (7, 1), (7, 2)] {
        for reversed in [false, true] {
            let mut requests = requests.clone();
            if reversed {
                requests.reverse();
            }
            let mut others = draw(&requests, limit, threads)?;
            if reversed {
                others.reverse();
            }
            for (i, (one, other)) in alone.iter().zip(&others).enumerate() {
                let what = format!("{name}: seed {} of {limit}, {threads} threads", i + 1);
                assert_drawn_alike(&what, one, other);
            }
        }
    }
    Ok(())
}

#[test]
fn company_changes_no_image_in_f32() -> Result<()> {
    check_company("pndm", DType::F32)
}

#[test]
fn company_changes_no_image_in_bf16() -> Result<()> {
    check_company("unipc_v", DType::BF16)
}

#[test]
fn company_changes_no_image_with_noise_in_every_step() -> Result<()> {
    check_company("euler_a_clip_skip", DType::F32)
}

#[test]
fn company_changes_no_painting() -> Result<()> {
    check_company("inpaint9_dpmpp", DType::F32)
}

/// What a server does with a run: eight pictures of different prompts, seeds, guidance, samplers and steps, two of
/// which join late, one cancelled, one made non-finite. Each of the others is the one drawn alone.
fn check_run(dtype: DType) -> Result<()> {
    let model = Case::open("pndm")?.load(dtype, Device::Cpu)?;
    let picture = |prompt: &str, seed: u64, scale: f32, sampler: &str, steps: usize| Request {
        settings: Settings {
            prompt: prompt.into(),
            guidance_scale: Some(scale),
            scheduler: Some(sampler.into()),
            steps: Some(steps),
            ..Settings::default()
        },
        seed,
        ..Request::default()
    };
    let mut requests = [
        picture("a satellite image of a river", 1, 7.5, "ddim", 6),
        picture("a forest", 2, 1.0, "euler_a", 5),
        // Weights beyond f32 once they are multiplied: the hidden states are infinite.
        picture("(a pasture:300000000000000000000000000000000000000)", 3, 3.0, "unipc", 4),
        picture("an airport", 4, 2.0, "heun", 3),
        picture(&"highways and houses ".repeat(40), 5, 4.0, "dpm++2m_karras", 7),
        picture("(a lake:1.4)", 6, 9.0, "pndm", 4),
        picture("", 7, 5.0, "dpm++2m_sde", 5),
        picture("a sea", 8, 1.0, "lcm", 4),
    ];
    requests[0].settings.negative_prompt = "clouds".into();
    requests[3].settings.guidance_rescale = 0.7;
    // Its context is longer than that of the others.
    requests[4].settings.long_prompts = LongPrompt::Chunk;
    requests[5].init = Some(Arc::new(InitImage {
        image: RgbImage::from_fn(32, 32, |x, y| image::Rgb([8 * x as u8, 8 * y as u8, 90])).into(),
        mask: None,
    }));
    requests[6].settings.vae_tiling = true;
    let (late, cancelled, overflowing) = ([6, 7], 1, 2);

    let mut run = Run::new(&model, model.default_size(), 5)?;
    let mut ids = Vec::new();
    for request in &requests[..6] {
        ids.push(run.join(request.clone())?);
    }
    let mut drawn: Vec<Drawn> = requests.iter().map(|_| Drawn::default()).collect();
    let mut results: Vec<Option<Result<RgbImage>>> = requests.iter().map(|_| None).collect();
    while !run.is_empty() {
        for event in run.step()? {
            match event {
                Event::Stepped { slot, latents, evaluated } => {
                    drawn[slot.0].latents.push(latents);
                    assert_eq!(drawn[slot.0].latents.len(), evaluated);
                }
                Event::Finished { slot, result } => {
                    assert!(results[slot.0].is_none(), "{slot:?} finishes twice");
                    results[slot.0] = Some(result.and_then(|picture| picture.rgb()));
                }
                _ => {}
            }
        }
        if ids.len() == 6 && drawn[0].latents.len() == 2 {
            for i in late {
                ids.push(run.join(requests[i].clone())?);
            }
            // Goes before those that wait and those that began.
            run.set_priority(ids[7], 1);
            requests[cancelled].cancel.cancel();
        }
    }
    assert_eq!(ids, (0..8).map(SlotId).collect::<Vec<_>>());

    for (i, (mut one, result)) in drawn.into_iter().zip(results).enumerate() {
        let what = format!("slot {i} in {dtype}");
        match result.unwrap_or_else(|| panic!("{what} did not finish")) {
            Err(Error::Interrupted) => assert_eq!(i, cancelled),
            // Found at its first step, not when all are made.
            Err(Error::NotFinite(_)) => assert_eq!((i, one.latents.len()), (overflowing, 0)),
            Err(error) => panic!("{what}: {error}"),
            Ok(picture) => {
                assert!(i != cancelled && i != overflowing, "{what}");
                one.picture = picture;
                let alone = generate(&model, vec![requests[i].clone()], 1)?.remove(0);
                assert_drawn_alike(&what, &one, &alone);
            }
        }
    }
    Ok(())
}

#[test]
fn eight_slots_draw_what_each_draws_alone_in_f32() -> Result<()> {
    check_run(DType::F32)
}

#[test]
fn eight_slots_draw_what_each_draws_alone_in_bf16() -> Result<()> {
    check_run(DType::BF16)
}

#[test]
fn a_run_refuses_what_it_cannot_draw() -> Result<()> {
    let model = Case::open("pndm")?.load(DType::F32, Device::Cpu)?;
    let mut run = Run::new(&model, model.default_size(), 2)?;
    let mut refuses = |change: fn(&mut Request), field: &str| {
        let mut request = Request::default();
        change(&mut request);
        match run.join(request) {
            Err(Error::Argument { name, .. }) => assert_eq!(name, field),
            other => panic!("{field}: {other:?}"),
        }
    };
    refuses(|r| r.settings.width = Some(512), "width");
    refuses(|r| r.settings.steps = Some(0), "steps");
    refuses(|r| r.settings.scheduler = Some("magic".into()), "scheduler");
    refuses(|r| r.settings.clip_skip = 99, "clip_skip");
    refuses(|r| r.settings.strength = Some(0.5), "init_image");
    assert!(run.is_empty());
    assert!(matches!(Run::new(&model, (64, 64), 0), Err(Error::Argument { name: "batch", .. })));
    Ok(())
}

/// A picture of a higher priority takes the place of one that was begun, which pauses and goes on unharmed.
#[test]
fn priorities_decide_who_goes_first() -> Result<()> {
    let model = Case::open("pndm")?.load(DType::F32, Device::Cpu)?;
    let mut request = Request::default();
    (request.settings.steps, request.settings.scheduler) = (Some(3), Some("dpm++2m".into()));
    let requests = seeds(&request, 2);
    let mut run = Run::new(&model, model.default_size(), 1)?;
    let ids = [run.join(requests[0].clone())?, run.join(requests[1].clone())?];
    let mut finished = Vec::new();
    while !run.is_empty() {
        for event in run.step()? {
            match event {
                Event::Stepped { slot, evaluated: 1, .. } if slot == ids[0] => {
                    run.set_priority(ids[1], 1);
                }
                Event::Finished { slot, result } => finished.push((slot, result?)),
                _ => {}
            }
        }
    }
    for ((slot, picture), i) in finished.into_iter().zip([1, 0]) {
        assert_eq!(slot, ids[i]);
        assert!(picture == model.draw(requests[i].clone())?, "{i}");
    }
    Ok(())
}

/// A server shares a model between threads and moves runs to them.
#[test]
fn threads_share_models_and_move_runs() {
    fn share<T: Send + Sync>() {}
    fn give<T: Send>() {}
    share::<TextToImage>();
    share::<Request>();
    give::<Run<'_>>();
    give::<Event>();
}

/// Long work stops inside of itself too: between the chunks of a prompt and the tiles of a picture.
#[test]
fn cancellation_reaches_into_long_prompts_and_large_pictures() -> Result<()> {
    let model = Case::open("pndm")?.load(DType::F32, Device::Cpu)?;
    let cancel = Cancel::default();
    cancel.cancel();
    let latents = Tensor::zeros([1, 64, 64, 4], DType::F32, Device::Cpu)?;
    for tiled in [true, false] {
        assert!(matches!(model.decode(&latents, tiled, &cancel), Err(Error::Interrupted)));
    }
    let request = Request { cancel, ..Request::default() };
    assert!(matches!(model.draw(request), Err(Error::Interrupted)));
    Ok(())
}
