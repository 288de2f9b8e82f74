//! Keys and values of what came before, so that a token is computed once.

use super::DecoderConfig;
use crate::error::{Error, Result};
use crate::ops::cache::{Places, advance, append};
use crate::ops::elementwise::scale;
use crate::tensor::{DType, Device, Tensor};

/// Rows that a GPU's slots have to begin with.
const ROWS: usize = 64;

/// Keys and values of sequences, one a slot, for each block. [`Decoder::extend`](super::Decoder::extend) adds to it.
pub struct Cache {
    /// Of each block: keys, values [slots, G, rows, D].
    blocks: Vec<[Tensor; 2]>,
    /// Of a slot. On a GPU they grow with the longest sequence; a CPU takes memory when it is written to anyhow.
    rows: usize,
    /// Tokens in each slot.
    lengths: Vec<usize>,
    /// The same where the device reads them, and adds to them: `[slots]` u32.
    on_device: Tensor,
    /// What stands there; nothing while that is not certain.
    known: Vec<usize>,
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
        let rows = if device == Device::Cpu { capacity } else { capacity.min(ROWS) };
        let shape = [slots, config.num_key_value_heads, rows, config.head_dim];
        let one = || Tensor::zeros(shape, dtype, device);
        let blocks = (0..config.num_hidden_layers).map(|_| Ok([one()?, one()?]));
        let blocks = blocks.collect::<Result<_>>()?;
        let (lengths, known) = (vec![0; slots], vec![0; slots]);
        let on_device = Tensor::zeros([slots], DType::U32, device)?;
        Ok(Self { blocks, rows, lengths, on_device, known, capacity, device })
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
            let moved = scale(&tensor.narrow(0, from, 1)?.narrow(2, 0, length)?, 1.0)?;
            append(tensor, to, &tokens_first(&moved)?, &none)?;
        }
        self.lengths[to] = length;
        Ok(())
    }

    /// Adds `tokens` tokens to the sequences in each of `batch` slots from `first` on, by `work`, all of which the device
    /// does: it [counts](Self::advance) them there.
    ///
    /// # Errors
    /// What `work` ends with; `Argument` when there are no such slots, or no room; `OutOfMemory`.
    pub(crate) fn extend<T>(
        &mut self,
        first: usize,
        batch: usize,
        tokens: usize,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        // 1. room
        let longest = self.longest(first, batch)? + tokens;
        if longest > self.capacity {
            let found = format!("{longest} tokens");
            let expected = format!("at most {}, which the cache has room for", self.capacity);
            return Err(Error::argument("cache", found, expected));
        }
        if longest > self.rows {
            self.grow(longest)?;
        }
        // 2. what the device does not know yet: who has come, left or moved
        if self.known != self.lengths {
            let lengths = self.lengths.iter().map(|&length| length as u32).collect();
            self.on_device.assign(&Tensor::from_vec(lengths, [self.slots()])?)?;
        }
        // 3. work
        self.known.clear();
        let result = work(self)?;
        self.lengths[first..][..batch].iter_mut().for_each(|length| *length += tokens);
        self.known.clone_from(&self.lengths);
        Ok(result)
    }

    /// Whether [`Self::extend`] will move keys and values to where there is more room.
    pub(crate) fn must_grow(&self, first: usize, batch: usize, tokens: usize) -> Result<bool> {
        Ok(self.longest(first, batch)? + tokens > self.rows)
    }

    /// The length of the longest sequence in these slots.
    fn longest(&self, first: usize, batch: usize) -> Result<usize> {
        let lengths = self.lengths.get(first..first.saturating_add(batch)).ok_or_else(|| {
            let found = format!("{batch} slots from {first} on");
            Error::argument("cache", found, format!("there are {}", self.slots()))
        })?;
        Ok(lengths.iter().copied().max().unwrap_or(0))
    }

    /// Makes room for sequences of `needed` tokens, doubling it. One tensor after the other, so that memory need not hold all
    /// of them twice.
    fn grow(&mut self, needed: usize) -> Result<()> {
        let rows = needed.next_power_of_two().min(self.capacity);
        let used = self.longest(0, self.slots())?;
        let none = Tensor::zeros([self.slots()], DType::U32, self.device)?;
        for tensor in self.blocks.iter_mut().flatten() {
            let (slots, heads, _, channels) = tensor.dims4()?;
            let mut more =
                Tensor::zeros([slots, heads, rows, channels], tensor.dtype(), self.device)?;
            append(&mut more, 0, &tokens_first(&tensor.narrow(2, 0, used)?)?, &none)?;
            *tensor = more;
        }
        self.rows = rows;
        Ok(())
    }

    /// Counts the tokens of a step where the device reads the lengths, and says where they stand.
    pub(super) fn advance(&mut self, first: usize, batch: usize, tokens: usize) -> Result<Places> {
        advance(&mut self.on_device, first, batch, tokens)
    }

    /// Adds keys and values [B, T, G, D] of a block behind the `starts` of B slots. Returns all that these have,
    /// [B, rows, G, D] each.
    pub(super) fn append(
        &mut self,
        block: usize,
        first: usize,
        k: &Tensor,
        v: &Tensor,
        starts: &Tensor,
    ) -> Result<[Tensor; 2]> {
        let [keys, values] = &mut self.blocks[block];
        append(keys, first, k, starts)?;
        append(values, first, v, starts)?;
        let batch = k.dim(0);
        let all = |t: &Tensor| tokens_first(&t.narrow(0, first, batch)?);
        Ok([all(keys)?, all(values)?])
    }
}

/// [B, G, S, D] -> [B, S, G, D], as attention has it: a view.
fn tokens_first(t: &Tensor) -> Result<Tensor> {
    t.permute(&[0, 2, 1, 3])
}
