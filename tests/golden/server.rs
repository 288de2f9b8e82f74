//! The server of small models: the real program.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

/// A server, which ends with this.
pub struct Server {
    process: Child,
    url: String,
    agent: ureq::Agent,
}

impl Server {
    /// Starts one at `at`, whose temporary files go there too, and waits until it takes work.
    pub fn start(at: &Path, args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nadir"));
        command.args(["serve", "--port=0", "-q", "--lm=none", "--classifier=none"]).args(args);
        command.current_dir(at).env("TMPDIR", at).env_remove("NADIR_WEIGHTS");
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut url = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut url).unwrap();
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let server = Self { process, url: url.trim().to_owned(), agent };
        while server.get("/health/ready").0 != 200 {
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// Status and body.
    pub fn get(&self, path: &str) -> (u16, Vec<u8>) {
        let mut reply = self.agent.get(format!("{}{path}", self.url)).call().unwrap();
        (reply.status().as_u16(), reply.body_mut().read_to_vec().unwrap())
    }

    /// Asks for a job.
    #[allow(dead_code, reason = "not all tests that share this file ask")]
    pub fn post(&self, body: &Value) -> (u16, Value) {
        self.post_to("/api/jobs", body)
    }

    /// Status and what is told.
    pub fn post_to(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send(path, "application/json", body.to_string().as_bytes())
    }

    /// The same of what is no JSON.
    pub fn send(&self, path: &str, kind: &str, body: &[u8]) -> (u16, Value) {
        let request = self.agent.post(format!("{}{path}", self.url));
        let mut reply = request.header("content-type", kind).send(body).unwrap();
        let told = reply.body_mut().read_to_vec().unwrap();
        (reply.status().as_u16(), serde_json::from_slice(&told).unwrap())
    }

    /// The first picture of a job, once it is there.
    pub fn picture(&self, body: &Value) -> Vec<u8> {
        let (status, job) = self.post(body);
        assert_eq!(status, 201, "{job}");
        let path = format!("/api/jobs/{}", job["id"].as_str().unwrap());
        loop {
            let job: Value = serde_json::from_slice(&self.get(&path).1).unwrap();
            match job["state"].as_str().unwrap() {
                "done" => return self.get(&format!("{path}/images/0")).1,
                "queued" | "running" => std::thread::sleep(Duration::from_millis(20)),
                _ => panic!("{job}"),
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
