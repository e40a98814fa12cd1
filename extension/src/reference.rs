//! The reference from claims to coupons: a coupon that has claims is neither deleted nor renamed.
//!
//! It is no foreign key, for two reasons. A claim writes under the lock on its coupon's row, so that a
//! check of each claim would find nothing. And `pg_restore` with several jobs may load the claims before
//! the coupons: a foreign key that is there by then, because `create extension` made it, refuses them.

use pgrx::AllocatedByPostgres;
use pgrx::datum::TryFromDatumError;
use pgrx::prelude::*;

use crate::errors::{self, Key};
use crate::schema::Schema;
use crate::store;

/// Refuses to delete, rename or truncate coupons that have claims. The trigger on `coupons` after these.
///
/// # Errors
/// `23503`, naming the table `claims` and the constraint `claims_coupon_name_fkey`.
///
/// # Locks
/// Those of a `select`. A claim under way holds the coupon's row, so that the statement has waited for
/// it by the time this looks.
#[pg_trigger]
fn honcho_keep_claimed<'a>(
    trigger: &'a PgTrigger<'a>,
) -> Result<Option<PgHeapTuple<'a, AllocatedByPostgres>>, TryFromDatumError> {
    let schema = Schema::of_function(trigger.trigger().tgfoid);
    let name = |row: Option<PgHeapTuple<'_, AllocatedByPostgres>>| match row {
        Some(row) => store::coupon_name(&row),
        None => Ok(None),
    };
    let (old, new) = (name(trigger.old())?, name(trigger.new())?);
    if (old.is_none() || old != new) && store::is_claimed(schema, old.as_deref()) {
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
        let key = Key {
            schema: &schema.name(),
            table: c"claims",
            constraint: c"claims_coupon_name_fkey",
        };
        errors::raise(b"23503", message, detail, Some(key));
    }
    Ok(None)
}
