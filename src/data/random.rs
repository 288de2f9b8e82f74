//! Random numbers of which each has an address: (seed, epoch, row, purpose). Whoever asks, on whatever thread and after
//! whatever restart, is given the same.

use crate::noise::philox::philox4x32_10;

/// What a sequence is drawn for; sequences of different purposes have nothing in common.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    /// The order of an epoch's rows.
    Order,
    /// How a row is augmented, and which of its captions it has.
    Row,
    /// Which rows are held out.
    Split,
    /// The order of batches whose rows were sorted by length.
    Batches,
}

/// A sequence of random numbers: Philox4x32-10 (Salmon et al. 2011) with the seed as its key and the address in its
/// counter.
pub(super) struct Draws {
    key: [u32; 2],
    counter: [u32; 4],
    words: [u32; 4],
    used: usize,
}

impl Draws {
    pub fn new(seed: u64, epoch: u64, row: u32, purpose: Purpose) -> Self {
        // Epochs past 2^24 begin anew: no training sees so many.
        let place = (epoch as u32 & 0xff_ffff) << 8 | purpose as u32;
        let counter = [0, row, place, 0];
        Self { key: [seed as u32, (seed >> 32) as u32], counter, words: [0; 4], used: 4 }
    }

    pub fn word(&mut self) -> u32 {
        if self.used == 4 {
            self.words = philox4x32_10(self.counter, self.key);
            self.counter[0] = self.counter[0].wrapping_add(1);
            self.used = 0;
        }
        self.used += 1;
        self.words[self.used - 1]
    }

    /// Uniform in [0, 1), 24 bits.
    pub fn unit(&mut self) -> f32 {
        (self.word() >> 8) as f32 / (1u32 << 24) as f32
    }

    /// Uniform in [low, high).
    pub fn between(&mut self, low: f32, high: f32) -> f32 {
        low + self.unit() * (high - low)
    }

    pub fn coin(&mut self) -> bool {
        self.word() >> 31 == 1
    }

    /// Uniform below `n` (0 for 0); of a word's 2^32 values some numbers have one more than others.
    pub fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.word()) * n as u64) >> 32) as usize
    }
}

/// A random order of the numbers below `n` (Durstenfeld 1964).
pub(super) fn permutation(n: usize, seed: u64, epoch: u64, purpose: Purpose) -> Vec<usize> {
    let mut draws = Draws::new(seed, epoch, 0, purpose);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, draws.below(i + 1));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_own_numbers() {
        let first = |seed, epoch, row, purpose| {
            let mut draws = Draws::new(seed, epoch, row, purpose);
            (0..9).map(|_| draws.word()).collect::<Vec<_>>()
        };
        let all = [
            first(1, 2, 3, Purpose::Row),
            first(2, 2, 3, Purpose::Row),
            first(1 << 32, 2, 3, Purpose::Row),
            first(1, 3, 3, Purpose::Row),
            first(1, 2, 4, Purpose::Row),
            first(1, 2, 3, Purpose::Order),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|b| a.iter().zip(b).all(|(a, b)| a != b)), "{i}");
        }
        assert_eq!(all[0], first(1, 2, 3, Purpose::Row));
    }

    #[test]
    fn an_order_has_every_row_once_and_all_places_alike() {
        // Where row 0 of five comes to lie in 5,000 orders: 1,000 each, with a deviation of 28.
        let mut places = [0i32; 5];
        for epoch in 0..5_000 {
            let order = permutation(5, 7, epoch, Purpose::Order);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4]);
            places[order.iter().position(|&row| row == 0).unwrap()] += 1;
        }
        assert!(places.iter().all(|n| (n - 1_000).abs() < 5 * 28), "{places:?}");
        assert_eq!(permutation(0, 1, 1, Purpose::Order), [0; 0]);
    }

    #[test]
    fn numbers_fill_their_range() {
        let mut draws = Draws::new(3, 0, 0, Purpose::Row);
        let mut seen = [false; 7];
        (0..200).for_each(|_| seen[draws.below(7)] = true);
        assert_eq!(seen, [true; 7]);
        assert!((0..200).map(|_| draws.between(-2.0, 3.0)).all(|x| (-2.0..3.0).contains(&x)));
        assert_eq!(draws.below(0), 0);
    }
}
