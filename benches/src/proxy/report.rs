//! What was measured, as tables for people and as JSON.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::idle::IdleTable;
use super::reload::ReloadTable;
use crate::core::Cost;
use crate::load::Outcome;
use crate::spread;

/// Everything that one run measured.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: String,
    pub(crate) settings: Vec<(String, Vec<Measured>)>,
    pub(crate) idle: Option<IdleTable>,
    pub(crate) reload: Option<ReloadTable>,
}

/// One kind of work in one setting.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) key: String,
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) wanted: Option<(f64, f64)>,
    /// Fairway's is the first.
    pub(crate) series: Vec<Series>,
}

/// The rounds of one balancer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Series {
    pub(crate) rival: String,
    pub(crate) rounds: Vec<Round>,
    /// Runs that were disturbed by other load.
    pub(crate) repeated: usize,
}

/// One run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Round {
    /// Of a unit of work: microseconds, or milliseconds for a gigabyte.
    pub(crate) cost: f64,
    /// Units of work a second.
    pub(crate) rate: f64,
    /// Share of the time for which the balancer's core was busy.
    pub(crate) busy: f64,
    /// Microseconds at 50, 99 and 99.9 % of exchanges.
    pub(crate) latency: Option<[u32; 3]>,
    pub(crate) failed: u64,
    /// Share of the time that went to others than the measured ones.
    pub(crate) foreign: f64,
    pub(crate) disturbed: bool,
}

impl Round {
    pub(crate) fn new(cost: Cost, mut outcome: Outcome, units: f64, scale: f64) -> Self {
        let times = &mut outcome.times;
        times.sort_unstable();
        let at = |part: usize| times[(times.len() * part / 1000).min(times.len() - 1)];
        let latency = (!times.is_empty()).then(|| [at(500), at(990), at(999)]);
        Self {
            cost: cost.busy.as_secs_f64() * scale / units,
            rate: units / cost.wall.as_secs_f64(),
            busy: cost.busy.as_secs_f64() / cost.wall.as_secs_f64(),
            latency,
            failed: outcome.failed,
            foreign: cost.foreign,
            disturbed: cost.is_disturbed(),
        }
    }
}

impl Series {
    pub(crate) fn new(rival: &str) -> Self {
        Self { rival: rival.into(), rounds: Vec::new(), repeated: 0 }
    }

    fn costs(&self) -> Vec<f64> {
        self.rounds.iter().map(|round| round.cost).collect()
    }
}

impl Measured {
    /// How many times as much as Fairway's the cost of `rival` is, round by round.
    pub(crate) fn ratios(&self, rival: &str) -> Option<(f64, f64, f64)> {
        let own = self.series.first()?;
        let other = self.series.iter().find(|series| series.rival == rival)?;
        let pairs = own.costs().into_iter().zip(other.costs());
        let ratios: Vec<f64> = pairs.map(|(own, other)| other / own).collect();
        (!ratios.is_empty()).then(|| spread(&ratios))
    }

    /// In a line, while the rest is measured.
    pub(crate) fn line(&self, setting: &str) -> String {
        let mut line = format!("{setting:<7} {:<38}", self.name);
        for series in &self.series {
            let (median, _, _) = spread(&series.costs());
            let _ = write!(line, "  {} {median:.1}", series.rival);
        }
        line
    }
}

impl Report {
    pub(crate) fn add(&mut self, setting: &str, measured: Measured) {
        match self.settings.iter_mut().find(|(name, _)| name == setting) {
            Some((_, all)) => all.push(measured),
            None => self.settings.push((setting.into(), vec![measured])),
        }
    }

    /// All of it in Markdown.
    pub(crate) fn tables(&self) -> String {
        let mut text = String::new();
        for (n, (setting, works)) in self.settings.iter().enumerate() {
            // Writing into a String cannot fail.
            let _ = writeln!(text, "### Cost, {setting}\n");
            text += &costs(works, n);
            let _ = writeln!(text, "\n### Latency, {setting}\n");
            text += &latencies(works);
            text.push('\n');
        }
        text
    }
}

fn costs(works: &[Measured], setting: usize) -> String {
    let mut rivals: Vec<&str> = Vec::new();
    for series in works.iter().flat_map(|work| &work.series) {
        if !rivals.contains(&series.rival.as_str()) {
            rivals.push(&series.rival);
        }
    }
    let mut text = String::from("| work | unit |");
    rivals.iter().for_each(|rival| text += &format!(" {rival} |"));
    rivals.iter().skip(1).for_each(|rival| text += &format!(" {rival} ÷ Fairway |"));
    text += " wanted |\n|";
    text += &" --- |".repeat(2 * rivals.len() + 2);
    text.push('\n');
    for work in works {
        let _ = write!(text, "| {} | {} |", work.name, work.unit);
        for rival in &rivals {
            let series = work.series.iter().find(|series| series.rival == *rival);
            text += &series.map_or(" |".into(), |series| format!(" {} |", cell(&series.costs())));
        }
        for rival in rivals.iter().skip(1) {
            let ratios = work.ratios(rival);
            text += &ratios.map_or(" |".into(), |(median, least, most)| {
                format!(" **{median:.2}** ({least:.2}–{most:.2}) |")
            });
        }
        let wanted = work.wanted.map(|wanted| if setting == 0 { wanted.0 } else { wanted.1 });
        text += &wanted.map_or(" |\n".into(), |wanted| format!(" {wanted:.2} |\n"));
    }
    text
}

fn latencies(works: &[Measured]) -> String {
    let mut text = String::from(
        "| work | balancer | a second | core busy | p50 µs | p99 µs | p99.9 µs | failed |\n| --- | --- | --- | --- \
         | --- | --- | --- | --- |\n",
    );
    for work in works.iter().filter(|work| !work.unit.ends_with("GB")) {
        for series in &work.series {
            let at = |n: usize| {
                let values =
                    series.rounds.iter().filter_map(|round| Some(f64::from(round.latency?[n])));
                let values: Vec<f64> = values.collect();
                if values.is_empty() { String::new() } else { cell_whole(&values) }
            };
            let of = |value: fn(&Round) -> f64| -> Vec<f64> {
                series.rounds.iter().map(value).collect()
            };
            let failed: u64 = series.rounds.iter().map(|round| round.failed).sum();
            let _ = writeln!(
                text,
                "| {} | {} | {} | {:.0} % | {} | {} | {} | {failed} |",
                work.name,
                series.rival,
                cell_whole(&of(|round| round.rate)),
                spread(&of(|round| round.busy * 100.0)).0,
                at(0),
                at(1),
                at(2),
            );
        }
    }
    text
}

fn cell(values: &[f64]) -> String {
    let (median, least, most) = spread(values);
    if median < 100.0 {
        format!("{median:.2} ({least:.2}–{most:.2})")
    } else {
        format!("{median:.0} ({least:.0}–{most:.0})")
    }
}

fn cell_whole(values: &[f64]) -> String {
    let (median, least, most) = spread(values);
    format!("{median:.0} ({least:.0}–{most:.0})")
}
