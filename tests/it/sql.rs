//! The extension from SQL: claims in transactions, the queue, rights, name resolution, messages.

mod batch;
mod encoding;
mod messages;
mod model;
mod name_resolution;
mod queue;
mod rights;
mod transactions;
mod verify;
