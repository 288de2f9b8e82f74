//! Many pictures at once: each in a slot of its own, which joins and leaves whenever it likes.
//! [`TextToImage::generate`] is the loop over them that most callers want.

use std::cmp::Reverse;

use crate::error::{Error, Result};
use crate::io::picture::Picture;
use crate::pipeline::control::Gear;
use crate::pipeline::evaluation::Evaluation;
use crate::pipeline::prompt::Warning;
use crate::pipeline::recent::Recent;
use crate::pipeline::request::Request;
use crate::pipeline::slot::Denoising;
use crate::pipeline::text_to_image::TextToImage;
use crate::tensor::Tensor;

/// Draws pictures of one size, several at a time, a piece of work at a time.
///
/// Every slot has its own prompt, seed, guidance, sampler, steps and init image. They share evaluations of the UNet
/// and nothing else: a picture is equal bit for bit to the one drawn alone.
///
/// ```no_run
/// # use nadir::pipeline::{Event, LoadOptions, Request, Run, TextToImage};
/// # let model = TextToImage::load("weights/eurosat-64", &LoadOptions::default())?;
/// let mut run = Run::new(&model, model.default_size(), 8)?;
/// let first = run.join(Request::default())?;
/// while !run.is_empty() {
///     for event in run.step()? {
///         if let Event::Finished { slot, result } = event {
///             println!("{slot:?}: {:?}", result.map(|picture| picture.bands()));
///         }
///     }
///     // Others may join here.
/// }
/// # Ok::<(), nadir::Error>(())
/// ```
pub struct Run<'m> {
    model: &'m TextToImage,
    size: (usize, usize),
    limit: usize,
    /// By precedence: the first `limit` of them go on, the others wait.
    slots: Vec<Slot>,
    joined: usize,
    companies: Vec<Company>,
    recent: Recent,
}

/// Names a slot of a run: numbers from 0 on, in the order of joining.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub usize);

/// What a piece of work came to.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A picture was begun.
    Began {
        /// Whose.
        slot: SlotId,
        /// Evaluations of the UNet that it takes.
        evaluations: usize,
        /// What the user should know.
        warnings: Vec<Warning>,
    },
    /// A sampler step was made.
    Stepped {
        /// Whose.
        slot: SlotId,
        /// Evaluations of the UNet so far.
        evaluated: usize,
        /// The latents now, [1, h, w, 4], f32: [`TextToImage::decode`] shows them.
        latents: Tensor,
    },
    /// A picture is there, or will never be: `Interrupted`, `NotFinite`, ... The slot is gone.
    Finished {
        /// Whose.
        slot: SlotId,
        /// The picture.
        result: Result<Picture>,
    },
}

struct Slot {
    id: SlotId,
    priority: i32,
    request: Request,
    /// None before it is begun.
    denoising: Option<Denoising>,
}

/// Slots that pass through the networks together: prompts of equal length, one gear.
struct Company {
    members: Vec<SlotId>,
    gear: Gear,
    /// Of a row for each, or two.
    evaluation: Evaluation,
}

impl TextToImage {
    /// Draws one picture.
    ///
    /// # Errors
    /// Those of [`Self::generate`].
    pub fn draw(&self, request: Request) -> Result<Picture> {
        let mut image = Err(Error::Interrupted);
        self.generate([request], 1, &mut |event| {
            if let Event::Finished { result, .. } = event {
                image = result;
            }
            Ok(())
        })?;
        image
    }

    /// Draws pictures of one size, at most `limit` at a time, and shows `watch` what happens: each picture as soon
    /// as it is there. Slots are numbered as the requests.
    ///
    /// # Errors
    /// A request that is not possible, or what `watch` answers: then nothing more is drawn. What befalls a single
    /// picture is its own result.
    pub fn generate(
        &self,
        requests: impl IntoIterator<Item = Request>,
        limit: usize,
        watch: &mut dyn FnMut(Event) -> Result<()>,
    ) -> Result<()> {
        let mut requests = requests.into_iter().peekable();
        let Some(first) = requests.peek() else { return Ok(()) };
        let mut run = Run::new(self, self.size(&first.settings)?, limit)?;
        loop {
            while run.len() < limit
                && let Some(request) = requests.next()
            {
                run.join(request)?;
            }
            if run.is_empty() {
                return Ok(());
            }
            run.step()?.into_iter().try_for_each(&mut *watch)?;
        }
    }
}

impl<'m> Run<'m> {
    /// A run for pictures of this width and height, of which at most `limit` are worked on at a time.
    ///
    /// # Errors
    /// `Argument` for a limit of 0.
    pub fn new(model: &'m TextToImage, size: (usize, usize), limit: usize) -> Result<Self> {
        let (slots, companies, recent) = (Vec::new(), Vec::new(), Recent::default());
        let mut run = Self { model, size, limit, slots, joined: 0, companies, recent };
        run.set_limit(limit)?;
        Ok(run)
    }

    /// Adds a picture behind those of its priority, 0. Cheap: its work begins in [`step`](Self::step).
    ///
    /// # Errors
    /// `Argument`, naming the field that is not possible for this model and this run.
    pub fn join(&mut self, request: Request) -> Result<SlotId> {
        self.model.sampler(&request)?;
        let (width, height) = self.model.size(&request.settings)?;
        if (width, height) != self.size {
            let expected = format!("this run draws pictures of {}x{}", self.size.0, self.size.1);
            return Err(Error::argument("width", format!("{width}x{height}"), expected));
        }
        let id = SlotId(self.joined);
        self.joined += 1;
        self.slots.push(Slot { id, priority: 0, request, denoising: None });
        self.sort();
        Ok(id)
    }

    /// Puts a slot before all of a lower priority. One of those pauses while there are more than the limit.
    pub fn set_priority(&mut self, id: SlotId, priority: i32) {
        self.slots
            .iter_mut()
            .filter(|slot| slot.id == id)
            .for_each(|slot| slot.priority = priority);
        self.sort();
    }

    /// How many slots are worked on at a time. More are faster together, and need more memory.
    ///
    /// # Errors
    /// `Argument` for 0.
    pub fn set_limit(&mut self, limit: usize) -> Result<()> {
        if limit == 0 {
            return Err(Error::argument("batch", 0, "at least 1"));
        }
        self.limit = limit;
        Ok(())
    }

    /// How many slots are worked on at a time.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Stops a slot: the next step says so. As [`Cancel`](super::Cancel) does, from the thread of the run.
    pub fn cancel(&mut self, id: SlotId) {
        self.slots.iter().filter(|slot| slot.id == id).for_each(|slot| {
            slot.request.cancel.cancel();
        });
    }

    /// Slots that are not finished.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Does the next piece of work and says what it came to: a finished picture is decoded, or else a slot is begun, or
    /// else all go a sampler step further. Slots that were cancelled leave first.
    ///
    /// # Errors
    /// What stops all slots alike, as when memory runs out. They stay as they were, so that fewer may try again.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        // 1. who was cancelled
        if let Some(i) = self.slots.iter().position(|slot| slot.request.cancel.is_cancelled()) {
            return Ok(vec![self.leave(i, Err(Error::Interrupted))]);
        }
        // 2. who is done
        let done = |slot: &Slot| slot.denoising.as_ref().is_some_and(Denoising::is_done);
        if let Some(i) = self.slots.iter().position(done) {
            return Ok(vec![self.finish(i)]);
        }
        // 3. who begins
        let active = self.limit.min(self.slots.len());
        if let Some(i) = self.slots[..active].iter().position(|slot| slot.denoising.is_none()) {
            return Ok(vec![self.begin(i)]);
        }
        // 4. all together
        self.denoise(active)
    }

    fn begin(&mut self, i: usize) -> Event {
        let Slot { id, request, denoising, .. } = &mut self.slots[i];
        match self.model.begin(request, self.size, &mut self.recent) {
            Err(error) => self.leave(i, Err(error)),
            Ok((begun, warnings)) => {
                let begun = denoising.insert(begun);
                Event::Began { slot: *id, evaluations: begun.evaluations(), warnings }
            }
        }
    }

    fn denoise(&mut self, active: usize) -> Result<Vec<Event>> {
        let mut slots: Vec<(SlotId, &mut Denoising)> = self.slots[..active]
            .iter_mut()
            .filter_map(|slot| Some((slot.id, slot.denoising.as_mut()?)))
            .collect();
        // Prompts of one length share a batch, and what ControlNets do. The sort is stable: who is together stays so.
        let like = |a: &Denoising, b: &Denoising| {
            a.tokens().cmp(&b.tokens()).then_with(|| a.gear().order(&b.gear()))
        };
        slots.sort_by(|(_, a), (_, b)| like(a, b));
        let mut companies = std::mem::take(&mut self.companies);
        let (mut events, mut failed) = (Vec::new(), Vec::new());
        for together in slots.chunk_by_mut(|(_, a), (_, b)| like(a, b).is_eq()) {
            let members: Vec<SlotId> = together.iter().map(|(id, _)| *id).collect();
            let gear = together[0].1.gear();
            let known = |company: &Company| company.members == members && company.gear == gear;
            let mut company = match companies.iter().position(known) {
                Some(known) => companies.swap_remove(known),
                None => Company::new(members, gear, together)?,
            };
            let mut denoising: Vec<_> = together.iter_mut().map(|(_, slot)| &mut **slot).collect();
            let results = self.model.denoise(&mut denoising, &mut company.evaluation)?;
            self.companies.push(company);
            for ((id, slot), result) in together.iter().zip(results) {
                match result {
                    Ok(()) => events.push(Event::Stepped {
                        slot: *id,
                        evaluated: slot.evaluated(),
                        latents: slot.latents.clone(),
                    }),
                    Err(error) => failed.push((*id, error)),
                }
            }
        }
        for (id, error) in failed {
            let i = self.slots.iter().position(|slot| slot.id == id);
            events.extend(i.map(|i| self.leave(i, Err(error))));
        }
        Ok(events)
    }

    fn finish(&mut self, i: usize) -> Event {
        let Slot { request, denoising, .. } = &self.slots[i];
        let tiled = request.settings.vae_tiling;
        let latents = denoising.as_ref().map(|denoising| &denoising.latents);
        let latents = latents.ok_or(Error::Interrupted);
        let result = latents.and_then(|latents| self.model.finish(latents, tiled, request));
        self.leave(i, result)
    }

    fn leave(&mut self, i: usize, result: Result<Picture>) -> Event {
        self.companies.clear();
        Event::Finished { slot: self.slots.remove(i).id, result }
    }

    fn sort(&mut self) {
        self.slots.sort_by_key(|slot| (Reverse(slot.priority), slot.id));
    }
}

impl Company {
    fn new(members: Vec<SlotId>, gear: Gear, slots: &[(SlotId, &mut Denoising)]) -> Result<Self> {
        let rows: Vec<_> = slots.iter().map(|(_, slot)| &*slot.text).collect();
        Ok(Self { members, evaluation: Evaluation::new(&rows, gear.clone())?, gear })
    }
}
