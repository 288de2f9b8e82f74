//! Between requests and the device: what is asked for waits in a queue until the [worker](super::worker) takes it, and hears
//! how it gets on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use image::RgbImage;
use tokio::sync::mpsc::UnboundedSender;

use nadir::Error;
use nadir::pipeline::language::{Answer, TextRequest};
use nadir::pipeline::pace::{Estimate, Pace, Size};
use nadir::pipeline::{Cancel, Request, Warning};

use super::queue::{Client, Priority, Queue};

/// How often those who wait hear of their place.
const ANNOUNCE: Duration = Duration::from_millis(250);

/// One thing to do: a picture, an answer, a look at a picture.
pub struct Unit {
    /// Which of its task.
    pub index: usize,
    pub task: u64,
    pub work: Work,
    pub priority: Priority,
    /// When it has to be done, if it is to be done at all.
    pub deadline: Option<Instant>,
    pub cancel: Cancel,
    pub news: UnboundedSender<News>,
}

pub enum Work {
    Picture {
        /// Its switch is that of the unit.
        request: Box<Request>,
        size: Size,
        /// Evaluations of the UNet.
        evaluations: usize,
        /// Whether pictures on the way are wanted.
        preview: bool,
    },
    Text(Box<TextRequest>),
    Classify(Box<RgbImage>),
    Segment(Box<RgbImage>),
}

/// How a unit gets on.
pub struct News {
    pub index: usize,
    pub what: What,
}

pub enum What {
    /// So many units are before it, and it will be finished in about this time.
    Waits {
        position: usize,
        eta: Option<Duration>,
    },
    Began {
        evaluations: usize,
        warnings: Vec<Warning>,
    },
    Stepped {
        evaluated: usize,
        evaluations: usize,
        eta: Option<Duration>,
    },
    Preview {
        evaluated: usize,
        picture: RgbImage,
    },
    Drawn(RgbImage),
    Piece(String),
    Answered(Answer),
    Classified(Vec<f32>),
    Segmented(Segmented),
    Failed(Failure),
}

/// What a segmenter found.
pub struct Segmented {
    /// Of each pixel, row by row.
    pub classes: Vec<u8>,
    /// The picture with the classes' colours over it.
    pub overlay: RgbImage,
}

/// Why a unit came to nothing.
#[derive(Debug)]
pub enum Failure {
    /// What the library said.
    Nadir(Arc<Error>),
    /// It was cancelled.
    Cancelled,
    /// Its deadline could not be met any more, before it was begun.
    Late,
    /// The server stopped before it was finished.
    HandedBack,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Nadir(Arc::new(error))
    }
}

/// Why nothing was begun.
#[derive(Debug, PartialEq)]
pub enum Refusal {
    /// There is no room: come again after so long.
    Full(Duration),
    /// More at once than there ever is room for.
    TooMany { limit: usize },
    /// The model is not there yet.
    Loading,
    /// The server is about to stop.
    Draining,
    /// It would take this long, which is too long.
    Late { needed: Duration },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Loading,
    Ready,
    /// Nothing more is taken.
    Draining,
    /// Nothing more is done.
    Stopped,
}

/// Work that has begun.
#[derive(Clone, Debug)]
pub struct Flight {
    pub task: u64,
    pub index: usize,
    pub priority: Priority,
    /// Of a picture.
    pub size: Option<Size>,
    /// Steps to go: evaluations or tokens.
    pub remaining: usize,
    pub deadline: Option<Instant>,
}

/// Where the time of a picture went, in seconds and calls: its text, its steps together with those of others, its decoding.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Profile {
    pub size: Size,
    pub text: (f64, usize),
    pub steps: (f64, usize),
    pub decoder: (f64, usize),
}

/// What [`Engine`] guards.
pub struct Inner {
    queue: Queue<Unit>,
    pub pace: Pace,
    pub flights: Vec<Flight>,
    /// Where the time of the last picture went.
    pub profile: Option<Profile>,
    state: State,
    announced: Instant,
}

pub struct Engine {
    inner: Mutex<Inner>,
    wake: Condvar,
    /// Units in work at a time.
    pub batch: usize,
    limit: usize,
    tasks: AtomicU64,
}

/// A task that is under way. What is not [kept](Self::keep) is cancelled when this goes.
pub struct Ticket {
    engine: Arc<Engine>,
    task: u64,
    cancel: Cancel,
    kept: bool,
}

impl Engine {
    /// With room for `limit` units in the queue, and `batch` in work.
    pub fn new(batch: usize, limit: usize) -> Self {
        let inner = Inner {
            queue: Queue::new(limit),
            pace: Pace::default(),
            flights: Vec::new(),
            profile: None,
            state: State::Loading,
            announced: Instant::now(),
        };
        Self {
            inner: Mutex::new(inner),
            wake: Condvar::new(),
            batch,
            limit,
            tasks: AtomicU64::new(0),
        }
    }

    /// What a panic left is as good as before: every change is made whole under the lock.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn state(&self) -> State {
        self.lock().state
    }

    pub fn set_state(&self, state: State) {
        self.lock().state = state;
        self.wake.notify_all();
    }

    /// Units that wait, and that are in work.
    pub fn load(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.queue.len(), inner.flights.len())
    }

    /// Puts all units of a task into the queue, or none.
    pub fn submit(
        self: &Arc<Self>,
        client: &Client,
        priority: Priority,
        deadline: Option<Duration>,
        works: Vec<Work>,
        cancel: &Cancel,
        news: &UnboundedSender<News>,
    ) -> Result<Ticket, Refusal> {
        let mut inner = self.lock();
        match inner.state {
            State::Loading => return Err(Refusal::Loading),
            State::Draining | State::Stopped => return Err(Refusal::Draining),
            State::Ready => {}
        }
        if works.len() > self.limit {
            return Err(Refusal::TooMany { limit: self.limit });
        }
        if works.len() > inner.queue.room() {
            let wait = inner.backlog(priority, self.batch, Estimate::Typical).max(1.0);
            return Err(Refusal::Full(Duration::from_secs_f64(wait.min(3600.0))));
        }
        if let Some(deadline) = deadline {
            let needed = inner.needed(priority, &works, self.batch);
            if needed > deadline {
                return Err(Refusal::Late { needed });
            }
        }
        let task = self.tasks.fetch_add(1, Ordering::Relaxed);
        let deadline = deadline.map(|deadline| Instant::now() + deadline);
        for (index, work) in works.into_iter().enumerate() {
            let (cancel, news) = (cancel.clone(), news.clone());
            let unit = Unit { index, task, work, priority, deadline, cancel, news };
            inner.queue.push(client, priority, unit);
        }
        drop(inner);
        self.wake.notify_all();
        Ok(Ticket { engine: self.clone(), task, cancel: cancel.clone(), kept: false })
    }

    /// What the worker is to begin now; waits when it has nothing else to do. None when it is to end.
    pub fn next(&self) -> Option<Vec<Unit>> {
        let mut inner = self.lock();
        loop {
            if inner.state == State::Stopped {
                inner.queue.remove(|_| true).iter().for_each(|unit| unit.fail(Failure::HandedBack));
                return None;
            }
            inner.expire();
            let mut units = Vec::new();
            while let Some(unit) = inner.admit(self.batch) {
                inner.flights.push(unit.flight());
                units.push(unit);
            }
            if !units.is_empty() || !inner.flights.is_empty() {
                inner.announce(self.batch);
                return Some(units);
            }
            inner = self.wake.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets go of what waits and was cancelled.
    pub fn sweep(&self) {
        let removed = self.lock().queue.remove(|unit| unit.cancel.is_cancelled());
        removed.iter().for_each(|unit| unit.fail(Failure::Cancelled));
    }

    fn cancel(&self, task: u64) {
        let removed = self.lock().queue.remove(|unit| unit.task == task);
        removed.iter().for_each(|unit| unit.fail(Failure::Cancelled));
    }
}

impl Inner {
    /// The next unit in turn that has room, and delays none that was promised a time.
    fn admit(&mut self, batch: usize) -> Option<Unit> {
        let Self { queue, pace, flights, .. } = self;
        let now = Instant::now();
        queue.pop_if(|priority, unit| {
            let interactive =
                flights.iter().filter(|f| f.priority == Priority::Interactive).count();
            let displaces = priority == Priority::Interactive && interactive < batch;
            if flights.len() >= batch && !displaces {
                return false;
            }
            let Work::Picture { size, .. } = unit.work else { return true };
            let round = round(pace, flights, Some(size), batch, Estimate::Tail);
            flights.iter().all(|flight| match flight.deadline {
                Some(deadline) => now + flight.needs(pace, round, Estimate::Tail) <= deadline,
                None => true,
            })
        })
    }

    /// Lets go of what can no longer be done in time.
    fn expire(&mut self) {
        let Self { queue, pace, flights, .. } = self;
        let now = Instant::now();
        let late = queue.remove(|unit| {
            unit.deadline.is_some_and(|deadline| {
                let flight = unit.flight();
                // Alone with what has begun already: with others it would wait for them.
                let round = round(pace, flights, flight.size, usize::MAX, Estimate::Typical);
                now + flight.needs(pace, round, Estimate::Typical) > deadline
            })
        });
        late.iter().for_each(|unit| unit.fail(Failure::Late));
    }

    /// Seconds of all work before a new one of this priority.
    fn backlog(&self, priority: Priority, batch: usize, estimate: Estimate) -> f64 {
        let queued = self.queue.in_turn().filter(|(other, _)| *other <= priority);
        let queued: f64 =
            queued.map(|(_, unit)| share(&self.pace, &unit.work, batch, estimate)).sum();
        let begun = self.flights.iter().filter(|flight| flight.priority <= priority);
        let each = |flight: &Flight| {
            let size = flight.size?;
            let step = self.pace.step(size, batch, estimate)? / batch as f64;
            Some(flight.remaining as f64 * step + self.pace.ends(size, estimate))
        };
        queued + begun.filter_map(each).sum::<f64>()
    }

    /// Time until `works` would be done.
    fn needed(&self, priority: Priority, works: &[Work], batch: usize) -> Duration {
        let estimate = Estimate::Tail;
        let own: f64 = works.iter().map(|work| share(&self.pace, work, batch, estimate)).sum();
        // The last of them runs in company that is as large as it gets.
        let company = (self.flights.len() + self.queue.len() + works.len()).clamp(1, batch);
        let alone = works.iter().map(|work| match work {
            Work::Picture { size, evaluations, .. } => {
                let step = self.pace.step(*size, company, estimate).unwrap_or(0.0);
                *evaluations as f64 * step + self.pace.ends(*size, estimate)
            }
            Work::Text(_) | Work::Classify(_) | Work::Segment(_) => 0.0,
        });
        let alone = alone.fold(0.0, f64::max);
        Duration::from_secs_f64(self.backlog(priority, batch, estimate) + own.max(alone))
    }

    fn announce(&mut self, batch: usize) {
        if self.announced.elapsed() < ANNOUNCE {
            return;
        }
        self.announced = Instant::now();
        let share = |unit: &Unit| share(&self.pace, &unit.work, batch, Estimate::Typical);
        let mut before = self.backlog(Priority::Batch, batch, Estimate::Typical)
            - self.queue.in_turn().map(|(_, unit)| share(unit)).sum::<f64>();
        for (position, (_, unit)) in self.queue.in_turn().enumerate() {
            before += share(unit);
            let eta = (before > 0.0).then(|| Duration::from_secs_f64(before));
            unit.tell(What::Waits { position, eta });
        }
    }
}

/// Seconds that one step of everything in flight takes, and of one more of a size.
pub fn round(
    pace: &Pace,
    flights: &[Flight],
    more: Option<Size>,
    batch: usize,
    estimate: Estimate,
) -> f64 {
    let sizes = flights.iter().filter_map(|flight| flight.size).chain(more);
    let mut counts = std::collections::BTreeMap::new();
    sizes.for_each(|size| *counts.entry(size).or_insert(0) += 1);
    let step = |(size, n): (Size, usize)| pace.step(size, n.min(batch), estimate).unwrap_or(0.0);
    counts.into_iter().map(step).sum()
}

/// Seconds that a piece of work costs those behind it.
fn share(pace: &Pace, work: &Work, batch: usize, estimate: Estimate) -> f64 {
    match work {
        Work::Picture { size, evaluations, .. } => {
            let step = pace.step(*size, batch, estimate).unwrap_or(0.0) / batch as f64;
            *evaluations as f64 * step + pace.ends(*size, estimate)
        }
        Work::Text(_) | Work::Classify(_) | Work::Segment(_) => 0.0,
    }
}

impl Flight {
    /// Time until it is done when a step of all takes `round` seconds.
    pub fn needs(&self, pace: &Pace, round: f64, estimate: Estimate) -> Duration {
        let ends = self.size.map_or(0.0, |size| pace.ends(size, estimate));
        Duration::from_secs_f64(self.remaining as f64 * round + ends)
    }
}

impl Unit {
    pub fn flight(&self) -> Flight {
        let (size, remaining) = match &self.work {
            Work::Picture { size, evaluations, .. } => (Some(*size), *evaluations),
            Work::Text(request) => (None, request.max_new_tokens),
            Work::Classify(_) | Work::Segment(_) => (None, 0),
        };
        let Self { task, index, priority, deadline, .. } = *self;
        Flight { task, index, priority, size, remaining, deadline }
    }

    /// Who asked may be gone.
    pub fn tell(&self, what: What) {
        let _ = self.news.send(News { index: self.index, what });
    }

    pub fn fail(&self, failure: Failure) {
        self.tell(What::Failed(failure));
    }
}

impl Ticket {
    /// Lets the task go on when this is gone.
    pub fn keep(mut self) -> Canceller {
        self.kept = true;
        Canceller { engine: self.engine.clone(), task: self.task, cancel: self.cancel.clone() }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.kept {
            self.cancel.cancel();
            self.engine.cancel(self.task);
        }
    }
}

/// Stops a task that goes on by itself.
#[derive(Clone)]
pub struct Canceller {
    engine: Arc<Engine>,
    task: u64,
    cancel: Cancel,
}

impl Canceller {
    pub fn cancel(&self) {
        self.cancel.cancel();
        self.engine.cancel(self.task);
    }
}

#[cfg(test)]
mod tests;
