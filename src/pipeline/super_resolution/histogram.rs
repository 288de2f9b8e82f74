//! Levels with the histogram of others.

/// Gives `values` the distribution of `reference`: a value becomes the reference's quantile of its own rank, between steps
/// linearly, as scikit-image's `match_histograms` has it. Nothing happens where the reference is empty.
pub(super) fn match_histogram(values: &mut [&mut f32], reference: &mut [f32]) {
    if reference.is_empty() {
        return;
    }
    reference.sort_by(f32::total_cmp);
    values.sort_by(|a, b| a.total_cmp(b));
    let (steps, count) = (quantiles(reference), values.len() as f64);
    let (mut first, mut at) = (0, 0);
    while first < values.len() {
        let own = *values[first];
        let equal = values[first..].iter().take_while(|value| ***value == own).count();
        let rank = (first + equal) as f64 / count;
        while at + 1 < steps.len() && steps[at].0 < rank {
            at += 1;
        }
        // Between the last step below and the first that is not; what is below the first is the first. The last is at 1.
        let (x1, y1) = steps[at];
        let found = match at.checked_sub(1).map(|i| steps[i]) {
            Some((x0, y0)) if rank < x1 => (y1 - y0) / (x1 - x0) * (rank - x0) + y0,
            _ => y1,
        };
        for value in &mut values[first..first + equal] {
            **value = found as f32;
        }
        first += equal;
    }
}

/// For each different value of what is sorted the share of those that are no larger, and the value.
fn quantiles(sorted: &[f32]) -> Vec<(f64, f64)> {
    let mut steps: Vec<(f64, f64)> = Vec::new();
    for (i, &value) in sorted.iter().enumerate() {
        let share = (i + 1) as f64 / sorted.len() as f64;
        match steps.last_mut() {
            Some(last) if last.1 == f64::from(value) => last.0 = share,
            _ => steps.push((share, f64::from(value))),
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matched(values: &[f32], reference: &[f32]) -> Vec<f32> {
        let mut found = values.to_vec();
        match_histogram(&mut found.iter_mut().collect::<Vec<_>>(), &mut reference.to_vec());
        found
    }

    #[test]
    fn ranks_take_the_references_values() {
        assert_eq!(matched(&[3.0, 1.0, 2.0], &[10.0, 30.0, 20.0]), [30.0, 10.0, 20.0]);
        assert_eq!(matched(&[1.0, 1.0, 5.0, 1.0], &[2.0]), [2.0; 4]);
        assert_eq!(matched(&[7.0], &[1.0, 9.0, 5.0]), [9.0]);
        assert_eq!(matched(&[7.0, 8.0], &[]), [7.0, 8.0]);
        assert_eq!(matched(&[], &[1.0]), [0.0; 0]);
        // Four ranks over two steps, at 1/2 and 1: what is below the first is the first.
        assert_eq!(matched(&[4.0, 3.0, 2.0, 1.0], &[0.0, 8.0]), [8.0, 4.0, 0.0, 0.0]);
    }

    #[test]
    fn a_histogram_is_its_own() {
        let values: Vec<f32> = (0..97).map(|i| ((i * 31) % 89) as f32 * 0.25 - 3.0).collect();
        assert_eq!(matched(&values, &values), values);
    }
}
