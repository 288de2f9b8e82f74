//! The page: its files, as they were built.

use axum::extract::Path;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use rust_embed::Embed;

use super::fault::Fault;

#[derive(Embed)]
#[folder = "web/dist"]
#[allow_missing = true]
struct Files;

pub async fn index() -> Response {
    file("index.html", "no-cache")
}

/// Names have a part that follows from the content, so that what a name stands for never changes.
pub async fn asset(Path(name): Path<String>) -> Response {
    if name == "reference.css" {
        let style = nadir::io::html::STYLE;
        return ([(header::CONTENT_TYPE, "text/css"), (header::CACHE_CONTROL, "no-cache")], style)
            .into_response();
    }
    file(&format!("assets/{name}"), "public, max-age=31536000, immutable")
}

fn file(name: &str, cache: &'static str) -> Response {
    let Some(file) = Files::get(name) else {
        return Fault::not_found("there is no such file").into_response();
    };
    let kind = match name.rsplit_once('.').map(|(_, ending)| ending) {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("woff2") => "font/woff2",
        Some("webmanifest" | "json") => "application/json",
        _ => "application/octet-stream",
    };
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, cache)];
    (headers, file.data).into_response()
}
