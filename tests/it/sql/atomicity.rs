//! Every operation in its caller's transaction: prepared, in savepoints and in exception blocks, it is done with
//! them or not at all.

use anyhow::{Context, Result};
use honcho_tests::{Cluster, ClusterOptions, Database};
use tokio_postgres::{Client, error::SqlState};

/// Operations that change the coupon `PROMO`, each with the outcome.
const OPERATIONS: [(&str, &str); 14] = [
    ("select honcho_claim('new', 'PROMO')::text", "claimed"),
    ("select honcho_claim('new', 'PROMO', 'key')::text", "claimed"),
    ("select honcho_claim('holder', 'PROMO')::text", "claimed"),
    (
        "select outcome::text from honcho_claim_batch('PROMO', array['new'], array['key'])",
        "claimed",
    ),
    (
        "select outcome::text from honcho_reserve('new', 'PROMO', '1 hour')",
        "held",
    ),
    ("select honcho_confirm('holder', 'PROMO')::text", "claimed"),
    ("select honcho_cancel('holder', 'PROMO')::text", "cancelled"),
    ("select honcho_release('owner', 'PROMO')::text", "released"),
    (
        "select string_agg(outcome::text, ' ' order by ordinal)
           from honcho_apply('PROMO', '{confirm,release,reserve}', '{holder,owner,owner}', '{null,null,1 hour}')",
        "claimed released held",
    ),
    (
        "select outcome::text from honcho_update_coupon('PROMO', 9, ends_at => '2100-01-01', paused => true)",
        "updated",
    ),
    ("select outcome::text from honcho_restock('PROMO', -1)", "updated"),
    ("select honcho_delete_coupon('PROMO', true)::text", "deleted"),
    ("select honcho_expire()::text", "1"),
    ("select outcome::text from honcho_restock('PROMO', 5)", "updated"),
];

/// A coupon with stock, a claim, a hold and an expired hold.
const SETUP: &str = "
    delete from claims; delete from holds; delete from coupons; delete from coupon_events;
    select honcho_create_coupon('PROMO', 5);
    select honcho_claim('owner', 'PROMO');
    select honcho_reserve('holder', 'PROMO', '1 hour');
    select honcho_reserve('late', 'PROMO', '1 hour');
    update holds set expires_at = '2020-01-01' where user_id = 'late';
    update coupons set next_expiry = '2020-01-01'";

/// The rows as other sessions see them; of events and claims, what does not depend on the clock.
const ROWS: &str = "select concat_ws(' | ',
    (select concat_ws(' ', amount, remaining_amount, held_amount, ends_at is null, paused) from coupons),
    (select string_agg(concat_ws(' ', user_id, request_key), ', ' order by id) from claims),
    (select string_agg(concat_ws(' ', user_id, request_key), ', ' order by user_id) from holds),
    (select string_agg(concat_ws(' ', kind, details), ', ' order by id) from coupon_events))";

async fn text(client: &Client, sql: &str) -> Result<String> {
    Ok(client
        .query_one(sql, &[])
        .await
        .with_context(|| sql.to_owned())?
        .get(0))
}

struct Room {
    _cluster: Cluster,
    database: Database,
    client: Client,
    other: Client,
}

impl Room {
    async fn new() -> Result<Self> {
        let cluster = ClusterOptions::default()
            .setting("fsync", "off")
            .setting("max_prepared_transactions", "5")
            .start()?;
        let database = Database::create(&cluster).await?;
        let client = database.connect().await?;
        let other = database.connect().await?;
        other.batch_execute("set lock_timeout = 100").await?;
        Ok(Self {
            _cluster: cluster,
            database,
            client,
            other,
        })
    }

    /// Fails unless the coupon's turn is taken, or free.
    async fn turn_is_taken(&self, taken: bool, what: &str) -> Result<()> {
        let other = "begin; select honcho_restock('PROMO', 1); rollback";
        let result = self.other.batch_execute(other).await;
        match result {
            Ok(()) => assert!(!taken, "the turn is free after {what}"),
            Err(error) => {
                self.other.batch_execute("rollback").await?;
                assert!(taken, "the turn is taken after {what}");
                assert_eq!(error.code(), Some(&SqlState::LOCK_NOT_AVAILABLE), "{what}");
            }
        }
        Ok(())
    }
}

#[tokio::test]
async fn prepared_operations_keep_the_turn_until_they_are_resolved() -> Result<()> {
    let room = Room::new().await?;
    for (sql, outcome) in OPERATIONS {
        for commits in [false, true] {
            room.client.batch_execute(SETUP).await?;
            let before = text(&room.other, ROWS).await?;
            room.client.batch_execute("begin").await?;
            assert_eq!(text(&room.client, sql).await?, outcome, "{sql}");
            let after = text(&room.client, ROWS).await?;
            assert_ne!(after, before, "{sql}");
            room.client.batch_execute("prepare transaction 'p'").await?;
            assert_eq!(text(&room.other, ROWS).await?, before, "{sql}");
            room.turn_is_taken(true, sql).await?;
            let (end, expected) = if commits {
                ("commit prepared 'p'", after)
            } else {
                ("rollback prepared 'p'", before)
            };
            room.client.batch_execute(end).await?;
            assert_eq!(text(&room.other, ROWS).await?, expected, "{sql}, {end}");
            room.turn_is_taken(false, end).await?;
            room.database.books().await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn operations_go_back_with_their_savepoint_and_give_up_the_turn() -> Result<()> {
    let room = Room::new().await?;
    for (sql, outcome) in OPERATIONS {
        room.client.batch_execute(SETUP).await?;
        let before = text(&room.other, ROWS).await?;
        room.client.batch_execute("begin; savepoint s").await?;
        assert_eq!(text(&room.client, sql).await?, outcome, "{sql}");
        let after = text(&room.client, ROWS).await?;
        room.client.batch_execute("rollback to s").await?;
        assert_eq!(text(&room.client, ROWS).await?, before, "{sql}");
        room.turn_is_taken(false, sql).await?;
        // The same again, which is kept.
        assert_eq!(text(&room.client, sql).await?, outcome, "{sql}");
        room.client.batch_execute("release s").await?;
        assert_eq!(text(&room.client, ROWS).await?, after, "{sql}");
        room.turn_is_taken(true, sql).await?;
        room.client.batch_execute("commit").await?;
        assert_eq!(text(&room.other, ROWS).await?, after, "{sql}");
        room.database.books().await?;
    }
    Ok(())
}

#[tokio::test]
async fn operations_go_back_with_their_exception_block() -> Result<()> {
    let room = Room::new().await?;
    for (sql, outcome) in OPERATIONS {
        room.client.batch_execute(SETUP).await?;
        let before = text(&room.other, ROWS).await?;
        let block = format!(
            "do $do$ declare outcome text; begin
                 begin
                     execute $sql${sql}$sql$ into outcome;
                     raise exception using errcode = 'P0042', message = outcome;
                 exception when sqlstate 'P0042' then
                     if sqlerrm <> '{outcome}' then raise 'it was %', sqlerrm; end if;
                 end;
             end $do$"
        );
        room.client.batch_execute(&block).await.context(sql)?;
        assert_eq!(text(&room.other, ROWS).await?, before, "{sql}");
        room.turn_is_taken(false, sql).await?;
        room.database.books().await?;
    }
    Ok(())
}
