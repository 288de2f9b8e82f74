//! Which functions of the driver a program calls: `VGPU_CALLS`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::OnceLock;

/// The file that gets a line a call.
fn file() -> Option<&'static File> {
    static FILE: OnceLock<Option<File>> = OnceLock::new();
    FILE.get_or_init(|| {
        let path = std::env::var_os("VGPU_CALLS")?;
        let opened = OpenOptions::new().create(true).append(true).open(&path);
        opened.inspect_err(|e| eprintln!("vgpu: {}: {e}", path.display())).ok()
    })
    .as_ref()
}

/// Notes a call.
pub(crate) fn note(function: &str) {
    if let Some(mut file) = file() {
        // In one write, so that threads do not mix their lines. A full disk is not the program's concern.
        let _ = file.write_all(format!("{function}\n").as_bytes());
    }
}
