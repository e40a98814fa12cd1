//! The reference from claims to coupons: a coupon that has claims is neither deleted nor renamed.
//!
//! It is not a foreign key, for two reasons. A claim is written under the lock on its coupon's row, so a
//! check of each claim would find nothing. And `pg_restore` with several jobs may load the claims before
//! the coupons: a foreign key, which `create extension` has made by then, would refuse them.

use crate::claiming::store;
use crate::pg::errors::{self, Constraint};
use crate::pg::schema::Schema;

/// Refuses to change a coupon's name from `old` to `new`, or to delete the coupon if `new` is none, if it
/// has claims. With neither name, refuses to truncate the coupons if there is any claim.
///
/// # Errors
/// `23503`, naming the table `claims` and the constraint `claims_coupon_name_fkey`.
pub fn keep_claimed(schema: Schema, old: Option<&str>, new: Option<&str>) {
    if (old.is_some() && old == new) || !store::is_claimed(schema, old) {
        return;
    }
    let (message, detail) = match old {
        Some(name) => (
            format!("coupon \"{name}\" cannot be deleted or renamed: it has claims"),
            "Its claims must be deleted first.",
        ),
        None => (
            "coupons cannot be truncated: there are claims".to_owned(),
            "Both tables must be truncated at once.",
        ),
    };
    let constraint = Constraint {
        schema: &schema.name(),
        table: c"claims",
        name: c"claims_coupon_name_fkey",
    };
    errors::raise(b"23503", message, detail, Some(constraint));
}
