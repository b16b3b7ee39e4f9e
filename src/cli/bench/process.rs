//! What the kernel knows of a process: the time it took of the processors, and the memory it holds.

use std::fs;

/// CPU time that was charged to every thread of the process, in nanoseconds. Threads that have ended are left out.
#[must_use]
pub fn cpu_time(id: u32) -> Option<u64> {
    let mut sum = 0_u64;
    for task in fs::read_dir(format!("/proc/{id}/task")).ok()? {
        // A thread may end while it is looked at.
        let Ok(text) = fs::read_to_string(task.ok()?.path().join("schedstat")) else { continue };
        sum += text.split_whitespace().next()?.parse::<u64>().ok()?;
    }
    Some(sum)
}

/// Resident memory, bytes.
#[must_use]
pub fn resident(id: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_takes_time_and_memory_and_no_process_takes_none() {
        let own = std::process::id();
        let before = cpu_time(own).expect("our own");
        let mut sum = 0_u64;
        while cpu_time(own).expect("our own") == before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(resident(own).expect("our own") > 1024 * 1024);
        assert_eq!((cpu_time(u32::MAX), resident(u32::MAX)), (None, None));
    }
}
