//! What is known of a job.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::fault::Told;

/// A job: pictures or texts that were asked for together.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// Its server and number.
    pub id: String,
    pub kind: Kind,
    pub state: JobState,
    /// Pictures and texts before it, while it waits.
    pub position: Option<usize>,
    /// Milliseconds until it is done, as far as can be said.
    pub eta_ms: Option<u64>,
    /// When it was asked for (RFC 3339).
    pub created: String,
    /// When its first picture or text was begun.
    pub started: Option<String>,
    pub finished: Option<String>,
    /// What was asked for, what was left to the server filled in; without the pictures.
    pub request: serde_json::Value,
    pub images: Vec<JobImage>,
    pub answers: Vec<JobAnswer>,
    pub warnings: Vec<String>,
    pub error: Option<Told>,
}

/// What a job makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Image,
    Text,
}

/// How far a job, or one of its pictures, is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    Queued,
    Running,
    Done,
    Failed,
    Cancelled,
    /// The server was killed before it was finished: ask again.
    Lost,
}

/// A picture of a job.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct JobImage {
    pub index: usize,
    pub seed: u64,
    pub state: JobState,
    /// Evaluations of the UNet so far.
    pub step: usize,
    pub steps: usize,
    /// Where the PNG is, once it is done.
    pub url: Option<String>,
}

/// A text of a job.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct JobAnswer {
    pub index: usize,
    pub seed: u64,
    pub text: String,
    /// What ended it: `length`, `stop` or `end`.
    pub finish: Option<String>,
}

pub fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

impl Job {
    /// One that waits, for a picture or text of each seed.
    pub fn new(id: String, kind: Kind, request: serde_json::Value, seeds: &[u64]) -> Self {
        let seeds = seeds.iter().copied().enumerate();
        let (mut images, mut answers) = (Vec::new(), Vec::new());
        match kind {
            Kind::Image => images.extend(seeds.map(|(index, seed)| JobImage {
                index,
                seed,
                state: JobState::Queued,
                step: 0,
                steps: 0,
                url: None,
            })),
            Kind::Text => answers.extend(seeds.map(|(index, seed)| JobAnswer {
                index,
                seed,
                text: String::new(),
                finish: None,
            })),
        }
        Self {
            id,
            kind,
            state: JobState::Queued,
            position: None,
            eta_ms: None,
            created: now(),
            started: None,
            finished: None,
            request,
            images,
            answers,
            warnings: Vec::new(),
            error: None,
        }
    }

    pub fn start(&mut self) {
        if self.state == JobState::Queued {
            (self.state, self.started, self.position) = (JobState::Running, Some(now()), None);
        }
    }

    /// Ends it, one way or another.
    pub fn end(&mut self, state: JobState) {
        (self.state, self.finished) = (state, Some(now()));
        (self.position, self.eta_ms) = (None, None);
        for image in self.images.iter_mut().filter(|image| !image.state.is_over()) {
            image.state = state;
        }
    }

    /// Ends it as its server's death does.
    pub fn lose(&mut self) {
        self.end(JobState::Lost);
        let message = "the server was stopped before this was finished: ask again".to_owned();
        self.error = Some(Told { message, field: None });
    }
}
