//! The extension from SQL: claims in transactions, the life of coupons, the queue, rights, name resolution, messages.

mod atomicity;
mod batch;
mod deadlocks;
mod encoding;
mod events;
mod index_entries;
mod index_search;
mod many;
mod messages;
mod model;
mod name_resolution;
mod old_versions;
mod queue;
mod rights;
mod transactions;
mod verify;
