//! The metrics of the process: CPU, memory, file descriptors.

use metrics_process::Collector;

/// Reads them when they are exported.
pub(super) struct ProcessMetrics(Collector);

impl ProcessMetrics {
    pub(super) fn new() -> Self {
        Self(Collector::default())
    }

    /// Records them in the current recorder.
    pub(super) fn collect(&self) {
        self.0.collect();
    }
}
