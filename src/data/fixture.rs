//! Small data sets for tests.

use std::fs::File;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::image::{ImageFormat, Rgb, RgbImage};
use ::parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
use ::parquet::file::metadata::KeyValue;
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;

/// What a row holds; `None` is null.
#[derive(Clone, Debug, Default)]
pub struct FixtureRow {
    pub filename: Option<String>,
    pub captions: Vec<String>,
    pub label: Option<i32>,
    pub class: Option<String>,
    pub image: Option<Vec<u8>>,
}

/// A PNG whose upper left pixel is (`tone`, 0, 9), and whose others tell where they are.
pub fn picture(width: u32, height: u32, tone: u8) -> Vec<u8> {
    let picture = RgbImage::from_fn(width, height, |x, y| Rgb([tone, (x * 16 + y) as u8, 9]));
    let mut png = Vec::new();
    picture.write_to(&mut Cursor::new(&mut png), ImageFormat::Png).unwrap();
    png
}

/// `n` rows of four classes, the picture of row i being of tone i.
pub fn rows(n: usize) -> Vec<FixtureRow> {
    let row = |i: usize| FixtureRow {
        filename: Some(format!("chips/{}.png", i)),
        captions: vec![format!("first of {i}"), format!("second of {i}")],
        label: Some(i as i32 % 4),
        class: Some(["Forest", "River", "Highway", "Sea"][i % 4].to_owned()),
        image: Some(picture(8, 8, i as u8)),
    };
    (0..n).map(row).collect()
}

/// Writes `rows` to `folder`, with the columns that `columns` names and, in the hub's form, names of labels.
pub fn write(
    folder: &Path,
    rows: &[FixtureRow],
    columns: &[&str],
    names: Option<&[&str]>,
) -> PathBuf {
    let path = folder.join("set.parquet");
    let column = |name: &str| match name {
        "captions" => {
            "optional group captions (LIST) { repeated group list { optional binary element (UTF8); } }"
        }
        "label" => "optional int32 label;",
        "image" => "optional group image { optional binary bytes; optional binary path (UTF8); }",
        "filename" => "optional binary filename (UTF8);",
        "class" => "optional binary class (UTF8);",
        other => panic!("no column {other}"),
    };
    let fields: String = columns.iter().map(|name| column(name)).collect();
    let schema = parse_message_type(&format!("message set {{ {fields} }}")).unwrap();
    let about = names.map(|names| {
        let about = serde_json::json!({"info": {"features": {"label": {"names": names}}}});
        vec![KeyValue::new("huggingface".to_owned(), about.to_string())]
    });
    let properties = WriterProperties::builder().set_key_value_metadata(about).build();
    let file = File::create(&path).unwrap();
    let mut writer =
        SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties)).unwrap();
    // Two row groups.
    for rows in rows.chunks(rows.len().div_ceil(2).max(1)) {
        let mut group = writer.next_row_group().unwrap();
        for name in columns {
            let text = |of: &dyn Fn(&FixtureRow) -> Option<Vec<u8>>| rows.iter().map(of).collect();
            match *name {
                "filename" => {
                    bytes(&mut group, text(&|r| r.filename.clone().map(String::into_bytes)), 1)
                }
                "class" => bytes(&mut group, text(&|r| r.class.clone().map(String::into_bytes)), 1),
                "image" => {
                    bytes(&mut group, text(&|r| r.image.clone()), 2);
                    bytes(&mut group, text(&|_| None), 2);
                }
                "label" => {
                    let levels: Vec<i16> = rows.iter().map(|r| r.label.is_some().into()).collect();
                    let values: Vec<i32> = rows.iter().filter_map(|r| r.label).collect();
                    let mut column = group.next_column().unwrap().unwrap();
                    column.typed::<Int32Type>().write_batch(&values, Some(&levels), None).unwrap();
                    column.close().unwrap();
                }
                _ => captions(&mut group, rows),
            }
        }
        group.close().unwrap();
    }
    writer.close().unwrap();
    path
}

type Group<'a> = ::parquet::file::writer::SerializedRowGroupWriter<'a, File>;

/// A column of bytes; `depth` optional levels lead to it.
fn bytes(group: &mut Group, values: Vec<Option<Vec<u8>>>, depth: i16) {
    let levels: Vec<i16> =
        values.iter().map(|v| if v.is_some() { depth } else { depth - 1 }).collect();
    let values: Vec<ByteArray> = values.into_iter().flatten().map(ByteArray::from).collect();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
    column.close().unwrap();
}

fn captions(group: &mut Group, rows: &[FixtureRow]) {
    let (mut values, mut levels, mut repeats) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        if row.captions.is_empty() {
            levels.push(1); // an empty list
            repeats.push(0);
        }
        for (i, caption) in row.captions.iter().enumerate() {
            values.push(ByteArray::from(caption.as_str()));
            levels.push(3);
            repeats.push(i16::from(i > 0));
        }
    }
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), Some(&repeats)).unwrap();
    column.close().unwrap();
}
