//! What went wrong, as a reply.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use nadir::Error;

use super::engine::{Failure, Refusal};

/// An error of any of the interfaces: `{"error": {"message": ..., "field": ...}}`, in which clients of OpenAI's find theirs, and
/// `detail`, in which those of the web UI do.
#[derive(Clone, Debug)]
pub struct Fault {
    pub status: StatusCode,
    pub told: Told,
    pub retry: Option<Duration>,
}

/// What is told of an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Told {
    /// What was wrong, and what to do.
    pub message: String,
    /// The field of the request that it is about.
    pub field: Option<String>,
}

/// The body of an error.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    error: Told,
    detail: String,
}

impl Fault {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, told: Told { message: message.into(), field: None }, retry: None }
    }

    /// A field that cannot be served as it is.
    pub fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { told: Told { message: message.into(), field: Some(field.into()) }, ..Self::bad("") }
    }

    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    fn after(self, retry: Duration) -> Self {
        Self { retry: Some(retry), ..self }
    }

    /// As an interface calls its fields.
    pub fn renamed(mut self, names: &[(&str, &str)]) -> Self {
        let known = |field: &String| names.iter().find(|(ours, _)| ours == field);
        if let Some((_, theirs)) = self.told.field.as_ref().and_then(known) {
            self.told.field = Some((*theirs).to_owned());
        }
        self
    }
}

impl From<&Error> for Fault {
    fn from(error: &Error) -> Self {
        match error {
            Error::Argument { name, found, expected } => {
                let found: String = found.chars().take(200).collect();
                Self::field(*name, format!("{found} is not possible: {expected}"))
            }
            // Of an upload: nothing that a request says is opened.
            Error::File { what, expected, found, advice, .. } => {
                Self::bad(format!("{what}: expected {expected}, found {found}. {advice}"))
            }
            Error::OutOfMemory { .. } => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, error.to_string())
            }
            Error::NotFinite(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        let unavailable = |text: &str| {
            Self::new(StatusCode::SERVICE_UNAVAILABLE, text).after(Duration::from_secs(2))
        };
        match refusal {
            Refusal::Full(wait) => {
                let text = "the queue is full: come again later";
                Self::new(StatusCode::TOO_MANY_REQUESTS, text).after(wait)
            }
            Refusal::TooMany { limit } => {
                Self::field("num_images", format!("at most {limit} at once"))
            }
            Refusal::Loading => unavailable("the model is being loaded"),
            Refusal::Draining => unavailable("this server is about to stop"),
            Refusal::Late { needed } => {
                let text = format!(
                    "it would take {} ms: fewer steps or pictures, or a later deadline",
                    needed.as_millis()
                );
                let status = StatusCode::UNPROCESSABLE_ENTITY;
                Self { status, ..Self::field("deadline_ms", text) }
            }
        }
    }
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Nadir(error) => Self::from(&*error),
            // nginx's number for a client that closed the connection.
            Failure::Cancelled => Self::new(
                StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
                "it was cancelled",
            ),
            Failure::Late => {
                let text = "others took longer than expected: it was not begun";
                let status = StatusCode::UNPROCESSABLE_ENTITY;
                Self { status, ..Self::field("deadline_ms", text) }
            }
            Failure::HandedBack => {
                let text = "this server stopped before it was finished: ask again";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, text).after(Duration::from_secs(1))
            }
        }
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let Self { status, told, retry } = self;
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(message = told.message, "failed");
        }
        let detail = told.message.clone();
        let mut response = (status, Json(ErrorBody { error: told, detail })).into_response();
        if let Some(retry) = retry {
            let seconds = HeaderValue::from(retry.as_secs().max(1));
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response
    }
}
