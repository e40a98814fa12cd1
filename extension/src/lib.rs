//! Flash-sale coupons inside PostgreSQL: the SQL functions of the `honcho` extension.
//!
//! A claim's way: [`claim`] decides, [`queue`] makes claimers of one coupon wait in line, [`store`]
//! reads and writes the two tables through [`access`], [`durability`] lets claims share WAL flushes.

mod access;
mod args;
mod claim;
mod claimed;
mod coupon;
mod durability;
mod outcome;
mod plan;
mod queue;
mod schema;
mod store;
mod verify;

pgrx::pg_module_magic!();

pgrx::extension_sql_file!("../../sql/tables.sql", name = "tables", bootstrap);
pgrx::extension_sql_file!("../../sql/grants.sql", name = "grants", finalize);

/// Runs once per backend, when the library is loaded.
#[allow(non_snake_case)]
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    durability::init();
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
