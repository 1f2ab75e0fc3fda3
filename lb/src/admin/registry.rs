//! The process's own metrics, behind the macros of `metrics`.
//!
//! They are few and change seldom, so one lock does. It needs no clock: an exporter that calibrates one keeps a
//! start waiting for up to 200 ms on a busy machine.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use metrics::{
    Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};

use super::metrics_text::{escaped, family, line};

/// Upper bounds of histograms, in seconds.
const BOUNDS: [f64; 10] = [1e-5, 1e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 1.0];

static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::default);

/// Every family by its name.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    families: Mutex<BTreeMap<String, Family>>,
}

#[derive(Debug, Default)]
struct Family {
    help: String,
    /// By their labels, as the text format has them.
    series: BTreeMap<String, Series>,
}

#[derive(Debug, Clone)]
enum Series {
    Counter(Arc<AtomicU64>),
    /// Bits of an `f64`.
    Gauge(Arc<AtomicU64>),
    Histogram(Arc<Buckets>),
}

/// Counts of samples up to each bound, those beyond the last, and the sum of all.
#[derive(Debug, Default)]
struct Buckets {
    counts: [AtomicU64; BOUNDS.len() + 1],
    /// Bits of an `f64`.
    sum: AtomicU64,
}

/// The registry of this process, which the macros write to from now on.
pub(crate) fn install() -> &'static Registry {
    let registry = &*REGISTRY;
    // A second call finds the same registry in place.
    let _ = metrics::set_global_recorder(registry);
    registry
}

impl Registry {
    fn families(&self) -> MutexGuard<'_, BTreeMap<String, Family>> {
        // A panic between two writes leaves whole families.
        self.families.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn describe(&self, name: &KeyName, help: &str) {
        self.families().entry(name.as_str().into()).or_default().help = help.into();
    }

    fn series(&self, key: &Key, fresh: impl FnOnce() -> Series) -> Series {
        let label =
            |label: &metrics::Label| format!("{}=\"{}\"", label.key(), escaped(label.value()));
        let labels: Vec<String> = key.labels().map(label).collect();
        let mut families = self.families();
        let family = families.entry(key.name().into()).or_default();
        family.series.entry(labels.join(",")).or_insert_with(fresh).clone()
    }

    /// All that has a value, in the text format.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        for (name, Family { help, series }) in &*self.families() {
            let Some(first) = series.values().next() else { continue };
            let kind = first.kind();
            match help.as_str() {
                "" => line(&mut out, format_args!("# TYPE {name} {kind}")),
                help => family(&mut out, name, kind, help),
            }
            series.iter().for_each(|(labels, series)| series.write(&mut out, name, labels));
        }
        out
    }
}

impl Series {
    fn kind(&self) -> &'static str {
        match self {
            Self::Counter(_) => "counter",
            Self::Gauge(_) => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let of = |labels: &str| match labels {
            "" => String::new(),
            labels => format!("{{{labels}}}"),
        };
        match self {
            Self::Counter(value) => {
                line(out, format_args!("{name}{} {}", of(labels), value.load(Relaxed)));
            }
            Self::Gauge(value) => {
                let value = f64::from_bits(value.load(Relaxed));
                line(out, format_args!("{name}{} {value}", of(labels)));
            }
            Self::Histogram(buckets) => {
                let mut count = 0;
                let bounds = BOUNDS.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
                for (bound, bucket) in bounds.zip(&buckets.counts) {
                    count += bucket.load(Relaxed);
                    let mut all = labels.to_owned();
                    let comma = if labels.is_empty() { "" } else { "," };
                    // Writing into a String cannot fail.
                    let _ = write!(all, "{comma}le=\"{bound}\"");
                    line(out, format_args!("{name}_bucket{{{all}}} {count}"));
                }
                let sum = f64::from_bits(buckets.sum.load(Relaxed));
                line(out, format_args!("{name}_sum{} {sum}", of(labels)));
                line(out, format_args!("{name}_count{} {count}", of(labels)));
            }
        }
    }
}

impl HistogramFn for Buckets {
    fn record(&self, value: f64) {
        let bucket = BOUNDS.iter().position(|bound| value <= *bound).unwrap_or(BOUNDS.len());
        self.counts[bucket].fetch_add(1, Relaxed);
        let more = |sum| Some((f64::from_bits(sum) + value).to_bits());
        // It always has something to put there.
        let _ = self.sum.fetch_update(Relaxed, Relaxed, more);
    }
}

impl Recorder for Registry {
    fn describe_counter(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(&name, &help);
    }

    fn describe_gauge(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(&name, &help);
    }

    fn describe_histogram(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(&name, &help);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        match self.series(key, || Series::Counter(Arc::default())) {
            Series::Counter(value) => Counter::from_arc(value),
            _ => Counter::noop(),
        }
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        match self.series(key, || Series::Gauge(Arc::default())) {
            Series::Gauge(value) => Gauge::from_arc(value),
            _ => Gauge::noop(),
        }
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        match self.series(key, || Series::Histogram(Arc::default())) {
            Series::Histogram(buckets) => Histogram::from_arc(buckets),
            _ => Histogram::noop(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_written_as_prometheus_reads_them() {
        let registry = Registry::default();
        metrics::with_local_recorder(&registry, || {
            metrics::describe_counter!("a_total", "All a.");
            metrics::describe_gauge!("never", "Has no value.");
            metrics::counter!("a_total", "who" => "x\"y").increment(2);
            metrics::counter!("a_total", "who" => "x\"y").increment(1);
            metrics::counter!("a_total", "who" => "b").increment(1);
            metrics::gauge!("b").set(1.5);
            for seconds in [0.0, 1e-3, 0.5, 7.0] {
                metrics::histogram!("c_seconds").record(seconds);
            }
            // Another kind under a name that is taken counts nothing.
            metrics::gauge!("a_total", "who" => "b").set(9.0);
        });
        let text = registry.text();
        let want = "# HELP a_total All a.\n# TYPE a_total counter\na_total{who=\"b\"} 1\n\
                    a_total{who=\"x\\\"y\"} 3\n# TYPE b gauge\nb 1.5\n\
                    # TYPE c_seconds histogram\nc_seconds_bucket{le=\"0.00001\"} 1\n\
                    c_seconds_bucket{le=\"0.0001\"} 1\nc_seconds_bucket{le=\"0.001\"} 2\n\
                    c_seconds_bucket{le=\"0.002\"} 2\nc_seconds_bucket{le=\"0.005\"} 2\n\
                    c_seconds_bucket{le=\"0.01\"} 2\nc_seconds_bucket{le=\"0.02\"} 2\n\
                    c_seconds_bucket{le=\"0.05\"} 2\nc_seconds_bucket{le=\"0.1\"} 2\n\
                    c_seconds_bucket{le=\"1\"} 3\nc_seconds_bucket{le=\"+Inf\"} 4\n\
                    c_seconds_sum 7.501\nc_seconds_count 4\n";
        assert_eq!(text, want);
    }
}
