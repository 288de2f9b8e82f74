//! PyTorch's CUDA generator: Philox4x32-10 words in the layout of `torch.randn` on a GPU.
//!
//! Words: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (2011). Layout: cuRAND's
//! `curand_init(seed, subsequence, offset)` and ATen's `distribution_elementwise_grid_stride_kernel`
//! (`aten/src/ATen/native/cuda/DistributionTemplates.h`).

use std::f64::consts::TAU;

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;
/// Threads of a block in ATen's kernel, and values that a thread draws at once.
const BLOCK: u64 = 256;
const UNROLL: u64 = 4;

/// Philox4x32-10: four words from a 128-bit counter and a 64-bit key.
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let p0 = MULTIPLIER[0] as u64 * counter[0] as u64;
        let p1 = MULTIPLIER[1] as u64 * counter[2] as u64;
        counter = [
            (p1 >> 32) as u32 ^ counter[1] ^ key[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ counter[3] ^ key[1],
            p0 as u32,
        ];
    }
    counter
}

/// What of a card decides which thread makes which value: torch launches at most `sms * blocks_per_sm` blocks of
/// 256 threads, so that the layouts of two cards part from `256 * sms * blocks_per_sm` values on (221,184 on an A100:
/// a latent of 512x512 pixels has 16,384 and is the same on every card with 8 SMs or more).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhiloxLayout {
    /// Streaming multiprocessors of the card.
    pub sms: u32,
    /// Resident blocks of 256 threads on one of them: 8 on sm_80 and sm_90, 6 on sm_86, sm_89 and sm_120.
    pub blocks_per_sm: u32,
}

impl PhiloxLayout {
    /// NVIDIA A100.
    pub const A100: Self = Self { sms: 108, blocks_per_sm: 8 };
}

/// The generator that `torch.Generator("cuda")` holds.
#[derive(Clone, Debug)]
pub struct Philox {
    key: [u32; 2],
    layout: PhiloxLayout,
    /// Calls of the four-word engine that every thread has behind it.
    calls: u64,
}

impl Philox {
    /// A generator as after `torch.Generator("cuda").manual_seed(seed)`.
    pub fn new(seed: u64, layout: PhiloxLayout) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32], layout, calls: 0 }
    }

    /// `torch.randn(n, device="cuda")` in f32, by the f64 formula: the card's own `logf` and `__sincosf` are within
    /// 1e-5 or so of it.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        if n == 0 {
            return Vec::new();
        }
        let n = n as u64;
        let resident = self.layout.sms as u64 * self.layout.blocks_per_sm as u64;
        let threads = BLOCK * n.div_ceil(BLOCK).min(resident.max(1)); // in the grid
        let per_pass = threads * UNROLL; // values one iteration of the grid makes
        let passes = n.div_ceil(per_pass);

        let mut values = vec![0.0; n as usize];
        for pass in 0..passes {
            for thread in 0..threads.min(n - pass * per_pass) {
                let call = self.calls + pass;
                let counter =
                    [call as u32, (call >> 32) as u32, thread as u32, (thread >> 32) as u32];
                let words = philox4x32_10(counter, self.key);
                let (a, b) = box_muller(words[0], words[1]);
                let (c, d) = box_muller(words[2], words[3]);
                for (unrolled, value) in [a, b, c, d].into_iter().enumerate() {
                    let index = pass * per_pass + unrolled as u64 * threads + thread;
                    if let Some(slot) = values.get_mut(index as usize) {
                        *slot = value;
                    }
                }
            }
        }
        self.calls += passes;
        values
    }
}

/// cuRAND's pair: sine first, uniforms at the middle of their 2^-32 cells.
pub(super) fn box_muller(x: u32, y: u32) -> (f32, f32) {
    let cell = |word: u32| (word as f64 + 0.5) / (1u64 << 32) as f64;
    let radius = (-2.0 * cell(x).ln()).sqrt();
    let (sin, cos) = (TAU * cell(y)).sin_cos();
    ((radius * sin) as f32, (radius * cos) as f32)
}
