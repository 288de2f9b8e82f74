//! Ctrl-C, and the signals by which systems end programs: the first one stops work at the next step and keeps what is
//! finished; the second stops at once.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicI32, Ordering};

use nadir::io::atomic;
use nadir::pipeline::Cancel;

use super::terminal;

const SIGINT: i32 = 2;

/// The signal that came first.
static RECEIVED: AtomicI32 = AtomicI32::new(SIGINT);

/// What shells show for a program that a signal ended: 130 after Ctrl-C.
pub fn exit_code() -> u8 {
    (128 + RECEIVED.load(Ordering::SeqCst)) as u8
}

static CANCEL: LazyLock<Cancel> = LazyLock::new(Cancel::default);

/// What the first signal turns.
pub fn switch() -> Cancel {
    CANCEL.clone()
}

/// Listens from now on: to be called before there is anything to clean up.
pub fn listen() -> anyhow::Result<()> {
    on_signal(|signal| {
        if CANCEL.cancel() {
            atomic::remove_own();
            std::process::exit(exit_code().into());
        }
        RECEIVED.store(signal, Ordering::SeqCst);
        terminal::say("stopping after this step; once more stops at once");
    })
}

#[cfg(unix)]
fn on_signal(handle: impl Fn(i32) + Send + 'static) -> anyhow::Result<()> {
    const SIGHUP: i32 = 1;
    const SIGTERM: i32 = 15;
    let mut signals = vec![SIGINT, SIGTERM];
    // Who started this with nohup wants it to outlive the terminal.
    if !is_ignored(SIGHUP) {
        signals.push(SIGHUP);
    }
    let mut signals = signal_hook::iterator::Signals::new(signals)
        .map_err(|e| anyhow::anyhow!("cannot listen for signals: {e}"))?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || signals.forever().for_each(handle))?;
    Ok(())
}

/// Whether the process was started with the signal ignored, where the system says so.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(not(unix))]
fn on_signal(handle: impl Fn(i32) + Send + 'static) -> anyhow::Result<()> {
    ctrlc::set_handler(move || handle(SIGINT))
        .map_err(|e| anyhow::anyhow!("cannot listen for Ctrl-C: {e}"))
}
