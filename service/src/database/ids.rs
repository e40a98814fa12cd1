//! Ids of coupons, which tell the databases of several shards apart: those of shard N are N+1, N+257, and so on.
//!
//! Without this check, a list of shards in the wrong order would look for coupons where they are not, and create others
//! of the same names there. Ids that two shards have in common would be lost between two pages of a list.

use tokio_postgres::Client;

use super::settings::Unfit;

/// Difference between two ids of a shard: the most shards.
const STEP: i64 = 256;

/// SQL that reads the first id and the difference between two. The result is empty without the extension, which has a
/// check of its own.
const STEPS: &str = "
    select seqstart, seqincrement
      from pg_catalog.pg_extension
      join pg_catalog.pg_class on relnamespace operator(pg_catalog.=) extnamespace
      join pg_catalog.pg_sequence on seqrelid operator(pg_catalog.=) pg_class.oid
     where extname operator(pg_catalog.=) 'honcho' and relname operator(pg_catalog.=) 'coupons_id_seq'";

/// Checks that a session leads to this shard.
///
/// # Errors
/// The session cannot be used.
pub(super) async fn check(client: &Client, shard: u8) -> Result<(), Unfit> {
    let rows = client
        .query_typed(STEPS, &[])
        .await
        .map_err(Unfit::Broken)?;
    for row in &rows {
        let first: i64 = row.try_get(0).map_err(Unfit::Broken)?;
        let step: i64 = row.try_get(1).map_err(Unfit::Broken)?;
        if (first, step) != (i64::from(shard) + 1, STEP) {
            return Err(Unfit::OtherShard(format!(
                "the database is not shard {shard}: its coupons' ids begin at {first} in steps of {step}"
            )));
        }
    }
    Ok(())
}
