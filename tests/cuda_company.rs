//! Pictures on a GPU, or on the virtual device that stands in for one, in different company.
//!
//! Without a device these tests do nothing, but under `NADIR_REQUIRE_CUDA`, which `cargo xtask test` sets, they fail.

#[path = "golden/case.rs"]
#[allow(dead_code, reason = "the tests against diffusers use the rest")]
mod case;
#[allow(dead_code, reason = "as above")]
mod golden;
#[path = "golden/gpu.rs"]
mod gpu;

use case::{Case, seeds};
use golden::assert_same;
use gpu::gpu;
use nadir::pipeline::{Cancel, Event, Request, TextToImage};
use nadir::tensor::{DType, Tensor};
use nadir::{Error, Result};

/// Latents behind every step [1, h, w, 4] of requests, drawn `limit` at a time. A request is cancelled behind its last step:
/// pictures are decoded one by one, in whatever company they were.
fn latents(model: &TextToImage, requests: &[Request], limit: usize) -> Result<Vec<Vec<Tensor>>> {
    let requests: Vec<Request> = requests
        .iter()
        .map(|request| Request { cancel: Cancel::default(), ..request.clone() })
        .collect();
    let cancels: Vec<Cancel> = requests.iter().map(|request| request.cancel.clone()).collect();
    let mut all = vec![Vec::new(); requests.len()];
    let mut last = 0;
    model.generate(requests, limit, &mut |event| {
        match event {
            Event::Began { evaluations, .. } => last = evaluations,
            Event::Stepped { slot, evaluated, latents } => {
                all[slot.0].push(latents);
                if evaluated == last {
                    cancels[slot.0].cancel();
                }
            }
            Event::Finished { result, .. } => {
                assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
            }
            _ => {}
        }
        Ok(())
    })?;
    assert!(all.iter().all(|steps| steps.len() >= 2), "a graph is captured in the second step");
    Ok(all)
}

/// A picture does not depend on how many are drawn with it, or on its place among them: each of seven that are drawn together
/// is what it is alone, or in a pair, in the other order.
fn check_company(name: &str, dtype: DType) -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let case = Case::open(name)?;
    let model = case.load(dtype, gpu)?;
    let mut request = case.request();
    request.settings.steps = Some(2);
    let requests = seeds(&request, 7);
    let together = latents(&model, &requests, 7)?;
    let mut others = latents(&model, &requests[..3], 1)?;
    let reversed: Vec<Request> = requests[3..].iter().rev().cloned().collect();
    others.extend(latents(&model, &reversed, 2)?.into_iter().rev());
    for (i, (together, other)) in together.iter().zip(&others).enumerate() {
        assert_eq!(together.len(), other.len());
        for (step, (a, b)) in together.iter().zip(other).enumerate() {
            assert_same(&format!("{name} in {dtype}: picture {i}, step {step}"), a, b);
        }
    }
    assert_ne!(together[0][1].to_vec::<f32>()?, together[1][1].to_vec::<f32>()?);
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
