//! Batches, made on threads of their own ahead of who asks for them.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::augment::prepare;
use super::random::{Draws, Purpose, permutation};
use super::{Augment, Dataset, check_counts};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Batches that lie ready at most, for each thread.
const AHEAD: u64 = 2;

/// Some rows of a data set.
pub struct Batch {
    /// [B, H, W, 3] f32, normalised: in -1..1 unless the settings say otherwise.
    pub images: Tensor,
    /// By image; empty where there are none.
    pub captions: Vec<String>,
    /// By image; 0 where rows have no class.
    pub labels: Vec<u32>,
    /// By image: its row in the data set.
    pub rows: Vec<usize>,
}

impl Dataset {
    /// Batches without end, shuffled and augmented. Epochs follow each other without a seam: a batch may hold the last
    /// rows of one and the first of the next.
    ///
    /// `start` is the number of pictures that have been seen before, by a run that goes on here. Picture `i` of a seed
    /// is the same whatever `start`, `batch` and `threads` are.
    ///
    /// # Errors
    /// A batch or a number of threads of 0.
    pub fn stream(&self, batch: usize, seed: u64, start: u64, threads: usize) -> Result<Loader> {
        let making = Making::Stream { seed, start, order: Mutex::default() };
        Loader::new(self, batch, threads, making)
    }

    /// Every row once, in order, as it is: the centre, the first caption. The last batch may be shorter.
    ///
    /// # Errors
    /// A batch or a number of threads of 0.
    pub fn pass(&self, batch: usize, threads: usize) -> Result<Loader> {
        Loader::new(self, batch, threads, Making::Pass)
    }
}

/// An iterator over [`Batch`]es.
pub struct Loader {
    work: Arc<Work>,
    threads: Vec<JoinHandle<()>>,
}

/// What threads share.
struct Work {
    data: Dataset,
    batch: usize,
    making: Making,
    ahead: u64,
    state: Mutex<State>,
    /// That `state` is another.
    changed: Condvar,
}

/// Which rows are in a batch, and how they are made.
enum Making {
    Stream { seed: u64, start: u64, order: Mutex<BTreeMap<u64, Arc<[usize]>>> },
    Pass,
}

#[derive(Default)]
struct State {
    /// Number of the batch that the next idle thread makes.
    next: u64,
    /// Number of the batch that is asked for next.
    wanted: u64,
    /// What lies ready.
    ready: BTreeMap<u64, Result<Batch>>,
    /// Nobody will ask any more.
    over: bool,
}

impl Loader {
    fn new(data: &Dataset, batch: usize, threads: usize, making: Making) -> Result<Self> {
        check_counts(batch, threads)?;
        let work = Arc::new(Work {
            data: data.clone(),
            batch,
            making,
            ahead: AHEAD * threads as u64,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let thread = |i| {
            let work = work.clone();
            let named = std::thread::Builder::new().name(format!("nadir-data-{i}"));
            named.spawn(move || work.run()).map_err(|e| Error::io("a thread for data", e))
        };
        let mut loader = Self { work: work.clone(), threads: Vec::with_capacity(threads) };
        for i in 0..threads {
            loader.threads.push(thread(i)?);
        }
        Ok(loader)
    }
}

impl Iterator for Loader {
    type Item = Result<Batch>;

    /// The next batch. After an error comes what follows on the batch that failed.
    fn next(&mut self) -> Option<Result<Batch>> {
        let mut state = self.work.lock();
        if state.wanted >= self.work.batches() {
            return None;
        }
        loop {
            let wanted = state.wanted;
            if let Some(batch) = state.ready.remove(&wanted) {
                state.wanted += 1;
                self.work.changed.notify_all();
                return Some(batch);
            }
            state = self.work.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.work.lock().over = true;
        self.work.changed.notify_all();
        for thread in self.threads.drain(..) {
            // It catches what it could panic in.
            let _ = thread.join();
        }
    }
}

impl Work {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many batches there are.
    fn batches(&self) -> u64 {
        match self.making {
            Making::Stream { .. } => u64::MAX,
            Making::Pass => self.data.len().div_ceil(self.batch) as u64,
        }
    }

    /// What a thread does.
    fn run(&self) {
        let mut state = self.lock();
        loop {
            if state.over || state.next >= self.batches() {
                return;
            }
            if state.next >= state.wanted + self.ahead {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let number = state.next;
            state.next += 1;
            drop(state);
            let batch = catch_unwind(AssertUnwindSafe(|| self.make(number))).unwrap_or_else(|_| {
                Err(Error::value("data", "a thread that makes batches has panicked"))
            });
            state = self.lock();
            state.ready.insert(number, batch);
            self.changed.notify_all();
        }
    }

    /// The row, and for a stream the numbers, of picture `i`.
    fn row(&self, i: u64) -> (usize, Option<Draws>) {
        let n = self.data.len() as u64;
        match &self.making {
            Making::Pass => (i as usize, None),
            Making::Stream { seed, start, order } => {
                let (epoch, place) = ((start + i) / n, (start + i) % n);
                let order = {
                    let mut orders = order.lock().unwrap_or_else(PoisonError::into_inner);
                    // Threads are at most a few batches apart; of small sets that is many epochs.
                    while orders.len() > 64 {
                        orders.pop_first();
                    }
                    let new = || permutation(self.data.len(), *seed, epoch, Purpose::Order).into();
                    orders.entry(epoch).or_insert_with(new).clone()
                };
                let row = order[place as usize];
                (row, Some(Draws::new(*seed, epoch, row as u32, Purpose::Row)))
            }
        }
    }

    fn make(&self, number: u64) -> Result<Batch> {
        let first = number * self.batch as u64;
        let count = match self.making {
            Making::Stream { .. } => self.batch,
            Making::Pass => self.batch.min(self.data.len() - first as usize),
        };
        let all = &self.data.all;
        let [height, width] = all.size;
        let still = Augment::default();
        let mut pixels = vec![0.0; count * height * width * 3]; // [B, H, W, 3]
        let (mut captions, mut labels, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for (i, pixels) in pixels.chunks_exact_mut(height * width * 3).enumerate() {
            let (row, mut draws) = self.row(first + i as u64);
            captions.push(self.data.draw_caption(row, draws.as_mut()));
            labels.push(self.data.label(row));
            rows.push(row);
            let augment = if draws.is_some() { &all.settings.augment } else { &still };
            let normalize = &all.settings.normalize;
            let picture = self.data.picture(row)?;
            prepare(&picture, all.size, augment, normalize, draws.as_mut(), pixels)?;
        }
        let images = Tensor::from_vec(pixels, [count, height, width, 3])?;
        Ok(Batch { images, captions, labels, rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::DataSettings;
    use crate::data::fixture::{rows, write};

    fn set(n: usize) -> Dataset {
        let folder = tempfile::tempdir().unwrap();
        let columns = ["filename", "captions", "label", "class", "image"];
        let path = write(folder.path(), &rows(n), &columns, None);
        let augment = Augment {
            random_crop: true,
            smallest_crop: 0.5,
            random_flip: true,
            random_rotate: true,
            brightness: 0.2,
            ..Augment::default()
        };
        Dataset::open(path, DataSettings { augment, ..DataSettings::default() }).unwrap()
    }

    /// Pictures one by one: row, caption, label, the bits of the image.
    fn pictures(loader: Loader, n: usize) -> Vec<(usize, String, u32, Vec<u32>)> {
        let mut all = Vec::new();
        for batch in loader {
            let Batch { images, captions, labels, rows } = batch.unwrap();
            let values = images.to_vec::<f32>().unwrap();
            let size = values.len() / rows.len();
            for (i, values) in values.chunks(size).enumerate() {
                let bits = values.iter().map(|x| x.to_bits()).collect();
                all.push((rows[i], captions[i].clone(), labels[i], bits));
            }
            if all.len() >= n {
                break;
            }
        }
        all.truncate(n);
        all
    }

    #[test]
    fn a_stream_depends_on_its_seed_and_place_alone() {
        let data = set(11);
        let all = pictures(data.stream(3, 42, 0, 1).unwrap(), 50);
        for (batch, threads) in [(1, 1), (3, 4), (7, 2), (16, 3)] {
            assert_eq!(pictures(data.stream(batch, 42, 0, threads).unwrap(), 50), all);
        }
        // A run that goes on.
        for start in [1, 9, 11, 30] {
            let rest = pictures(data.stream(4, 42, start, 2).unwrap(), 50 - start as usize);
            assert_eq!(rest, all[start as usize..]);
        }
        let other: Vec<_> =
            pictures(data.stream(3, 43, 0, 1).unwrap(), 50).into_iter().map(|p| p.0).collect();
        assert_ne!(other, all.iter().map(|p| p.0).collect::<Vec<_>>());
    }

    #[test]
    fn an_epoch_has_every_row_once_and_makes_it_anew() {
        let data = set(11);
        let all = pictures(data.stream(4, 1, 0, 2).unwrap(), 33);
        let rows = |epoch: usize| all[11 * epoch..][..11].iter().map(|p| p.0).collect::<Vec<_>>();
        for epoch in 0..3 {
            let mut sorted = rows(epoch);
            sorted.sort_unstable();
            assert_eq!(sorted, (0..11).collect::<Vec<_>>());
        }
        assert!(rows(0) != rows(1) && rows(1) != rows(2));
        let of = |epoch: usize, row| all[11 * epoch..][..11].iter().find(|p| p.0 == row).unwrap();
        assert!((0..11).all(|row| of(0, row).3 != of(1, row).3));
        // Both captions have their turn, and each is its own row's.
        for (row, caption, label, _) in &all {
            assert!(caption.ends_with(&format!(" of {row}")), "{row}: {caption}");
            assert_eq!(*label as usize, row % 4);
        }
        assert!(all.iter().any(|p| p.1.starts_with("first")));
        assert!(all.iter().any(|p| p.1.starts_with("second")));
    }

    #[test]
    fn a_pass_has_every_row_as_it_is() {
        let data = set(11);
        let batches: Vec<_> = data.pass(4, 3).unwrap().map(Result::unwrap).collect();
        let sizes: Vec<_> = batches.iter().map(|b| b.images.dims().to_vec()).collect();
        assert_eq!(sizes, [[4, 8, 8, 3], [4, 8, 8, 3], [3, 8, 8, 3]]);
        for (i, batch) in batches.iter().enumerate() {
            for (j, &row) in batch.rows.iter().enumerate() {
                assert_eq!(row, 4 * i + j);
                assert_eq!(batch.captions[j], format!("first of {row}"));
                let tone = batch.images.narrow(0, j, 1).unwrap().contiguous().unwrap();
                let red = tone.to_vec::<f32>().unwrap()[0];
                assert_eq!(red, (row as f32 / 255.0 - 0.5) / 0.5);
            }
        }
        for (batch, threads) in [(0, 1), (1, 0)] {
            assert!(matches!(data.pass(batch, threads), Err(Error::Argument { .. })));
        }
    }

    #[test]
    fn nothing_is_made_far_ahead_and_threads_end() {
        let data = set(11);
        let mut loader = data.stream(2, 1, 0, 2).unwrap();
        loader.next().unwrap().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(100));
        let next = loader.work.lock().next;
        assert!(next <= 1 + 2 * AHEAD, "{next}");
        let work = Arc::downgrade(&loader.work);
        drop(loader);
        assert!(work.upgrade().is_none(), "a thread is left");
    }

    #[test]
    fn a_picture_that_goes_missing_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut lines = String::new();
        for i in 0..3 {
            std::fs::write(path(&format!("{i}.png")), crate::data::fixture::picture(8, 8, i))
                .unwrap();
            lines += &format!("{{\"file_name\": \"{i}.png\", \"text\": \"picture {i}\"}}\n");
        }
        std::fs::write(path("metadata.jsonl"), lines).unwrap();
        let data = Dataset::open(folder.path(), DataSettings::default()).unwrap();
        std::fs::remove_file(path("1.png")).unwrap();
        let batches: Vec<_> = data.pass(1, 1).unwrap().collect();
        assert!(batches[0].is_ok() && batches[2].is_ok());
        let error = batches[1].as_ref().err().unwrap().to_string();
        assert!(error.contains("1.png") && error.contains("No such file"), "{error}");
    }
}
