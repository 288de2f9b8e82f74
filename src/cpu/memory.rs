//! What memory the system can still give this process, and how fast it is read.

use std::fs::read_to_string;
use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

/// A bound on memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// What is still free.
    pub free: u64,
    /// What there is in all.
    pub total: u64,
}

/// Of the machine: its memory, and swap where that is free. `None` where the system does not say, as outside of
/// Linux; likewise below.
pub fn machine() -> Option<Space> {
    let text = read_to_string("/proc/meminfo").ok()?;
    let free = field(&text, "MemAvailable")? + field(&text, "SwapFree").unwrap_or(0);
    Some(Space { free, total: field(&text, "MemTotal")? })
}

/// Of the container: the limit of its control group. `None` as well where it has no limit.
pub fn container() -> Option<Space> {
    // Version 2 and version 1 of control groups.
    let files = [
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file "),
        (
            "/sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file ",
        ),
    ];
    files.into_iter().find_map(|(folder, limit, used, cache)| {
        let read = |name: &str| read_to_string(format!("{folder}/{name}")).ok();
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        // Without a limit it says "max" (version 2) or a number near 2^63 (version 1).
        let total = number(limit).filter(|&limit| limit < 1 << 60)?;
        // Files that were read count as used, but make room when others need it.
        let statistics = read("memory.stat").unwrap_or_default();
        let cached = statistics.lines().find_map(|line| line.strip_prefix(cache)?.parse().ok());
        let used = number(used)?.saturating_sub(cached.unwrap_or(0));
        Some(Space { free: total.saturating_sub(used), total })
    })
}

/// Of this process: the addresses that it may use (`ulimit -v`). `None` as well where that is unlimited.
pub fn process() -> Option<Space> {
    let limits = read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    let total: u64 = line.split_whitespace().next()?.parse().ok()?;
    let used = field(&read_to_string("/proc/self/status").ok()?, "VmSize")?;
    Some(Space { free: total.saturating_sub(used), total })
}

/// The bound that leaves least.
pub fn tightest() -> Option<Space> {
    [machine(), container(), process()].into_iter().flatten().min_by_key(|space| space.free)
}

/// Bytes that the threads of the current pool read from memory in a second: the median of five readings of more than caches
/// hold. What reads a model's weights once cannot be faster. A machine that others compute on gives less at times.
pub fn read_bandwidth() -> f64 {
    // A quarter of what is free, where there is little.
    let free = tightest().map_or(usize::MAX, |space| space.free as usize);
    let memory = vec![1.0f32; READ.min(free / 4 / size_of::<f32>())];
    let reading = |_| {
        let clock = Instant::now();
        black_box(sum(black_box(&memory)));
        clock.elapsed().as_secs_f64()
    };
    let mut seconds: [f64; 5] = std::array::from_fn(reading);
    seconds.sort_by(f64::total_cmp);
    size_of_val(&*memory) as f64 / seconds[2]
}

/// Numbers that [`read_bandwidth`] reads, at most.
const READ: usize = 128 << 20;

/// The sum of `x`, by threads that do nothing else but read.
pub fn sum(x: &[f32]) -> f32 {
    let part = |x: &[f32]| {
        let mut sums = [0.0f32; 64];
        let chunks = x.chunks_exact(64);
        let rest: f32 = chunks.remainder().iter().sum();
        for x in chunks {
            sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
        }
        rest + sums.iter().sum::<f32>()
    };
    x.par_chunks(1 << 20).map(part).sum()
}

/// A line `name: n kB`, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// Has the system provide the pages of `part`, which is about to be written, in one call rather than at the first touch of
/// each: for fresh memory in large pieces, such as a model's weights, that is a quarter of the time of loading. The
/// content stays as it is. Of use under Linux 5.14 and later; elsewhere the first touch does it.
pub fn fault_in<T>(part: &mut [T]) {
    #[cfg(target_os = "linux")]
    {
        use rustix::mm::{Advice, madvise};

        let page = rustix::param::page_size();
        let bytes = part.as_mut_ptr_range();
        // Whole pages of this slice alone: those at its ends are shared with neighbours.
        let start = bytes.start.addr().next_multiple_of(page);
        let len = (bytes.end.addr() & !(page - 1)).saturating_sub(start);
        if len >= FAULTED_IN {
            let start = bytes.start.with_addr(start).cast();
            // SAFETY: the pages lie within `part`, and to populate memory changes nothing of its content.
            let _ = unsafe { madvise(start, len, Advice::LinuxPopulateWrite) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = part;
}

/// From this many bytes on, a call to the system costs less than the faults it saves.
#[cfg(target_os = "linux")]
const FAULTED_IN: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_bytes() {
        let text =
            "MemTotal:       24677604 kB\nMemAvailable:    1024 kB\nHugePages_Total:       0\n";
        assert_eq!(field(text, "MemTotal"), Some(24_677_604 * 1024));
        assert_eq!(field(text, "MemAvailable"), Some(1 << 20));
        assert_eq!(field(text, "Mem"), None);
        assert_eq!(field(text, "HugePages_Total"), None);
    }

    #[test]
    fn memory_that_is_faulted_in_keeps_its_content() {
        let mut values: Vec<u32> = (0..100_000).collect();
        for (from, to) in [(0, 100_000), (1, 99_999), (1000, 1001), (7, 7)] {
            fault_in(&mut values[from..to]);
        }
        assert!(values.iter().enumerate().all(|(i, &value)| value == i as u32));
    }

    /// Pages that are there do not fault when they are written.
    #[cfg(target_os = "linux")]
    #[test]
    fn memory_that_is_faulted_in_is_resident() {
        let resident = || {
            let text = read_to_string("/proc/self/smaps_rollup").unwrap();
            field(&text, "Rss").unwrap()
        };
        let mut fresh = vec![0_u8; 256 << 20]; // lazily zeroed, and larger than what other tests take meanwhile
        let before = resident();
        fault_in(&mut fresh);
        let gained = resident().saturating_sub(before);
        assert!(gained >= 200 << 20, "{gained}");
        drop(fresh);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn linux_says_what_is_free() {
        let machine = machine().unwrap();
        assert!(machine.free > 0 && machine.total > 1 << 20, "{machine:?}");
        let tightest = tightest().unwrap();
        assert!(tightest.free <= machine.free.max(1 << 30), "{tightest:?} of {machine:?}");
    }
}
