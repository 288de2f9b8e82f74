//! The thread that owns the device. Whatever is in work shares its steps: pictures of one size share evaluations of the UNet,
//! answers those of the language model, and each is what it would be alone. Between two steps others join and leave.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use image::RgbImage;
use nadir::pipeline::classifier::Classifier;
use nadir::pipeline::language::{LanguageModel, TextRun};
use nadir::pipeline::pace::{Estimate, Size};
use nadir::pipeline::pixel_classifier::PixelClassifier;
use nadir::pipeline::scene::{self, Overlay, Palette, Rows, Source, Watcher, Windows};
use nadir::pipeline::{Cancel, Event, Request, Run, SlotId, TextToImage};
use nadir::{Error, Result};

use super::engine::{Engine, Failure, Flight, Profile, Segmented, Unit, What, Work, round};
use super::metrics::Metrics;
use super::queue::Priority;

/// How often a picture is shown on its way.
const PREVIEW: Duration = Duration::from_millis(300);

/// What the server has loaded.
pub struct Models {
    pub image: TextToImage,
    pub text: Option<LanguageModel>,
    pub classifier: Option<Classifier>,
    pub segmenter: Option<Segmenter>,
}

/// A segmenter and the colours that its classes are shown in.
pub struct Segmenter {
    pub model: PixelClassifier,
    pub palette: Palette,
}

/// Pictures of one size.
struct Easel<'m> {
    run: Run<'m>,
    members: BTreeMap<SlotId, Member>,
    /// Why slots were made to leave.
    failures: BTreeMap<SlotId, Arc<Error>>,
}

/// A unit in work.
struct Member {
    unit: Unit,
    evaluations: usize,
    shown: Instant,
    profile: Profile,
}

struct Desk<'m> {
    run: TextRun<'m>,
    members: BTreeMap<usize, Unit>,
}

/// Draws a picture or two, so that times are known before the first is asked for.
///
/// # Errors
/// The model draws nothing.
pub fn calibrate(engine: &Engine, models: &Models) -> Result<()> {
    let size = models.image.default_size();
    let mut run = Run::new(&models.image, size, engine.batch)?;
    let mut least = models.image.least_request();
    least.settings.steps = Some(2);
    let mut spent = Duration::ZERO;
    let mut company = 1;
    while company <= engine.batch && spent < Duration::from_secs(2) {
        for _ in 0..company {
            run.join(least.clone())?;
        }
        while !run.is_empty() {
            let clock = Instant::now();
            let events = run.step()?;
            engine.lock().pace.observe(size, &events, clock.elapsed());
            spent += clock.elapsed();
        }
        company =
            if company < engine.batch { (company * 4).min(engine.batch) } else { company + 1 };
    }
    Ok(())
}

/// Does what the engine has until it stops.
pub fn work(engine: &Engine, models: &Models, metrics: &Metrics) {
    let mut easels: BTreeMap<Size, Easel> = BTreeMap::new();
    let mut desk = None;
    while let Some(units) = engine.next() {
        for unit in units {
            begin(engine, models, &mut easels, &mut desk, unit);
        }
        if let Some(desk) = &mut desk {
            write(engine, desk, metrics);
        }
        for (size, easel) in &mut easels {
            draw(engine, models, *size, easel, metrics);
        }
        easels.retain(|_, easel| !easel.run.is_empty());
    }
    let members = easels.into_values().flat_map(|easel| easel.members.into_values());
    members.for_each(|member| member.unit.fail(Failure::HandedBack));
    let members = desk.into_iter().flat_map(|desk: Desk| desk.members.into_values());
    members.for_each(|unit| unit.fail(Failure::HandedBack));
}

fn begin<'m>(
    engine: &Engine,
    models: &'m Models,
    easels: &mut BTreeMap<Size, Easel<'m>>,
    desk: &mut Option<Desk<'m>>,
    unit: Unit,
) {
    let failed = |unit: &Unit, error: Error| end(engine, unit, What::Failed(error.into()));
    match &unit.work {
        Work::Picture { request, size, evaluations, .. } => {
            match join(engine, models, easels, request, *size, unit.priority) {
                Ok((easel, slot)) => {
                    let (evaluations, shown) = (*evaluations, Instant::now());
                    let profile = Profile { size: *size, ..Profile::default() };
                    easel.members.insert(slot, Member { unit, evaluations, shown, profile });
                }
                Err(error) => failed(&unit, error),
            }
        }
        Work::Text(request) => {
            let begun = sit(engine, models, desk)
                .and_then(|desk| Ok((desk.run.join((**request).clone())?, desk)));
            match begun {
                Ok((piece, desk)) => {
                    unit.tell(What::Began { evaluations: 0, warnings: Vec::new() });
                    desk.members.insert(piece.id, unit);
                    told(engine, desk, piece);
                }
                Err(error) => failed(&unit, error),
            }
        }
        Work::Classify(picture) => {
            let classifier = models.classifier.as_ref().ok_or_else(|| none("classifier"));
            match classifier.and_then(|c| c.classify(std::slice::from_ref(&**picture))) {
                Ok(mut found) => {
                    end(engine, &unit, What::Classified(found.pop().unwrap_or_default()));
                }
                Err(error) => failed(&unit, error),
            }
        }
        Work::Segment(picture) => {
            let segmenter = models.segmenter.as_ref().ok_or_else(|| none("segmenter"));
            match segmenter.and_then(|s| segment(s, (**picture).clone(), &unit.cancel)) {
                Ok(found) => end(engine, &unit, What::Segmented(found)),
                Err(error) => failed(&unit, error),
            }
        }
    }
}

/// What each pixel of an upload shows.
fn segment(segmenter: &Segmenter, picture: RgbImage, cancel: &Cancel) -> Result<Segmented> {
    struct Collect<'a>(Vec<u8>, Overlay, &'a Cancel);

    impl Watcher for Collect<'_> {
        fn start(&mut self, _: usize) {}

        fn step(&mut self, _: usize) -> Result<()> {
            self.2.check()
        }

        fn rows(&mut self, rows: Rows) -> Result<()> {
            self.1.add(&rows);
            self.0.extend(rows.classes);
            Ok(())
        }
    }

    let Segmenter { model, palette } = segmenter;
    if model.bands() != 3 {
        let expected = "this server's segmenter sees other bands than red, green and blue";
        return Err(Error::argument(
            "picture",
            format!("3 bands, not {}", model.bands()),
            expected,
        ));
    }
    let mut source = Source::picture(Path::new("picture"), picture);
    let overlay = Overlay::new(&source, palette.clone(), model.mean(), model.std());
    let mut collect = Collect(Vec::new(), overlay, cancel);
    let size = 512_usize.next_multiple_of(model.multiple());
    let windows = Windows { size, overlap: size / 8, batch: 1 };
    scene::segment(&mut source, model, &windows, &mut collect)?;
    Ok(Segmented { classes: collect.0, overlay: collect.1.into_picture() })
}

fn none(what: &'static str) -> Error {
    Error::argument("model", what, "the server was started without one")
}

fn join<'e, 'm>(
    engine: &Engine,
    models: &'m Models,
    easels: &'e mut BTreeMap<Size, Easel<'m>>,
    request: &Request,
    size: Size,
    priority: Priority,
) -> Result<(&'e mut Easel<'m>, SlotId)> {
    let easel = match easels.entry(size) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(new) => new.insert(Easel {
            run: Run::new(&models.image, size, engine.batch)?,
            members: BTreeMap::new(),
            failures: BTreeMap::new(),
        }),
    };
    let slot = easel.run.join(request.clone())?;
    easel.run.set_priority(slot, i32::from(priority == Priority::Interactive));
    Ok((easel, slot))
}

/// The desk with room for an answer.
fn sit<'d, 'm>(
    engine: &Engine,
    models: &'m Models,
    desk: &'d mut Option<Desk<'m>>,
) -> Result<&'d mut Desk<'m>> {
    if desk.is_none() {
        let model = models.text.as_ref().ok_or_else(|| none("language model"))?;
        let context = model.decoder().config().max_position_embeddings;
        // As many as may be in work, and those that displace others.
        let run = TextRun::new(model, 2 * engine.batch, context)?;
        *desk = Some(Desk { run, members: BTreeMap::new() });
    }
    desk.as_mut().ok_or(Error::Interrupted)
}

/// The unit is done with: it is in flight no more.
fn end(engine: &Engine, unit: &Unit, what: What) {
    let mut inner = engine.lock();
    inner.flights.retain(|flight| (flight.task, flight.index) != (unit.task, unit.index));
    drop(inner);
    unit.tell(what);
}

/// A token of every answer.
fn write(engine: &Engine, desk: &mut Desk, metrics: &Metrics) {
    let gone = |(id, unit): (&usize, &Unit)| unit.cancel.is_cancelled().then_some(*id);
    for id in desk.members.iter().filter_map(gone).collect::<Vec<_>>() {
        if let Some(unit) = desk.members.remove(&id) {
            let left = desk.run.leave(id).err().map_or(Failure::Cancelled, Failure::from);
            end(engine, &unit, What::Failed(left));
        }
    }
    if desk.run.is_empty() {
        return;
    }
    match desk.run.step() {
        Ok(pieces) => {
            metrics.tokens.inc_by(pieces.len() as u64);
            pieces.into_iter().for_each(|piece| told(engine, desk, piece));
        }
        Err(error) => {
            tracing::error!(%error, "a token failed");
            // All stand in one step.
            let error = Arc::new(error);
            for (id, unit) in std::mem::take(&mut desk.members) {
                let _ = desk.run.leave(id);
                end(engine, &unit, What::Failed(Failure::Nadir(error.clone())));
            }
        }
    }
}

fn told(engine: &Engine, desk: &mut Desk, piece: nadir::pipeline::language::Piece) {
    let Some(unit) = desk.members.get(&piece.id) else { return };
    unit.tell(What::Piece(piece.text));
    if let Some(answer) = piece.answer
        && let Some(unit) = desk.members.remove(&piece.id)
    {
        end(engine, &unit, What::Answered(answer));
    }
}

/// A piece of work on pictures of one size.
fn draw(engine: &Engine, models: &Models, size: Size, easel: &mut Easel, metrics: &Metrics) {
    if easel.run.is_empty() {
        return;
    }
    let clock = Instant::now();
    let events = match easel.run.step() {
        Ok(events) => events,
        Err(error) => return shrink(easel, error),
    };
    let took = clock.elapsed();
    engine.lock().pace.observe(size, &events, took);
    for event in events {
        account(easel, &event, took);
        tell(engine, models, size, easel, event, metrics);
    }
}

/// Where memory ran out, fewer go on together. What stops one alone stops all of its size.
fn shrink(easel: &mut Easel, error: Error) {
    let smaller = easel.run.len().min(easel.run.limit()) / 2;
    if matches!(error, Error::OutOfMemory { .. }) && easel.run.set_limit(smaller).is_ok() {
        tracing::warn!(batch = smaller, "out of memory: going on with fewer pictures at once");
        return;
    }
    tracing::error!(%error, "a step failed");
    let error = Arc::new(error);
    for slot in easel.members.keys() {
        easel.failures.insert(*slot, error.clone());
        easel.run.cancel(*slot);
    }
}

fn tell(
    engine: &Engine,
    models: &Models,
    size: Size,
    easel: &mut Easel,
    event: Event,
    metrics: &Metrics,
) {
    match event {
        Event::Began { slot, evaluations, warnings } => {
            if let Some(member) = easel.members.get_mut(&slot) {
                member.evaluations = evaluations;
                progress(engine, &member.unit, evaluations, size);
                member.unit.tell(What::Began { evaluations, warnings });
            }
        }
        Event::Stepped { slot, evaluated, latents } => {
            let Some(member) = easel.members.get_mut(&slot) else { return };
            let evaluations = member.evaluations;
            metrics.steps.inc();
            let eta = progress(engine, &member.unit, evaluations - evaluated, size);
            member.unit.tell(What::Stepped { evaluated, evaluations, eta });
            let wanted = matches!(member.unit.work, Work::Picture { preview: true, .. });
            if wanted && evaluated < evaluations && member.shown.elapsed() >= PREVIEW {
                member.shown = Instant::now();
                // A preview that fails is none.
                if let Ok(picture) = models.image.preview(&latents, &Cancel::default()) {
                    member.unit.tell(What::Preview { evaluated, picture });
                }
            }
        }
        Event::Finished { slot, result } => {
            let Some(member) = easel.members.remove(&slot) else { return };
            if result.is_ok() {
                engine.lock().profile = Some(member.profile);
            }
            let failure = easel.failures.remove(&slot);
            // What a PNG cannot show was refused when the model was loaded.
            let what = match (result.and_then(|picture| picture.rgb()), failure) {
                (Ok(picture), None) => {
                    metrics.pictures.inc();
                    if member.unit.deadline.is_some_and(|deadline| Instant::now() > deadline) {
                        metrics.missed.inc();
                    }
                    What::Drawn(picture)
                }
                (_, Some(failure)) => What::Failed(Failure::Nadir(failure)),
                (Err(Error::Interrupted), None) => What::Failed(Failure::Cancelled),
                (Err(error), None) => What::Failed(error.into()),
            };
            end(engine, &member.unit, what);
        }
        _ => {}
    }
}

/// Adds a piece of work to what a picture took.
fn account(easel: &mut Easel, event: &Event, took: Duration) {
    let (Event::Began { slot, .. } | Event::Stepped { slot, .. } | Event::Finished { slot, .. }) =
        event
    else {
        return;
    };
    let Some(Member { profile, .. }) = easel.members.get_mut(slot) else { return };
    let (seconds, calls) = match event {
        Event::Began { .. } => &mut profile.text,
        Event::Stepped { .. } => &mut profile.steps,
        _ => &mut profile.decoder,
    };
    (*seconds, *calls) = (*seconds + took.as_secs_f64(), *calls + 1);
}

/// Notes how far a unit is, and says how long it will take from here.
fn progress(engine: &Engine, unit: &Unit, remaining: usize, size: Size) -> Option<Duration> {
    let mut inner = engine.lock();
    let inner = &mut *inner;
    let round = round(&inner.pace, &inner.flights, None, engine.batch, Estimate::Typical);
    let own = |flight: &&mut Flight| (flight.task, flight.index) == (unit.task, unit.index);
    let flight = inner.flights.iter_mut().find(own)?;
    (flight.remaining, flight.size) = (remaining, Some(size));
    Some(flight.needs(&inner.pace, round, Estimate::Typical))
}
