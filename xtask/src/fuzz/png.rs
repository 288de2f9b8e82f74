//! PNG files as chunks (PNG specification, 5.3), so that damage gets past the checksums.

use super::mutate::{self, Rng};

const SIGNATURE: usize = 8;

/// Damages a PNG file: its bytes, or one of its chunks, most often with a checksum that is right again.
pub fn damage(rng: &mut Rng, file: &mut Vec<u8>) {
    if rng.below(6) == 0 {
        return mutate::bytes(rng, file);
    }
    let mut chunks = chunks(file);
    let at = rng.below(chunks.len());
    match rng.below(10) {
        0 => drop(chunks.remove(at)),
        1 => {
            let again = chunks[at].clone();
            (0..1 << rng.below(10)).for_each(|_| chunks.insert(at, again.clone()));
        }
        2 => {
            let other = rng.below(chunks.len());
            chunks.swap(at, other);
        }
        _ => {
            let (kind, data) = &mut chunks[at];
            match (&kind[1..], rng.below(8)) {
                (_, 0) => kind[rng.below(4)] ^= 1 << rng.below(8),
                (b"EXt" | b"TXt", _) => {
                    // Behind the keyword.
                    let text = data.iter().position(|&b| b == 0).map_or(data.len(), |end| end + 1);
                    let mut rest = data.split_off(text);
                    mutate::text(rng, &mut rest);
                    data.extend(rest);
                }
                _ => mutate::bytes(rng, data),
            }
        }
    }
    file.truncate(SIGNATURE);
    for (kind, data) in &chunks {
        let start = file.len() + 4;
        file.extend((data.len() as u32).to_be_bytes());
        file.extend(kind.iter().chain(data));
        let sum = crc32(&file[start..]);
        file.extend(if rng.below(50) == 0 { !sum } else { sum }.to_be_bytes());
    }
}

/// Kind and data of every chunk of a whole file.
fn chunks(file: &[u8]) -> Vec<([u8; 4], Vec<u8>)> {
    let (mut chunks, mut at) = (Vec::new(), SIGNATURE);
    while let Some(head) = file.get(at..at + 8) {
        let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        chunks.push(([head[4], head[5], head[6], head[7]], file[at + 8..at + 8 + len].to_vec()));
        at += 12 + len;
    }
    chunks
}

/// The checksum of a chunk (ISO 3309).
fn crc32(bytes: &[u8]) -> u32 {
    let bit = |crc: u32, _| if crc & 1 == 1 { 0xedb8_8320 ^ (crc >> 1) } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), bit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_every_empty_end() {
        assert_eq!(crc32(b"IEND"), 0xae42_6082);
    }
}
