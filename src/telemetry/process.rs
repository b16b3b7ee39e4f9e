//! What the system says of this process: memory and file descriptors, beside what it may have.
//!
//! Read from `/proc` and the control group when somebody looks at the metrics. What can't be read is left out.

use std::fs;

/// What the system said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Process {
    /// Resident bytes.
    pub memory: Option<u64>,
    /// Bytes that the control group allows.
    pub memory_limit: Option<u64>,
    /// Open file descriptors.
    pub descriptors: Option<u64>,
    /// How many may be open.
    pub descriptors_limit: Option<u64>,
}

/// Where version 2 and version 1 of control groups show a container its own limit.
const MEMORY_LIMITS: [&str; 2] = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];

impl Process {
    /// This process, now.
    #[must_use]
    pub fn read() -> Self {
        let text = |path: &str| fs::read_to_string(path).ok();
        let open = fs::read_dir("/proc/self/fd").ok().and_then(|open| u64::try_from(open.count()).ok());
        Self {
            memory: text("/proc/self/status").as_deref().and_then(resident),
            memory_limit: MEMORY_LIMITS.iter().find_map(|path| text(path)).as_deref().and_then(memory_limit),
            // The folder itself is open while it is read.
            descriptors: open.map(|open| open.saturating_sub(1)),
            descriptors_limit: text("/proc/self/limits").as_deref().and_then(open_files),
        }
    }
}

/// `VmRSS:      5678 kB`. Source: proc_pid_status(5).
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A number of bytes. Version 2 says `max` where there is no limit, version 1 a number beyond any machine.
fn memory_limit(text: &str) -> Option<u64> {
    const NONE: u64 = 1 << 60;
    text.trim().parse().ok().filter(|limit| *limit < NONE)
}

/// `Max open files            1024                 524288               files`: the first number counts.
fn open_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_writes_is_read_and_what_it_does_not_say_is_left_out() {
        assert_eq!(resident("Name:\tgatepost\nVmRSS:\t   5678 kB\nThreads:\t4\n"), Some(5678 * 1024));
        assert_eq!(resident("Name:\tkthreadd\n"), None, "a process without memory of its own");
        assert_eq!(memory_limit("536870912\n"), Some(512 << 20));
        assert_eq!(memory_limit("max\n"), None, "version 2 without a limit");
        assert_eq!(memory_limit("9223372036854771712\n"), None, "version 1 without a limit");
        let limits = "Limit      Soft Limit  Hard Limit  Units\nMax open files   1024   524288   files\n";
        assert_eq!(open_files(limits), Some(1024));
        assert_eq!(open_files("Max open files   unlimited   unlimited   files\n"), None);
    }

    #[test]
    fn this_process_has_memory_and_files() {
        let process = Process::read();
        assert!(process.memory.is_some_and(|bytes| bytes > 1 << 20), "{process:?}");
        assert!(process.descriptors.is_some_and(|open| open > 2), "{process:?}");
    }
}
