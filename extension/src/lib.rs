//! Flash-sale coupons inside PostgreSQL: the extension `honcho`.
//!
//! Calls go down only: `api`, the SQL functions; `claiming`, the rules; `pg`, PostgreSQL as they need it.

mod api;
mod claiming;
mod pg;
#[cfg(any(test, feature = "pg_test"))]
mod tests;

pgrx::pg_module_magic!();

pgrx::extension_sql_file!("../../sql/tables.sql", name = "tables", bootstrap);
pgrx::extension_sql_file!(
    "../../sql/triggers.sql",
    name = "triggers",
    requires = ["tables", api::coupon::honcho_keep_claimed]
);
pgrx::extension_sql_file!("../../sql/functions.sql", name = "functions", finalize);

/// Runs once per backend, when the library is loaded.
#[allow(non_snake_case)]
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    pg::session::silence_backtraces();
    pg::session::init();
    claiming::durability::init();
    pg::analysis::init();
}

/// The interface that `cargo pgrx test` needs.
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
