//! Running other programs, and where the workspace is.
//!
//! Ctrl-C reaches the whole foreground group, the program that runs included: it ends, and so does the chore.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

/// A program that ran and failed.
#[derive(Debug)]
pub struct Failed {
    program: String,
    status: ExitStatus,
}

impl Failed {
    /// The code to exit with: the program's own, or 130 when a signal ended it.
    pub fn code(&self) -> u8 {
        self.status.code().map_or(130, |code| u8::try_from(code).unwrap_or(1))
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed ({})", self.program, self.status)
    }
}

impl std::error::Error for Failed {}

/// Runs a program to its end, in view of the user.
pub fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot run {program}"))?;
    if status.success() { Ok(()) } else { Err(Failed { program, status }.into()) }
}

/// Whether a program can be run with these arguments.
pub fn works(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// A command of the cargo that runs this, in the workspace's root.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The workspace's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// The workspace's target folder, wherever the configuration puts it.
pub fn target_dir() -> Result<PathBuf> {
    let output =
        cargo().args(["metadata", "--no-deps", "--offline", "--format-version=1"]).output();
    let output = output.context("cannot run cargo metadata")?;
    let text = String::from_utf8_lossy(&output.stdout);
    // One field of a JSON object, which cargo writes without spaces: no parser for that.
    let field =
        text.split_once("\"target_directory\":\"").and_then(|(_, rest)| rest.split_once('"'));
    match field {
        Some((path, _)) => Ok(PathBuf::from(path.replace("\\\\", "\\"))),
        None => bail!(
            "cargo metadata names no target folder: {}",
            String::from_utf8_lossy(&output.stderr)
        ),
    }
}
