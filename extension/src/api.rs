//! The SQL functions, a file per family. They check arguments and call `claiming`, or read by SQL.

pub mod apply;
pub mod args;
pub mod claim;
pub mod claims;
pub mod coupon;
pub mod event;
pub mod hold;
pub mod life;
pub mod outcome;
pub mod reading;
pub mod router;
pub mod verify;
