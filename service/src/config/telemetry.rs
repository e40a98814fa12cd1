//! Settings of metrics, logs and traces.

use std::net::SocketAddr;

use clap::Args;

use crate::telemetry::{
    TelemetryOptions,
    logs::{LogFilter, LogFormat},
    traces::CollectorUrl,
};

/// Settings of metrics, logs and traces.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Metrics, logs, traces")]
pub(super) struct TelemetrySettings {
    /// Separate address for /metrics only [default: /metrics is among the other routes]
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = socket)]
    metrics_listen: Option<SocketAddr>,
    /// Format of log lines: text or json
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
    /// Level of log lines: off, error, warn, info, debug or trace, also by target, as in info,http=warn;
    /// the target http has a line for each request
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: LogFilter,
    /// OpenTelemetry collector of spans (OTLP over HTTP), such as http://localhost:4318; the SDK's other
    /// OTEL_ variables apply [default: none]
    #[arg(long, value_name = "URL")]
    otel_exporter_otlp_endpoint: Option<CollectorUrl>,
}

impl TelemetrySettings {
    /// Splits the settings into those of telemetry and the address of /metrics.
    pub(super) fn options(self) -> (TelemetryOptions, Option<SocketAddr>) {
        let options = TelemetryOptions {
            log_format: self.log_format,
            log_filter: self.log_level,
            collector: self.otel_exporter_otlp_endpoint,
        };
        (options, self.metrics_listen)
    }
}

fn socket(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse()
        .map_err(|_| "must be an IP address and a port, such as 127.0.0.1:9090")
}
