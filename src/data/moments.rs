//! Mean and deviation of levels that are seen one after the other.

/// How many levels there were, their sum and that of their squares.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moments {
    count: u64,
    sum: f64,
    squares: f64,
}

impl Moments {
    /// Takes up a level, 0 to 1.
    pub fn add(&mut self, level: f32) {
        let level = f64::from(level);
        self.count += 1;
        self.sum += level;
        self.squares += level * level;
    }

    /// Those of the levels of both.
    pub fn and(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            sum: self.sum + other.sum,
            squares: self.squares + other.squares,
        }
    }

    /// Mean and deviation by which levels are normalised: 1 for a deviation that is none, 0 for the mean of nothing.
    pub fn normal(self) -> (f32, f32) {
        let n = self.count.max(1) as f64;
        let mean = self.sum / n;
        let deviation = (self.squares / n - mean * mean).max(0.0).sqrt();
        (mean as f32, if deviation > 1e-4 { deviation as f32 } else { 1.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(levels: &[f32]) -> Moments {
        let mut moments = Moments::default();
        levels.iter().for_each(|&level| moments.add(level));
        moments
    }

    #[test]
    fn a_mean_and_a_deviation_are_those_of_all_levels() {
        let parts = [of(&[0.25, 0.5]), of(&[0.75]), of(&[])];
        let (mean, deviation) = parts.into_iter().fold(Moments::default(), Moments::and).normal();
        assert!((mean - 0.5).abs() < 1e-7 && (deviation - (1f32 / 24.0).sqrt()).abs() < 1e-7);
        assert_eq!(of(&[0.5; 9]).normal(), (0.5, 1.0));
        assert_eq!(of(&[]).normal(), (0.0, 1.0));
    }
}
