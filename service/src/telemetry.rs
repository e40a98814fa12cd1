//! Telemetry: logs, metrics and traces.

pub mod logs;
pub mod metrics;
pub(crate) mod throttle;
pub mod traces;

use anyhow::Result;

use self::{
    logs::{LogFilter, LogFormat},
    traces::CollectorUrl,
};

/// Options of logs and traces.
#[derive(Clone, Debug)]
pub struct TelemetryOptions {
    /// Format of log lines.
    pub log_format: LogFormat,
    /// Levels that are logged.
    pub log_filter: LogFilter,
    /// Collector of spans; without one, none are exported.
    pub collector: Option<CollectorUrl>,
}

/// Starts logging, and exporting spans if a collector is configured.
///
/// # Errors
/// Either has been started before, or the exporter cannot be made.
pub fn start(options: TelemetryOptions) -> Result<()> {
    logs::start(options.log_format, options.log_filter)?;
    match &options.collector {
        Some(collector) => traces::start(collector),
        None => Ok(()),
    }
}

/// Sends and writes what is left, for three seconds at most. Blocks.
pub fn finish() {
    traces::finish();
    logs::finish();
}
