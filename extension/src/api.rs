//! The SQL functions, a file per family. They check arguments and call `claiming`, or read by SQL.

pub mod args;
pub mod claim;
pub mod claims;
pub mod coupon;
pub mod outcome;
pub mod reading;
pub mod verify;
