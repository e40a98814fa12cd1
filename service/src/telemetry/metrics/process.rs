//! Metrics of the process, read at each scrape.

use std::fmt;

use procfs::{
    ProcResult,
    process::{LimitValue, Process},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use crate::telemetry::logs;

/// Metrics of the process, with the names that Prometheus' own clients use.
#[derive(Debug)]
pub(super) struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // Without /proc the other metrics are still there.
        let Ok(process) = Figures::read() else {
            return Ok(());
        };
        let mut emit = |name, help, unit, metric: &dyn EncodeMetric| {
            let descriptor = encoder.encode_descriptor(name, help, unit, metric.metric_type())?;
            metric.encode(descriptor)
        };
        emit(
            "process_cpu",
            "CPU time in user and system mode",
            Some(&Unit::Seconds),
            &ConstCounter::new(process.cpu_seconds),
        )?;
        emit(
            "process_resident_memory",
            "Resident memory",
            Some(&Unit::Bytes),
            &ConstGauge::new(process.resident_bytes),
        )?;
        emit(
            "process_start_time",
            "Start time since the Unix epoch",
            Some(&Unit::Seconds),
            &ConstGauge::new(process.started),
        )?;
        emit(
            "process_open_fds",
            "Open file descriptors",
            None,
            &ConstGauge::new(process.open_fds),
        )?;
        emit(
            "process_threads",
            "Threads",
            None,
            &ConstGauge::new(process.threads),
        )?;
        match process.max_fds {
            Some(max_fds) => emit(
                "process_max_fds",
                "Limit of open file descriptors",
                None,
                &ConstGauge::new(max_fds),
            ),
            None => Ok(()),
        }
    }
}

/// Figures of the process.
struct Figures {
    cpu_seconds: f64,
    resident_bytes: u64,
    started: f64,
    open_fds: u64,
    threads: i64,
    /// None if there is no limit.
    max_fds: Option<u64>,
}

impl Figures {
    fn read() -> ProcResult<Self> {
        let process = Process::myself()?;
        let stat = process.stat()?;
        let seconds = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
        Ok(Self {
            cpu_seconds: seconds(stat.utime + stat.stime),
            resident_bytes: stat.rss * procfs::page_size(),
            started: procfs::boot_time_secs()? as f64 + seconds(stat.starttime),
            open_fds: process.fd_count()? as u64,
            threads: stat.num_threads,
            max_fds: match process.limits()?.max_open_files.soft_limit {
                LimitValue::Value(most) => Some(most),
                LimitValue::Unlimited => None,
            },
        })
    }
}

/// Lost log lines.
#[derive(Debug)]
pub(super) struct LogCollector;

impl Collector for LogCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let dropped = ConstCounter::new(logs::dropped_lines());
        let descriptor = encoder.encode_descriptor(
            "log_lines_dropped",
            "Log lines dropped because standard error was too slow",
            None,
            dropped.metric_type(),
        )?;
        dropped.encode(descriptor)
    }
}
