//! What may happen to a run from outside: nobody reads, others write too, signals, little memory, odd names.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::{Desk, STEPS, read, text};

/// A tenth of a campaign's size, but for `cargo xtask test --all`.
pub fn size(all: usize) -> usize {
    if std::env::var_os("NADIR_TEST_ALL").is_some() { all } else { all / 10 }
}

fn refused(output: &Output, message: &str) {
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains(message), "{error:?} does not say {message:?}");
    assert!(output.stdout.is_empty());
}

fn temporary_files(folder: &Path) -> Vec<String> {
    let names =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(".nadir-")).collect()
}

/// Names of the pictures in a folder, each of which must be whole.
fn pictures(folder: &Path) -> BTreeSet<String> {
    let names =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let names: BTreeSet<_> = names.filter(|name| name.ends_with(".png")).collect();
    names.iter().for_each(|name| assert_eq!(read(&folder.join(name)).dimensions(), (64, 64)));
    names
}

#[test]
#[cfg(target_os = "linux")]
fn messages_that_nobody_takes_cost_no_picture() {
    let desk = Desk::new();
    let args = ["generate", "a river ".repeat(100).leak(), "-s", "1", STEPS];
    let full = File::options().write(true).open("/dev/full").unwrap();
    let status = desk.command(&args).stderr(full).stdout(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(0));

    let mut child =
        desk.command(&args).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    drop((child.stderr.take(), child.stdout.take()));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(desk.entries(), ["nadir-1-2.png", "nadir-1.png"]);

    // An error that cannot be told has its exit code all the same.
    let full = File::options().write(true).open("/dev/full").unwrap();
    let status = desk.command(&["generate", "x", "--eta", "7"]).stderr(full).status().unwrap();
    assert_eq!(status.code(), Some(2));
}

/// Processes that draw the same pictures into one folder at the same time.
fn together(processes: usize) {
    let desk = Desk::new();
    let args = ["generate", "a forest", "-q", "-b3", "-s1", "--steps=1"];
    let start = |_| desk.command(&args).stdout(Stdio::piped()).spawn().unwrap();
    let children: Vec<_> = (0..processes).map(start).collect();
    let mut printed = Vec::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        printed.extend(text(&output.stdout).lines().map(str::to_owned));
    }
    let distinct: BTreeSet<_> = printed.iter().cloned().collect();
    assert_eq!(distinct.len(), 3 * processes, "{printed:?}");
    assert_eq!(pictures(desk.folder.path()), distinct);
    assert_eq!(temporary_files(desk.folder.path()), [""; 0]);
}

#[test]
fn pairs_and_triples_of_processes_lose_no_picture() {
    for _ in 0..size(50) {
        together(2);
        together(3);
    }
}

#[test]
#[cfg(unix)]
fn no_signal_breaks_a_picture() {
    use std::os::unix::process::ExitStatusExt;

    for (name, number) in [("INT", 2), ("TERM", 15), ("HUP", 1), ("KILL", 9)] {
        for i in 0..size(200) {
            let desk = Desk::new();
            let args = ["generate", "a pasture", "-q", "-b", "100000", "-s0", "--steps=1"];
            let mut command = desk.command(&args);
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            // From before the model is loaded to amid the first dozens of pictures.
            std::thread::sleep(Duration::from_millis(20 + (i as u64 * 271) % 1500));
            let id = child.id().to_string();
            assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
            let printed = child.stdout.take().map(std::io::read_to_string).unwrap().unwrap();
            let status = child.wait().unwrap();
            // Before nadir listens, a signal is the system's.
            let ended = status.code() == Some(128 + number) || status.signal() == Some(number);
            assert!(ended, "{name}: {status:?}");
            let kept = pictures(desk.folder.path());
            if name != "KILL" {
                assert_eq!(temporary_files(desk.folder.path()), [""; 0], "{name}");
                assert_eq!(kept, printed.lines().map(str::to_owned).collect(), "{name}");
                continue;
            }
            fs::write(desk.path(".nadir-left.tmp"), "as after a kill amid writing").unwrap();
            desk.files(&["generate", "a pasture", "-q", "-s0", "--steps=1"]);
            assert_eq!(temporary_files(desk.folder.path()), [""; 0], "{name}, and the next run");
        }
    }
}

#[test]
#[cfg(target_os = "linux")]
fn who_ignores_hangups_is_not_stopped_by_one() {
    let desk = Desk::new();
    let program = env!("CARGO_BIN_EXE_nadir");
    let script = format!("trap '' HUP; exec '{program}' generate x -q -b 5 -s1 --steps=1");
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).current_dir(desk.folder.path()).stdout(Stdio::piped());
    let child = shell.spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    Command::new("kill").args(["-s", "HUP", &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(pictures(desk.folder.path()).len(), 5);
}

#[test]
#[cfg(target_os = "linux")]
fn what_memory_cannot_hold_is_refused_before_work_begins() {
    let desk = Desk::new();
    let run = |args: &str| {
        let program = env!("CARGO_BIN_EXE_nadir");
        let script = format!("ulimit -v 3000000; exec '{program}' generate x -s1 {args}");
        let start = Instant::now();
        let mut shell = Command::new("sh");
        let output = shell.args(["-c", &script]).current_dir(desk.folder.path()).output().unwrap();
        (output, start.elapsed())
    };
    for (args, named) in [
        ("-b 20000 --batch 20000", "--batch: 20000"),
        ("-W 8192 -H 8192", "--width: 8192x8192"),
        ("-W 8192 -H 8192 --vae-tiling --batch 7", "--width: 8192x8192"),
        ("-b 100000 --grid -W 128 -H 128", "--width: 128x128"),
    ] {
        let (output, time) = run(args);
        refused(&output, named);
        let error = text(&output.stderr);
        assert!(error.contains("GiB of memory would be needed"), "{error}");
        // A second where nothing else runs; tests run side by side.
        assert!(time < Duration::from_secs(10), "{args}: {time:?}");
    }
    // The advice is a number of pictures that would fit.
    let (output, _) = run("-b 20000 --batch 20000");
    let error = text(&output.stderr);
    let fitting = error.trim().split("; ").last().unwrap().split(' ').next().unwrap();
    let fitting: usize = fitting.parse().unwrap_or_else(|_| panic!("{error}"));
    assert!((2..20_000).contains(&fitting), "{error}");
    let (output, _) = run("-q -b 3 --batch 3 --steps=1");
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn a_picture_may_go_to_standard_output_and_say_nothing_of_itself() {
    let desk = Desk::new();
    let args = ["generate", "a river", "-s", "3", STEPS];
    let output = desk.run(&[&args[..], &["-o", "-"]].concat());
    assert!(output.status.success(), "{output:?}");
    assert!(desk.entries().is_empty());
    let file = desk.files(&args).remove(0);
    assert_eq!(output.stdout, fs::read(&file).unwrap());
    refused(&desk.run(&[&args[..], &["-o", "-", "-b2"]].concat()), "--output");

    let bare = desk.files(&[&args[..], &["-o", "bare.png", "--no-metadata"]].concat()).remove(0);
    assert_eq!(read(&bare), read(&file));
    assert_eq!(nadir::io::png::read_texts(&bare).unwrap(), []);
    refused(&desk.run(&["replay", "bare.png"]), "no such text");
}

#[test]
fn a_replay_can_be_looked_at_first() {
    let desk = Desk::new();
    desk.files(&["generate", "a \u{1b}[31mred\u{202e} river", "-s", "3", STEPS, "-o", "x.png"]);
    let output = desk.run(&["replay", "x.png", "--dry-run", "--dtype", "bf16", "-o", "none/"]);
    assert!(output.status.success(), "{output:?}");
    assert!(!output.stdout.contains(&0x1b) && !text(&output.stdout).contains('\u{202e}'));
    let recipe: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(recipe["prompt"], "a \u{1b}[31mred\u{202e} river");
    assert_eq!((&recipe["num_inference_steps"], &recipe["dtype"]), (&2.into(), &"bf16".into()));
    assert_eq!(desk.entries(), ["x.png"]);
}

#[test]
#[cfg(unix)]
fn text_of_others_does_not_rule_the_terminal() {
    let desk = Desk::new();
    let hostile = "\u{1b}]0;owned\u{7}\u{1b}[2J\nerror: a line of its own\u{9b}31m.png";
    let long = "x".repeat(200) + "/" + &"y".repeat(100_000);
    let unknown = serde_json::json!({ "\u{1b}[31m": 1 }).to_string();
    nadir::io::png::write(
        &desk.path("recipe.png"),
        &image::RgbImage::new(1, 1),
        &[(nadir::io::png::REPLAY, &unknown)],
    )
    .unwrap();
    let endless = "a river (and (more ".repeat(1500) + "\u{1b}[31m";
    let cases: [&[&str]; 5] = [
        &["replay", hostile],
        &["generate", "x", "-m", hostile],
        &["generate", "x", "-i", &long],
        &["replay", "recipe.png"],
        &["generate", &endless, STEPS],
    ];
    for args in cases {
        let error = text(&desk.run(args).stderr);
        let obeyed = error.chars().find(|c| c.is_control() && *c != '\n');
        assert_eq!(obeyed, None, "{error:?}");
        assert!(error.lines().all(|line| line.len() < 9000) && error.len() < 10_000, "{error:?}");
        assert!(error.lines().skip(1).all(|line| !line.starts_with("error")), "{error}");
    }
}

#[test]
fn what_could_be_known_before_is_not_found_after_the_work() {
    let desk = Desk::new();
    let long = "x".repeat(250) + ".png";
    fs::create_dir(desk.path("x-8.png")).unwrap();
    let before = desk.entries();
    // As many steps as there may be: who draws first does not end in time.
    let run = |args: &[&str]| {
        let start = Instant::now();
        let output = desk.run(&[&["generate", "x", "-s7", "--steps=1000"], args].concat());
        assert!(start.elapsed() < Duration::from_secs(10), "{args:?}");
        output
    };
    refused(&run(&["-o", &"x".repeat(300)]), "name");
    refused(&run(&["-o", &long, "-b2"]), "name");
    refused(&run(&["-o", "x.png", "-b2"]), "x-8.png");
    refused(&run(&["-b", "90000", "--grid", "-W", "256", "-H", "256"]), "--grid");
    refused(&run(&["--threads", "2000"]), "--threads");
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::OsStr::from_bytes(b"chip-\xff.png");
        image::RgbImage::new(64, 64).save(desk.folder.path().join(name)).unwrap();
        let mut command = desk.command(&["generate", "x", "-s7", "--steps=1000", "--init-image"]);
        refused(&command.arg(name).output().unwrap(), "--init-image");
        fs::remove_file(desk.folder.path().join(name)).unwrap();
    }
    assert_eq!(desk.entries(), before);
}
