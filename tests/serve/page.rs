//! The page as people use it: in a real browser (`web/test/page.mjs`).

use super::*;

#[test]
fn the_page_works_in_a_browser() {
    // Node, Chromium and the packages of `web/`: `.ci/run` has them and says so.
    let Some(folder) = std::env::var_os("NADIR_SCREENSHOTS") else {
        println!("skipped: NADIR_SCREENSHOTS names no folder for what a browser shows");
        return;
    };
    let server = Server::start(&[]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("web/test/page.mjs");
    let output = Command::new("node").arg(script).arg(&server.url).arg(folder).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}\n{told}", String::from_utf8_lossy(&output.stdout));
}
