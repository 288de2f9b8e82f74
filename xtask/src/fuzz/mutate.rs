//! Damage: what happens to bytes, and what happens to text that is numbers, words and brackets.

/// Numbers that are the same for the same seed (splitmix64).
pub struct Rng(u64);

impl Rng {
    /// The numbers of case `case` of a run.
    pub fn of_case(seed: u64, case: u64) -> Self {
        let mut rng = Self(seed ^ case.wrapping_mul(0x2545_f491_4f6c_dd1d));
        rng.bits();
        rng
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// Changes one to four bytes, cuts the end off, or adds, removes or doubles a stretch.
pub fn bytes(rng: &mut Rng, bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        bytes.push(rng.bits() as u8);
        return;
    }
    let at = rng.below(bytes.len());
    let stretch = (1 << rng.below(9)).min(bytes.len() - at);
    match rng.below(8) {
        0 => bytes.truncate(at),
        1 => drop(bytes.drain(at..at + stretch)),
        2 => {
            let again = bytes[at..at + stretch].to_vec();
            bytes.splice(at..at, again);
        }
        3 => {
            let new: Vec<u8> = (0..stretch).map(|_| rng.bits() as u8).collect();
            bytes.splice(at..at, new);
        }
        4 => bytes[at..at + stretch].fill(*rng.pick(&[0, 0xff, 0x7f, 0x80])),
        _ => {
            for _ in 0..1 + rng.below(4) {
                let at = rng.below(bytes.len());
                bytes[at] = if rng.below(2) == 0 {
                    rng.bits() as u8
                } else {
                    bytes[at] ^ (1 << rng.below(8))
                };
            }
        }
    }
}

/// Numbers that programs stumble over.
const NUMBERS: [&str; 30] = [
    "0",
    "1",
    "-1",
    "2",
    "3",
    "7",
    "64",
    "127",
    "128",
    "255",
    "256",
    "4096",
    "65535",
    "65536",
    "1000000",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "0.5",
    "-0.0",
    "1e-320",
    "3.5e38",
    "1e308",
    "1e400",
    "1e-400",
];

/// What may stand where something else should.
const WORDS: [&str; 16] = [
    "null",
    "true",
    "false",
    "NaN",
    "Infinity",
    "-Infinity",
    "\"\"",
    "[]",
    "{}",
    "[[]]",
    "[1, 2, 3]",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "\"../../../../etc/passwd\"",
    "\"\\u001b[31m\"",
    "{\"a\": 1}",
];

/// Changes one to three tokens of a text or a few of its bytes.
pub fn text(rng: &mut Rng, text: &mut Vec<u8>) {
    if rng.below(8) == 0 {
        return bytes(rng, text);
    }
    for _ in 0..1 + rng.below(3) {
        let tokens = tokens(text);
        if tokens.is_empty() {
            return bytes(rng, text);
        }
        let token = rng.pick(&tokens).clone();
        let found = text[token.clone()].to_vec();
        let number = found[0].is_ascii_digit() || found[0] == b'-';
        let new = match rng.below(12) {
            0..5 if number => number_like(rng, &found),
            0..3 => text[rng.pick(&tokens).clone()].to_vec(),
            3..5 => rng.pick(&WORDS).as_bytes().to_vec(),
            5 => rng.pick(&NUMBERS).as_bytes().to_vec(),
            6 => Vec::new(),
            7 => [found.as_slice(), b", ", &found].concat(),
            8 => found.repeat(1 << rng.below(18)),
            9 => rng.pick(&[&b"["[..], b"{\"a\":", b"("]).repeat(1 << rng.below(18)),
            10 => {
                let line = line(text, token.start);
                let again = text[line.clone()].to_vec();
                text.splice(line.start..line.start, again);
                continue;
            }
            _ => {
                let line = line(text, token.start);
                drop(text.drain(line));
                continue;
            }
        };
        text.splice(token, new);
    }
}

/// Another number, often one near `found`.
fn number_like(rng: &mut Rng, found: &[u8]) -> Vec<u8> {
    let value = std::str::from_utf8(found).ok().and_then(|text| text.parse::<i64>().ok());
    match (value, rng.below(2)) {
        (Some(value), 0) => {
            let near = [
                value - 1,
                value + 1,
                value / 2,
                value.saturating_mul(2),
                value.saturating_mul(1000),
                -value,
            ];
            rng.pick(&near).to_string().into_bytes()
        }
        _ => rng.pick(&NUMBERS).as_bytes().to_vec(),
    }
}

/// The places of numbers, words and quoted texts.
fn tokens(text: &[u8]) -> Vec<std::ops::Range<usize>> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b"_.$%-+".contains(&b) || b >= 0x80;
    let (mut tokens, mut at) = (Vec::new(), 0);
    while at < text.len() {
        let rest = &text[at..];
        let len = match rest[0] {
            b'"' => rest[1..].iter().position(|&b| b == b'"').map_or(rest.len(), |end| end + 2),
            b if word(b) => rest.iter().position(|&b| !word(b)).unwrap_or(rest.len()),
            _ => {
                at += 1;
                continue;
            }
        };
        tokens.push(at..at + len);
        at += len;
    }
    tokens
}

/// The line that `at` is in, with its end.
fn line(text: &[u8], at: usize) -> std::ops::Range<usize> {
    let start = text[..at].iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1);
    let end = text[at..].iter().position(|&b| b == b'\n').map_or(text.len(), |end| at + end + 1);
    start..end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_lines_are_whole() {
        let text = b"{\"a b\": -1.5e3,\n x_1[2]}\n";
        let found: Vec<_> =
            tokens(text).into_iter().map(|at| std::str::from_utf8(&text[at]).unwrap()).collect();
        assert_eq!(found, ["\"a b\"", "-1.5e3", "x_1", "2"]);
        assert_eq!((line(text, 3), line(text, 17)), (0..16, 16..25));
        assert_eq!(tokens(b"\"open").len(), 1);
    }

    #[test]
    fn a_case_is_the_same_again_and_differs_from_others() {
        let damaged = |case| {
            let mut rng = Rng::of_case(7, case);
            let mut file = b"{\"one\": 1, \"two\": [2, 3]}".to_vec();
            if case % 2 == 0 {
                text(&mut rng, &mut file)
            } else {
                bytes(&mut rng, &mut file)
            }
            file
        };
        let mut all: Vec<_> = (0..200).map(damaged).collect();
        assert!((0..200).all(|case| damaged(case as u64) == all[case]));
        all.sort();
        all.dedup();
        assert!(all.len() > 150, "{}", all.len());
    }
}
