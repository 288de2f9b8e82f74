//! Failures on demand, so that programs can test what they do about them: `VGPU_FAIL_ALLOC` and
//! `VGPU_FAIL_LAUNCH`.

use std::path::PathBuf;

use super::error::{self, Code};

/// Which calls of one sort fail: the n-th, or the n-th and all after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Countdown {
    /// Number of the call that fails, from 1; 0 for none.
    at: u64,
    and_later: bool,
    calls: u64,
}

impl Countdown {
    /// `5` or `5+`.
    fn parse(text: &str) -> Option<Self> {
        let (digits, and_later) = match text.strip_suffix('+') {
            Some(digits) => (digits, true),
            None => (text, false),
        };
        let at = digits.parse().ok().filter(|n| *n > 0)?;
        Some(Self { at, and_later, calls: 0 })
    }

    /// Counts a call and says whether it is to fail.
    fn strikes(&mut self) -> bool {
        self.calls += 1;
        self.at != 0 && (self.calls == self.at || self.and_later && self.calls > self.at)
    }
}

/// A count that the program changes as it runs: the text of a file, looked at before each call.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Script {
    file: PathBuf,
    text: String,
}

/// What is to fail.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FailurePlan {
    allocations: Countdown,
    /// Where `allocations` is from, when it is from a file.
    script: Option<Script>,
    launches: Countdown,
    code: Code,
}

impl FailurePlan {
    /// The plan of `VGPU_FAIL_ALLOC` (`n` or `n+`, or `@FILE`, a file that has one of them, or nothing) and `VGPU_FAIL_LAUNCH` (the same, optionally with
    /// `:CODE`, the number of the error that the context dies of). What cannot be read is said and ignored.
    pub(crate) fn new(allocations: Option<&str>, launches: Option<&str>) -> Self {
        let read = |name: &str, text: &str| {
            Countdown::parse(text).unwrap_or_else(|| {
                eprintln!("vgpu: {name}={text} is neither n nor n+ with n from 1; it is ignored");
                Countdown::default()
            })
        };
        let mut plan = Self { code: error::LAUNCH_FAILED, ..Self::default() };
        match allocations.map(|text| text.strip_prefix('@').ok_or(text)) {
            None => {}
            Some(Ok(file)) => {
                plan.script = Some(Script { file: file.into(), text: String::new() });
            }
            Some(Err(text)) => plan.allocations = read("VGPU_FAIL_ALLOC", text),
        }
        if let Some(text) = launches {
            let (count, code) = text.split_once(':').unwrap_or((text, ""));
            plan.launches = read("VGPU_FAIL_LAUNCH", count);
            match code.parse() {
                Ok(code) if code != error::SUCCESS => plan.code = code,
                _ if code.is_empty() => {}
                _ => eprintln!("vgpu: VGPU_FAIL_LAUNCH={text} has no error code after the colon"),
            }
        }
        plan
    }

    /// To be asked before any allocation: of device, managed or page-locked memory, or by loading a module.
    pub(crate) fn allocation(&mut self) -> Result<(), Code> {
        if let Some(script) = &mut self.script {
            let text = std::fs::read_to_string(&script.file).unwrap_or_default();
            if text != script.text {
                self.allocations = Countdown::parse(text.trim()).unwrap_or_default();
                script.text = text;
            }
        }
        if !self.allocations.strikes() {
            return Ok(());
        }
        eprintln!("vgpu: allocation {} refused (VGPU_FAIL_ALLOC)", self.allocations.calls);
        Err(error::OUT_OF_MEMORY)
    }

    /// To be asked before a kernel runs: the error that it ends with, if it is to fail.
    pub(crate) fn launch(&mut self, kernel: &str) -> Result<(), Code> {
        if !self.launches.strikes() {
            return Ok(());
        }
        eprintln!("vgpu: launch {} of {kernel} failed (VGPU_FAIL_LAUNCH)", self.launches.calls);
        Err(self.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocations(text: &str) -> Vec<bool> {
        let mut plan = FailurePlan::new(Some(text), None);
        (0..4).map(|_| plan.allocation().is_err()).collect()
    }

    #[test]
    fn the_call_that_was_named_fails() {
        assert_eq!(allocations("3"), [false, false, true, false]);
        assert_eq!(allocations("3+"), [false, false, true, true]);
        for nonsense in ["0", "", "x", "+", "-1"] {
            assert_eq!(allocations(nonsense), [false; 4], "{nonsense}");
        }
    }

    #[test]
    fn a_file_may_say_which_call_fails() {
        let file = std::env::temp_dir().join(format!("vgpu-fail-{}", std::process::id()));
        let mut plan = FailurePlan::new(Some(&format!("@{}", file.display())), None);
        let mut failed = |text: &str| {
            std::fs::write(&file, text).unwrap();
            (0..3).map(|_| plan.allocation().is_err()).collect::<Vec<_>>()
        };
        assert_eq!(failed(""), [false; 3]);
        assert_eq!(failed("2"), [false, true, false]);
        // Counting goes on while the file is as it was, and begins anew when it is not.
        assert_eq!(failed("2"), [false; 3]);
        assert_eq!(failed("2+\n"), [false, true, true]);
        assert_eq!(failed("none"), [false; 3]);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(plan.allocation(), Ok(()));
    }

    #[test]
    fn a_launch_dies_of_the_error_that_was_named() {
        let mut plan = FailurePlan::new(None, Some("2:999"));
        assert_eq!([plan.launch("k"), plan.launch("k")], [Ok(()), Err(999)]);
        assert_eq!(FailurePlan::new(None, Some("1")).launch("k"), Err(error::LAUNCH_FAILED));
        assert_eq!(FailurePlan::new(None, Some("1:0")).launch("k"), Err(error::LAUNCH_FAILED));
    }
}
