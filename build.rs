//! Compiles `kernels/*.cu` and holds every kernel against its launcher.
//!
//! The compiled kernels are embedded: a fatbin of machine code for the cards there are, and PTX that the
//! driver translates for the ones to come. Nothing is downloaded here, and without a CUDA compiler the
//! build succeeds all the same: the binary then runs on the CPU. `NADIR_CUDA` says what is wanted: `auto`
//! (default), `require` (no compiler is an error) or `off`.

use std::collections::BTreeSet;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;

#[path = "build/contract/mod.rs"]
mod contract;
#[path = "build/nvcc.rs"]
mod nvcc;

use contract::Declarations;
use nvcc::{Compiled, Toolkit};

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(errors) => {
            for line in errors.iter().flat_map(|e| e.lines()) {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

type Errors = Vec<String>;

/// Kernels and launchers of one stem: `kernels/norm.cu`, and `src/ops/norm.rs` or the files of `src/ops/norm/`.
struct Family {
    stem: String,
    kernels: String,
    launchers: String,
    declared: Declarations,
}

fn build() -> Result<(), Errors> {
    for path in ["build.rs", "build", "kernels", "src/ops"] {
        println!("cargo::rerun-if-changed={path}");
    }
    // PATH is not watched: cargo's own proxies change it from call to call.
    for name in ["NADIR_CUDA", "NVCC", "CUDA_HOME", "CUDA_PATH", "NVCC_CCBIN"] {
        println!("cargo::rerun-if-env-changed={name}");
    }

    let families = families()?;
    let wanted = env::var("NADIR_CUDA").unwrap_or_else(|_| "auto".into());
    let toolkit = match wanted.as_str() {
        "off" => Err("it was built with NADIR_CUDA=off".to_owned()),
        "auto" | "require" => Toolkit::find(&target_dir()),
        other => {
            return Err(vec![format!("NADIR_CUDA={other}: expected auto, require or off")]);
        }
    };
    match toolkit {
        Ok(toolkit) => {
            let compiled = compile(&toolkit, &families)?;
            let release = toolkit.release.clone();
            write_modules(Ok(&release), &families, &compiled);
        }
        Err(reason) => {
            let reason = reason.split_whitespace().collect::<Vec<_>>().join(" "); // cargo shows one line
            let advice = "`cargo xtask cuda` installs a compiler under target/";
            match wanted.as_str() {
                "require" => return Err(vec![format!("NADIR_CUDA=require: {reason}; {advice}")]),
                "auto" => println!(
                    "cargo::warning=CUDA kernels are left out, so this binary runs on the CPU only: {reason}; {advice}"
                ),
                _ => {}
            }
            write_modules(Err(&reason), &families, &[]);
        }
    }
    Ok(())
}

/// Pairs `kernels/NAME.cu` with `src/ops/NAME.rs` and the files of `src/ops/NAME/`, and fails on orphans.
fn families() -> Result<Vec<Family>, Errors> {
    let mut errors = Vec::new();
    let mut families = Vec::new();
    let kernels: BTreeSet<String> =
        list("kernels").iter().filter(|path| has_extension(path, "cu")).map(|p| stem(p)).collect();
    let stems: BTreeSet<String> = list("src/ops").iter().map(|path| stem(path)).collect();
    for stem in stems {
        let file = PathBuf::from(format!("src/ops/{stem}.rs"));
        let folder = format!("src/ops/{stem}");
        let launchers = if file.exists() { format!("{folder}.rs") } else { format!("{folder}/") };
        let mut files = rust_files(&folder);
        files.extend(Some(file).filter(|file| file.exists()));
        let sources: Vec<String> =
            files.iter().map(|file| fs::read_to_string(file).unwrap_or_default()).collect();
        let declared = match Declarations::parse(&sources) {
            Ok(declared) => declared,
            Err(error) => {
                errors.push(format!("{launchers}: {error}"));
                continue;
            }
        };
        let has_kernels = kernels.contains(&stem);
        let kernels = format!("kernels/{stem}.cu");
        match (has_kernels, declared.is_empty()) {
            (true, true) => {
                errors.push(format!("{kernels}: {launchers} declares no launcher for it"));
            }
            (false, false) => errors.push(format!("{launchers}: its launchers need {kernels}")),
            (true, false) => families.push(Family { stem, kernels, launchers, declared }),
            (false, true) => {}
        }
    }
    for stem in kernels {
        let place = Path::new("src/ops").join(&stem);
        if !place.with_extension("rs").exists() && !place.is_dir() {
            errors.push(format!("kernels/{stem}.cu: src/ops/{stem}.rs is missing"));
        }
    }
    if errors.is_empty() { Ok(families) } else { Err(errors) }
}

/// What is in a folder, in order; nothing where there is none.
fn list(folder: impl AsRef<Path>) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// The Rust sources in a folder and those below it.
fn rust_files(folder: impl AsRef<Path>) -> Vec<PathBuf> {
    let within = |path: PathBuf| match path.is_dir() {
        true => rust_files(path),
        false => vec![path],
    };
    let files = list(folder).into_iter().flat_map(within);
    files.filter(|path| has_extension(path, "rs")).collect()
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Compiles all families, as many at a time as cargo allows.
fn compile(toolkit: &Toolkit, families: &[Family]) -> Result<Vec<Compiled>, Errors> {
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let next = Mutex::new(families.iter().enumerate());
    let results: Mutex<Vec<_>> = Mutex::new(families.iter().map(|_| None).collect());
    thread::scope(|scope| {
        for _ in 0..families.len().min(jobs) {
            scope.spawn(|| {
                loop {
                    let Some((i, family)) = next.lock().unwrap().next() else { break };
                    let result = compile_family(toolkit, family);
                    results.lock().unwrap()[i] = Some(result);
                }
            });
        }
    });

    let (mut compiled, mut errors) = (Vec::new(), Vec::new());
    for result in results.into_inner().unwrap().into_iter().flatten() {
        match result {
            Ok(files) => compiled.push(files),
            Err(found) => errors.extend(found),
        }
    }
    if errors.is_empty() { Ok(compiled) } else { Err(errors) }
}

fn compile_family(toolkit: &Toolkit, family: &Family) -> Result<Compiled, Errors> {
    let Family { stem, kernels, launchers, declared } = family;
    let ptx = toolkit.ptx(stem, kernels).map_err(|e| vec![e])?;
    let text = fs::read_to_string(&ptx).map_err(|e| vec![format!("{}: {e}", ptx.display())])?;
    contract::check(kernels, launchers, &text, declared)?;
    let assertions = contract::assertions(kernels, launchers, declared);
    let fatbin = toolkit.fatbin(stem, kernels, &assertions).map_err(|e| vec![e])?;
    for path in [&ptx, &fatbin] {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    Ok(Compiled { fatbin, ptx })
}

/// Writes the table of embedded modules that `src/tensor/cuda.rs` includes.
fn write_modules(release: Result<&str, &str>, families: &[Family], compiled: &[Compiled]) {
    let mut text = format!(
        "/// Release of the compiler that made the kernels, or why there are none.\n\
         const COMPILER: Result<&str, &str> = {release:?};\n\n\
         static MODULES: &[Module] = &[\n"
    );
    for (family, files) in families.iter().zip(compiled) {
        let _ = writeln!(
            text,
            "    Module {{\n        family: {:?},\n        \
             fatbin: &Image(*include_bytes!({:?})),\n        \
             ptx: &Image(*include_bytes!({:?})),\n    }},",
            family.stem, files.fatbin, files.ptx
        );
    }
    text += "];\n";
    let path = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR")).join("modules.rs");
    fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// The workspace's `target`: the folder above OUT_DIR that cargo has tagged, which it does when it makes it. One that
/// was there before (`cargo install --root target/tools` makes one) is known by the compiler in it, or by its place:
/// target/PROFILE/build/PACKAGE/out.
fn target_dir() -> PathBuf {
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    let is_target =
        |folder: &&Path| folder.join("CACHEDIR.TAG").exists() || folder.join("cuda").is_dir();
    let target = out.ancestors().find(is_target).or(out.ancestors().nth(4));
    target.expect("OUT_DIR is five folders deep").to_path_buf()
}
