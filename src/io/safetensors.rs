//! The safetensors format: a streaming reader and a writer.
//!
//! A file is an 8-byte little-endian header length, a JSON header (name -> dtype, shape, byte range), and the
//! tensors' bytes, which must cover the rest of the file without gap or overlap
//! (<https://github.com/huggingface/safetensors#format>). The reader believes nothing: the header's length is
//! held against the file's before it is allocated, and every byte range against shape, dtype and its
//! neighbours before any tensor is read. Tensors are then read one at a time by plain positioned reads, so
//! that the peak memory of loading is the weights plus one tensor, and a file that changes underneath is an
//! error rather than a signal, as it would be with a memory map.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use ::safetensors::Dtype as Stored;
use serde::Deserialize;
use serde::de::{Error as _, MapAccess, Visitor};

use super::{TensorInfo, TensorSource, atomic};
use crate::cpu::parallel::try_for_each_chunk;
use crate::error::{Error, Result};
use crate::tensor::{DType, Device, MAX_RANK, Tensor};

/// The longest header that the format allows.
const MAX_HEADER: u64 = 100_000_000;

/// The longest sharded index that is read: names and file names only, so far smaller in practice.
const MAX_INDEX: u64 = 100_000_000;

/// Bytes of a tensor that are read at once: few enough that a tensor of a megabyte is work for several threads, and that
/// they are still in the cache when they are looked at.
pub(crate) const PIECE: usize = 256 << 10;

/// Bytes in front of the header.
const PREFIX: u64 = 8;

/// One safetensors file, or the shards of one model, open for reading.
pub struct SafeTensors {
    shards: Vec<Shard>,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

struct Shard {
    path: PathBuf,
    file: File,
}

struct Entry {
    shard: usize,
    stored: Stored,
    info: TensorInfo,
    /// Position in the file, in bytes from its start.
    start: u64,
    bytes: usize,
}

impl SafeTensors {
    /// Opens a `.safetensors` file, or a `.safetensors.index.json` with all the shards it names.
    ///
    /// # Errors
    /// The file is missing, truncated, no safetensors file, or its header contradicts itself or the file's
    /// length. Pickle files (`.bin`, `.ckpt`, `.pt`, `.pth`) are refused with what converts them.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut source =
            Self { shards: Vec::new(), entries: BTreeMap::new(), metadata: BTreeMap::new() };
        if path.extension().is_some_and(|e| e == "json") {
            source.add_sharded(path)?;
        } else {
            source.add_file(path)?;
        }
        Ok(source)
    }

    /// The free-form `__metadata__` of the header. Shards are merged, the last one wins.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The files that tensors are read from.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.shards.iter().map(|s| s.path.as_path())
    }

    fn add_sharded(&mut self, index: &Path) -> Result<()> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = super::read_bounded(index, MAX_INDEX)?;
        let Index { weight_map } = serde_json::from_slice(&text).map_err(|e| {
            Error::file(
                index,
                "index",
                "an object with a weight_map",
                e.to_string(),
                "Download the file again.",
            )
        })?;

        let folder = index.parent().unwrap_or(Path::new(""));
        let mut names: Vec<&String> = weight_map.values().collect();
        names.sort();
        names.dedup();
        for name in names {
            let inside =
                !name.is_empty() && Path::new(name).file_name().is_some_and(|f| f == name.as_str());
            if !inside {
                let expected = "the name of a file beside the index";
                return Err(Error::file(
                    index,
                    "weight_map",
                    expected,
                    format!("{name:?}"),
                    "Correct the index.",
                ));
            }
            let path = folder.join(name);
            if !path.exists() {
                let found = format!("no file {name:?}");
                let advice = "Download the missing shard into the same folder.";
                return Err(Error::file(
                    index,
                    "shard",
                    "every shard that the index names",
                    found,
                    advice,
                ));
            }
            self.add_file(&path)?;
        }
        for (tensor, shard) in &weight_map {
            let held = self.entries.get(tensor).map(|e| &self.shards[e.shard].path);
            if held.is_none_or(|path| !path.ends_with(shard)) {
                let found =
                    held.map_or("it nowhere".to_owned(), |p| format!("it in {}", p.display()));
                let advice = "Index and shards belong to different models: download both again.";
                return Err(Error::file(
                    index,
                    format!("tensor {tensor:?}"),
                    format!("it in {shard:?}"),
                    found,
                    advice,
                ));
            }
        }
        Ok(())
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        refuse_pickle(path, &[])?;
        let file = super::open_file(path)?;
        let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
        let (header, data_start) = read_header(path, &file, length)?;

        let shard = self.shards.len();
        let mut spans = Vec::with_capacity(header.tensors.len());
        for (name, raw) in header.tensors {
            let entry = check_entry(path, shard, &name, &raw, data_start, length)?;
            spans.push((raw.data_offsets, name.clone()));
            if let Some(other) = self.entries.insert(name.clone(), entry) {
                let found = format!(
                    "it in {} too",
                    self.shards.get(other.shard).map_or(path, |s| &s.path).display()
                );
                let what = format!("tensor {name:?}");
                return Err(Error::file(
                    path,
                    what,
                    "each tensor once",
                    found,
                    "Remove one of the two.",
                ));
            }
        }
        check_coverage(path, spans, length - data_start)?;
        self.metadata.extend(header.metadata);
        self.shards.push(Shard { path: path.to_path_buf(), file });
        Ok(())
    }
}

impl SafeTensors {
    /// As [`TensorSource::read`], or [`TensorSource::read_briefly`]. `look` is shown the stored bytes piece by piece, with the pieces' numbers, while they
    /// are in the cache.
    ///
    /// # Errors
    /// As for [`TensorSource::read`].
    pub(crate) fn read_with(
        &self,
        name: &str,
        look: &(dyn Fn(usize, &[u8]) + Sync),
        brief: bool,
    ) -> Result<Tensor> {
        let Some(entry) = self.entries.get(name) else {
            let advice = "Is this the right model?";
            return Err(Error::file(
                self.origin(name),
                format!("tensor {name:?}"),
                "it in the file",
                "none",
                advice,
            ));
        };
        let Shard { path, file } = &self.shards[entry.shard];
        // On all threads: copying from the system's cache is work for more than one.
        let fill = |bytes: &mut [u8]| {
            try_for_each_chunk(bytes, PIECE, |i, piece| {
                read_exact_at(file, piece, entry.start + (i * PIECE) as u64)?;
                look(i, piece);
                Ok(())
            })
            .map_err(|e| Error::io(path, e))
        };

        let TensorInfo { shape, dtype } = &entry.info;
        let mut tensor = match brief {
            true => Tensor::brief(shape, *dtype)?,
            false => Tensor::uninit(shape, *dtype, Device::Cpu)?,
        };
        match entry.stored {
            Stored::F32 => fill(bytemuck::cast_slice_mut(tensor.as_mut_slice::<f32>()?))?,
            Stored::F16 => fill(bytemuck::cast_slice_mut(tensor.as_mut_slice::<half::f16>()?))?,
            Stored::BF16 => fill(bytemuck::cast_slice_mut(tensor.as_mut_slice::<half::bf16>()?))?,
            Stored::F64 => fill(bytemuck::cast_slice_mut(tensor.as_mut_slice::<f64>()?))?,
            Stored::I64 => fill(bytemuck::cast_slice_mut(tensor.as_mut_slice::<i64>()?))?,
            Stored::U32 => fill(bytemuck::cast_slice_mut(tensor.as_mut_slice::<u32>()?))?,
            Stored::U8 | Stored::BOOL => fill(tensor.as_mut_slice::<u8>()?)?,
            // Integers without a type of their own here are widened.
            narrow => {
                let mut bytes = vec![0; entry.bytes];
                fill(&mut bytes)?;
                let out = tensor.as_mut_slice::<i64>()?;
                match narrow {
                    Stored::I8 => widen(out, &bytes, i8::from_le_bytes),
                    Stored::I16 => widen(out, &bytes, i16::from_le_bytes),
                    Stored::U16 => widen(out, &bytes, u16::from_le_bytes),
                    Stored::I32 => widen(out, &bytes, i32::from_le_bytes),
                    _ => unreachable!("held_as has let no other type in"),
                }
            }
        }
        Ok(tensor)
    }
}

impl TensorSource for SafeTensors {
    fn names(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.entries.get(name).map(|e| e.info.clone())
    }

    fn read(&self, name: &str) -> Result<Tensor> {
        self.read_with(name, &|_, _| {}, false)
    }

    fn read_briefly(&self, name: &str) -> Result<Tensor> {
        self.read_with(name, &|_, _| {}, true)
    }

    fn origin(&self, name: &str) -> String {
        match (self.entries.get(name), self.shards.as_slice()) {
            (Some(entry), shards) => shards[entry.shard].path.display().to_string(),
            (None, [one]) => one.path.display().to_string(),
            (None, [first, ..]) => format!("{} and its other shards", first.path.display()),
            (None, []) => "an empty index".to_owned(),
        }
    }
}

fn widen<const N: usize, T: Into<i64>>(out: &mut [i64], bytes: &[u8], decode: fn([u8; N]) -> T) {
    for (to, from) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *to = decode(*from).into();
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], start: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, start)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut start: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, start) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                bytes = &mut bytes[n..];
                start += n as u64;
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

// Bytes of the file are the bytes of a slice.
const _: () =
    assert!(cfg!(target_endian = "little"), "safetensors are little-endian, and read as they are");

/// The dtype that a stored type is held as.
const fn held_as(stored: Stored) -> Option<DType> {
    Some(match stored {
        Stored::F32 => DType::F32,
        Stored::F16 => DType::F16,
        Stored::BF16 => DType::BF16,
        Stored::F64 => DType::F64,
        Stored::I64 | Stored::I32 | Stored::I16 | Stored::I8 | Stored::U16 => DType::I64,
        Stored::U32 => DType::U32,
        Stored::U8 | Stored::BOOL => DType::U8,
        _ => return None,
    })
}

/// Header as the file has it, in its order.
#[derive(Default)]
struct Header {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, RawEntry)>,
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: Stored,
    shape: Vec<u64>,
    /// First byte and byte after the last, from the start of the data.
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Header {
    // By hand, since serde_json into a map would let a later duplicate of a name win in silence, and its
    // errors would not name the tensor.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header::default();
                while let Some(name) = map.next_key::<String>()? {
                    let named = |e| A::Error::custom(format!("{name:?}: {e}"));
                    if name == "__metadata__" {
                        header.metadata = map.next_value().map_err(named)?;
                    } else {
                        let entry = map.next_value().map_err(named)?;
                        header.tensors.push((name, entry));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Map)
    }
}

/// The header, and where the data starts.
fn read_header(path: &Path, file: &File, length: u64) -> Result<(Header, u64)> {
    const AGAIN: &str = "The file is damaged or incomplete: download or write it again.";
    let truncated = |expected: String| {
        Error::file(
            path,
            "safetensors header",
            expected,
            format!("a file of {length} bytes"),
            AGAIN,
        )
    };
    if length < PREFIX {
        return Err(truncated(format!("at least {PREFIX} bytes")));
    }
    let mut prefix = [0; PREFIX as usize];
    read_exact_at(file, &mut prefix, 0).map_err(|e| Error::io(path, e))?;
    refuse_pickle(path, &prefix)?;
    if &prefix == b"version " {
        let advice = "Fetch the real file: git lfs pull";
        return Err(Error::file(path, "content", "weights", "a git-lfs pointer", advice));
    }

    let size = u64::from_le_bytes(prefix);
    if size > MAX_HEADER {
        let expected = format!("a header of at most {MAX_HEADER} bytes");
        let advice = "This is no safetensors file, or a damaged one.";
        return Err(Error::file(
            path,
            "safetensors header",
            expected,
            format!("a length of {size}"),
            advice,
        ));
    }
    if size > length - PREFIX {
        return Err(truncated(format!("a header of {size} bytes")));
    }
    let mut json = vec![0; size as usize];
    read_exact_at(file, &mut json, PREFIX).map_err(|e| Error::io(path, e))?;
    let header = serde_json::from_slice(&json).map_err(|e| {
        Error::file(path, "safetensors header", "a JSON object of tensors", e.to_string(), AGAIN)
    })?;
    Ok((header, PREFIX + size))
}

/// One tensor's entry, held against itself and the file's length.
fn check_entry(
    path: &Path,
    shard: usize,
    name: &str,
    raw: &RawEntry,
    data_start: u64,
    length: u64,
) -> Result<Entry> {
    let wrong = |expected: String, found: String, advice: &str| {
        Error::file(path, format!("tensor {name:?}"), expected, found, advice)
    };
    const DAMAGED: &str = "The file is damaged: download or write it again.";

    let dtype = held_as(raw.dtype).ok_or_else(|| {
        let expected = "F64, F32, F16, BF16, or an integer type".to_owned();
        wrong(
            expected,
            raw.dtype.to_string(),
            "Convert the model to one of these (quantised weights are not read).",
        )
    })?;
    if raw.shape.len() > MAX_RANK {
        let found = format!("{} dimensions", raw.shape.len());
        return Err(wrong(format!("at most {MAX_RANK} dimensions"), found, DAMAGED));
    }
    // Saturating is exact enough: no file is that long.
    let elements = raw.shape.iter().fold(1u64, |n, &d| n.saturating_mul(d));
    let bytes = elements.saturating_mul(raw.dtype.bitsize() as u64 / 8);

    let (begin, end) = raw.data_offsets;
    if end.checked_sub(begin) != Some(bytes) {
        let expected = format!("{bytes} bytes for {} {:?}", raw.dtype, raw.shape);
        return Err(wrong(expected, format!("the byte range {begin}..{end}"), DAMAGED));
    }
    if end > length - data_start {
        let found =
            format!("the byte range {begin}..{end} in {} bytes of data", length - data_start);
        return Err(wrong(
            "a byte range inside the file".to_owned(),
            found,
            "The file is cut off: download it again.",
        ));
    }
    // end <= length of a file, so everything below fits.
    let shape = raw.shape.iter().map(|&d| d as usize).collect();
    let info = TensorInfo { shape, dtype };
    Ok(Entry { shard, stored: raw.dtype, info, start: data_start + begin, bytes: bytes as usize })
}

/// The byte ranges must cover the data exactly, in any order.
fn check_coverage(path: &Path, mut spans: Vec<((u64, u64), String)>, data: u64) -> Result<()> {
    spans.sort();
    let mut covered = 0;
    let mut previous = "the start of the data".to_owned();
    for ((begin, end), name) in spans {
        if begin != covered {
            let flaw = if begin < covered { "an overlap" } else { "a gap" };
            return Err(Error::file(
                path,
                format!("tensor {name:?}"),
                format!("it to begin at byte {covered}, right behind {previous}"),
                format!("{flaw}: it begins at byte {begin}"),
                "The file is damaged or was tampered with: download or write it again.",
            ));
        }
        covered = end;
        previous = format!("{name:?}");
    }
    if covered != data {
        let (expected, found) =
            (format!("{covered} bytes, as the header says"), format!("{data} bytes"));
        return Err(Error::file(
            path,
            "data",
            expected,
            found,
            "The file is damaged: download or write it again.",
        ));
    }
    Ok(())
}

/// Pickle files run code when they are loaded, so they are never read.
pub(super) fn refuse_pickle(path: &Path, first_bytes: &[u8]) -> Result<()> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    let named = ["bin", "ckpt", "pt", "pth", "pkl", "pickle"].contains(&extension.as_str());
    // PyTorch writes a zip archive, or (before 1.6) a bare pickle of protocol 2.
    let looks = first_bytes.starts_with(b"PK\x03\x04") || first_bytes.starts_with(b"\x80\x02");
    if !named && !looks {
        return Ok(());
    }
    path.metadata().map_err(|e| Error::io(path, e))?;
    let quoted = |p: &Path| format!("'{}'", p.display().to_string().replace('\'', r"'\''"));
    // The name under which a model folder is searched for its weights.
    let target = match path.file_stem().and_then(|s| s.to_str()) {
        Some("pytorch_model") => path.with_file_name("model.safetensors"),
        _ => path.with_extension("safetensors"),
    };
    let advice = format!(
        "Convert it once (the script needs PyTorch, and runs nothing in the file): nadir convert --script > \
         pickle_to_safetensors.py && python pickle_to_safetensors.py {} {}",
        quoted(path),
        quoted(&target)
    );
    Err(Error::file(
        path,
        "weights",
        "a safetensors file",
        "a pickle file, which can run code when loaded",
        advice,
    ))
}

/// Writes tensors to a safetensors file, atomically (see [`atomic::write`]).
///
/// Tensors may live on any device and have any strides; one at a time is brought to CPU memory.
///
/// # Errors
/// Two tensors of one name, or the file cannot be written.
pub fn save(
    path: &Path,
    tensors: &[(String, Tensor)],
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let describe = |(name, tensor): &(String, Tensor)| {
        (name.clone(), TensorInfo { shape: tensor.dims().to_vec(), dtype: tensor.dtype() })
    };
    let mut by_name: BTreeMap<&str, &Tensor> = BTreeMap::new();
    by_name.extend(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)));
    write(path, tensors.iter().map(describe).collect(), metadata, |name| Ok(by_name[name].clone()))
}

/// As [`save`], of tensors that `read` gives one at a time, by name, in whatever order the file has them.
///
/// # Errors
/// As [`save`]; what `read` answers, or `File` when it gives another shape or dtype than was announced.
pub fn write(
    path: &Path,
    mut tensors: Vec<(String, TensorInfo)>,
    metadata: &BTreeMap<String, String>,
    mut read: impl FnMut(&str) -> Result<Tensor>,
) -> Result<()> {
    // Wide types first, so that every tensor is aligned to its own width; then by name, so that equal
    // content gives equal files.
    tensors.sort_by(|(a, x), (b, y)| y.dtype.size().cmp(&x.dtype.size()).then_with(|| a.cmp(b)));

    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".to_owned(), serde_json::json!(metadata));
    }
    let mut offset = 0;
    for (name, TensorInfo { shape, dtype }) in &tensors {
        let end = offset + shape.iter().product::<usize>() * dtype.size();
        let stored = dtype.name().to_ascii_uppercase();
        let entry =
            serde_json::json!({ "dtype": stored, "shape": shape, "data_offsets": [offset, end] });
        if header.insert(name.clone(), entry).is_some() {
            let what = format!("tensor {name:?}");
            return Err(Error::file(
                path,
                what,
                "each tensor once",
                "it twice",
                "Give every tensor its own name.",
            ));
        }
        offset = end;
    }
    let mut json = serde_json::Value::Object(header).to_string().into_bytes();
    // Data begins at a multiple of 8, as the format asks of writers.
    json.resize(json.len().next_multiple_of(PREFIX as usize), b' ');

    let mut checked = |name: &str, info: &TensorInfo| {
        let tensor = read(name)?;
        if tensor.dims() != info.shape || tensor.dtype() != info.dtype {
            let expected = format!("{} {:?}", info.dtype, info.shape);
            let found = format!("{} {}", tensor.dtype(), tensor.shape());
            let advice = "It changed while the file was being written.";
            return Err(Error::file(path, format!("tensor {name:?}"), expected, found, advice));
        }
        Ok(tensor)
    };
    // An error of the tensor layer is carried past the writer, which speaks io::Error only.
    let mut failed = None;
    let written = atomic::write(path, |out| {
        out.write_all(&(json.len() as u64).to_le_bytes())?;
        out.write_all(&json)?;
        for (name, info) in &tensors {
            let written = checked(name, info)
                .and_then(|tensor| with_bytes(&tensor, |bytes| out.write_all(bytes)));
            match written {
                Ok(done) => done?,
                Err(e) => {
                    failed = Some(e);
                    return Err(ErrorKind::Other.into());
                }
            }
        }
        Ok(())
    });
    failed.map_or(written, Err)
}

fn with_bytes<R>(tensor: &Tensor, use_bytes: impl FnOnce(&[u8]) -> R) -> Result<R> {
    let tensor = tensor.to_device(Device::Cpu)?.contiguous()?;
    Ok(use_bytes(match tensor.dtype() {
        DType::F32 => bytemuck::cast_slice(tensor.as_slice::<f32>()?),
        DType::F16 => bytemuck::cast_slice(tensor.as_slice::<half::f16>()?),
        DType::BF16 => bytemuck::cast_slice(tensor.as_slice::<half::bf16>()?),
        DType::F64 => bytemuck::cast_slice(tensor.as_slice::<f64>()?),
        DType::I64 => bytemuck::cast_slice(tensor.as_slice::<i64>()?),
        DType::U32 => bytemuck::cast_slice(tensor.as_slice::<u32>()?),
        DType::U8 => tensor.as_slice::<u8>()?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn every_dtype_survives_the_round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("all.safetensors");
        let tensors = vec![
            (
                "f32".to_owned(),
                Tensor::from_vec(vec![1.5f32, -0.0, f32::NAN, 3e-42], [2, 2]).unwrap(),
            ),
            ("f16".to_owned(), Tensor::from_vec(vec![f16::from_f32(0.1); 3], [3, 1]).unwrap()),
            ("bf16".to_owned(), Tensor::from_vec(vec![bf16::from_f32(-7.0)], [1]).unwrap()),
            ("f64".to_owned(), Tensor::from_vec(vec![std::f64::consts::PI], [1, 1, 1]).unwrap()),
            ("i64".to_owned(), Tensor::from_vec(vec![i64::MIN, 7], [2]).unwrap()),
            ("u32".to_owned(), Tensor::from_vec(vec![u32::MAX], [1]).unwrap()),
            ("u8".to_owned(), Tensor::from_vec(vec![0u8, 255, 3], [3]).unwrap()),
        ];
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        save(&path, &tensors, &metadata).unwrap();

        let file = SafeTensors::open(&path).unwrap();
        assert_eq!(file.metadata(), &metadata);
        assert_eq!(file.names().len(), tensors.len());
        for (name, tensor) in &tensors {
            let read = file.read(name).unwrap();
            let info = file.info(name).unwrap();
            assert_eq!((info.shape.as_slice(), info.dtype), (tensor.dims(), tensor.dtype()));
            assert_eq!((read.dims(), read.dtype()), (tensor.dims(), tensor.dtype()));
            // As bytes: NaN and -0 must survive too.
            let bytes = with_bytes(tensor, <[u8]>::to_vec).unwrap();
            assert_eq!(with_bytes(&read, <[u8]>::to_vec).unwrap(), bytes, "{name}");
        }
        // The format's own implementation reads the same.
        let raw = std::fs::read(&path).unwrap();
        let theirs = ::safetensors::SafeTensors::deserialize(&raw).unwrap();
        assert_eq!(theirs.tensor("i64").unwrap().data(), bytemuck::bytes_of(&[i64::MIN, 7]));
        assert_eq!(theirs.len(), tensors.len());
    }

    #[test]
    fn a_strided_tensor_is_written_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        let t = Tensor::from_vec((0..6).map(|i| i as f32).collect(), [2, 3])
            .unwrap()
            .permute(&[1, 0])
            .unwrap();
        save(&path, &[("t".to_owned(), t)], &BTreeMap::new()).unwrap();
        let read = SafeTensors::open(&path).unwrap().read("t").unwrap();
        assert_eq!(read.dims(), [3, 2]);
        assert_eq!(read.to_vec::<f32>().unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    }
}
