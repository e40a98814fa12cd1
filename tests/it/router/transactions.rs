//! Transactions of callers: a call commits on the shard at once, so the router refuses a transaction block.

use std::fs;

use anyhow::{Result, ensure};
use tokio_postgres::Client;

use super::{Router, sqlstate};

/// A router, a coupon on its second shard, a session of a superuser, and a table of callers in the router's database.
async fn router() -> Result<(Router, String, Client)> {
    let router = Router::new(2).await?;
    let coupon = router.create_coupon(1, 100).await?;
    let session = router.database.connect().await?;
    session
        .batch_execute("create table orders (user_id text primary key)")
        .await?;
    Ok((router, coupon, session))
}

async fn claims(router: &Router) -> Result<i64> {
    let mut count = 0;
    for shard in &router.shards {
        let shard = shard.connect().await?;
        let claims = shard.query_one("select count(*) from claims", &[]).await?;
        count += claims.get::<_, i64>(0);
    }
    Ok(count)
}

#[tokio::test]
async fn transaction_block_is_refused() -> Result<()> {
    let (router, coupon, session) = router().await?;
    let claim = format!("select honcho_claim('ann', '{coupon}')");
    let write = "insert into orders values ('ann')";
    for steps in [
        vec!["begin", &claim],
        vec!["begin isolation level serializable read only", &claim],
        // After a write, and before one.
        vec!["begin", write, &claim],
        vec!["begin", &claim, write],
        // After a claim that the block allowed.
        vec![
            "begin",
            "set local honcho_router.allow_autonomous = on",
            &claim,
            "set local honcho_router.allow_autonomous = off",
            &claim,
        ],
        // In a savepoint, and after it.
        vec!["begin", "savepoint one", &claim],
        vec!["begin", "savepoint one", "release savepoint one", &claim],
        vec!["begin", "savepoint one", write, "rollback to one", &claim],
        // Several statements in one message are a transaction.
        vec![&format!("{write}; {claim}")],
        vec![&format!("{claim}; {write}")],
        vec![&format!("{claim}; {claim}")],
        // A block with an exception handler is a savepoint.
        vec![&format!(
            "do $$ begin perform honcho_claim('ann', '{coupon}'); exception when division_by_zero then end $$"
        )],
    ] {
        let (last, before) = steps.split_last().unwrap();
        let mut state = "00000".to_owned();
        for step in before {
            state = sqlstate(&session, step).await;
            if state != "00000" {
                break;
            }
        }
        if state == "00000" {
            state = sqlstate(&session, last).await;
        }
        assert_eq!(state, "25001", "{steps:?}");
        session.batch_execute("rollback").await?;
        let allowed = steps.iter().any(|step| step.ends_with("= on"));
        assert_eq!(claims(&router).await?, i64::from(allowed), "{steps:?}");
        if allowed {
            session
                .batch_execute(&format!("select honcho_release('ann', '{coupon}')"))
                .await?;
        }
    }
    let orders = session.query("select from orders", &[]).await?;
    assert_eq!(orders.len(), 0);
    router.books().await
}

#[tokio::test]
async fn every_function_that_writes_is_refused_in_a_transaction_block() -> Result<()> {
    let (router, coupon, session) = router().await?;
    let changes = [
        format!("honcho_create_coupon('NEW{coupon}', 1)"),
        format!("honcho_claim('ann', '{coupon}')"),
        format!("honcho_claim('ann', '{coupon}', 'key')"),
        format!("honcho_claim_batch('{coupon}', '{{ann}}')"),
        format!("honcho_claim_batch('{coupon}', '{{ann}}', '{{key}}')"),
        format!("honcho_claim_many('{{ann}}', '{{{coupon}}}')"),
        format!("honcho_claim_or_raise('ann', '{coupon}')"),
        format!("honcho_release('ann', '{coupon}')"),
        format!("honcho_reserve('ann', '{coupon}', '1 hour')"),
        format!("honcho_confirm('ann', '{coupon}')"),
        format!("honcho_cancel('ann', '{coupon}')"),
        format!("honcho_apply('{coupon}', '{{claim}}', '{{ann}}')"),
        "honcho_expire()".to_owned(),
        format!("honcho_update_coupon('{coupon}', 5)"),
        format!("honcho_restock('{coupon}', 5)"),
        format!("honcho_delete_coupon('{coupon}')"),
        "honcho_purge_events('infinity')".to_owned(),
    ];
    for change in &changes {
        let call = format!("select {change}");
        session.batch_execute("begin").await?;
        assert_eq!(sqlstate(&session, &call).await, "25001", "{change}");
        session.batch_execute("rollback").await?;
    }
    // All others read, and may be called in a transaction.
    session.batch_execute("begin").await?;
    for read in [
        format!("honcho_get_coupon('{coupon}')"),
        "honcho_list_coupons()".to_owned(),
        format!("honcho_get_claim('ann', '{coupon}')"),
        format!("honcho_list_claims('{coupon}')"),
        format!("honcho_get_stock('{coupon}')"),
        format!("honcho_get_hold('ann', '{coupon}')"),
        format!("honcho_list_holds('{coupon}')"),
        "honcho_list_user_claims('ann')".to_owned(),
        format!("honcho_list_events(coupon_name => '{coupon}')"),
        "honcho_verify()".to_owned(),
    ] {
        session.batch_execute(&format!("select {read}")).await?;
    }
    session.batch_execute("rollback").await?;
    assert_eq!(changes.len() + 10, 27, "every function is called");
    assert_eq!(claims(&router).await?, 0);
    router.books().await
}

#[tokio::test]
async fn allowed_claim_stays_after_a_rollback() -> Result<()> {
    let (router, coupon, session) = router().await?;
    session
        .batch_execute(&format!(
            "set honcho_router.allow_autonomous = on;
             begin; insert into orders values ('ann'); select honcho_claim('ann', '{coupon}'); rollback"
        ))
        .await?;
    assert_eq!(claims(&router).await?, 1);
    assert_eq!(session.query("select from orders", &[]).await?.len(), 0);
    router.books().await
}

/// Runs a pipeline, a message without a `Sync` for each statement, and returns its output.
fn pipeline(router: &Router, name: &str, statements: &str) -> Result<String> {
    let cluster = crate::cluster();
    let script = cluster
        .directory()
        .join(format!("{}.{name}", router.database.name()));
    fs::write(
        &script,
        format!("\\startpipeline\n{statements}\n\\endpipeline\n"),
    )?;
    let output = cluster
        .program("pgbench")
        .args(["-n", "-M", "extended", "-t", "1", "-f"])
        .arg(&script)
        .arg(router.database.name())
        .output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test]
async fn pipeline_is_refused_after_another_statement() -> Result<()> {
    let (router, coupon, session) = router().await?;
    let claim = format!("select honcho_claim('ann', '{coupon}');");
    let said = pipeline(
        &router,
        "after-write",
        &format!("insert into orders values ('ann');\n{claim}"),
    )?;
    ensure!(
        said.contains("cannot run inside a transaction block"),
        "{said}"
    );
    assert_eq!(claims(&router).await?, 0);
    assert_eq!(session.query("select from orders", &[]).await?.len(), 0);

    // A claim ends its transaction, so that what follows is another one.
    let second = format!("select honcho_claim('bob', '{coupon}');");
    let said = pipeline(&router, "two-claims", &format!("{claim}\n{second}"))?;
    ensure!(!said.contains("ERROR"), "{said}");
    assert_eq!(claims(&router).await?, 2);
    router.books().await
}

/// The function of callers that docs/router.md puts on every shard, and the one that leads to it.
const BUY: [&str; 2] = [
    "create table orders (user_id text, item text);
     create function buy(user_id text, coupon_name text, item text) returns bigint
     language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
     begin
         insert into public.orders values (user_id, item);
         return public.honcho_claim_or_raise(user_id, coupon_name);
     end $$",
    "create function buy(user_id text, coupon_name text, item text) returns bigint
     language plproxy security definer as $$
         cluster 'honcho';
         run on honcho_router.place(coupon_name);
         target public.buy;
     $$;
     alter function buy(text, text, text) owner to honcho_router",
];

#[tokio::test]
async fn function_on_the_shard_claims_in_its_own_transaction() -> Result<()> {
    let router = Router::new(2).await?;
    let coupon = router.create_coupon(1, 1).await?;
    for shard in &router.shards {
        shard.connect().await?.batch_execute(BUY[0]).await?;
    }
    let session = router.database.connect().await?;
    session.batch_execute(BUY[1]).await?;
    for (user, expected) in [("ann", "00000"), ("ann", "23505"), ("bob", "UC001")] {
        let call = format!("select buy('{user}', '{coupon}', 'shoes')");
        assert_eq!(sqlstate(&session, &call).await, expected, "{user}");
    }
    let orders = router.shards[1].connect().await?;
    let orders = orders.query("select user_id from orders", &[]).await?;
    let users: Vec<&str> = orders.iter().map(|row| row.get(0)).collect();
    assert_eq!(users, ["ann"]);
    router.books().await
}
