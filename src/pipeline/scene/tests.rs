//! Windows put together, of things that are simpler than networks.

use std::path::Path;

use super::*;
use crate::io::geotiff::{Cog, CogWriter, SampleKind};

/// What came of a scene.
#[derive(Default)]
struct Seen {
    windows: usize,
    steps: usize,
    classes: Vec<u8>,
    pixels: Vec<u8>,
    stop_at: Option<usize>,
}

impl Watcher for Seen {
    fn start(&mut self, windows: usize) {
        self.windows = windows;
    }

    fn step(&mut self, windows: usize) -> Result<()> {
        self.steps += windows;
        match self.stop_at {
            Some(stop) if self.steps >= stop => Err(Error::Interrupted),
            _ => Ok(()),
        }
    }

    fn rows(&mut self, rows: Rows) -> Result<()> {
        assert!(rows.y == 0 || !self.classes.is_empty());
        self.classes.extend_from_slice(rows.classes);
        self.pixels.extend_from_slice(rows.pixels);
        Ok(())
    }
}

/// A scene of one band of 8 bits.
fn scene(path: &Path, width: usize, height: usize, level: impl Fn(usize, usize) -> u8) -> Vec<u8> {
    let cog = Cog { tile: 16, nodata: Some(0.0), ..Cog::new(width, height, 1, SampleKind::U8) };
    let pixels: Vec<u8> = (0..height)
        .flat_map(|y| (0..width).map(move |x| (y, x)))
        .map(|(y, x)| level(y, x))
        .collect();
    let mut writer = CogWriter::create(path, cog, true).unwrap();
    writer.write_rows(&pixels).unwrap();
    writer.finish().unwrap();
    pixels
}

/// Two classes, by whether a pixel's level is above a half.
fn threshold(images: Vec<f32>, _: [usize; 4]) -> Result<Vec<f32>> {
    Ok(images.into_iter().flat_map(|level| [1.0 - level, level]).collect())
}

fn run(
    path: &Path,
    windows: Windows,
    see: &mut dyn FnMut(Vec<f32>, [usize; 4]) -> Result<Vec<f32>>,
) -> Seen {
    let mut source = Source::open(path, 1, None).unwrap();
    let mut seen = Seen::default();
    blend(&mut source, &[(0.0, 1.0)], (&windows, 4, 2), see, &mut seen).unwrap();
    assert_eq!(seen.windows, seen.steps);
    seen
}

#[test]
fn what_looks_at_pixels_alone_sees_the_same_through_any_windows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tif");
    for (width, height) in [(1, 1), (7, 33), (40, 3), (65, 50)] {
        let pixels = scene(&path, width, height, |y, x| ((x * 37 + y * 101) % 256) as u8);
        let class = |level: &u8| match *level {
            0 => NODATA,
            level => u8::from(f32::from(level) / 255.0 > 1.0 - f32::from(level) / 255.0),
        };
        let expected: Vec<u8> = pixels.iter().map(class).collect();
        for (size, overlap) in [(8, 0), (8, 3), (12, 6), (64, 16)] {
            for batch in [1, 3] {
                let seen = run(&path, Windows { size, overlap, batch }, &mut threshold);
                assert!(seen.classes == expected, "{width}x{height}, {size} {overlap} {batch}");
                assert_eq!(seen.pixels, pixels);
            }
        }
    }
}

#[test]
fn a_constant_stays_one_and_company_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tif");
    scene(&path, 61, 45, |y, x| (1 + (x * 7 + y * 13) % 255) as u8);
    // Class 1 by a hair everywhere: sums of weights that were not 1 would not matter, those of one class alone would.
    let mut constant = |images: Vec<f32>, _| Ok([0.499_999, 0.500_001].repeat(images.len()));
    let seen = run(&path, Windows { size: 16, overlap: 7, batch: 2 }, &mut constant);
    assert!(seen.classes.iter().all(|class| *class == 1));
    // A window that knows where in it a pixel lies: what comes out shows how windows are put together.
    let mut lopsided = |images: Vec<f32>, [b, h, w, _]: [usize; 4]| {
        let place = |i: usize| ((i % w) * 3 + (i / w % h) * 5) as f32 / (8 * (h + w)) as f32;
        assert_eq!(images.len(), b * h * w);
        let p = images.iter().enumerate().map(|(i, level)| (place(i) + level) / 2.0);
        Ok(p.flat_map(|p| [1.0 - p, p]).collect())
    };
    let alone = run(&path, Windows { size: 16, overlap: 7, batch: 1 }, &mut lopsided);
    for batch in [2, 5, 100] {
        let seen = run(&path, Windows { size: 16, overlap: 7, batch }, &mut lopsided);
        assert!(seen.classes == alone.classes, "{batch}");
    }
}

#[test]
fn what_looks_around_sees_the_same_where_windows_reach() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tif");
    let (width, height) = (90, 70);
    let level = |y: usize, x: usize| (1 + (x * x + 3 * y * x + 7 * y) % 255) as u8;
    let pixels = scene(&path, width, height, level);
    // The mean of 3x3 pixels, nothing being beyond a window.
    let mut blur = |images: Vec<f32>, [_, h, w, _]: [usize; 4]| {
        let mean = |i: usize| {
            let (image, y, x) = (i / (h * w), i / w % h, i % w);
            let rows = y.saturating_sub(1)..(y + 2).min(h);
            let near =
                rows.flat_map(|y| (x.saturating_sub(1)..(x + 2).min(w)).map(move |x| (y, x)));
            near.map(|(y, x)| images[(image * h + y) * w + x]).sum::<f32>() / 9.0
        };
        Ok((0..images.len()).map(mean).flat_map(|p| [1.0 - p, p]).collect())
    };
    // In one window, then in many.
    let whole = run(&path, Windows { size: 92, overlap: 0, batch: 1 }, &mut blur);
    let parts = run(&path, Windows { size: 32, overlap: 16, batch: 4 }, &mut blur);
    // Only a window's outermost pixels miss anything, at most 5/9 of it, and there it counts no more than
    // sin(pi / 2 * 0.5 / 16)^2 = 0.0024 in either direction: 0.0027. The scene's own ends are reflected in one case only.
    for y in 1..height - 1 {
        for x in 1..width - 1 {
            let at = y * width + x;
            if whole.classes[at] == parts.classes[at] {
                continue;
            }
            let near = (0..9).map(|i| f32::from(pixels[(y + i / 3 - 1) * width + x + i % 3 - 1]));
            let mean = near.sum::<f32>() / 9.0 / 255.0;
            assert!((mean - 0.5).abs() <= 0.003, "{y} {x}: {mean}");
        }
    }
}

#[test]
fn windows_without_data_are_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tif");
    scene(&path, 64, 64, |y, x| if y < 30 && x < 30 { 200 } else { 0 });
    let mut windows = 0;
    let mut see = |images: Vec<f32>, shape: [usize; 4]| {
        windows += shape[0];
        threshold(images, shape)
    };
    let seen = run(&path, Windows { size: 16, overlap: 4, batch: 3 }, &mut see);
    // Starts at -2, 10 and 22 reach the data.
    assert_eq!((windows, seen.windows), (9, 36));
    let data = seen.classes.iter().filter(|class| **class == 1).count();
    let none = seen.classes.iter().filter(|class| **class == NODATA).count();
    assert_eq!((data, none), (900, 64 * 64 - 900));
}

#[test]
fn bands_of_16_bits_are_seen_in_the_order_of_their_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tif");
    let (width, height) = (21, 19);
    let level = |i: usize, band: usize| ((i * (7001 + 50 * band)) % 65536) as u16;
    let pixels = (0..width * height).flat_map(|i| (0..4).map(move |band| level(i, band)));
    let cog = Cog { tile: 16, ..Cog::new(width, height, 4, SampleKind::U16) };
    let mut writer = CogWriter::create(&path, cog, true).unwrap();
    writer.write_rows(&pixels.flat_map(u16::to_ne_bytes).collect::<Vec<u8>>()).unwrap();
    writer.finish().unwrap();
    let mut source = Source::open(&path, 2, Some(&[4, 1])).unwrap();
    let mut seen = Seen::default();
    // Class 1 where the first of the two is the larger, normalised by twice the same.
    let mut see = |images: Vec<f32>, shape: [usize; 4]| {
        assert_eq!(shape[3], 2);
        let pairs = images.as_chunks::<2>().0.iter();
        Ok(pairs.flat_map(|[a, b]| if a > b { [0.0, 1.0] } else { [1.0, 0.0] }).collect())
    };
    let windows = Windows { size: 16, overlap: 4, batch: 2 };
    blend(&mut source, &[(0.5, 2.0); 2], (&windows, 4, 2), &mut see, &mut seen).unwrap();
    let expected = (0..width * height).map(|i| u8::from(level(i, 3) > level(i, 0)));
    assert!(seen.classes == expected.collect::<Vec<_>>());
}

#[test]
fn who_watches_can_stop_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tif");
    scene(&path, 64, 64, |_, _| 9);
    let mut source = Source::open(&path, 1, None).unwrap();
    let mut seen = Seen { stop_at: Some(5), ..Seen::default() };
    let windows = Windows { size: 16, overlap: 4, batch: 1 };
    let stopped = blend(&mut source, &[(0.0, 1.0)], (&windows, 4, 2), &mut threshold, &mut seen);
    assert!(matches!(stopped, Err(Error::Interrupted)));
    assert_eq!(seen.steps, 5);
}

#[test]
fn bands_are_chosen_or_have_to_fit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tif");
    let write = |bands, samples, alpha| {
        let cog = Cog { alpha, ..Cog::new(2, 2, bands, samples) };
        let mut writer = CogWriter::create(&path, cog, true).unwrap();
        writer.write_rows(&vec![1; 4 * bands * samples.size()]).unwrap();
        writer.finish().unwrap();
    };
    let error = |bands, chosen: Option<&[usize]>| {
        Source::open(&path, bands, chosen).err().map(|e| e.to_string())
    };
    write(5, SampleKind::U16, false);
    assert!(error(3, None).unwrap().contains("expected 3, as the model sees, found 5"));
    assert_eq!(error(3, Some(&[5, 1, 3])), None);
    assert!(error(3, Some(&[1, 2])).unwrap().contains("bands: 1,2 is not possible"));
    assert!(error(3, Some(&[0, 1, 2])).unwrap().contains("from 1 to 5"));
    write(4, SampleKind::U8, true);
    assert_eq!(error(3, None), None);
    assert_eq!(error(4, Some(&[1, 2, 3, 4])), None);
    write(3, SampleKind::F32, false);
    assert!(error(3, None).unwrap().contains("numbers: expected unsigned"));
}

#[test]
fn a_pixel_without_data_has_none_in_any_band_or_is_seen_through() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tif");
    let open = |alpha, levels: [u16; 12]| {
        let cog = Cog { alpha, nodata: Some(0.0), ..Cog::new(3, 1, 4, SampleKind::U16) };
        let mut writer = CogWriter::create(&path, cog, true).unwrap();
        writer
            .write_rows(&levels.iter().flat_map(|l| l.to_ne_bytes()).collect::<Vec<_>>())
            .unwrap();
        writer.finish().unwrap();
        let bands = if alpha { 3 } else { 4 };
        let mut source = Source::open(&path, bands, None).unwrap();
        let row = source.rows(0, 1).unwrap();
        let pixels: Vec<&[u8]> = row.chunks_exact(8).collect();
        let data: Vec<bool> = pixels.iter().map(|pixel| source.is_data(pixel)).collect();
        (data, pixels.iter().map(|pixel| source.levels(pixel).collect()).collect::<Vec<Vec<f32>>>())
    };
    let levels = [0, 13107, 0, 65535, 0, 0, 0, 0, 9, 9, 9, 0];
    let (data, seen) = open(false, levels);
    assert_eq!((data, &seen[0]), (vec![true, false, true], &vec![0.0, 0.2, 0.0, 1.0]));
    let (data, seen) = open(true, levels);
    assert_eq!((data, &seen[0]), (vec![true, false, false], &vec![0.0, 0.2, 0.0]));
}

#[test]
fn of_equals_the_first_class_is_taken() {
    assert_eq!(likeliest(&[0.2, 0.4, 0.4]), 1);
    assert_eq!(likeliest(&[0.5, 0.5]), 0);
}

#[test]
fn a_scenes_own_light_is_that_of_all_its_rows_with_data() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tif");
    let height = 2 * ROWS + 6;
    // Of a row's four pixels one has no data; what is behind the first rows is brighter.
    scene(&path, 4, height, |y, x| [0, 51, 102, 153][x] + if x > 0 && y >= ROWS { 51 } else { 0 });
    let mut source = Source::open(&path, 1, None).unwrap();
    let found = normals(&mut source, &mut Seen::default()).unwrap();
    let levels = (0..height).flat_map(|y| (1..4).map(move |x| (y, x)));
    let levels = levels.map(|(y, x)| (x + usize::from(y >= ROWS)) as f64 * 0.2);
    let levels: Vec<f64> = levels.collect();
    let n = levels.len() as f64;
    let mean = levels.iter().sum::<f64>() / n;
    let deviation = (levels.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
    let [(m, d)] = found[..] else { panic!("{found:?}") };
    let off = (f64::from(m) - mean).abs().max((f64::from(d) - deviation).abs());
    assert!(off < 1e-6, "{m} {d}, not {mean} {deviation}");
}

#[test]
fn colours_suit_names_and_are_told_apart() {
    let names = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
    let classes = names(&["land", "Sea or lake", "river", "0"]);
    let given = [("land".to_owned(), "#010aff".parse().unwrap())];
    let palette = Palette::new(&classes, &given).unwrap();
    assert_eq!(palette.colors()[..2], [[1, 10, 255], [43, 108, 196]]);
    // The second of one colour gets another.
    assert_eq!(palette.colors()[2..], [[68, 119, 170], [238, 102, 119]]);
    let unknown = [("ice".to_owned(), Color([0; 3]))];
    assert!(Palette::new(&classes, &unknown).unwrap_err().to_string().contains("Sea or lake"));
    for wrong in ["red", "#12345", "#1234567", "123456", "#12345g", "#é2345"] {
        assert!(wrong.parse::<Color>().is_err(), "{wrong}");
    }
    let drawn = legend(&palette, &[("a<b".to_owned(), "3 %".to_owned())]);
    assert!(drawn.contains("a&lt;b") && drawn.contains("#010aff") && drawn.ends_with("</svg>\n"));
}
