//! What the service tells those who operate it: metrics, logs, traces.

pub mod logs;
pub mod metrics;
pub mod traces;

use anyhow::Result;

use crate::config::Telemetry;

/// Begins to log, and to export spans where that is asked for.
///
/// # Errors
/// When either was begun before, or the exporter cannot be made.
pub fn begin(settings: &Telemetry) -> Result<()> {
    logs::begin(settings.log_format, settings.log_level.clone())?;
    match &settings.otel_exporter_otlp_endpoint {
        Some(endpoint) => traces::begin(endpoint),
        None => Ok(()),
    }
}

/// Sends and writes what is left, for about three seconds at most. Blocks.
pub fn finish() {
    traces::finish();
    logs::finish();
}
