//! Answers to many prompts at once, each as if it were alone.
//!
//! A prompt is computed alone, at its own length; then all answers grow by a token a step. Each stands in a slot of the
//! cache; those in use are the first ones: when an answer leaves, the last one takes its place. No operation lets the bits of
//! an entry depend on its neighbours, so that an answer is the same in any company.

use super::LanguageModel;
use super::decoding::Decoding;
use super::sampling::{Sampler, Sampling};
use super::text::Text;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// What is to be continued, and how.
#[derive(Clone, Debug)]
pub struct TextRequest {
    /// Tokens to go on from.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// What they are drawn from.
    pub seed: u64,
    /// At most as many tokens.
    pub max_new_tokens: usize,
    /// Texts that end the answer, and are not part of it.
    pub stop: Vec<String>,
    /// Whether the model's end of a text does not end it.
    pub ignore_eos: bool,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// By the model's own end of a text.
    End,
    /// By a stop string.
    Stop,
    /// It had as many tokens as were asked for.
    Length,
}

/// How an answer went on in a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// As [`TextRun::join`] called it.
    pub id: usize,
    /// Text that is certain by now; may be empty.
    pub text: String,
    /// The whole, with the last piece.
    pub answer: Option<Answer>,
}

/// An answer that is finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its tokens, with what ended it.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
}

/// Answers on their way.
pub struct TextRun<'m> {
    model: &'m LanguageModel,
    decoding: Decoding<'m>,
    /// By slot.
    active: Vec<Growing>,
    next: usize,
}

/// An answer that is growing.
struct Growing {
    id: usize,
    sampler: Sampler,
    text: Text,
    max_new_tokens: usize,
    ignore_eos: bool,
}

impl<'m> TextRun<'m> {
    /// Room for `slots` answers at a time, of `capacity` tokens each, their prompts included.
    ///
    /// # Errors
    /// `Argument` for no slot, or more tokens than the model's context; `OutOfMemory`.
    pub fn new(model: &'m LanguageModel, slots: usize, capacity: usize) -> Result<Self> {
        if slots == 0 {
            return Err(Error::argument("batch", slots, "at least 1"));
        }
        let decoding = Decoding::new(model.decoder(), slots, capacity)?;
        Ok(Self { model, decoding, active: Vec::new(), next: 0 })
    }

    /// Tokens that the cache needs room for: all but the last one of an answer.
    ///
    /// # Errors
    /// `Argument` when the prompt has no token, or leaves no room in the model's context.
    pub fn room(model: &LanguageModel, prompt: usize, max_new_tokens: usize) -> Result<usize> {
        let context = model.decoder().config().max_position_embeddings;
        if prompt == 0 {
            return Err(Error::argument("prompt", "no token", "a text to go on from"));
        }
        if prompt > context {
            let expected = format!("at most {context}, the model's context");
            return Err(Error::argument("prompt", format!("{prompt} tokens"), expected));
        }
        Ok(prompt.saturating_add(max_new_tokens.saturating_sub(1)).min(context))
    }

    /// Whether another answer can begin.
    pub fn has_room(&self) -> bool {
        self.active.len() < self.decoding.cache().slots()
    }

    /// Whether no answer is on its way.
    pub fn is_empty(&self) -> bool {
        self.active.is_empty()
    }

    /// Begins an answer: computes the prompt and chooses the first token. Answers are counted from 0.
    ///
    /// # Errors
    /// `Argument` for settings that are not possible, a prompt that is empty or longer than the room, or when
    /// [there is no room](Self::has_room).
    pub fn join(&mut self, request: TextRequest) -> Result<Piece> {
        let TextRequest { prompt, sampling, seed, max_new_tokens, stop, ignore_eos } = request;
        if !self.has_room() {
            let expected = format!("at most {} at a time", self.decoding.cache().slots());
            return Err(Error::argument("batch", self.active.len() + 1, expected));
        }
        if max_new_tokens == 0 {
            return Err(Error::argument("max_new_tokens", 0, "at least 1"));
        }
        Self::room(self.model, prompt.len(), max_new_tokens)?;
        let sampler = Sampler::new(sampling, seed, &prompt)?;
        let slot = self.active.len();
        self.decoding.cache_mut().truncate(slot, 0);
        let ids: Vec<i64> = prompt.iter().map(|&id| i64::from(id)).collect();
        let ids = Tensor::from_vec(ids, [1, prompt.len()])?;
        let text = Text::new(stop);
        self.active.push(Growing { id: self.next, sampler, text, max_new_tokens, ignore_eos });
        self.next += 1;
        match self.extend(&ids, slot) {
            Ok(mut pieces) => Ok(pieces.remove(0)),
            Err(error) => {
                self.active.truncate(slot);
                Err(error)
            }
        }
    }

    /// Ends an answer where it is; one that is finished, or was never there, stays so.
    ///
    /// # Errors
    /// The device fails.
    pub fn leave(&mut self, id: usize) -> Result<()> {
        let Some(slot) = self.active.iter().position(|growing| growing.id == id) else {
            return Ok(());
        };
        self.decoding.cache_mut().move_slot(self.active.len() - 1, slot)?;
        self.active.swap_remove(slot);
        Ok(())
    }

    /// The next token of every answer.
    ///
    /// # Errors
    /// `NotFinite` when the model gives scores that are none.
    pub fn step(&mut self) -> Result<Vec<Piece>> {
        if self.active.is_empty() {
            return Ok(Vec::new());
        }
        let last = |growing: &Growing| growing.text.tokens().last().map_or(0, |&id| i64::from(id));
        let ids: Vec<i64> = self.active.iter().map(last).collect();
        self.extend(&Tensor::from_vec(ids, [self.active.len(), 1])?, 0)
    }

    /// Gives `ids` [B, T] to the slots from `first` on, and chooses what comes next.
    fn extend(&mut self, ids: &Tensor, first: usize) -> Result<Vec<Piece>> {
        let b = ids.dim(0);
        // 1. scores of each slot's next token
        let logits = self.decoding.extend(ids, first)?;
        // 2. choices
        let mut pieces = Vec::with_capacity(b);
        for (i, logits) in logits.chunks(logits.len() / b).enumerate() {
            let growing = &mut self.active[first + i];
            let token = growing.sampler.choose(logits)?;
            // Behind the last place of the context there is none for this token to stand in.
            let cache = self.decoding.cache();
            let is_full = cache.length(first + i) == cache.capacity();
            pieces.push(growing.push(self.model, token, is_full)?);
        }
        // 3. those that are finished leave
        for i in (0..b).rev().filter(|&i| pieces[i].answer.is_some()) {
            let last = self.active.len() - 1;
            self.decoding.cache_mut().move_slot(last, first + i)?;
            self.active.swap_remove(first + i);
        }
        Ok(pieces)
    }
}

impl Growing {
    fn push(&mut self, model: &LanguageModel, token: u32, is_full: bool) -> Result<Piece> {
        let ends = !self.ignore_eos && model.ends().contains(&token);
        let mut text = self.text.push(model.tokenizer(), token)?;
        let finish = if ends {
            Some(Finish::End)
        } else if self.text.is_stopped() {
            Some(Finish::Stop)
        } else {
            let count = self.text.tokens().len();
            (count >= self.max_new_tokens || is_full).then_some(Finish::Length)
        };
        let mut answer = None;
        if let Some(mut finish) = finish {
            text += &self.text.finish(model.tokenizer())?;
            if self.text.is_stopped() {
                finish = Finish::Stop;
            }
            answer = Some(Answer { tokens: self.text.tokens().to_vec(), finish });
        }
        Ok(Piece { id: self.id, text, answer })
    }
}
