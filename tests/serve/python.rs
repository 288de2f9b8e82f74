//! Clients that others wrote, unmodified: `openai` and `webuiapi` of PyPI; and a crowd by `aiohttp`.

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

#[test]
fn a_thousand_clients_get_pictures_or_are_asked_to_come_again() {
    let Some(python) = python_with(&["aiohttp"]) else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/serve/load.py");
    let args = ["--clients=1000", "--minutes=1", "--steps=4", "--crowd"];
    let output =
        Command::new(python).arg(script).arg(env!("CARGO_BIN_EXE_nadir")).args(args).output();
    let output = output.unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{told}");
}
