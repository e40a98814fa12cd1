//! Rights: execute on the functions is all that a caller needs and all that it gets.

use anyhow::Result;
use tokio_postgres::{Client, error::SqlState};

use crate::fixtures::sql::CALLS;

/// Statements that use a table or sequence of the extension, or change the extension itself.
const TOUCHES: [&str; 24] = [
    "select from coupons",
    "select from claims",
    "select from holds",
    "select from coupon_events",
    "insert into holds (coupon_name, user_id, expires_at) values ('PROMO', 'user', 'infinity')",
    "update holds set expires_at = 'infinity'",
    "delete from holds",
    "delete from coupon_events",
    "select last_value from coupon_events_id_seq",
    "select count(*) from claims",
    "insert into coupons (name, amount, remaining_amount) values ('NEW', 5, 5)",
    "insert into claims (user_id, coupon_name) values ('user', 'PROMO')",
    "update coupons set remaining_amount = 5",
    "update claims set user_id = 'me'",
    "delete from coupons",
    "delete from claims",
    "truncate claims",
    "truncate coupons, claims",
    "begin; lock table coupons in access share mode",
    "select nextval('coupons_id_seq')",
    "select last_value from claims_id_seq",
    "alter table claims add column mine text",
    "create function public.lower(text) returns text language sql return $1",
    "drop extension honcho",
];

async fn refused(client: &Client, sql: &str) {
    let error = client.batch_execute(sql).await.expect_err(sql);
    assert_eq!(
        error.code(),
        Some(&SqlState::INSUFFICIENT_PRIVILEGE),
        "{sql}: {error:?}"
    );
    client.batch_execute("rollback").await.expect("a rollback");
}

#[tokio::test]
async fn rights_tests_call_every_function() -> Result<()> {
    let database = crate::database().await?;
    // Trigger functions cannot be called.
    let functions = "select proname from pg_proc
                     where pronamespace = 'public'::regnamespace and prorettype <> 'trigger'::regtype";
    for row in database.connect().await?.query(functions, &[]).await? {
        let name = format!("select {}(", row.get::<_, &str>(0));
        assert!(
            CALLS.iter().any(|call| call.starts_with(&name)),
            "{name}…) is not in CALLS"
        );
    }
    Ok(())
}

#[tokio::test]
async fn caller_with_execute_claims_but_touches_no_table() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 10).await?;
    let caller = database.connect_as_caller().await?;
    for call in CALLS {
        caller.batch_execute(call).await?;
    }
    for touch in TOUCHES {
        refused(&caller, touch).await;
    }
    let claims: i64 = database
        .connect()
        .await?
        .query_one("select count(*) from claims", &[])
        .await?
        .get(0);
    assert_eq!(claims, 8);
    database.books().await
}

#[tokio::test]
async fn role_without_grants_can_do_nothing() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 10).await?;
    let stranger = database.connect_as_stranger().await?;
    for sql in CALLS.iter().chain(&TOUCHES) {
        refused(&stranger, sql).await;
    }
    let claims: i64 = database
        .connect()
        .await?
        .query_one("select count(*) from claims", &[])
        .await?
        .get(0);
    assert_eq!(claims, 0);
    database.books().await
}

/// The functions run with their owner's rights and must not find the caller's objects.
#[tokio::test]
async fn callers_temporary_objects_do_not_shadow_the_tables() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1).await?;
    let owner = database.connect().await?;
    owner
        .batch_execute("create schema playground; grant all on schema playground to public")
        .await?;
    let caller = database.connect_as_caller().await?;
    caller
        .batch_execute(
            "create temporary table coupons (id bigint, name text, amount int, remaining_amount int,
                 created_at timestamptz, starts_at timestamptz, ends_at timestamptz, paused boolean);
             create temporary table claims (id bigint, user_id text, coupon_name text,
                 claimed_at timestamptz);
             create temporary table holds (coupon_name text, user_id text, expires_at timestamptz,
                 created_at timestamptz, request_key text);
             create temporary table coupon_events (id bigint, coupon_name text, kind text, at timestamptz,
                 actor text, details jsonb);
             insert into pg_temp.coupons values (1, 'MINE', 5, 5, now(), null, null, false);
             create function playground.count(bigint) returns bigint language sql
                 return 1 / 0;
             create function playground.trap(text, varchar) returns boolean language plpgsql
                 as $$ begin raise 'trapped as %', current_user; end $$;
             create operator playground.= (leftarg = text, rightarg = varchar,
                 procedure = playground.trap);
             set search_path = pg_temp, playground, public;",
        )
        .await?;
    let claim = |coupon: &'static str| {
        let claim = "select public.honcho_claim('user', $1)::text";
        let caller = &caller;
        async move { Ok::<String, anyhow::Error>(caller.query_one(claim, &[&coupon]).await?.get(0)) }
    };
    assert_eq!(claim("MINE").await?, "not_found");
    assert_eq!(claim("PROMO").await?, "claimed");
    for call in &CALLS[4..] {
        caller
            .batch_execute(&call.replace("honcho_", "public.honcho_"))
            .await?;
    }
    let own: i64 = caller
        .query_one(
            "select (select count(*) from pg_temp.claims) + (select count(*) from pg_temp.holds)
                  + (select count(*) from pg_temp.coupon_events)",
            &[],
        )
        .await?
        .get(0);
    assert_eq!(own, 0);
    database.books().await
}
