//! Operation: settings, health, logs, metrics, shutdown, backup, upgrade.

mod backup;
mod conninfo;
mod health;
mod holders;
mod logs;
mod makefile;
mod metrics;
mod pooler;
mod reload;
mod settings;
mod shutdown;
mod tls;
mod traces;
mod upgrade;
