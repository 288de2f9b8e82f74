//! Keys and values of what came before, so that a token is computed once.

use super::DecoderConfig;
use crate::dispatch_float;
use crate::error::{Error, Result};
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
        for tensor in self.blocks.iter_mut().flatten() {
            let moved = tensor.narrow(0, from, 1)?.narrow(1, 0, length)?.contiguous()?;
            write(tensor, &moved, to, &[0])?;
        }
        self.lengths[to] = length;
        Ok(())
    }

    /// Positions [B, T], u32, of `t` new tokens in each of `slots` slots from `first` on.
    pub(super) fn positions(&self, first: usize, slots: usize, t: usize) -> Result<Tensor> {
        let starts = self.lengths.get(first..first + slots).ok_or_else(|| {
            let found = format!("slots {first} to {}", first + slots);
            Error::argument("cache", found, format!("{} slots", self.lengths.len()))
        })?;
        if let Some(longest) = starts.iter().max().filter(|&&n| n + t > self.capacity) {
            let found = format!("{} tokens", longest + t);
            let expected = format!("at most {}, which the cache has room for", self.capacity);
            return Err(Error::argument("cache", found, expected));
        }
        let positions = starts.iter().flat_map(|&start| start as u32..(start + t) as u32);
        Tensor::from_vec(positions.collect(), [slots, t])?.to_device(self.device)
    }

    /// Adds keys and values [B, T, G, D] of a block to the slots from `first` on. Returns all that those have, [B, capacity,
    /// G, D] each, and how many they are, `[B]` u32.
    pub(super) fn append(
        &mut self,
        block: usize,
        first: usize,
        [k, v]: [&Tensor; 2],
    ) -> Result<[Tensor; 3]> {
        let (slots, t) = (k.dim(0), k.dim(1));
        let starts = &self.lengths[first..first + slots];
        let [keys, values] = &mut self.blocks[block];
        write(keys, k, first, starts)?;
        write(values, v, first, starts)?;
        let ends: Vec<u32> = starts.iter().map(|&start| (start + t) as u32).collect();
        let ends = Tensor::from_vec(ends, [slots])?.to_device(self.device)?;
        Ok([keys.narrow(0, first, slots)?, values.narrow(0, first, slots)?, ends])
    }

    /// Counts `t` tokens that every block has added.
    pub(super) fn advance(&mut self, first: usize, slots: usize, t: usize) {
        self.lengths[first..first + slots].iter_mut().for_each(|length| *length += t);
    }
}

/// Writes `new` [B, T, G, D] into `to` [slots, capacity, G, D], entry b to slot `first + b` from token `starts[b]` on.
fn write(to: &mut Tensor, new: &Tensor, first: usize, starts: &[usize]) -> Result<()> {
    let (capacity, t) = (to.dim(1), new.dim(1));
    let width = to.dim(2) * to.dim(3);
    let new = new.contiguous()?;
    dispatch_float!("cache", to.dtype(), T => {
        let from = new.as_slice::<T>()?;
        let to = to.as_mut_slice::<T>()?;
        for (b, start) in starts.iter().enumerate() {
            let at = ((first + b) * capacity + start) * width;
            to[at..at + t * width].copy_from_slice(&from[b * t * width..][..t * width]);
        }
        Ok(())
    })
}
