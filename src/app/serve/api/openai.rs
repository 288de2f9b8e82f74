//! OpenAI's interface: `/v1/images/generations`, `/v1/images/edits`, `/v1/completions`, `/v1/models`. Fields that it does not
//! have (`seed`, `steps`, `negative_prompt`, ...) are taken at the top level: its clients call them `extra_body`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json as Reply;
use axum::extract::{Extension, State};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use utoipa::ToSchema;

use nadir::pipeline::Settings;
use nadir::pipeline::language::{Finish, Sampling};

use super::draw;
use crate::app::serve::App;
use crate::app::serve::body::{Form, Json, parsed};
use crate::app::serve::engine::{Failure, News, What};
use crate::app::serve::fault::{ErrorBody, Fault};
use crate::app::serve::guard::Peer;
use crate::app::serve::jobs::blocking;
use crate::app::serve::picture::{Asked, Mask};
use crate::app::serve::queue::Priority;
use crate::app::serve::text;

/// Pictures in OpenAI's words. Fields that are not here (`quality`, `style`, `user`, ...) change nothing.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct Images {
    prompt: String,
    /// The model that is loaded, or nothing
    model: Option<String>,
    /// How many, with consecutive seeds
    n: Option<usize>,
    /// `64x64`, or `auto`: the model's
    size: Option<String>,
    /// `b64_json`
    response_format: Option<String>,
    /// `png`
    output_format: Option<String>,
    /// Not OpenAI's: of the first picture
    seed: Option<u64>,
    /// Not OpenAI's: denoising steps
    steps: Option<usize>,
    /// Not OpenAI's: what pictures should not show
    negative_prompt: String,
    /// Not OpenAI's: how strongly the text is followed
    guidance_scale: Option<f32>,
    /// Not OpenAI's: sampler
    scheduler: Option<String>,
    /// Not OpenAI's: how much of a picture is drawn anew
    strength: Option<f64>,
}

/// Pictures.
#[derive(Serialize, ToSchema)]
pub struct Drawn {
    created: u64,
    data: Vec<DrawnImage>,
}

/// A picture.
#[derive(Serialize, ToSchema)]
pub struct DrawnImage {
    b64_json: String,
    seed: u64,
}

/// Fields of ours, as this interface calls them.
const NAMES: [(&str, &str); 5] = [
    ("width", "size"),
    ("height", "size"),
    ("num_images", "n"),
    ("init_image", "image"),
    ("mask_image", "mask"),
];

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

fn check_model(asked: Option<&str>, loaded: &str) -> Result<(), Fault> {
    match asked {
        Some(name) if name != loaded => {
            let name: String = name.chars().take(100).collect();
            let text = format!("{name} is not loaded: {loaded} is");
            Err(Fault { status: axum::http::StatusCode::NOT_FOUND, ..Fault::field("model", text) })
        }
        _ => Ok(()),
    }
}

impl Images {
    fn asked(self, app: &App, init: Option<Vec<u8>>, mask: Option<Mask>) -> Result<Asked, Fault> {
        check_model(self.model.as_deref(), &app.about.model.name)?;
        let only = |field: &str, found: &Option<String>, only: &str| match found {
            Some(found) if found != only => Err(Fault::field(field, format!("only {only}"))),
            _ => Ok(()),
        };
        only("response_format", &self.response_format, "b64_json")?;
        only("output_format", &self.output_format, "png")?;
        let size = match self.size.as_deref() {
            None | Some("auto") => None,
            Some(size) => {
                let sides = size.split_once('x').map(|(w, h)| (w.parse(), h.parse()));
                let Some((Ok(width), Ok(height))) = sides else {
                    return Err(Fault::field("size", "expected WIDTHxHEIGHT or auto"));
                };
                Some((width, height))
            }
        };
        let settings = Settings {
            prompt: self.prompt,
            negative_prompt: self.negative_prompt,
            width: size.map(|(width, _)| width),
            height: size.map(|(_, height)| height),
            steps: self.steps,
            guidance_scale: self.guidance_scale,
            scheduler: self.scheduler,
            strength: self.strength,
            ..Settings::default()
        };
        let num_images = self.n.unwrap_or(1);
        Ok(Asked { settings, seed: self.seed, num_images, init, mask, ..Asked::default() })
    }
}

async fn drawn(app: &Arc<App>, peer: Peer, asked: Asked) -> Result<Reply<Drawn>, Fault> {
    let ready = app.pictures(asked).await?;
    let (signature, seeds) = (ready.signature.clone(), ready.seeds.clone());
    let pictures = draw(app, peer, ready, |_, _| ()).await?;
    let data = blocking(move || {
        let encoded = pictures.iter().zip(0..).zip(seeds).map(|((picture, i), seed)| {
            Ok(DrawnImage { b64_json: BASE64.encode(signature.png(picture, i)?), seed })
        });
        encoded.collect::<nadir::Result<Vec<_>>>()
    });
    Ok(Reply(Drawn { created: seconds(), data: data.await?? }))
}

/// Draw pictures (OpenAI)
#[utoipa::path(post, path = "/v1/images/generations", tag = "OpenAI", request_body = Images, responses(
    (status = 200, body = Drawn), (status = 400, body = ErrorBody), (status = 429, body = ErrorBody)))]
pub async fn generations(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    Json(images): Json<Images>,
) -> Result<Reply<Drawn>, Fault> {
    let asked = images.asked(&app, None, None)?;
    drawn(&app, peer, asked).await.map_err(|fault| fault.renamed(&NAMES))
}

/// Draw pictures from a picture (OpenAI)
///
/// A form with `image` (PNG, JPEG or WebP), `prompt`, and the fields of generations; `mask` (PNG): what is transparent is
/// painted anew. Without a mask all is, by `strength`.
#[utoipa::path(post, path = "/v1/images/edits", tag = "OpenAI",
    request_body(content = Images, content_type = "multipart/form-data"),
    responses((status = 200, body = Drawn), (status = 400, body = ErrorBody)))]
pub async fn edits(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    Form(fields): Form,
) -> Result<Reply<Drawn>, Fault> {
    let (mut init, mut mask, mut rest) = (None, None, serde_json::Map::new());
    for (name, bytes) in fields {
        match name.as_str() {
            "image" | "image[]" if init.is_some() => {
                return Err(Fault::field("image", "one picture"));
            }
            "image" | "image[]" => init = Some(bytes),
            "mask" => mask = Some(Mask::Transparent(bytes)),
            _ => {
                let text = String::from_utf8(bytes)
                    .map_err(|_| Fault::field(name.clone(), "expected a text"))?;
                // Forms have no numbers.
                let number =
                    matches!(name.as_str(), "n" | "seed" | "steps" | "guidance_scale" | "strength");
                let value = match number {
                    true => serde_json::from_str(&text)
                        .map_err(|_| Fault::field(name.clone(), "expected a number"))?,
                    false => json!(text),
                };
                rest.insert(name, value);
            }
        }
    }
    let Some(init) = init else {
        return Err(Fault::field("image", "expected a picture"));
    };
    let images: Images = parsed(Value::Object(rest).to_string().as_bytes())?;
    let asked = images.asked(&app, Some(init), mask)?;
    drawn(&app, peer, asked).await.map_err(|fault| fault.renamed(&NAMES))
}

/// A text, or several.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(untagged)]
enum Texts {
    One(String),
    Many(Vec<String>),
}

impl Texts {
    fn into_list(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

/// Texts in OpenAI's words.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct Completions {
    model: Option<String>,
    prompt: Option<Texts>,
    max_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    n: Option<usize>,
    stop: Option<Texts>,
    seed: Option<u64>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    echo: bool,
    stream: bool,
    /// Not OpenAI's
    top_k: Option<usize>,
    /// Not OpenAI's
    repetition_penalty: Option<f32>,
    #[schema(value_type = Option<Object>)]
    logprobs: Option<Value>,
    suffix: Option<String>,
    best_of: Option<usize>,
}

/// An answer so far.
struct Answer {
    text: String,
    finish: Option<Finish>,
    tokens: usize,
}

fn reason(finish: Option<Finish>) -> Option<&'static str> {
    finish.map(|finish| if finish == Finish::Length { "length" } else { "stop" })
}

/// Go on from texts (OpenAI)
#[utoipa::path(post, path = "/v1/completions", tag = "OpenAI", request_body = Completions, responses(
    (status = 200, body = Value), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub async fn completions(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    Json(asked): Json<Completions>,
) -> Result<Response, Fault> {
    let model = app.about.text.clone().unwrap_or_default();
    if app.models()?.text.is_some() {
        check_model(asked.model.as_deref(), &model)?;
    }
    let n = asked.n.unwrap_or(1);
    for (field, is_asked) in [
        ("logprobs", asked.logprobs.as_ref().is_some_and(|x| !x.is_null())),
        ("suffix", asked.suffix.is_some()),
        ("best_of", asked.best_of.is_some_and(|best| best != n)),
        ("echo", asked.echo && asked.stream),
    ] {
        if is_asked {
            return Err(Fault::field(field, "not supported here: leave it out"));
        }
    }
    let prompts = asked.prompt.map_or_else(|| vec![String::new()], Texts::into_list);
    let own = Sampling::default();
    let sampling = Sampling {
        // OpenAI's defaults.
        temperature: asked.temperature.unwrap_or(1.0),
        top_p: asked.top_p.unwrap_or(1.0),
        top_k: asked.top_k.unwrap_or(0),
        repetition_penalty: asked.repetition_penalty.unwrap_or(1.0),
        presence_penalty: asked.presence_penalty.unwrap_or(0.0),
        frequency_penalty: asked.frequency_penalty.unwrap_or(0.0),
        ..own
    };
    let ready = app.texts(text::Asked {
        prompts: prompts.clone(),
        sampling,
        seed: asked.seed,
        num_answers: n,
        max_new_tokens: asked.max_tokens.unwrap_or(16),
        stop: asked.stop.map_or_else(Vec::new, Texts::into_list),
    });
    let names = [("max_new_tokens", "max_tokens"), ("num_answers", "n")];
    let ready = ready.await.map_err(|fault| fault.renamed(&names))?;
    let (to, mut news) = mpsc::unbounded_channel();
    let client = peer.client();
    let text::Ready { works, tokens, cancel, .. } = ready;
    let many = works.len();
    let ticket = app.engine.submit(&client, Priority::Interactive, None, works, &cancel, &to)?;
    drop(to);
    let id = format!("cmpl-{:016x}", crate::app::serve::random());
    let created = seconds();
    let whole = move |choices: Value| {
        json!({
            "id": id, "object": "text_completion", "created": created, "model": model,
            "choices": choices,
        })
    };
    if asked.stream {
        let chunks = stream::unfold(
            (news, ticket, many, whole),
            |(mut news, ticket, mut left, whole)| async move {
                if left == usize::MAX {
                    return None;
                }
                if left == 0 {
                    let done = Event::default().data("[DONE]");
                    return Some((Ok::<_, Infallible>(done), (news, ticket, usize::MAX, whole)));
                }
                loop {
                    let News { index, what } = news.recv().await?;
                    let (text, finish) = match what {
                        What::Piece(text) if !text.is_empty() => (text, None),
                        What::Answered(answer) => {
                            left -= 1;
                            (String::new(), Some(answer.finish))
                        }
                        What::Failed(failure) => {
                            let told = Fault::from(failure).told;
                            let event = Event::default().data(json!({ "error": told }).to_string());
                            return Some((Ok(event), (news, ticket, usize::MAX, whole)));
                        }
                        _ => continue,
                    };
                    let choice = json!([{
                        "index": index, "text": text, "logprobs": null,
                        "finish_reason": reason(finish),
                    }]);
                    let event = Event::default().data(whole(choice).to_string());
                    return Some((Ok(event), (news, ticket, left, whole)));
                }
            },
        );
        return Ok(Sse::new(chunks).into_response());
    }
    let mut answers: Vec<Answer> = (0..many)
        .map(|i| {
            let text = if asked.echo { prompts[i / n].clone() } else { String::new() };
            Answer { text, finish: None, tokens: 0 }
        })
        .collect();
    while answers.iter().any(|answer| answer.finish.is_none()) {
        let Some(News { index, what }) = news.recv().await else {
            return Err(Failure::HandedBack.into());
        };
        match what {
            What::Piece(text) => answers[index].text += &text,
            What::Answered(answer) => {
                answers[index].finish = Some(answer.finish);
                answers[index].tokens = answer.tokens.len();
            }
            What::Failed(failure) => return Err(failure.into()),
            _ => {}
        }
    }
    let choices = answers.iter().enumerate().map(|(index, answer)| {
        json!({
            "index": index, "text": answer.text, "logprobs": null,
            "finish_reason": reason(answer.finish),
        })
    });
    let mut reply = whole(choices.collect());
    let prompt: usize = tokens.iter().sum();
    let completion: usize = answers.iter().map(|answer| answer.tokens).sum();
    reply["usage"] = json!({
        "prompt_tokens": prompt, "completion_tokens": completion,
        "total_tokens": prompt + completion,
    });
    Ok(Reply(reply).into_response())
}

/// What is loaded (OpenAI)
#[utoipa::path(get, path = "/v1/models", tag = "OpenAI", responses((status = 200, body = Value)))]
pub async fn models(State(app): State<Arc<App>>) -> Result<Reply<Value>, Fault> {
    let loaded = app.models()?;
    let text = loaded.text.as_ref().and(app.about.text.as_ref());
    let names = [Some(&app.about.model.name), text].into_iter().flatten();
    let model = |name| json!({ "id": name, "object": "model", "created": 0, "owned_by": "nadir" });
    Ok(Reply(json!({ "object": "list", "data": names.map(model).collect::<Vec<_>>() })))
}
