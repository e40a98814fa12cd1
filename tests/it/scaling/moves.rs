//! A shard moves to another server: no told claim is lost, two homes never take writes, and a move that fails leaves the
//! old home as it was.

use std::{
    fs,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use honcho_tests::{Database, Stop, connect, eventually};
use tokio_postgres::{Client, error::SqlState};

use crate::fixtures::{
    api::Api,
    moves::Homes,
    shards::{Callers, Shards},
    sql::{claim, until_waiting_for_lock},
};

/// Longest time for which writes may be refused. It is about half a second on an idle machine, but tests share this one.
const OUTAGE_LIMIT: Duration = Duration::from_secs(4);

/// A URL with both homes, for the service.
fn url_of_both(homes: &Homes, database: &Database) -> String {
    let name = database.name();
    let [old, new] =
        [&homes.old, &homes.new].map(|home| home.directory().to_string_lossy().replace('/', "%2F"));
    format!("postgresql://{name}_caller@/{name}?host={old},{new}")
}

#[tokio::test(flavor = "multi_thread")]
async fn service_follows_a_shard_that_moves_and_no_told_claim_is_lost() -> Result<()> {
    let homes = Homes::start()?;
    let mut shards = Shards::start(&[crate::cluster(), &homes.old], 2, &[]).await?;
    homes.admit(&shards.databases[1]).await?;
    let urls = format!(
        "{} {}",
        shards.databases[0].caller_url(),
        url_of_both(&homes, &shards.databases[1])
    );
    let settings = [("DATABASE_SHARDS", &*urls)];
    shards.api = Arc::new(Api::start_with("", &settings).await?);
    let coupons = shards.coupon_on_each("PROMO", 1_000_000).await?;
    let callers = Callers::start(&shards.api, &coupons, 4, "move");
    callers.until(&coupons, "200", 200).await?;
    let moved = homes.run(&shards.databases[1], &[]).await?;
    ensure!(moved.succeeded);
    callers.until(&coupons, "200", 200).await?;
    let mut answers = callers.end().await?;

    let old = shards.databases.remove(1);
    shards.databases.push(old.in_cluster(&homes.new));
    let told = shards.check(&answers).await?;
    answers.sort_by_key(|answer| answer.begun);
    let mut longest = Duration::ZERO;
    let mut last = answers[0].begun;
    for answer in answers.iter().filter(|it| it.shown == "200") {
        if answer.coupon == coupons[0] {
            continue;
        }
        let answered = answer.begun + answer.took;
        longest = longest.max(answered.saturating_duration_since(last));
        last = last.max(answered);
    }
    for answer in answers.iter().filter(|it| it.coupon == coupons[0]) {
        ensure!(answer.shown == "200", "{answer:?}");
    }
    eprintln!("{told} told, 0 lost; no claim for {longest:?}");
    ensure!(moved.refused_for()? < OUTAGE_LIMIT.as_secs_f64());
    shards.books().await?;

    // The new home goes on with the ids of the shard, and with the books' rows of all kinds.
    let added = shards.coupon_on_each("LATER", 1).await?;
    let new = shards.databases[1].connect().await?;
    let id = "select (id - 1) % 256 from coupons where name = $1";
    ensure!(new.query_one(id, &[&added[1]]).await?.get::<_, i64>(0) == 1);
    // The old one stays read-only, and knows no later claim.
    let stale = old.connect_as_caller().await?;
    let refused = stale
        .query("select honcho_claim('x', $1)", &[&coupons[1]])
        .await;
    let refused = refused.expect_err("a read-only database");
    ensure!(refused.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION));
    // A service that has not heard of the move.
    let single = Api::start(old.caller_url()).await?;
    let answer = single.claim("x", &coupons[1]).await?;
    ensure!(answer.shown() == "503 unavailable", "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn moved_database_has_rows_sequences_and_rights() -> Result<()> {
    let homes = Homes::start()?;
    let database = homes.database().await?;
    database.create_coupon("PROMO", 10).await?;
    let old = database.connect().await?;
    old.batch_execute(
        "create table \"my %s Orders\" (id serial primary key, item text);
         insert into \"my %s Orders\" (item) values ('shoes'), ('hat');
         create sequence numbers increment 7 start 3; select nextval('numbers');
         select honcho_claim('ann', 'PROMO'); select honcho_reserve('bob', 'PROMO', '1 hour')",
    )
    .await?;
    let moved = homes.run(&database, &[]).await?;
    ensure!(moved.succeeded);
    ensure!(moved.said.contains("your own public.\"my %s Orders\""));
    let there = database.in_cluster(&homes.new);
    let (old, new) = (database.connect().await?, there.connect().await?);
    for table in [
        "coupons",
        "claims",
        "holds",
        "coupon_events",
        "\"my %s Orders\"",
    ] {
        let rows = format!("select array(select t::text from {table} t order by 1)");
        let before: Vec<String> = old.query_one(&rows, &[]).await?.get(0);
        let after: Vec<String> = new.query_one(&rows, &[]).await?.get(0);
        ensure!(
            !before.is_empty() && before == after,
            "{table}: {before:?} {after:?}"
        );
    }
    let next = "with added as (insert into \"my %s Orders\" (item) values ('coat') returning id)
                select id::bigint, nextval('numbers') from added";
    let row = new.query_one(next, &[]).await?;
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (3, 10));
    let caller = there.connect_as_caller().await?;
    assert_eq!(claim(&caller, "eve").await?, "claimed");
    assert_eq!(claim(&caller, "ann").await?, "already_claimed");
    there.books().await
}

/// No setting of a session lets it write in the old home.
#[tokio::test]
async fn old_home_refuses_writes_of_every_session() -> Result<()> {
    let homes = Homes::start()?;
    let database = homes.database().await?;
    database.create_coupon("PROMO", 10).await?;
    let idle = database.connect_as_caller().await?;
    // It has a claim in progress, and does not end it.
    let busy = database.connect_as_caller().await?;
    let holder = hold_copy(&homes.prepare(&database).await?).await?;
    let moving = tokio::spawn(homes.command(&database, &[]).output());
    until_waiting_for_lock(&holder).await?;
    // The copy of a table does not begin beside a transaction that has written.
    eventually("the other tables", async || {
        let copied = "select from pg_subscription_rel where srsubstate = 'r'";
        Ok((holder.query(copied, &[]).await?.len() == 3).then_some(()))
    })
    .await?;
    busy.batch_execute("begin; select honcho_claim('busy', 'PROMO')")
        .await?;
    drop(holder);
    let output = moving.await??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    ensure!(busy.batch_execute("commit").await.is_err());
    ensure!(claim(&idle, "idle").await.is_err());

    for session in [
        database.connect_as_caller().await?,
        database.connect().await?,
    ] {
        session
            .batch_execute("set default_transaction_read_only = off")
            .await?;
        let refused = claim(&session, "eve").await.expect_err("a moved database");
        ensure!(refused.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION));
    }
    let superuser = database.connect().await?;
    superuser
        .batch_execute(
            "set default_transaction_read_only = off; set session_replication_role = replica",
        )
        .await?;
    for write in [
        "select honcho_claim('eve', 'PROMO')",
        "insert into claims (user_id, coupon_name) values ('eve', 'PROMO')",
        "update coupons set amount = 11",
        "delete from coupons",
        "truncate coupons, claims, holds, coupon_events",
    ] {
        let refused = superuser.batch_execute(write).await.expect_err(write);
        ensure!(
            refused.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION),
            "{write}: {refused:?}"
        );
    }
    let new = database.in_cluster(&homes.new);
    let claims = new
        .connect()
        .await?
        .query("select from claims", &[])
        .await?;
    ensure!(
        claims.is_empty(),
        "a claim that was not committed has moved"
    );
    new.books().await?;
    homes
        .run(&database, &["--abort"])
        .await?
        .refused("the database has moved, and its old home stays read-only")
}

/// The script names the faults that prevent a move before it changes anything.
#[tokio::test]
async fn faults_are_named_before_the_move() -> Result<()> {
    let homes = Homes::start()?;

    let keyless = homes.database().await?;
    keyless.create_coupon("PROMO", 10).await?;
    let admin = keyless.connect().await?;
    admin
        .batch_execute(
            "create table orders (item text); create unlogged table notes (id int primary key);
             alter role postgres set default_transaction_read_only = off",
        )
        .await?;
    let refused = homes.run(&keyless, &[]).await?;
    refused.refused("the table public.orders has no replica identity")?;
    refused.refused("the table public.notes is unlogged")?;
    refused.refused("default_transaction_read_only is set for the role postgres")?;
    admin
        .batch_execute("alter role postgres reset default_transaction_read_only")
        .await?;
    homes.check_undone(&keyless, false).await?;

    let released = Database::create_released(&homes.old, "0.2.0").await?;
    homes.admit(&released).await?;
    let refused = homes.run(&released, &[]).await?;
    refused.refused("and the old one is 0.2.0")?;
    homes.prepare(&released).await?;
    let refused = homes.run(&released, &[]).await?;
    refused.refused("in the schema public, not 0.2.0 in public")?;

    let database = homes.database().await?;
    database.create_coupon("PROMO", 10).await?;
    let there = homes.prepare(&database).await?;
    there.create_coupon("PROMO", 10).await?;
    let refused = homes.run(&database, &[]).await?;
    refused.refused("the table public.coupons is not empty")?;
    there
        .connect()
        .await?
        .batch_execute(
            "select honcho_delete_coupon('PROMO'); delete from coupon_events;
             create table more (id int primary key); alter table claims drop column request_key",
        )
        .await?;
    let refused = homes.run(&database, &["--check"]).await?;
    refused.refused("the database lacks: public.claims request_key character varying(255)")?;
    refused.refused("only the database there has: public.more id integer")?;

    let nowhere = homes.run(&database, &["--to", "host=/nowhere"]).await?;
    nowhere.refused("the target server cannot be looked at")?;

    let stranger = Database::create(&homes.old).await?;
    let refused = homes.run(&stranger, &[]).await?;
    refused.refused(&format!("the role {}_caller is not there", stranger.name()))?;

    let to = homes.old.url("postgres", "postgres");
    let refused = homes.run(&stranger, &["--to", &to]).await?;
    refused.refused("it is the server on which the database is")?;
    // The shared cluster has PostgreSQL's default.
    let physical = crate::database().await?;
    let from = crate::cluster().url("postgres", physical.name());
    let refused = homes.run(&physical, &["--from", &from]).await?;
    refused.refused("wal_level is replica, not logical")
}

/// A fault that arises between the copy and the switch ends the move before the switch.
#[tokio::test]
async fn move_is_given_up_unless_both_homes_are_as_they_must_be() -> Result<()> {
    let homes = Homes::start()?;
    // An event trigger stands in for an operator who lets the old home take writes.
    let meddle = "
        create function meddle() returns event_trigger language plpgsql as $$
        begin
            if exists (select from pg_trigger where tgname = 'honcho_move' and tgenabled = 'A'
                                              and tgrelid = 'public.claims'::regclass)
            then
                @;
            end if;
        end $$;
        create event trigger meddle on ddl_command_end when tag in ('ALTER TABLE') execute function meddle()";
    for (act, said) in [
        (
            "alter table public.claims disable trigger honcho_move",
            "the old home is not read-only: the table public.claims takes writes",
        ),
        (
            "alter role postgres set default_transaction_read_only = off",
            "the old home is not read-only: its sessions may write",
        ),
    ] {
        let database = homes.database().await?;
        database.create_coupon("PROMO", 10).await?;
        let admin = database.connect().await?;
        admin.batch_execute(&meddle.replace('@', act)).await?;
        homes.run(&database, &[]).await?.refused(said)?;
        let undo = "drop event trigger meddle; alter role postgres reset all";
        let admin = database.connect().await?;
        admin.batch_execute(undo).await?;
        homes.check_undone(&database, false).await?;
    }
    // Triggers in the new home stand in for changes that do not arrive as they were made.
    for (table, change, said) in [
        (
            "coupon_events",
            "return null;",
            "the counts of the two homes differ",
        ),
        (
            "coupons",
            "new.remaining_amount := 3;",
            "honcho_verify() finds faults in the copy: PROMO: stock: amount 10, remaining_amount 3, claims 2",
        ),
    ] {
        let database = homes.database().await?;
        database.create_coupon("PROMO", 10).await?;
        let admin = database.connect().await?;
        admin
            .batch_execute("select honcho_claim('ann', 'PROMO'), honcho_claim('bob', 'PROMO')")
            .await?;
        let there = homes.prepare(&database).await?;
        let trigger = format!(
            "create function change() returns trigger language plpgsql as $$ begin {change} return new; end $$;
             create trigger change before insert on {table} for each row execute function change();
             alter table {table} enable always trigger change"
        );
        there.connect().await?.batch_execute(&trigger).await?;
        homes.run(&database, &[]).await?.refused(said)?;
        homes.check_undone(&database, true).await?;
    }
    let database = homes.database().await?;
    database.create_coupon("PROMO", 10).await?;
    let failed = homes.run(&database, &["--switch", "exit 7"]).await?;
    failed.refused("the command of --switch ended with status 7")?;
    failed.refused("the command of --switch had begun: lead its callers back to the old home")?;
    homes.check_undone(&database, false).await?;
    // While the command runs, no home takes writes.
    let command = format!(
        "for home in '{}' '{}'; do
             [ \"$(psql -XAtq -d \"$home\" -c 'show transaction_read_only')\" = on ] || exit
             psql -XAtq -d \"$home\" -c 'set default_transaction_read_only = off' \\
                 -c \"select honcho_claim('x', 'PROMO')\" && exit
         done; echo both refuse",
        homes.old.url("postgres", database.name()),
        homes.new.url("postgres", database.name()),
    );
    let moved = homes.run(&database, &["--switch", &command]).await?;
    ensure!(moved.succeeded && moved.said.contains("both refuse"));
    database.in_cluster(&homes.new).books().await
}

/// The last transaction before the old home is read-only comes after the books of the copy were checked.
#[tokio::test]
async fn books_that_the_last_transaction_spoils_are_not_switched() -> Result<()> {
    let homes = Homes::start()?;
    for (spoil, said) in [
        (
            "update public.coupons set remaining_amount = 3",
            "PROMO: amount 10, remaining_amount 3,",
        ),
        (
            "update public.coupons set next_expiry = null",
            "next_expiry  of 2",
        ),
        (
            "insert into public.holds (user_id, coupon_name, expires_at)
                 select user_id, coupon_name, 'infinity' from public.claims;
             update public.coupons set held_amount = 2, remaining_amount = 7",
            "PROMO: ann has a hold and a claim",
        ),
        ("delete from public.coupons", "amount , remaining_amount ,"),
        (
            "perform setval('public.claims_id_seq', 1, false)",
            "last claim id 1 of 0 given",
        ),
        (
            "perform setval('public.coupons_id_seq', 1, false)",
            "id 1 of 0 given",
        ),
    ] {
        let database = homes.database().await?;
        database.create_coupon("PROMO", 10).await?;
        let admin = database.connect().await?;
        let prepare = format!(
            "select honcho_claim('ann', 'PROMO'), honcho_reserve('bob', 'PROMO', '1 hour');
             create function spoil() returns event_trigger language plpgsql as $$
             begin
                 if exists (select from pg_stat_replication) then
                     set local session_replication_role = replica;
                     {spoil};
                 end if;
             end $$;
             create event trigger spoil on ddl_command_end when tag in ('CREATE SCHEMA') execute function spoil()"
        );
        admin.batch_execute(&prepare).await?;
        let refused = homes.run(&database, &[]).await?;
        refused.refused("the books of the new home do not agree with its rows: ")?;
        refused.refused(said)?;
    }
    Ok(())
}

/// `--abort` after the process was killed: in the copy, while both homes are read-only, and after the switch.
#[tokio::test]
async fn move_that_was_killed_can_be_undone() -> Result<()> {
    let homes = Homes::start()?;
    let database = homes.database().await?;
    database.create_coupon("PROMO", 10).await?;
    homes
        .run(&database, &["--abort"])
        .await?
        .refused("has been begun")?;

    let there = homes.prepare(&database).await?;
    let holder = hold_copy(&there).await?;
    let mut moving = homes
        .command(&database, &[])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    until_waiting_for_lock(&holder).await?;
    moving.kill().await?;
    drop(holder);
    let again = homes.run(&database, &[]).await?;
    again.refused("a move has been begun")?;
    let undone = homes.run(&database, &["--abort"]).await?;
    ensure!(undone.succeeded);
    homes.check_undone(&database, true).await?;
    drop_new(&homes, &database).await?;

    // Between: the command kills the script.
    let kill = "kill -KILL $(cut -d ' ' -f 4 /proc/$PPID/stat)";
    let killed = homes.run(&database, &["--switch", kill]).await?;
    ensure!(!killed.succeeded);
    for home in [&database, &database.in_cluster(&homes.new)] {
        let refused = claim(&home.connect().await?, "x").await;
        let refused = refused.expect_err("a home that is read-only");
        ensure!(refused.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION));
    }
    let undone = homes.run(&database, &["--abort"]).await?;
    ensure!(undone.succeeded);
    homes.check_undone(&database, false).await?;

    // At the end: the new home takes writes, and only the publication is left.
    ensure!(homes.run(&database, &[]).await?.succeeded);
    let old = database.connect().await?;
    let system: String = connect(&homes.new.url("postgres", "postgres"))
        .await?
        .query_one(
            "select system_identifier::text from pg_control_system()",
            &[],
        )
        .await?
        .get(0);
    old.batch_execute("set default_transaction_read_only = off")
        .await?;
    old.batch_execute(&format!(
        "create publication honcho_move; comment on publication honcho_move is '{system}'"
    ))
    .await?;
    homes
        .run(&database, &["--abort"])
        .await?
        .refused("the database has moved: its new home takes writes already")?;
    let stale = claim(&database.connect().await?, "x").await;
    ensure!(stale.is_err());
    let new = database.in_cluster(&homes.new);
    ensure!(claim(&new.connect().await?, "x").await? == "claimed");
    new.books().await
}

/// The last changes must arrive within the limit.
#[tokio::test]
async fn move_is_given_up_if_the_new_home_is_slow() -> Result<()> {
    let homes = Homes::start()?;
    let database = homes.database().await?;
    database.create_coupon("PROMO", 10).await?;
    let admin = database.connect().await?;
    // The last claim before the old home takes no more writes, which the new one is slow to apply.
    admin
        .batch_execute(
            "create function last_claim() returns event_trigger language plpgsql as $$
             begin perform public.honcho_claim('last', 'PROMO'); end $$;
             create event trigger last_claim on ddl_command_end when tag in ('CREATE SCHEMA')
                 execute function last_claim()",
        )
        .await?;
    let there = homes.prepare(&database).await?;
    there
        .connect()
        .await?
        .batch_execute(
            "create function slow() returns trigger language plpgsql as $$
             begin perform pg_sleep(60); return new; end $$;
             create trigger slow before insert on claims for each row execute function slow();
             alter table claims enable always trigger slow",
        )
        .await?;
    let begun = Instant::now();
    let refused = homes.run(&database, &["--limit", "1"]).await?;
    refused.refused("the last changes have not arrived")?;
    ensure!(begun.elapsed() < Duration::from_secs(30));
    let admin = database.connect().await?;
    admin.batch_execute("drop event trigger last_claim").await?;
    homes.check_undone(&database, true).await
}

/// If the new home does not say whether it takes writes, the old one does not.
#[tokio::test]
async fn old_home_stays_read_only_while_the_new_one_may_take_writes() -> Result<()> {
    let mut homes = Homes::start()?;
    let database = homes.database().await?;
    database.create_coupon("PROMO", 10).await?;
    let mark = homes.old.directory().join("both-are-read-only");
    let command = format!(
        "touch {0}; while [ -e {0} ]; do sleep 0.05; done",
        mark.display()
    );
    let moving = homes.command(&database, &["--switch", &command]).output();
    let moving = tokio::spawn(moving);
    eventually("the command", async || Ok(mark.exists().then_some(()))).await?;
    homes.new.stop(Stop::Immediate)?;
    fs::remove_file(&mark)?;
    let output = moving.await??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success());
    ensure!(
        said.contains("the old home may still be read-only"),
        "{said}"
    );
    let refused = claim(&database.connect().await?, "x").await;
    let refused = refused.expect_err("a home that is read-only");
    ensure!(refused.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION));
    homes.run(&database, &["--abort"]).await?.refused("")?;
    ensure!(claim(&database.connect().await?, "x").await.is_err());
    homes.new.start()?;
    ensure!(homes.run(&database, &["--abort"]).await?.succeeded);
    homes.check_undone(&database, false).await
}

/// Holds up the copy of the coupons in a prepared home, until the session ends.
async fn hold_copy(there: &Database) -> Result<Client> {
    let holder = there.connect().await?;
    holder
        .batch_execute(
            "create function wait() returns trigger language plpgsql as $$
             begin perform pg_advisory_xact_lock_shared(1); return new; end $$;
             create trigger wait before insert on coupons for each row execute function wait();
             alter table coupons enable always trigger wait;
             select pg_advisory_lock(1)",
        )
        .await?;
    Ok(holder)
}

async fn drop_new(homes: &Homes, database: &Database) -> Result<()> {
    let admin = connect(&homes.new.url("postgres", "postgres")).await?;
    let sql = format!("drop database {} with (force)", database.name());
    Ok(admin.batch_execute(&sql).await?)
}
