//! The server as its clients meet it: the real program, the models that ship, connections over loopback.

mod company;
mod conduct;
mod hostile;
mod interfaces;
mod jobs;
mod page;
mod python;
mod scale;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use image::RgbImage;
use serde_json::Value;

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// A server, which ends with this.
struct Server {
    process: Child,
    url: String,
    agent: ureq::Agent,
    /// For what one that is killed cannot take away.
    _temporary: tempfile::TempDir,
}

/// A reply, whatever its status.
struct Reply {
    status: u16,
    headers: ureq::http::HeaderMap,
    body: Vec<u8>,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{}: {e}: {}", self.status, self.text()))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body of what succeeded.
    fn ok(self) -> Value {
        assert!(matches!(self.status, 200 | 201), "{}: {}", self.status, self.text());
        self.json()
    }

    /// The field that an error is about.
    fn field(&self) -> String {
        self.json()["error"]["field"].as_str().unwrap_or_default().to_owned()
    }
}

impl Server {
    /// Starts one and waits until it takes work.
    fn start(args: &[&str]) -> Self {
        let server = Self::begin(args);
        let clock = Instant::now();
        while server.get("/health/ready").status != 200 {
            assert!(clock.elapsed() < PATIENCE, "not ready");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// Starts one.
    fn begin(args: &[&str]) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let mut process =
            command(args).env("TMPDIR", temporary.path()).stdout(Stdio::piped()).spawn().unwrap();
        let mut url = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut url).unwrap();
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .build();
        let (url, agent) = (url.trim().to_owned(), config.into());
        Self { process, url, agent, _temporary: temporary }
    }

    fn get(&self, path: &str) -> Reply {
        let sent = self.agent.get(format!("{}{path}", self.url)).call();
        reply(sent.unwrap_or_else(|e| panic!("{path}: {e}")))
    }

    fn delete(&self, path: &str) -> Reply {
        reply(self.agent.delete(format!("{}{path}", self.url)).call().unwrap())
    }

    fn post(&self, path: &str, body: &Value) -> Reply {
        self.send(path, "application/json", body.to_string().as_bytes())
    }

    fn send(&self, path: &str, kind: &str, body: &[u8]) -> Reply {
        let request = self.agent.post(format!("{}{path}", self.url)).header("content-type", kind);
        reply(request.send(body).unwrap_or_else(|e| panic!("{path}: {e}")))
    }

    /// A counter of `/metrics`.
    fn counted(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("{name}: {text}"))
            .rsplit(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap()
    }

    /// A job, once it is over.
    fn wait(&self, id: &str) -> Value {
        let clock = Instant::now();
        loop {
            let job = self.get(&format!("/api/jobs/{id}")).ok();
            if !matches!(job["state"].as_str(), Some("queued" | "running")) {
                return job;
            }
            assert!(clock.elapsed() < PATIENCE, "{job}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The events of a job until the last, as (event, data).
    fn events(&self, id: &str) -> Vec<(String, Value)> {
        let response = self.agent.get(format!("{}/api/jobs/{id}/events", self.url)).call().unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let (mut events, mut name) = (Vec::new(), String::new());
        for line in BufReader::new(response.into_body().into_reader()).lines() {
            let line = line.unwrap();
            if let Some(event) = line.strip_prefix("event: ") {
                name = event.to_owned();
            } else if let Some(data) = line.strip_prefix("data: ") {
                events.push((name.clone(), serde_json::from_str(data).unwrap()));
            }
        }
        events
    }

    /// Asks it to stop.
    fn signal(&self, signal: &str) {
        let id = self.process.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nadir"));
    command.args(["serve", "--port=0", "--quiet", "--device=cpu"]).args(args);
    command.env_remove("NADIR_WEIGHTS").env_remove("NADIR_API_KEY");
    command
}

fn reply(mut response: ureq::http::Response<ureq::Body>) -> Reply {
    let mut body = Vec::new();
    response.body_mut().as_reader().read_to_end(&mut body).unwrap();
    Reply { status: response.status().as_u16(), headers: response.headers().clone(), body }
}

/// The picture of a PNG in base64.
fn decoded(base64: &Value) -> RgbImage {
    let bytes = BASE64.decode(base64.as_str().unwrap()).unwrap();
    image::load_from_memory(&bytes).unwrap().into_rgb8()
}

/// What `nadir generate` draws, alone.
fn alone(args: &[&str]) -> RgbImage {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.png");
    let mut command = Command::new(env!("CARGO_BIN_EXE_nadir"));
    command.args(["generate", "--quiet", "--device=cpu", "-o"]).arg(&path).args(args);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    image::open(path).unwrap().into_rgb8()
}

fn read_base64(path: &Path) -> String {
    BASE64.encode(std::fs::read(path).unwrap())
}

/// A program of the system's. Where it is missing, a test that needs it is left out; `.ci/run` has all, and says so.
fn tool(name: &str) -> bool {
    let is_there = Command::new("sh").args(["-c", &format!("command -v {name}")]).output();
    let is_there = is_there.is_ok_and(|output| output.status.success());
    is_there || missing(name)
}

/// A Python with packages: `NADIR_CLIENTS_PYTHON`, or python3.
fn python_with(packages: &[&str]) -> Option<String> {
    let python = std::env::var("NADIR_CLIENTS_PYTHON").unwrap_or_else(|_| "python3".into());
    let script = format!("import {}", packages.join(", "));
    let has = Command::new(&python).args(["-c", &script]).output();
    let is_there = has.is_ok_and(|output| output.status.success());
    (is_there || missing(&packages.join(", "))).then_some(python)
}

fn missing(what: &str) -> bool {
    assert!(std::env::var_os("NADIR_REQUIRE_TOOLS").is_none(), "{what} is missing");
    println!("left out: {what} is missing");
    false
}
