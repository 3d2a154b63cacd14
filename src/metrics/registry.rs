//! Holds the values of counters and gauges, and exports them.
//!
//! Prometheus's recorder only writes text. So counters and gauges are kept here, where `/stats` reads them, and are
//! copied to the recorder when it renders. Histograms belong to the recorder.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use parking_lot::Mutex;

use super::table::{Kind, Metric};

/// Every series of the process.
pub(super) struct Registry {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    counters: Mutex<Vec<Series<Counter>>>,
    gauges: Mutex<Vec<Series<Gauge>>>,
}

/// Names and values of labels.
type Labels<'a> = &'a [(&'static str, &'static str)];

/// One counter or gauge.
struct Series<T> {
    name: &'static str,
    labels: Vec<(&'static str, &'static str)>,
    /// The bits of an `f64` for a gauge.
    value: Arc<AtomicU64>,
    /// The recorder's copy.
    exported: T,
}

const METADATA: Metadata<'_> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

impl Registry {
    pub(super) fn new(table: &[Metric]) -> Result<Self, BuildError> {
        let mut builder = PrometheusBuilder::new();
        for metric in table {
            if let Kind::Histogram(buckets) = metric.kind {
                builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.into()), buckets)?;
            }
        }
        let recorder = builder.build_recorder();
        for Metric { name, kind, help } in table {
            let (name, help) = ((*name).into(), (*help).into());
            match kind {
                Kind::Counter => recorder.describe_counter(name, None, help),
                Kind::Gauge => recorder.describe_gauge(name, None, help),
                Kind::Histogram(_) => recorder.describe_histogram(name, Some(Unit::Seconds), help),
            }
        }
        let handle = recorder.handle();
        Ok(Self { recorder, handle, counters: Mutex::default(), gauges: Mutex::default() })
    }

    /// The handle of a counter. Equal names and labels share one value.
    pub(super) fn counter(&self, name: &'static str, labels: Labels<'_>) -> Counter {
        let register = |key: &Key| self.recorder.register_counter(key, &METADATA);
        Counter::from_arc(value(&self.counters, name, labels, register))
    }

    /// The handle of a gauge. Equal names and labels share one value.
    pub(super) fn gauge(&self, name: &'static str, labels: Labels<'_>) -> Gauge {
        let register = |key: &Key| self.recorder.register_gauge(key, &METADATA);
        Gauge::from_arc(value(&self.gauges, name, labels, register))
    }

    /// The handle of a histogram.
    pub(super) fn histogram(&self, name: &'static str, labels: Labels<'_>) -> Histogram {
        self.recorder.register_histogram(&key(name, labels), &METADATA)
    }

    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let counters: u64 = self.counters.lock().iter().filter_map(|series| series.bits(name, labels)).sum();
        let gauges = self.gauges.lock();
        let gauges = gauges.iter().filter_map(|series| series.bits(name, labels));
        counters + gauges.map(|bits| f64::from_bits(bits) as u64).sum::<u64>()
    }

    /// Sets all gauges of this name to 0.
    pub(super) fn reset(&self, name: &str) {
        let gauges = self.gauges.lock();
        gauges
            .iter()
            .filter(|series| series.name == name)
            .for_each(|series| series.value.store(0, Ordering::Release));
    }

    /// The text of all metrics. `collect` records those that other crates have, by the macros of [`metrics`].
    pub(super) fn render_with(&self, collect: impl FnOnce()) -> String {
        metrics::with_local_recorder(&self.recorder, collect);
        for series in &*self.counters.lock() {
            series.exported.absolute(series.value.load(Ordering::Acquire));
        }
        for series in &*self.gauges.lock() {
            series.exported.set(f64::from_bits(series.value.load(Ordering::Acquire)));
        }
        self.handle.render()
    }

    pub(super) fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

impl<T> Series<T> {
    /// The value's bits, if the series has this name and these labels.
    fn bits(&self, name: &str, labels: &[(&str, &str)]) -> Option<u64> {
        let matches = self.name == name && labels.iter().all(|label| self.labels.contains(label));
        matches.then(|| self.value.load(Ordering::Acquire))
    }
}

fn value<T>(
    all: &Mutex<Vec<Series<T>>>,
    name: &'static str,
    labels: Labels<'_>,
    register: impl FnOnce(&Key) -> T,
) -> Arc<AtomicU64> {
    let mut all = all.lock();
    if let Some(series) = all.iter().find(|series| series.name == name && series.labels == labels) {
        return Arc::clone(&series.value);
    }
    let (value, exported) = (Arc::default(), register(&key(name, labels)));
    all.push(Series { name, labels: labels.to_vec(), value: Arc::clone(&value), exported });
    value
}

fn key(name: &'static str, labels: Labels<'_>) -> Key {
    let labels = labels.iter().map(|(name, value)| Label::from_static_parts(name, value));
    Key::from_parts(name, labels.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_series_share_one_value_and_sums_select_by_label() {
        let registry = Registry::new(&[]).expect("builds");
        let counter = |tier| registry.counter("x_total", &[("tier", tier), ("kind", "records")]);
        counter("memory").increment(2);
        counter("memory").increment(3);
        counter("redis").increment(1);
        registry.gauge("y", &[]).set(7.9);
        assert_eq!(registry.sum("x_total", &[("tier", "memory")]), 5);
        assert_eq!(registry.sum("x_total", &[]), 6);
        assert_eq!(registry.sum("x_total", &[("tier", "memory"), ("kind", "proofs")]), 0);
        assert_eq!(registry.sum("y", &[]), 7);
        let text = registry.render_with(|| ());
        assert!(text.contains("x_total{tier=\"memory\",kind=\"records\"} 5"), "{text}");
    }
}
