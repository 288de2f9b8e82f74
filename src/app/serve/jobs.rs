//! Jobs that go on by themselves: whoever asked may leave and come back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use image::RgbImage;
use serde_json::json;
use tokio::sync::broadcast::{self, Receiver, Sender};
use tokio::sync::mpsc::UnboundedReceiver;

use nadir::pipeline::language::Finish;

use super::engine::{Canceller, Failure, News, What};
use super::fault::Fault;
use super::job::{Job, JobState};
use super::picture::Signature;
use super::store::Store;

/// Events that a listener may be behind.
const BEHIND: usize = 256;

/// Jobs, those under way and those on disk.
pub struct Jobs {
    pub store: Arc<Store>,
    live: Mutex<BTreeMap<String, Arc<Live>>>,
    next: AtomicU64,
}

/// A job under way.
pub struct Live {
    job: Mutex<Job>,
    events: Sender<Sent>,
    canceller: OnceLock<Canceller>,
}

/// An event as it is sent.
#[derive(Clone, Debug)]
pub struct Sent {
    pub event: &'static str,
    pub data: String,
}

impl Sent {
    fn new(event: &'static str, data: impl serde::Serialize) -> Self {
        // Of our own types, which JSON can hold.
        Self { event, data: serde_json::to_string(&data).unwrap_or_default() }
    }
}

impl Jobs {
    pub fn new(store: Store, next: u64) -> Self {
        let live = Mutex::new(BTreeMap::new());
        Self { store: Arc::new(store), live, next: AtomicU64::new(next) }
    }

    fn live(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The id of a new job.
    pub fn next_id(&self) -> String {
        self.store.id(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// A job that is known.
    pub async fn get(&self, id: &str) -> Option<Job> {
        if let Some(live) = self.live().get(id) {
            return Some(live.job().clone());
        }
        let (store, id) = (self.store.clone(), id.to_owned());
        tokio::task::spawn_blocking(move || store.read(&id).ok()).await.ok()?
    }

    /// The latest `limit` jobs, the newest first.
    pub async fn list(&self, limit: usize) -> Vec<Job> {
        let mut ids: Vec<String> = self.live().keys().cloned().collect();
        ids.extend(self.store.finished());
        ids.sort_unstable_by(|a, b| b.cmp(a));
        ids.dedup();
        let mut jobs = Vec::new();
        for id in ids.into_iter().take(limit) {
            jobs.extend(self.get(&id).await);
        }
        jobs
    }

    /// What happens to a job from now on, and how it is now; without events when it is over.
    pub async fn listen(&self, id: &str) -> Option<(Job, Option<Receiver<Sent>>)> {
        let live = self.live().get(id).cloned();
        if let Some(live) = live {
            let job = live.job();
            return Some((job.clone(), Some(live.events.subscribe())));
        }
        Some((self.get(id).await?, None))
    }

    /// Cancels a job that is under way; false when it is not.
    pub fn cancel(&self, id: &str) -> bool {
        let live = self.live().get(id).cloned();
        live.inspect(|live| live.canceller.get().into_iter().for_each(Canceller::cancel)).is_some()
    }

    /// Writes a new job down, and follows it from there on.
    ///
    /// # Errors
    /// The disk is full: then it is cancelled.
    pub async fn begin(
        self: &Arc<Self>,
        job: Job,
        signature: Option<Signature>,
        ticket: super::engine::Ticket,
        news: UnboundedReceiver<News>,
    ) -> Result<(), Fault> {
        let (store, copy) = (self.store.clone(), job.clone());
        blocking(move || store.write(&copy)).await??;
        let (events, _) = broadcast::channel(BEHIND);
        let id = job.id.clone();
        let live = Arc::new(Live { job: Mutex::new(job), events, canceller: OnceLock::new() });
        let _ = live.canceller.set(ticket.keep());
        self.live().insert(id, live.clone());
        let jobs = self.clone();
        tokio::spawn(async move { jobs.follow(&live, signature, news).await });
        Ok(())
    }

    async fn follow(
        &self,
        live: &Live,
        signature: Option<Signature>,
        mut news: UnboundedReceiver<News>,
    ) {
        let (id, units) = {
            let job = live.job();
            (job.id.clone(), job.images.len() + job.answers.len())
        };
        let mut over = 0;
        let mut worst = JobState::Done;
        while over < units {
            // The worker answers for every unit before it ends.
            let Some(News { index, what }) = news.recv().await else { break };
            match what {
                What::Drawn(picture) => {
                    over += 1;
                    let signature = signature.clone();
                    let (store, at) = (self.store.clone(), id.clone());
                    let written = blocking(move || {
                        let png = match signature {
                            Some(signature) => signature.png(&picture, index as u64)?,
                            None => return Ok(()),
                        };
                        store.write_picture(&at, index, &png)
                    });
                    let written = written.await.and_then(|done| Ok(done?));
                    worst = live.drawn(&id, index, written, worst);
                }
                What::Failed(failure) => {
                    over += 1;
                    let state = match failure {
                        Failure::Cancelled => JobState::Cancelled,
                        Failure::HandedBack => JobState::Lost,
                        Failure::Nadir(_) | Failure::Late => JobState::Failed,
                    };
                    worst = live.failed(index, state, failure.into(), worst);
                }
                What::Answered(answer) => {
                    over += 1;
                    let mut job = live.job();
                    job.answers[index].finish = Some(finish(answer.finish).to_owned());
                }
                other => live.tell(index, other),
            }
        }
        let job = {
            let mut job = live.job();
            job.end(worst);
            job.clone()
        };
        let (store, copy) = (self.store.clone(), job.clone());
        if let Ok(Err(error)) = blocking(move || store.finish(&copy)).await {
            tracing::error!(job = id, %error, "a job was not written down");
        }
        self.live().remove(&id);
        live.send(Sent::new("end", &job));
    }
}

/// Runs what waits for the disk or takes long where it keeps nobody waiting.
pub async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Fault> {
    let failed = |_| {
        Fault::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, "a part of the server failed")
    };
    tokio::task::spawn_blocking(run).await.map_err(failed)
}

/// What ended an answer, in the words of the interface.
pub fn finish(finish: Finish) -> &'static str {
    match finish {
        Finish::End => "end",
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}

impl Live {
    fn job(&self) -> MutexGuard<'_, Job> {
        self.job.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody need listen.
    fn send(&self, sent: Sent) {
        let _ = self.events.send(sent);
    }

    fn drawn(
        &self,
        id: &str,
        index: usize,
        written: Result<(), Fault>,
        worst: JobState,
    ) -> JobState {
        if let Err(fault) = written {
            return self.failed(index, JobState::Failed, fault, worst);
        }
        let mut job = self.job();
        let image = &mut job.images[index];
        image.state = JobState::Done;
        image.url = Some(format!("/api/jobs/{id}/images/{index}"));
        let data = json!({ "image": index, "seed": image.seed, "url": image.url });
        self.send(Sent::new("image", data));
        worst
    }

    fn failed(&self, index: usize, state: JobState, fault: Fault, worst: JobState) -> JobState {
        let mut job = self.job();
        if let Some(image) = job.images.get_mut(index) {
            image.state = state;
        }
        if state != JobState::Cancelled && job.error.is_none() {
            job.error = Some(fault.told);
        }
        // Failed before lost before cancelled.
        let rank = |state| match state {
            JobState::Failed => 3,
            JobState::Lost => 2,
            JobState::Cancelled => 1,
            _ => 0,
        };
        if rank(state) > rank(worst) { state } else { worst }
    }

    fn tell(&self, index: usize, what: What) {
        let ms = |eta: Option<Duration>| eta.map(|eta| eta.as_millis() as u64);
        let mut job = self.job();
        match what {
            What::Waits { position, eta } => {
                // The last of them says when all are there, the first how many are before it.
                if index == 0 && job.state == JobState::Queued {
                    job.position = Some(position);
                }
                if index + 1 == job.images.len().max(job.answers.len()) {
                    job.eta_ms = ms(eta);
                    self.send(Sent::new("job", &*job));
                }
            }
            What::Began { evaluations, warnings } => {
                job.start();
                if let Some(image) = job.images.get_mut(index) {
                    (image.state, image.steps) = (JobState::Running, evaluations);
                }
                for warning in warnings {
                    let warning = warning.to_string();
                    if !job.warnings.contains(&warning) {
                        job.warnings.push(warning);
                    }
                }
                self.send(Sent::new("job", &*job));
            }
            What::Stepped { evaluated, evaluations, eta } => {
                if let Some(image) = job.images.get_mut(index) {
                    image.step = evaluated;
                }
                job.eta_ms = ms(eta);
                let data = json!({
                    "image": index, "step": evaluated, "steps": evaluations, "eta_ms": ms(eta),
                });
                self.send(Sent::new("step", data));
            }
            What::Preview { evaluated, picture } if self.events.receiver_count() > 0 => {
                if let Ok(png) = bare_png(&picture) {
                    let data = json!({
                        "image": index, "step": evaluated, "png": BASE64.encode(png),
                    });
                    self.send(Sent::new("preview", data));
                }
            }
            What::Piece(text) => {
                if let Some(answer) = job.answers.get_mut(index) {
                    answer.text += &text;
                }
                self.send(Sent::new("text", json!({ "answer": index, "text": text })));
            }
            _ => {}
        }
    }
}

/// A PNG of a picture and nothing else.
pub fn bare_png(picture: &RgbImage) -> std::io::Result<Vec<u8>> {
    let mut png = Vec::new();
    nadir::io::png::encode(&mut png, picture, &[])?;
    Ok(png)
}
