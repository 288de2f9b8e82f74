//! Data sets that grow: what another process has made of them so far.

use std::sync::Arc;

use axum::Json as Reply;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use nadir::pipeline::synthesis::Growth;

use crate::app::serve::App;
use crate::app::serve::fault::{ErrorBody, Fault};
use crate::app::serve::jobs::blocking;

/// Pictures that are shown of a set.
const RECENT: usize = 12;

/// Data sets that `--watch-set` names, class by class
#[utoipa::path(get, path = "/api/sets", tag = "server", responses((status = 200, body = Value)))]
pub async fn list(State(app): State<Arc<App>>) -> Result<Reply<Value>, Fault> {
    let look = move || {
        let set = |(i, folder): (usize, &std::path::PathBuf)| {
            // One that has not begun has no classes yet.
            let growth = Growth::of(folder, RECENT).unwrap_or_default();
            let name = folder.file_name().map(|name| name.to_string_lossy().into_owned());
            let url = |path: &std::path::PathBuf| {
                let name = path.file_name()?.to_str()?;
                Some(format!("/api/sets/{i}/pictures/{name}"))
            };
            let recent: Vec<String> = growth.recent.iter().filter_map(url).collect();
            json!({
                "name": name, "classes": growth.classes, "finished": growth.finished, "recent": recent,
            })
        };
        app.sets.iter().enumerate().map(set).collect::<Vec<_>>()
    };
    Ok(Reply(json!({ "sets": blocking(look).await? })))
}

/// A picture of a data set
#[utoipa::path(get, path = "/api/sets/{set}/pictures/{name}", tag = "server",
    params(("set" = usize, Path), ("name" = String, Path)),
    responses((status = 200, content_type = "image/png"), (status = 404, body = ErrorBody)))]
pub async fn picture(
    State(app): State<Arc<App>>,
    Path((set, name)): Path<(usize, String)>,
) -> Result<Response, Fault> {
    let unknown = || Fault::not_found("there is no such picture");
    let plain = |c: char| c.is_alphanumeric() || "-_. ".contains(c);
    let folder = app.sets.get(set).ok_or_else(unknown)?;
    // A name, never a path.
    if !name.chars().all(plain) || name.starts_with('.') || !name.ends_with(".png") {
        return Err(unknown());
    }
    let path = folder.join("images").join(name);
    let png = blocking(move || std::fs::read(path)).await?.map_err(|_| unknown())?;
    let kind =
        [(header::CONTENT_TYPE, "image/png"), (header::CACHE_CONTROL, "private, max-age=3600")];
    Ok((kind, png).into_response())
}
