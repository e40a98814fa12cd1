//! `honcho_claim_many` on several shards: without `wait`, each of them claims for itself.

use anyhow::{Context, Result};
use honcho_tests::{PATIENCE, connect, eventually};
use tokio::time::timeout;
use tokio_postgres::NoTls;

use super::{Router, sqlstate};

/// Manner in which claims on a shard fail.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// An act of a trigger.
    Act(&'static str),
    /// It admits no new sessions.
    Closed,
}

const RAISE: Fault = Fault::Act("raise division_by_zero");
const ASSERT: Fault = Fault::Act("assert false");
const DIE: Fault = Fault::Act("perform pg_terminate_backend(pg_backend_pid())");
const SLEEP: Fault = Fault::Act("perform pg_sleep(60)");

/// The number of claims on each shard.
async fn claims(router: &Router) -> Result<Vec<i64>> {
    let mut claims = Vec::new();
    for shard in &router.shards {
        let count = "select count(*) from claims";
        let count = shard.connect().await?.query_one(count, &[]).await?;
        claims.push(count.get(0));
    }
    Ok(claims)
}

/// Brings these faults about, one for each shard.
async fn set_faults(router: &Router, faults: [Fault; 2]) -> Result<()> {
    let postgres = connect(&crate::cluster().url("postgres", "postgres")).await?;
    for (shard, fault) in router.shards.iter().zip(faults) {
        let allow = |allowed: bool| {
            let name = shard.name();
            format!("alter database {name} allow_connections {allowed}")
        };
        postgres.batch_execute(&allow(true)).await?;
        let act = match fault {
            Fault::Act(act) => act,
            Fault::None | Fault::Closed => "null",
        };
        let trigger = format!(
            "create or replace function fault() returns trigger language plpgsql security definer
                 as $$begin {act}; return new; end$$;
             create or replace trigger fault before insert on claims for each row execute function fault()"
        );
        shard.connect().await?.batch_execute(&trigger).await?;
        postgres
            .batch_execute(&allow(fault != Fault::Closed))
            .await?;
    }
    Ok(())
}

#[tokio::test]
async fn claims_on_several_shards_are_made_in_order() -> Result<()> {
    let router = Router::new(4).await?;
    let [one, two, three] = [
        router.create_coupon(0, 9).await?,
        router.create_coupon(1, 1).await?,
        router.create_coupon(3, 9).await?,
    ];
    let session = router.database.connect_as_caller().await?;
    let sql = "select array(select (ordinal, outcome)::text from honcho_claim_many($1, $2, false))";
    let users = ["ann", "bob", "carl", "ann", "bob", "ann"];
    let names = [&three, &two, &one, &two, &three, &three];
    let outcomes = async |users: &[&str], names: &[&String]| {
        let row = session.query_one(sql, &[&users, &names]).await?;
        anyhow::Ok(row.get::<_, Vec<String>>(0))
    };
    let expected = [
        "(1,claimed)",
        "(2,claimed)",
        "(3,claimed)",
        "(4,sold_out)",
        "(5,claimed)",
        "(6,already_claimed)",
    ];
    assert_eq!(outcomes(&users, &names).await?, expected);
    // A coupon that another session holds is left out, and no other.
    let holder = router.shards[0].connect().await?;
    holder
        .batch_execute(&format!("begin; select honcho_claim('holder', '{one}')"))
        .await?;
    assert_eq!(
        outcomes(&["dora", "dora"], &[&one, &three]).await?,
        ["(1,)", "(2,claimed)"]
    );
    holder.batch_execute("rollback").await?;
    // Arrays that a shard refuses as they are.
    for (users, said) in [
        ("{a}", "coupon_names must have as many elements"),
        ("{a,null}", "user_ids[2] must not be null"),
        (r#"{a,""}"#, "user_ids[2] must"),
    ] {
        let many = format!("select honcho_claim_many('{users}', '{{{one},{two}}}', false)");
        let error = session.batch_execute(&many).await.expect_err(users);
        let message = error.as_db_error().map_or("", |error| error.message());
        assert!(message.contains(said), "{message}");
    }
    let no_wait = format!("select honcho_claim_many('{{a,b}}', '{{{one},{two}}}', null)");
    assert_eq!(sqlstate(&session, &no_wait).await, "22004");
    let too_many = format!(
        "select honcho_claim_many(array_fill('u'::text, '{{10001}}'), array_fill('{one}'::text, '{{10000}}') || array['{two}'], false)"
    );
    assert_eq!(sqlstate(&session, &too_many).await, "22023");
    router.books().await
}

/// An error says that no shard has claimed, unless it is `08007`. If a shard fails after another has claimed, its pairs
/// are left out.
#[tokio::test]
async fn fault_of_a_shard_is_an_error_or_leaves_its_claims_out() -> Result<()> {
    let router = Router::new(2).await?;
    let names = vec![
        router.create_coupon(0, 99).await?,
        router.create_coupon(1, 99).await?,
    ];
    let (mut first, mut second) = (0, 0);
    for (n, (faults, settings, expected)) in [
        ([Fault::None, Fault::None], "", "claimed,claimed"),
        ([Fault::None, RAISE], "", "claimed,null"),
        ([Fault::None, ASSERT], "", "claimed,null"),
        ([RAISE, Fault::None], "", "22012"),
        ([Fault::None, Fault::Closed], "", "claimed,null"),
        ([Fault::Closed, Fault::None], "", "57P03"),
        ([Fault::None, DIE], "", "08007"),
        ([DIE, Fault::None], "", "08007"),
        (
            [Fault::None, SLEEP],
            "set statement_timeout = '1s'",
            "08007",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        set_faults(&router, faults).await?;
        // A new one has no connections to the shards.
        let session = router.database.connect_as_caller().await?;
        session.batch_execute(settings).await?;
        let sql = "select string_agg(coalesce(outcome::text, 'null'), ',') from honcho_claim_many($1, $2, false)";
        let users = vec![format!("user {n}"); 2];
        let answer = match session.query_one(sql, &[&users, &names]).await {
            Ok(row) => row.get(0),
            Err(error) => error
                .code()
                .map_or(error.to_string(), |it| it.code().to_owned()),
        };
        assert_eq!(answer, expected, "{n}");
        set_faults(&router, [Fault::None; 2]).await?;
        first += i64::from(faults[0] == Fault::None);
        second += i64::from(expected == "claimed,claimed");
        assert_eq!(claims(&router).await?, [first, second], "{n}");
    }
    router.books().await
}

/// The last step of a call reads the labels of outcomes. A session that knows none yet waits there for a lock on their
/// table, and the shards have claimed.
#[tokio::test]
async fn cancel_after_the_claims_is_no_undone_call() -> Result<()> {
    let router = Router::new(2).await?;
    let [one, two] = [
        router.create_coupon(0, 9).await?,
        router.create_coupon(1, 9).await?,
    ];
    let locker = router.database.connect().await?;
    locker
        .batch_execute("begin; lock table pg_catalog.pg_enum in access exclusive mode")
        .await?;
    let watcher = router.database.connect().await?;
    for (call, claimed) in [
        (
            format!("select honcho_claim_many('{{ann,ann}}', '{{{one},{two}}}', false)"),
            [1, 1],
        ),
        (
            format!("select honcho_claim_many('{{bob}}', '{{{two}}}')"),
            [1, 2],
        ),
    ] {
        let session = router.database.connect_as_caller().await?;
        let pid: i32 = session
            .query_one("select pg_backend_pid()", &[])
            .await?
            .get(0);
        let cancel = session.cancel_token();
        let state = tokio::spawn(async move { sqlstate(&session, &call).await });
        // This session and this table: others may wait for something, too, while the call is still with the shards.
        eventually("the session to wait for the labels", async || {
            let waiting = "select from pg_locks
                           where pid = $1 and relation = 'pg_catalog.pg_enum'::regclass and not granted";
            Ok(watcher.query_opt(waiting, &[&pid]).await?.map(drop))
        })
        .await?;
        assert_eq!(claims(&router).await?, claimed);
        timeout(PATIENCE, cancel.cancel_query(NoTls))
            .await
            .context("the cancel is not taken")??;
        let state = timeout(PATIENCE, state)
            .await
            .context("the cancelled call does not end")?;
        assert_eq!(state?, "08007");
    }
    router.books().await
}
