//! What the kernel knows of a process: the time it took of the processors, and the memory it holds; and what of all processors
//! went to other machines.

use std::fs;
use std::time::Duration;

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

/// Time that the processors of this virtual machine wanted and its host gave to others, since it was started. `None` where the
/// kernel doesn't say.
#[must_use]
pub fn stolen() -> Option<Duration> {
    stolen_in(&fs::read_to_string("/proc/stat").ok()?)
}

/// The eighth figure of the first line, in hundredths of a second. Source: proc(5), `/proc/stat`.
fn stolen_in(stat: &str) -> Option<Duration> {
    let ticks: u64 = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().nth(7)?.parse().ok()?;
    Some(Duration::from_millis(ticks.checked_mul(10)?))
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
    fn what_the_host_took_is_the_eighth_figure_of_all_processors() {
        let table = [
            (
                "cpu  14918 0 4304 27859 339 0 47 1254 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n",
                Some(12_540),
                "as Linux writes it",
            ),
            ("cpu  14918 0 4304 27859 339 0 47\n", None, "an old kernel"),
            ("cpu0 1 2 3 4 5 6 7 8 9 10\n", None, "one processor's alone"),
            ("cpu  1 2 3 4 5 6 7 99999999999999999999\n", None, "no number of ours"),
            ("", None, "nothing"),
        ];
        for (stat, expected, why) in table {
            assert_eq!(stolen_in(stat), expected.map(Duration::from_millis), "{why}");
        }
    }

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
