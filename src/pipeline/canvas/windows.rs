//! Drawing windows and decoding them: each as soon as those that it sees are there, by whoever comes first.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::time::Duration;

use super::grid::{Id, rank};
use super::{Plan, State, Window};
use crate::error::{Error, Result};
use crate::io::claim::Claim;
use crate::io::picture::Picture;
use crate::noise::PlacedNoise;
use crate::ops::layout::concat;
use crate::pipeline::evaluation::Evaluation;
use crate::pipeline::prompt::Warning;
use crate::pipeline::recent::Recent;
use crate::pipeline::request::{Cancel, Request};
use crate::pipeline::settings::Settings;
use crate::pipeline::slot::Denoising;
use crate::pipeline::start::Noise;
use crate::pipeline::text_to_image::TextToImage;
use crate::tensor::Tensor;

/// How often it is looked whether another process is done.
const LOOK: Duration = Duration::from_millis(50);

/// Tiles of a row that are aimed at together: enough to fill any batch, few enough to keep count of.
const TOGETHER: usize = 64;

/// Tiles whose windows are counted one by one.
const COUNTED: usize = 1 << 20;

/// What is to be drawn, and how.
pub struct Job<'a> {
    /// What draws.
    pub model: &'a TextToImage,
    /// Where.
    pub plan: &'a Plan,
    /// How a window is drawn, by its place on the canvas, which ends before it does, or begins anew; of as many steps everywhere.
    pub settings: &'a dyn Fn(Window) -> Settings,
    /// Where all noise begins.
    pub seed: u64,
    /// Windows that pass through the networks together; no result depends on it.
    pub batch: usize,
    /// The I-th of N bands of rows, counted from 0: (I, N).
    pub shard: (usize, usize),
    /// From the lowest row up; no result depends on it.
    pub backwards: bool,
    /// Stops it.
    pub cancel: Cancel,
}

/// What came of a piece of work.
#[derive(Debug)]
#[non_exhaustive]
pub enum News {
    /// So many windows are to be drawn and decoded, unless others do.
    Begun(usize),
    /// One is.
    Step,
    /// What the user should know.
    Warning(Warning),
}

/// Sees to it that all tiles of a shard are there, which the picture is [put together](super::assemble) of.
///
/// # Errors
/// Settings that the model cannot draw by; `Interrupted`; the disk is full. What is there stays, and is not done again.
pub fn draw(job: &Job, state: &State, watch: &mut dyn FnMut(News)) -> Result<()> {
    if job.batch == 0 {
        return Err(Error::argument("batch", 0, "at least 1"));
    }
    let (index, count) = job.shard;
    let [rows, columns] = job.plan.tiles();
    let band = rows.len() * index / count..rows.len() * (index + 1) / count;
    let mut own: Vec<usize> = rows[band].to_vec();
    let mut columns = columns.clone();
    if job.backwards {
        own.reverse();
        columns.reverse();
    }
    let mut work = Work {
        job,
        state,
        tiles: job.plan.tiles(),
        evaluations: job.evaluations()?,
        recent: Recent::default(),
        warned: Vec::new(),
        watch,
    };
    let all = own.iter().flat_map(|&y| columns.iter().map(move |&x| [y, x]));
    work.announce(all);
    for y in own {
        for some in columns.chunks(TOGETHER) {
            work.row(&some.iter().map(|&x| [y, x]).collect::<Vec<_>>())?;
        }
    }
    Ok(())
}

impl Job<'_> {
    /// How a window is drawn.
    fn request(&self, id: Id) -> Request {
        let (width, height) = self.plan.window();
        let [y, x] = [0, 1].map(|axis| id[axis] * self.plan.grid.0[axis].stride * self.plan.factor);
        let settings = (self.settings)(Window { x, y, width, height });
        let settings = Settings { width: Some(width), height: Some(height), ..settings };
        Request { settings, seed: self.seed, cancel: self.cancel.clone(), ..Request::default() }
    }

    /// Evaluations of the UNet for a window.
    fn evaluations(&self) -> Result<usize> {
        Ok(self.model.sampler(&self.request([0, 0]))?.timesteps().len())
    }
}

struct Work<'a> {
    job: &'a Job<'a>,
    state: &'a State,
    tiles: [Vec<usize>; 2],
    /// Of the UNet, for each window.
    evaluations: usize,
    recent: Recent,
    warned: Vec<Warning>,
    watch: &'a mut dyn FnMut(News),
}

/// A window on its way, beside what it sees.
struct Slot {
    id: Id,
    claim: Claim,
    denoising: Denoising,
    seen: Option<Seen>,
    /// After each evaluation, [n, h, w, C], or after the last.
    kept: Vec<f32>,
}

/// What the windows before this one had after each evaluation.
struct Seen {
    /// What the window's own latents count; [h, w].
    own: Vec<f32>,
    /// The others', times what they count; [n, h, w, C].
    others: Vec<f32>,
}

impl Work<'_> {
    fn announce(&mut self, tiles: impl Iterator<Item = Id>) {
        let left: Vec<Id> = tiles.filter(|id| !self.state.has_tile(*id)).collect();
        // Of a world nobody wants to wait for the count.
        let windows = if left.len() > COUNTED { left.len() } else { self.missing(&left).len() };
        (self.watch)(News::Begun(windows + left.len()));
    }

    /// Windows that tiles need and that are not there, by rank.
    fn missing(&self, tiles: &[Id]) -> BTreeSet<(usize, Id)> {
        let grid = &self.job.plan.grid;
        let mut wanted: Vec<Id> =
            tiles.iter().flat_map(|id| grid.around(*id)).map(|window| window.id).collect();
        let mut missing = BTreeSet::new();
        let mut looked = BTreeSet::new();
        while let Some(id) = wanted.pop() {
            if looked.insert(id) && !self.state.has_latents(id) {
                missing.insert((rank(id), id));
                wanted.extend(grid.seen(id).map(|window| window.id));
            }
        }
        missing
    }

    /// Sees to it that tiles are there.
    fn row(&mut self, tiles: &[Id]) -> Result<()> {
        let (job, state) = (self.job, self.state);
        loop {
            job.cancel.check()?;
            let tiles: Vec<Id> = tiles.iter().copied().filter(|id| !state.has_tile(*id)).collect();
            if tiles.is_empty() {
                break;
            }
            let missing = self.missing(&tiles);
            let is_missing = |id: Id| missing.contains(&(rank(id), id));
            let mut done = 0;
            if missing.is_empty() {
                let claims = self.claim(tiles.iter().copied(), &|id| state.claim_tile(id))?;
                done = claims.len();
                unless_gone(self.decode(claims))?;
            } else {
                // The order of ranks: what comes first is what others wait for.
                let ready = missing
                    .iter()
                    .map(|(_, id)| *id)
                    .filter(|id| job.plan.grid.seen(*id).all(|window| !is_missing(window.id)));
                let claims = self.claim(ready, &|id| state.claim_latents(id))?;
                done += claims.len();
                unless_gone(self.draw(claims))?;
            }
            (0..done).for_each(|_| (self.watch)(News::Step));
            if done == 0 {
                // Other processes are about these, or were.
                std::thread::sleep(LOOK);
            }
        }
        self.let_go(tiles);
        Ok(())
    }

    /// The right to make as many as go together.
    fn claim(
        &self,
        ids: impl Iterator<Item = Id>,
        take: &dyn Fn(Id) -> Result<Option<Claim>>,
    ) -> Result<Vec<(Id, Claim)>> {
        let mut claims = Vec::new();
        for id in ids {
            if claims.len() == self.job.batch {
                break;
            }
            claims.extend(take(id)?.map(|claim| (id, claim)));
        }
        Ok(claims)
    }

    /// Noise -> latents, of windows whose neighbours of lower rank are there.
    fn draw(&mut self, claims: Vec<(Id, Claim)>) -> Result<()> {
        let mut slots = Vec::new();
        for (id, claim) in claims {
            slots.push(self.begin(id, claim)?);
        }
        // Prompts of one length share a batch.
        slots.sort_by_key(|slot| slot.denoising.tokens());
        for together in slots.chunk_by_mut(|a, b| a.denoising.tokens() == b.denoising.tokens()) {
            let rows: Vec<_> = together.iter().map(|slot| &*slot.denoising.text).collect();
            let mut evaluation = Evaluation::new(&rows, together[0].denoising.gear())?;
            while !together[0].denoising.is_done() {
                self.job.cancel.check()?;
                let mut denoising: Vec<_> =
                    together.iter_mut().map(|slot| &mut slot.denoising).collect();
                let results = self.job.model.denoise(&mut denoising, &mut evaluation)?;
                results.into_iter().collect::<Result<()>>()?;
                together.iter_mut().try_for_each(Slot::look_around)?;
            }
        }
        for Slot { claim, kept, .. } in slots {
            State::keep_latents(claim, &kept)?;
        }
        Ok(())
    }

    fn begin(&mut self, id: Id, claim: Claim) -> Result<Slot> {
        let Job { model, plan, seed, .. } = *self.job;
        let places = [0, 1].map(|axis| plan.grid.0[axis].places(id[axis]));
        let noise = Noise::placed(PlacedNoise::new(seed), places, plan.channels, model.device);
        let request = self.job.request(id);
        let (denoising, warnings) =
            model.begin_with(noise, &request, plan.window(), &mut self.recent)?;
        if denoising.evaluations() != self.evaluations {
            let expected = format!("{} evaluations, as everywhere", self.evaluations);
            return Err(Error::argument("steps", denoising.evaluations(), expected));
        }
        for warning in warnings {
            if !self.warned.contains(&warning) {
                self.warned.push(warning.clone());
                (self.watch)(News::Warning(warning));
            }
        }
        let seen = self.look(id)?;
        Ok(Slot { id, claim, denoising, seen, kept: Vec::new() })
    }

    /// What a window sees.
    fn look(&self, id: Id) -> Result<Option<Seen>> {
        let (Plan { grid, channels, .. }, evaluations) = (self.job.plan, self.evaluations);
        if rank(id) == 0 {
            return Ok(None);
        }
        let [down, across] = grid.weights(id, 1);
        let weights = down.iter().flat_map(|y| across.iter().map(move |x| y * x));
        let mut own: Vec<f32> = weights.collect(); // [h, w]
        let mut sums = own.clone();
        let numbers = self.job.plan.numbers();
        let mut others = vec![0.0; evaluations * numbers]; // [n, h, w, C]
        for neighbour in grid.seen(id) {
            let latents = self.state.latents(neighbour.id, evaluations * numbers)?;
            grid.shared(&neighbour, |here, there, weight| {
                sums[here] += weight;
                for i in 0..evaluations {
                    let at = |place: usize| i * numbers + place * channels;
                    for c in 0..*channels {
                        others[at(here) + c] += weight * latents[at(there) + c];
                    }
                }
            });
        }
        own.iter_mut().zip(&sums).for_each(|(own, sum)| *own /= sum);
        for latents in others.chunks_exact_mut(numbers) {
            for (latent, sum) in latents.chunks_exact_mut(*channels).zip(&sums) {
                latent.iter_mut().for_each(|x| *x /= sum);
            }
        }
        Ok(Some(Seen { own, others }))
    }

    /// Latents -> pictures, of windows all of whose neighbours are there.
    fn decode(&self, claims: Vec<(Id, Claim)>) -> Result<()> {
        let Job { model, cancel, .. } = self.job;
        if claims.is_empty() {
            return Ok(());
        }
        let latents = claims.iter().map(|(id, _)| self.mean(*id)).collect::<Result<Vec<_>>>()?;
        let latents = concat(&latents.iter().collect::<Vec<_>>(), 0)?; // [B, h, w, C]
        let pictures = Picture::of_tensor(&model.decode(&latents, false, cancel)?)?;
        for ((_, claim), picture) in claims.iter().zip(pictures) {
            self.state.tiles.write(claim.path(), &picture)?;
        }
        Ok(())
    }

    /// The latents under a window, [1, h, w, C]: the mean of all that are there.
    fn mean(&self, id: Id) -> Result<Tensor> {
        let plan = self.job.plan;
        let numbers = plan.numbers();
        let mut mean = vec![0.0_f32; numbers];
        for neighbour in plan.grid.around(id) {
            let n = if rank(neighbour.id) == 2 { 1 } else { self.evaluations };
            let latents = self.state.latents(neighbour.id, n * numbers)?;
            let last = &latents[(n - 1) * numbers..];
            plan.grid.shared(&neighbour, |here, there, weight| {
                let (here, there) = (here * plan.channels, there * plan.channels);
                for c in 0..plan.channels {
                    mean[here + c] += weight * last[there + c];
                }
            });
        }
        let [down, across] = &plan.grid.0;
        let latents = Tensor::from_vec(mean, [1, down.size, across.size, plan.channels])?;
        latents.to_device(self.job.model.device)
    }

    /// Removes latents that no tile of the picture needs any more. What sees a window is one further, and a tile that needs
    /// that, two.
    fn let_go(&self, tiles: &[Id]) {
        let near = |id: Id| {
            let [down, across] = &self.job.plan.grid.0;
            let (down, across) = (down.within(id[0], 2), across.within(id[1], 2));
            let columns: Vec<usize> = across.map(|beside| beside.index).collect();
            down.flat_map(move |y| columns.clone().into_iter().map(move |x| [y.index, x]))
        };
        let windows: BTreeSet<Id> = tiles.iter().flat_map(|id| near(*id)).collect();
        for id in windows {
            let is_done = |id| !self.job.plan.is_shown(id, &self.tiles) || self.state.has_tile(id);
            if near(id).all(is_done) {
                self.state.drop_latents(id);
            }
        }
    }
}

impl Slot {
    /// After an evaluation: the mean of what the window has and of what it sees, which it goes on from.
    fn look_around(&mut self) -> Result<()> {
        let own = &self.denoising.latents; // [1, h, w, C]
        let (shape, device) = (*own.shape(), own.device());
        let mut latents = own.to_vec::<f32>()?;
        if let Some(Seen { own, others }) = &self.seen {
            let done = self.denoising.evaluated() - 1;
            let others = &others[done * latents.len()..][..latents.len()];
            let channels = latents.len() / own.len();
            for (i, latent) in latents.iter_mut().enumerate() {
                *latent = own[i / channels] * *latent + others[i];
            }
            let mean = Tensor::from_slice(&latents, shape)?.to_device(device)?;
            self.denoising.go_on_from(mean);
        }
        if rank(self.id) == 2 {
            self.kept.clear();
        }
        self.kept.extend(latents);
        Ok(())
    }
}

/// What others have finished meanwhile they have let go of, with what it was made of: then there is nothing to do.
fn unless_gone(done: Result<()>) -> Result<()> {
    match done {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::{Path, PathBuf};

    use serde_json::json;
    use tempfile::TempDir;

    use super::super::{Canvas, Tiles};
    use super::*;
    use crate::pipeline::load::LoadOptions;

    fn model() -> TextToImage {
        let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/eurosat-64");
        TextToImage::load(weights, &LoadOptions::default()).unwrap()
    }

    /// Windows of 64 pixels below each other that share 16, and what is made of them.
    struct Column {
        folder: TempDir,
        plan: Plan,
        state: State,
    }

    impl Column {
        fn new(model: &TextToImage, windows: usize, part: Option<Window>) -> Self {
            let (width, height) = (64, 16 + 48 * windows);
            let canvas = Canvas { width, height, wrap: [false; 2], overlap: Some(16) };
            let plan = Plan::new(model, canvas, part).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let output = folder.path().join("a.png");
            let state = State::open(&output, &json!({}), Tiles::Shown(None)).unwrap();
            Self { folder, plan, state }
        }

        /// The files of a kind.
        fn files(&self, kind: &str) -> BTreeMap<PathBuf, Vec<u8>> {
            let folder = self.folder.path().join("a.png.parts").join(kind);
            let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
            let file = |path: PathBuf| (path.file_name().unwrap().into(), fs::read(path).unwrap());
            paths.map(file).collect()
        }
    }

    fn job<'a>(
        model: &'a TextToImage,
        plan: &'a Plan,
        settings: &'a dyn Fn(Window) -> Settings,
    ) -> Job<'a> {
        let (seed, batch, shard, backwards) = (7, 1, (0, 1), false);
        Job { model, plan, settings, seed, batch, shard, backwards, cancel: Cancel::default() }
    }

    fn of_steps(steps: usize) -> Settings {
        Settings { steps: Some(steps), ..Settings::default() }
    }

    /// What others have is told by constants, so that a mean of it and of a window's own is known.
    #[test]
    fn a_window_goes_on_from_the_mean_of_its_own_and_of_those_before_it() {
        let model = model();
        for steps in [1, 3, 4] {
            check_mean(&model, steps);
        }
    }

    fn check_mean(model: &TextToImage, steps: usize) {
        let canvas = Canvas { width: 96, height: 96, wrap: [false; 2], overlap: None };
        let plan = Plan::new(model, canvas, None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let state =
            State::open(&folder.path().join("a.png"), &json!({}), Tiles::Shown(None)).unwrap();
        let settings = |_| of_steps(steps);
        let job = job(model, &plan, &settings);
        let evaluations = job.evaluations().unwrap();
        let mut work = Work {
            job: &job,
            state: &state,
            tiles: plan.tiles(),
            evaluations,
            recent: Recent::default(),
            warned: Vec::new(),
            watch: &mut |_| {},
        };
        let value = |i: usize| 2.0 - i as f32;
        let numbers = plan.numbers();
        let told: Vec<f32> = (0..evaluations * numbers).map(|i| value(i / numbers)).collect();
        for id in [[0, 0], [0, 1], [1, 0]] {
            State::keep_latents(state.claim_latents(id).unwrap().unwrap(), &told).unwrap();
        }
        // 1. weights are 1 together
        for id in [[0, 1], [1, 1]] {
            let Seen { own, others } = work.look(id).unwrap().unwrap();
            assert!(
                own.iter().all(|own| (0.0..=1.0).contains(own)) && own.iter().any(|x| *x < 0.1)
            );
            for (at, found) in others.iter().enumerate() {
                let expected = (1.0 - own[at % numbers / plan.channels]) * value(at / numbers);
                assert!((found - expected).abs() < 1e-5, "{id:?} {at}: {found} {expected}");
            }
        }
        // 2. a window that counts nothing has what others have, after each evaluation
        let claim = state.claim_latents([1, 1]).unwrap().unwrap();
        let mut slot = work.begin([1, 1], claim).unwrap();
        let own = vec![0.0; numbers / plan.channels];
        slot.seen = Some(Seen { own, others: told });
        let mut evaluation =
            Evaluation::new(&[&*slot.denoising.text], slot.denoising.gear()).unwrap();
        for i in 0..evaluations {
            let done = model.denoise(&mut [&mut slot.denoising], &mut evaluation).unwrap();
            done.into_iter().for_each(|done| done.unwrap());
            slot.look_around().unwrap();
            let found = slot.denoising.latents.to_vec::<f32>().unwrap();
            assert!(found == slot.kept && found.iter().all(|x| *x == value(i)), "{i}");
        }
    }

    /// What is let go of too early is drawn again; what too late, stays.
    #[test]
    fn latents_are_kept_for_as_long_as_a_tile_needs_them() {
        let model = model();
        let part = Window { x: 0, y: 150, width: 64, height: 100 };
        for (part, windows, tiles) in [(None, 8, 8), (Some(part), 7, 4)] {
            let column = Column::new(&model, 8, part);
            let settings = |_| of_steps(1);
            let (mut begun, mut steps, mut held) = (0, 0, 0);
            let job = job(&model, &column.plan, &settings);
            draw(&job, &column.state, &mut |news| {
                match news {
                    News::Begun(all) => begun = all,
                    News::Step => steps += 1,
                    News::Warning(warning) => panic!("{warning}"),
                }
                held = held.max(column.files("latents").len());
            })
            .unwrap();
            assert_eq!((begun, steps), (windows + tiles, windows + tiles));
            assert_eq!(column.files("tiles").len(), tiles);
            // A tile needs the windows beside it, and those what they see: two on each side.
            assert_eq!(held, 5);
            assert_eq!(column.files("latents").len(), 0);
        }
    }

    #[test]
    fn windows_of_other_steps_are_refused() {
        let model = model();
        let column = Column::new(&model, 2, None);
        let settings = |window: Window| of_steps(if window.y == 0 { 3 } else { 2 });
        let error = draw(&job(&model, &column.plan, &settings), &column.state, &mut |_| {});
        let error = error.unwrap_err().to_string();
        assert!(error.contains("steps: 2") && error.contains("3 evaluations"), "{error}");
        assert!(column.files("latents").len() == 1 && column.files("tiles").is_empty());
    }

    #[test]
    fn a_warning_is_given_once() {
        let model = model();
        let column = Column::new(&model, 4, None);
        let words = ["forest ".repeat(100), "river ".repeat(100)];
        let settings = |window: Window| {
            let prompt = words[usize::from(window.y > 100)].clone();
            Settings { prompt, ..of_steps(1) }
        };
        let mut warnings = Vec::new();
        draw(&job(&model, &column.plan, &settings), &column.state, &mut |news| {
            if let News::Warning(warning) = news {
                warnings.push(warning.to_string());
            }
        })
        .unwrap();
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("forest") && warnings[1].contains("river"), "{warnings:?}");
    }

    #[test]
    fn what_is_interrupted_within_a_window_goes_on_with_those_that_are_done() {
        let model = model();
        let settings = |_| of_steps(2);
        let [whole, cut] = [0, 1].map(|_| Column::new(&model, 4, None));
        draw(&job(&model, &whole.plan, &settings), &whole.state, &mut |_| {}).unwrap();

        // 1. when the third window has begun: once more it is asked how the first is drawn
        let (asked, cancel) = (Cell::new(0), Cancel::default());
        let interrupts = |_| {
            asked.set(asked.get() + 1);
            if asked.get() == 4 {
                cancel.cancel();
            }
            of_steps(2)
        };
        let until = Job { cancel: cancel.clone(), ..job(&model, &cut.plan, &interrupts) };
        let error = draw(&until, &cut.state, &mut |_| {}).unwrap_err();
        assert!(matches!(error, Error::Interrupted), "{error}");
        let kept = cut.files("latents");
        assert!(kept.len() == 2 && cut.files("tiles").is_empty(), "{:?}", kept.keys());
        // 2. while others are about all that could be done
        let others: Vec<Claim> = (0..4)
            .filter_map(|y| {
                Claim::take(
                    &cut.folder.path().join("a.png.parts/claims"),
                    &cut.state.tile_path([y, 0]),
                )
                .unwrap()
            })
            .chain((0..4).filter_map(|y| cut.state.claim_latents([y, 0]).unwrap()))
            .collect();
        assert_eq!(others.len(), 4 + 2);
        let error = draw(&until, &cut.state, &mut |_| {}).unwrap_err();
        assert!(matches!(error, Error::Interrupted), "{error}");
        drop(others);
        // 3. the same command again
        let mut steps = 0;
        draw(&job(&model, &cut.plan, &settings), &cut.state, &mut |news| {
            steps += usize::from(matches!(news, News::Step));
        })
        .unwrap();
        assert_eq!(steps, 2 + 4, "what was done is not done again");
        assert!(cut.files("tiles").len() == 4 && cut.files("tiles") == whole.files("tiles"));
    }
}
