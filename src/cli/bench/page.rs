//! The outcome as one page: nothing is loaded from anywhere, nothing runs, and whatever comes from outside is escaped.

use std::fmt::Write as _;

use super::Report;
use super::histogram::Histogram;
use super::show::{HEAD, cautions, findings, grouped, heading, healths, refusals, rows, short};
use super::tally::Slot;

/// The size of a drawing, and the room for its scales.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 15.0;
const TOP: f64 = 15.0;
const BOTTOM: f64 = 40.0;
/// Told apart by colour and dash, so that they differ in print too.
const LINES: [(&str, &str); 6] = [
    ("#1f5fa8", ""),
    ("#b3441e", "6 3"),
    ("#2d7d46", "2 3"),
    ("#7a3d9a", "8 3 2 3"),
    ("#8a6d00", "12 4"),
    ("#444", "3 6"),
];
/// The percentile of the right edge at most.
const NINES: f64 = 5.0;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums}th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #ddd}\
th:first-child,td:first-child{text-align:left}svg{width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:#444}\
.grid{stroke:#ddd;stroke-width:1}.caution{color:#8a3b00}";

/// The whole page.
pub(super) fn page(report: &Report) -> String {
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>gatepost bench</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>gatepost bench</h1>\n"
    );
    for line in heading(report) {
        paragraph(&mut html, "", &line);
    }
    for line in cautions(report) {
        paragraph(&mut html, " class=\"caution\"", &line);
    }
    html.push_str("<h2>Figures</h2>\n<table>\n<tr>");
    for cell in HEAD {
        // Writing to a String can't fail; here and below.
        let _ = write!(html, "<th>{}</th>", escaped(cell));
    }
    html.push_str("</tr>\n");
    for row in rows(report) {
        html.push_str("<tr>");
        for cell in row {
            let _ = write!(html, "<td>{}</td>", escaped(&cell));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</table>\n");
    for line in refusals(report).iter().chain(&healths(report)).chain(&findings(report)) {
        paragraph(&mut html, "", line);
    }
    html.push_str("<h2>Latency of answers, by percentile</h2>\n");
    html.push_str(&percentiles(report));
    html.push_str("<h2>Answers, and what else came, over time</h2>\n");
    html.push_str(&over_time(report));
    html.push_str("</body>\n</html>\n");
    html
}

fn paragraph(html: &mut String, class: &str, text: &str) {
    let _ = writeln!(html, "<p{class}>{}</p>", escaped(text));
}

/// Text for a page, in an element or in an attribute with quotes.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// As plots of HdrHistogram are: each nine takes the same room, so that the tail can be seen. Latencies are logarithmic.
fn percentiles(report: &Report) -> String {
    let curves: Vec<(String, &Histogram)> = report
        .rounds
        .iter()
        .zip(rows(report))
        .filter(|(round, _)| round.tally.answers.count() > 0)
        .map(|(round, [name, ..])| (name, &round.tally.answers))
        .collect();
    let most = curves.iter().map(|(_, histogram)| histogram.count()).max().unwrap_or(1);
    #[expect(clippy::cast_precision_loss, reason = "a place on a drawing")]
    let nines = (most as f64).log10().clamp(1.0, NINES);
    let micros = |time: std::time::Duration| (time.as_secs_f64() * 1e6).max(1.0);
    let ends = curves.iter().flat_map(|(_, histogram)| [micros(histogram.at(0.0)), micros(histogram.longest())]);
    let (least, greatest) = ends.fold((f64::MAX, 1.0_f64), |(least, most), end| (least.min(end), most.max(end)));
    let (low, high) =
        (least.min(greatest).log10().floor(), (greatest.log10().ceil()).max(least.min(greatest).log10().floor() + 1.0));
    let x = |share: f64| LEFT + (WIDTH - LEFT - RIGHT) * (-(1.0 - share).log10() / nines).clamp(0.0, 1.0);
    let y = |us: f64| HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * ((us.log10() - low) / (high - low)).clamp(0.0, 1.0);

    let mut svg = opening("Latency of answers by percentile");
    let marks: [(f64, &str); 7] = [
        (0.0, "0"),
        (0.5, "50 %"),
        (0.9, "90 %"),
        (0.99, "99 %"),
        (0.999, "99.9 %"),
        (0.9999, "99.99 %"),
        (0.99999, "99.999 %"),
    ];
    for (share, name) in marks.iter().filter(|(share, _)| -(1.0 - share).log10() <= nines + 1e-9) {
        upright(&mut svg, x(*share), name);
    }
    let mut decade = low;
    while decade <= high {
        let us = 10_f64.powf(decade);
        level(&mut svg, y(us), &short(std::time::Duration::from_secs_f64(us / 1e6)));
        decade += 1.0;
    }
    for ((name, histogram), (colour, dash)) in curves.iter().zip(LINES.iter().cycle()) {
        let steps = (0..=200_u32).map(|step| 1.0 - 10_f64.powf(-nines * f64::from(step) / 200.0));
        let points: Vec<String> =
            steps.map(|share| format!("{:.1},{:.1}", x(share), y(micros(histogram.at(share))))).collect();
        curve(&mut svg, &points, colour, dash, name);
    }
    legend(&mut svg, curves.iter().map(|(name, _)| name.as_str()));
    svg.push_str("</svg>\n");
    svg
}

/// All rounds, one after the other.
fn over_time(report: &Report) -> String {
    let mut parts: Vec<(f64, Slot)> = Vec::new();
    for round in &report.rounds {
        #[expect(clippy::cast_precision_loss, reason = "a place on a drawing")]
        let long = round.tally.window().as_secs_f64() / round.tally.slots.len().max(1) as f64;
        parts.extend(round.tally.slots.iter().map(|slot| (long.max(1e-6), *slot)));
    }
    #[expect(clippy::cast_precision_loss, reason = "a place on a drawing")]
    let rate = |count: u64, long: f64| count as f64 / long;
    let whole: f64 = parts.iter().map(|(long, _)| long).sum::<f64>().max(1e-6);
    let tops = parts.iter().map(|(long, slot)| rate(slot.answers.max(slot.others), *long));
    let top = tops.fold(1.0_f64, f64::max) * 1.05;
    let x = |seconds: f64| LEFT + (WIDTH - LEFT - RIGHT) * (seconds / whole).clamp(0.0, 1.0);
    let y = |rate: f64| HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (rate / top).clamp(0.0, 1.0);

    let mut svg = opening("Answers a second, over time");
    for part in 0..=4_u32 {
        let share = f64::from(part) / 4.0;
        upright(&mut svg, x(whole * share), &format!("{:.1} s", whole * share));
        level(&mut svg, y(top * share), &format!("{}/s", grouped(top * share)));
    }
    let line = |figure: fn(&Slot) -> u64| -> Vec<String> {
        let mut spent = 0.0;
        let points = parts.iter().map(|(long, slot)| {
            spent += long;
            format!("{:.1},{:.1}", x(spent - long / 2.0), y(rate(figure(slot), *long)))
        });
        points.collect()
    };
    let names = ["answers", "refused or failed"];
    let curves = [line(|slot| slot.answers), line(|slot| slot.others)];
    for ((name, points), (colour, dash)) in names.iter().zip(&curves).zip(LINES) {
        curve(&mut svg, points, colour, dash, name);
    }
    legend(&mut svg, names.into_iter());
    svg.push_str("</svg>\n");
    svg
}

fn opening(title: &str) -> String {
    let title = escaped(title);
    format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\"><title>{title}</title>\n")
}

fn upright(svg: &mut String, x: f64, name: &str) {
    let (bottom, text) = (HEIGHT - BOTTOM, HEIGHT - BOTTOM + 15.0);
    let _ = writeln!(svg, "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\"/>");
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{text}\" text-anchor=\"middle\">{}</text>", escaped(name));
}

fn level(svg: &mut String, y: f64, name: &str) {
    let (right, text, middle) = (WIDTH - RIGHT, LEFT - 6.0, y + 4.0);
    let _ = writeln!(svg, "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\"/>");
    let _ = writeln!(svg, "<text x=\"{text}\" y=\"{middle:.1}\" text-anchor=\"end\">{}</text>", escaped(name));
}

fn curve(svg: &mut String, points: &[String], colour: &str, dash: &str, name: &str) {
    let _ = writeln!(
        svg,
        "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\" stroke-dasharray=\"{dash}\" points=\"{}\"><title>{}</title></polyline>",
        points.join(" "),
        escaped(name)
    );
}

fn legend<'n>(svg: &mut String, names: impl Iterator<Item = &'n str>) {
    let mut x = LEFT;
    let (y, text) = (HEIGHT - 10.0, HEIGHT - 6.0);
    for (name, (colour, dash)) in names.zip(LINES.iter().cycle()) {
        let end = x + 24.0;
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{y}\" x2=\"{end:.1}\" y2=\"{y}\" stroke=\"{colour}\" stroke-width=\"1.8\" stroke-dasharray=\"{dash}\"/>"
        );
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{text}\">{}</text>", end + 4.0, escaped(name));
        #[expect(clippy::cast_precision_loss, reason = "a place on a drawing")]
        let wide = name.chars().count() as f64 * 6.5;
        x = end + 18.0 + wide;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_becomes_markup() {
        let hostile = "<script>alert('x')</script>\"&\u{1b}";
        let harmless = escaped(hostile);
        assert!(!harmless.contains(['<', '>', '"', '\'', '\u{1b}']), "{harmless}");
        assert_eq!(escaped("12 345 us"), "12 345 us");
    }
}
