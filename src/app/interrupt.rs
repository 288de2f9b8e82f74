//! Ctrl-C: the first time work stops at the next step and what is finished is kept; the second time at once.

use nadir::pipeline::Cancel;

/// Exit code of a program that Ctrl-C ended: 128 + SIGINT.
pub const EXIT_CODE: u8 = 130;

/// Listens from now on; the switch is turned by Ctrl-C.
pub fn listen() -> anyhow::Result<Cancel> {
    let cancel = Cancel::default();
    let switch = cancel.clone();
    ctrlc::set_handler(move || {
        if switch.cancel() {
            std::process::exit(EXIT_CODE.into());
        }
        eprintln!("\nstopping after this step; Ctrl-C again stops at once");
    })
    .map_err(|e| anyhow::anyhow!("cannot listen for Ctrl-C: {e}"))?;
    Ok(cancel)
}
