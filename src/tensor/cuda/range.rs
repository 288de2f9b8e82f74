//! Ranges: which part of a model launches what.

use std::cell::RefCell;
use std::ffi::{CStr, CString};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use super::nvtx::Tool;
use super::profile::is_profiling;

thread_local! {
    /// The ranges that this thread is in, the innermost last, while it profiles.
    static OPEN: RefCell<Vec<Range>> = const { RefCell::new(Vec::new()) };
}

/// A part of a model by its path, `unet.down_blocks.1.attentions.0.proj_in`. What is launched within it is told apart by
/// [`profile`](super::profile), and by the profiler that the process runs under (`NVTX_INJECTION64_PATH`, which NVIDIA's
/// tools set). Without either it costs next to nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Range(Arc<CStr>);

/// A range that is left when this goes.
#[must_use = "the range lasts as long as this"]
pub struct Entered {
    tool: Option<&'static Tool>,
    is_profiled: bool,
    /// Ranges are a thread's own.
    here: PhantomData<*const ()>,
}

impl Range {
    /// A range of this name, which has no zero byte.
    pub fn new(name: &str) -> Self {
        Self(CString::new(name).unwrap_or_default().into())
    }

    /// The range of several parts as one: what their paths have in common.
    pub fn of_all<'a>(mut parts: impl Iterator<Item = &'a Self>) -> Self {
        let mut common = parts.next().map_or_else(String::new, |first| first.name().to_owned());
        for part in parts {
            let alike = |(a, b): &(&str, &str)| a == b;
            let words = common.split('.').zip(part.name().split('.')).take_while(alike);
            common = words.map(|(word, _)| word).collect::<Vec<_>>().join(".");
        }
        Self::new(&common)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    /// Has what this thread launches from now on be of this part.
    pub fn enter(&self) -> Entered {
        let (tool, is_profiled) = (Tool::attached(), is_profiling());
        if let Some(tool) = tool {
            tool.push(&self.0);
        }
        if is_profiled {
            OPEN.with_borrow_mut(|open| open.push(self.clone()));
        }
        Entered { tool, is_profiled, here: PhantomData }
    }

    /// The innermost range that this thread is in, while it profiles.
    pub(super) fn current() -> Option<Self> {
        OPEN.with_borrow(|open| open.last().cloned())
    }
}

impl fmt::Debug for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if self.is_profiled {
            OPEN.with_borrow_mut(Vec::pop);
        }
        if let Some(tool) = self.tool {
            tool.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_are_one_have_the_path_they_share() {
        let of_all = |names: &[&str]| {
            let ranges: Vec<Range> = names.iter().map(|name| Range::new(name)).collect();
            Range::of_all(ranges.iter()).name().to_owned()
        };
        assert_eq!(of_all(&["unet.a.1.attn1.to_q", "unet.a.1.attn1.to_k"]), "unet.a.1.attn1");
        assert_eq!(of_all(&["unet.a.1.x", "unet.a.11.x", "unet.b"]), "unet");
        assert_eq!(of_all(&["unet.a", "vae.a"]), "");
        assert_eq!(of_all(&["unet.a"]), "unet.a");
        assert_eq!(of_all(&[]), "");
    }
}
