//! What was measured at each step, as a CSV file that grows.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::io::atomic;

/// `metrics.csv` of a run: one line a step and kind, `step,name,value`.
pub(super) struct Metrics {
    path: PathBuf,
    file: File,
}

const HEADER: &str = "step,name,value";

impl Metrics {
    /// Goes on behind step `step`: what a run that went further has written is taken away.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(folder: &Path, step: u64) -> Result<Self> {
        let path = folder.join("metrics.csv");
        let before = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io(&path, e)),
        };
        let kept = before.lines().filter(|line| {
            let mut fields = line.split(',');
            let number = fields.next().and_then(|field| field.parse::<u64>().ok());
            // A line that a killed process left unfinished has no three fields.
            number.is_some_and(|number| number <= step) && fields.count() == 2
        });
        let lines: Vec<&str> = [HEADER].into_iter().chain(kept).collect();
        atomic::write(&path, |out| writeln!(out, "{}", lines.join("\n")))?;
        let file = OpenOptions::new().append(true).open(&path).map_err(|e| Error::io(&path, e))?;
        Ok(Self { path, file })
    }

    /// Writes the values of a step.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let line = |(name, value): &(&str, f64)| format!("{step},{name},{value}\n");
        let lines: String = values.iter().map(line).collect();
        self.file.write_all(lines.as_bytes()).map_err(|e| Error::io(&self.path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_run_goes_on_where_its_checkpoint_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.csv");
        let mut metrics = Metrics::open(folder.path(), 0).unwrap();
        for step in 1..=3 {
            metrics.write(step, &[("loss", 0.5 / step as f64), ("rate", 1e-4)]).unwrap();
        }
        drop(metrics);
        std::fs::write(&path, std::fs::read_to_string(&path).unwrap() + "4,lo").unwrap();
        let mut metrics = Metrics::open(folder.path(), 2).unwrap();
        metrics.write(3, &[("loss", 7.0)]).unwrap();
        let expected =
            "step,name,value\n1,loss,0.5\n1,rate,0.0001\n2,loss,0.25\n2,rate,0.0001\n3,loss,7\n";
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
    }
}
