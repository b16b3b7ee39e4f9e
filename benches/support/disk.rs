//! The disk by itself: a time of `durable` means something only beside it.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use gatepost::clock::SharedClock;

use super::Failure;

/// How long the disk takes to append 4 KiB and `fdatasync`, a hundred times.
pub fn sync_times(folder: &Path, clock: &SharedClock) -> Result<Vec<Duration>, Failure> {
    let mut file = File::create(folder.join("disk"))?;
    let block = [0_u8; 4096];
    let mut times = Vec::with_capacity(100);
    for _ in 0..100 {
        file.write_all(&block)?;
        let begun = clock.monotonic();
        file.sync_data()?;
        times.push(clock.monotonic() - begun);
    }
    Ok(times)
}

/// The time that this share of them is not above, in microseconds.
pub fn percentile_us(times: &mut [Duration], share: f64) -> f64 {
    times.sort_unstable();
    let index = ((times.len() as f64 - 1.0) * share).round() as usize;
    times.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
}
