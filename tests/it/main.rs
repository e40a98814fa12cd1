//! Integration tests over a real cluster and real HTTP: one binary, a module per subject.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod docs;
mod failure;
mod fixtures;
mod http;
mod operations;
mod sql;
