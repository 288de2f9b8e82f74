//! One run of a program that may take no more than it is given.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Addresses that a run may use, in KiB: far more than it needs, far less than the machine has.
const ADDRESSES: u64 = 4 << 20;
/// Seconds that a run may compute; how busy the machine is makes no difference to them.
const COMPUTING: u64 = 60;
/// What a run may take by the clock, should it sleep.
const PATIENCE: Duration = Duration::from_secs(600);

/// How a run ended.
pub struct Outcome {
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// The most memory that it had, in bytes; 0 where that is not more than this process had and cannot be told.
    pub peak: u64,
    pub stderr: String,
}

/// Runs `program` in `folder`, where its messages are kept.
pub fn run(program: &Path, args: &[&str], folder: &Path) -> Result<Outcome> {
    let errors = folder.join("stderr");
    let limits = format!("ulimit -c 0; ulimit -v {ADDRESSES}; ulimit -t {COMPUTING}");
    let script = format!("{limits}; exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script]).arg(program).args(args).current_dir(folder);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&errors)?);
    // A process begins with the most memory that its parent had: not more than this has now, and no measure of its own.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let child = command.spawn().context("cannot run sh")?;
    let inherited = own_peak();
    let (status, peak) = wait(child)?;
    let peak = if peak <= inherited { 0 } else { peak };
    let stderr = String::from_utf8_lossy(&std::fs::read(&errors)?).into_owned();
    Ok(Outcome { code: status.code(), signal: status.signal(), peak, stderr })
}

/// The most memory that this process had since its record was cleared, in bytes.
fn own_peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Waits for a process: how it ended, and the most memory it had, in bytes.
fn wait(child: Child) -> Result<(ExitStatus, u64)> {
    let id = child.id() as libc::pid_t;
    let (start, mut status) = (Instant::now(), 0);
    // SAFETY: all zeros are a value of this struct of integers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: the child is ours and not waited for yet; both results have a place.
        match unsafe { libc::wait4(id, &mut status, libc::WNOHANG, &mut usage) } {
            0 if start.elapsed() > PATIENCE => {
                // SAFETY: a signal to a process that is ours, as it is not waited for yet.
                unsafe { libc::kill(id, libc::SIGKILL) };
            }
            0 => {}
            found if found == id => break,
            _ => return Err(std::io::Error::last_os_error()).context("cannot wait for a run"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok((ExitStatus::from_raw(status), usage.ru_maxrss as u64 * 1024))
}
