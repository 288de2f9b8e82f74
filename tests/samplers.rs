//! Samplers against the trajectories of diffusers' schedulers (`golden/samplers.py`), and their configuration.

#![allow(clippy::neg_cmp_op_on_partial_ord)] // !(error <= tolerance) fails on NaN

use nadir::noise::Mt19937;
use nadir::ops::elementwise::scale;
use nadir::ops::sampler::{RECALLED, StepInputs, StepWeights, guided_step};
use nadir::pipeline::sampler::{LinearStep, Sampler, SamplerConfig};
use nadir::tensor::{Device, Tensor};
use safetensors::SafeTensors;
use serde_json::{Value, json};

const GOLDEN: &[u8] = include_bytes!("golden/samplers.safetensors");
const SHAPE: [usize; 4] = [1, 4, 3, 5];
const LEN: usize = 60;

fn golden(file: &SafeTensors, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).expect(name);
    let chunks = tensor.data().chunks_exact(4);
    chunks.map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn tensor(values: Vec<f32>) -> Tensor {
    Tensor::from_vec(values, SHAPE).unwrap()
}

/// The generator's model.
fn model(x: &Tensor, t: f32) -> Tensor {
    let offset = 0.2 * (t as f64 / 400.0).cos();
    let values = x.to_vec::<f32>().unwrap();
    tensor(
        values.into_iter().map(|x| (0.8 * (1.5 * x as f64 + 0.3).sin() + offset) as f32).collect(),
    )
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m, x| m.max(x.abs()))
}

fn largest_difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    // f32::max would drop a NaN.
    differences.fold(0.0, |m, d| if d <= m { m } else { d })
}

/// The steps of a run from evaluation `start` on, by the sampler itself or by its table; guided by nothing.
enum Steps {
    Own,
    Table { table: Tensor, linear: Vec<LinearStep>, kept: Vec<Tensor> },
}

impl Steps {
    /// By the table, if it has one.
    fn by_table(sampler: &dyn Sampler, start: usize) -> Option<Self> {
        let linear = sampler.linear(start).filter(|all| all.iter().all(LinearStep::is_finite))?;
        let weights: Vec<StepWeights> = linear
            .iter()
            .map(|step| StepWeights {
                guidance: [0.0, 1.0],
                kept: step.kept.map(|w| w as f32),
                sample: step.sample as f32,
                recalled: step.recalled.map(|w| w as f32),
                noise: step.noise.unwrap_or(0.0) as f32,
                input_scale: 1.0,
            })
            .collect();
        let table = StepWeights::table(&weights, Device::Cpu).unwrap();
        Some(Self::Table { table, linear, kept: Vec::new() })
    }

    fn step(
        &mut self,
        sampler: &mut dyn Sampler,
        (start, i): (usize, usize),
        output: &Tensor,
        sample: &Tensor,
        draw: &mut dyn FnMut() -> nadir::Result<Tensor>,
    ) -> nadir::Result<Tensor> {
        let Self::Table { table, linear, kept } = self else {
            return sampler.step(start + i, output, sample, draw);
        };
        let noise = linear[i].noise.map(|_| draw()).transpose()?;
        let recalled: Vec<&Tensor> = kept.iter().rev().take(RECALLED - 1).collect();
        let inputs =
            StepInputs { prediction: output, sample, noise: noise.as_ref(), recalled: &recalled };
        let made = guided_step(inputs, table, &Tensor::from_slice(&[i as u32], [1])?)?;
        kept.push(made.kept);
        Ok(made.sample)
    }
}

fn check(file: &SafeTensors, case: &Value, by_table: bool) -> Result<Option<f32>, String> {
    let name = case["name"].as_str().unwrap();
    let config = SamplerConfig::from_value("scheduler_config.json", case["config"].clone());
    let steps = case["steps"].as_u64().unwrap() as usize;
    let built = config.and_then(|config| config.build(steps, case["eta"].as_f64().unwrap()));
    let mut sampler = built.map_err(|e| e.to_string())?;

    let start = case["start"].as_u64().unwrap_or(0) as usize;
    let timesteps = sampler.timesteps()[start..].to_vec();
    let expected = golden(file, &format!("{name}/timesteps"));
    if timesteps.len() != expected.len() || !(largest_difference(&timesteps, &expected) <= 1e-3) {
        return Err(format!("timesteps {timesteps:?} are not diffusers' {expected:?}"));
    }

    let mut generator = Mt19937::new(case["seed"].as_u64().unwrap());
    let mut draw = || Ok(tensor(generator.randn(LEN)));
    let noise = draw().unwrap();
    let mut sample = if case["start"].is_null() {
        scale(&noise, sampler.init_noise_sigma()).unwrap()
    } else {
        let image = tensor((0..LEN).map(|i| (i as f32).sin()).collect());
        sampler.add_noise(&image, &noise, start).unwrap()
    };
    let samples = golden(file, &format!("{name}/samples"));
    let scales = golden(file, &format!("{name}/scales"));
    let mut expected = samples.chunks_exact(LEN);
    let mut worst = 0f32;
    let mut compare = |what: String, sample: &Tensor| {
        let expected = expected.next().unwrap();
        let error = largest_difference(&sample.to_vec::<f32>().unwrap(), expected);
        let after = largest(expected);
        worst = worst.max(error / after);
        // The reference forms a step's weights in f32 from logarithms of up to 8 and differences of numbers near 1, good
        // to some 1e-6 of the sample; some runs have 20 steps.
        if !(error <= 1e-5 * after) {
            Err(format!("{what}: off by {:e}", error / after))
        } else {
            Ok(())
        }
    };
    compare("first sample".to_owned(), &sample)?;
    sampler.begin(start);
    let mut steps = Steps::Own;
    if by_table {
        let Some(table) = Steps::by_table(&*sampler, start) else { return Ok(None) };
        steps = table;
    }
    for (i, t) in timesteps.into_iter().enumerate() {
        let factor = sampler.input_scale(start + i);
        if !((factor - scales[i]).abs() <= 1e-6 * scales[i]) {
            return Err(format!("step {i}: input scale {factor} is not {}", scales[i]));
        }
        let output = model(&scale(&sample, factor).unwrap(), t);
        let stepped = steps.step(&mut *sampler, (start, i), &output, &sample, &mut draw);
        sample = stepped.map_err(|e| e.to_string())?;
        compare(format!("step {i}"), &sample)?;
    }
    Ok(Some(worst))
}

#[test]
fn trajectories_equal_diffusers() {
    assert_eq!(check_all(false), 0);
}

/// Steps by a table are those of the sampler: all but those of runs that bound the denoised sample, and of PNDM's Runge-Kutta.
#[test]
fn trajectories_by_tables_equal_diffusers() {
    let without = check_all(true);
    assert!(without <= 40, "{without} cases have no table");
}

/// How many cases have no table.
fn check_all(by_table: bool) -> usize {
    let mut without = 0;
    let file = SafeTensors::deserialize(GOLDEN).unwrap();
    let (_, header) = SafeTensors::read_metadata(GOLDEN).unwrap();
    let cases = &header.metadata().as_ref().unwrap()["cases"];
    let cases: Vec<Value> = serde_json::from_str(cases).unwrap();
    let mut failures = Vec::new();
    let mut errors = Vec::new();
    for case in &cases {
        match check(&file, case, by_table) {
            Ok(Some(worst)) => errors.push((worst, case)),
            Ok(None) => without += 1,
            Err(why) => failures.push(format!("{case}: {why}")),
        }
    }
    errors.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (worst, case) in errors.iter().take(10) {
        println!("{worst:e} {case}");
    }
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), cases.len(), failures.join("\n"));
    without
}

fn config(fields: Value) -> SamplerConfig {
    SamplerConfig::from_value("scheduler/scheduler_config.json", fields).unwrap()
}

/// The message of building from `fields`, or of reading them.
fn refusal(fields: Value, steps: usize) -> String {
    match SamplerConfig::from_value("scheduler/scheduler_config.json", fields)
        .and_then(|c| c.build(steps, 0.0))
    {
        Ok(_) => panic!("built"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_is_not_implemented_is_refused_by_name() {
    let refused = [
        (
            "FlowMatchEulerDiscreteScheduler",
            "_class_name",
            json!("FlowMatchEulerDiscreteScheduler"),
            "PNDMScheduler",
        ),
        ("DDPMScheduler", "variance_type", json!("learned_range"), "fixed_small"),
        ("DDPMScheduler", "beta_schedule", json!("cubic"), "scaled_linear"),
        ("DDIMScheduler", "prediction_type", json!("flow"), "v_prediction"),
        ("DDIMScheduler", "num_train_timesteps", json!("many"), "integer"),
        ("DDIMScheduler", "num_train_timesteps", json!(1), "from 2"),
        ("DDIMScheduler", "trained_betas", json!([0.1, 0.2]), "1000"),
        ("DDIMScheduler", "beta_end", json!(1.5), "between 0 and 1"),
        ("DDIMScheduler", "beta_end", json!([]), "a number"),
        ("DDIMScheduler", "steps_offset", json!(1000000), "at most"),
        ("DDIMScheduler", "timestep_spacing", json!("cubic"), "trailing"),
        ("PNDMScheduler", "prediction_type", json!("sample"), "epsilon"),
        ("EulerAncestralDiscreteScheduler", "prediction_type", json!("sample"), "epsilon"),
        ("EulerDiscreteScheduler", "interpolation_type", json!("cubic"), "log_linear"),
        ("EulerDiscreteScheduler", "sigma_min", json!(-1), "above 0"),
        ("EulerDiscreteScheduler", "final_sigmas_type", json!("one"), "sigma_min"),
        ("DPMSolverMultistepScheduler", "use_flow_sigmas", json!(true), "false"),
        ("DPMSolverMultistepScheduler", "variance_type", json!("learned"), "fixed_small"),
        ("DPMSolverMultistepScheduler", "solver_order", json!(4), "1, 2 or 3"),
        ("DPMSolverMultistepScheduler", "algorithm_type", json!("dpmsolver"), "sigma_min"),
        ("DPMSolverMultistepScheduler", "algorithm_type", json!("cubic"), "dpmsolver++"),
        ("DPMSolverMultistepScheduler", "prediction_type", json!("flow_prediction"), "epsilon"),
        ("UniPCMultistepScheduler", "predict_x0", json!(false), "sigma_min"),
        ("UniPCMultistepScheduler", "solver_p", json!({}), "null"),
        ("LCMScheduler", "original_inference_steps", json!(0), "from 1"),
    ];
    for (class, field, value, hint) in refused {
        let message = refusal(json!({ "_class_name": class, field: value }), 10);
        assert!(
            message.contains("scheduler_config.json") && message.contains(hint),
            "{class}.{field}: {message}"
        );
    }
    let both = json!({ "_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": true, "use_beta_sigmas": true });
    assert!(refusal(both, 10).contains("only one of"));
    assert!(refusal(json!({}), 10).contains("_class_name"));
    assert!(refusal(json!([]), 10).contains("JSON object"));
}

#[test]
fn steps_that_do_not_exist_are_refused() {
    for class in [
        "DDPMScheduler",
        "EulerDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "LCMScheduler",
        "PNDMScheduler",
    ] {
        for steps in [0, 1001, usize::MAX] {
            let message = refusal(json!({ "_class_name": class }), steps);
            assert!(message.starts_with("steps: "), "{class}, {steps}: {message}");
        }
    }
    let offset = json!({ "_class_name": "DDIMScheduler", "steps_offset": 1 });
    assert!(refusal(offset, 1000).contains("steps_offset"));
    let eta = config(json!({ "_class_name": "DDIMScheduler" })).build(5, 1.5).err().unwrap();
    assert!(eta.to_string().starts_with("eta: 1.5"), "{eta}");
}

/// Every count of steps gives a schedule that falls, whatever the arithmetic of its spacing rounds to.
#[test]
fn timesteps_fall_for_every_count() {
    for class in ["DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"] {
        for spacing in ["linspace", "leading", "trailing"] {
            for steps in 1..500 {
                let sampler = config(json!({ "_class_name": class, "timestep_spacing": spacing }))
                    .build(steps, 0.0)
                    .unwrap();
                let timesteps = sampler.timesteps();
                assert_eq!(timesteps.len(), steps, "{class} {spacing}");
                assert!(timesteps.is_sorted_by(|a, b| a > b), "{class} {spacing} {steps}");
                assert!(
                    timesteps.iter().all(|&t| (0.0..1000.0).contains(&t)),
                    "{class} {spacing} {steps}"
                );
            }
        }
    }
}

#[test]
fn names_and_their_spellings() {
    let folder = config(
        json!({ "_class_name": "PNDMScheduler", "skip_prk_steps": true, "steps_offset": 1 }),
    );
    let shown = |name: &str| folder.clone().with_sampler(name).unwrap().display_name();
    for (names, display) in [
        (&["dpm++2m_karras", "DPM++ 2M Karras", "dpmpp_2m_karras"][..], "DPM++ 2M Karras"),
        (&["dpm++2m", "dpmpp_2m", "DPM++ 2M", "DPMSolverMultistepScheduler"], "DPM++ 2M"),
        (&["dpm++2m_sde", "DPM++ 2M SDE"], "DPM++ 2M SDE"),
        (&["dpm++2m_sde_karras", "DPM++ 2M SDE Karras"], "DPM++ 2M SDE Karras"),
        (&["euler", "Euler", "k_euler", "EulerDiscreteScheduler"], "Euler"),
        (&["euler_a", "Euler a", "euler-ancestral"], "Euler a"),
        (&["pndm", "PLMS"], "PLMS"),
        (&["unipc", "UniPC"], "UniPC"),
        (&["lms_karras", "LMS Karras"], "LMS Karras"),
        (&["heun"], "Heun"),
        (&["ddpm"], "DDPM"),
        (&["ddim"], "DDIM"),
        (&["lcm"], "LCM"),
    ] {
        for name in names {
            assert_eq!(shown(name), display, "{name}");
        }
    }
    for name in SamplerConfig::names() {
        let config = folder.clone().with_sampler(&name).unwrap();
        config.build(10, 0.0).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(
            config.clone().with_sampler(&config.display_name()).unwrap().to_value(),
            config.to_value()
        );
    }
    for name in ["", "karras", "ddim_karras", "euler_b", "dpm++2m karras karras"] {
        let message = folder.clone().with_sampler(name).unwrap_err().to_string();
        assert!(message.contains("dpm++2m_karras"), "{message}");
    }
}

/// The rules of diffusers' pipelines and of `from_config` after them.
#[test]
fn settings_of_old_folders_are_mended() {
    let field = |config: &SamplerConfig, name: &str| config.to_value()[name].clone();
    let silent = config(json!({ "_class_name": "DDIMScheduler" }));
    let mended = silent.clone().for_stable_diffusion(false);
    assert_eq!(
        (field(&mended, "steps_offset"), field(&mended, "clip_sample")),
        (json!(1), json!(false))
    );
    // What the file did not say is the other class's default.
    assert_eq!(field(&mended.with_sampler("euler").unwrap(), "steps_offset"), Value::Null);
    let explicit =
        config(json!({ "_class_name": "DDIMScheduler", "steps_offset": 0, "clip_sample": true }));
    let euler = explicit.clone().for_stable_diffusion(false).with_sampler("euler").unwrap();
    assert_eq!(field(&euler, "steps_offset"), json!(1));
    let inpaint = explicit.for_stable_diffusion(true);
    assert_eq!(
        (field(&inpaint, "skip_prk_steps"), field(&inpaint, "clip_sample")),
        (json!(true), json!(true))
    );
}

/// diffusers writes `-Infinity`, which is no JSON.
#[test]
fn files_of_diffusers_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("scheduler_config.json");
    let text = r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity, "note": "\"-Infinity"}"#;
    std::fs::write(&path, text).unwrap();
    let config = SamplerConfig::open(&path).unwrap();
    assert_eq!(config.to_value()["note"], json!("\"-Infinity"));
    config.build(20, 0.0).unwrap();
    std::fs::write(&path, &text[..60]).unwrap();
    assert!(SamplerConfig::open(&path).unwrap_err().to_string().contains("scheduler_config.json"));
    let error = SamplerConfig::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("expected a regular file, found a folder"), "{error}");
}

#[test]
fn strength_chooses_the_start() {
    let euler = config(json!({ "_class_name": "EulerDiscreteScheduler" })).build(10, 0.0).unwrap();
    let heun = config(json!({ "_class_name": "HeunDiscreteScheduler" })).build(10, 0.0).unwrap();
    let pndm = config(json!({ "_class_name": "PNDMScheduler", "skip_prk_steps": true }))
        .build(10, 0.0)
        .unwrap();
    assert_eq!([1.0, 0.6, 0.59, 0.1].map(|s| euler.start_index(s).unwrap()), [0, 4, 5, 9]);
    assert_eq!([1.0, 0.6].map(|s| heun.start_index(s).unwrap()), [0, 8]);
    assert_eq!([1.0, 0.6].map(|s| pndm.start_index(s).unwrap()), [0, 4]);
    assert_eq!((heun.timesteps().len(), pndm.timesteps().len()), (19, 11));
    for strength in [0.0, 0.05, -0.1, 1.1, f64::NAN] {
        assert!(euler.start_index(strength).unwrap_err().to_string().contains("strength"));
    }
}

/// A run after another gives what it gives alone.
#[test]
fn begin_forgets_the_run_before() {
    let mut noise = || unreachable!("deterministic samplers draw nothing");
    for name in ["pndm", "lms", "heun", "dpm++2m", "unipc"] {
        let config = config(json!({ "_class_name": "PNDMScheduler" })).with_sampler(name).unwrap();
        let mut sampler = config.build(9, 0.0).unwrap();
        let mut run = |start: usize| {
            sampler.begin(start);
            let mut x = tensor((0..LEN).map(|i| (i as f32).cos()).collect());
            for i in start..sampler.timesteps().len() {
                x = sampler.step(i, &model(&x, 1.0), &x, &mut noise).unwrap();
            }
            x.to_vec::<f32>().unwrap()
        };
        let first = run(0);
        run(4);
        assert_eq!(run(0), first, "{name}");
    }
}
