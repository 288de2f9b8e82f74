//! What memory the system can still give this process.

use std::fs::read_to_string;

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

/// A line `name: n kB`, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

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

    #[cfg(target_os = "linux")]
    #[test]
    fn linux_says_what_is_free() {
        let machine = machine().unwrap();
        assert!(machine.free > 0 && machine.total > 1 << 20, "{machine:?}");
        let tightest = tightest().unwrap();
        assert!(tightest.free <= machine.free.max(1 << 30), "{tightest:?} of {machine:?}");
    }
}
