//! Clients that others wrote, unmodified: `openai` and `webuiapi` of PyPI.

use super::*;

fn run(script: &str, package: &str) {
    let Some(python) = python_with(&[package, "PIL"]) else { return };
    let server = Server::start(&[]);
    let port = server.url.rsplit(':').next().unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/serve").join(script);
    let output = Command::new(python).arg(path).arg(port).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
}

#[test]
fn openais_client_is_at_home() {
    run("openai_client.py", "openai");
}

#[test]
fn a_client_of_the_web_ui_is_at_home() {
    run("webui_client.py", "webuiapi");
}
