//! Finding nvcc, and calling it once for each content.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

/// Cards that get machine code: A100, RTX 30, RTX 40, H100, B200, RTX 50.
const ARCHITECTURES: [u32; 6] = [80, 86, 89, 90, 100, 120];

/// The PTX is for the oldest of them: the driver can translate it for any newer card.
const OLDEST: u32 = ARCHITECTURES[0];

/// No `--use_fast_math`: approximations are chosen by name, in the kernel that can bear them.
/// Lines are kept for profilers.
const FLAGS: &[&str] = &["-std=c++17", "-O3", "-lineinfo", "-Werror", "all-warnings"];

/// Small, since all architectures are there. ptxas reports on every kernel.
const FATBIN_FLAGS: &[&str] = &["--fatbin", "-I.", "--compress-mode=size", "-Xptxas=-v"];

/// What a family is compiled into.
pub struct Compiled {
    /// Machine code for every architecture.
    pub fatbin: PathBuf,
    /// PTX text, ended by NUL as the driver wants it.
    pub ptx: PathBuf,
}

/// A compiler that works here.
pub struct Toolkit {
    /// Its release, such as `13.0.88`.
    pub release: String,
    nvcc: PathBuf,
    architectures: Vec<u32>,
    cache: PathBuf,
}

impl Toolkit {
    /// Looks at `$NVCC`, `$CUDA_HOME`, `$CUDA_PATH`, PATH, /usr/local/cuda and what `cargo xtask cuda`
    /// left under `target`.
    ///
    /// # Errors
    /// Why there is none, as half a sentence.
    pub fn find(target: &Path) -> Result<Self, String> {
        let cache = target.join("cuda-cache");
        let installed = installed(target);
        if let Some(nvcc) = env::var_os("NVCC").filter(|v| !v.is_empty()) {
            return Self::open(Path::new(&nvcc), &cache).map_err(|e| format!("NVCC: {e}"));
        }
        let homes = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(env::var_os).map(PathBuf::from);
        let homes = homes.map(|home| home.join("bin"));
        let path = env::var_os("PATH").unwrap_or_default();
        let folders =
            homes.chain(env::split_paths(&path)).chain([PathBuf::from("/usr/local/cuda/bin")]);
        let program = format!("nvcc{}", env::consts::EXE_SUFFIX);
        let candidates = folders.map(|folder| folder.join(&program)).chain(installed);

        let mut reason = "no nvcc was found".to_owned();
        for candidate in candidates.filter(|path| path.is_file()) {
            match Self::open(&candidate, &cache) {
                Ok(toolkit) => return Ok(toolkit),
                Err(why) => reason = why,
            }
        }
        Err(reason)
    }

    /// Asks the compiler what it is, and lets it compile a kernel: one that lacks its headers or a C++
    /// compiler is found out before it can fail the build.
    fn open(nvcc: &Path, cache: &Path) -> Result<Self, String> {
        let about = run(Command::new(nvcc).arg("--version"))?;
        let release = about
            .split_once(", V")
            .and_then(|(_, rest)| rest.split_whitespace().next())
            .ok_or_else(|| format!("{} --version names no release", nvcc.display()))?;
        let codes = run(Command::new(nvcc).arg("--list-gpu-code"))?;
        let known = |arch: &u32| codes.split_whitespace().any(|code| code == format!("sm_{arch}"));
        let toolkit = Self {
            release: release.to_owned(),
            nvcc: nvcc.to_path_buf(),
            architectures: ARCHITECTURES.into_iter().filter(known).collect(),
            cache: cache.to_path_buf(),
        };
        if toolkit.architectures.first() != Some(&OLDEST) {
            return Err(format!("{} {release} cannot compile for sm_{OLDEST}", nvcc.display()));
        }
        let probe = "#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n__global__ void probe() {}\n";
        toolkit.cached("probe", "ptx", &[probe], |output| {
            let source = output.with_extension("cu");
            fs::write(&source, probe).map_err(|e| format!("{}: {e}", source.display()))?;
            run(toolkit.command(output).arg(ptx_architecture()).arg("--ptx").arg(source))
        })?;
        println!("cargo::rerun-if-changed={}", nvcc.display());
        Ok(toolkit)
    }

    /// The PTX of `kernels/STEM.cu`.
    ///
    /// # Errors
    /// What nvcc said.
    pub fn ptx(&self, stem: &str, source: &str) -> Result<PathBuf, String> {
        self.cached(stem, "ptx", &sources(source)?, |output| {
            run(self.command(output).arg(ptx_architecture()).arg("--ptx").arg(source))?;
            let mut text = fs::read(output).map_err(|e| format!("{}: {e}", output.display()))?;
            text.push(0);
            fs::write(output, text).map_err(|e| format!("{}: {e}", output.display()))
        })
    }

    /// The machine code of `kernels/STEM.cu`, compiled together with `assertions`, which include it.
    ///
    /// # Errors
    /// What nvcc said.
    pub fn fatbin(&self, stem: &str, source: &str, assertions: &str) -> Result<PathBuf, String> {
        let mut inputs = sources(source)?;
        inputs.push(assertions.to_owned());
        self.cached(stem, "fatbin", &inputs, |output| {
            let unit = output.with_extension("cu");
            fs::write(&unit, assertions).map_err(|e| format!("{}: {e}", unit.display()))?;
            let mut command = self.command(output);
            for arch in &self.architectures {
                command.arg(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
            }
            command.args(FATBIN_FLAGS).arg(unit);
            check_registers(&run(&mut command)?).map_err(|e| format!("{source}: {e}"))
        })
    }

    fn command(&self, output: &Path) -> Command {
        let mut command = Command::new(&self.nvcc);
        command.args(FLAGS).arg("-o").arg(output);
        command
    }

    /// The file that `make` writes for these inputs, kept under a name that hashes everything it depends on:
    /// profiles share it, and it costs nothing until a kernel changes.
    fn cached<T>(
        &self,
        stem: &str,
        extension: &str,
        inputs: &[impl Hash],
        make: impl FnOnce(&Path) -> Result<T, String>,
    ) -> Result<PathBuf, String> {
        let mut hasher = DefaultHasher::new();
        (&self.release, &self.nvcc, &self.architectures, FLAGS, FATBIN_FLAGS, inputs)
            .hash(&mut hasher);
        let name = format!("{stem}-{:016x}", hasher.finish());
        let path = self.cache.join(format!("{name}.{extension}"));
        if !path.exists() {
            // Two builds may do this at once: each works in a folder of its own, and the last one wins.
            let scratch = self.cache.join(format!("{name}.{}", std::process::id()));
            fs::create_dir_all(&scratch).map_err(|e| format!("{}: {e}", scratch.display()))?;
            let output = scratch.join(stem).with_extension(extension);
            let result = make(&output).and_then(|_| {
                fs::rename(&output, &path).map_err(|e| format!("{}: {e}", path.display()))
            });
            let _ = fs::remove_dir_all(&scratch);
            result?;
        }
        Ok(path)
    }
}

fn ptx_architecture() -> String {
    format!("-arch=compute_{OLDEST}")
}

/// The texts that a family's object depends on: its own, and those of the headers in `kernels` that it includes.
fn sources(source: &str) -> Result<Vec<String>, String> {
    let (mut names, mut texts) = (vec![source.to_owned()], Vec::new());
    while let Some(name) = names.get(texts.len()) {
        let text = fs::read_to_string(name).map_err(|e| format!("{name}: {e}"))?;
        for line in text.lines() {
            let included =
                line.trim().strip_prefix("#include \"").and_then(|l| l.strip_suffix('"'));
            let Some(header) = included.map(|header| format!("kernels/{header}")) else { continue };
            if !names.contains(&header) {
                names.push(header);
            }
        }
        texts.push(text);
    }
    Ok(texts)
}

/// Holds every kernel to registers: what ptxas says of one that keeps something in local memory.
fn check_registers(report: &str) -> Result<(), String> {
    let mut of = "";
    let mut wrong = Vec::new();
    for line in report.lines() {
        if let Some((_, name)) = line.split_once("Compiling entry function ") {
            of = name;
        }
        let counts = line.contains("bytes stack frame").then(|| line.split(',').map(str::trim));
        if counts.is_some_and(|mut counts| counts.any(|count| !count.starts_with("0 bytes"))) {
            wrong.push(format!("{of}: {}", line.trim()));
        }
    }
    match wrong.is_empty() {
        true => Ok(()),
        false => {
            Err(format!("kernels spill registers or index local arrays:\n{}", wrong.join("\n")))
        }
    }
}

/// The compiler that `cargo xtask cuda` installed. It names it in a file, which is created here when it is
/// not there yet, with an old date: cargo watches it, and a file that is missing would mean a build each time.
fn installed(target: &Path) -> Option<PathBuf> {
    let folder = target.join("cuda");
    let note = folder.join("installed");
    if !note.exists() {
        let _ = fs::create_dir_all(&folder);
        let _ = File::create(&note).and_then(|file| file.set_modified(SystemTime::UNIX_EPOCH));
    }
    println!("cargo::rerun-if-changed={}", note.display());
    let path = fs::read_to_string(&note).ok()?;
    (!path.trim().is_empty()).then(|| folder.join(path.trim()))
}

/// Runs a command and returns what it printed, here and there, or the reason why it failed.
fn run(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("{program}: {e}"))?;
    let printed = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    let said = [printed(&output.stdout), printed(&output.stderr)].join("\n");
    match output.status.success() {
        true => Ok(said),
        false => Err(format!("{program} failed: {}", said.trim())),
    }
}
