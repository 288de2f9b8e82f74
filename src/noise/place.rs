//! Noise that belongs to a place: whoever asks for it, in whatever order and along with whatever else, gets the same.
//!
//! Philox4x32-10 (Salmon et al. 2011) of the place itself, which needs no state: four words for four channels.

use super::philox::{box_muller, philox4x32_10};

/// A field of normals over the plane, one for each draw.
#[derive(Clone, Copy, Debug)]
pub struct PlacedNoise {
    key: [u32; 2],
}

impl PlacedNoise {
    /// The field of this seed.
    pub fn new(seed: u64) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32] }
    }

    /// Writes the channels of the place `y`, `x` in the given draw.
    pub fn fill(&self, draw: u32, y: u32, x: u32, channels: &mut [f32]) {
        for (four, channels) in (0u32..).zip(channels.chunks_mut(4)) {
            let words = philox4x32_10([x, y, draw, four], self.key);
            let ((a, b), (c, d)) = (box_muller(words[0], words[1]), box_muller(words[2], words[3]));
            channels.iter_mut().zip([a, b, c, d]).for_each(|(channel, normal)| *channel = normal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seed: u64, draw: u32, y: u32, x: u32) -> [f32; 6] {
        let mut channels = [0.0; 6];
        PlacedNoise::new(seed).fill(draw, y, x, &mut channels);
        channels
    }

    #[test]
    fn every_coordinate_counts() {
        let first = at(7, 0, 3, 5);
        assert_eq!(first, at(7, 0, 3, 5));
        let upper = at(7 | (1 << 32), 0, 3, 5);
        for other in [at(8, 0, 3, 5), upper, at(7 << 32, 0, 3, 5), at(7, 1, 3, 5), at(7, 0, 5, 3)] {
            assert!(first.iter().zip(other).all(|(a, b)| *a != b));
        }
        // Fewer channels are the first of more.
        let mut three = [0.0; 3];
        PlacedNoise::new(7).fill(0, 3, 5, &mut three);
        assert_eq!(three, first[..3]);
        assert!((0..6).all(|i| (0..i).all(|j| first[i] != first[j])));
    }

    /// Mean and variance of n normals are within 5 standard errors, 1 / sqrt(n) and sqrt(2 / n), as is the correlation of
    /// neighbours: each fails once in a million seeds.
    #[test]
    fn a_field_is_normal_and_white() {
        let (side, noise) = (256, PlacedNoise::new(1));
        let mut field = vec![0.0_f32; side * side];
        for (i, value) in field.iter_mut().enumerate() {
            noise.fill(0, (i / side) as u32, (i % side) as u32, std::slice::from_mut(value));
        }
        let n = field.len() as f64;
        let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / n;
        let error = 5.0 / n.sqrt();
        assert!(mean(&mut field.iter().map(|&x| f64::from(x))).abs() < error);
        let square = mean(&mut field.iter().map(|&x| f64::from(x).powi(2)));
        assert!((square - 1.0).abs() < error * 2f64.sqrt());
        for by in [1, side] {
            let pairs = field.iter().zip(&field[by..]);
            assert!(mean(&mut pairs.map(|(&a, &b)| f64::from(a) * f64::from(b))).abs() < error);
        }
    }
}
