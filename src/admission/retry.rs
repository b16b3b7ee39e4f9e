//! When to come back.

use std::time::Duration;

/// Sooner is no use to anybody.
const SHORTEST: Duration = Duration::from_millis(50);
/// Later is longer than an overload of ours lasts.
pub(super) const LONGEST: Duration = Duration::from_secs(5);
/// When everybody is let in, and a place was missing all the same.
const USUAL: Duration = Duration::from_millis(100);

/// For a caller of whose calls `part` (0 to 1) is let in, in a house where calls `stay` so long; `number` tells one refusal
/// from the next, so that those who were refused together do not come back together.
pub(super) fn after(part: f64, stay: Duration, number: u64) -> Duration {
    let wait = USUAL.max(2 * stay.min(LONGEST)).as_secs_f64() / part.clamp(0.01, 1.0);
    let wait = Duration::from_secs_f64(wait.min(LONGEST.as_secs_f64()));
    // A half to one and a half of it. Multiples of the golden ratio fall far apart, and it needs no randomness.
    let fraction = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54;
    let jittered = wait / 2 + wait * u32::try_from(fraction).unwrap_or_default() / 1024;
    jittered.clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_refused_comes_back_later_the_fewer_get_in_and_not_with_the_others() {
        let table = [
            (1.0, 0, 50, 150, "a place was missing for a moment"),
            (1.0, 200, 200, 600, "calls take long"),
            (0.1, 0, 500, 1500, "one in ten gets in"),
            (0.0, 0, 2500, 5000, "nobody does"),
            (1.0, 60_000, 2500, 5000, "for as long as it says at most"),
        ];
        for (part, stay, least, most, why) in table {
            let mut waits: Vec<_> = (0..1000).map(|number| after(part, Duration::from_millis(stay), number)).collect();
            waits.sort();
            let (least, most) = (Duration::from_millis(least), Duration::from_millis(most));
            assert!(waits[0] >= least && waits[0] <= least * 11 / 10, "{why}: {:?}", waits[0]);
            assert!(waits[999] <= most && waits[999] >= most * 9 / 10, "{why}: {:?}", waits[999]);
            waits.dedup();
            assert!(waits.len() > 400, "{why}: only {} different", waits.len());
        }
    }
}
