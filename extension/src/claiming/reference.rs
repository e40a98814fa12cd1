//! The reference from claims and holds to coupons: a coupon that has some is neither deleted nor renamed.
//!
//! It is not a foreign key, for two reasons. A claim is written under the lock on its coupon's row, so a
//! check of each claim would find nothing. And `pg_restore` with several jobs may load the claims before
//! the coupons: a foreign key, which `create extension` has made by then, would refuse them.

use crate::claiming::durability;
use crate::claiming::store::{self, Row};
use crate::pg::errors::{self, Constraint};
use crate::pg::schema::Schema;

/// Refuses to change a coupon's name from `old` to `new`, or to delete the coupon if `new` is none, if it
/// has claims or holds. With neither name, refuses to truncate the coupons if there are any.
///
/// # Errors
/// `23503`, naming the table `claims` or `holds` and the constraint `claims_coupon_name_fkey`.
pub fn keep_claimed(schema: Schema, old: Option<&str>, new: Option<&str>) {
    if old.is_some() && old == new {
        return;
    }
    let (table, rows) = match store::given(schema, old) {
        Row::None(_) => {
            // Others may be told that there is no such coupon as soon as they no longer see it.
            durability::keep_locks();
            return;
        }
        Row::Claim(_) => (c"claims", "claims"),
        Row::Hold(_) => (c"holds", "holds"),
    };
    let (message, detail) = match old {
        Some(name) => (
            format!("coupon \"{name}\" cannot be deleted or renamed: it has {rows}"),
            format!("Its {rows} must be deleted first."),
        ),
        None => (
            format!("coupons cannot be truncated: there are {rows}"),
            format!("The table {rows} must be truncated at the same time."),
        ),
    };
    let constraint = Constraint {
        schema: &schema.name(),
        table,
        name: c"claims_coupon_name_fkey",
    };
    errors::raise(b"23503", message, &detail, Some(constraint));
}
