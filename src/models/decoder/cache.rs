//! Keys and values of what came before, so that a token is computed once.

use super::DecoderConfig;
use crate::error::{Error, Result};
use crate::ops::cache::append;
use crate::ops::elementwise::scale;
use crate::tensor::{DType, Device, Tensor};

/// Keys and values of sequences, one a slot, for each block. [`Decoder::extend`](super::Decoder::extend) adds to it.
pub struct Cache {
    /// Of each block: keys, values [slots, capacity, G, D].
    blocks: Vec<[Tensor; 2]>,
    /// Tokens in each slot.
    lengths: Vec<usize>,
    capacity: usize,
    device: Device,
}

/// T new tokens of each of B sequences, in slots from `first` on.
pub(super) struct Step {
    pub first: usize,
    /// Where they stand, [B, T] u32.
    pub positions: Tensor,
    /// How many tokens the sequences have before, `[B]` u32.
    starts: Tensor,
    /// And with them.
    pub ends: Tensor,
}

impl Cache {
    pub(super) fn new(
        config: &DecoderConfig,
        slots: usize,
        capacity: usize,
        dtype: DType,
        device: Device,
    ) -> Result<Self> {
        let shape = [slots, capacity, config.num_key_value_heads, config.head_dim];
        let one = || Tensor::zeros(shape, dtype, device);
        let blocks = (0..config.num_hidden_layers).map(|_| Ok([one()?, one()?]));
        let blocks = blocks.collect::<Result<_>>()?;
        Ok(Self { blocks, lengths: vec![0; slots], capacity, device })
    }

    /// The number of sequences that it has room for.
    pub fn slots(&self) -> usize {
        self.lengths.len()
    }

    /// The number of tokens that a sequence has room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Tokens of the sequence in a slot.
    ///
    /// # Panics
    /// When there is no such slot; likewise below.
    pub fn length(&self, slot: usize) -> usize {
        self.lengths[slot]
    }

    /// Forgets all of a slot's sequence but its first `length` tokens.
    pub fn truncate(&mut self, slot: usize, length: usize) {
        self.lengths[slot] = self.lengths[slot].min(length);
    }

    /// Puts the sequence of slot `from` into slot `to`, whose own is forgotten; `from` is empty then.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn move_slot(&mut self, from: usize, to: usize) -> Result<()> {
        if from == to {
            return Ok(());
        }
        let length = std::mem::take(&mut self.lengths[from]);
        let none = Tensor::zeros([1], DType::U32, self.device)?;
        for tensor in self.blocks.iter_mut().flatten() {
            // A copy: what is written to may have no views.
            let moved = scale(&tensor.narrow(0, from, 1)?.narrow(1, 0, length)?, 1.0)?;
            append(tensor, to, &moved, &none)?;
        }
        self.lengths[to] = length;
        Ok(())
    }

    /// `t` new tokens of the sequences in each of `batch` slots from `first` on.
    pub(super) fn step(&self, first: usize, batch: usize, t: usize) -> Result<Step> {
        let starts = self.lengths.get(first..first.saturating_add(batch)).ok_or_else(|| {
            let found = format!("{batch} slots from {first} on");
            Error::argument("cache", found, format!("there are {}", self.lengths.len()))
        })?;
        if let Some(longest) = starts.iter().max().filter(|&&n| n + t > self.capacity) {
            let found = format!("{} tokens", longest + t);
            let expected = format!("at most {}, which the cache has room for", self.capacity);
            return Err(Error::argument("cache", found, expected));
        }
        let place = |values: Vec<u32>, shape: &[usize]| {
            Tensor::from_vec(values, shape)?.to_device(self.device)
        };
        let positions = starts.iter().flat_map(|&start| start as u32..(start + t) as u32);
        Ok(Step {
            first,
            positions: place(positions.collect(), &[batch, t])?,
            starts: place(starts.iter().map(|&start| start as u32).collect(), &[batch])?,
            ends: place(starts.iter().map(|&start| (start + t) as u32).collect(), &[batch])?,
        })
    }

    /// Adds keys and values [B, T, G, D] of a block. Returns all that the step's slots have, [B, capacity, G, D] each.
    pub(super) fn append(
        &mut self,
        block: usize,
        step: &Step,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<[Tensor; 2]> {
        let [keys, values] = &mut self.blocks[block];
        append(keys, step.first, k, &step.starts)?;
        append(values, step.first, v, &step.starts)?;
        let batch = k.dim(0);
        Ok([keys.narrow(0, step.first, batch)?, values.narrow(0, step.first, batch)?])
    }

    /// Counts the tokens of a step that every block has added.
    pub(super) fn advance(&mut self, step: &Step) {
        let (batch, t) = (step.positions.dim(0), step.positions.dim(1));
        self.lengths[step.first..][..batch].iter_mut().for_each(|length| *length += t);
    }
}
