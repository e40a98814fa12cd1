//! Flash-sale coupons inside PostgreSQL: the SQL functions of the `honcho` extension.
//!
//! A claim's way: `claim` decides, `queue` makes claimers of one coupon take turns, `store`
//! reads and writes the two tables through `access`, `durability` lets claims share WAL flushes.

mod access;
mod analysis;
mod args;
// PostgreSQL 18 has checks that are not enforced and columns that are computed on reading: there the
// executor compiles for itself.
#[cfg(not(feature = "pg18"))]
mod checks;
mod claim;
mod claimed;
mod coupon;
mod durability;
mod errors;
mod outcome;
mod plan;
mod queue;
mod reference;
mod rows;
mod schema;
mod store;
mod verify;

pgrx::pg_module_magic!();

pgrx::extension_sql_file!("../../sql/tables.sql", name = "tables", bootstrap);
pgrx::extension_sql_file!(
    "../../sql/grants.sql",
    name = "grants",
    requires = [
        claim::honcho_claim,
        claim::honcho_claim_batch,
        claim::honcho_claim_or_raise,
        claimed::honcho_get_claim,
        claimed::honcho_list_claims,
        coupon::honcho_create_coupon,
        coupon::honcho_get_coupon,
        coupon::honcho_list_coupons,
        reference::honcho_keep_claimed,
        verify::honcho_verify,
    ],
);
pgrx::extension_sql_file!(
    "../../sql/triggers.sql",
    name = "triggers",
    requires = ["tables", reference::honcho_keep_claimed]
);
pgrx::extension_sql_file!(
    "../../sql/comments.sql",
    name = "comments",
    requires = ["grants"]
);

/// Runs once per backend, when the library is loaded.
#[allow(non_snake_case)]
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    // RUST_BACKTRACE in the server's environment would put a backtrace into the detail of each error,
    // which clients see. RUST_LIB_BACKTRACE asks for that in particular, and has the last word.
    if std::env::var_os("RUST_LIB_BACKTRACE").is_none() {
        // SAFETY: a backend has one thread.
        unsafe { std::env::set_var("RUST_LIB_BACKTRACE", "0") };
    }
    durability::init();
    analysis::init();
}

#[cfg(any(test, feature = "pg_test"))]
mod tests;

/// What `cargo pgrx test` asks of a crate.
#[cfg(test)]
pub mod pg_test {
    /// Called once, before the test cluster starts.
    pub fn setup(_options: Vec<&str>) {}

    /// Settings of the test cluster.
    #[must_use]
    pub fn postgresql_conf_options() -> Vec<&'static str> {
        vec!["max_prepared_transactions = 10"]
    }
}
