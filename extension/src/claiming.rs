//! Claims and coupons: the rules, and the two tables.

pub mod creation;
pub mod decision;
pub mod durability;
pub mod outcome;
pub mod queue;
pub mod reference;
pub mod store;
