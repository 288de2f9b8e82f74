//! Pictures that are drawn as GeoTIFFs, and from them.

use std::process::Command;

use nadir::io::geotiff::{Cog, CogWriter, GeoTiff, SampleKind, picture};
use serde_json::Value;

use crate::scenes::gdal;
use crate::{Desk, read, text};

const PLACE: [&str; 2] = ["--bbox=485900,5205627,486540,5206267", "--epsg=26914"];

#[test]
fn a_picture_lies_where_it_is_said_to() {
    let desk = Desk::new();
    let common = ["generate", "a river \u{2014} <wide> & \"deep\"", "-s5", "--steps=2"];
    desk.files(&[&common[..], &["-o", "plain.png"]].concat());
    desk.files(&[&common[..], &PLACE, &["-o", "lies.tif"]].concat());
    // 1. the same pixels, at the place
    assert!(read(&desk.path("lies.tif")) == read(&desk.path("plain.png")));
    let file = GeoTiff::open(desk.path("lies.tif")).unwrap();
    let place = file.about().georeference.clone().unwrap();
    assert_eq!(
        (place.epsg(), place.transform),
        (Some(26914), Some([485900.0, 10.0, 0.0, 5206267.0, 0.0, -10.0]))
    );
    if gdal("a_picture_lies_where_it_is_said_to") {
        let info = Command::new("gdalinfo").arg("-json").arg(desk.path("lies.tif")).output();
        let info: Value = serde_json::from_slice(&info.unwrap().stdout).unwrap();
        let corner = |name: &str| info["cornerCoordinates"][name].clone();
        assert_eq!(corner("upperLeft"), serde_json::json!([485900.0, 5206267.0]));
        assert_eq!(corner("lowerRight"), serde_json::json!([486540.0, 5205627.0]));
        assert_eq!(info["metadata"]["IMAGE_STRUCTURE"]["LAYOUT"], "COG");
        let told: Value =
            serde_json::from_str(info["metadata"][""]["nadir"].as_str().unwrap()).unwrap();
        assert_eq!(told["prompt"], common[1]);
    }
    // 2. it says how it was made
    assert!(picture::text(&desk.path("lies.tif"), "parameters").unwrap().contains("Seed: 5"));
    desk.files(&["replay", "lies.tif", "-o", "again.tif"]);
    let bytes = |name: &str| std::fs::read(desk.path(name)).unwrap();
    assert!(bytes("again.tif") == bytes("lies.tif"));
    // 3. what starts from it lies there, at its own size
    let from = ["--init-image=lies.tif", "--strength=0.5", "-W32", "-H16"];
    desk.files(&[&common[..], &from, &["-o", "from.tif"]].concat());
    let file = GeoTiff::open(desk.path("from.tif")).unwrap();
    let place = file.about().georeference.clone().unwrap();
    assert_eq!(place.transform, Some([485900.0, 20.0, 0.0, 5206267.0, 0.0, -40.0]));
    // 4. of several each does, and their grid does not
    let several = ["--init-image=lies.tif", "-b2", "--grid", "-o", "several.tif"];
    let files = desk.files(&[&common[..], &several].concat());
    let lies = |file| GeoTiff::open(file).unwrap().about().georeference.is_some();
    assert_eq!(files.iter().map(lies).collect::<Vec<_>>(), [true, true, false]);
    assert!(files.iter().all(|file| file.extension().is_some_and(|ending| ending == "tif")));
    // 5. what starts from a picture without a place has none, and that is told
    let output = desk.run(&[&common[..], &["--init-image=plain.png", "-o", "no.tif"]].concat());
    assert!(text(&output.stderr).contains("plain.png does not say where it lies"));
    assert!(!lies(&desk.path("no.tif")));
}

#[test]
fn a_place_that_cannot_be_is_told() {
    let desk = Desk::new();
    let tif = ["-o", "x.tif"];
    for (args, words) in [
        (vec![PLACE[0], PLACE[1], "-o", "x.png"], ".tif"),
        (vec![PLACE[0], PLACE[1], "-b2", tif[0], tif[1]], "--num-images"),
        (vec![PLACE[0], tif[0], tif[1]], "--epsg"),
        (vec![PLACE[1], tif[0], tif[1]], "--bbox"),
        (vec![PLACE[0], "--epsg=7", tif[0], tif[1]], "--epsg"),
        (vec!["--bbox=1,2,3", "--epsg=4326", tif[0], tif[1]], "--bbox"),
        (vec!["--bbox=3,2,1,4", "--epsg=4326", tif[0], tif[1]], "--bbox"),
        (vec!["--bbox=1,80,2,91", "--epsg=4326", tif[0], tif[1]], "--bbox"),
        (vec!["--bbox=1,80,2,NaN", "--epsg=4326", tif[0], tif[1]], "--bbox"),
        (vec!["-o", "x.jpg"], ".png or .tif"),
    ] {
        let output = desk.run(&[&["generate", "a", "--steps=1"][..], &args].concat());
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {told}");
        assert!(told.contains(words), "{args:?}: {told}");
        assert!(!desk.path("x.tif").exists() && !desk.path("x.png").exists());
    }
    // What is no picture as it is, is not drawn from.
    let scene = |name: &str, bands: usize, samples: SampleKind, nodata: Option<f64>| {
        let cog = Cog { tile: 16, nodata, ..Cog::new(8, 8, bands, samples) };
        let mut writer = CogWriter::create(&desk.path(name), cog, true).unwrap();
        writer.write_rows(&vec![7; 8 * 8 * bands * samples.size()]).unwrap();
        writer.finish().unwrap();
    };
    scene("reflectance.tif", 3, SampleKind::U16, None);
    scene("bands.tif", 4, SampleKind::U8, None);
    scene("holes.tif", 3, SampleKind::U8, Some(0.0));
    scene("grey.tif", 1, SampleKind::U8, None);
    desk.files(&["generate", "a", "--steps=2", "--init-image=grey.tif", "-o", "grey.png"]);
    for (name, words) in [
        ("reflectance.tif", "3 bands of UInt16"),
        ("bands.tif", "4 bands"),
        ("holes.tif", "where 0 is no data"),
    ] {
        for flag in ["--mask-image", "--ip-image"] {
            let (given, grey) = (format!("{flag}={name}"), "--init-image=grey.tif");
            let args = ["generate", "a", "--steps=2", "-o", "x.png", &given];
            let more = match flag {
                "--mask-image" => vec![grey],
                _ => vec!["--ip-adapter=none.safetensors"],
            };
            let output = desk.run(&[&args[..], &more].concat());
            let told = text(&output.stderr);
            assert!(!output.status.success() && told.contains(words), "{given}: {told}");
            assert!(told.contains("gdal_translate") && !desk.path("x.png").exists(), "{told}");
        }
        // Whatever looks at pictures refuses it.
        let output = desk.run(&["classify", name]);
        let told = text(&output.stderr);
        assert!(!output.status.success() && told.contains(words), "{name}: {told}");
    }
    // Drawn from it is by a scale that is said, and by a model of as many bands; what has no data then has none.
    for (name, words) in [("reflectance.tif", "--scale LOW,HIGH"), ("bands.tif", "3 bands, which")]
    {
        let from = format!("--init-image={name}");
        let output = desk.run(&["generate", "a", "--steps=2", "-o", "x.png", &from]);
        let told = text(&output.stderr);
        assert!(!output.status.success() && told.contains(words), "{name}: {told}");
        assert!(told.contains(name) || told.contains("--init-image"), "{told}");
        assert!(!desk.path("x.png").exists());
    }
    let from = ["--init-image=reflectance.tif", "--scale=0,3000", "--strength=0.5"];
    desk.files(&[&["generate", "a", "--steps=2", "-o", "deep.tif"], &from[..]].concat());
    let about = GeoTiff::open(desk.path("deep.tif")).unwrap().about().clone();
    assert_eq!((about.samples, about.bands, about.width), (SampleKind::U16, 3, 8));
    let from = ["--init-image=holes.tif", "--strength=0.5"];
    desk.files(&[&["generate", "a", "--steps=2", "-o", "holes-again.tif"], &from[..]].concat());
    let about = GeoTiff::open(desk.path("holes-again.tif")).unwrap().about().clone();
    assert_eq!((about.samples, about.nodata), (SampleKind::U8, Some(0.0)));
    std::fs::write(desk.path("x.tif"), b"II*\0").unwrap();
    let output = desk.run(&["replay", "x.tif", "-o", "y.tif"]);
    assert!(!output.status.success() && text(&output.stderr).contains("x.tif"));
}
