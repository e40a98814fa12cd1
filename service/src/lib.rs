//! HTTP service of the PostgreSQL extension honcho: maps requests to its functions and their outcomes to answers. It
//! holds no rules about coupons.
#![forbid(unsafe_code)]

pub mod auth;
pub mod config;
pub mod database;
pub mod error;
pub mod events;
pub mod health;
pub mod http;
pub mod lanes;
pub mod outcome;
pub mod probe;
pub mod shards;
pub mod telemetry;
