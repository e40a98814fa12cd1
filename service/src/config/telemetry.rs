//! What the service tells those who operate it, and where.

use std::net::SocketAddr;

use clap::Args;

use crate::telemetry::{
    logs::{Filter, Format},
    traces::Endpoint,
};

/// Metrics, logs and traces.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Metrics, logs, traces")]
pub struct Telemetry {
    /// Where /metrics is served, and nothing else; without this it is among the other routes
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = socket)]
    pub metrics_listen: Option<SocketAddr>,
    /// How the lines of the log are written
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub log_format: Format,
    /// What is logged: off, error, warn, info, debug or trace, also by target, as in info,http=warn;
    /// http is a line for each request
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: Filter,
    /// The OpenTelemetry collector to which spans go (OTLP over HTTP), such as http://localhost:4318;
    /// the SDK's other OTEL_ variables say how
    #[arg(long, value_name = "URL")]
    pub otel_exporter_otlp_endpoint: Option<Endpoint>,
}

fn socket(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse()
        .map_err(|_| "must be an IP address and a port, such as 127.0.0.1:9090")
}
