//! Operation: settings, health, logs, metrics, shutdown, backup, upgrade.

mod backup;
pub mod health;
mod holders;
mod logs;
pub mod metrics;
mod pooler;
mod reload;
pub mod settings;
mod shutdown;
mod tls;
mod traces;
pub mod upgrade;
