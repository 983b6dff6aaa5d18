//! The host's memory, as the kernel tells it: what a run on the CPU can take, and what this process has taken.

use std::fs::read_to_string;

/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    /// What can be had now without swapping.
    pub(super) free: usize,
    /// What there is at all: the machine's or the container's, and the machine's swap. A process that takes more is
    /// ended by the kernel.
    pub(super) total: usize,
}

/// The memory of this machine; none where the kernel does not say.
pub(super) fn memory() -> Option<Memory> {
    let group = read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = group.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").to_owned();
    let of_group = |name: &str| {
        let own = read_to_string(format!("/sys/fs/cgroup{group}/{name}"));
        own.or_else(|_| read_to_string(format!("/sys/fs/cgroup/{name}"))).unwrap_or_default()
    };
    let limits = [of_group("memory.max"), of_group("memory.current"), of_group("memory.stat")];
    parse(&read_to_string("/proc/meminfo").ok()?, [&limits[0], &limits[1], &limits[2]])
}

/// From the texts of `meminfo` and of a control group's limit, use and statistics.
fn parse(meminfo: &str, [max, current, stat]: [&str; 3]) -> Option<Memory> {
    let of = |key| kilobytes(meminfo, key);
    let machine = Memory { free: of("MemAvailable")?, total: of("MemTotal")? + of("SwapFree").unwrap_or(0) };
    let Ok(max) = max.trim().parse::<usize>() else { return Some(machine) };
    // What the group holds of files it can give back.
    let cached = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse().ok()).unwrap_or(0);
    let used = current.trim().parse::<usize>().unwrap_or(0).saturating_sub(cached);
    Some(Memory { free: machine.free.min(max.saturating_sub(used)), total: machine.total.min(max) })
}

fn kilobytes(text: &str, key: &str) -> Option<usize> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    Some(value.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? << 10)
}

/// Bytes that this process holds now, and the most that it ever held.
pub(super) fn taken() -> [usize; 2] {
    crate::device::process_memory().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:  1000 kB\nMemFree:  1 kB\nMemAvailable:  600 kB\nSwapFree:  50 kB\n";

    #[test]
    fn a_container_has_what_its_limit_leaves() {
        let of = |group| parse(MEMINFO, group).map(|m| [m.free >> 10, m.total >> 10]);
        assert_eq!(of(["max\n", "", ""]), Some([600, 1050]));
        assert_eq!(of(["", "", ""]), Some([600, 1050]));
        assert_eq!(of(["512000\n", "204800\n", "anon 1\ninactive_file 102400\n"]), Some([400, 500]));
        assert_eq!(of(["51200000\n", "0\n", ""]), Some([600, 1050]));
        assert_eq!(parse("MemTotal: 5 kB", ["", "", ""]), None);
    }

    #[test]
    fn this_process_has_taken_something() {
        let [now, most] = taken();
        assert!(now > 1 << 20 && now <= most + (1 << 20), "{now} {most}");
        assert!(memory().is_some_and(|m| m.free > 1 << 20 && m.free <= m.total));
    }
}
