//! Limits, deadlines, the end.

use std::io::Write;
use std::net::TcpStream;

use serde_json::json;

use super::*;

#[test]
fn who_comes_when_all_places_are_taken_is_asked_to_come_again() {
    let server = Server::start(&["--batch=1", "--queue=2"]);
    let ask = |n: usize| {
        server.post("/api/jobs", &json!({ "kind": "image", "steps": 1000, "num_images": n }))
    };
    let too_many = ask(3);
    assert_eq!((too_many.status, too_many.field()), (400, "num_images".to_owned()));
    assert_eq!(ask(1).status, 201);
    // It begins, and two more wait.
    while server.counted("nadir_in_work") == 0.0 {}
    assert_eq!(ask(2).status, 201);
    let full = ask(1);
    assert_eq!(full.status, 429, "{}", full.text());
    assert!(full.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(server.counted("nadir_queued"), 2.0);
}

#[test]
fn a_deadline_that_cannot_be_met_is_refused_before_anything_is_done() {
    let server = Server::start(&["--batch=2"]);
    let ask = |steps: usize, ms: u64| {
        server.post("/api/jobs", &json!({ "kind": "image", "steps": steps, "deadline_ms": ms }))
    };
    let before = server.counted("nadir_steps_total");
    let late = ask(1000, 20);
    assert_eq!((late.status, late.field()), (422, "deadline_ms".to_owned()), "{}", late.text());
    assert_eq!(server.counted("nadir_steps_total"), before);
    let job = ask(2, 60_000).ok();
    assert_eq!(server.wait(job["id"].as_str().unwrap())["state"], "done");
}

#[test]
fn work_that_nobody_waits_for_any_more_stops() {
    let server = Server::start(&["--batch=1"]);
    let body = json!({ "steps": 1000 }).to_string();
    let address = server.url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    while server.counted("nadir_steps_total") < 2.0 {}
    assert!(server.get("/sdapi/v1/progress").ok()["progress"].as_f64().unwrap() > 0.0);
    drop(stream);
    let clock = Instant::now();
    while server.counted("nadir_in_work") > 0.0 {
        assert!(clock.elapsed() < PATIENCE);
    }
    assert!(server.counted("nadir_steps_total") < 900.0);
}

#[test]
fn a_server_that_is_asked_to_stop_finishes_what_has_begun() {
    let mut server = Server::start(&["--batch=1", "--drain-seconds=120"]);
    let job = json!({ "kind": "image", "steps": 60 });
    let id = server.post("/api/jobs", &job).ok()["id"].as_str().unwrap().to_owned();
    std::thread::scope(|scope| {
        let events = scope.spawn(|| server.events(&id));
        while server.counted("nadir_in_work") == 0.0 {}
        server.signal("-TERM");
        while server.get("/health/ready").status == 200 {}
        assert_eq!(server.get("/health/live").status, 200);
        let refused = server.post("/api/jobs", &job);
        assert_eq!((refused.status, refused.header("retry-after")), (503, Some("2")));
        let events = events.join().unwrap();
        assert_eq!(events.last().unwrap().1["state"], "done");
    });
    assert_eq!(server.process.wait().unwrap().code(), Some(143));
}

#[test]
fn what_is_not_done_by_then_is_handed_back() {
    let folder = tempfile::tempdir().unwrap();
    let state = format!("--state={}", folder.path().display());
    let mut server = Server::start(&["--batch=1", "--drain-seconds=0", &state]);
    let job = json!({ "kind": "image", "steps": 1000 });
    let id = server.post("/api/jobs", &job).ok()["id"].as_str().unwrap().to_owned();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| server.post("/sdapi/v1/txt2img", &json!({ "steps": 1000 })));
        while server.counted("nadir_in_work") + server.counted("nadir_queued") < 2.0 {}
        server.signal("-INT");
        let handed_back = waits.join().unwrap();
        assert_eq!(handed_back.status, 503, "{}", handed_back.text());
    });
    assert_eq!(server.process.wait().unwrap().code(), Some(130));
    let server = Server::start(&[&state]);
    assert_eq!(server.get(&format!("/api/jobs/{id}")).ok()["state"], "lost");
}

#[test]
fn what_others_can_reach_needs_a_key() {
    for (args, field) in [
        (vec!["--host=0.0.0.0"], "--host"),
        (vec!["--api-key=short"], "--api-key"),
        (vec!["--batch=0"], "--batch"),
        (vec!["--replica=../x"], "--replica"),
        (vec!["-m", "no-such-model"], "no-such-model"),
    ] {
        let output = command(&args).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {told}");
        assert!(told.contains(field), "{args:?}: {told}");
    }
    let server = Server::start(&["--api-key=correct-horse"]);
    assert_eq!(server.get("/").status, 200);
    assert_eq!(server.get("/api/server").status, 401);
    let with = |key: &str| {
        let request = server.agent.get(format!("{}/api/server", server.url));
        reply(request.header("authorization", format!("Bearer {key}")).call().unwrap()).status
    };
    assert_eq!((with("correct-horse"), with("correct-hors")), (200, 401));
}

#[test]
fn the_page_is_there_and_keeps_to_itself() {
    let server = Server::start(&[]);
    let page = server.get("/");
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(page.header("content-security-policy").unwrap().starts_with("default-src 'self'"));
    let text = page.text();
    let mut total = page.body.len();
    let assets = text.split('"').filter(|part| part.starts_with("/assets/"));
    for asset in assets {
        let file = server.get(asset);
        assert_eq!(file.status, 200, "{asset}");
        assert!(file.header("cache-control").unwrap().contains("immutable"), "{asset}");
        total += file.body.len();
    }
    assert!(total > 10_000 && total < 200_000, "{total} bytes");
}
