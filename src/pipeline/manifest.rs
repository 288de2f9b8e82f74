//! Pictures that are asked for by a file: a line of JSON, of CSV, or a row of parquet each, with settings under diffusers' names.

use std::path::{Path, PathBuf};

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::io::{caught, read_bounded};
use crate::pipeline::settings::Settings;

/// The longest file that is read.
const MAX_FILE: u64 = 1 << 30;

/// What rows may say besides settings, for people and for what comes behind.
const LABELS: [&str; 6] = ["class", "label", "id", "name", "kind", "source"];

/// Names of pictures, which stay the texts that they are.
const PICTURES: [&str; 2] = ["control_image", "ip_image"];

/// Of numbers there may be several.
const LISTS: [&str; 4] = ["bbox", "control_scale", "control_start", "control_end"];

/// A picture that is asked for.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Row {
    /// How it is drawn.
    #[serde(flatten)]
    pub settings: Settings,
    /// Where its noise begins.
    pub seed: u64,
    /// Where it lies: west, south, east and north in units of `epsg`.
    #[serde(default)]
    pub bbox: Option<[f64; 4]>,
    /// EPSG code of that reference system.
    #[serde(default)]
    pub epsg: Option<u32>,
    /// What ControlNets follow, one for each; relative to the folder of the manifest.
    #[serde(default, deserialize_with = "one_or_more")]
    pub control_image: Vec<PathBuf>,
    /// How much each counts, or all.
    #[serde(default, deserialize_with = "one_or_more")]
    pub control_scale: Vec<f32>,
    /// Share of the steps at which each begins to count, or all.
    #[serde(default, deserialize_with = "one_or_more")]
    pub control_start: Vec<f64>,
    /// Share of the steps at which each no longer counts, or all.
    #[serde(default, deserialize_with = "one_or_more")]
    pub control_end: Vec<f64>,
    /// The picture that is a prompt, likewise relative.
    #[serde(default)]
    pub ip_image: Option<PathBuf>,
    /// How much it counts.
    #[serde(default)]
    pub ip_scale: Option<f32>,
    /// What is no setting.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// Reads a manifest. What a row does not say, `settings` do; a row without a seed has `seed` and its number.
///
/// # Errors
/// A file that is none, or a row that cannot be, which the error names.
pub fn read(path: &Path, settings: &Settings, seed: u64) -> Result<Vec<Row>> {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    let objects = match ending.as_deref() {
        Some("jsonl" | "ndjson") => lines(path)?,
        Some("csv") => table(path)?,
        Some("parquet") => columns(path)?,
        other => {
            let found = other.unwrap_or("none").to_owned();
            let advice = "Name it after what it is.";
            return Err(Error::file(path, "ending", ".jsonl, .csv or .parquet", found, advice));
        }
    };
    if objects.is_empty() {
        let advice = "Write a line for each picture.";
        return Err(Error::file(path, "rows", "at least one", "none", advice));
    }
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    let mut base = serde_json::to_value(settings).map_err(|e| Error::io(path, e.into()))?;
    let rows = objects.into_iter().zip(1u64..).map(|(object, number)| {
        let wrong = |found: String| {
            let advice =
                "Correct the row; fields have diffusers' names, as in the text of a picture.";
            Error::file(path, format!("row {number}"), "the settings of a picture", found, advice)
        };
        base["seed"] = seed.wrapping_add(number - 1).into();
        let mut whole = base.clone();
        for (name, value) in object {
            let name = match name.as_str() {
                "steps" => "num_inference_steps".to_owned(),
                "text" => "prompt".to_owned(),
                _ => name,
            };
            let value = match value {
                Value::String(text) if LISTS.contains(&name.as_str()) => numbers(&text),
                value => value,
            };
            // What a table leaves empty is not said.
            if !value.is_null() {
                whole[name] = value;
            }
        }
        let mut row: Row = serde_json::from_value(whole).map_err(|e| wrong(e.to_string()))?;
        if let Some(name) = row.rest.keys().find(|name| !LABELS.contains(&name.as_str())) {
            return Err(wrong(format!("the unknown field {name:?}")));
        }
        if row.bbox.is_some() != row.epsg.is_some() {
            return Err(wrong("one of bbox and epsg without the other".to_owned()));
        }
        if row.settings.strength.is_some() {
            return Err(wrong("a strength, without a picture to start from".to_owned()));
        }
        row.settings.check().map_err(|error| wrong(error.to_string()))?;
        for picture in row.control_image.iter_mut().chain(&mut row.ip_image) {
            *picture = folder.join(&*picture);
            if !picture.is_file() {
                let found = format!("no file {}", picture.display());
                let advice =
                    "Correct the row; pictures are looked for from the folder of the manifest on.";
                let what = format!("row {number}");
                return Err(Error::file(path, what, "pictures that are there", found, advice));
            }
        }
        Ok(row)
    });
    rows.collect()
}

type Object = Map<String, Value>;

/// A value alone is a list of it.
fn one_or_more<'de, D: Deserializer<'de>, T: DeserializeOwned>(d: D) -> Result<Vec<T>, D::Error> {
    let values = match Value::deserialize(d)? {
        Value::Array(values) => values,
        one => vec![one],
    };
    let values = values.into_iter().map(serde_json::from_value);
    values.collect::<Result<_, _>>().map_err(D::Error::custom)
}

/// Numbers with commas between, as tables have them; what are none stays a text.
fn numbers(text: &str) -> Value {
    let numbers: Option<Vec<Value>> =
        text.split(',').map(|number| serde_json::from_str(number.trim()).ok()).collect();
    numbers.map_or_else(|| text.into(), Value::from)
}

fn lines(path: &Path) -> Result<Vec<Object>> {
    let text = read_text(path)?;
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    let object = |(line, number): (&str, u64)| {
        serde_json::from_str(line).map_err(|e| {
            let advice = "Write an object a line.";
            Error::file(path, format!("line {number}"), "a JSON object", e.to_string(), advice)
        })
    };
    lines.map(object).collect()
}

fn table(path: &Path) -> Result<Vec<Object>> {
    let text = read_text(path)?;
    let wrong = |error: csv::Error| {
        let advice = "The first line names the fields; commas in a text need quotes around it.";
        Error::file(path, "table", "CSV with a head", error.to_string(), advice)
    };
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let head = reader.headers().map_err(wrong)?.clone();
    let object = |record: csv::Result<csv::StringRecord>| {
        let record = record.map_err(wrong)?;
        let cell = |(name, text): (&str, &str)| (name.trim().to_owned(), typed(name.trim(), text));
        Ok(head.iter().zip(record.iter()).map(cell).collect())
    };
    reader.records().map(object).collect()
}

/// Tables have texts alone: what is no text by its name is read as what it looks like.
fn typed(name: &str, text: &str) -> Value {
    const TEXTS: [&str; 8] = [
        "prompt",
        "text",
        "negative_prompt",
        "prompt_2",
        "negative_prompt_2",
        "scheduler",
        "noise",
        "prompt_syntax",
    ];
    if TEXTS.contains(&name) || LABELS.contains(&name) {
        return text.into();
    }
    match text.trim() {
        "" => Value::Null,
        path if PICTURES.contains(&name) && !path.starts_with('[') => path.into(),
        text => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
    }
}

fn columns(path: &Path) -> Result<Vec<Object>> {
    let wrong = |found: String| {
        let advice = "Write it with columns of texts and numbers.";
        Error::file(path, "table", "a parquet file of texts and numbers", found, advice)
    };
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let read = || {
        let reader = SerializedFileReader::new(file).map_err(|e| wrong(e.to_string()))?;
        let rows = reader.get_row_iter(None).map_err(|e| wrong(e.to_string()))?;
        let object = |row: parquet::errors::Result<parquet::record::Row>| {
            let row = row.map_err(|e| wrong(e.to_string()))?;
            let field = |(name, field): (&String, &Field)| Some((name.clone(), value(field)?));
            let cells: Vec<_> = row.get_column_iter().map(field).collect();
            cells.into_iter().collect::<Option<Object>>().ok_or_else(|| wrong(row.to_string()))
        };
        rows.map(object).collect()
    };
    caught(read).map_err(wrong)?
}

fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read_bounded(path, MAX_FILE)?).map_err(|e| {
        let advice = "Save it in UTF-8.";
        Error::file(path, "text", "UTF-8", e.to_string(), advice)
    })
}

fn value(field: &Field) -> Option<Value> {
    Some(match field {
        Field::Null => Value::Null,
        Field::Bool(x) => (*x).into(),
        Field::Byte(x) => (*x).into(),
        Field::Short(x) => (*x).into(),
        Field::Int(x) => (*x).into(),
        Field::Long(x) => (*x).into(),
        Field::UByte(x) => (*x).into(),
        Field::UShort(x) => (*x).into(),
        Field::UInt(x) => (*x).into(),
        Field::ULong(x) => (*x).into(),
        // As it is written, so that 0.1 stays what it was.
        Field::Float(x) => serde_json::from_str(&x.to_string()).ok()?,
        Field::Double(x) => serde_json::from_str(&x.to_string()).ok()?,
        Field::Str(x) => x.clone().into(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(name: &str, text: &str) -> Result<Vec<Row>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        for name in ["7", "b.png"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        std::fs::write(&path, text).unwrap();
        let settings = Settings { steps: Some(9), eta: 0.5, ..Settings::default() };
        read(&path, &settings, 40)
    }

    #[test]
    fn rows_say_what_differs_from_the_command_line() {
        let lines = "{\"prompt\": \"a river, wide\", \"steps\": 3, \"class\": \"River\"}\n\n{\"prompt\": \"b\", \"seed\": 7}\n";
        let rows = written("a.jsonl", lines).unwrap();
        let of =
            |i: usize| (rows[i].settings.prompt.as_str(), rows[i].settings.steps, rows[i].seed);
        assert_eq!(of(0), ("a river, wide", Some(3), 40));
        assert_eq!(of(1), ("b", Some(9), 7));
        assert_eq!((rows[1].settings.eta, &rows[0].rest["class"]), (0.5, &"River".into()));
        let table = "prompt,steps,seed,class\n\"a river, wide\",3,,River\nb,,7,\n";
        let same = written("a.csv", table).unwrap();
        assert_eq!((&same[0], &same[1].settings), (&rows[0], &rows[1].settings));
        // A place is a list, or what a table can hold.
        let lines = r#"{"bbox": [1, 2.5, 3, 4], "epsg": 32632}"#;
        let table = "prompt,bbox,epsg\n,\"1, 2.5,3,4\",32632\n";
        for (name, text) in [("a.jsonl", lines), ("a.csv", table)] {
            let row = &written(name, text).unwrap()[0];
            assert_eq!((row.bbox, row.epsg), (Some([1.0, 2.5, 3.0, 4.0]), Some(32632)), "{name}");
        }
        // So are several pictures, and what is said of each.
        let at = |row: &Row, i: usize| row.control_image[i].file_name().unwrap().to_owned();
        let lines = r#"{"control_image": ["7", "b.png"], "control_scale": [0.5, 1], "control_end": 0.5, "ip_image": "b.png"}"#;
        let table = "prompt,control_image,control_scale,control_end,ip_image\n,\"[\"\"7\"\",\"\"b.png\"\"]\",\"0.5,1\",0.5,b.png\n,7,,,\n";
        for (name, text) in [("a.jsonl", lines), ("a.csv", table)] {
            let rows = written(name, text).unwrap();
            assert_eq!((at(&rows[0], 0), at(&rows[0], 1)), ("7".into(), "b.png".into()), "{name}");
            assert_eq!(rows[0].control_scale, [0.5, 1.0], "{name}");
            assert_eq!((&*rows[0].control_end, rows[0].ip_scale), (&[0.5][..], None), "{name}");
            assert!(rows[0].ip_image.as_ref().unwrap().ends_with("b.png"), "{name}");
            if let Some(row) = rows.get(1) {
                assert_eq!((at(row, 0), row.control_image.len()), ("7".into(), 1));
                assert_eq!((&row.ip_image, row.control_scale.len()), (&None, 0));
            }
        }
        // Numbers that are prompts stay what they are.
        assert_eq!(written("a.csv", "prompt\n007\n").unwrap()[0].settings.prompt, "007");
        let table = "prompt,prompt_2,negative_prompt_2\na,007,\nb,,true\n";
        let rows = written("a.csv", table).unwrap();
        let of =
            |row: &Row| (row.settings.prompt_2.clone(), row.settings.negative_prompt_2.clone());
        assert_eq!(of(&rows[0]), ("007".to_owned(), String::new()));
        assert_eq!(of(&rows[1]), (String::new(), "true".to_owned()));
    }

    #[test]
    fn a_row_that_cannot_be_is_named() {
        for (name, text, expected) in [
            ("a.jsonl", "{}\n{", "line 2"),
            ("a.jsonl", "{}\n{\"promt\": \"x\"}", "promt"),
            ("a.jsonl", "{\"width\": 63}", "row 1"),
            ("a.jsonl", "{\"seed\": -1}", "row 1"),
            ("a.jsonl", "{\"strength\": 0.5}", "strength"),
            ("a.jsonl", "{\"epsg\": 32632}", "bbox"),
            ("a.csv", "prompt,bbox,epsg\na,\"1,2,3\",4326\n", "row 1"),
            ("a.jsonl", "{}\n{\"control_image\": \"none.png\"}", "row 2"),
            ("a.jsonl", "{\"control_image\": [\"b.png\", \"none.png\"]}", "none.png"),
            ("a.jsonl", "{\"ip_image\": \"none.png\"}", "none.png"),
            ("a.jsonl", "{\"control_scale\": \"much\"}", "row 1"),
            ("a.csv", "prompt,control_image\na,7\nb,8\n", "row 2"),
            ("a.jsonl", "", "at least one"),
            ("a.csv", "prompt,steps\na,x\n", "row 1"),
            ("a.csv", "prompt\na,b\n", "CSV"),
            ("a.parquet", "PAR1", "parquet"),
            ("a.txt", "a", ".jsonl"),
        ] {
            let error = written(name, text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
