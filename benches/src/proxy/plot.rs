//! What was measured, as a picture: how many times as much as Fairway others cost, with the spread of the rounds.

use std::fmt::Write as _;

use super::report::{Measured, Report};

/// Rivals that are shown, with their colours; the floor in the kernel is another matter.
const SHOWN: [(&str, &str); 4] = [
    ("HAProxy", "#1f5f99"),
    ("HAProxy, splice", "#7db4e6"),
    ("HAProxy, 64 KiB", "#a35c00"),
    ("nginx stream", "#1d7f4f"),
];
/// Widths and heights in pixels.
const NAMES: f64 = 230.0;
const AXIS: f64 = 420.0;
const ROW: f64 = 34.0;
const HEAD: f64 = 64.0;
/// Ends of the axis, which is logarithmic.
const ENDS: (f64, f64) = (0.5, 16.0);

impl Report {
    /// A picture for each setting, below each other.
    pub(crate) fn svg(&self) -> String {
        let rows: usize = self.settings.iter().map(|(_, works)| works.len()).sum();
        let height = rows as f64 * ROW + self.settings.len() as f64 * (HEAD + 30.0) + 30.0;
        let width = NAMES + AXIS + 30.0;
        // Writing into a String cannot fail.
        let mut svg = String::new();
        let _ = writeln!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>"
        );
        let mut top = 10.0;
        for (setting, works) in &self.settings {
            panel(&mut svg, top, setting, works);
            top += works.len() as f64 * ROW + HEAD + 30.0;
        }
        let machine = &self.machine;
        let _ = writeln!(
            svg,
            "<text x=\"10\" y=\"{}\" fill=\"#5c6b7a\">{machine}</text>",
            height - 10.0
        );
        svg += "</svg>\n";
        svg
    }
}

fn panel(svg: &mut String, top: f64, setting: &str, works: &[Measured]) {
    let bottom = top + HEAD + works.len() as f64 * ROW;
    let _ = writeln!(
        svg,
        "<text x=\"10\" y=\"{}\" font-size=\"14\" font-weight=\"bold\">Cost of others ÷ cost of Fairway, {setting}</text>",
        top + 16.0
    );
    for (n, (rival, colour)) in SHOWN.iter().enumerate() {
        let x = 10.0 + 150.0 * n as f64;
        let _ = writeln!(
            svg,
            "<circle cx=\"{}\" cy=\"{}\" r=\"4\" fill=\"{colour}\"/><text x=\"{}\" y=\"{}\">{rival}</text>",
            x + 5.0,
            top + 33.0,
            x + 14.0,
            top + 37.0
        );
    }
    for mark in [0.5, 1.0, 2.0, 4.0, 8.0, 16.0] {
        let (x, strong) = (place(mark), mark == 1.0);
        let colour = if strong { "#1c2733" } else { "#dde2e7" };
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{}\" y2=\"{bottom}\" stroke=\"{colour}\"/><text x=\"{x:.1}\" y=\"{}\" \
             text-anchor=\"middle\" fill=\"#5c6b7a\">{mark}</text>",
            top + HEAD - 4.0,
            top + HEAD - 8.0
        );
    }
    for (n, work) in works.iter().enumerate() {
        let middle = top + HEAD + (n as f64 + 0.5) * ROW;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            NAMES - 10.0,
            middle + 4.0,
            work.name
        );
        let shown = SHOWN.iter().filter_map(|(rival, colour)| Some((work.ratios(rival)?, colour)));
        for (n, ((median, least, most), colour)) in shown.enumerate() {
            let y = middle - 10.0 + 6.5 * n as f64;
            let _ = writeln!(
                svg,
                "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{colour}\" stroke-width=\"2\"/>\
                 <circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>",
                place(least),
                place(most),
                place(median)
            );
        }
    }
}

/// Where a ratio stands, from the left.
fn place(ratio: f64) -> f64 {
    let part = |value: f64| (value / ENDS.0).ln() / (ENDS.1 / ENDS.0).ln();
    NAMES + AXIS * part(ratio.clamp(ENDS.0, ENDS.1))
}
