//! Bodies of requests, within limits of size, time and memory.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;

use super::App;
use super::fault::Fault;

/// How long a body may take to arrive.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bodies up to this size are not counted against the memory of all.
const SMALL: u64 = 64 << 10;

/// A JSON body.
pub struct Json<T>(pub T);

/// The text of a JSON body.
pub struct Text(pub Bytes);

/// A body as it is.
pub struct Upload(pub Vec<u8>);

/// The fields of a form.
pub struct Form(pub Vec<(String, Vec<u8>)>);

/// Waits for its share of the memory that all bodies may take together, in KiB.
async fn share(headers: &HeaderMap, app: &App) -> Result<Option<OwnedSemaphorePermit>, Fault> {
    let length = headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
    let length: u64 = length.unwrap_or(app.limits.body as u64);
    if length > app.limits.body as u64 {
        return Err(too_large(app));
    }
    if length <= SMALL {
        return Ok(None);
    }
    let kib = length.div_ceil(1024) as u32;
    let wait = tokio::time::timeout(PATIENCE, app.bodies.clone().acquire_many_owned(kib));
    let busy = Fault::new(StatusCode::SERVICE_UNAVAILABLE, "too many uploads at once");
    match wait.await {
        Ok(Ok(permit)) => Ok(Some(permit)),
        _ => Err(busy),
    }
}

fn too_large(app: &App) -> Fault {
    let text = format!("at most {} bytes", app.limits.body);
    Fault::new(StatusCode::PAYLOAD_TOO_LARGE, text)
}

async fn in_time<T>(read: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    let late = |_| Fault::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in 30 s");
    tokio::time::timeout(PATIENCE, read).await.map_err(late)?
}

async fn bytes(request: Request, app: &App) -> Result<Bytes, Fault> {
    let _permit = share(&request.headers().clone(), app).await?;
    in_time(async {
        Bytes::from_request(request, &()).await.map_err(|rejected| {
            match rejected.into_response().status() {
                StatusCode::PAYLOAD_TOO_LARGE => too_large(app),
                status => Fault::new(status, "the body could not be read"),
            }
        })
    })
    .await
}

impl FromRequest<Arc<App>> for Text {
    type Rejection = Fault;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Fault> {
        let kind = request.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        // A page of another site can send other kinds without asking first.
        if kind.split(';').next().is_none_or(|kind| kind.trim() != "application/json") {
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Err(Fault::new(status, "expected Content-Type: application/json"));
        }
        bytes(request, app).await.map(Self)
    }
}

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Json<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Fault> {
        parsed(&Text::from_request(request, app).await?.0).map(Self)
    }
}

/// A value of JSON; an error names the field.
///
/// # Errors
/// 400.
pub fn parsed<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let message: String = error.inner().to_string().chars().take(300).collect();
        match path.as_str() {
            "." | "?" => Fault::bad(message),
            _ => Fault::field(path, message),
        }
    })?;
    reader.end().map_err(|error| Fault::bad(error.to_string()))?;
    Ok(value)
}

impl FromRequest<Arc<App>> for Upload {
    type Rejection = Fault;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Fault> {
        Ok(Self(bytes(request, app).await?.to_vec()))
    }
}

impl FromRequest<Arc<App>> for Form {
    type Rejection = Fault;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Fault> {
        let _permit = share(&request.headers().clone(), app).await?;
        in_time(async {
            let rejected = |error: axum::extract::multipart::MultipartError| match error.status() {
                StatusCode::PAYLOAD_TOO_LARGE => too_large(app),
                status => Fault::new(status, error.body_text()),
            };
            let mut form = Multipart::from_request(request, &())
                .await
                .map_err(|error| Fault::new(error.status(), error.body_text()))?;
            let mut fields = Vec::new();
            while let Some(field) = form.next_field().await.map_err(rejected)? {
                let name = field.name().unwrap_or_default().to_owned();
                fields.push((name, field.bytes().await.map_err(rejected)?.to_vec()));
            }
            Ok(Self(fields))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only read")]
    struct Example {
        seed: u64,
        scale: f32,
        list: Vec<u8>,
    }

    #[test]
    fn an_error_names_the_field() {
        let field = |text: &str| parsed::<Example>(text.as_bytes()).unwrap_err().told.field;
        let whole = r#"{"seed": 1, "scale": 2.5, "list": [1]}"#;
        assert!(parsed::<Example>(whole.as_bytes()).is_ok());
        let named = |name: &str| Some(name.to_owned());
        assert_eq!(field(&whole.replace(": 1,", ": -1,")), named("seed"));
        assert_eq!(field(&whole.replace("2.5", "1e400")), named("scale"));
        assert_eq!(field(&whole.replace("2.5", "NaN")), named("scale"));
        assert_eq!(field(&whole.replace("[1]", "[256]")), named("list[0]"));
        assert_eq!(field(&whole.replace("seed", "sead")), named("sead"));
        assert_eq!(field("{"), None);
        assert_eq!(field(&format!("{whole} x")), None);
        // Deep ones end before the stack does.
        field(&"[".repeat(100_000));
    }
}
