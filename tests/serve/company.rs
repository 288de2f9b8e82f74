//! Many at once: each gets what it would get alone, once.

use std::collections::BTreeSet;
use std::sync::Mutex;

use serde_json::json;

use super::*;

#[test]
fn pictures_are_the_same_in_any_company() {
    let server = Server::start(&["--batch=6"]);
    // Of several sizes, samplers, steps and guidances.
    let kinds = [
        (64, 64, 6, 4.0, "euler"),
        (64, 64, 9, 1.0, "dpm++2m"),
        (96, 64, 5, 7.0, "ddim"),
        (64, 64, 4, 2.0, "euler_a"),
        (64, 96, 3, 4.0, "unipc"),
    ];
    let ask = |i: usize| {
        let (width, height, steps, guidance, scheduler) = kinds[i % kinds.len()];
        let body = json!({
            "prompt": "fields by a river", "size": format!("{width}x{height}"), "steps": steps,
            "guidance_scale": guidance, "scheduler": scheduler, "seed": i,
        });
        decoded(&server.post("/v1/images/generations", &body).ok()["data"][0]["b64_json"])
    };
    let crowd = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for i in 0..20 {
            let (ask, crowd) = (&ask, &crowd);
            scope.spawn(move || {
                let picture = ask(i);
                crowd.lock().unwrap().push((i, picture));
            });
        }
    });
    let crowd = crowd.into_inner().unwrap();
    assert_eq!(crowd.len(), 20);
    for (i, picture) in crowd {
        assert!(ask(i) == picture, "picture {i}");
    }
}

/// Clients that come again when they are asked to.
#[test]
fn a_crowd_is_served_or_told_to_wait_and_nothing_is_lost() {
    let server = Server::start(&["--queue=24", "--state-max-jobs=20"]);
    let until = Instant::now() + Duration::from_secs(15);
    let (ids, refused) = (Mutex::new(BTreeSet::new()), Mutex::new(0));
    std::thread::scope(|scope| {
        for client in 0..100u64 {
            let (server, ids, refused) = (&server, &ids, &refused);
            scope.spawn(move || {
                while Instant::now() < until {
                    let asked = json!({ "kind": "image", "steps": 2, "seed": client % 3 });
                    let reply = server.post("/api/jobs", &asked);
                    match reply.status {
                        201 => {
                            let id = reply.json()["id"].as_str().unwrap().to_owned();
                            assert!(ids.lock().unwrap().insert(id), "two jobs of one name");
                        }
                        429 => {
                            *refused.lock().unwrap() += 1;
                            std::thread::sleep(Duration::from_millis(100));
                        }
                        other => panic!("{other}: {}", reply.text()),
                    }
                }
            });
        }
    });
    // The last pictures are written down behind the last step.
    let list = || server.get("/api/jobs?limit=500").ok()["jobs"].as_array().unwrap().clone();
    let is_over = |job: &Value| !matches!(job["state"].as_str(), Some("queued" | "running"));
    let clock = Instant::now();
    while !list().iter().all(is_over) {
        assert!(clock.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(50));
    }
    let ids = ids.into_inner().unwrap();
    assert!(refused.into_inner().unwrap() > 0 && ids.len() > 20, "{} jobs", ids.len());
    assert_eq!(server.counted("nadir_pictures_total"), ids.len() as f64);
    let kept = list();
    assert!(kept.len() <= 20 && kept.iter().all(|job| job["state"] == "done"), "{kept:?}");
    // One picture for each seed.
    let mut seen = std::collections::BTreeMap::new();
    for job in kept {
        let png = server.get(job["images"][0]["url"].as_str().unwrap()).body;
        let picture = image::load_from_memory(&png).unwrap().into_rgb8();
        let known = seen.entry(job["request"]["seed"].as_u64()).or_insert_with(|| picture.clone());
        assert!(*known == picture);
    }
}
