//! Failures: outages, failovers, killed processes, lost power, full disks.

mod database_errors;
mod disk_full;
mod early_release;
mod kills;
mod outages;
pub mod power_loss;
mod standby;
