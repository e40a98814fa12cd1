//! Failover by Patroni, and poolers: what is between callers and PostgreSQL in production.

mod patroni;
mod poolers;
mod sql_caller;
