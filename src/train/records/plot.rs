//! A curve over the steps of a run, as a picture in SVG.

use std::fmt::Write;

/// Width and height of the whole, and the margins of the area that is drawn in.
const SIZE: [f64; 2] = [640.0, 240.0];
const LEFT: f64 = 64.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 24.0;
/// Points at most, so that a long run's page stays small: each the mean of the steps in it, with their span.
const COLUMNS: usize = 280;

/// Mean, least and greatest of neighbouring steps.
struct Column {
    step: f64,
    mean: f64,
    least: f64,
    greatest: f64,
}

/// The curve of `points` (step, value) from step 0 to `steps`; of values that all are above 0 and far apart, logarithmic.
/// None where no value is finite.
pub(super) fn plot(points: &[(u64, f64)], steps: u64) -> Option<String> {
    let finite: Vec<_> = points.iter().copied().filter(|(_, y)| y.is_finite()).collect();
    let span = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), y| (a.min(y), b.max(y)))
    };
    let (least, greatest) = span(&mut finite.iter().map(|(_, y)| *y));
    if finite.is_empty() {
        return None;
    }
    let logarithmic = least > 0.0 && greatest / least >= 20.0;
    let scaled = |y: f64| if logarithmic { y.log10() } else { y };
    let per = finite.len().div_ceil(COLUMNS);
    let column = |points: &[(u64, f64)]| {
        let n = points.len() as f64;
        let (least, greatest) = span(&mut points.iter().map(|(_, y)| scaled(*y)));
        Column {
            step: points.iter().map(|(x, _)| *x as f64).sum::<f64>() / n,
            mean: points.iter().map(|(_, y)| scaled(*y)).sum::<f64>() / n,
            least,
            greatest,
        }
    };
    let columns: Vec<_> = finite.chunks(per).map(column).collect();

    // A flat line stands in the middle.
    let (mut low, mut high) = (scaled(least), scaled(greatest));
    let room = if high > low { 0.04 * (high - low) } else { low.abs().max(1e-12) };
    (low, high) = (low - room, high + room);
    let steps = steps.max(1) as f64;
    let x = |step: f64| LEFT + (SIZE[0] - LEFT - RIGHT) * step / steps;
    let y = |value: f64| TOP + (SIZE[1] - TOP - BOTTOM) * (high - value) / (high - low);

    let mut svg = format!("<svg viewBox=\"0 0 {} {}\" role=\"img\">", SIZE[0], SIZE[1]);
    for tick in ticks(low, high) {
        let (at, label) = (y(tick), if logarithmic { 10f64.powf(tick) } else { tick });
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" class=\"grid\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            SIZE[0] - RIGHT,
            LEFT - 6.0,
            at + 4.0,
            short(label)
        );
    }
    for tick in ticks(0.0, steps) {
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{tick}</text>",
            x(tick),
            SIZE[1] - 6.0
        );
    }
    let path = |points: &mut dyn Iterator<Item = (f64, f64)>| {
        points.map(|(a, b)| format!("{:.1},{:.1}", x(a), y(b))).collect::<Vec<_>>().join(" ")
    };
    if per > 1 {
        let above = columns.iter().map(|c| (c.step, c.greatest));
        let below = columns.iter().rev().map(|c| (c.step, c.least));
        let _ = write!(svg, "<polygon points=\"{}\"/>", path(&mut above.chain(below)));
    }
    let _ = write!(
        svg,
        "<polyline points=\"{}\"/>",
        path(&mut columns.iter().map(|c| (c.step, c.mean)))
    );
    if let [only] = &columns[..] {
        let _ =
            write!(svg, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2\"/>", x(only.step), y(only.mean));
    }
    svg.push_str("</svg>");
    Some(svg)
}

/// Four or so round numbers between two.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 4.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= rough);
    let step = step.unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    (first..first + 12).map(|i| i as f64 * step).take_while(|tick| *tick <= high).collect()
}

/// Three digits.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        a if !(1e-3..1e5).contains(&a) => format!("{value:.1e}"),
        a => {
            let decimals = (2 - a.log10().floor() as i32).clamp(0, 5) as usize;
            let text = format!("{value:.decimals$}");
            let text = if text.contains('.') { text.trim_end_matches('0') } else { &text };
            text.trim_end_matches('.').to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coordinates(svg: &str, tag: &str) -> Vec<(f64, f64)> {
        let start = svg.find(&format!("<{tag} points=\"")).unwrap() + tag.len() + 10;
        let text = &svg[start..][..svg[start..].find('"').unwrap()];
        let pair = |pair: &str| {
            let (x, y) = pair.split_once(',').unwrap();
            (x.parse().unwrap(), y.parse().unwrap())
        };
        text.split(' ').map(pair).collect()
    }

    #[test]
    fn a_falling_loss_falls() {
        let points: Vec<_> = (1..=1000u64).map(|i| (i, 2.0 - i as f64 / 1000.0)).collect();
        let svg = plot(&points, 2000).unwrap();
        let line = coordinates(&svg, "polyline");
        assert!(line.len() <= COLUMNS && line.len() > COLUMNS / 2);
        // Downwards is a greater y; half of the run is half of the width.
        assert!(line.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 < w[1].1), "{line:?}");
        let middle = LEFT + (SIZE[0] - LEFT - RIGHT) / 2.0;
        assert!((line.last().unwrap().0 - middle).abs() < 2.0);
        assert_eq!(coordinates(&svg, "polygon").len(), 2 * line.len());
    }

    #[test]
    fn what_cannot_be_drawn_is_left_out() {
        assert!(plot(&[], 10).is_none());
        assert!(plot(&[(1, f64::NAN)], 10).is_none());
        let one = plot(&[(1, 0.5), (2, f64::INFINITY)], 10).unwrap();
        assert!(one.contains("<circle") && !one.contains("NaN") && !one.contains("inf"), "{one}");
        for flat in [0.0, 1e-30, -3.0, 1e300] {
            let svg = plot(&[(1, flat), (2, flat)], 0).unwrap();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{flat}: {svg}");
        }
    }

    #[test]
    fn marks_are_round() {
        assert_eq!(ticks(0.0, 1000.0), [0.0, 500.0, 1000.0]);
        assert_eq!(
            ticks(-0.1, 0.3),
            [-0.1, 0.0, 0.1, 0.2, 0.30000000000000004].map(|x: f64| (x * 10.0).round() / 10.0)[..4]
        );
        assert_eq!(
            [0.0, 1e-4, 0.25, 1.0, 1234.0, 2e6].map(short),
            ["0", "1.0e-4", "0.25", "1", "1234", "2.0e6"]
        );
    }
}
