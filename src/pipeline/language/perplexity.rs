//! How well a model predicts a text that is longer than its context.

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::models::decoder::Decoder;
use crate::ops::cross_entropy::{CrossEntropy, cross_entropy};
use crate::tensor::{DType, Tensor, tape};

/// Rows of scores at a time: those of a large vocabulary take some 200 kB each.
const ROWS: usize = 256;

/// How a text is cut: as transformers' page "Perplexity of fixed-length models" does. A token is scored in the first window
/// that has it, unless it is the first token of that window, which nothing stands before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Args)]
#[command(next_help_heading = "Windows")]
pub struct Windows {
    /// Tokens of a window [default: the model's context]
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<usize>,

    /// Tokens from one window to the next: the fewer, the more stands before each token that is scored [default: a window]
    #[arg(long, value_name = "TOKENS")]
    pub stride: Option<usize>,
}

/// What the tokens of texts have cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Perplexity {
    /// Sum of `-ln p`.
    pub nats: f64,
    /// Tokens that were scored.
    pub tokens: usize,
}

impl Perplexity {
    /// `e` to the mean of `-ln p`; NaN where nothing was scored.
    pub fn value(&self) -> f64 {
        (self.nats / self.tokens as f64).exp()
    }

    /// Adds those of `tokens`. `check` is called before each window, with the number of tokens that are behind it.
    ///
    /// # Errors
    /// `Argument` for windows that are not possible; what `check` answers; an id outside of the vocabulary.
    pub fn add(
        &mut self,
        decoder: &Decoder,
        tokens: &[u32],
        windows: Windows,
        check: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        let limit = decoder.config().max_position_embeddings;
        let context = windows.context.unwrap_or(limit);
        if !(2..=limit).contains(&context) {
            let expected = format!("2 to {limit}, the model's context");
            return Err(Error::argument("context", context, expected));
        }
        let stride = windows.stride.unwrap_or(context);
        if !(1..=context).contains(&stride) {
            return Err(Error::argument("stride", stride, format!("1 to {context}, a window")));
        }
        let mut scored = 0;
        for begin in (0..tokens.len()).step_by(stride) {
            check(scored)?;
            let end = tokens.len().min(begin + context);
            let new = (end - scored).min(end - begin - 1);
            tape::no_grad(|| self.window(decoder, &tokens[begin..end], new))?;
            scored = end;
            if end == tokens.len() {
                break;
            }
        }
        Ok(())
    }

    /// Scores the last `new` tokens of a window.
    fn window(&mut self, decoder: &Decoder, tokens: &[u32], new: usize) -> Result<()> {
        if new == 0 {
            return Ok(());
        }
        let ids = tokens.iter().map(|&id| i64::from(id)).collect();
        let hidden = decoder.hidden(&Tensor::from_vec(ids, [1, tokens.len()])?)?; // [1, T, C]
        let first = tokens.len() - new;
        for from in (first..tokens.len()).step_by(ROWS) {
            let rows = ROWS.min(tokens.len() - from);
            // What stands before a token scores it.
            let logits = decoder.logits(&hidden.narrow(1, from - 1, rows)?.contiguous()?)?;
            let targets = Tensor::from_slice(&tokens[from..][..rows], [1, rows])?;
            let targets = targets.to_device(logits.device())?;
            let logits = logits.to_dtype(DType::F32)?;
            let mean = cross_entropy(&logits, &targets, CrossEntropy::default())?;
            self.nats += f64::from(mean.to_vec::<f32>()?[0]) * rows as f64;
        }
        self.tokens += new;
        Ok(())
    }
}
