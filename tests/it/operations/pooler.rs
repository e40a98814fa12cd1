//! PgBouncer between the service and PostgreSQL: the service is ready only if all that it relies on passes
//! through, and otherwise names the cause.

use std::sync::Arc;

use anyhow::{Result, ensure};
use honcho_tests::{Pooler, eventually};

use crate::{
    fixtures::api::Api,
    fixtures::held_coupon::{claim, hold},
    fixtures::pooler::{IGNORING, settings_on_the_role},
};

/// Waits for the reason for which the service is not ready.
async fn reason(api: &Api) -> Result<String> {
    eventually("a reason", async || {
        let answer = api.health("ready").await?;
        ensure!(answer.status == 503, "it is ready");
        let detail = answer.body["detail"].as_str().unwrap_or_default();
        Ok((detail != "the service is starting").then(|| detail.to_owned()))
    })
    .await
}

#[tokio::test]
async fn pooler_that_drops_session_settings_makes_the_service_unready() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 10).await?;
    for mode in ["session", "transaction"] {
        let settings = format!("pool_mode = {mode}\n{IGNORING}");
        let pooler = Pooler::start(crate::cluster(), &database, &settings).await?;
        let api = Api::start(pooler.url()).await?;
        let reason = reason(&api).await?;
        for part in [
            "a pooler between the service and PostgreSQL drops the session's settings",
            "statement_timeout is 0, asked for 5s",
            "lock_timeout is 0, asked for 50ms",
            "idle_in_transaction_session_timeout is 0, asked for 30s",
        ] {
            assert!(reason.contains(part), "{mode}: {reason}");
        }
        // No request uses such a connection, on which its wait would be unbounded.
        assert_eq!(api.claim("user", "PROMO").await?.shown(), "503 unavailable");
        api.service.logged("drops the session's settings").await?;
    }
    let claims = "select count(*) from claims";
    let claims: i64 = database
        .connect()
        .await?
        .query_one(claims, &[])
        .await?
        .get(0);
    assert_eq!(claims, 0);
    database.books().await
}

#[tokio::test]
async fn pooler_that_rejects_startup_parameters_makes_the_service_unready() -> Result<()> {
    let database = crate::database().await?;
    let pooler = Pooler::start(crate::cluster(), &database, "pool_mode = session").await?;
    let api = Api::start(pooler.url()).await?;
    api.until_not_ready("the database refuses the service's connections")
        .await?;
    api.service.logged("unsupported startup parameter").await
}

#[tokio::test]
async fn session_pooler_works_with_settings_on_the_role() -> Result<()> {
    let database = crate::database().await?;
    for coupon in ["PROMO", "HELD"] {
        database.create_coupon(coupon, 40).await?;
    }
    settings_on_the_role(&database).await?;
    let settings = format!("pool_mode = session\ndefault_pool_size = 40\n{IGNORING}");
    let pooler = Pooler::start(crate::cluster(), &database, &settings).await?;
    let api = Arc::new(Api::start_with(pooler.url(), &[("LOCK_TIMEOUT", "250ms")]).await?);
    api.until_ready().await?;
    // Claims on a held coupon time out, and other claims are served meanwhile.
    let holder = hold(&database, "HELD").await?;
    let waiting: Vec<_> = (0..30)
        .map(|n| claim(&api, &format!("user {n}"), "HELD"))
        .collect();
    for n in 0..20 {
        assert_eq!(
            api.claim(&format!("user {n}"), "PROMO").await?.shown(),
            "200"
        );
    }
    for waiting in waiting {
        assert_eq!(waiting.await??, "503 unavailable");
    }
    holder.batch_execute("rollback").await?;
    let claims: Vec<_> = (0..30)
        .map(|n| claim(&api, &format!("user {n}"), "HELD"))
        .collect();
    for claim in claims {
        assert_eq!(claim.await??, "200");
    }
    assert_eq!(api.show("PROMO").await?.body["remaining_amount"], 20);

    // A role has one value, so that fast and waiting sessions cannot have different timeouts.
    let api = Api::start(pooler.url()).await?;
    let reason = reason(&api).await?;
    assert!(
        reason.contains("lock_timeout is 250ms, asked for 50ms"),
        "{reason}"
    );
    database.books().await
}

#[tokio::test]
async fn transaction_pooler_needs_prepared_statements() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    settings_on_the_role(&database).await?;
    let knows_how = Pooler::version()? >= (1, 21);
    for known in [0, 100] {
        let known_at_all = if knows_how {
            format!("max_prepared_statements = {known}\n")
        } else if known == 0 {
            String::new()
        } else {
            continue;
        };
        let settings = format!("pool_mode = transaction\n{known_at_all}{IGNORING}");
        let pooler = Pooler::start(crate::cluster(), &database, &settings).await?;
        let api = Api::start_with(pooler.url(), &[("LOCK_TIMEOUT", "250ms")]).await?;
        let api = Arc::new(api);
        if known == 0 {
            api.until_not_ready(
                "a pooler between the service and PostgreSQL loses prepared statements: connect \
                 directly, or let it pool sessions",
            )
            .await?;
        } else {
            api.until_ready().await?;
            let claims: Vec<_> = (0..50)
                .map(|n| claim(&api, &format!("user {n}"), "PROMO"))
                .collect();
            for claim in claims {
                assert_eq!(claim.await??, "200");
            }
        }
    }
    database.books().await
}
