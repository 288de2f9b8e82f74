//! What a server meets on a bad day.

use std::io::Write;
use std::net::TcpStream;

use serde_json::json;

use super::*;

/// What comes back for bytes as they are; empty when the connection is closed without a word.
fn raw(server: &Server, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // It may be closed before all is written.
    let _ = stream.write_all(bytes);
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    String::from_utf8_lossy(&reply).into_owned()
}

fn status(reply: &str) -> u16 {
    reply.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

#[test]
fn requests_that_nobody_should_send_get_the_right_answer() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let server = Server::start(&[&format!("--state={}", state.display()), "--max-body-mib=1"]);
    let before: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().flatten().map(|e| e.path()).collect();
    let close = "Host: localhost\r\nConnection: close\r\n";

    // 1. paths
    for path in [
        "/../../etc/passwd",
        "/assets/../../Cargo.toml",
        "/assets/..%2f..%2fCargo.toml",
        "/assets/%2e%2e/index.html",
        "/api/jobs/..%2f..%2fetc%2fpasswd",
        "/api/jobs/%00",
        "/api/jobs/a/images/0/../../../x",
        "//etc/passwd",
        "/api/jobs/x/images/0",
        "/nothing",
        "/api/jobs/..",
        "/assets/.",
        "/assets/%2fetc%2fpasswd",
    ] {
        let reply = raw(&server, format!("GET {path} HTTP/1.1\r\n{close}\r\n").as_bytes());
        assert_eq!(status(&reply), 404, "{path}: {reply}");
    }
    for (index, expected) in
        [("-1", 400), ("99999999999999999999999", 400), ("1e3", 400), ("5", 404)]
    {
        assert_eq!(server.get(&format!("/api/jobs/x/images/{index}")).status, expected, "{index}");
    }
    // 2. methods, versions, heads
    for (request, expected) in [
        (format!("DELETE /api/jobs HTTP/1.1\r\n{close}\r\n"), 405),
        (format!("BREW /api/jobs HTTP/1.1\r\n{close}\r\n"), 405),
        ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n".into(), 421),
        ("GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n".into(), 421),
        (format!("GET /api/server HTTP/1.1\r\n{close}Origin: https://evil.example\r\n\r\n"), 403),
        (format!("GET / HTTP/1.1\r\n{close}{}\r\n", "A: b\r\n".repeat(200)), 431),
        (format!("GET /{} HTTP/1.1\r\n{close}\r\n", "a".repeat(1 << 20)), 431),
        ("rubbish\r\n\r\n".into(), 400),
        ("GET / HTTP/9.9\r\n\r\n".into(), 400),
        (format!("POST /api/jobs HTTP/1.1\r\n{close}Content-Length: -5\r\n\r\n"), 400),
        (
            format!(
                "POST /api/jobs HTTP/1.1\r\n{close}Content-Length: 99999999999999999999\r\n\r\n"
            ),
            400,
        ),
        (
            format!(
                "POST /api/jobs HTTP/1.1\r\n{close}Content-Type: application/json\r\nContent-Length: 9999999\r\n\r\n"
            ),
            413,
        ),
        (
            format!(
                "POST /api/jobs HTTP/1.1\r\n{close}Transfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\nzz\r\n"
            ),
            400,
        ),
    ] {
        let reply = raw(&server, request.as_bytes());
        let shown: String = request.chars().take(200).collect();
        assert_eq!(status(&reply), expected, "{shown}: {reply}");
    }
    // 3. bodies
    let send = |kind: &str, body: &[u8]| server.send("/api/jobs", kind, body).status;
    assert_eq!(send("text/plain", b"{}"), 415);
    for body in
        ["", "{", "[]", "null", "{\"kind\":\"image\"} x", "\u{feff}{}", &"[".repeat(100_000)]
    {
        assert_eq!(send("application/json", body.as_bytes()), 400, "{body:.40}");
    }
    assert_eq!(send("application/json", b"{\"kind\":\"image\",\"prompt\":\"\xff\"}"), 400);
    // 4. fields
    for (field, value) in [
        ("kind", json!("video")),
        ("kind", Value::Null),
        ("prompt", json!(5)),
        ("prompt", json!("a\0b")),
        ("prompt", json!("a".repeat(500_000))),
        ("negative_prompt", json!(["x"])),
        ("prompt_2", json!(5)),
        ("prompt_2", json!("of a model with one text encoder")),
        ("negative_prompt_2", json!("a\0b")),
        ("long_prompts", json!("sometimes")),
        ("prompt_syntax", json!(1)),
        ("original_size", json!([8, 8])),
        ("target_size", json!([8])),
        ("negative_original_size", json!("8,-8")),
        ("width", json!(0)),
        ("width", json!(63)),
        ("width", json!(-8)),
        ("width", json!(1e30)),
        ("width", json!(8200)),
        ("height", json!(8200)),
        ("height", json!("64")),
        ("height", json!(64.5)),
        ("num_inference_steps", json!(0)),
        ("num_inference_steps", json!(1001)),
        ("guidance_scale", json!(-1)),
        ("guidance_scale", json!("NaN")),
        ("guidance_scale", json!(1e39)),
        ("guidance_rescale", json!(2)),
        ("eta", json!(-0.1)),
        ("clip_skip", json!(99)),
        ("scheduler", json!("../x")),
        ("scheduler", json!({})),
        ("noise", json!("dice")),
        ("seed", json!(-1)),
        ("seed", json!(1e25)),
        ("seed", json!("7")),
        ("num_images", json!(0)),
        ("num_images", json!(17)),
        ("num_images", json!(u64::MAX)),
        ("strength", json!(0.5)),
        ("strength", json!(7)),
        ("init_image", json!("not base64!")),
        ("init_image", json!("aGVsbG8=")),
        ("init_image", json!("file:///etc/passwd")),
        ("init_image", json!("http://127.0.0.1/x.png")),
        ("init_image", json!("data:image/png,xx")),
        ("mask_image", json!("aGVsbG8=")),
        ("priority", json!("first")),
        ("deadline_ms", json!(-1)),
        ("preview", json!("yes")),
        ("surprise", json!(1)),
        ("__proto__", json!({})),
    ] {
        let mut body = json!({ "kind": "image", "steps": 1 });
        if field == "num_inference_steps" {
            body.as_object_mut().unwrap().remove("steps");
        }
        body[field] = value.clone();
        let reply = server.post("/api/jobs", &body);
        let shown: String = value.to_string().chars().take(60).collect();
        assert_eq!(reply.status, 400, "{field}: {shown}: {}", reply.text());
        let named = reply.field();
        // A mask, or a strength, says that the picture is missing; a size may be told by either side.
        let expected = match field {
            "mask_image" | "strength" if named == "init_image" => "init_image",
            "height" if named == "width" => "width",
            field => field,
        };
        assert_eq!(named, expected, "{shown}: {}", reply.text());
    }
    let large = json!({ "kind": "image", "steps": 1, "width": 8192, "height": 8192 });
    assert_eq!(server.post("/api/jobs", &large).field(), "width");
    for (field, value) in [
        ("max_new_tokens", json!(0)),
        ("max_new_tokens", json!(-1)),
        ("temperature", json!(-1)),
        ("top_p", json!(0)),
        ("num_answers", json!(0)),
        ("num_answers", json!(1000)),
        ("stop", json!([""])),
        ("stop", json!("x")),
        ("prompt", json!("word ".repeat(5_000))),
        ("steps", json!(1)),
    ] {
        let mut body = json!({ "kind": "text" });
        body[field] = value;
        let reply = server.post("/api/jobs", &body);
        assert_eq!((reply.status, reply.field()), (400, field.to_owned()), "{}", reply.text());
    }
    for (path, field, value) in [
        ("/v1/images/generations", "n", json!(0)),
        ("/v1/images/generations", "size", json!("64")),
        ("/v1/images/generations", "size", json!("0x0")),
        ("/v1/images/generations", "response_format", json!("url")),
        ("/v1/completions", "logprobs", json!(5)),
        ("/v1/completions", "max_tokens", json!(0)),
        ("/sdapi/v1/txt2img", "enable_hr", json!(true)),
        ("/sdapi/v1/txt2img", "seed", json!(-7)),
        ("/sdapi/v1/txt2img", "batch_size", json!(1u64 << 40)),
        ("/sdapi/v1/txt2img", "sampler_name", json!("Nobody")),
        ("/sdapi/v1/img2img", "init_images", json!(["a", "b"])),
        ("/sdapi/v1/img2img", "init_images", json!([])),
    ] {
        let mut body = json!({ "prompt": "x", "steps": 1 });
        if path.ends_with("completions") {
            body.as_object_mut().unwrap().remove("steps");
        }
        body[field] = value;
        let reply = server.post(path, &body);
        assert_eq!(
            (reply.status, reply.field()),
            (400, field.to_owned()),
            "{path}: {}",
            reply.text()
        );
    }
    let unknown =
        server.post("/v1/images/generations", &json!({ "prompt": "x", "model": "dall-e-3" }));
    assert_eq!((unknown.status, unknown.field()), (404, "model".to_owned()));
    // 5. pictures: one that says it is larger than memory, one that is cut, one that is none
    let mut bomb = std::io::Cursor::new(Vec::new());
    RgbImage::new(8, 8).write_to(&mut bomb, image::ImageFormat::Png).unwrap();
    let mut bomb = bomb.into_inner();
    let cut = bomb[..bomb.len() / 2].to_vec();
    bomb[16..24].copy_from_slice(&[0, 0, 0x70, 0, 0, 0, 0x70, 0]);
    let checksum = crc32fast::hash(&bomb[12..29]).to_be_bytes();
    bomb[29..33].copy_from_slice(&checksum);
    // Reflectances, which a picture would show all dark.
    let mut raster = std::io::Cursor::new(Vec::new());
    let reflectances = image::ImageBuffer::from_pixel(8, 8, image::Rgb([1200_u16; 3]));
    let reflectances = image::DynamicImage::ImageRgb16(reflectances);
    reflectances.write_to(&mut raster, image::ImageFormat::Tiff).unwrap();
    for picture in [bomb, cut, b"GIF89a".to_vec(), Vec::new(), raster.into_inner()] {
        let reply = server.send("/api/classify", "image/png", &picture);
        assert_eq!((reply.status, reply.field()), (400, "picture".to_owned()), "{}", reply.text());
        assert_eq!(server.send("/api/recipe", "image/png", &picture).status, 422);
    }
    // 6. nothing was written where nothing should be, and the server goes on
    let after: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().flatten().map(|e| e.path()).collect();
    assert_eq!(before, after);
    let job = server.post("/api/jobs", &json!({ "kind": "image", "steps": 1 })).ok();
    assert_eq!(server.wait(job["id"].as_str().unwrap())["state"], "done");
}

/// The same of the protocol itself: names, lengths, encodings.
#[test]
fn what_is_no_proper_request_is_refused() {
    let server = Server::start(&["--max-body-mib=1"]);
    let ask = |line: &str, heads: &str, body: &[u8]| {
        let head = format!("{line}\r\n{heads}Connection: close\r\n\r\n");
        status(&raw(&server, &[head.as_bytes(), body].concat()))
    };
    // 1. names
    for host in [
        "localhost.evil.example",
        "evil.example:80",
        "localhost@evil.example",
        "127.0.0.1.nip.io",
        "127.1.evil.example",
        "localhost:80:80",
        "[::1",
        "::1]",
        "localhost.",
        "local host",
        "",
    ] {
        let status = ask("GET / HTTP/1.1", &format!("Host: {host}\r\n"), b"");
        assert!(matches!(status, 400 | 421), "{host}: {status}");
    }
    for (line, heads, expected) in [
        ("GET / HTTP/1.1", "Host: localhost\r\nHost: evil.example\r\n", 400),
        ("GET / HTTP/1.1", "Host: localhost\r\nHost: localhost\r\n", 400),
        ("GET http://evil.example/ HTTP/1.1", "Host: localhost\r\n", 421),
        ("GET http://localhost@evil.example/ HTTP/1.1", "Host: localhost\r\n", 421),
        ("CONNECT evil.example:443 HTTP/1.1", "Host: localhost\r\n", 421),
        ("GET http://localhost/ HTTP/1.1", "Host: localhost\r\n", 200),
    ] {
        assert_eq!(ask(line, heads, b""), expected, "{line}: {heads}");
    }
    for origin in [
        "null",
        "",
        "http://localhost.evil.example",
        "http://evil@localhost",
        "http://localhost@evil.example",
        "https://203.0.113.7",
        "file://",
        "localhost",
        "chrome-extension://localhost",
        "http://localhost, http://evil.example",
    ] {
        let heads = format!("Host: localhost\r\nOrigin: {origin}\r\n");
        assert_eq!(ask("GET /api/server HTTP/1.1", &heads, b""), 403, "{origin}");
    }
    // 2. lines and heads
    for (line, heads, expected) in [
        ("get / HTTP/1.1", "", &[405][..]),
        ("TRACE / HTTP/1.1", "", &[405]),
        ("PATCH /api/jobs HTTP/1.1", "", &[405]),
        ("PUT /api/jobs/x HTTP/1.1", "", &[405]),
        ("OPTIONS * HTTP/1.1", "", &[404, 405, 400]),
        ("GET  / HTTP/1.1", "", &[400]),
        ("GET /a b HTTP/1.1", "", &[400]),
        ("GET / HTTP/1.1 x", "", &[400]),
        ("GET / HTTP/2.0", "", &[400]),
        ("PRI * HTTP/2.0", "", &[400]),
        ("GET", "", &[400]),
        ("GET /\0 HTTP/1.1", "", &[400]),
        ("GET / HTTP/1.1", "A : b\r\n", &[400]),
        ("GET / HTTP/1.1", ": b\r\n", &[400]),
        ("GET / HTTP/1.1", "A: \0\r\n", &[400]),
        ("GET / HTTP/1.1", "A: b\r\n c: d\r\n", &[400]),
        ("GET / HTTP/1.1", "A: b\rc: d\r\n", &[400]),
        ("POST /api/jobs HTTP/1.1", "Content-Length: 2\r\nContent-Length: 3\r\n", &[400]),
        ("POST /api/jobs HTTP/1.1", "Content-Length: +2\r\n", &[400]),
        ("POST /api/jobs HTTP/1.1", "Content-Length: 0x2\r\n", &[400]),
        ("POST /api/jobs HTTP/1.1", "Content-Length: 2 2\r\n", &[400]),
        ("POST /api/jobs HTTP/1.1", "Content-Length:\r\n", &[400]),
        ("POST /api/jobs HTTP/1.1", "Transfer-Encoding: gzip\r\n", &[400]),
        ("POST /api/jobs HTTP/1.1", "Transfer-Encoding: chunked, identity\r\n", &[400]),
        ("POST /api/jobs HTTP/1.1", "", &[415]),
        ("POST /api/jobs HTTP/1.1", "Content-Type: application/json\r\n", &[400]),
        ("GET /api/jobs?limit=-1 HTTP/1.1", "", &[400]),
        ("GET /api/jobs?limit=1e9 HTTP/1.1", "", &[400]),
        ("GET /api/jobs?limit=99999999999999999999 HTTP/1.1", "", &[400]),
        ("GET /api/jobs?limit=1&limit=2 HTTP/1.1", "", &[400]),
        ("GET /api/jobs?%00=%ff HTTP/1.1", "", &[200, 400]),
        ("DELETE /api/jobs/none HTTP/1.1", "", &[404]),
        ("DELETE /api/jobs/%2e%2e HTTP/1.1", "", &[404]),
        ("GET /api/jobs/none/events HTTP/1.1", "", &[404]),
        ("GET /api/jobs/%ff%fe HTTP/1.1", "", &[400]),
        ("GET /api/jobs/..%5c..%5cx HTTP/1.1", "", &[404]),
        ("GET /api/jobs/CON HTTP/1.1", "", &[404]),
        ("GET /api/sets/..%2f..%2f/pictures/x.png HTTP/1.1", "", &[400]),
        ("GET /api/sets/0/pictures/..%2f..%2fx.png HTTP/1.1", "", &[404]),
        ("GET /api/sets/-1/pictures/x.png HTTP/1.1", "", &[400, 404]),
    ] {
        let status = ask(line, &format!("Host: localhost\r\n{heads}"), b"");
        assert!(expected.contains(&status), "{line}: {heads:?}: {status}");
    }
    // 3. bodies by pieces
    let json = "Host: localhost\r\nContent-Type: application/json\r\n";
    let chunked = format!("{json}Transfer-Encoding: chunked\r\n");
    for (heads, body, expected) in [
        (&chunked, &b"FFFFFFFFFFFFFFFFF\r\n{}"[..], 400),
        (&chunked, b"-1\r\n{}\r\n0\r\n\r\n", 400),
        (&chunked, b"2\r\n{}x\r\n0\r\n\r\n", 400),
        (&chunked, b"2;a=b\r\n{}\r\n0\r\n\r\n", 400),
    ] {
        assert_eq!(ask("POST /api/jobs HTTP/1.1", heads, body), expected, "{body:?}");
    }
    // One that says nothing of its length, and never ends, is cut at the limit.
    let endless = [b"100000\r\n".as_slice(), &[b' '; 1 << 20], b"\r\n"].concat().repeat(2);
    assert_eq!(ask("POST /api/jobs HTTP/1.1", &chunked, &endless), 413);
    let both = format!("{chunked}Content-Length: 4\r\n");
    let smuggled = b"0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let head = format!("POST /api/jobs HTTP/1.1\r\n{both}\r\n");
    let replies = raw(&server, &[head.as_bytes(), smuggled].concat());
    assert_eq!(replies.matches("HTTP/1.1 ").count(), 1, "{replies}");
    // 4. encodings
    let send = |kind: &str, body: &[u8]| server.send("/api/jobs", kind, body).status;
    for (kind, body, expected) in [
        ("application/json", &b"\x1f\x8b\x08\0\0\0\0\0"[..], 400),
        ("application/json", b"\xff\xfe{\0}\0", 400),
        ("application/json", br#"{"kind":"image","kind":"image"}"#, 400),
        ("application/json", br#"{"kind":"image","prompt":"\ud800"}"#, 400),
        ("application/json", br#"{"kind":"image","guidance_scale":1e400}"#, 400),
        ("application/json", br#"{"kind":"image","guidance_scale":NaN}"#, 400),
        ("application/json", br#"{"kind":"image","guidance_scale":-Infinity}"#, 400),
        ("application/json", br#"{"kind":"image","seed":01}"#, 400),
        ("application/json", br#"{"kind":"image",}"#, 400),
        ("application/json", b"{'kind':'image'}", 400),
        ("application/json-patch+json", b"{}", 415),
        ("multipart/form-data; boundary=x", b"--x--", 415),
        ("application/x-www-form-urlencoded", b"kind=image", 415),
        ("", b"{}", 415),
    ] {
        assert_eq!(send(kind, body), expected, "{kind}: {}", String::from_utf8_lossy(body));
    }
    // 5. forms
    let part = |name: &str, value: &[u8]| {
        let head = format!("--x\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n");
        [head.as_bytes(), value, b"\r\n"].concat()
    };
    let picture = {
        let mut bytes = std::io::Cursor::new(Vec::new());
        RgbImage::new(64, 64).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    };
    let whole = |parts: &[Vec<u8>]| [parts.concat(), b"--x--\r\n".to_vec()].concat();
    let prompt = part("prompt", b"x");
    let edits = |kind: &str, body: &[u8]| server.send("/v1/images/edits", kind, body);
    for (kind, body) in [
        ("multipart/form-data", whole(&[prompt.clone(), part("image", &picture)])),
        ("multipart/form-data; boundary=", whole(&[prompt.clone(), part("image", &picture)])),
        ("multipart/form-data; boundary=y", whole(&[prompt.clone(), part("image", &picture)])),
        ("multipart/form-data; boundary=x", [prompt.clone(), part("image", &picture)].concat()),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\n\r\n--x--\r\n".to_vec()),
        ("application/json", b"{}".to_vec()),
    ] {
        let reply = edits(kind, &body);
        assert_eq!(reply.status, 400, "{kind}: {}", reply.text());
    }
    for (field, parts) in [
        ("image", vec![prompt.clone()]),
        ("image", vec![prompt.clone(), part("image", b"file:///etc/passwd")]),
        ("image", vec![prompt.clone(), part("image", b"")]),
        ("image", vec![prompt.clone(), part("image", &picture), part("image", &picture)]),
        ("mask", vec![prompt.clone(), part("image", &picture), part("mask", b"x")]),
        ("prompt", vec![part("image", &picture), part("prompt", b"\xff")]),
        ("n", vec![prompt.clone(), part("image", &picture), part("n", b"NaN")]),
        ("n", vec![prompt.clone(), part("image", &picture), part("n", b"-1")]),
        ("seed", vec![prompt.clone(), part("image", &picture), part("seed", b"1e30")]),
        ("strength", vec![prompt.clone(), part("image", &picture), part("strength", b"9")]),
        ("size", vec![prompt.clone(), part("image", &picture), part("size", b"1x1")]),
    ] {
        let reply = edits("multipart/form-data; boundary=x", &whole(&parts));
        let found = (reply.status, reply.field());
        assert_eq!(found, (400, field.to_owned()), "{}", reply.text());
    }
    // 6. files of other kinds, and those that say that they are huge
    let huge = |before: &[u8], side: &[u8], after: &[u8]| [before, side, side, after].concat();
    for file in [
        huge(b"P6\n", b"4294967295 ", b"255\n"),
        huge(b"GIF89a", b"\xff\xff", b"\xf7\0\0"),
        huge(b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0", b"\xff\xff\xff\x7f", b"\x01\0\x18\0"),
        huge(b"farbfeld", b"\xff\xff\xff\xff", b""),
        huge(b"qoif", b"\xff\xff\xff\xff", b"\x03\0"),
        huge(b"RIFF\xff\xff\xff\xffWEBPVP8L\xff\xff\xff\xff\x2f", b"\xff\xff", b""),
        huge(b"\xff\xd8\xff\xc0\0\x11\x08", b"\xff\xff", b"\x03\x01\x11\0\x02\x11\0\x03\x11\0"),
        b"II*\0\x08\0\0\0\xff\xff".to_vec(),
        b"<svg xmlns='http://www.w3.org/2000/svg' width='1' height='1'/>".to_vec(),
        b"<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><a>&x;</a>".to_vec(),
        b"PK\x03\x04".to_vec(),
        b"\x80\x04\x95cos\nsystem\n".to_vec(),
        b"%PDF-1.7".to_vec(),
    ] {
        let reply = server.send("/api/classify", "application/octet-stream", &file);
        assert_eq!((reply.status, reply.field()), (400, "picture".to_owned()), "{}", reply.text());
    }
    assert_eq!(server.get("/health/ready").status, 200);
}

/// Heads that never end, and connections that are cut, keep nobody else waiting.
#[test]
fn slow_and_broken_clients_are_left_behind() {
    let server = Server::start(&[]);
    let address = server.url.strip_prefix("http://").unwrap();
    let slow: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: loc").unwrap();
            stream
        })
        .collect();
    for _ in 0..50 {
        let mut stream = TcpStream::connect(address).unwrap();
        let head = "POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{";
        stream.write_all(head.as_bytes()).unwrap();
    }
    assert_eq!(server.get("/health/live").status, 200);
    assert_eq!(server.post("/sdapi/v1/txt2img", &json!({ "steps": 1 })).status, 200);
    // After ten seconds they are told so, or cut.
    for mut stream in slow {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut told = Vec::new();
        let _ = stream.read_to_end(&mut told);
        let told = String::from_utf8_lossy(&told).into_owned();
        assert!(told.is_empty() || status(&told) == 408, "{told}");
    }
    assert_eq!(server.get("/health/ready").status, 200);
}
