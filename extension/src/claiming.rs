//! Coupons, claims and holds: the rules, and the tables.

pub mod creation;
pub mod decision;
pub mod draft;
pub mod durability;
pub mod expiries;
pub mod life;
pub mod operation;
pub mod outcome;
pub mod queue;
pub mod reference;
pub mod stock;
pub mod store;
