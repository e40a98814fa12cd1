//! The caller's `lock_timeout`, which the router passes on to the shard for each call.

use anyhow::Result;

use super::{Router, sqlstate};
use crate::fixtures::sql::CALLS;

#[tokio::test]
async fn limit_of_one_call_is_not_that_of_the_next() -> Result<()> {
    let router = Router::new(1).await?;
    let shard = &router.shards[0];
    shard.create_coupon("PROMO", 10).await?;
    let admin = shard.connect().await?;
    let set = format!("alter database {} set lock_timeout = '55s'", shard.name());
    admin.batch_execute(&set).await?;
    // A trigger of the shard's that fails with the limit as its message.
    admin
        .batch_execute(
            "create function limits() returns trigger language plpgsql
                 as $$begin raise exception '%', current_setting('lock_timeout'); end$$;
             create trigger limits before insert on claims for each row execute function limits()",
        )
        .await?;
    let session = router.database.connect_as_caller().await?;
    for (setting, expected) in [("0", "55s"), ("1234ms", "1234ms"), ("0", "55s")] {
        session
            .batch_execute(&format!("set lock_timeout = '{setting}'"))
            .await?;
        let error = super::claim(&session, "ann", "PROMO")
            .await
            .expect_err("the trigger's");
        let message = error
            .as_db_error()
            .expect("of the database")
            .message()
            .to_owned();
        assert!(message.ends_with(&format!(": {expected}")), "{message}");
    }
    Ok(())
}

/// Each function passes the limit on for itself.
#[tokio::test]
async fn limit_reaches_the_shard_in_every_call_that_waits_and_ends_with_it() -> Result<()> {
    let router = Router::new(1).await?;
    let shard = &router.shards[0];
    shard.create_coupon("PROMO", 100).await?;
    let shown = "create function shown() returns text language plproxy security definer as $$
                     cluster 'honcho';
                     run on 0;
                     select current_setting('lock_timeout');
                 $$;
                 alter function shown() owner to honcho_router";
    let admin = router.database.connect().await?;
    admin.batch_execute(shown).await?;
    let calls: Vec<&str> = CALLS
        .into_iter()
        .filter(|call| {
            let others = ["get_", "list_", "verify", "expire", "purge_"];
            !others.iter().any(|function| call.contains(function))
        })
        .collect();
    let locker = shard.connect().await?;
    let mut wrong = Vec::new();
    // The caller's limit, and that of the shard, which the caller leaves as it is.
    for (of_caller, of_shard) in [("100ms", "0"), ("0", "150ms")] {
        let set = format!(
            "alter database {} set lock_timeout = '{of_shard}'",
            shard.name()
        );
        locker.batch_execute(&set).await?;
        let session = router.database.connect().await?;
        session
            .batch_execute(&format!(
                "set lock_timeout = '{of_caller}'; set statement_timeout = '1s'"
            ))
            .await?;
        for call in &calls {
            locker.batch_execute("begin; lock table coupons").await?;
            let state = sqlstate(&session, call).await;
            locker.batch_execute("rollback").await?;
            // It may be refused.
            let _ = session.batch_execute(call).await;
            let left: String = session.query_one("select shown()", &[]).await?.get(0);
            if (&*state, &*left) != ("55P03", of_shard) {
                wrong.push(format!(
                    "{of_caller} {of_shard}: {call}: {state}, {left} stays"
                ));
            }
        }
    }
    assert_eq!(calls.len(), 16);
    assert!(wrong.is_empty(), "{wrong:#?}");
    router.books().await
}
