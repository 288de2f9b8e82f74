//! Pictures within a time, or none.

use super::*;

fn run(desk: &Desk, args: &[&str]) -> (Option<i32>, String, usize) {
    let output = desk.run(&[&["generate", "a river", "--seed=1", "-o", "out"][..], args].concat());
    let drawn = fs::read_dir(desk.path("out")).unwrap().count();
    (output.status.code(), text(&output.stderr), drawn)
}

#[test]
fn a_time_is_kept_to_or_refused_with_what_can_be() {
    let desk = Desk::new();
    fs::create_dir(desk.path("out")).unwrap();
    // 1. what can be at no price, before anything is drawn
    let (code, told, drawn) = run(&desk, &["-b=4", "--batch=4", "--deadline-ms=1"]);
    assert_eq!((code, drawn), (Some(2), 0), "{told}");
    assert!(told.contains("--deadline-ms: 1 is not possible: nearest is"), "{told}");
    let (code, told, drawn) = run(&desk, &["-b=4", "--images-per-second=1e9", "--steps=2"]);
    assert_eq!((code, drawn), (Some(2), 0), "{told}");
    assert!(told.contains("--images-per-second") && told.contains("a second"), "{told}");
    // 2. with more than enough, all steps, and all at once
    let (code, told, drawn) =
        run(&desk, &["-b=4", "--batch=4", "--deadline-ms=600000", "--steps=5"]);
    assert_eq!((code, drawn), (Some(0), 4), "{told}");
    assert!(told.contains("4 at once with 5 steps"), "{told}");
    assert!(told.contains("1 batches: p50") && told.contains("0 later than 600000 ms"), "{told}");
    // 3. pictures are those of the chosen steps
    let files = desk.files(&["generate", "a river", "--seed=1", "--steps=5", "-o", "alone.png"]);
    assert!(read(&files[0]) == read(&desk.path("out/nadir-1.png")));
}

#[test]
fn where_steps_have_to_go_a_sampler_for_few_comes() {
    let desk = Desk::new();
    fs::create_dir(desk.path("out")).unwrap();
    desk.files(&["generate", "a river", "--seed=2", "-o", "first.png"]);
    let start = ["--init-image=first.png", "--strength=0.5", "--steps=80"];
    // 1. what all steps take, from the picture on: the refusal says it
    let (_, told, _) = run(&desk, &[&start[..], &["--deadline-ms=1"]].concat());
    let nearest = told.split("nearest is ").nth(1).and_then(|told| told.split(' ').next());
    let all: f64 = nearest.unwrap_or_else(|| panic!("{told}")).parse().unwrap();
    // 2. in less than half of that, with far fewer allowed
    let deadline = format!("--deadline-ms={:.0}", 0.45 * all);
    let (code, told, drawn) = run(&desk, &[&start[..], &["--min-steps=12", &deadline]].concat());
    assert_eq!((code, drawn), (Some(0), 1), "{told}");
    let steps = told.split(" at once with ").nth(1).and_then(|told| told.split(' ').next());
    let steps: usize = steps.unwrap_or_else(|| panic!("{told}")).parse().unwrap();
    assert!((12..80).contains(&steps) && told.contains(" steps of DPM++ 2M: done"), "{told}");
    // 3. it is what that sampler draws, and says so itself
    let steps = format!("--steps={steps}");
    let same = ["--seed=1", "--scheduler=dpm++2m", "-o", "same.png", start[0], start[1], &steps];
    let files = desk.files(&[&["generate", "a river"][..], &same].concat());
    assert!(read(&files[0]) == read(&desk.path("out/nadir-1.png")));
    // 4. who names a sampler keeps it
    let kept = ["--scheduler=ddim", "--min-steps=12", &deadline];
    let (code, told, _) = run(&desk, &[&start[..], &kept].concat());
    assert!(code == Some(0) && !told.contains("DPM"), "{told}");
}

#[test]
fn what_a_time_cannot_be_is_told() {
    let desk = Desk::new();
    fs::create_dir(desk.path("out")).unwrap();
    for (args, flag) in [
        (vec!["--deadline-ms=0"], "--deadline-ms"),
        (vec!["--images-per-second=-1"], "--images-per-second"),
        (vec!["--images-per-second=NaN"], "--images-per-second"),
        (vec!["--images-per-second=1", "--deadline-ms=1"], "--deadline-ms"),
        (vec!["--min-steps=3"], "--min-steps"),
        (vec!["--min-batch=1"], "--min-batch"),
        (vec!["--deadline-ms=9999999", "--batch=2", "-b=4", "--min-batch=3"], "--min-batch"),
        (vec!["--deadline-ms=9999999", "--steps=3", "--min-steps=4"], "--min-steps"),
    ] {
        let (code, told, drawn) = run(&desk, &args);
        assert_eq!((code, drawn), (Some(2), 0), "{args:?}: {told}");
        assert!(told.contains(flag), "{args:?}: {told}");
    }
}
