//! What a launch found without ending: warnings, and with `VGPU_ERRORS=continue` errors.

use std::collections::HashSet;
use std::sync::Mutex;

use super::fault::{Fault, FaultKind, Severity};

/// Findings that a launch keeps; a broken kernel has many more, all alike.
const MOST: usize = 100;

/// The findings of a launch, one for each instruction and kind.
#[derive(Default)]
pub(crate) struct Findings(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    seen: HashSet<(FaultKind, Severity, u32)>,
    faults: Vec<Fault>,
}

impl Findings {
    /// Keeps a finding at an instruction unless there is one like it.
    pub(crate) fn note(
        &self,
        pc: u32,
        kind: FaultKind,
        severity: Severity,
        fault: impl FnOnce() -> Fault,
    ) {
        let mut kept = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if kept.faults.len() < MOST && kept.seen.insert((kind, severity, pc)) {
            kept.faults.push(fault());
        }
    }

    pub(crate) fn into_faults(self) -> Vec<Fault> {
        self.0.into_inner().unwrap_or_else(|e| e.into_inner()).faults
    }
}
