//! GeoTIFF as GDAL's programs see it (Debian's `gdal-bin`): what nadir writes they read, what they write nadir reads.
//!
//! Without them these tests do nothing, but under `NADIR_REQUIRE_TOOLS`, which `.ci/run` sets, they fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nadir::io::geotiff::{Cog, CogWriter, GeoTiff, Georeference, Resampling, SampleKind, Window};
use serde_json::Value;

/// Whether there is GDAL; says which test does without.
fn gdal(test: &str) -> bool {
    let there = Command::new("gdalinfo").arg("--version").output();
    let there = there.is_ok_and(|output| output.status.success());
    if !there {
        assert!(std::env::var_os("NADIR_REQUIRE_TOOLS").is_none(), "no gdalinfo on the path");
        println!("skipped: {test}: no gdalinfo on the path (Debian: gdal-bin)");
    }
    there
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "{program} {args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn info(path: &Path) -> Value {
    serde_json::from_str(&run("gdalinfo", &["-json", path.to_str().unwrap()])).unwrap()
}

/// The numbers of the pixel at a place.
fn at(path: &Path, x: f64, y: f64) -> Vec<f64> {
    let (x, y) = (x.to_string(), y.to_string());
    let seen = run("gdallocationinfo", &["-valonly", "-geoloc", path.to_str().unwrap(), &x, &y]);
    seen.split_whitespace().map(|number| number.parse().unwrap()).collect()
}

fn write(path: &Path, cog: Cog, pixels: &[u8]) {
    let mut writer = CogWriter::create(path, cog, true).unwrap();
    writer.write_rows(pixels).unwrap();
    writer.finish().unwrap();
}

/// 300 x 200 pixels of three smooth bands.
fn picture() -> Vec<u8> {
    let level = |y: usize, x: usize, band: usize| ((x * (band + 1) + 2 * y) / 5 % 256) as u8;
    let pixels = (0..200).flat_map(|y| (0..300).map(move |x| (y, x)));
    pixels.flat_map(|(y, x)| (0..3).map(move |band| level(y, x, band))).collect()
}

fn place() -> Georeference {
    Georeference::from_bbox([485_900.0, 5_205_000.0, 487_400.0, 5_206_000.0], 26914, 300, 200)
        .unwrap()
}

fn picture_cog() -> Cog {
    let cog = Cog::new(300, 200, 3, SampleKind::U8);
    Cog { georeference: Some(place()), tile: 64, resampling: Resampling::Average, ..cog }
}

#[test]
fn gdal_reads_what_is_written_at_its_place() {
    if !gdal("gdal_reads_what_is_written_at_its_place") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tif");
    let pixels = picture();
    for (big, compressed) in [(false, true), (true, false)] {
        write(&path, Cog { big: Some(big), compressed, ..picture_cog() }, &pixels);
        let info = info(&path);
        assert_eq!(info["size"], serde_json::json!([300, 200]));
        assert_eq!(info["metadata"]["IMAGE_STRUCTURE"]["LAYOUT"], "COG", "{info}");
        assert_eq!(
            info["geoTransform"],
            serde_json::json!([485900.0, 5.0, 0.0, 5206000.0, 0.0, -5.0])
        );
        let system = info["coordinateSystem"]["wkt"].as_str().unwrap();
        assert!(
            system.contains("NAD83 / UTM zone 14N") && system.ends_with("ID[\"EPSG\",26914]]"),
            "{system}"
        );
        for (band, color) in [(0, "Red"), (1, "Green"), (2, "Blue")] {
            let band = &info["bands"][band];
            assert_eq!(band["colorInterpretation"], color);
            assert_eq!(band["block"], serde_json::json!([64, 64]));
            let sizes: Vec<&Value> =
                band["overviews"].as_array().unwrap().iter().map(|o| &o["size"]).collect();
            assert_eq!(
                serde_json::json!(sizes),
                serde_json::json!([[150, 100], [75, 50], [38, 25]])
            );
        }
        for (x, y) in [(0, 0), (299, 199), (17, 150), (64, 63)] {
            let seen = at(&path, 485_902.5 + 5.0 * x as f64, 5_205_997.5 - 5.0 * y as f64);
            let levels = &pixels[(y * 300 + x) * 3..][..3];
            assert_eq!(seen, levels.iter().map(|l| f64::from(*l)).collect::<Vec<_>>());
        }
        // All of it, overviews included, can be decoded.
        run("gdalinfo", &["-checksum", path.to_str().unwrap()]);
    }
}

#[test]
fn gdal_reads_classes_with_colours_and_places_without_data() {
    if !gdal("gdal_reads_classes_with_colours_and_places_without_data") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tif");
    let cog = Cog {
        georeference: Some(
            Georeference::from_bbox([-99.2, 47.0, -99.0, 47.1], 4326, 20, 10).unwrap(),
        ),
        nodata: Some(255.0),
        palette: Some(vec![[200, 180, 140], [42, 111, 219]]),
        metadata: vec![("CLASS_1".to_owned(), "water & <ice>".to_owned())],
        ..Cog::new(20, 10, 1, SampleKind::U8)
    };
    let mut pixels = vec![1; 200];
    (pixels[0], pixels[199]) = (0, 255);
    write(&path, cog, &pixels);
    let info = info(&path);
    let band = &info["bands"][0];
    assert_eq!(
        (&band["noDataValue"], &band["colorInterpretation"]),
        (&255.0.into(), &"Palette".into())
    );
    assert_eq!(band["colorTable"]["entries"][1], serde_json::json!([42, 111, 219, 255]));
    assert_eq!(info["metadata"][""]["CLASS_1"], "water & <ice>");
    let system = info["coordinateSystem"]["wkt"].as_str().unwrap();
    assert!(system.starts_with("GEOGCRS[\"WGS 84\""), "{system}");
    assert_eq!((at(&path, -99.195, 47.095), at(&path, -99.005, 47.095)), (vec![0.0], vec![1.0]));
}

#[test]
fn what_gdal_writes_is_read_in_every_form() {
    if !gdal("what_gdal_writes_is_read_in_every_form") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    let (source, form) = (path("a.tif"), path("b.tif"));
    let pixels = picture();
    write(&source, picture_cog(), &pixels);
    let translate = |from: &Path, to: &Path, args: &[&str]| {
        let paths = ["-q", from.to_str().unwrap(), to.to_str().unwrap()];
        run("gdal_translate", &[&paths[..], args].concat());
    };
    let forms: [&[&str]; 9] = [
        &[],
        &["-co", "INTERLEAVE=BAND"],
        &[
            "-co",
            "INTERLEAVE=BAND",
            "-co",
            "TILED=YES",
            "-co",
            "BLOCKXSIZE=64",
            "-co",
            "BLOCKYSIZE=48",
        ],
        &["-co", "COMPRESS=LZW", "-co", "PREDICTOR=2", "-co", "BLOCKYSIZE=7"],
        &[
            "-co",
            "COMPRESS=DEFLATE",
            "-co",
            "PREDICTOR=2",
            "-co",
            "TILED=YES",
            "-co",
            "BLOCKXSIZE=128",
        ],
        &["-co", "COMPRESS=PACKBITS"],
        &["-co", "BIGTIFF=YES", "-co", "ENDIANNESS=BIG"],
        &[
            "-ot",
            "UInt16",
            "-co",
            "ENDIANNESS=BIG",
            "-co",
            "COMPRESS=DEFLATE",
            "-co",
            "PREDICTOR=2",
        ],
        &["-ot", "Float32", "-co", "COMPRESS=DEFLATE", "-co", "PREDICTOR=3", "-co", "TILED=YES"],
    ];
    let window = Window { x: 30, y: 61, width: 207, height: 9 };
    let expected = |window: Window| -> Vec<f64> {
        let rows = (window.y..window.y + window.height).map(|y| (y * 300 + window.x) * 3);
        rows.flat_map(|at| &pixels[at..at + 3 * window.width]).map(|l| f64::from(*l)).collect()
    };
    for form_args in forms {
        translate(&source, &form, form_args);
        let mut file = GeoTiff::open(&form).unwrap();
        let about = file.about().clone();
        assert_eq!((about.width, about.height, about.bands), (300, 200, 3), "{form_args:?}");
        let found = about.georeference.unwrap();
        assert_eq!((found.transform, found.epsg()), (place().transform, Some(26914)));
        assert_eq!(found.pixel_area(), Ok(25.0));
        for window in [window, Window { x: 0, y: 0, width: 300, height: 200 }] {
            let seen = about.samples.numbers(&file.read(window).unwrap());
            assert!(seen == expected(window), "{form_args:?}");
        }
        fs::remove_file(&form).unwrap();
    }
    // What is compressed with a loss is what GDAL makes of it, less how colours are rounded.
    translate(
        &source,
        &form,
        &["-co", "COMPRESS=JPEG", "-co", "PHOTOMETRIC=YCBCR", "-co", "TILED=YES"],
    );
    let whole = Window { x: 0, y: 0, width: 300, height: 200 };
    let ours = GeoTiff::open(&form).unwrap().read(whole).unwrap();
    translate(&form, &path("c.tif"), &["-co", "COMPRESS=NONE"]);
    let theirs = GeoTiff::open(path("c.tif")).unwrap().read(whole).unwrap();
    let most = ours.iter().zip(&theirs).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    let mean =
        ours.iter().zip(&theirs).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / 180_000.0;
    // Chroma of half the size is enlarged by other filters.
    assert!(most <= 16 && mean <= 1.0, "off by {most} at most, {mean} in the mean");
    fs::remove_file(&form).unwrap();

    // What is compressed in a way that is not read says so when it is opened.
    translate(&source, &form, &["-co", "COMPRESS=ZSTD"]);
    let error = GeoTiff::open(&form).err().unwrap().to_string();
    assert!(error.contains("compression ZSTD") && error.contains("COMPRESS=DEFLATE"), "{error}");
    fs::remove_file(&form).unwrap();

    // What nobody has written, and four bands that are no colours.
    let sparse =
        ["-of", "GTiff", "-ot", "Byte", "-outsize", "300", "200", "-bands", "4", "-a_nodata", "7"];
    let create = [
        &sparse[..],
        &[
            "-co",
            "SPARSE_OK=YES",
            "-co",
            "PHOTOMETRIC=RGB",
            "-co",
            "ALPHA=NO",
            form.to_str().unwrap(),
        ],
    ];
    run("gdal_create", &create.concat());
    let mut file = GeoTiff::open(&form).unwrap();
    assert_eq!((file.about().bands, file.about().alpha, file.about().nodata), (4, None, Some(7.0)));
    assert!(file.about().georeference.is_none());
    assert!(file.read(whole).unwrap().iter().all(|level| *level == 7));
}

/// The picture is not compressed: it takes as many bytes as it has pixels, its overviews a third of that.
#[test]
fn a_scene_beyond_4_gib_is_read_where_its_offsets_need_64_bits() {
    const TEST: &str = "a_scene_beyond_4_gib_is_read_where_its_offsets_need_64_bits";
    if std::env::var_os("NADIR_TEST_ALL").is_none() {
        println!("skipped: {TEST}: writes 9 GB (cargo xtask test --all)");
        return;
    }
    if !gdal(TEST) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tif");
    let (width, height) = (65_000, 50_100);
    let [west, north, metres] = [300_000.0, 5_300_000.0, 2.0];
    let bbox = [west, north - metres * height as f64, west + metres * width as f64, north];
    let georeference = Some(Georeference::from_bbox(bbox, 26914, width, height).unwrap());
    let cog = Cog { georeference, compressed: false, ..Cog::new(width, height, 1, SampleKind::U8) };
    // A row is the one above it, a pixel further on.
    let line: Vec<u8> = (0..(width + height) as u64).map(|i| (i * i / 977 % 251) as u8).collect();
    let mut writer = CogWriter::create(&path, cog, false).unwrap();
    (0..height).try_for_each(|y| writer.write_rows(&line[y..y + width])).unwrap();
    writer.finish().unwrap();

    let size = fs::metadata(&path).unwrap().len();
    assert!(size > 1 << 32, "{size}");
    let mut head = [0; 4];
    std::io::Read::read_exact(&mut fs::File::open(&path).unwrap(), &mut head).unwrap();
    assert_eq!(head, *b"II\x2b\0");
    let info = info(&path);
    assert_eq!(info["size"], serde_json::json!([width, height]));
    assert_eq!(info["metadata"]["IMAGE_STRUCTURE"]["LAYOUT"], "COG", "{info}");
    assert_eq!(info["geoTransform"], serde_json::json!([west, metres, 0.0, north, 0.0, -metres]));
    assert_eq!(info["bands"][0]["overviews"].as_array().unwrap().len(), 7);
    let mut file = GeoTiff::open(&path).unwrap();
    for (x, y) in [(0, 0), (64_999, 0), (31_007, 25_013), (0, 50_099), (64_999, 50_099)] {
        let expected = line[x + y];
        assert_eq!(file.read(Window { x, y, width: 1, height: 1 }).unwrap(), [expected]);
        let seen = at(&path, west + metres * (x as f64 + 0.5), north - metres * (y as f64 + 0.5));
        assert_eq!(seen, [f64::from(expected)], "{x}, {y}");
    }
}
