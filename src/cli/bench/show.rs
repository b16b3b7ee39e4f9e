//! What was measured, for people and for machines.

use std::io::{self, Write};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use super::crew::Pace;
use super::histogram::Histogram;
use super::overload::Overload;
use super::pulse::Beats;
use super::schedule::Arrivals;
use super::tally::Tally;
use super::{Report, Round};
use crate::cli::check::counted;

/// More of a processor than this gone to others is worth a word.
const STOLEN: f64 = 0.02;

/// What a row of the table shows.
pub(super) const HEAD: [&str; 12] = [
    "round",
    "answers/s",
    "decisions/s",
    "p50",
    "p90",
    "p99",
    "p99.9",
    "max",
    "refused",
    "failed",
    "CPU/decision",
    "memory",
];

/// One line that is written over by the next.
pub(super) fn progress(label: &str, spent: Duration, length: Duration, answers: u64, others: u64) {
    let others = if others > 0 { format!(", {others} refused or failed") } else { String::new() };
    let (spent, length) = (spent.min(length).as_secs_f64(), length.as_secs_f64());
    // Whether anybody sees it does not matter.
    let _ = write!(anstream::stderr(), "\r\x1b[K{label}: {spent:.1} of {length:.1} s, {answers} answers{others}");
}

/// The line goes, so that the outcome stands alone.
pub(super) fn progress_ends() {
    let _ = write!(anstream::stderr(), "\r\x1b[K");
}

/// The outcome as a table.
pub(super) fn human(console: &mut impl Write, report: &Report, colours: bool) -> io::Result<()> {
    for line in heading(report) {
        writeln!(console, "{line}")?;
    }
    writeln!(console)?;
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(HEAD);
    for row in rows(report) {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    writeln!(console, "{}", table.trim_fmt())?;
    writeln!(console)?;
    let warning = if colours { Style::new().fg_color(Some(AnsiColor::Yellow.into())) } else { Style::new() };
    for line in refusals(report) {
        writeln!(console, "{line}")?;
    }
    for line in healths(report) {
        writeln!(console, "{line}")?;
    }
    for line in findings(report) {
        writeln!(console, "{line}")?;
    }
    for line in cautions(report) {
        writeln!(console, "{warning}{line}{warning:#}")?;
    }
    Ok(())
}

/// What was measured, and how.
pub(super) fn heading(report: &Report) -> Vec<String> {
    let mode = report.audit_mode.map(|mode| format!(", started for the run, records {}", mode.as_str()));
    let questions = counted(report.different, "different call", "different calls");
    let keys = if report.fresh { "fresh ids: no ruling is in the cache" } else { "the same ids again and again" };
    let pace = match report.pace {
        Pace::Closed { in_flight } if report.overload.is_some() => {
            let most = report.overload.map_or(in_flight, |found| found.in_flight);
            format!("overload: closed loops for the peak, then open loops, {most} at once on each connection at most")
        }
        Pace::Closed { in_flight } => format!("closed loop, {in_flight} at once on each connection"),
        Pace::Open { rate, arrivals, .. } => format!("open loop, {rate} calls a second, {}", arrivals_name(arrivals)),
    };
    vec![
        format!("Gatepost at {}{}", report.target, mode.unwrap_or_default()),
        format!(
            "{pace}; {}, {}",
            counted(report.connections, "connection", "connections"),
            counted(report.threads, "thread of load", "threads of load")
        ),
        format!("{}, {questions}, {keys}", report.shape),
    ]
}

fn arrivals_name(arrivals: Arrivals) -> &'static str {
    match arrivals {
        Arrivals::Poisson => "at random",
        Arrivals::Even => "evenly",
    }
}

/// A row for each round, and one for all if there are several.
pub(super) fn rows(report: &Report) -> Vec<[String; HEAD.len()]> {
    let mut rows: Vec<_> =
        report.rounds.iter().enumerate().map(|(at, round)| row(name(report, at, round), round)).collect();
    if report.overload.is_none() && report.rounds.len() > 1 {
        let sum = |figure: fn(&Round) -> Option<u64>| report.rounds.iter().map(figure).sum::<Option<u64>>();
        let all = Round {
            tally: report.total(),
            multiple: None,
            peak: None,
            rate: None,
            server_cpu: sum(|round| round.server_cpu),
            own_cpu: sum(|round| round.own_cpu),
            resident: report.rounds.iter().filter_map(|round| round.resident).max(),
            stolen: None,
            health: None,
            recovered: None,
        };
        rows.push(row("all".to_owned(), &all));
    }
    rows
}

fn name(report: &Report, at: usize, round: &Round) -> String {
    match (&report.overload, round.multiple) {
        (Some(_), Some(multiple)) => format!("{multiple} x"),
        (Some(_), None) => "peak".to_owned(),
        (None, _) => (at + 1).to_string(),
    }
}

fn row(name: String, round: &Round) -> [String; HEAD.len()] {
    let tally = &round.tally;
    let at = |share: f64| if tally.answers.count() == 0 { "-".to_owned() } else { short(tally.answers.at(share)) };
    [
        name,
        grouped(per_second(tally.answers_in_time, tally)),
        grouped(per_second(tally.decisions_in_time, tally)),
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
        at(1.0),
        tally.refused().to_string(),
        (tally.failed() + tally.unsent).to_string(),
        server_us(round).map_or_else(|| "-".to_owned(), |us| format!("{us:.1} us")),
        round.resident.map_or_else(|| "-".to_owned(), |bytes| format!("{} MiB", bytes / (1024 * 1024))),
    ]
}

/// A line for each kind of refusal and failure, of each round that has any.
pub(super) fn refusals(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    for (at, round) in report.rounds.iter().enumerate() {
        let name = name(report, at, round);
        for (why, refused) in &round.tally.refusals {
            let latencies = &refused.latencies;
            lines.push(format!(
                "{name}: {} {} {}, {} of them say when to try again; p50 {}, p99 {}",
                latencies.count(),
                why.code,
                why.reason,
                refused.with_retry,
                short(latencies.at(0.5)),
                short(latencies.at(0.99)),
            ));
        }
        for (why, count) in &round.tally.failures {
            lines.push(format!("{name}: {count} failed: {}", why.as_str()));
        }
        if round.tally.unsent > 0 {
            lines.push(format!("{name}: {} not sent: too many were under way already", round.tally.unsent));
        }
    }
    lines
}

/// A line for each round and door: whether the server said all the while that it is well, and how soon.
pub(super) fn healths(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    for (at, round) in report.rounds.iter().enumerate() {
        let Some(health) = &round.health else { continue };
        let doors = [("the listener", Some(&health.listener)), ("the operators' door", health.operators.as_ref())];
        for (door, beats) in doors.into_iter().filter_map(|(door, beats)| Some((door, beats?))) {
            let well = &beats.well;
            lines.push(format!(
                "{}: health at {door}: {} of {} looks found it within 1 s; p50 {}, p99 {}, max {}",
                name(report, at, round),
                well.count(),
                well.count() + beats.missed,
                short(well.at(0.5)),
                short(well.at(0.99)),
                short(well.longest()),
            ));
        }
    }
    lines
}

/// What else there is to know.
pub(super) fn findings(report: &Report) -> Vec<String> {
    let total = report.total();
    let decisions = &total.decisions;
    let mut lines = vec![format!(
        "{} decisions: {} allowed, {} denied, {} conditional",
        decisions.all(),
        decisions.allowed,
        decisions.denied,
        decisions.conditional
    )];
    if decisions.refused > 0 {
        lines.push(format!("{} items of batches were refused", decisions.refused));
    }
    if let Some(found) = &report.overload {
        let steps = report.rounds.iter().enumerate().filter(|(_, round)| round.multiple.is_some());
        lines.extend(steps.map(|(at, round)| step(&name(report, at, round), round, found)));
        lines.push(format!("p90 of the quiet server: {}", short(found.quiet)));
    }
    if let Some(us) = report.rounds.last().and_then(own_us) {
        lines.push(format!("the load itself took {us:.1} us of a processor for each call"));
    }
    lines
}

/// What became of the peak in one step of an overload.
fn step(name: &str, round: &Round, found: &Overload) -> String {
    let peak = round.peak.unwrap_or(found.peak);
    let share = 100.0 * per_second(round.tally.answers_in_time, &round.tally) / peak.max(1e-3);
    let back = match round.recovered {
        Some(after) => format!("back to normal {:.1} s after it", after.as_secs_f64()),
        None => "not back to normal within 30 s, or it was not looked".to_owned(),
    };
    format!("{name}: {share:.0} % of the peak right before it ({peak:.0}/s) was answered; {back}")
}

/// What makes the figures doubtful.
pub(super) fn cautions(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    if report.interrupted {
        lines.push("ended before its time: these are the figures until then".to_owned());
    }
    let late: u64 = report.rounds.iter().map(|round| round.tally.late).sum();
    if late > 0 {
        lines.push(format!(
            "{late} calls were sent more than 1 ms after their time: the load had no processor for them"
        ));
    }
    let stolen = report.rounds.iter().filter_map(|round| round.stolen).fold(0.0, f64::max);
    if stolen > STOLEN {
        lines.push(format!(
            "up to {:.0} % of a processor went to others of this machine's host: figures may be of the host, not of the server",
            100.0 * stolen
        ));
    }
    let expired: u64 = report.rounds.iter().map(|round| round.tally.decisions.token_denied).sum();
    if expired > 0 {
        lines.push(format!("{expired} decisions were denials because of the token, whatever the policies say"));
    }
    lines
}

/// The outcome as one object. docs/benchmarking.md names its members.
pub(super) fn json(console: &mut impl Write, report: &Report) -> io::Result<()> {
    let (name, in_flight, rate, arrivals) = match report.pace {
        Pace::Closed { in_flight } if report.overload.is_some() => ("overload", in_flight, None, None),
        Pace::Closed { in_flight } => ("closed", in_flight, None, None),
        Pace::Open { rate, arrivals, in_flight } => ("open", in_flight, Some(rate), Some(arrivals_name(arrivals))),
    };
    let object = json!({
        "target": report.target,
        "audit_mode": report.audit_mode.map(super::here::AuditMode::as_str),
        "load": {
            "shape": report.shape.to_string(), "fresh": report.fresh, "different_calls": report.different,
            "loop": name, "connections": report.connections, "in_flight": in_flight, "rate": rate,
            "arrivals": arrivals, "threads": report.threads, "deadline_ms": millis(report.deadline),
            "warmup_ms": millis(report.warmup),
        },
        "rounds": report.rounds.iter().map(round_json).collect::<Vec<_>>(),
        "overload": report.overload.map(|found| json!({
            "peak_per_second": found.peak, "quiet_p90_us": micros(found.quiet),
            "in_flight": found.in_flight,
        })),
        "calls_in_all": report.calls,
        "interrupted": report.interrupted,
    });
    serde_json::to_writer_pretty(&mut *console, &object)?;
    writeln!(console)
}

fn round_json(round: &Round) -> Value {
    let tally = &round.tally;
    let decisions = &tally.decisions;
    let refusals: Vec<Value> = tally
        .refusals
        .iter()
        .map(|(why, refused)| {
            json!({
                "code": why.code, "reason": why.reason, "count": refused.latencies.count(),
                "with_retry": refused.with_retry, "latency_us": latencies(&refused.latencies),
            })
        })
        .collect();
    let failures: serde_json::Map<String, Value> =
        tally.failures.iter().map(|(why, count)| (why.as_str().to_owned(), json!(count))).collect();
    json!({
        "multiple": round.multiple, "peak_per_second": round.peak, "rate": round.rate, "seconds": tally.window().as_secs_f64(),
        "answers": tally.answers.count(), "answers_per_second": per_second(tally.answers_in_time, tally),
        "decisions_per_second": per_second(tally.decisions_in_time, tally),
        "decisions": {
            "allowed": decisions.allowed, "denied": decisions.denied, "conditional": decisions.conditional,
            "items_refused": decisions.refused, "token_denied": decisions.token_denied,
        },
        "latency_us": latencies(&tally.answers),
        "refusals": refusals, "failures": failures, "unsent": tally.unsent, "late": tally.late,
        "server_cpu_us": server_us(round), "load_cpu_us": own_us(round),
        "server_memory_bytes": round.resident, "recovered_after_ms": round.recovered.map(millis),
        "stolen": round.stolen,
        "health": round.health.as_ref().map(|health| json!({
            "listener": beats(&health.listener), "operators": health.operators.as_ref().map(beats),
        })),
    })
}

fn beats(beats: &Beats) -> Value {
    json!({ "well": beats.well.count(), "missed": beats.missed, "latency_us": latencies(&beats.well) })
}

/// `null` for nothing, so that nobody takes it for fast.
fn latencies(histogram: &Histogram) -> Value {
    if histogram.count() == 0 {
        return Value::Null;
    }
    json!({
        "p50": micros(histogram.at(0.5)), "p90": micros(histogram.at(0.9)), "p99": micros(histogram.at(0.99)),
        "p99_9": micros(histogram.at(0.999)), "max": micros(histogram.longest()),
    })
}

fn micros(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e7).round() / 10.0
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "a rate, not a count")]
fn per_second(count: u64, tally: &Tally) -> f64 {
    let rate = count as f64 / tally.window().as_secs_f64().max(1e-3);
    (rate * 10.0).round() / 10.0
}

/// CPU time of the server for each decision; refusals and failures take their share of it.
#[expect(clippy::cast_precision_loss, reason = "a mean")]
fn server_us(round: &Round) -> Option<f64> {
    let decisions = Some(round.tally.decisions.all()).filter(|decisions| *decisions > 0)?;
    Some((round.server_cpu? as f64 / 100.0 / decisions as f64).round() / 10.0)
}

/// CPU time of this process for each call.
#[expect(clippy::cast_precision_loss, reason = "a mean")]
fn own_us(round: &Round) -> Option<f64> {
    let calls = Some(round.tally.calls()).filter(|calls| *calls > 0)?;
    Some((round.own_cpu? as f64 / 100.0 / calls as f64).round() / 10.0)
}

/// `12 345`
pub(super) fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// `812 us`, `1.23 ms`, `2.10 s`
pub(super) fn short(time: Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    if micros < 1e3 {
        format!("{micros:.0} us")
    } else if micros < 1e6 {
        format!("{:.2} ms", micros / 1e3)
    } else {
        format!("{:.2} s", micros / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_grouped() {
        assert_eq!([0.0, 999.6, 12_345.2, 1_234_567.0].map(grouped), ["0", "1 000", "12 345", "1 234 567"]);
        let times = [812, 1_234, 2_100_000].map(Duration::from_micros).map(short);
        assert_eq!(times, ["812 us", "1.23 ms", "2.10 s"]);
    }
}
