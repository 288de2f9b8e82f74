//! `nadir profile`: the kernels of a picture, or the parts of the model that launch them.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use serde::Deserialize;

use nadir::pipeline::{Event, LoadOptions, Request, Settings, TextToImage};
use nadir::tensor::cuda::{self, Launch, Range};
use nadir::tensor::{DType, Device};
use nadir::{Error, Result};

use super::args::ProfileBy;
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

/// A row of the table: some launches.
#[derive(Clone, Debug, Default)]
struct Row {
    calls: usize,
    seconds: f64,
    counts: Counts,
}

impl Row {
    fn add(&mut self, seconds: f64, counts: &Counts) {
        self.calls += 1;
        self.seconds += seconds;
        let sum = &mut self.counts;
        sum.warp_instructions += counts.warp_instructions;
        sum.flops += counts.flops;
        sum.tensor_flops += counts.tensor_flops;
        sum.global_bytes += counts.global_bytes;
        sum.sectors += counts.sectors;
        sum.sectors_needed += counts.sectors_needed;
        sum.bank_conflicts += counts.bank_conflicts;
    }
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
    let options = LoadOptions {
        dtype,
        device,
        variant: args.variant,
        supplement: model.supplement.clone(),
        ..LoadOptions::default()
    };
    progress.busy(&format!("loading {}", model.name));
    let pipeline = TextToImage::load(&model.folder, &options)?;
    let prompt = args.prompt.positional.or(args.prompt.named).unwrap_or_default();
    let settings = pipeline.resolve(&Settings { prompt, ..args.settings }, None)?;
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
    // What the loading has put into the stream is none of the picture's.
    cuda::Stream::current(device)?.synchronize()?;
    let table = if is_virtual {
        let counters = std::env::var_os("VGPU_COUNTERS");
        let counters = counters.as_deref().map(Path::new);
        let before = counters.map_or(0, |file| fs::read(file).map_or(0, |lines| lines.len()));
        let ((), launches) = cuda::profile(device, draw)?;
        match counters {
            Some(file) => {
                let counts = read_counts(file, before)?;
                let alike = |(a, b): (&Launch, &Counts)| a.kernel == b.kernel;
                if counts.len() != launches.len() || !launches.iter().zip(&counts).all(alike) {
                    let message = "the device counted other launches than were made";
                    return Err(Error::value("profile", message).into());
                }
                counted(&rows(args.by, &launches, &counts))
            }
            None => called(&rows(args.by, &launches, &[])),
        }
    } else {
        draw()?;
        let ((), launches) = cuda::profile(device, draw)?;
        timed(&rows(args.by, &launches, &[]))
    };
    // Nobody may be reading.
    let _ = writeln!(std::io::stdout(), "{}", table.join("\n"));
    Ok(())
}

/// The launches in the lines behind the first `before` bytes.
fn read_counts(file: &Path, before: usize) -> Result<Vec<Counts>> {
    let io = |source| Error::Io { path: file.to_path_buf(), source };
    let bytes = fs::read(file).map_err(io)?;
    let lines = String::from_utf8_lossy(bytes.get(before..).unwrap_or_default()).into_owned();
    lines.lines().map(|line| serde_json::from_str(line).map_err(|e| io(e.into()))).collect()
}

/// The launches by kernel or by part of the model, with what was counted of each, if anything was.
fn rows(by: ProfileBy, launches: &[Launch], counts: &[Counts]) -> Vec<(String, Row)> {
    let mut rows: HashMap<&str, Row> = HashMap::new();
    let uncounted = Counts::default();
    for (i, launch) in launches.iter().enumerate() {
        let name = match by {
            ProfileBy::Kernel => launch.kernel,
            ProfileBy::Module => launch.range.as_ref().map_or("between", Range::name),
        };
        rows.entry(name).or_default().add(launch.seconds, counts.get(i).unwrap_or(&uncounted));
    }
    rows.into_iter().map(|(name, row)| (name.to_owned(), row)).collect()
}

/// Sorts rows, the largest `size` first, and gives the width of their names.
fn sort(rows: &[(String, Row)], size: impl Fn(&Row) -> f64) -> (usize, Vec<&(String, Row)>) {
    let mut sorted: Vec<_> = rows.iter().collect();
    sorted.sort_by(|(a, x), (b, y)| size(y).total_cmp(&size(x)).then(a.cmp(b)));
    (rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max(28), sorted)
}

fn timed(rows: &[(String, Row)]) -> Vec<String> {
    let (width, sorted) = sort(rows, |row| row.seconds);
    let total: f64 = rows.iter().map(|(_, row)| row.seconds).sum();
    let calls: usize = rows.iter().map(|(_, row)| row.calls).sum();
    let line = |name: &str, calls: usize, seconds: f64| {
        let (each, share) = (1e6 * seconds / calls.max(1) as f64, 100.0 * seconds / total);
        format!("{name:<width$} {calls:>7} {:>11.3} {each:>10.1} {share:>6.1}", 1e3 * seconds)
    };
    let header = format!("{:<width$} {:>7} {:>11} {:>10} {:>6}", "", "calls", "ms", "us each", "%");
    let lines = sorted.iter().map(|(name, row)| line(name, row.calls, row.seconds));
    [header].into_iter().chain(lines).chain([line("all", calls, total)]).collect()
}

fn counted(rows: &[(String, Row)]) -> Vec<String> {
    let (width, sorted) = sort(rows, |row| row.counts.warp_instructions as f64);
    let total: u64 = rows.iter().map(|(_, row)| row.counts.warp_instructions).sum();
    let header = format!(
        "{:<width$} {:>7} {:>14} {:>6} {:>10} {:>10} {:>8} {:>10}",
        "", "calls", "instructions", "%", "MFLOP", "MB", "sectors", "conflicts"
    );
    let lines = sorted.iter().map(|(name, Row { calls, counts: sum, .. })| {
        format!(
            "{name:<width$} {calls:>7} {:>14} {:>6.1} {:>10.1} {:>10.1} {:>7.2}x {:>10}",
            sum.warp_instructions,
            100.0 * sum.warp_instructions as f64 / total.max(1) as f64,
            (sum.flops + sum.tensor_flops) as f64 / 1e6,
            sum.global_bytes as f64 / 1e6,
            sum.sectors as f64 / sum.sectors_needed.max(1) as f64,
            sum.bank_conflicts
        )
    });
    let note = "counted on the virtual device: instructions of its PTX by warps, sectors as a multiple of those needed";
    [header].into_iter().chain(lines).chain([note.into()]).collect()
}

fn called(rows: &[(String, Row)]) -> Vec<String> {
    let (width, sorted) = sort(rows, |row| row.calls as f64);
    let header = format!("{:<width$} {:>7}", "", "calls");
    let lines = sorted.iter().map(|(name, row)| format!("{name:<width$} {:>7}", row.calls));
    let note = "a virtual device has no times; VGPU_COUNTERS=FILE counts its work";
    [header].into_iter().chain(lines).chain([note.into()]).collect()
}
