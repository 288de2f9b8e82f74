//! Connections: which paths there are, how many may come at once, and how they end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower::ServiceExt as _;

use super::api::{health, jobs, look, openai, reference, sets, webui};
use super::fault::Fault;
use super::guard::{self, Peer};
use super::{App, page};

/// Connections at a time; others wait to be accepted.
const CONNECTIONS: usize = 4096;

/// How long the head of a request may take to arrive.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn router(app: Arc<App>) -> Router {
    let unknown = || async { Fault::not_found("there is nothing here: see /docs") };
    let wrong =
        || async { Fault::new(StatusCode::METHOD_NOT_ALLOWED, "not with this method: see /docs") };
    Router::new()
        .route("/", get(page::index))
        .route("/assets/{name}", get(page::asset))
        .route("/docs", get(reference::page))
        .route("/api/openapi.json", get(reference::document))
        .route("/api/server", get(jobs::server))
        .route("/api/jobs", post(jobs::create).get(jobs::list))
        .route("/api/jobs/{id}", get(jobs::get).delete(jobs::delete))
        .route("/api/jobs/{id}/events", get(jobs::events))
        .route("/api/jobs/{id}/images/{index}", get(jobs::image))
        .route("/api/classify", post(look::classify))
        .route("/api/segment", post(look::segment))
        .route("/api/recipe", post(look::recipe))
        .route("/v1/images/generations", post(openai::generations))
        .route("/v1/images/edits", post(openai::edits))
        .route("/v1/completions", post(openai::completions))
        .route("/v1/models", get(openai::models))
        .route("/sdapi/v1/txt2img", post(webui::txt2img))
        .route("/sdapi/v1/img2img", post(webui::img2img))
        .route("/sdapi/v1/samplers", get(webui::samplers))
        .route("/sdapi/v1/sd-models", get(webui::models))
        .route("/sdapi/v1/options", get(webui::options))
        .route("/sdapi/v1/progress", get(webui::progress))
        .route("/sdapi/v1/interrupt", post(webui::interrupt))
        .route("/api/sets", get(sets::list))
        .route("/api/sets/{set}/pictures/{name}", get(sets::picture))
        .route("/api/profile", get(health::profile))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/metrics", get(health::metrics))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong)
        .layer(DefaultBodyLimit::max(app.limits.body))
        .layer(from_fn_with_state(app.clone(), guard::watch))
        .with_state(app)
}

/// Serves until `stop` is done, and then what has begun.
pub async fn serve(app: Arc<App>, listener: TcpListener, stop: impl Future<Output = ()>) {
    let router = router(app);
    let graceful = GracefulShutdown::new();
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    tokio::pin!(stop);
    loop {
        let accepted = async {
            let permit = connections.clone().acquire_owned().await;
            (listener.accept().await, permit)
        };
        let ((accepted, permit), ()) = tokio::select! {
            accepted = accepted => (accepted, ()),
            () = &mut stop => break,
        };
        let (stream, peer): (_, SocketAddr) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // As when files run out: others may be closed meanwhile.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Events are small, and waited for.
        let _ = stream.set_nodelay(true);
        let router = router.clone();
        let service = hyper::service::service_fn(move |request: hyper::Request<_>| {
            let mut request = request.map(axum::body::Body::new);
            request.extensions_mut().insert(Peer(peer.ip()));
            router.clone().oneshot(request)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .max_headers(64)
            .serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection broke");
            }
        });
    }
    drop(listener);
    // Streams of events end with their jobs, which the worker has ended by now.
    if tokio::time::timeout(Duration::from_secs(5), graceful.shutdown()).await.is_err() {
        tracing::warn!("connections were cut that did not end");
    }
}
