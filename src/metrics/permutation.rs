//! numpy's `RandomState.permutation`, so that subsets are those that torch-fidelity draws from the same seed.

use crate::noise::Mt19937;

/// Draws of numpy's legacy generator (`numpy/random/mtrand.pyx` and `src/distributions/distributions.c`).
pub(super) struct Draws(Mt19937);

impl Draws {
    pub fn new(seed: u32) -> Self {
        Self(Mt19937::new(u64::from(seed)))
    }

    /// 0 to n - 1 in random order.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.up_to(i as u32) as usize);
        }
        order
    }

    /// One of 0 to `max`: bits as many as `max` has, drawn until they fit.
    pub fn up_to(&mut self, max: u32) -> u32 {
        let mask = u32::MAX.checked_shr(max.leading_zeros()).unwrap_or(0);
        loop {
            let value = self.0.next_u32() & mask;
            if value <= max {
                return value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_numpys() {
        // numpy.random.RandomState(2020): permutation(7), then permutation(9).
        let mut draws = Draws::new(2020);
        assert_eq!(draws.permutation(7), [5, 4, 1, 2, 3, 6, 0]);
        assert_eq!(draws.permutation(9), [3, 1, 2, 4, 6, 8, 5, 0, 7]);
    }
}
