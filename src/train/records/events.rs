//! What was measured, as TensorBoard reads it: a file of events a process, in `logs/`.
//!
//! An event is a protocol buffer (`tensorflow/core/util/event.proto`) in a frame of its length, its bytes and masked
//! CRC-32C sums of both (`tensorflow/core/lib/io/record_writer.h`). A run that goes on says with the first event from
//! where, and TensorBoard forgets what an earlier process had written beyond.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// A file that events are appended to.
pub(super) struct EventLog {
    path: PathBuf,
    file: File,
}

impl EventLog {
    /// A new file in `folder`, of a run that has taken `step` steps.
    ///
    /// # Errors
    /// The folder or the file cannot be made.
    pub fn create(folder: &Path, step: u64) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let seconds = now() as u64;
        // TensorBoard reads files in the order of their names, and needs the third part.
        let name =
            |i: u32| format!("events.out.tfevents.{seconds:010}.nadir.{}.{i}", std::process::id());
        let create = |i| {
            let path = folder.join(name(i));
            let made = OpenOptions::new().append(true).create_new(true).open(&path);
            (path, made)
        };
        let taken = |made: &(PathBuf, std::io::Result<File>)| {
            made.1.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::AlreadyExists)
        };
        let (path, file) =
            (0..100).map(create).find(|made| !taken(made)).unwrap_or_else(|| create(100));
        let file = file.map_err(|e| Error::io(&path, e))?;
        let mut log = Self { path, file };
        log.append(0, &[string(3, "brain.Event:2")])?;
        if step > 0 {
            // SessionLog with status START: events of this step and later ones are void.
            log.append(step + 1, &[message(7, &[number(1, 1)])])?;
        }
        Ok(log)
    }

    /// Writes numbers by name.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let value =
            |(name, value): &(&str, f64)| message(1, &[string(1, name), float(2, *value as f32)]);
        let values: Vec<_> = values.iter().map(value).collect();
        self.append(step, &[message(5, &values)])
    }

    /// Writes a picture, given as a PNG file of `width` x `height` pixels.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn picture(
        &mut self,
        step: u64,
        name: &str,
        [width, height]: [u32; 2],
        png: &[u8],
    ) -> Result<()> {
        const RGB: u64 = 3;
        let image = message(
            4,
            &[number(1, height.into()), number(2, width.into()), number(3, RGB), bytes(4, png)],
        );
        self.append(step, &[message(5, &[message(1, &[string(1, name), image])])])
    }

    fn append(&mut self, step: u64, what: &[Vec<u8>]) -> Result<()> {
        let mut event = vec![1 << 3 | FIXED64];
        event.extend(now().to_le_bytes());
        event.extend(number(2, step));
        event.extend(what.concat());
        // In one call: who reads meanwhile finds whole records, but for the last.
        self.file.write_all(&framed(&event)).map_err(|e| Error::io(&self.path, e))
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

// Fields of protocol buffers, by number.

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH: u8 = 2;
const FIXED32: u8 = 5;

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn number(field: u8, value: u64) -> Vec<u8> {
    let mut out = vec![field << 3 | VARINT];
    varint(value, &mut out);
    out
}

fn float(field: u8, value: f32) -> Vec<u8> {
    [&[field << 3 | FIXED32][..], &value.to_le_bytes()].concat()
}

fn bytes(field: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![field << 3 | LENGTH];
    varint(value.len() as u64, &mut out);
    out.extend(value);
    out
}

fn string(field: u8, value: &str) -> Vec<u8> {
    bytes(field, value.as_bytes())
}

fn message(field: u8, fields: &[Vec<u8>]) -> Vec<u8> {
    bytes(field, &fields.concat())
}

/// A record: length, its sum, the bytes, their sum.
fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let sum = |bytes: &[u8]| masked(crc32c(bytes)).to_le_bytes();
    [&length, &sum(&length)[..], data, &sum(data)].concat()
}

/// A sum of data that hold sums would be weak: it is turned and moved.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), reflected; RFC 3720, appendix B.4.
fn crc32c(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table();
    !data.iter().fold(!0, |crc, byte| TABLE[(crc as u8 ^ byte) as usize] ^ (crc >> 8))
}

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let (mut crc, mut bit) = (i as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_the_standard() {
        // RFC 3720, appendix B.4, and the check value of the catalogue of parametrised CRCs.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&std::array::from_fn::<u8, 32, _>(|i| i as u8)), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    /// Division of polynomials bit by bit, highest power first: nothing in common with the table.
    fn remainder(data: &[u8]) -> u32 {
        let bits = data.iter().flat_map(|byte| (0..8).map(move |i| byte >> i & 1 == 1));
        let mut register = !0u32;
        for bit in bits {
            let out = register >> 31 == 1;
            register <<= 1;
            if out != bit {
                register ^= 0x1edc_6f41;
            }
        }
        !register.reverse_bits()
    }

    /// The records of a file, whose sums are checked.
    fn records(mut file: &[u8]) -> Vec<Vec<u8>> {
        let sum = |bytes: &[u8]| {
            // Multiplied by 2^17 in 32 bits that go round: as if turned right by 15.
            let turned = u64::from(remainder(bytes)) << 17;
            ((turned | turned >> 32) as u32).wrapping_add(0xa282_ead8).to_le_bytes()
        };
        let mut all = Vec::new();
        while !file.is_empty() {
            let (length, rest) = file.split_at(8);
            assert_eq!(rest[..4], sum(length));
            let n = u64::from_le_bytes(length.try_into().unwrap()) as usize;
            let data = &rest[4..4 + n];
            assert_eq!(rest[4 + n..8 + n], sum(data));
            all.push(data.to_vec());
            file = &rest[8 + n..];
        }
        all
    }

    #[test]
    fn a_file_is_what_tensorboard_reads() {
        let folder = tempfile::tempdir().unwrap();
        let logs = folder.path().join("logs");
        let mut log = EventLog::create(&logs, 300).unwrap();
        log.scalars(301, &[("loss", 0.5), ("rate", 1e-4)]).unwrap();
        log.picture(301, "a", [2, 200], b"png").unwrap();
        // Another of the same process and second.
        drop(EventLog::create(&logs, 0).unwrap());
        assert_eq!(std::fs::read_dir(&logs).unwrap().count(), 2);

        let records = records(&std::fs::read(&log.path).unwrap());
        // Behind the time: 9 bytes.
        let parts: Vec<&[u8]> = records.iter().map(|record| &record[9..]).collect();
        assert!(records.iter().all(|record| record[0] == 0x09));
        assert_eq!(parts[0], b"\x10\x00\x1a\x0dbrain.Event:2");
        assert_eq!(parts[1], b"\x10\xad\x02\x3a\x02\x08\x01");
        let mut scalars = b"\x10\xad\x02\x2a\x1a\x0a\x0b\x0a\x04loss\x15".to_vec();
        scalars.extend(0.5f32.to_le_bytes());
        scalars.extend(b"\x0a\x0b\x0a\x04rate\x15");
        scalars.extend(1e-4f32.to_le_bytes());
        assert_eq!(parts[2], scalars);
        assert_eq!(
            parts[3],
            b"\x10\xad\x02\x2a\x13\x0a\x11\x0a\x01a\x22\x0c\x08\xc8\x01\x10\x02\x18\x03\x22\x03png"
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error_that_names_the_file() {
        let path = PathBuf::from("/dev/full");
        let file = OpenOptions::new().append(true).open(&path).unwrap();
        let error = EventLog { path, file }.scalars(1, &[("loss", 0.5)]).unwrap_err();
        assert!(error.to_string().contains("/dev/full"), "{error}");
    }
}
