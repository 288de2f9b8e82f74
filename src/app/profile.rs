//! `nadir profile`: the kernels of a picture.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use serde::Deserialize;

use nadir::pipeline::{Event, LoadOptions, Request, Settings, TextToImage};
use nadir::tensor::cuda::{self, KernelTime};
use nadir::tensor::{DType, Device};
use nadir::{Error, Result};

use super::draw::choose_device;
use super::model::Model;
use super::progress::Progress;
use super::{args, interrupt, limits};

/// What the virtual device counts of a launch.
#[derive(Clone, Debug, Default, Deserialize)]
struct Counts {
    kernel: String,
    warp_instructions: u64,
    flops: u64,
    tensor_flops: u64,
    global_bytes: u64,
    sectors: u64,
    sectors_needed: u64,
    bank_conflicts: u64,
}

/// Prints what drawing takes.
pub fn run(args: args::Profile) -> anyhow::Result<()> {
    let model = Model::find(args.model.as_deref())?;
    let batch = limits::check_batch(args.execution.batch, usize::MAX)?;
    let progress = Progress::new(args.execution.quiet);
    let device = choose_device(&args.execution.device, |line| progress.say(line))?;
    let Device::Cuda(ordinal) = device else {
        let expected = "kernels of a CUDA device are what is profiled";
        return Err(Error::argument("device", device, expected).into());
    };
    let dtype = args.execution.dtype.unwrap_or(DType::F32);
    let options = LoadOptions { dtype, device, variant: args.variant, ..LoadOptions::default() };
    progress.busy(&format!("loading {}", model.name));
    let pipeline = TextToImage::load(&model.folder, &options)?;
    let prompt = args.prompt.positional.or(args.prompt.named).unwrap_or_default();
    let settings = pipeline.resolve(&Settings { prompt, ..args.settings })?;
    let request = |seed| Request {
        settings: settings.clone(),
        seed,
        cancel: interrupt::switch(),
        ..Request::default()
    };
    let draw = || {
        pipeline.generate((0..batch as u64).map(request), batch, &mut |event| match event {
            Event::Finished { result, .. } => result.map(drop),
            _ => Ok(()),
        })
    };
    let is_virtual = cuda::devices()?.get(ordinal).is_some_and(cuda::Properties::is_virtual);
    progress.busy("drawing");
    let table = if is_virtual {
        let counters = std::env::var_os("VGPU_COUNTERS");
        let counters = counters.as_deref().map(Path::new);
        let before = counters.map_or(0, |file| fs::read(file).map_or(0, |lines| lines.len()));
        let ((), times) = cuda::profile(device, draw)?;
        match counters {
            Some(file) => counted(&read_counts(file, before)?),
            None => called(&times),
        }
    } else {
        draw()?;
        let ((), times) = cuda::profile(device, draw)?;
        timed(&times)
    };
    // Nobody may be reading.
    let _ = writeln!(std::io::stdout(), "{}", table.join("\n"));
    Ok(())
}

/// The lines behind the first `before` bytes, summed by kernel, those with the most instructions first.
fn read_counts(file: &Path, before: usize) -> Result<Vec<(usize, Counts)>> {
    let io = |source| Error::Io { path: file.to_path_buf(), source };
    let bytes = fs::read(file).map_err(io)?;
    let lines = String::from_utf8_lossy(bytes.get(before..).unwrap_or_default()).into_owned();
    let mut kernels: HashMap<String, (usize, Counts)> = HashMap::new();
    for line in lines.lines() {
        let launch: Counts = serde_json::from_str(line).map_err(|e| io(e.into()))?;
        let (calls, sum) = kernels.entry(launch.kernel.clone()).or_default();
        *calls += 1;
        sum.kernel = launch.kernel;
        sum.warp_instructions += launch.warp_instructions;
        sum.flops += launch.flops;
        sum.tensor_flops += launch.tensor_flops;
        sum.global_bytes += launch.global_bytes;
        sum.sectors += launch.sectors;
        sum.sectors_needed += launch.sectors_needed;
        sum.bank_conflicts += launch.bank_conflicts;
    }
    let mut kernels: Vec<_> = kernels.into_values().collect();
    kernels.sort_by_key(|(_, sum)| std::cmp::Reverse(sum.warp_instructions));
    Ok(kernels)
}

fn timed(times: &[KernelTime]) -> Vec<String> {
    let total: f64 = times.iter().map(|time| time.seconds).sum();
    let calls: usize = times.iter().map(|time| time.calls).sum();
    let row = |kernel: &str, calls: usize, seconds: f64| {
        let (each, share) = (1e6 * seconds / calls.max(1) as f64, 100.0 * seconds / total);
        format!("{kernel:<28} {calls:>7} {:>11.3} {each:>10.1} {share:>6.1}", 1e3 * seconds)
    };
    let header =
        format!("{:<28} {:>7} {:>11} {:>10} {:>6}", "kernel", "calls", "ms", "us each", "%");
    let rows = times.iter().map(|time| row(time.kernel, time.calls, time.seconds));
    [header].into_iter().chain(rows).chain([row("all", calls, total)]).collect()
}

fn counted(kernels: &[(usize, Counts)]) -> Vec<String> {
    let total: u64 = kernels.iter().map(|(_, sum)| sum.warp_instructions).sum();
    let header = format!(
        "{:<28} {:>7} {:>14} {:>6} {:>10} {:>10} {:>8} {:>10}",
        "kernel", "calls", "instructions", "%", "MFLOP", "MB", "sectors", "conflicts"
    );
    let rows = kernels.iter().map(|(calls, sum)| {
        format!(
            "{:<28} {calls:>7} {:>14} {:>6.1} {:>10.1} {:>10.1} {:>7.2}x {:>10}",
            sum.kernel,
            sum.warp_instructions,
            100.0 * sum.warp_instructions as f64 / total.max(1) as f64,
            (sum.flops + sum.tensor_flops) as f64 / 1e6,
            sum.global_bytes as f64 / 1e6,
            sum.sectors as f64 / sum.sectors_needed.max(1) as f64,
            sum.bank_conflicts
        )
    });
    let note = "counted on the virtual device: instructions of its PTX by warps, sectors as a multiple of those needed";
    [header].into_iter().chain(rows).chain([note.into()]).collect()
}

fn called(times: &[KernelTime]) -> Vec<String> {
    let header = format!("{:<28} {:>7}", "kernel", "calls");
    let rows = times.iter().map(|time| format!("{:<28} {:>7}", time.kernel, time.calls));
    let note = "a virtual device has no times; VGPU_COUNTERS=FILE counts its work";
    [header].into_iter().chain(rows).chain([note.into()]).collect()
}
