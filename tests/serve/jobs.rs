//! Jobs: how they get on, how they are stopped, and what is left of them.

use serde_json::json;

use super::*;

#[test]
fn a_job_tells_how_it_gets_on() {
    let server = Server::start(&[]);
    let job = server.post("/api/jobs", &json!({
        "kind": "image", "prompt": "a forest", "seed": 1, "num_images": 2, "steps": 40, "preview": true,
    }));
    let id = job.ok()["id"].as_str().unwrap().to_owned();
    let events = server.events(&id);
    let of = |name: &str| -> Vec<&Value> {
        events.iter().filter(|(event, _)| event == name).map(|(_, data)| data).collect()
    };
    assert!(of("step").len() > 20, "{events:?}");
    assert!(of("step").iter().all(|step| step["step"].as_u64() <= step["steps"].as_u64()));
    let seeds: Vec<&Value> = of("image").iter().map(|image| &image["seed"]).collect();
    assert_eq!(seeds.len(), 2);
    let last = events.last().unwrap();
    assert_eq!((last.0.as_str(), &last.1["state"]), ("end", &json!("done")));
    // Each picture says which of them it is.
    for index in 0..2 {
        let png = server.get(&format!("/api/jobs/{id}/images/{index}")).body;
        let recipe = server.send("/api/recipe", "image/png", &png).ok();
        assert_eq!(recipe["request"]["seed"], 1 + index, "{recipe}");
    }
    // Who comes late hears the end at once.
    assert_eq!(
        server.events(&id),
        [("end".to_owned(), server.get(&format!("/api/jobs/{id}")).ok())]
    );
    let list = server.get("/api/jobs?limit=1").ok();
    assert_eq!(list["jobs"][0]["id"], id);

    assert_eq!(server.delete(&format!("/api/jobs/{id}")).status, 200);
    for path in [format!("/api/jobs/{id}"), format!("/api/jobs/{id}/images/0")] {
        assert_eq!(server.get(&path).status, 404, "{path}");
    }
}

#[test]
fn a_job_that_is_cancelled_stops() {
    let server = Server::start(&["--batch=1"]);
    let ask = |steps: usize| {
        let job = json!({ "kind": "image", "steps": steps, "num_images": 2 });
        server.post("/api/jobs", &job).ok()["id"].as_str().unwrap().to_owned()
    };
    let (first, second) = (ask(1000), ask(1000));
    assert_eq!(server.delete(&format!("/api/jobs/{first}")).status, 200);
    assert_eq!(server.delete(&format!("/api/jobs/{second}")).status, 200);
    for id in [first, second] {
        let job = server.wait(&id);
        assert_eq!(
            (&job["state"], &job["images"][1]["state"]),
            (&json!("cancelled"), &json!("cancelled"))
        );
    }
    assert!(server.counted("nadir_steps_total") < 500.0);
    assert_eq!(server.counted("nadir_in_work"), 0.0);
}

#[test]
fn what_was_finished_outlives_a_kill_and_the_rest_is_told_to_be_lost() {
    let folder = tempfile::tempdir().unwrap();
    let state = format!("--state={}", folder.path().join("state").display());
    let args = [state.as_str(), "--batch=1"];
    let server = Server::start(&args);
    let ask = |server: &Server, body: Value| {
        server.post("/api/jobs", &body).ok()["id"].as_str().unwrap().to_owned()
    };
    let done = ask(&server, json!({ "kind": "image", "steps": 2, "seed": 4 }));
    server.wait(&done);
    let picture = server.get(&format!("/api/jobs/{done}/images/0")).body;
    // Of the next one, the first picture is there, and the second on its way.
    let half = ask(&server, json!({ "kind": "image", "steps": 30, "num_images": 2, "seed": 4 }));
    let clock = Instant::now();
    while server.get(&format!("/api/jobs/{half}/images/0")).status != 200 {
        assert!(clock.elapsed() < PATIENCE);
    }
    let waits = ask(&server, json!({ "kind": "image", "steps": 1000 }));
    // A second server does not take the folder.
    let other = command(&args).output().unwrap();
    assert_eq!(other.status.code(), Some(2), "{}", String::from_utf8_lossy(&other.stderr));
    drop(server);

    let server = Server::start(&args);
    let get = |id: &str| server.get(&format!("/api/jobs/{id}")).ok();
    assert_eq!(get(&done)["state"], "done");
    assert_eq!(server.get(&format!("/api/jobs/{done}/images/0")).body, picture);
    assert_eq!((&get(&half)["state"], &get(&waits)["state"]), (&json!("lost"), &json!("lost")));
    let first = server.get(&format!("/api/jobs/{half}/images/0"));
    assert!(image::load_from_memory(&first.body).is_ok());
    let new = ask(&server, json!({ "kind": "image", "steps": 1 }));
    assert!(new > waits, "{new} is no new number");
}
