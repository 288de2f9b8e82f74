//! The examples of `docs/scaling.md`, as they are written.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;

use serde_json::json;

use super::*;

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/scaling").join(name)
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// nginx in front of replicas.
struct Balancer(Child);

impl Drop for Balancer {
    fn drop(&mut self) {
        // The master ends its workers.
        let id = self.0.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &id]).status();
        let _ = self.0.wait();
    }
}

#[test]
fn replicas_stand_behind_a_balancer() {
    if !tool("nginx") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut replicas: Vec<Server> = ["a", "b", "c"]
        .iter()
        .map(|name| {
            let state = format!("--state={}", folder.path().join(name).display());
            let replica = format!("--replica={name}");
            Server::start(&[
                &state,
                &replica,
                "--trusted-proxy=127.0.0.1",
                "--drain-seconds=120",
                "--batch=2",
            ])
        })
        .collect();
    let front = free_port();
    let mut config = fs::read_to_string(example("nginx.conf")).unwrap();
    for (port, replica) in ["8081", "8082", "8083"].iter().zip(&replicas) {
        config = config.replace(port, replica.url.rsplit(':').next().unwrap());
    }
    config = config.replace("127.0.0.1:8080", &format!("127.0.0.1:{front}"));
    // As root it gives its rights away, and could not read the folder.
    if fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0) {
        config.insert_str(0, "user root;\n");
    }
    fs::write(folder.path().join("nginx.conf"), config).unwrap();
    let mut nginx = Command::new("nginx");
    nginx.arg("-p").arg(folder.path()).args(["-c", "nginx.conf", "-g", "daemon off;"]);
    let _nginx = Balancer(nginx.spawn().unwrap());
    let balancer = format!("http://127.0.0.1:{front}");
    let agent = replicas[0].agent.clone();
    let ask = |path: &str| {
        let sent = agent.get(format!("{balancer}{path}")).call();
        sent.map(reply)
    };
    let clock = Instant::now();
    while !ask("/health/ready").is_ok_and(|reply| reply.status == 200) {
        assert!(clock.elapsed() < PATIENCE);
    }
    let post = |steps: usize| -> String {
        let body = json!({ "kind": "image", "steps": steps }).to_string();
        let request = agent.post(format!("{balancer}/api/jobs"));
        let sent = request.header("content-type", "application/json").send(body.as_bytes());
        reply(sent.unwrap()).ok()["id"].as_str().unwrap().to_owned()
    };
    let name = |id: &str| id.split('-').next().unwrap().to_owned();
    // 1. each job is found where it is
    let ids: Vec<String> = (0..9).map(|_| post(2)).collect();
    assert_eq!(ids.iter().map(|id| name(id)).collect::<BTreeSet<_>>().len(), 3, "{ids:?}");
    for id in &ids {
        let clock = Instant::now();
        while ask(&format!("/api/jobs/{id}")).unwrap().ok()["state"] != "done" {
            assert!(clock.elapsed() < PATIENCE);
        }
        assert_eq!(ask(&format!("/api/jobs/{id}/images/0")).unwrap().status, 200);
    }
    // 2. one stops: what it has begun is finished, and nobody is turned away
    let long = loop {
        let id = post(40);
        if name(&id) == "a" {
            break id;
        }
    };
    replicas[0].signal("-TERM");
    while replicas[0].get("/health/ready").status == 200 {}
    for _ in 0..6 {
        assert_ne!(name(&post(2)), "a");
    }
    let events = replicas[0].events(&long);
    assert_eq!(events.last().unwrap().1["state"], "done");
    assert_eq!(replicas[0].process.wait().unwrap().code(), Some(143));
    assert_ne!(name(&post(2)), "a");
}

fn rows(folder: &Path) {
    let rows: Vec<String> =
        (0..6).map(|i| json!({ "prompt": "a river", "seed": i }).to_string()).collect();
    fs::write(folder.join("prompts.jsonl"), rows.join("\n")).unwrap();
}

fn drawn(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).unwrap().flatten();
    entries.filter(|entry| entry.path().extension().is_some_and(|e| e == "png")).count()
}

#[test]
fn a_manifest_is_drawn_on_ray() {
    let Some(python) = python_with(&["ray"]) else { return };
    let folder = tempfile::tempdir().unwrap();
    rows(folder.path());
    let output = Command::new(python)
        .arg(example("generate_on_ray.py"))
        .args([
            "prompts.jsonl",
            "pictures",
            "--nadir",
            env!("CARGO_BIN_EXE_nadir"),
            "--",
            "--steps=1",
        ])
        .current_dir(folder.path())
        .env("RAY_DEDUP_LOGS", "0")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    // Actors work in the folder of the driver.
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "6 pictures drawn");
    assert_eq!(drawn(&folder.path().join("pictures")), 6);
}

#[test]
fn a_task_of_a_slurm_array_draws_its_part() {
    let folder = tempfile::tempdir().unwrap();
    rows(folder.path());
    let script = fs::read_to_string(example("slurm.sh")).unwrap();
    let script = script
        .replace("prompts.parquet", "prompts.jsonl")
        .replace("models/my-sd", "eurosat-64")
        .replace("exec nadir", &format!("exec {}", env!("CARGO_BIN_EXE_nadir")))
        .replace("--batch 8", "--batch 8 --steps 1");
    for (task, there) in [("1", 3), ("2", 6)] {
        let output = Command::new("bash")
            .args(["-c", &script])
            .env("SLURM_ARRAY_TASK_ID", task)
            .env("SLURM_ARRAY_TASK_COUNT", "2")
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(drawn(&folder.path().join("pictures")), there);
    }
}

#[test]
fn manifests_of_kubernetes_are_valid() {
    let Some(python) = python_with(&["kubernetes_validate"]) else { return };
    for name in ["kubernetes-job.yaml", "kubernetes-service.yaml"] {
        let script = "import sys, yaml, kubernetes_validate as k
for document in yaml.safe_load_all(open(sys.argv[1])):
    k.validate(document, k.latest_version(), strict=True)";
        let output =
            Command::new(&python).args(["-c", script]).arg(example(name)).output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
