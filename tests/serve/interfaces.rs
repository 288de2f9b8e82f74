//! All interfaces draw what the command line draws.

use serde_json::json;

use super::*;

const RIVER: [&str; 5] =
    ["a river", "--seed=7", "--steps=3", "--cfg-scale=3.5", "--negative-prompt=snow"];

#[test]
fn every_interface_draws_what_the_command_line_draws() {
    let server = Server::start(&[]);
    let ours = alone(&RIVER);

    let job = server.post(
        "/api/jobs",
        &json!({
            "kind": "image", "prompt": "a river", "seed": 7, "steps": 3, "guidance_scale": 3.5,
            "negative_prompt": "snow",
        }),
    );
    assert_eq!((job.status, job.field()), (201, String::new()));
    let id = job.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(job.header("location").unwrap(), format!("/api/jobs/{id}"));
    let done = server.wait(&id);
    assert_eq!(done["state"], "done", "{done}");
    let png = server.get(done["images"][0]["url"].as_str().unwrap());
    assert_eq!(png.header("content-type").unwrap(), "image/png");
    assert!(image::load_from_memory(&png.body).unwrap().into_rgb8() == ours, "jobs");
    // The request is told with what was left to the model.
    assert_eq!(done["request"]["width"], 64);
    let recipe = server.send("/api/recipe", "image/png", &png.body).ok();
    assert_eq!(recipe["request"]["num_inference_steps"], 3);
    assert_eq!(recipe["request"]["seed"], 7);

    let openai = server.post("/v1/images/generations", &json!({
        "prompt": "a river", "n": 2, "size": "64x64", "seed": 6, "steps": 3, "guidance_scale": 3.5,
        "negative_prompt": "snow", "model": "eurosat-64", "user": "someone",
    }));
    let openai = openai.ok();
    assert_eq!(openai["data"][1]["seed"], 7);
    assert!(decoded(&openai["data"][1]["b64_json"]) == ours, "OpenAI");
    assert!(decoded(&openai["data"][0]["b64_json"]) != ours);

    let webui = server.post(
        "/sdapi/v1/txt2img",
        &json!({
            "prompt": "a river", "negative_prompt": "snow", "seed": 7, "steps": 3, "cfg_scale": 3.5,
            "width": 64, "height": 64, "enable_hr": false, "hr_scale": 2, "restore_faces": false,
        }),
    );
    let webui = webui.ok();
    assert!(decoded(&webui["images"][0]) == ours, "web UI");
    let info: Value = serde_json::from_str(webui["info"].as_str().unwrap()).unwrap();
    assert_eq!(info["all_seeds"], json!([7]));
    assert!(info["infotexts"][0].as_str().unwrap().contains("Steps: 3"));
}

#[test]
fn a_picture_is_started_from_and_painted_into() {
    let server = Server::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let [init, white, clear] =
        ["init.png", "white.png", "clear.png"].map(|n| folder.path().join(n));
    RgbImage::from_fn(64, 64, |x, y| image::Rgb([x as u8 * 3, y as u8 * 2, 90]))
        .save(&init)
        .unwrap();
    let inside = |x: u32, y: u32| (16..40).contains(&x) && (8..56).contains(&y);
    let paint = |x, y| image::Rgb([if inside(x, y) { 255 } else { 0 }; 3]);
    RgbImage::from_fn(64, 64, paint).save(&white).unwrap();
    let hole = |x, y| image::Rgba([9, 9, 9, if inside(x, y) { 0 } else { 255 }]);
    image::RgbaImage::from_fn(64, 64, hole).save(&clear).unwrap();
    let path = |path: &Path| path.to_str().unwrap().to_owned();

    let args = ["fields", "--seed=3", "--steps=4", "--strength=0.5"];
    let from = alone(&[&args[..], &["-i", &path(&init)]].concat());
    let webui = server.post(
        "/sdapi/v1/img2img",
        &json!({
            "prompt": "fields", "seed": 3, "steps": 4, "denoising_strength": 0.5,
            "init_images": [read_base64(&init)],
        }),
    );
    assert!(decoded(&webui.ok()["images"][0]) == from, "web UI, from a picture");

    let into = alone(&[&args[..3], &["-i", &path(&init), "--mask-image", &path(&white)]].concat());
    let job = server.post(
        "/api/jobs",
        &json!({
            "kind": "image", "prompt": "fields", "seed": 3, "steps": 4,
            "init_image": format!("data:image/png;base64,{}", read_base64(&init)),
            "mask_image": read_base64(&white),
        }),
    );
    let done = server.wait(job.ok()["id"].as_str().unwrap());
    let png = server.get(done["images"][0]["url"].as_str().unwrap()).body;
    assert!(image::load_from_memory(&png).unwrap().into_rgb8() == into, "jobs, into a picture");

    let mut form = Vec::new();
    let mut part = |head: &str, bytes: &[u8]| {
        form.extend(format!("--edge\r\nContent-Disposition: form-data; {head}\r\n\r\n").bytes());
        form.extend(bytes);
        form.extend(b"\r\n");
    };
    for (name, value) in [("prompt", "fields"), ("seed", "3"), ("steps", "4")] {
        part(&format!("name=\"{name}\""), value.as_bytes());
    }
    part("name=\"image\"; filename=\"a.png\"", &std::fs::read(&init).unwrap());
    part("name=\"mask\"; filename=\"b.png\"", &std::fs::read(&clear).unwrap());
    form.extend(b"--edge--\r\n");
    let edited = server.send("/v1/images/edits", "multipart/form-data; boundary=edge", &form).ok();
    assert!(decoded(&edited["data"][0]["b64_json"]) == into, "OpenAI, into a picture");
}

#[test]
fn texts_are_those_of_the_command_line_whole_or_piece_by_piece() {
    let server = Server::start(&[]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_nadir"));
    command.args([
        "lm",
        "generate",
        "river:",
        "--seed=5",
        "--max-new-tokens=12",
        "--json",
        "--quiet",
    ]);
    let ours: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    let ours = ours["text"].as_str().unwrap().to_owned();

    let asked = json!({
        "prompt": ["river:", "forest:"], "seed": 5, "max_tokens": 12, "temperature": 0.8, "top_p": 0.95,
        "model": "rsicd-lm",
    });
    let whole = server.post("/v1/completions", &asked).ok();
    assert_eq!(whole["choices"][0]["text"], ours);
    assert!(whole["usage"]["completion_tokens"].as_u64().unwrap() <= 24);

    let mut streamed = asked.clone();
    (streamed["stream"], streamed["prompt"]) = (json!(true), json!("river:"));
    let text = server.post("/v1/completions", &streamed).text();
    let chunks: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(chunks.last(), Some(&"[DONE]"));
    let pieces = chunks.iter().filter_map(|chunk| serde_json::from_str::<Value>(chunk).ok());
    let joined: String =
        pieces.map(|piece| piece["choices"][0]["text"].as_str().unwrap().to_owned()).collect();
    assert_eq!(joined, ours);

    let job = server.post("/api/jobs", &json!({
        "kind": "text", "prompt": "river:", "seed": 5, "max_new_tokens": 12, "temperature": 0.8, "top_p": 0.95,
    }));
    let done = server.wait(job.ok()["id"].as_str().unwrap());
    assert_eq!(done["answers"][0]["text"], ours);
    assert!(done["answers"][0]["finish"].is_string(), "{done}");
}

#[test]
fn what_is_here_is_told() {
    let server = Server::start(&["--replica=a1"]);
    let about = server.get("/api/server").ok();
    assert_eq!((&about["image"]["model"], &about["replica"]), (&json!("eurosat-64"), &json!("a1")));
    assert_eq!(about["classifier"]["classes"].as_array().unwrap().len(), 10);
    let models = server.get("/v1/models").ok();
    assert_eq!(models["data"][1]["id"], "rsicd-lm");
    let samplers = server.get("/sdapi/v1/samplers").ok();
    let named = |name: &str| samplers.as_array().unwrap().iter().any(|s| s["name"] == name);
    assert!(named("Euler a") && named("DPM++ 2M Karras"), "{samplers}");
    // Each name of the list is taken.
    for sampler in samplers.as_array().unwrap() {
        let asked = json!({ "steps": 4, "sampler_name": sampler["name"], "seed": 1 });
        assert_eq!(server.post("/sdapi/v1/txt2img", &asked).status, 200, "{sampler}");
    }
    assert!(server.get("/sdapi/v1/options").ok()["sd_model_checkpoint"].is_string());
    let document = server.get("/api/openapi.json").ok();
    assert!(document["paths"]["/api/jobs/{id}"]["delete"].is_object());
    assert!(server.get("/docs").text().contains("num_inference_steps"));

    let river = alone(&["a river", "--seed=7"]);
    let mut png = std::io::Cursor::new(Vec::new());
    river.write_to(&mut png, image::ImageFormat::Png).unwrap();
    let seen = server.send("/api/classify", "image/png", png.get_ref()).ok();
    let probabilities: Vec<f64> = seen["classes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["probability"].as_f64().unwrap())
        .collect();
    assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{seen}");
    assert!(probabilities.is_sorted_by(|a, b| a >= b));
}

#[test]
fn a_data_set_is_watched_while_it_grows() {
    let folder = tempfile::tempdir().unwrap();
    let set = folder.path().join("drawn");
    let watch = format!("--watch-set={}", set.display());
    let server = Server::start(&[&watch]);
    let sets = || server.get("/api/sets").ok()["sets"][0].clone();
    assert_eq!(sets()["classes"], json!([]));
    let mut command = Command::new(env!("CARGO_BIN_EXE_nadir"));
    let classes = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/eurosat-classes.toml");
    command
        .args(["synthesize", "--quiet", "--per-class=1", "--steps=8", "--classes"])
        .arg(&classes);
    let output = command.arg("-o").arg(&set).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let grown = sets();
    assert_eq!((&grown["name"], &grown["finished"]), (&json!("drawn"), &json!(true)));
    for class in grown["classes"].as_array().unwrap() {
        assert_eq!((&class["wanted"], &class["accepted"]), (&json!(1), &json!(1)), "{class}");
    }
    let picture = server.get(grown["recent"][0].as_str().unwrap());
    assert!(image::load_from_memory(&picture.body).is_ok());
    for path in [
        "/api/sets/1/pictures/a.png",
        "/api/sets/0/pictures/..%2fmetadata.png",
        "/api/sets/0/pictures/.png",
    ] {
        assert_eq!(server.get(path).status, 404, "{path}");
    }
}

#[test]
fn a_segmenter_tells_the_class_of_each_pixel() {
    let server = Server::start(&[]);
    let chip = RgbImage::from_fn(50, 40, |x, y| image::Rgb([x as u8 * 4, y as u8 * 5, 60]));
    let mut png = std::io::Cursor::new(Vec::new());
    chip.write_to(&mut png, image::ImageFormat::Png).unwrap();
    assert_eq!(server.send("/api/segment", "image/png", png.get_ref()).status, 404);
    drop(server);

    // A network of drawn weights, as one step of training leaves it.
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["data/images", "data/masks"] {
        std::fs::create_dir_all(path(name)).unwrap();
    }
    chip.save(path("data/images/0.png")).unwrap();
    image::GrayImage::from_fn(50, 40, |x, _| image::Luma([u8::from(x > 20)]))
        .save(path("data/masks/0.png"))
        .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_nadir"));
    command.args([
        "train",
        "segment",
        "--quiet",
        "--classes=land,water",
        "--resolution=32",
        "--max-train-steps=1",
    ]);
    command.args(["--base-width=8", "--train-batch-size=2", "--train-data"]).arg(path("data"));
    let output = command.arg("-o").arg(path("run")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let segmenter = path("run/segmenter");
    let server = Server::start(&["--segmenter", segmenter.to_str().unwrap()]);
    let found = server.send("/api/segment", "image/png", png.get_ref()).ok();
    let mut command = Command::new(env!("CARGO_BIN_EXE_nadir"));
    command.args(["segment", "--quiet", "-m"]).arg(&segmenter).arg(path("data/images/0.png"));
    assert!(command.arg("-o").arg(path("mask.png")).output().unwrap().status.success());
    assert_eq!(decoded(&found["mask"]), image::open(path("mask.png")).unwrap().into_rgb8());
    let shares = found["classes"].as_array().unwrap().iter().map(|c| c["share"].as_f64().unwrap());
    assert!((shares.sum::<f64>() - 1.0).abs() < 1e-9, "{found}");
    assert_eq!(decoded(&found["overlay"]).dimensions(), (50, 40));
    assert_eq!(server.get("/api/server").ok()["segmenter"]["classes"], json!(["land", "water"]));
}
