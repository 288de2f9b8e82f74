//! What was measured at each step, as a CSV file that grows.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::io::atomic;

/// `metrics.csv` of a run: one line a step and kind, `step,name,value`.
pub(super) struct Csv {
    path: PathBuf,
    file: File,
}

/// A line of it.
pub(super) type Line = (u64, String, f64);

const HEADER: &str = "step,name,value";

impl Csv {
    /// Goes on behind step `step`: what a run that went further has written is taken away. The rest comes along.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(folder: &Path, step: u64) -> Result<(Self, Vec<Line>)> {
        let path = folder.join("metrics.csv");
        let before = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io(&path, e)),
        };
        // A line that a killed process left unfinished has no three fields.
        let kept: Vec<(&str, Line)> = before
            .lines()
            .filter_map(|text| Some((text, parse(text)?)))
            .filter(|(_, line)| line.0 <= step)
            .collect();
        let lines: Vec<&str> =
            [HEADER].into_iter().chain(kept.iter().map(|(text, _)| *text)).collect();
        atomic::write(&path, |out| writeln!(out, "{}", lines.join("\n")))?;
        let file = OpenOptions::new().append(true).open(&path).map_err(|e| Error::io(&path, e))?;
        Ok((Self { path, file }, kept.into_iter().map(|(_, line)| line).collect()))
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

fn parse(line: &str) -> Option<Line> {
    let mut fields = line.split(',');
    let line =
        (fields.next()?.parse().ok()?, fields.next()?.to_owned(), fields.next()?.parse().ok()?);
    fields.next().is_none().then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_run_goes_on_where_its_checkpoint_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.csv");
        let (mut csv, before) = Csv::open(folder.path(), 0).unwrap();
        assert!(before.is_empty());
        for step in 1..=3 {
            csv.write(step, &[("loss", 0.5 / step as f64), ("rate", 1e-4)]).unwrap();
        }
        drop(csv);
        std::fs::write(&path, std::fs::read_to_string(&path).unwrap() + "4,lo").unwrap();
        let (mut csv, before) = Csv::open(folder.path(), 2).unwrap();
        assert_eq!(before[2], (2, "loss".to_owned(), 0.25));
        assert_eq!(before.len(), 4);
        csv.write(3, &[("loss", 7.0)]).unwrap();
        let expected =
            "step,name,value\n1,loss,0.5\n1,rate,0.0001\n2,loss,0.25\n2,rate,0.0001\n3,loss,7\n";
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
    }
}
