//! Functions that CUDA's device code calls and the driver provides: printf and assert.

use std::ffi::{CString, c_char, c_int};

use super::Env;
use super::fault::FaultKind;
use super::memory::LOCAL_WINDOW;
use super::warp::{Checked, Warp, found, lanes};
use crate::isa::Builtin;
use crate::isa::lanes::LANES;

/// Longest string that is read from device memory.
const MAX_STRING: usize = 4096;

impl Warp {
    fn local_u64(&self, lane: usize, offset: u32) -> u64 {
        let at = self.local_at(lane, self.base[lane] as u64 + offset as u64);
        self.local
            .get(at..at + 8)
            .map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap_or_default()))
    }

    /// Bytes at a generic address, as far as they can be read.
    fn bytes_at(&self, env: &Env, lane: usize, address: u64, len: usize) -> Option<Vec<u8>> {
        if address >> 56 == LOCAL_WINDOW >> 56 {
            let offset = (address - LOCAL_WINDOW) as usize;
            let limit = self.local.len() / LANES;
            let at = self.local_at(lane, offset as u64);
            return (offset + len <= limit).then(|| self.local[at..at + len].to_vec());
        }
        let allocation = env.memory.range(address, len as u64).ok()?;
        // SAFETY: the range lies in an allocation that is alive.
        Some(unsafe { std::slice::from_raw_parts(allocation.pointer(address), len) }.to_vec())
    }

    fn string_at(&self, env: &Env, lane: usize, address: u64) -> String {
        let mut text = Vec::new();
        while text.len() < MAX_STRING {
            match self.bytes_at(env, lane, address + text.len() as u64, 1).as_deref() {
                Some([0]) | None => break,
                Some(bytes) => text.extend_from_slice(bytes),
            }
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    pub(crate) fn builtin(
        &mut self,
        env: &Env,
        which: Builtin,
        inputs: &[u32],
        output: Option<u32>,
        mask: u32,
    ) -> Checked<()> {
        for lane in lanes(mask) {
            match (which, inputs) {
                (Builtin::Printf, [format, arguments]) => {
                    let (format, arguments) =
                        (self.local_u64(lane, *format), self.local_u64(lane, *arguments));
                    let format = self.string_at(env, lane, format);
                    let (text, count) = self.format(env, lane, &format, arguments);
                    let mut out = env.printed.lock().unwrap_or_else(|e| e.into_inner());
                    out.extend_from_slice(text.as_bytes());
                    if let Some(output) = output {
                        let at = self.local_at(lane, self.base[lane] as u64 + output as u64);
                        self.local[at..at + 4].copy_from_slice(&count.to_le_bytes());
                        if env.undefined {
                            self.local_defined[at..at + 4].fill(1);
                        }
                    }
                }
                (Builtin::Assert, [message, file, line, function, ..]) => {
                    let text =
                        |offset: &u32| self.string_at(env, lane, self.local_u64(lane, *offset));
                    let line = self.local_u64(lane, *line) as u32;
                    let message = format!(
                        "{}:{line}: {}: assertion `{}` failed",
                        text(file),
                        text(function),
                        text(message)
                    );
                    return found(FaultKind::Assert, lane, message);
                }
                _ => {
                    return found(
                        FaultKind::IllegalInstruction,
                        lane,
                        "call of a device function with wrong parameters",
                    );
                }
            }
        }
        Ok(())
    }

    /// C's printf, from arguments that lie packed in memory with their natural alignment.
    fn format(&self, env: &Env, lane: usize, format: &str, arguments: u64) -> (String, u32) {
        let mut at = 0u64;
        let mut next = |size: u64| {
            at = at.next_multiple_of(size);
            let bytes = self.bytes_at(env, lane, arguments + at, size as usize).unwrap_or_default();
            at += size;
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(&bytes);
            u64::from_le_bytes(word)
        };
        let mut out = String::new();
        let mut count = 0;
        let mut chars = format.chars().peekable();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut spec = String::from("%");
            let mut is_long = false;
            let conversion = loop {
                match chars.next() {
                    Some('*') => spec += &(next(4) as i32).clamp(-MAX_WIDTH, MAX_WIDTH).to_string(),
                    Some('l' | 'L' | 'q' | 'j' | 'z' | 't') => is_long = true,
                    Some('h') => {}
                    Some(c) if c.is_ascii_digit() || "-+ #.".contains(c) => spec.push(c),
                    other => break other,
                }
            };
            let Some(conversion) = conversion else { break };
            if conversion == '%' {
                out.push('%');
                continue;
            }
            count += 1;
            let size = if is_long { 8 } else { 4 };
            out += &match conversion {
                'd' | 'i' if is_long => print(&spec, "lld", next(8)),
                'd' | 'i' => print(&spec, "lld", next(4) as i32 as i64 as u64),
                'u' | 'x' | 'X' | 'o' => print(&spec, &format!("ll{conversion}"), next(size)),
                'c' => print(&spec, "c", next(4)),
                'p' => print(&spec, "p", next(8)),
                'f' | 'F' | 'e' | 'E' | 'g' | 'G' | 'a' | 'A' => {
                    print_float(&spec, conversion, f64::from_bits(next(8)))
                }
                's' => print_string(&spec, &self.string_at(env, lane, next(8))),
                other => format!("{spec}{other}"),
            };
        }
        (out, count)
    }
}

/// Widest field and longest precision that is honoured.
const MAX_WIDTH: i32 = 1000;

unsafe extern "C" {
    fn snprintf(buffer: *mut c_char, size: usize, format: *const c_char, ...) -> c_int;
}

/// Whether a width or precision in a conversion stays within the buffer.
fn is_bounded(spec: &str) -> bool {
    spec.split(|c: char| !c.is_ascii_digit()).all(|n| n.len() <= 3)
}

fn finish(buffer: &[u8]) -> String {
    let len = buffer.iter().position(|b| *b == 0).unwrap_or(0);
    String::from_utf8_lossy(&buffer[..len]).into_owned()
}

fn c_format(spec: &str, conversion: &str) -> Option<CString> {
    is_bounded(spec).then(|| CString::new(format!("{spec}{conversion}")).ok()).flatten()
}

fn print(spec: &str, conversion: &str, value: u64) -> String {
    let mut buffer = [0u8; 4096];
    if let Some(format) = c_format(spec, conversion) {
        // SAFETY: the format has one conversion, of a 64-bit integer, and the buffer's size is given.
        unsafe { snprintf(buffer.as_mut_ptr().cast(), buffer.len(), format.as_ptr(), value) };
    }
    finish(&buffer)
}

fn print_float(spec: &str, conversion: char, value: f64) -> String {
    let mut buffer = [0u8; 4096];
    if let Some(format) = c_format(spec, &conversion.to_string()) {
        // SAFETY: the format has one conversion, of a double, and the buffer's size is given.
        unsafe { snprintf(buffer.as_mut_ptr().cast(), buffer.len(), format.as_ptr(), value) };
    }
    finish(&buffer)
}

fn print_string(spec: &str, value: &str) -> String {
    let mut buffer = vec![0u8; value.len() + 4096];
    if let (Some(format), Ok(value)) = (c_format(spec, "s"), CString::new(value)) {
        // SAFETY: the format has one conversion, of a string that ends, and the buffer's size is given.
        unsafe {
            snprintf(buffer.as_mut_ptr().cast(), buffer.len(), format.as_ptr(), value.as_ptr())
        };
    }
    finish(&buffer)
}
