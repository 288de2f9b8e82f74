//! PyTorch's CPU generator: MT19937 words and the ways `torch.randn` turns them into normals.
//!
//! Words: Matsumoto & Nishimura, "Mersenne Twister" (1998), seeded with `init_genrand`. Normals: Box & Muller
//! (1958) in the two arrangements of ATen's `normal_kernel` (`aten/src/ATen/native/cpu/DistributionTemplates.h`
//! and `aten/src/ATen/core/DistributionsHelper.h`).

use std::f64::consts::TAU;

const N: usize = 624;
const M: usize = 397;
/// Values that torch makes at a time, when there are so many.
const BLOCK: usize = 16;

/// The generator that `torch.Generator("cpu")` holds.
///
/// Draws continue one another: two calls of [`randn`](Self::randn) on one generator give what two calls of
/// `torch.randn` with one `torch.Generator` give, the cached second half of a Box-Muller pair included.
#[derive(Clone)]
pub struct Mt19937 {
    state: [u32; N],
    next: usize,
    /// Sine half of the last pair drawn one by one; torch keeps it until such a draw asks again.
    cached: Option<f64>,
}

impl Mt19937 {
    /// A generator as after `torch.Generator("cpu").manual_seed(seed)`. Only the low 32 bits reach the state.
    pub fn new(seed: u64) -> Self {
        let mut state = [seed as u32; N];
        for i in 1..N {
            let prev = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(prev ^ (prev >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: N, cached: None }
    }

    /// The next word.
    pub fn next_u32(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }

    /// Uniform in [0, 1) with 24 bits, the low bits of one word.
    fn uniform(&mut self) -> f32 {
        (self.next_u32() & ((1 << 24) - 1)) as f32 / (1u32 << 24) as f32
    }

    /// Uniform in [0, 1) with 53 bits, from two words, the first of which is the high one.
    fn uniform_f64(&mut self) -> f64 {
        let (high, low) = (self.next_u32() as u64, self.next_u32() as u64);
        ((high << 32 | low) & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    /// One normal in f64, the other half of its pair kept for the next call.
    fn normal_f64(&mut self) -> f64 {
        if let Some(value) = self.cached.take() {
            return value;
        }
        let (u1, u2) = (self.uniform_f64(), self.uniform_f64());
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let (sin, cos) = (TAU * u1).sin_cos();
        self.cached = Some(radius * sin);
        radius * cos
    }

    /// `torch.randn(n)` in f32, within 1e-6 of what torch 2.15 gives on x86 with AVX2.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        // All n uniforms are drawn before the tail's.
        self.normals(n, n % BLOCK)
    }

    /// `torch.randn(n)` in f16 or bf16 before it is rounded to the dtype.
    ///
    /// torch 2.15 computes it in f32, a block at a time: a tail of less than a block takes other words than in f32.
    pub fn randn_16bit(&mut self, n: usize) -> Vec<f32> {
        self.normals(n, 0)
    }

    /// Below one block values come one by one in f64. From one block on every 16 uniforms become 8 cosine halves and
    /// 8 sine halves; a tail shorter than a block is covered by making the last 16 values anew, after `skipped` words.
    fn normals(&mut self, n: usize, skipped: usize) -> Vec<f32> {
        if n < BLOCK {
            return (0..n).map(|_| self.normal_f64() as f32).collect();
        }
        let mut values = vec![0.0; n];
        for block in values.chunks_exact_mut(BLOCK) {
            self.normal_block(block);
        }
        if !n.is_multiple_of(BLOCK) {
            for _ in 0..skipped {
                self.next_u32();
            }
            self.normal_block(&mut values[n - BLOCK..]);
        }
        values
    }

    fn normal_block(&mut self, block: &mut [f32]) {
        block.fill_with(|| self.uniform());
        let (first, second) = block.split_at_mut(BLOCK / 2);
        for (a, b) in first.iter_mut().zip(second) {
            // 1 - u is in (0, 1], where the logarithm is finite.
            let radius = (-2.0 * (1.0 - *a as f64).ln()).sqrt();
            // The vector path multiplies the angle in f32. That rounding is worth up to 1.4e-6 in the result, so it
            // is part of the definition; f32 logarithms and sines are not: f64 only rounds better.
            let angle = (std::f32::consts::TAU * *b) as f64;
            (*a, *b) = ((radius * angle.cos()) as f32, (radius * angle.sin()) as f32);
        }
    }
}
