//! Messages for callers and operators: details of errors, the server's log, settings.

use anyhow::Result;
use honcho_tests::{ClusterOptions, Database};
use tokio_postgres::error::SqlState;

use crate::fixtures::held_coupon::hold;

/// A server may run with a developer's environment, and details of errors go to clients.
#[tokio::test]
async fn error_detail_has_no_backtrace() -> Result<()> {
    let cluster = ClusterOptions::default()
        .setting("fsync", "off")
        .environment("RUST_BACKTRACE", "1")
        .start()?;
    let database = Database::create(&cluster).await?;
    database.create_coupon("PROMO", 1).await?;
    let client = database.connect().await?;
    // Errors of the extension, and one of PostgreSQL that passes through it.
    for (sql, detail) in [
        ("select honcho_claim('', 'PROMO')", None),
        (
            "select honcho_claim_or_raise('ann', 'NOTHING')",
            Some("not_found"),
        ),
        ("begin read only; select honcho_claim('ann', 'PROMO')", None),
    ] {
        let error = client.batch_execute(sql).await.unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(error.detail(), detail, "{sql}");
        client.batch_execute("rollback").await?;
    }
    assert!(!cluster.log().contains("stack backtrace"));
    database.books().await
}

/// Numbers in `pg_locks` do not tell an operator which coupon is waited for.
#[tokio::test]
async fn lock_wait_names_its_coupon_in_log_and_error() -> Result<()> {
    let cluster = ClusterOptions::default()
        .setting("fsync", "off")
        .setting("log_lock_waits", "on")
        .setting("deadlock_timeout", "10ms")
        .start()?;
    let database = Database::create(&cluster).await?;
    database.create_coupon("PROMO", 2).await?;
    let holder = hold(&database, "PROMO").await?;
    let client = database.connect().await?;
    client.batch_execute("set lock_timeout = 300").await?;
    for sql in [
        "select honcho_claim('ann', 'PROMO')",
        "select from honcho_claim_batch('PROMO', '{ann, bob}')",
    ] {
        let error = client.batch_execute(sql).await.unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(*error.code(), SqlState::LOCK_NOT_AVAILABLE);
        let context = error.where_().unwrap_or_default();
        assert_eq!(context, "while claiming coupon \"PROMO\"", "{sql}");
    }
    let log = cluster.log();
    let waits = log.split("still waiting for ExclusiveLock").skip(1);
    let named = waits.filter(|wait| {
        wait.lines()
            .take(4)
            .any(|line| line.ends_with("CONTEXT:  while claiming coupon \"PROMO\""))
    });
    assert!(named.count() >= 2, "{log}");
    holder.batch_execute("rollback").await?;
    database.books().await
}

#[tokio::test]
async fn preloaded_library_makes_its_settings_known() -> Result<()> {
    let database = crate::database().await?;
    let owner = database.connect().await?;
    let name = database.name();
    owner
        .batch_execute(&format!(
            "alter database {name} set session_preload_libraries = 'honcho'"
        ))
        .await?;
    let fresh = database.connect().await?;
    let shown = fresh
        .query_one("show honcho.early_lock_release", &[])
        .await?;
    assert_eq!(shown.get::<_, String>(0), "on");
    let misspelt = "set honcho.early_lock_releese = off";
    let error = fresh.batch_execute(misspelt).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::INVALID_NAME));
    fresh
        .batch_execute("set honcho.early_lock_release = off")
        .await?;

    // Without preloading, the first call of a function loads the library, which warns of unknown settings.
    owner
        .batch_execute(&format!(
            "alter database {name} reset session_preload_libraries"
        ))
        .await?;
    let late = database.connect().await?;
    late.batch_execute(misspelt).await?;
    late.batch_execute("select honcho_claim('ann', 'NOTHING')")
        .await?;
    let error = late.batch_execute(misspelt).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::INVALID_NAME));
    let setting = "select current_setting('honcho.early_lock_releese', true)";
    let setting: Option<String> = late.query_one(setting, &[]).await?.get(0);
    assert_eq!(setting, None);
    database.books().await
}
