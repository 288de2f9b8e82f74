//! Characters to tokens.

use super::SyntaxError;

/// One token of PTX text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Token<'a> {
    /// An identifier, directive, register or opcode with all its dotted parts: `ld.global.v4.u32`, `%tid.x`, `.reg`.
    Word(&'a str),
    Int(u64),
    /// Bits of a `0f` literal.
    F32(u32),
    /// Bits of a `0d` or decimal literal.
    F64(u64),
    Str(&'a str),
    Punct(u8),
    End,
}

impl Token<'_> {
    /// The token as an error message shows it.
    pub(crate) fn show(&self) -> String {
        match self {
            Token::Word(w) => format!("'{w}'"),
            Token::Int(i) => format!("'{i}'"),
            Token::F32(b) => format!("'0f{b:08X}'"),
            Token::F64(b) => format!("'0d{b:016X}'"),
            Token::Str(s) => format!("\"{s}\""),
            Token::Punct(c) => format!("'{}'", *c as char),
            Token::End => "end of text".into(),
        }
    }
}

/// A token and the 1-based line it starts on.
pub(crate) type Spanned<'a> = (Token<'a>, u32);

/// Splits `text` into tokens; the last one is [`Token::End`].
pub(crate) fn tokenize(text: &str) -> Result<Vec<Spanned<'_>>, SyntaxError> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::with_capacity(text.len() / 4);
    let (mut at, mut line) = (0, 1);
    while at < bytes.len() {
        let start = at;
        match bytes[at] {
            b'\n' => {
                line += 1;
                at += 1;
            }
            b' ' | b'\t' | b'\r' => at += 1,
            // The driver takes NUL-terminated text; whatever follows is not PTX.
            0 => break,
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                while at < bytes.len() && bytes[at] != b'\n' {
                    at += 1;
                }
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                let Some(len) = text[at..].find("*/") else {
                    return Err(SyntaxError::new(line, "comment is never closed"));
                };
                line += bytes[at..at + len].iter().filter(|b| **b == b'\n').count() as u32;
                at += len + 2;
            }
            b'"' => {
                let Some(len) = bytes[at + 1..].iter().position(|b| matches!(b, b'"' | b'\n'))
                else {
                    return Err(SyntaxError::new(line, "string is never closed"));
                };
                if bytes[at + 1 + len] == b'\n' {
                    return Err(SyntaxError::new(line, "string is never closed"));
                }
                tokens.push((Token::Str(&text[at + 1..at + 1 + len]), line));
                at += len + 2;
            }
            b'0'..=b'9' => {
                while at < bytes.len() && bytes[at].is_ascii_alphanumeric() {
                    at += 1;
                }
                let is_plain = bytes[start..at].iter().all(u8::is_ascii_digit);
                if is_plain && bytes.get(at) == Some(&b'.') {
                    at += 1;
                    while at < bytes.len() && bytes[at].is_ascii_digit() {
                        at += 1;
                    }
                }
                tokens.push((number(&text[start..at], line)?, line));
            }
            c if is_word_start(c) => {
                at += 1;
                loop {
                    match bytes.get(at) {
                        Some(c) if c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'.') => {
                            at += 1
                        }
                        Some(b':') if bytes.get(at + 1) == Some(&b':') => at += 2,
                        _ => break,
                    }
                }
                // The one constant that PTX defines itself.
                let token = match &text[start..at] {
                    "WARP_SZ" => Token::Int(32),
                    word => Token::Word(word),
                };
                tokens.push((token, line));
            }
            c if c.is_ascii_punctuation() => {
                tokens.push((Token::Punct(c), line));
                at += 1;
            }
            c => {
                return Err(SyntaxError::new(
                    line,
                    format!("byte 0x{c:02x} has no meaning in PTX"),
                ));
            }
        }
    }
    tokens.push((Token::End, line));
    Ok(tokens)
}

fn is_word_start(c: u8) -> bool {
    c.is_ascii_alphabetic() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

fn number(text: &str, line: u32) -> Result<Token<'_>, SyntaxError> {
    let bad = || SyntaxError::new(line, format!("'{text}' is not a number"));
    let digits = |radix: u32, skip: usize| {
        let body = text[skip..].trim_end_matches('U');
        u64::from_str_radix(body, radix).map(Token::Int).map_err(|_| bad())
    };
    match text.as_bytes() {
        [b'0', b'f' | b'F', ..] if text.len() == 10 => {
            u32::from_str_radix(&text[2..], 16).map(Token::F32).map_err(|_| bad())
        }
        [b'0', b'd' | b'D', ..] if text.len() == 18 => {
            u64::from_str_radix(&text[2..], 16).map(Token::F64).map_err(|_| bad())
        }
        [b'0', b'x' | b'X', ..] => digits(16, 2),
        [b'0', b'b' | b'B', ..] => digits(2, 2),
        bytes if bytes.contains(&b'.') => {
            text.parse::<f64>().map(|v| Token::F64(v.to_bits())).map_err(|_| bad())
        }
        [b'0', _, ..] => digits(8, 1),
        _ => digits(10, 0),
    }
}
