//! The interface of AUTOMATIC1111's web UI: `/sdapi/v1/...`. What asks for something that is not here is refused by the field's
//! name; what has its neutral value, or changes nothing in a picture, is passed over.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Json as Reply;
use axum::extract::{Extension, State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use nadir::pipeline::sampler::SamplerConfig;
use nadir::pipeline::{Cancel, Preprocessor, Settings};
use nadir::text::weighting::Syntax;

use super::{decoded, draw};
use crate::app::serve::App;
use crate::app::serve::body::Json;
use crate::app::serve::engine::What;
use crate::app::serve::fault::{ErrorBody, Fault};
use crate::app::serve::guard::Peer;
use crate::app::serve::jobs::blocking;
use crate::app::serve::picture::{Asked, Followed, Mask};
use crate::app::serve::queue::Client;

/// Pictures in the web UI's words.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct Pictures {
    prompt: String,
    negative_prompt: String,
    /// -1: a random one
    seed: Option<i64>,
    steps: Option<usize>,
    cfg_scale: Option<f32>,
    width: Option<usize>,
    height: Option<usize>,
    batch_size: Option<usize>,
    n_iter: Option<usize>,
    sampler_name: Option<String>,
    sampler_index: Option<String>,
    /// `Karras`, `Automatic`
    scheduler: Option<String>,
    eta: Option<f32>,
    denoising_strength: Option<f64>,
    /// Pictures to start from, in base64: one
    init_images: Vec<String>,
    /// White is painted anew
    mask: Option<String>,
    inpainting_mask_invert: Option<Value>,
    send_images: Option<bool>,
    /// Of them `CLIP_stop_at_last_layers`
    override_settings: Map<String, Value>,
    /// Of them ControlNet's: `{"controlnet": {"args": [UNIT, ...]}}`, a unit for each ControlNet of the server, in their order
    #[schema(value_type = Object)]
    alwayson_scripts: Option<Scripts>,
    /// What else is asked for
    #[serde(flatten)]
    #[schema(ignore)]
    rest: Map<String, Value>,
}

/// Scripts by their names.
type Scripts = BTreeMap<String, Script>;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Script {
    args: Vec<Value>,
}

/// What the ControlNet extension (`Mikubill/sd-webui-controlnet`) says of one picture. Fields of its own pictures and of memory are
/// passed over.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Unit {
    enabled: bool,
    /// In base64; older clients call it `input_image`, others have it in `{"image": ...}`
    #[serde(alias = "input_image")]
    image: Value,
    mask: Value,
    module: Option<String>,
    /// A ControlNet of the server by its name, which says no more than its place
    model: Option<String>,
    weight: f32,
    guidance_start: f64,
    guidance_end: f64,
    /// The thresholds of `canny`
    threshold_a: Option<f64>,
    threshold_b: Option<f64>,
    control_mode: Value,
}

impl Default for Unit {
    fn default() -> Self {
        Self {
            enabled: true,
            image: Value::Null,
            mask: Value::Null,
            module: None,
            model: None,
            weight: 1.0,
            guidance_start: 0.0,
            guidance_end: 1.0,
            threshold_a: None,
            threshold_b: None,
            control_mode: Value::Null,
        }
    }
}

/// Where a unit's fields are.
const UNITS: &str = "alwayson_scripts.controlnet.args";

impl Unit {
    /// The picture to follow, and whether the prompt is to count less than it.
    fn followed(self, i: usize, nets: &[PathBuf]) -> Result<(Followed, bool), Fault> {
        let wrong =
            |field: &str, text: &str| Err(Fault::field(format!("{UNITS}[{i}].{field}"), text));
        let picture = match &self.image {
            Value::Object(parts) => parts.get("image").and_then(Value::as_str),
            image => image.as_str(),
        };
        let Some(picture) = picture else { return wrong("image", "expected a picture in base64") };
        if !matches!(self.mask, Value::Null) && self.mask != json!("") {
            return wrong("mask", "not supported here: leave it out");
        }
        let name =
            |net: &PathBuf| net.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let named = self.model.as_deref().filter(|name| !name.eq_ignore_ascii_case("none"));
        // `control_canny [d14c016b]`
        let named = named.map(|name| name.split(" [").next().unwrap_or(name));
        if let Some(named) = named
            && !nets.is_empty()
            && nets.get(i).map(name).as_deref() != Some(named)
        {
            let names: Vec<_> = nets.iter().map(name).collect();
            let text = format!("the server's ControlNets are, in this order: {}", names.join(", "));
            return wrong("model", &text);
        }
        let threshold = |given: Option<f64>, default: u16| match given {
            // -1 stands for what the module takes of itself.
            None | Some(-1.0) => Some(default),
            Some(x) if (0.0..=f64::from(u16::MAX)).contains(&x) => Some(x.round() as u16),
            Some(_) => None,
        };
        let preprocessor = match self.module.as_deref().map(str::to_lowercase).as_deref() {
            None | Some("" | "none") => Preprocessor::AsItIs,
            Some("canny") => {
                match (threshold(self.threshold_a, 100), threshold(self.threshold_b, 200)) {
                    (Some(low), Some(high)) if low <= high => Preprocessor::Canny(low, high),
                    _ => return wrong("threshold_a", "from 0 to threshold_b"),
                }
            }
            Some(_) => return wrong("module", "none or canny"),
        };
        let guess = match &self.control_mode {
            Value::Null => false,
            mode if *mode == json!(0) || *mode == json!("Balanced") => false,
            mode if *mode == json!(2) || *mode == json!("ControlNet is more important") => true,
            _ => return wrong("control_mode", "Balanced (0) or ControlNet is more important (2)"),
        };
        let picture = decoded(UNITS, picture)?;
        let (scale, start, end) = (self.weight, self.guidance_start, self.guidance_end);
        Ok((Followed { picture, preprocessor, scale, start, end }, guess))
    }
}

/// The pictures that units follow, and whether they do in guess mode.
fn followed(scripts: Scripts, nets: &[PathBuf]) -> Result<(Vec<Followed>, bool), Fault> {
    let mut all = Vec::new();
    for (script, Script { args }) in scripts {
        if !script.eq_ignore_ascii_case("controlnet") && !args.is_empty() {
            let text = "not supported here: leave it out";
            return Err(Fault::field(format!("alwayson_scripts.{script}"), text));
        }
        for (i, unit) in args.into_iter().enumerate() {
            let unit: Unit = serde_json::from_value(unit)
                .map_err(|error| Fault::field(format!("{UNITS}[{i}]"), error.to_string()))?;
            if unit.enabled {
                all.push(unit.followed(i, nets)?);
            }
        }
    }
    let guess = all.first().is_some_and(|(_, guess)| *guess);
    if all.iter().any(|(_, other)| *other != guess) {
        return Err(Fault::field(format!("{UNITS}.control_mode"), "the same for all units"));
    }
    Ok((all.into_iter().map(|(followed, _)| followed).collect(), guess))
}

/// Pictures, and how they were made.
#[derive(Serialize, ToSchema)]
pub struct Drawn {
    /// PNGs in base64
    images: Vec<String>,
    parameters: Value,
    /// JSON in a text
    info: String,
}

/// Fields of ours, as this interface calls them.
const NAMES: [(&str, &str); 10] = [
    ("guidance_scale", "cfg_scale"),
    ("scheduler", "sampler_name"),
    ("strength", "denoising_strength"),
    ("init_image", "init_images"),
    ("mask_image", "mask"),
    ("num_images", "batch_size"),
    ("control_image", UNITS),
    ("control_scale", "alwayson_scripts.controlnet.args.weight"),
    ("control_start", "alwayson_scripts.controlnet.args.guidance_start"),
    ("control_end", "alwayson_scripts.controlnet.args.guidance_end"),
];

/// Fields that make another picture, and the values with which they do not.
fn neutral(field: &str, value: &Value) -> bool {
    let is = |neutral: &[Value]| neutral.contains(value);
    match field {
        "enable_hr" | "restore_faces" | "tiling" | "refiner_checkpoint" | "subseed_strength"
        | "script_name" | "firstpass_image" | "hr_upscaler" | "s_churn" | "s_tmin"
        | "latent_mask" => is(&[Value::Null, json!(false), json!(0), json!(0.0), json!("")]),
        "script_args" | "styles" => is(&[Value::Null, json!([])]),
        "s_noise" => is(&[Value::Null, json!(1), json!(1.0)]),
        "seed_resize_from_w" | "seed_resize_from_h" => is(&[Value::Null, json!(-1), json!(0)]),
        // The whole picture is what is drawn.
        "inpaint_full_res" => is(&[Value::Null, json!(false), json!(0)]),
        _ => true,
    }
}

impl Pictures {
    /// `nets`: the server's ControlNets.
    fn asked(mut self, nets: &[PathBuf]) -> Result<(Asked, bool), Fault> {
        // Without `enable_hr` it says nothing.
        let enlarged = self.rest.get("enable_hr") == Some(&json!(true));
        for (field, value) in &self.rest {
            let idle = !enlarged && field.starts_with("hr_");
            // How to paint is said where nothing is painted, too.
            let idle = idle || (field.starts_with("inpaint") && self.mask.is_none());
            if !idle && !neutral(field, value) {
                return Err(Fault::field(field.clone(), "not supported here: leave it out"));
            }
        }
        let inverted = self.inpainting_mask_invert.as_ref();
        if self.mask.is_some() && inverted.is_some_and(|x| *x != json!(0) && *x != json!(false)) {
            let text = "not supported here: invert the mask";
            return Err(Fault::field("inpainting_mask_invert", text));
        }
        let clip = self.override_settings.remove("CLIP_stop_at_last_layers");
        let clip_skip = match clip.as_ref().map(|n| n.as_u64().filter(|n| (1..=12).contains(n))) {
            // Its 1 leaves none out.
            Some(Some(n)) => n as usize - 1,
            Some(None) => {
                return Err(Fault::field("override_settings.CLIP_stop_at_last_layers", "1 to 12"));
            }
            None => 0,
        };
        if let Some(field) = self.override_settings.keys().next() {
            let text = "not supported here: leave it out";
            return Err(Fault::field(format!("override_settings.{field}"), text));
        }
        if self.init_images.len() > 1 {
            return Err(Fault::field("init_images", "one picture"));
        }
        let init = self.init_images.pop();
        let init = init.map(|text| decoded("init_images", &text)).transpose()?;
        let mask = self.mask.map(|text| decoded("mask", &text)).transpose()?;
        let named = [self.sampler_name, self.sampler_index].into_iter().flatten();
        let mut scheduler = named.into_iter().find(|name| !name.is_empty());
        match self.scheduler.as_deref().map(str::to_lowercase).as_deref() {
            None | Some("" | "automatic") => {}
            Some("karras") => {
                if let Some(name) = &mut scheduler
                    && !name.to_lowercase().ends_with("karras")
                {
                    name.push_str(" Karras");
                }
            }
            Some(_) => return Err(Fault::field("scheduler", "Automatic or Karras")),
        }
        let settings = Settings {
            prompt: self.prompt,
            negative_prompt: self.negative_prompt,
            width: self.width,
            height: self.height,
            steps: self.steps,
            guidance_scale: self.cfg_scale,
            eta: self.eta.unwrap_or(0.0),
            clip_skip,
            scheduler,
            strength: self.denoising_strength.filter(|_| init.is_some()),
            prompt_syntax: Syntax::Webui,
            ..Settings::default()
        };
        let seed = match self.seed {
            None | Some(-1) => None,
            Some(seed) => Some(
                u64::try_from(seed)
                    .map_err(|_| Fault::field("seed", "a number from 0, or -1 for a random one"))?,
            ),
        };
        let many = self.batch_size.unwrap_or(1).checked_mul(self.n_iter.unwrap_or(1));
        let num_images = many.unwrap_or(usize::MAX);
        let mask = mask.map(Mask::White);
        let (controls, guess_mode) = followed(self.alwayson_scripts.unwrap_or_default(), nets)?;
        let asked = Asked {
            settings,
            seed,
            num_images,
            init,
            mask,
            controls,
            guess_mode,
            ..Asked::default()
        };
        Ok((asked, self.send_images.unwrap_or(true)))
    }
}

/// What clients wait for: `/progress` and `/interrupt` are about a client's own.
#[derive(Default)]
pub struct Waiting(Mutex<BTreeMap<u64, Wait>>);

struct Wait {
    client: Client,
    cancel: Cancel,
    /// Of each picture.
    steps: Vec<(usize, usize)>,
    eta: Option<Duration>,
}

impl Waiting {
    fn with<T>(&self, look: impl FnOnce(&mut BTreeMap<u64, Wait>) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Leaves the list with the request, however that ends.
struct Listed<'a>(&'a Waiting, u64);

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.0.with(|all| all.remove(&self.1));
    }
}

async fn drawn(app: &Arc<App>, peer: Peer, pictures: Pictures) -> Result<Reply<Drawn>, Fault> {
    let (asked, send) = pictures.asked(&app.about.controlnet)?;
    let ready = app.pictures(asked).await?;
    let (signature, seeds) = (ready.signature.clone(), ready.seeds.clone());
    let wait = Wait {
        client: peer.client(),
        cancel: ready.cancel.clone(),
        steps: vec![(0, 1); ready.works.len()],
        eta: None,
    };
    let number = crate::app::serve::random();
    app.waiting.with(|all| all.insert(number, wait));
    let listed = Listed(&app.waiting, number);
    let watch = |index: usize, what: &What| {
        if let What::Stepped { evaluated, evaluations, eta } = what {
            app.waiting.with(|all| {
                if let Some(wait) = all.get_mut(&number) {
                    wait.steps[index] = (*evaluated, *evaluations);
                    wait.eta = *eta;
                }
            });
        }
    };
    let pictures = draw(app, peer, ready, watch).await?;
    drop(listed);
    let settings = serde_json::to_value(signature.settings()).unwrap_or_default();
    let done = blocking(move || -> nadir::Result<_> {
        let mut texts = Vec::new();
        let mut images = Vec::new();
        for (picture, i) in pictures.iter().zip(0..) {
            let [parameters, _] = signature.texts(i)?;
            texts.push(parameters.1);
            if send {
                images.push(BASE64.encode(signature.png(picture, i)?));
            }
        }
        let info = json!({
            "prompt": signature.settings().prompt,
            "negative_prompt": signature.settings().negative_prompt,
            "seed": seeds[0],
            "all_seeds": seeds,
            "steps": signature.settings().steps,
            "cfg_scale": signature.settings().guidance_scale,
            "width": signature.settings().width,
            "height": signature.settings().height,
            "sampler_name": signature.sampler(),
            "batch_size": texts.len(),
            "index_of_first_image": 0,
            "infotexts": texts,
        });
        Ok((images, info.to_string()))
    });
    let (images, info) = done.await??;
    Ok(Reply(Drawn { images, parameters: settings, info }))
}

/// Draw pictures (web UI)
#[utoipa::path(post, path = "/sdapi/v1/txt2img", tag = "web UI", request_body = Pictures, responses(
    (status = 200, body = Drawn), (status = 400, body = ErrorBody), (status = 429, body = ErrorBody)))]
pub async fn txt2img(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    Json(mut pictures): Json<Pictures>,
) -> Result<Reply<Drawn>, Fault> {
    // Of a client that sends all fields of both.
    pictures.init_images.clear();
    drawn(&app, peer, pictures).await.map_err(|fault| fault.renamed(&NAMES))
}

/// Draw pictures from a picture (web UI)
#[utoipa::path(post, path = "/sdapi/v1/img2img", tag = "web UI", request_body = Pictures, responses(
    (status = 200, body = Drawn), (status = 400, body = ErrorBody), (status = 429, body = ErrorBody)))]
pub async fn img2img(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    Json(pictures): Json<Pictures>,
) -> Result<Reply<Drawn>, Fault> {
    if pictures.init_images.is_empty() {
        return Err(Fault::field("init_images", "expected a picture in base64"));
    }
    drawn(&app, peer, pictures).await.map_err(|fault| fault.renamed(&NAMES))
}

/// Samplers (web UI)
#[utoipa::path(get, path = "/sdapi/v1/samplers", tag = "web UI", responses((status = 200, body = Value)))]
pub async fn samplers(State(app): State<Arc<App>>) -> Result<Reply<Value>, Fault> {
    let sampler = |name: String| {
        let shown = app.about.model.sampler_name(Some(&name)).unwrap_or_else(|_| name.clone());
        json!({ "name": shown, "aliases": [name], "options": {} })
    };
    Ok(Reply(SamplerConfig::names().map(sampler).collect()))
}

/// Models (web UI)
#[utoipa::path(get, path = "/sdapi/v1/sd-models", tag = "web UI", responses((status = 200, body = Value)))]
pub async fn models(State(app): State<Arc<App>>) -> Result<Reply<Value>, Fault> {
    let (name, hash) = (&app.about.model.name, app.models()?.image.fingerprint().to_owned());
    Ok(Reply(json!([{
        "title": format!("{name} [{hash}]"), "model_name": name, "hash": hash, "sha256": null,
        "filename": name, "config": null,
    }])))
}

/// Settings of the server (web UI): what is loaded
#[utoipa::path(get, path = "/sdapi/v1/options", tag = "web UI", responses((status = 200, body = Value)))]
pub async fn options(State(app): State<Arc<App>>) -> Result<Reply<Value>, Fault> {
    let (name, hash) = (&app.about.model.name, app.models()?.image.fingerprint().to_owned());
    Ok(Reply(json!({
        "sd_model_checkpoint": format!("{name} [{hash}]"), "sd_checkpoint_hash": hash,
        "samples_format": "png", "CLIP_stop_at_last_layers": 1,
    })))
}

/// How far the client's own pictures are (web UI)
#[utoipa::path(get, path = "/sdapi/v1/progress", tag = "web UI", responses((status = 200, body = Value)))]
pub async fn progress(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
) -> Reply<Value> {
    let client = peer.client();
    let (steps, eta) = app.waiting.with(|all| {
        let own: Vec<&Wait> = all.values().filter(|wait| wait.client == client).collect();
        let steps: Vec<_> = own.iter().flat_map(|wait| wait.steps.clone()).collect();
        (steps, own.iter().filter_map(|wait| wait.eta).max())
    });
    let share = |(made, all): &(usize, usize)| *made as f64 / (*all).max(1) as f64;
    let progress = steps.iter().map(share).sum::<f64>() / steps.len().max(1) as f64;
    let (made, all) = steps.iter().min_by_key(|(made, _)| *made).copied().unwrap_or((0, 0));
    Reply(json!({
        "progress": progress,
        "eta_relative": eta.map_or(0.0, |eta| eta.as_secs_f64()),
        "state": {
            "skipped": false, "interrupted": false, "job": if steps.is_empty() { "" } else { "txt2img" },
            "job_count": steps.len(), "job_no": 0, "job_timestamp": "0",
            "sampling_step": made, "sampling_steps": all,
        },
        "current_image": null,
        "textinfo": null,
    }))
}

/// Stop the client's own pictures (web UI)
#[utoipa::path(post, path = "/sdapi/v1/interrupt", tag = "web UI", responses((status = 200, body = Value)))]
pub async fn interrupt(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
) -> Reply<Value> {
    let client = peer.client();
    app.waiting.with(|all| {
        let own = all.values().filter(|wait| wait.client == client);
        own.for_each(|wait| {
            wait.cancel.cancel();
        });
    });
    app.engine.sweep();
    Reply(json!({}))
}
