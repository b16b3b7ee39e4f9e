//! What the kernel says of a process.

use std::time::Duration;

use super::Failure;

/// Resident memory of process `id` now, in bytes; `self` is this one.
pub fn resident(id: &str) -> Result<u64, Failure> {
    let text = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// What it has charged to this thread: time on a processor (proc(5), `schedstat`).
///
/// The file tells what was charged at the last tick of the scheduler, which may be 4 ms ago; offering the processor to others
/// makes it charge what has run since.
pub fn charged() -> Result<Duration, Failure> {
    std::thread::yield_now();
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(Duration::from_nanos(text.split_whitespace().next().ok_or("empty schedstat")?.parse()?))
}
