//! Failures: outages, failovers, killed processes, lost power, full disks.

mod database_errors;
mod disk_full;
mod durability;
mod durable_refusals;
mod early_release;
mod failover;
mod kills;
mod outages;
mod power_loss;
mod promotion;
mod standby;
mod wal_flush;
