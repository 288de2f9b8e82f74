//! What an uploaded picture shows, and how it was made.

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use axum::Json as Reply;
use axum::extract::{Extension, State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use image::RgbImage;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use utoipa::ToSchema;

use nadir::io::geotiff::GeoTiff;
use nadir::io::png;
use nadir::pipeline::Cancel;
use nadir::pipeline::scene::NODATA;

use super::jobs::hex;
use crate::app::recipe::Recipe;
use crate::app::serve::App;
use crate::app::serve::body::Upload;
use crate::app::serve::engine::{Failure, News, What, Work};
use crate::app::serve::fault::{ErrorBody, Fault};
use crate::app::serve::guard::Peer;
use crate::app::serve::jobs::{bare_png, blocking};
use crate::app::serve::queue::Priority;

/// What a picture shows.
#[derive(Serialize, ToSchema)]
pub struct Seen {
    /// The likeliest first.
    classes: Vec<Class>,
}

/// A class and how likely it is.
#[derive(Serialize, ToSchema)]
pub struct Class {
    class: String,
    probability: f32,
}

/// Say what a picture shows
#[utoipa::path(post, path = "/api/classify", tag = "pictures",
    request_body(content = Vec<u8>, content_type = "image/png"),
    responses((status = 200, body = Seen), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub async fn classify(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    Upload(bytes): Upload,
) -> Result<Reply<Seen>, Fault> {
    let models = app.models()?;
    let Some(classifier) = &models.classifier else {
        return Err(Fault::not_found("this server was started without a classifier"));
    };
    let picture = uploaded(&app, bytes).await?;
    let What::Classified(mut found) = look(&app, peer, Work::Classify(picture)).await? else {
        return Err(Failure::HandedBack.into());
    };
    let mut classes: Vec<Class> = classifier
        .classes()
        .iter()
        .zip(found.drain(..))
        .map(|(class, probability)| Class { class: class.clone(), probability })
        .collect();
    classes.sort_by(|a, b| b.probability.total_cmp(&a.probability));
    Ok(Reply(Seen { classes }))
}

async fn uploaded(app: &Arc<App>, bytes: Vec<u8>) -> Result<Box<RgbImage>, Fault> {
    let _turn = app.decoders.acquire().await;
    let app = app.clone();
    blocking(move || app.decoded("picture", &bytes).map(Box::new)).await?
}

/// What a look at a picture comes to.
async fn look(app: &Arc<App>, peer: Peer, work: Work) -> Result<What, Fault> {
    let (to, mut news) = mpsc::unbounded_channel();
    let (client, cancel) = (peer.client(), Cancel::default());
    let _ticket =
        app.engine.submit(&client, Priority::Interactive, None, vec![work], &cancel, &to)?;
    drop(to);
    loop {
        match news.recv().await {
            Some(News { what: What::Failed(failure), .. }) => return Err(failure.into()),
            Some(News { what: what @ (What::Classified(_) | What::Segmented(_)), .. }) => {
                return Ok(what);
            }
            Some(_) => {}
            None => return Err(Failure::HandedBack.into()),
        }
    }
}

/// What each pixel of a picture shows.
#[derive(Serialize, ToSchema)]
pub struct Segments {
    width: u32,
    height: u32,
    /// A PNG with a palette, in base64; a pixel's place in the palette is its class
    mask: String,
    /// The picture with the classes' colours over it: a PNG in base64
    overlay: String,
    classes: Vec<Segment>,
}

/// A class and where it is.
#[derive(Serialize, ToSchema)]
pub struct Segment {
    class: String,
    colour: String,
    /// Of all pixels
    share: f64,
}

/// Say what each pixel of a picture shows
#[utoipa::path(post, path = "/api/segment", tag = "pictures",
    request_body(content = Vec<u8>, content_type = "image/png"),
    responses((status = 200, body = Segments), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub async fn segment(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    Upload(bytes): Upload,
) -> Result<Reply<Segments>, Fault> {
    let Some(segmenter) = &app.models()?.segmenter else {
        return Err(Fault::not_found("this server was started without a segmenter"));
    };
    let picture = uploaded(&app, bytes).await?;
    let (width, height) = picture.dimensions();
    let What::Segmented(found) = look(&app, peer, Work::Segment(picture)).await? else {
        return Err(Failure::HandedBack.into());
    };
    let (classes, colors) = (segmenter.model.classes(), segmenter.palette.colors().to_vec());
    let share = |label: usize| {
        let own = found.classes.iter().filter(|class| usize::from(**class) == label).count();
        own as f64 / found.classes.len().max(1) as f64
    };
    let segments = classes.iter().zip(&colors).enumerate().map(|(label, (class, color))| Segment {
        class: class.clone(),
        colour: hex(color),
        share: share(label),
    });
    let segments = segments.collect();
    let encoded = blocking(move || -> std::io::Result<_> {
        let mut mask = Vec::new();
        png::encode_indexed(&mut mask, [width, height], &colors, NODATA, &found.classes)?;
        Ok((BASE64.encode(mask), BASE64.encode(bare_png(&found.overlay)?)))
    });
    let (mask, overlay) = encoded.await?.map_err(|error| nadir::Error::io("mask", error))?;
    Ok(Reply(Segments { width, height, mask, overlay, classes: segments }))
}

/// Say how a picture of nadir's, PNG or GeoTIFF, or of the web UI's was made
#[utoipa::path(post, path = "/api/recipe", tag = "pictures",
    request_body(content = Vec<u8>, content_type = "image/png"),
    responses((status = 200, body = Value), (status = 422, body = ErrorBody)))]
pub async fn recipe(Upload(bytes): Upload) -> Result<Reply<Value>, Fault> {
    let read = blocking(move || request(&bytes)).await?;
    let unprocessable = axum::http::StatusCode::UNPROCESSABLE_ENTITY;
    read.map(|request| Reply(json!({ "request": request })))
        .ok_or_else(|| Fault::new(unprocessable, "the picture does not say how it was made"))
}

/// The fields of `POST /api/jobs`.
fn request(bytes: &[u8]) -> Option<Value> {
    let (input, origin) = (|| Cursor::new(bytes), Path::new("picture"));
    let of_tiff = || GeoTiff::new(input(), origin).and_then(|mut file| file.metadata());
    let texts = png::texts(input(), origin).or_else(|_| of_tiff()).ok()?;
    let text = |wanted: &str| texts.iter().find(|(keyword, _)| keyword == wanted);
    if let Some((_, replay)) = text(png::REPLAY) {
        let recipe: Recipe = serde_json::from_str(replay).ok()?;
        let mut request = serde_json::to_value(&recipe.settings).ok()?;
        request["seed"] = json!(recipe.seed);
        request["num_images"] = json!(recipe.num_images);
        return Some(request);
    }
    let parameters = png::Parameters::parse(&text(png::PARAMETERS)?.1);
    let number = |name: &str| parameters.get(name)?.parse::<f64>().ok();
    let mut request = json!({
        "prompt": parameters.prompt,
        "negative_prompt": parameters.negative_prompt,
    });
    let whole = [("Steps", "num_inference_steps"), ("Seed", "seed")];
    for (theirs, ours) in whole {
        if let Some(n) = parameters.get(theirs).and_then(|n| n.parse::<u64>().ok()) {
            request[ours] = json!(n);
        }
    }
    if let Some(scale) = number("CFG scale") {
        request["guidance_scale"] = json!(scale);
    }
    if let Some(strength) = number("Denoising strength") {
        request["strength"] = json!(strength);
    }
    if let Some(sampler) = parameters.get("Sampler") {
        request["scheduler"] = json!(sampler);
    }
    let size = parameters.get("Size").and_then(|size| size.split_once('x'));
    if let Some((Ok(width), Ok(height))) =
        size.map(|(w, h)| (w.parse::<usize>(), h.parse::<usize>()))
    {
        (request["width"], request["height"]) = (json!(width), json!(height));
    }
    Some(request)
}
