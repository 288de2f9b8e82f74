//! What is written is read again, here and by the `tiff` crate; files of others are made by that crate.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use ::tiff::encoder::{TiffEncoder, colortype};
use ::tiff::tags::Tag;

use super::*;
use crate::error::Error;

/// Bytes that look like nothing in particular.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 7_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..count).map(next).collect()
}

fn write(path: &Path, cog: &Cog, pixels: &[u8], rows_at_once: usize) {
    let mut writer = CogWriter::create(path, cog.clone(), true).unwrap();
    let row = cog.width * cog.bands * cog.samples.size();
    pixels.chunks(rows_at_once * row).for_each(|rows| writer.write_rows(rows).unwrap());
    writer.finish().unwrap();
}

fn all(about: &About) -> Window {
    Window { x: 0, y: 0, width: about.width, height: about.height }
}

/// A window cut out of pixels by hand.
fn cut(pixels: &[u8], about: &About, window: Window) -> Vec<u8> {
    let (row, pixel) = (about.width * about.pixel(), about.pixel());
    let rows = pixels.chunks_exact(row).skip(window.y).take(window.height);
    rows.flat_map(|r| &r[window.x * pixel..(window.x + window.width) * pixel]).copied().collect()
}

#[test]
fn what_is_written_is_read_again_in_any_window() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tif");
    for (width, height) in [(1, 1), (7, 33), (33, 7), (16, 16), (65, 31)] {
        for bands in [1, 2, 3, 4, 5] {
            for samples in [SampleKind::U8, SampleKind::U16, SampleKind::F32] {
                for (compressed, big) in [(true, false), (false, true)] {
                    let cog = Cog {
                        tile: 16,
                        compressed,
                        big: Some(big),
                        ..Cog::new(width, height, bands, samples)
                    };
                    let pixels = noise(width * height * bands * samples.size());
                    write(&path, &cog, &pixels, 3);
                    let mut file = GeoTiff::open(&path).unwrap();
                    let about = file.about().clone();
                    assert_eq!((about.width, about.height, about.bands), (width, height, bands));
                    assert_eq!((about.samples, &about.palette), (samples, &None));
                    assert_eq!(file.read(all(&about)).unwrap(), pixels, "{cog:?}");
                    let window = Window {
                        x: width / 2,
                        y: height / 3,
                        width: width / 2,
                        height: height / 2,
                    };
                    assert_eq!(file.read(window).unwrap(), cut(&pixels, &about, window));
                    let bytes = fs::read(&path).unwrap();
                    assert_eq!(bytes[2], if big { 43 } else { 42 });
                }
            }
        }
    }
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(names.len(), 1, "nothing is left beside it");
}

/// The places of tiles in the file, directory by directory.
fn places(path: &Path) -> Vec<(usize, Vec<u64>, Vec<u64>)> {
    let mut decoder = ::tiff::decoder::Decoder::new(fs::File::open(path).unwrap()).unwrap();
    let mut found = Vec::new();
    loop {
        let width = decoder.dimensions().unwrap().0 as usize;
        let offsets = decoder.get_tag_u64_vec(Tag::TileOffsets).unwrap();
        found.push((width, offsets, decoder.get_tag_u64_vec(Tag::TileByteCounts).unwrap()));
        if !decoder.more_images() {
            return found;
        }
        decoder.next_image().unwrap();
    }
}

#[test]
fn overviews_halve_and_lie_before_what_they_are_of() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tif");
    for big in [false, true] {
        let cog = Cog { tile: 16, big: Some(big), ..Cog::new(65, 40, 1, SampleKind::U8) };
        write(&path, &cog, &noise(65 * 40), 40);
        let places = places(&path);
        assert_eq!(places.iter().map(|p| p.0).collect::<Vec<_>>(), [65, 33, 17, 9]);
        // Read one after the other they are in the order of the file, the smallest overview first.
        let bytes = fs::read(&path).unwrap();
        let mut end = 0;
        for (_, offsets, lengths) in places.iter().rev() {
            for (offset, length) in offsets.iter().zip(lengths) {
                let (at, length) = (*offset as usize, *length as usize);
                assert!(end == 0 || at == end + 4, "{places:?}");
                end = at + length + 4;
                assert_eq!(bytes[at - 4..at], (length as u32).to_le_bytes());
                assert_eq!(bytes[at + length..end], bytes[at + length - 4..at + length]);
            }
        }
        assert_eq!(end, bytes.len());
        let head = if big { 16 } else { 8 };
        assert!(bytes[head..].starts_with(b"GDAL_STRUCTURAL_METADATA_SIZE=000140 bytes\nLAYOUT="));
    }
}

/// An overview, by the `tiff` crate.
fn overview(path: &Path, index: usize) -> Vec<u8> {
    let mut decoder = ::tiff::decoder::Decoder::new(fs::File::open(path).unwrap()).unwrap();
    decoder.seek_to_image(index).unwrap();
    match decoder.read_image().unwrap() {
        ::tiff::decoder::DecodingResult::U8(levels) => levels,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_overview_is_the_first_of_four_pixels_or_their_mean() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tif");
    let mut cog = Cog { tile: 16, ..Cog::new(17, 3, 1, SampleKind::U8) };
    let mut pixels = vec![0; 17 * 3];
    for (i, level) in [(0, 10), (1, 20), (17, 30), (18, 41), (16, 7), (33, 9), (34, 50), (50, 60)] {
        pixels[i] = level;
    }
    write(&path, &cog, &pixels, 1);
    let seen = overview(&path, 1);
    assert_eq!(seen.len(), 9 * 2);
    assert_eq!([seen[0], seen[8], seen[9], seen[17]], [10, 7, 50, 60]);
    cog.resampling = Resampling::Average;
    write(&path, &cog, &pixels, 1);
    let seen = overview(&path, 1);
    // (10 + 20 + 30 + 41) / 4; (7 + 9) / 2 at the right; (50 + 0) / 2 below; 60 in the corner.
    assert_eq!([seen[0], seen[8], seen[9], seen[17]], [25, 8, 25, 60]);
    cog.nodata = Some(0.0);
    write(&path, &cog, &pixels, 1);
    let seen = overview(&path, 1);
    assert_eq!([seen[0], seen[1], seen[8], seen[9], seen[17]], [25, 0, 8, 50, 60]);
}

#[test]
fn place_nodata_and_colours_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tif");
    let place = Georeference::from_bbox([1000.0, 2000.0, 1160.0, 2100.0], 32614, 32, 20).unwrap();
    let cog = Cog {
        georeference: Some(place.clone()),
        nodata: Some(255.0),
        palette: Some(vec![[1, 2, 3], [255, 0, 9]]),
        metadata: vec![("CLASS_0".to_owned(), "a < b".to_owned())],
        ..Cog::new(32, 20, 1, SampleKind::U8)
    };
    write(&path, &cog, &[1; 640], 20);
    let file = GeoTiff::open(&path).unwrap();
    let about = file.about();
    assert_eq!(about.georeference.as_ref(), Some(&place));
    assert_eq!((about.nodata, about.alpha), (Some(255.0), None));
    let palette = about.palette.as_ref().unwrap();
    assert_eq!(
        (palette.len(), palette[0], palette[1], palette[2]),
        (256, [1, 2, 3], [255, 0, 9], [0; 3])
    );
    assert_eq!(place.epsg(), Some(32614));
    assert_eq!(place.transform, Some([1000.0, 5.0, 0.0, 2100.0, 0.0, -5.0]));
    assert_eq!(place.bbox(32, 20), Some([1000.0, 2000.0, 1160.0, 2100.0]));
    assert_eq!(place.pixel_area(), Ok(25.0));
    // Of windows of 8 pixels, from the third column on.
    let part = place.part(2.0, 1.0, 8.0);
    assert_eq!(part.transform, Some([1010.0, 40.0, 0.0, 2095.0, 0.0, -40.0]));
    assert_eq!(part.epsg(), Some(32614));
}

#[test]
fn places_are_of_corners_whatever_the_file_has() {
    let keys = |raster, model, key, code, units: Option<u16>| {
        let mut keys = vec![1, 1, 0, 3, 1024, 0, 1, model, 1025, 0, 1, raster, key, 0, 1, code];
        keys.extend(units.into_iter().flat_map(|unit| [3076, 0, 1, unit]));
        keys
    };
    let read = |matrix: Option<Vec<f64>>, keys| {
        let (scale, tie) = (vec![2.0, 3.0, 0.0], vec![1.0, 1.0, 0.0, 100.0, 200.0, 0.0]);
        let (scale, tie) = if matrix.is_some() { (None, None) } else { (Some(scale), Some(tie)) };
        Georeference::read(scale, tie, matrix, Some(keys), None, None).unwrap()
    };
    // The tie point is the corner of pixel (1, 1), or its centre.
    let area = read(None, keys(1, 1, 3072, 32614, Some(9001)));
    assert_eq!(area.transform, Some([98.0, 2.0, 0.0, 203.0, 0.0, -3.0]));
    let point = read(None, keys(2, 1, 3072, 32614, Some(9001)));
    assert_eq!(point.transform, Some([97.0, 2.0, 0.0, 204.5, 0.0, -3.0]));
    let entries = |place: &Georeference| -> Vec<u16> {
        place.entries().into_iter().map(|(tag, _)| tag).collect()
    };
    assert_eq!(entries(&point), [33550, 33922, 34735]);
    assert_eq!(
        point.entries()[1].1,
        directory::Value::Double(vec![0.0, 0.0, 0.0, 98.0, 203.0, 0.0])
    );
    #[rustfmt::skip]
    let matrix = vec![
        2.0, 1.0, 0.0, 100.0,
        1.0, -2.0, 0.0, 200.0,
        0.0, 0.0, 0.0, 0.0,
        0.0, 0.0, 0.0, 1.0,
    ];
    let turned = read(Some(matrix), keys(1, 1, 3072, 2263, Some(9003)));
    assert_eq!(turned.transform, Some([100.0, 2.0, 1.0, 200.0, 1.0, -2.0]));
    assert_eq!(entries(&turned), [34264, 34735]);
    let foot = 1200.0 / 3937.0;
    assert!((turned.pixel_area().unwrap() - 5.0 * foot * foot).abs() < 1e-12);
    assert_eq!(turned.bbox(10, 10), Some([100.0, 180.0, 130.0, 210.0]));
    let feet = read(None, keys(1, 1, 3072, 2263, Some(9002)));
    assert!((feet.pixel_area().unwrap() - 6.0 * 0.3048 * 0.3048).abs() < 1e-12);
    // Degrees, Web Mercator, and units that nobody tells have no areas.
    let none = |place: Georeference| place.pixel_area().unwrap_err();
    assert!(none(read(None, keys(1, 2, 2048, 4326, None))).contains("degrees"));
    assert!(none(read(None, keys(1, 1, 3072, 3857, Some(9001)))).contains("3857"));
    assert!(none(read(None, keys(1, 1, 3072, 2263, None))).contains("units"));
    assert_eq!(read(None, keys(1, 1, 3072, 32767, Some(9001))).epsg(), None);
    let nothing = Georeference::read(None, None, None, None, None, None);
    assert_eq!(nothing, None);
}

#[test]
fn boxes_that_are_none_are_refused() {
    let refused = |bbox, epsg| Georeference::from_bbox(bbox, epsg, 4, 4).unwrap_err().to_string();
    assert!(refused([2.0, 0.0, 1.0, 1.0], 32614).contains("west < east"));
    assert!(refused([0.0, f64::NAN, 1.0, 1.0], 32614).contains("south < north"));
    assert!(refused([0.0, 0.0, 1.0, 1.0], 40000).contains("epsg"));
    // Latitude first, by mistake.
    assert!(refused([47.0, -99.2, 47.1, -99.1], 4326).contains("longitude before latitude"));
    let place = Georeference::from_bbox([-99.2, 47.0, -99.1, 47.1], 4326, 4, 4).unwrap();
    assert_eq!((place.epsg(), place.pixel_area().is_err()), (Some(4326), true));
}

/// A file of another program: strips, as the `tiff` crate writes them, and entries beside.
fn stripped<C: colortype::ColorType>(
    size: (u32, u32),
    levels: &[C::Inner],
    more: impl Fn(
        &mut ::tiff::encoder::DirectoryEncoder<
            '_,
            &mut Cursor<Vec<u8>>,
            ::tiff::encoder::TiffKindStandard,
        >,
    ),
) -> Vec<u8>
where
    [C::Inner]: ::tiff::encoder::TiffValue,
{
    let mut bytes = Cursor::new(Vec::new());
    let mut encoder = TiffEncoder::new(&mut bytes).unwrap();
    let mut image = encoder.new_image::<C>(size.0, size.1).unwrap();
    image.rows_per_strip(3).unwrap();
    more(image.encoder());
    image.write_data(levels).unwrap();
    bytes.into_inner()
}

#[test]
fn strips_of_others_are_read_with_all_their_bands() {
    let levels = noise(7 * 10 * 4);
    let bytes = stripped::<colortype::RGBA8>((7, 10), &levels, |d| {
        // The fourth band is one more band, not opacity.
        d.write_tag(Tag::ExtraSamples, &[0_u16][..]).unwrap();
    });
    let mut file = GeoTiff::new(Cursor::new(bytes), Path::new("x.tif")).unwrap();
    let about = file.about().clone();
    assert_eq!((about.bands, about.alpha), (4, None));
    assert_eq!(file.read(all(&about)).unwrap(), levels);
    let bytes = stripped::<colortype::RGBA8>((7, 10), &levels, |d| {
        d.write_tag(Tag::ExtraSamples, &[2_u16][..]).unwrap();
        d.write_tag(Tag::Unknown(42113), "0").unwrap();
    });
    let mut file = GeoTiff::new(Cursor::new(bytes.clone()), Path::new("x.tif")).unwrap();
    assert_eq!((file.about().alpha, file.about().nodata), (Some(3), Some(0.0)));
    let window = Window { x: 2, y: 2, width: 3, height: 5 };
    assert_eq!(file.read(window).unwrap(), cut(&levels, &about, window));
    // Of two bands beside colours the first is opacity.
    let more = stripped::<colortype::RGBA8>((7, 10), &levels, |d| {
        d.write_tag(Tag::ExtraSamples, &[2_u16, 0][..]).unwrap();
    });
    assert_eq!(GeoTiff::new(Cursor::new(more), Path::new("x.tif")).unwrap().about().alpha, Some(2));
    let outside = file.read(Window { x: 5, y: 0, width: 3, height: 1 }).unwrap_err();
    assert!(matches!(outside, Error::Argument { .. }), "{outside}");

    // A file that is cut off says so before it is read.
    let cut_off = &bytes[..bytes.len() - 1];
    let error = GeoTiff::new(Cursor::new(cut_off), Path::new("x.tif")).err();
    // Directories may stand at the end; then it is they that are missing.
    assert!(error.is_some_and(|e| e.to_string().starts_with("x.tif: picture: expected")));
    let error = GeoTiff::new(Cursor::new(b"II*\0"), Path::new("x.tif")).err().unwrap();
    assert!(error.to_string().contains("gdal_translate"), "{error}");
}

#[test]
fn what_is_white_at_zero_is_turned_over() {
    let levels = noise(7 * 10);
    let bytes = stripped::<colortype::Gray8>((7, 10), &levels, |d| {
        d.write_tag(Tag::PhotometricInterpretation, 0_u16).unwrap();
    });
    let mut file = GeoTiff::new(Cursor::new(bytes), Path::new("x.tif")).unwrap();
    let about = file.about().clone();
    let turned: Vec<u8> = levels.iter().map(|level| 255 - level).collect();
    assert_eq!(file.read(all(&about)).unwrap(), turned);
}

#[test]
fn opacity_is_written_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tif");
    let cog = Cog { alpha: true, ..Cog::new(5, 3, 4, SampleKind::U8) };
    write(&path, &cog, &noise(60), 3);
    assert_eq!(GeoTiff::open(&path).unwrap().about().alpha, Some(3));
}

#[test]
fn a_file_whose_pixels_are_cut_off_says_where_they_would_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tif");
    let cog = Cog { tile: 16, ..Cog::new(33, 40, 3, SampleKind::U8) };
    write(&path, &cog, &noise(33 * 40 * 3), 7);
    let mut bytes = fs::read(&path).unwrap();
    bytes.truncate(bytes.len() - 5);
    let error = GeoTiff::new(Cursor::new(bytes), Path::new("x.tif")).err().unwrap().to_string();
    assert!(error.contains("cut off"), "{error}");
}

#[test]
fn what_is_no_file_is_refused_and_what_fails_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tif");
    let refused = |cog: Cog| CogWriter::create(&path, cog, true).err().unwrap().to_string();
    let cog = || Cog::new(4, 4, 1, SampleKind::U8);
    assert!(refused(Cog::new(0, 4, 1, SampleKind::U8)).contains("0x4"));
    assert!(refused(Cog { tile: 100, ..cog() }).contains("multiple of 16"));
    let palette = Some(vec![[0; 3]; 2]);
    assert!(refused(Cog { palette, bands: 3, ..cog() }).contains("colours"));
    let mut writer = CogWriter::create(&path, cog(), true).unwrap();
    assert!(writer.write_rows(&[0; 5]).unwrap_err().to_string().contains("whole rows"));
    writer.write_rows(&[0; 4]).unwrap();
    assert!(writer.finish().unwrap_err().to_string().contains("1 rows"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
