//! Holders of coupons: the documented query that an operator runs on an alert.

use std::{fs, sync::Arc};

use anyhow::{Context, Result};
use honcho_tests::{Cluster, ClusterOptions, Database, Stop, eventually};

use crate::fixtures::{
    api::Api,
    held_coupon::{LONG_TIMEOUTS, claim, hold},
};

/// Reads the query from the documentation.
fn query() -> Result<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md");
    let page = fs::read_to_string(path)?;
    let mut blocks = page.split("```").skip(1).step_by(2);
    let block = blocks
        .find(|block| block.contains("pg_prepared_xacts p"))
        .context("no query in docs/operations.md")?;
    let sql = block.strip_prefix("sql\n").context("not SQL")?;
    Ok(sql.trim().trim_end_matches(';').to_owned())
}

/// The holders: the coupon, the prepared transaction's name or the session's state, and the number of
/// sessions for which it waits.
async fn holders(database: &Database) -> Result<Vec<String>> {
    let sql = format!(
        "select format('%s: %s waits for %s, since %s', coupon, coalesce(prepared, state),
                       coalesce(cardinality(waits_for), 0), since is not null)
           from ({}) as holders order by 1",
        query()?
    );
    let rows = database.connect().await?.query(&sql, &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

fn cluster() -> Result<Cluster> {
    ClusterOptions::default()
        .setting("max_prepared_transactions", "5")
        .start()
}

#[tokio::test]
async fn documented_query_names_the_holders_of_coupons() -> Result<()> {
    let mut cluster = cluster()?;
    let database = Database::create(&cluster).await?;
    for coupon in ["FREE", "IDLE", "LOST", "ROW"] {
        database.create_coupon(coupon, 10).await?;
    }
    assert_eq!(holders(&database).await?, Vec::<String>::new());
    let _idle = hold(&database, "IDLE").await?;
    let forgetful = hold(&database, "LOST").await?;
    // Savepoints have transaction ids of their own.
    forgetful
        .batch_execute(
            "savepoint a; select honcho_claim('again', 'LOST'); release a; prepare transaction 'lost'",
        )
        .await?;
    drop(forgetful);
    let editor = database.connect().await?;
    editor
        .batch_execute("begin; update coupons set paused = false where name = 'ROW'")
        .await?;
    let api = Arc::new(Api::start_with(database.caller_url(), &LONG_TIMEOUTS).await?);
    let waiting = claim(&api, "user", "ROW");
    let expected = [
        "IDLE: idle in transaction waits for 0, since t",
        "LOST: lost waits for 0, since t",
        // The claim has its turn, and waits for the row that the editor has locked.
        "ROW: active waits for 1, since t",
    ];
    eventually("the holders", async || {
        Ok((holders(&database).await? == expected).then_some(()))
    })
    .await?;
    editor.batch_execute("rollback").await?;
    assert_eq!(waiting.await??, "200");

    // Prepared transactions survive a crash.
    cluster.stop(Stop::Immediate)?;
    cluster.start()?;
    assert_eq!(
        holders(&database).await?,
        ["LOST: lost waits for 0, since t"]
    );
    let client = database.connect().await?;
    client.batch_execute("rollback prepared 'lost'").await?;
    assert_eq!(holders(&database).await?, Vec::<String>::new());
    database.books().await
}
