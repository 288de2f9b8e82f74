//! Whether the server lives, and can be sent work.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::app::serve::App;
use crate::app::serve::engine::State as Engine;
use crate::app::serve::fault::{ErrorBody, Fault};

/// Whether the process answers
#[utoipa::path(get, path = "/health/live", tag = "server", responses((status = 200)))]
pub async fn live() -> &'static str {
    "alive\n"
}

/// Whether it takes work
#[utoipa::path(get, path = "/health/ready", tag = "server", responses(
    (status = 200), (status = 503, description = "Loading, or about to stop", body = ErrorBody)))]
pub async fn ready(State(app): State<Arc<App>>) -> Response {
    match app.engine.state() {
        Engine::Ready => "ready\n".into_response(),
        Engine::Loading => Fault::new(StatusCode::SERVICE_UNAVAILABLE, "loading").into_response(),
        Engine::Draining | Engine::Stopped => {
            Fault::new(StatusCode::SERVICE_UNAVAILABLE, "about to stop").into_response()
        }
    }
}

/// Counters, for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "server", responses((status = 200, content_type = "text/plain")))]
pub async fn metrics(State(app): State<Arc<App>>) -> Result<Response, Fault> {
    let text = app.metrics.text(app.engine.load());
    let text =
        text.map_err(|error| Fault::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

/// Where the time of the last picture went
#[utoipa::path(get, path = "/api/profile", tag = "server", responses((status = 200, body = Value)))]
pub async fn profile(State(app): State<Arc<App>>) -> Json<Value> {
    let run = app.engine.lock().profile.map(|profile| {
        let (width, height) = profile.size;
        let part = |name: &str, (seconds, calls): (f64, usize)| {
            json!({ "name": name, "ms": seconds * 1e3, "calls": calls })
        };
        let parts = [
            part("prompt: text encoder, keys and values", profile.text),
            part("steps: UNet and sampler, with others", profile.steps),
            part("decoder", profile.decoder),
        ];
        let total = profile.text.0 + profile.steps.0 + profile.decoder.0;
        json!({ "what": format!("a picture of {width}x{height}"), "total_ms": total * 1e3, "parts": parts })
    });
    Json(json!({ "run": run }))
}
