//! Our own interface: `/api/jobs`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json as Reply;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use utoipa::ToSchema;

use nadir::pipeline::language::Sampling;
use nadir::pipeline::{Metres, Pixels, Preprocessor, Settings};
use nadir::text::weighting::{LongPrompt, Syntax};

use super::decoded;
use crate::app::serve::App;
use crate::app::serve::body::{Text, parsed};
use crate::app::serve::fault::{ErrorBody, Fault};
use crate::app::serve::guard::Peer;
use crate::app::serve::job::{Job, Kind};
use crate::app::serve::jobs::{Sent, blocking};
use crate::app::serve::picture::{self, Followed, Mask};
use crate::app::serve::queue::Priority;
use crate::app::serve::text;

/// Pictures to be drawn. What is left out is the model's own choice.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPictures {
    /// `image`
    #[allow(dead_code, reason = "read before")]
    kind: Kind,
    /// What the pictures show
    #[serde(default)]
    prompt: String,
    /// What they should not show
    #[serde(default)]
    negative_prompt: String,
    /// What the second text encoder of Stable Diffusion XL reads in place of the prompt
    #[serde(default)]
    prompt_2: String,
    /// What it reads in place of the negative prompt
    #[serde(default)]
    negative_prompt_2: String,
    /// Pixels, a multiple of 8
    width: Option<usize>,
    /// Pixels, a multiple of 8
    height: Option<usize>,
    /// Denoising steps
    #[serde(alias = "steps")]
    num_inference_steps: Option<usize>,
    /// How strongly the text is followed; 1 is none
    guidance_scale: Option<f32>,
    /// Share by which guidance is rescaled, 0 to 1
    #[serde(default)]
    guidance_rescale: f32,
    /// Noise that DDIM adds at each step, 0 to 1
    #[serde(default)]
    eta: f32,
    /// Layers of the text encoder to leave out
    #[serde(default)]
    clip_skip: usize,
    /// Sampler
    scheduler: Option<String>,
    /// Whose random numbers: `torch` or `philox`
    noise: Option<String>,
    /// What to do with a prompt that is longer than the text encoder reads: `truncate` or `chunk`
    #[serde(default)]
    #[schema(value_type = String)]
    long_prompts: LongPrompt,
    /// How weights are written: `explicit` is `(word:1.3)`, `webui` also `(word)` and `[word]`, `plain` none
    #[serde(default)]
    #[schema(value_type = String)]
    prompt_syntax: Syntax,
    /// Decode in tiles: large pictures need less memory
    #[serde(default)]
    vae_tiling: bool,
    /// Of the first picture; left out, a random one
    seed: Option<u64>,
    /// How many, with consecutive seeds
    #[serde(default = "one")]
    num_images: usize,
    /// How much of the picture to start from is drawn anew, 0 to 1
    strength: Option<f64>,
    /// Zoom level, 10 to 18, of a model that is told one
    level: Option<u32>,
    /// Metres a pixel, of a model that is told them
    gsd: Option<f64>,
    /// Where it is, `LATITUDE,LONGITUDE`, of a model that is told a place
    place: Option<String>,
    /// When it was taken, `YEAR-MONTH-DAY`, of a model that is told a date
    date: Option<String>,
    /// Share of it that clouds cover, 0 to 1, of a model that is told one
    cloud: Option<f64>,
    /// Numbers for the class embedding of any other model that has one
    class_labels: Option<Vec<f32>>,
    /// Size, down and across, that Stable Diffusion XL takes the picture to have been made smaller from
    #[schema(value_type = Option<Vec<u32>>)]
    original_size: Option<Pixels>,
    /// Where Stable Diffusion XL takes the picture to have been cropped, from the top and from the left
    #[schema(value_type = Option<Vec<u32>>)]
    crops_coords_top_left: Option<Pixels>,
    /// Size that Stable Diffusion XL takes the picture to have been brought to
    #[schema(value_type = Option<Vec<u32>>)]
    target_size: Option<Pixels>,
    /// The same of what the picture should not be
    #[schema(value_type = Option<Vec<u32>>)]
    negative_original_size: Option<Pixels>,
    /// The same of where it was cropped
    #[schema(value_type = Option<Vec<u32>>)]
    negative_crops_coords_top_left: Option<Pixels>,
    /// The same of what it was brought to
    #[schema(value_type = Option<Vec<u32>>)]
    negative_target_size: Option<Pixels>,
    /// A picture to start from, in base64
    init_image: Option<String>,
    /// Where to paint it anew: white
    mask_image: Option<String>,
    /// Pictures to follow, one for each ControlNet, in their order
    #[serde(default)]
    control_images: Vec<NewControl>,
    /// Whether they are followed whatever the prompt says
    #[serde(default)]
    guess_mode: bool,
    #[serde(default)]
    priority: Priority,
    /// Milliseconds in which it has to be done, if it is to be done at all
    deadline_ms: Option<u64>,
    /// Whether the events show pictures on their way
    #[serde(default)]
    preview: bool,
}

/// A picture to follow.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewControl {
    /// In base64
    image: String,
    /// What is made of it: `as-is`, `canny` or `canny:LOW,HIGH`
    #[serde(default)]
    preprocessor: Option<String>,
    /// How much it counts
    #[serde(default = "whole")]
    scale: f32,
    /// Share of the steps at which it begins to count
    #[serde(default)]
    start: f64,
    /// Share of the steps at which it no longer counts
    #[serde(default = "end")]
    end: f64,
}

fn whole() -> f32 {
    1.0
}

fn end() -> f64 {
    1.0
}

impl NewControl {
    fn followed(self) -> Result<Followed, Fault> {
        let Self { image, preprocessor, scale, start, end } = self;
        let preprocessor = preprocessor.as_deref().map(str::parse).transpose()?;
        // Nothing that a request says is opened.
        let preprocessor = match preprocessor.unwrap_or_default() {
            Preprocessor::Palette(_) => {
                let text = "as-is or canny: colour the classes of a mask before";
                return Err(Fault::field("control_preprocessor", text));
            }
            other => other,
        };
        let picture = decoded("control_images", &image)?;
        Ok(Followed { picture, preprocessor, scale, start, end })
    }
}

/// Texts to be written.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTexts {
    /// `text`
    #[allow(dead_code, reason = "read before")]
    kind: Kind,
    /// What to go on from
    #[serde(default)]
    prompt: String,
    /// Of the first answer; left out, a random one
    seed: Option<u64>,
    /// How many, with consecutive seeds
    #[serde(default = "one")]
    num_answers: usize,
    /// Tokens of an answer, at most
    #[serde(default = "many")]
    max_new_tokens: usize,
    /// Divides the scores; 0 takes the likeliest token always
    temperature: Option<f32>,
    /// Only the likeliest tokens; 0: all
    top_k: Option<usize>,
    /// Only the likeliest tokens that together have this probability
    top_p: Option<f32>,
    /// Divides scores of tokens that were there already
    repetition_penalty: Option<f32>,
    /// Texts that end an answer
    #[serde(default)]
    stop: Vec<String>,
    #[serde(default)]
    priority: Priority,
    /// Milliseconds in which it has to be begun, if it is to be done at all
    deadline_ms: Option<u64>,
}

fn one() -> usize {
    1
}

fn many() -> usize {
    128
}

/// Either of them.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, clippy::large_enum_variant, reason = "for the reference")]
pub enum NewJob {
    Pictures(NewPictures),
    Texts(NewTexts),
}

/// What a job makes, before it is known what else it says.
#[derive(Deserialize)]
struct OfKind {
    kind: Kind,
}

/// Fields of ours, as this interface calls them.
const NAMES: [(&str, &str); 6] = [
    ("steps", "num_inference_steps"),
    ("control_image", "control_images"),
    ("control_scale", "control_images.scale"),
    ("control_start", "control_images.start"),
    ("control_end", "control_images.end"),
    ("control_preprocessor", "control_images.preprocessor"),
];

impl NewPictures {
    fn asked(self) -> Result<(picture::Asked, Priority, Option<Duration>), Fault> {
        let noise = self.noise.as_deref().map(str::parse).transpose()?;
        let settings = Settings {
            prompt: self.prompt,
            negative_prompt: self.negative_prompt,
            prompt_2: self.prompt_2,
            negative_prompt_2: self.negative_prompt_2,
            width: self.width,
            height: self.height,
            steps: self.num_inference_steps,
            guidance_scale: self.guidance_scale,
            guidance_rescale: self.guidance_rescale,
            eta: self.eta,
            clip_skip: self.clip_skip,
            scheduler: self.scheduler,
            noise: noise.unwrap_or_default(),
            long_prompts: self.long_prompts,
            prompt_syntax: self.prompt_syntax,
            vae_tiling: self.vae_tiling,
            strength: self.strength,
            level: self.level,
            gsd: self.gsd.map(Metres::new).transpose()?,
            place: self.place.as_deref().map(str::parse).transpose()?,
            date: self.date.as_deref().map(str::parse).transpose()?,
            cloud: self.cloud,
            class_labels: self.class_labels,
            original_size: self.original_size,
            crops_coords_top_left: self.crops_coords_top_left,
            target_size: self.target_size,
            negative_original_size: self.negative_original_size,
            negative_crops_coords_top_left: self.negative_crops_coords_top_left,
            negative_target_size: self.negative_target_size,
        };
        let init = self.init_image.map(|text| decoded("init_image", &text)).transpose()?;
        let mask = self.mask_image.map(|text| decoded("mask_image", &text)).transpose()?;
        let controls = self.control_images.into_iter().map(NewControl::followed);
        let asked = picture::Asked {
            settings,
            seed: self.seed,
            num_images: self.num_images,
            init,
            mask: mask.map(Mask::White),
            controls: controls.collect::<Result<_, _>>()?,
            guess_mode: self.guess_mode,
            preview: self.preview,
        };
        Ok((asked, self.priority, self.deadline_ms.map(Duration::from_millis)))
    }
}

impl NewTexts {
    fn asked(self) -> (text::Asked, Priority, Option<Duration>) {
        let own = Sampling::default();
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(own.temperature),
            top_k: self.top_k.unwrap_or(own.top_k),
            top_p: self.top_p.unwrap_or(own.top_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(own.repetition_penalty),
            ..own
        };
        let asked = text::Asked {
            prompts: vec![self.prompt],
            sampling,
            seed: self.seed,
            num_answers: self.num_answers,
            max_new_tokens: self.max_new_tokens,
            stop: self.stop,
        };
        (asked, self.priority, self.deadline_ms.map(Duration::from_millis))
    }
}

/// A value as it is written: a number of 32 bits is not told in the digits of 64.
fn plain(value: impl Serialize) -> Value {
    let text = serde_json::to_string(&value).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// Ask for pictures or texts
#[utoipa::path(post, path = "/api/jobs", tag = "jobs", request_body = NewJob, responses(
    (status = 201, description = "It waits, or has begun", body = Job),
    (status = 400, description = "A field that cannot be served as it is", body = ErrorBody),
    (status = 422, description = "The deadline cannot be met", body = ErrorBody),
    (status = 429, description = "The queue is full", body = ErrorBody),
    (status = 503, description = "Loading, or about to stop", body = ErrorBody),
))]
pub async fn create(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    Text(body): Text,
) -> Result<Response, Fault> {
    let OfKind { kind } = parsed(&body)?;
    let (to, news) = mpsc::unbounded_channel();
    let client = peer.client();
    let id = app.jobs.next_id();
    let (job, signature, ticket) = match kind {
        Kind::Image => {
            let asked = parsed::<NewPictures>(&body)?.asked();
            let (asked, priority, deadline) = asked.map_err(|fault| fault.renamed(&NAMES))?;
            let ready = app.pictures(asked).await.map_err(|fault| fault.renamed(&NAMES))?;
            let picture::Ready { works, seeds, cancel, signature } = ready;
            let mut request = plain(signature.settings());
            request["kind"] = json!("image");
            request["seed"] = json!(seeds[0]);
            request["num_images"] = json!(seeds.len());
            let job = Job::new(id, kind, request, &seeds);
            let ticket = app.engine.submit(&client, priority, deadline, works, &cancel, &to)?;
            (job, Some(signature), ticket)
        }
        Kind::Text => {
            let (asked, priority, deadline) = parsed::<NewTexts>(&body)?.asked();
            let mut request = plain(asked.sampling);
            request["kind"] = json!("text");
            request["prompt"] = json!(asked.prompts[0]);
            request["max_new_tokens"] = json!(asked.max_new_tokens);
            request["num_answers"] = json!(asked.num_answers);
            request["stop"] = json!(asked.stop);
            let ready = app.texts(asked).await?;
            request["seed"] = json!(ready.seed);
            let job = Job::new(id, kind, request, &ready.seeds);
            let ticket =
                app.engine.submit(&client, priority, deadline, ready.works, &ready.cancel, &to)?;
            (job, None, ticket)
        }
    };
    drop(to);
    let location = HeaderValue::from_str(&format!("/api/jobs/{}", job.id));
    app.jobs.begin(job.clone(), signature, ticket, news).await?;
    let mut response = (StatusCode::CREATED, Reply(job)).into_response();
    response.headers_mut().extend(location.ok().map(|at| (header::LOCATION, at)));
    Ok(response)
}

/// How many.
#[derive(Deserialize)]
pub struct Page {
    #[serde(default = "fifty")]
    limit: usize,
}

fn fifty() -> usize {
    50
}

/// Jobs.
#[derive(Serialize, ToSchema)]
pub struct List {
    jobs: Vec<Job>,
}

/// The latest jobs, the newest first
#[utoipa::path(get, path = "/api/jobs", tag = "jobs",
    params(("limit" = Option<usize>, Query, description = "At most so many, up to 500 (50)")),
    responses((status = 200, body = List)))]
pub async fn list(
    State(app): State<Arc<App>>,
    Query(page): Query<Page>,
) -> Result<Reply<List>, Fault> {
    Ok(Reply(List { jobs: app.jobs.list(page.limit.min(500)).await }))
}

fn unknown(id: &str) -> Fault {
    let id: String = id.chars().take(64).collect();
    Fault::not_found(format!("there is no job {id} here: it may be another server's, or removed"))
}

/// A job
#[utoipa::path(get, path = "/api/jobs/{id}", tag = "jobs", params(("id" = String, Path)), responses(
    (status = 200, body = Job), (status = 404, body = ErrorBody)))]
pub async fn get(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Reply<Job>, Fault> {
    app.jobs.get(&id).await.map(Reply).ok_or_else(|| unknown(&id))
}

/// Cancel a job, or remove one that is over
#[utoipa::path(delete, path = "/api/jobs/{id}", tag = "jobs", params(("id" = String, Path)), responses(
    (status = 200, description = "As it was", body = Job), (status = 404, body = ErrorBody)))]
pub async fn delete(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Reply<Job>, Fault> {
    let job = app.jobs.get(&id).await.ok_or_else(|| unknown(&id))?;
    // What has ended meanwhile stays: only what was seen to be over is removed.
    if !app.jobs.cancel(&id) && job.state.is_over() {
        let (store, id) = (app.jobs.store.clone(), id);
        blocking(move || store.remove(&id)).await?;
    }
    Ok(Reply(job))
}

/// A picture of a job
#[utoipa::path(get, path = "/api/jobs/{id}/images/{index}", tag = "jobs",
    params(("id" = String, Path), ("index" = usize, Path)),
    responses((status = 200, content_type = "image/png"), (status = 404, body = ErrorBody)))]
pub async fn image(
    State(app): State<Arc<App>>,
    Path((id, index)): Path<(String, usize)>,
) -> Result<Response, Fault> {
    let store = app.jobs.store.clone();
    let png = blocking(move || store.picture(&id, index)).await?;
    let png = png.ok_or_else(|| Fault::not_found("there is no such picture, or not yet"))?;
    let kind =
        [(header::CONTENT_TYPE, "image/png"), (header::CACHE_CONTROL, "private, max-age=86400")];
    Ok((kind, png).into_response())
}

/// What happens to a job, as server-sent events: `job`, `step`, `preview`, `image`, `text`, and `end` at last
#[utoipa::path(get, path = "/api/jobs/{id}/events", tag = "jobs", params(("id" = String, Path)),
    responses((status = 200, content_type = "text/event-stream"), (status = 404, body = ErrorBody)))]
pub async fn events(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Fault> {
    let (job, receiver) = app.jobs.listen(&id).await.ok_or_else(|| unknown(&id))?;
    let event = |event: &str, data: String| Ok(Event::default().event(event).data(data));
    let now = serde_json::to_string(&job).unwrap_or_default();
    let first = event(if receiver.is_some() { "job" } else { "end" }, now);
    let later = stream::unfold((receiver, app, id), move |(receiver, app, id)| async move {
        let mut receiver = receiver?;
        let Sent { event: name, data } = match receiver.recv().await {
            Ok(sent) => sent,
            // Who fell behind hears how it is now.
            Err(RecvError::Lagged(_)) => {
                let job = app.jobs.get(&id).await?;
                Sent { event: "job", data: serde_json::to_string(&job).ok()? }
            }
            Err(RecvError::Closed) => return None,
        };
        let is_end = name == "end";
        Some((event(name, data), ((!is_end).then_some(receiver), app, id)))
    });
    let all = stream::iter([first]);
    use futures_util::StreamExt as _;
    let alive = KeepAlive::new().interval(Duration::from_secs(15)).text("keep-alive");
    Ok(Sse::new(all.chain(later)).keep_alive(alive))
}

/// A colour as style sheets have it.
pub fn hex([red, green, blue]: &[u8; 3]) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// What this server has and can
#[utoipa::path(get, path = "/api/server", tag = "server", responses((status = 200, body = Value)))]
pub async fn server(State(app): State<Arc<App>>) -> Result<Reply<Value>, Fault> {
    let models = app.models()?;
    let about = &app.about;
    let settings = models.image.resolve(&Settings::default(), None)?;
    let text = models.text.as_ref().map(|model| {
        let context = model.decoder().config().max_position_embeddings;
        json!({ "model": about.text, "context": context })
    });
    let classifier = models
        .classifier
        .as_ref()
        .map(|classifier| json!({ "model": about.classifier, "classes": classifier.classes() }));
    let segmenter = models.segmenter.as_ref().map(|segmenter| {
        let colours: Vec<String> = segmenter.palette.colors().iter().map(hex).collect();
        json!({ "model": about.segmenter, "classes": segmenter.model.classes(), "colours": colours })
    });
    let schedulers: Vec<String> = nadir::pipeline::sampler::SamplerConfig::names().collect();
    let limits = &app.limits;
    Ok(Reply(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "replica": app.jobs.store.replica(),
        "device": about.device.to_string(),
        "dtype": about.dtype.to_string(),
        "auth": app.guard.key.is_some(),
        "draining": app.engine.state() == crate::app::serve::engine::State::Draining,
        "image": {
            "model": about.model.name,
            "second_prompt": models.image.has_second_prompt(),
            "width": settings.width,
            "height": settings.height,
            "multiple": nadir::pipeline::SIZE_STEP,
            "num_inference_steps": settings.steps,
            "guidance_scale": settings.guidance_scale,
            "strength": models.image.default_strength(false),
            "strength_with_mask": models.image.default_strength(true),
            "scheduler": about.model.sampler_name(None)?,
        },
        "schedulers": schedulers,
        "text": text,
        "classifier": classifier,
        "segmenter": segmenter,
        "limits": {
            "pixels": limits.pixels,
            "images": limits.images,
            "body_bytes": limits.body,
            "queue": limits.queue,
        },
    })))
}
