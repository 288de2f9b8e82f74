//! Damaged, hostile and mistaken input files: each is an error that says what to do, none a panic.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nadir::io::TensorSource;
use nadir::io::config::Config;
use nadir::io::folder::{PipelineFolder, Weights};
use nadir::io::image;
use nadir::io::parquet::Pictures;
use nadir::io::safetensors::SafeTensors;
use proptest::prelude::*;
use tempfile::TempDir;

/// A folder to put bad files into.
struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }
}

/// A safetensors file of this header and this many bytes of data.
fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend((0..data).map(|i| i as u8));
    file
}

fn refused(path: &Path, words: &[&str]) {
    let error = SafeTensors::open(path)
        .err()
        .unwrap_or_else(|| panic!("{} was opened", path.display()))
        .to_string();
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(error.contains(name), "the file is not named: {error}");
    for word in words {
        assert!(error.contains(word), "no {word:?} in: {error}");
    }
}

const GOOD: &str = r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"F16","shape":[3],"data_offsets":[16,22]}}"#;

#[test]
fn a_good_file_for_comparison() {
    let bench = Bench::new();
    let file = SafeTensors::open(bench.write("good.safetensors", safetensors(GOOD, 22))).unwrap();
    assert_eq!(file.names(), ["a", "b"]);
    assert_eq!(file.read("b").unwrap().dims(), [3]);
    let error = file.read("c").err().unwrap().to_string();
    assert!(error.contains("good.safetensors") && error.contains("\"c\""), "{error}");
}

#[test]
fn truncated_files() {
    let bench = Bench::new();
    let whole = safetensors(GOOD, 22);
    for length in 0..whole.len() {
        refused(&bench.write("cut.safetensors", &whole[..length]), &["expected", "found", "again"]);
    }
    refused(
        &bench.write("cut.safetensors", &whole[..whole.len() - 1]),
        &["\"b\"", "16..22", "21 bytes"],
    );
    let mut longer = whole;
    longer.push(0);
    refused(&bench.write("long.safetensors", longer), &["22 bytes", "23 bytes"]);
}

#[test]
fn headers_that_contradict_themselves() {
    let entry = |dtype: &str, shape: &str, begin: usize, end: usize| {
        format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    };
    let one = |entry: String| format!(r#"{{"t":{entry}}}"#);
    let two = |a: String, b: String| format!(r#"{{"a":{a},"b":{b}}}"#);
    let bench = Bench::new();
    for (header, data, words) in [
        // Byte ranges.
        (
            two(entry("F32", "[2]", 0, 8), entry("F32", "[2]", 4, 12)),
            12,
            &["overlap", "\"b\"", "byte 8", "byte 4"][..],
        ),
        (
            two(entry("F32", "[2]", 0, 8), entry("F32", "[2]", 12, 20)),
            20,
            &["a gap", "\"b\"", "byte 12"],
        ),
        (two(entry("F32", "[2]", 0, 8), entry("F32", "[2]", 0, 8)), 8, &["overlap"]),
        (one(entry("F32", "[2]", 4, 12)), 12, &["a gap"]),
        (one(entry("F32", "[2]", 8, 0)), 8, &["\"t\"", "8..0"]),
        (one(entry("F32", "[2]", 0, 8)), 4, &["\"t\"", "4 bytes of data", "cut off"]),
        // Shapes and dtypes.
        (one(entry("F32", "[3]", 0, 8)), 8, &["12 bytes for F32 [3]", "0..8"]),
        (one(entry("F16", "[2,2]", 0, 16)), 16, &["8 bytes for F16 [2, 2]"]),
        (one(entry("F32", "[1,1,1,1,1,1,1]", 0, 4)), 4, &["dimensions"]),
        (
            one(entry("F32", "[4294967296,4294967296,4294967296]", 0, 8)),
            8,
            &["18446744073709551615 bytes"],
        ),
        (one(entry("F32", "[-1]", 0, 8)), 8, &["\\\"t\\\"", "-1"]),
        (one(entry("F32", "\"2\"", 0, 8)), 8, &["\\\"t\\\""]),
        (one(entry("F99", "[2]", 0, 8)), 8, &["F99"]),
        (one(entry("F8_E4M3", "[8]", 0, 8)), 8, &["F8_E4M3", "quantised"]),
        // JSON.
        (
            two(entry("F32", "[1]", 0, 4), entry("F32", "[1]", 4, 8)).replace("\"b\"", "\"a\""),
            8,
            &["once"],
        ),
        ("[]".to_owned(), 0, &["an object of tensors"]),
        ("{".to_owned(), 0, &["JSON"]),
        ("".to_owned(), 0, &["JSON"]),
        (r#"{"t":3}"#.to_owned(), 0, &["\\\"t\\\""]),
        (r#"{"t":{"dtype":"F32","shape":[1]}}"#.to_owned(), 0, &["data_offsets"]),
        (r#"{"__metadata__":{"n":3}}"#.to_owned(), 0, &["__metadata__"]),
        ("[".repeat(200_000), 0, &["JSON"]),
    ] {
        let path = bench.write("bad.safetensors", safetensors(&header, data));
        let words: Vec<String> = words.iter().map(|w| w.replace("\\\"", "\"")).collect();
        refused(&path, &words.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

#[test]
fn a_header_longer_than_the_file_is_not_allocated() {
    let bench = Bench::new();
    for length in [u64::MAX, u64::MAX - 7, 1 << 40, 100_000_001] {
        refused(
            &bench.write("huge.safetensors", length.to_le_bytes()),
            &["at most 100000000 bytes"],
        );
    }
    refused(&bench.write("huge.safetensors", 100_000_000u64.to_le_bytes()), &["a file of 8 bytes"]);
}

#[test]
fn what_is_no_safetensors_file() {
    let bench = Bench::new();
    let missing = bench.0.path().join("missing.safetensors");
    refused(&missing, &[]);
    refused(
        &bench.write("pointer.safetensors", "version https://git-lfs.github.com/spec/v1\n"),
        &["git lfs pull"],
    );
    refused(&bench.write("page.safetensors", "<!DOCTYPE html><html></html>"), &["header"]);

    for name in ["model.bin", "it's model.pt", "model.pth", "pytorch_model.bin", "sd.ckpt"] {
        refused(
            &bench.write(name, "any"),
            &["a pickle file", "nadir convert --script", "python pickle_to", ".safetensors'"],
        );
    }
    refused(&bench.0.path().join("missing.bin"), &["No such file"]);
    // Whatever it is called.
    refused(&bench.write("renamed.safetensors", b"PK\x03\x04\0\0\0\0\0"), &["a pickle file"]);
    refused(&bench.write("older.safetensors", b"\x80\x02ccollections\n"), &["a pickle file"]);
}

#[test]
fn folders_that_hold_pickles_or_nothing() {
    let bench = Bench::new();
    let unet = bench.0.path().join("unet");
    bench.write("unet/diffusion_pytorch_model.bin", "any");
    let error = Weights::open(&unet, None).err().unwrap().to_string();
    assert!(
        error.contains("--script") && error.contains("diffusion_pytorch_model.safetensors"),
        "{error}"
    );
    fs::remove_file(unet.join("diffusion_pytorch_model.bin")).unwrap();
    bench.write("unet/diffusion_pytorch_model.non_ema.safetensors", "any");
    let error = Weights::open(&unet, None).err().unwrap().to_string();
    assert!(error.contains("non_ema") && error.contains("--variant"), "{error}");

    let empty = bench.0.path().join("empty");
    fs::create_dir(&empty).unwrap();
    for (path, words) in [
        (bench.0.path().join("nothing"), "no such folder"),
        (unet, "non_ema.safetensors and no model_index.json"),
        (empty, "none in this folder"),
        (bench.write("one.safetensors", "any"), "safetensors header"),
        (bench.write("one.ckpt", "any"), "nadir convert --script"),
    ] {
        let error = PipelineFolder::open(&path, None).err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn configurations_of_wrong_types() {
    let bench = Bench::new();
    let path = bench
        .write("unet/config.json", r#"{"in_channels": "four", "act_fn": 3, "down": ["a", 1]}"#);
    let config = Config::open(&path).unwrap();
    for error in [
        config.usize("in_channels", 4).unwrap_err(),
        config.string("act_fn", "silu").unwrap_err(),
        config.strings("down", &[]).unwrap_err(),
    ] {
        let error = error.to_string();
        assert!(
            error.contains("config.json") && error.contains("expected") && error.contains("found"),
            "{error}"
        );
    }
    for content in ["", "[1]", "{\"a\": ", "\"text\"", "\u{feff}{}"] {
        let path = bench.write("config.json", content);
        assert!(
            Config::open(&path).err().unwrap().to_string().contains("config.json"),
            "{content:?}"
        );
    }
}

#[test]
fn pictures_that_are_none() {
    let bench = Bench::new();
    // A PNG of 60,000 x 60,000 pixels, in 33 bytes: signature, IHDR, checksum.
    let mut bomb =
        b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\xea\x60\0\0\xea\x60\x08\x02\0\0\0".to_vec();
    bomb.extend(crc32(&bomb[12..]).to_be_bytes());
    for (name, bytes) in [
        ("empty.png", Vec::new()),
        ("text.png", b"this is no picture".to_vec()),
        ("bomb.png", bomb),
        ("cut.jpg", b"\xff\xd8\xff\xe0\0\x10JFIF".to_vec()),
        ("cut.webp", b"RIFF\x24\0\0\0WEBPVP8 ".to_vec()),
        ("cut.bmp", b"BM\x36\0\0\0\0\0\0\0\x36\0\0\0".to_vec()),
        ("cut.tif", b"II*\0\x08\0\0\0\xff\xff".to_vec()),
    ] {
        let error = image::open(bench.write(name, bytes)).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("expected a PNG, JPEG"), "{error}");
    }
    let error = image::open(bench.0.path().join("none.png")).unwrap_err().to_string();
    assert!(error.contains("none.png"), "{error}");
    let error = image::open(bench.0.path()).unwrap_err().to_string();
    assert!(error.contains("expected a regular file, found a folder"), "{error}");
}

/// The checksum of a PNG chunk (ISO 3309).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(
            crc ^ u32::from(byte),
            |c, _| if c & 1 == 1 { 0xedb8_8320 ^ (c >> 1) } else { c >> 1 },
        )
    })
}

#[test]
fn tables_of_another_schema() {
    use parquet::data_type::Int32Type;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    let bench = Bench::new();
    let path = bench.0.path().join("labels.parquet");
    let schema = parse_message_type("message m { required int32 label; }").unwrap();
    let mut writer = SerializedFileWriter::new(
        fs::File::create(&path).unwrap(),
        Arc::new(schema),
        Default::default(),
    )
    .unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int32Type>().write_batch(&[1, 2, 3], None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();

    let error = Pictures::open(&path).err().unwrap().to_string();
    assert!(error.contains("image") && error.contains("columns label"), "{error}");
}

/// `cargo xtask test --all` goes on ten times as long.
fn cases() -> u32 {
    if std::env::var_os("NADIR_TEST_ALL").is_some() { 2560 } else { 256 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    /// Any bytes at all.
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let bench = Bench::new();
        read_everything(&bench.write("any.safetensors", bytes));
    }

    /// A good file with a few bytes changed, most of them in its header.
    #[test]
    fn no_change_makes_the_reader_panic(changes in proptest::collection::vec((0usize..150, any::<u8>()), 1..4)) {
        let mut bytes = safetensors(GOOD, 22);
        let length = bytes.len();
        for (at, value) in changes {
            bytes[at % length] = value;
        }
        let bench = Bench::new();
        read_everything(&bench.write("changed.safetensors", bytes));
    }

    /// Headers of the right form with numbers of any size: what is let in must fit the file.
    #[test]
    fn no_numbers_make_the_reader_panic(
        shape in proptest::collection::vec(prop_oneof![0u64..4, any::<u64>()], 0..9),
        begin in prop_oneof![0u64..32, any::<u64>()],
        end in prop_oneof![0u64..32, any::<u64>()],
        data in 0usize..32,
    ) {
        let header = format!(r#"{{"t":{{"dtype":"U8","shape":{shape:?},"data_offsets":[{begin},{end}]}}}}"#);
        let bench = Bench::new();
        read_everything(&bench.write("numbers.safetensors", safetensors(&header, data)));
    }
}

/// Opens a file and, if it is let in, reads all of it.
fn read_everything(path: &Path) {
    let Ok(file) = SafeTensors::open(path) else { return };
    let mut total = 0;
    for name in file.names() {
        let info = file.info(&name).unwrap();
        let tensor = file.read(&name).unwrap();
        assert_eq!((tensor.dims(), tensor.dtype()), (info.shape.as_slice(), info.dtype));
        total += tensor.len();
    }
    assert!(total as u64 <= fs::metadata(path).unwrap().len());
}
