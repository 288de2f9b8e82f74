//! `nadir data inspect`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Desk, read, text};

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/blue-marble.parquet")
}

#[test]
fn a_data_set_is_described_and_shown() {
    let desk = Desk::new();
    let set = shipped();
    let output = desk.run(&["data", "inspect", set.to_str().unwrap(), "--sheet", "sheet.png"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report = text(&output.stdout);
    for part in [
        "200 rows that can be used",
        "200 of 128x128 pixels",
        "8 classes",
        "shallow_sea",
        "1000 captions",
        "no rows that cannot be used",
    ] {
        assert!(report.contains(part), "{part}: {report}");
    }
    // Eight rows of ten pictures of 96 pixels, 4 apart.
    let sheet = read(&desk.path("sheet.png"));
    assert_eq!(sheet.dimensions(), (1004, 804));
    // The gaps are white, and each place has a picture.
    assert_eq!(sheet.get_pixel(101, 50).0, [255; 3]);
    for (x, y) in [(50, 50), (950, 50), (50, 750), (950, 750)] {
        let place = image::imageops::crop_imm(&sheet, x - 20, y - 20, 40, 40).to_image();
        assert!(place.pixels().any(|p| p.0 != [255; 3]), "nothing at {x}, {y}");
    }

    let output = desk.run(&["data", "inspect", set.to_str().unwrap(), "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["rows"], 200);
    assert_eq!(report["classes"].as_array().unwrap().len(), 8);
    let sum: u64 =
        report["classes"].as_array().unwrap().iter().map(|c| c[1].as_u64().unwrap()).sum();
    assert_eq!((sum, &report["faults"]), (200, &serde_json::json!([])));
}

/// What is wrong is an error that names it, and exit code 2.
#[test]
fn data_sets_that_cannot_be_used() {
    let desk = Desk::new();
    let refused = |args: &[&str], parts: &[&str]| {
        let output = desk.run(&[&["data", "inspect"], args].concat());
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
        assert!(parts.iter().all(|part| error.contains(part)), "{args:?}: {error}");
    };
    refused(&["missing.parquet"], &["missing.parquet", "No such file"]);
    let whole = fs::read(shipped()).unwrap();
    fs::write(desk.path("cut.parquet"), &whole[..whole.len() - 100]).unwrap();
    refused(&["cut.parquet"], &["cut.parquet", "expected a parquet file"]);
    fs::write(desk.path("text.parquet"), "rows").unwrap();
    refused(&["text.parquet"], &["text.parquet", "expected a parquet file"]);
    fs::create_dir(desk.path("folder")).unwrap();
    refused(&["folder"], &["folder/metadata.jsonl"]);
    let set = shipped();
    let set = set.to_str().unwrap();
    refused(&[set, "--caption-template", "a picture"], &["--caption-template", "{class}"]);
    refused(&[set, "--sheet", "none/sheet.png"], &["none", "mkdir"]);
    refused(&[set, "--sheet", "sheet.jpg"], &["--sheet", ".png"]);

    // One of two rows has a picture that is none.
    let lines = "{\"file_name\": \"a.png\", \"text\": \"a\"}\n{\"file_name\": \"b.png\", \"text\": \"b\"}\n";
    fs::write(desk.path("folder/metadata.jsonl"), lines).unwrap();
    image::RgbImage::new(5, 7).save(desk.path("folder/a.png")).unwrap();
    fs::write(desk.path("folder/b.png"), "no picture").unwrap();
    refused(&["folder", "--strict"], &["line 2 (b.png)", "a PNG, JPEG"]);
    let output = desk.run(&["data", "inspect", "folder"]);
    let report = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        report.contains("1 rows that can be used") && report.contains("line 2 (b.png)"),
        "{report}"
    );
}
