//! From what is asked of the language model to work for the device.

use std::sync::Arc;

use nadir::pipeline::Cancel;
use nadir::pipeline::language::{Sampling, TextRequest, TextRun};
use nadir::{Error, Result};

use super::App;
use super::engine::Work;
use super::fault::Fault;
use super::jobs::blocking;

/// Answers to prompts, each of them with consecutive seeds.
#[derive(Clone, Debug)]
pub struct Asked {
    pub prompts: Vec<String>,
    pub sampling: Sampling,
    pub seed: Option<u64>,
    pub num_answers: usize,
    pub max_new_tokens: usize,
    pub stop: Vec<String>,
}

/// Work that can be done.
pub struct Ready {
    pub works: Vec<Work>,
    pub seed: u64,
    pub seeds: Vec<u64>,
    /// Tokens of each prompt.
    pub tokens: Vec<usize>,
    pub cancel: Cancel,
}

impl App {
    /// Holds what is asked for against what can be, and makes it ready.
    ///
    /// # Errors
    /// 400 with the field, in the words of [`TextRequest`]; 404 where there is no language model; 503 while it is loaded.
    pub async fn texts(self: &Arc<Self>, asked: Asked) -> Result<Ready, Fault> {
        let app = self.clone();
        blocking(move || app.answers(asked)).await?
    }

    fn answers(&self, asked: Asked) -> Result<Ready, Fault> {
        let models = self.models()?;
        let Asked { prompts, sampling, seed, num_answers, max_new_tokens, stop } = asked;
        let Some(model) = &models.text else {
            return Err(Fault::not_found("this server was started without a language model"));
        };
        sampling.check()?;
        let seed = seed.unwrap_or_else(|| super::random() & u64::from(u32::MAX));
        let many = prompts.len().saturating_mul(num_answers);
        if !(1..=self.limits.images).contains(&many) {
            let expected = format!("1 to {} answers at once", self.limits.images);
            return Err(Error::argument("num_answers", many, expected).into());
        }
        if seed.checked_add(num_answers as u64).is_none() {
            return Err(Error::argument("seed", seed, "less than 2^64 for the last answer").into());
        }
        if max_new_tokens == 0 {
            return Err(Error::argument("max_new_tokens", 0, "at least 1").into());
        }
        if stop.len() > 16 || stop.iter().any(|text| text.is_empty() || text.len() > 1000) {
            return Err(Fault::field("stop", "at most 16 texts of 1 to 1,000 bytes"));
        }
        let cancel = Cancel::default();
        let (mut works, mut seeds, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
        for prompt in prompts {
            let prompt = model.prompt(&prompt)?;
            TextRun::room(model, prompt.len(), max_new_tokens)?;
            tokens.push(prompt.len());
            for i in 0..num_answers as u64 {
                let request = TextRequest {
                    prompt: prompt.clone(),
                    sampling,
                    seed: seed + i,
                    max_new_tokens,
                    stop: stop.clone(),
                    ignore_eos: false,
                };
                seeds.push(request.seed);
                works.push(Work::Text(Box::new(request)));
            }
        }
        Ok(Ready { works, seed, seeds, tokens, cancel })
    }
}
