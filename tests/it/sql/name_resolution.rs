//! Name resolution: functions run with their owner's rights and must never resolve a name to an object that
//! another role planted.

use anyhow::{Result, ensure};
use honcho_tests::{Database, connect, eventually};
use tokio_postgres::{Client, error::SqlState};

use crate::{
    cluster,
    fixtures::sql::{CALLS, releases},
};

/// Operators of pg_catalog, and types to which the extension's SQL could apply them. For the types of our
/// columns, an exact match wins over pg_catalog's.
const OPERATORS: [&str; 10] = ["=", "<>", "<", ">", "<=", ">=", "+", "-", "||", "~~"];
const TYPES: [(&str, &str); 11] = [
    ("varchar", "text"),
    ("text", "varchar"),
    ("varchar", "varchar"),
    ("text", "text"),
    ("int8", "int8"),
    ("int4", "int4"),
    ("int4", "int8"),
    ("int8", "int4"),
    ("timestamptz", "timestamptz"),
    ("timestamptz", "interval"),
    ("interval", "interval"),
];

/// Functions of pg_catalog, with arguments that match ours better.
const FUNCTIONS: [&str; 18] = [
    "format(text, int, int, int8)",
    "format(text, int, int)",
    "format(text, int8, int8)",
    "format(text, int8)",
    "now()",
    "clock_timestamp()",
    "nextval(regclass)",
    "length(varchar)",
    "lower(varchar)",
    "text(varchar)",
    "varchar(varchar, int, boolean)",
    "concat(text, text)",
    "jsonb_build_object(text, int)",
    "jsonb_build_object(text, timestamptz, text, timestamptz)",
    "jsonb_strip_nulls(jsonb)",
    "pg_current_snapshot()",
    "pg_snapshot_xmin(pg_snapshot)",
    "current_setting(text, boolean)",
];

/// Plants in `schema` everything that `client` can create there. Each object adds a row to `loot.trapped`
/// when it runs.
async fn plant(client: &Client, schema: &str) -> Result<()> {
    let returned = |arguments: &str| {
        format!(
            "create function {schema}.{arguments} language plpgsql as $$ begin
                 insert into loot.trapped values (current_user, $t${arguments}$t$);
                 return null;
             end $$;"
        )
    };
    for (i, (left, right)) in TYPES.iter().enumerate() {
        for (j, operator) in OPERATORS.iter().enumerate() {
            let result = match *operator {
                "+" | "-" => left,
                "||" => "text",
                _ => "boolean",
            };
            client
                .batch_execute(&returned(&format!(
                    "trap_{i}_{j}({left}, {right}) returns {result}"
                )))
                .await?;
            client
                .batch_execute(&format!(
                    "create operator {schema}.{operator}
                         (leftarg = {left}, rightarg = {right}, function = {schema}.trap_{i}_{j})"
                ))
                .await?;
        }
    }
    for function in FUNCTIONS {
        client
            .batch_execute(&returned(&format!("{function} returns text")))
            .await?;
    }
    let aggregates = [
        ("count", "*"),
        ("count", "varchar"),
        ("count", "text"),
        ("max", "int8"),
        ("string_agg", "text, text"),
    ];
    for (i, (name, arguments)) in aggregates.into_iter().enumerate() {
        let more = match arguments {
            "*" => String::new(),
            arguments => format!(", {arguments}"),
        };
        client
            .batch_execute(&returned(&format!("step_{i}(int8{more}) returns int8")))
            .await?;
        client
            .batch_execute(&format!(
                "create aggregate {schema}.{name}({arguments}) (sfunc = {schema}.step_{i}, stype = int8)"
            ))
            .await?;
    }
    // Types, a cast between them and a collation, with the names of built-in ones.
    client
        .batch_execute(&format!(
            "create domain {schema}.text as pg_catalog.text;
             create domain {schema}.varchar as pg_catalog.varchar;
             create domain {schema}.int8 as pg_catalog.int8;
             create type {schema}.timestamptz as (at pg_catalog.int8);
             create type {schema}.disguise as (text pg_catalog.text);
             create function {schema}.undisguise({schema}.disguise) returns pg_catalog.text
                 language plpgsql as $$ begin
                     insert into loot.trapped values (current_user, 'cast');
                     return null;
                 end $$;
             create cast ({schema}.disguise as pg_catalog.text)
                 with function {schema}.undisguise({schema}.disguise) as implicit;
             create collation {schema}.\"C\" from pg_catalog.\"C\";"
        ))
        .await?;
    Ok(())
}

/// Plants in the temporary schema what a role without rights to the tables can create.
async fn plant_temporary(client: &Client) -> Result<()> {
    client
        .batch_execute(
            "create temporary table loot_of_mine (who text);
             create function pg_temp.coupons() returns setof pg_temp.loot_of_mine language plpgsql
                 as $$ begin
                     insert into loot.trapped values (current_user, 'temporary view');
                 end $$;
             create temporary view coupons as select 1::bigint as id, 'MINE'::text as name, 5 as amount,
                 5 as remaining_amount, now() as created_at, now() as starts_at, now() as ends_at,
                 false as paused, 0 as held_amount from pg_temp.coupons();
             create temporary view claims as select 1::bigint as id, 'me'::text as user_id,
                 'MINE'::text as coupon_name, now() as claimed_at, null::text as request_key
                 from pg_temp.coupons();
             create temporary view holds as select 'MINE'::text as coupon_name, 'me'::text as user_id,
                 now() as expires_at, now() as created_at, null::text as request_key from pg_temp.coupons();
             create temporary view coupon_events as select 1::bigint as id, 'MINE'::text as coupon_name,
                 'created'::text as kind, now() as at, 'me'::text as actor, '{}'::jsonb as details
                 from pg_temp.coupons();
             create temporary sequence coupon_events_id_seq;
             create temporary sequence claims_id_seq;
             create type pg_temp.honcho_outcome as enum ('claimed');
             create domain pg_temp.text as pg_catalog.text;",
        )
        .await?;
    Ok(())
}

/// A database in which `mallory` may create schemas, and every role objects in `public`, as in databases that
/// were upgraded from PostgreSQL 14. The table `loot.trapped` records objects that ran.
struct Field {
    database: Database,
    owner: Client,
    mallory: String,
}

impl Field {
    async fn new() -> Result<Self> {
        let database = Database::create_empty(cluster()).await?;
        let owner = database.connect().await?;
        let mallory = format!("{}_mallory", database.name());
        owner
            .batch_execute(&format!(
                "create role {mallory} login;
                 grant create on database {0} to {mallory};
                 grant create on schema public to public;
                 create schema loot;
                 create table loot.trapped (who text, what text);
                 grant usage on schema loot to public;
                 grant insert on loot.trapped to public;",
                database.name()
            ))
            .await?;
        Ok(Self {
            database,
            owner,
            mallory,
        })
    }

    async fn connect_as_mallory(&self) -> Result<Client> {
        connect(&cluster().url(&self.mallory, self.database.name())).await
    }

    /// Grants `mallory` the extension's functions in `schema`.
    async fn grant(&self, schema: &str) -> Result<()> {
        let grant = format!(
            "grant usage on schema {schema} to {0};
             do $$ declare f regprocedure; begin
                 for f in select oid from pg_proc where pronamespace = '{schema}'::regnamespace
                                                    and proname like 'honcho%' loop
                     execute format('grant execute on function %s to {0}', f);
                 end loop;
             end $$",
            self.mallory
        );
        Ok(self.owner.batch_execute(&grant).await?)
    }

    /// Fails if a planted object has run.
    async fn nothing_trapped(&self) -> Result<()> {
        let trapped = self
            .owner
            .query("select distinct who, what from loot.trapped", &[])
            .await?;
        let trapped: Vec<(String, String)> =
            trapped.iter().map(|row| (row.get(0), row.get(1))).collect();
        ensure!(trapped.is_empty(), "{trapped:?}");
        Ok(())
    }
}

/// Calls each function of the extension in `schema` as `client`.
async fn call_all(client: &Client, schema: &str) -> Result<()> {
    for call in CALLS {
        client
            .batch_execute(&call.replace("honcho_", &format!("{schema}.honcho_")))
            .await
            .map_err(|error| anyhow::anyhow!("{call}: {error:?}"))?;
    }
    // The same calls again: refusals, and a name that is taken.
    for call in CALLS.iter().filter(|call| !call.contains("_or_raise")) {
        client
            .batch_execute(&call.replace("honcho_", &format!("{schema}.honcho_")))
            .await?;
    }
    Ok(())
}

#[tokio::test]
async fn planted_objects_do_run_under_an_open_search_path() -> Result<()> {
    let field = Field::new().await?;
    let mallory = field.connect_as_mallory().await?;
    plant(&mallory, "public").await?;
    // The search path of the reading functions in 0.2.0: pg_catalog, then the extension's schema.
    field
        .owner
        .batch_execute(
            "set search_path = pg_catalog, public;
             create table loot.names (name pg_catalog.varchar(255));
             insert into loot.names values ('A');
             select from loot.names where name = 'A'::pg_catalog.text;
             select format('%s', 1::pg_catalog.int8);",
        )
        .await?;
    let trapped: i64 = field
        .owner
        .query_one("select pg_catalog.count(*) from loot.trapped", &[])
        .await?
        .get(0);
    assert_eq!(trapped, 2);
    Ok(())
}

#[tokio::test]
async fn planted_objects_never_run_in_functions_or_scripts() -> Result<()> {
    let built = env!("CARGO_PKG_VERSION");
    let schema = "public";
    for version in releases().await?.into_iter().chain([built.to_owned()]) {
        let field = Field::new().await?;
        let mallory = field.connect_as_mallory().await?;
        plant(&mallory, schema).await?;
        let create = format!("create extension honcho version '{version}'");
        field.owner.batch_execute(&create).await?;
        let update = format!("alter extension honcho update to '{built}'");
        field.owner.batch_execute(&update).await?;
        field.nothing_trapped().await?;
        field.grant(schema).await?;
        field
            .owner
            .batch_execute("select public.honcho_create_coupon('PROMO', 10)")
            .await?;
        let as_of_old = "set search_path = public, pg_catalog, pg_temp";
        mallory.batch_execute(as_of_old).await?;
        call_all(&mallory, schema).await?;
        plant_temporary(&mallory).await?;
        mallory
            .batch_execute("truncate loot_of_mine; set search_path = pg_temp, public, pg_catalog")
            .await?;
        let again = field.connect_as_mallory().await?;
        plant_temporary(&again).await?;
        again.batch_execute("set search_path = pg_temp").await?;
        for call in &CALLS[4..] {
            again
                .batch_execute(&call.replace("honcho_", "public.honcho_"))
                .await?;
        }
        field.nothing_trapped().await?;
        let books = "select from public.honcho_verify() v where v.holds is not true";
        assert!(field.owner.query(books, &[]).await?.is_empty());
        field.nothing_trapped().await?;
    }
    Ok(())
}

/// The SQL of 0.1.0 has another name for the key, so the new name is free for other roles.
#[tokio::test]
async fn planted_index_is_not_mistaken_for_the_unique_key() -> Result<()> {
    let field = Field::new().await?;
    let mallory = field.connect_as_mallory().await?;
    field
        .owner
        .batch_execute(
            "create extension honcho version '0.1.0';
             select honcho_create_coupon('PROMO', 10);
             select honcho_claim('ann', 'PROMO')",
        )
        .await?;
    field.grant("public").await?;
    mallory
        .batch_execute(
            "create table mine (coupon_name text, user_id text);
             create unique index claims_coupon_name_user_id_key on mine (coupon_name, user_id);
             insert into mine values ('PROMO', 'bob'), ('PROMO', 'carl')",
        )
        .await?;
    for (user, outcome) in [("ann", "already_claimed"), ("bob", "claimed")] {
        let claim = "select public.honcho_claim($1, 'PROMO')::text";
        let answered: String = mallory.query_one(claim, &[&user]).await?.get(0);
        assert_eq!(answered, outcome, "{user}");
    }
    field.database.books().await
}

/// Another role can create a schema with the old name of a renamed one.
#[tokio::test]
async fn functions_work_in_a_renamed_schema_and_ignore_its_old_name() -> Result<()> {
    let field = Field::new().await?;
    let call = "select from store.honcho_get_coupon('PROMO')";
    field
        .owner
        .batch_execute("create schema shop; create extension honcho schema shop;")
        .await?;
    field
        .owner
        .batch_execute("select shop.honcho_create_coupon('PROMO', 10)")
        .await?;
    // This session has plans with the schema's old name.
    let session = field.database.connect().await?;
    for call in &CALLS[4..] {
        session
            .batch_execute(&call.replace("honcho_", "shop.honcho_"))
            .await?;
    }
    field
        .owner
        .batch_execute("alter schema shop rename to store")
        .await?;
    let mallory = field.connect_as_mallory().await?;
    mallory
        .batch_execute(
            "create schema shop;
             create function shop.trap() returns bigint language plpgsql as $$ begin
                 insert into loot.trapped values (current_user, 'view');
                 return 1;
             end $$;
             create view shop.coupons as select shop.trap() as id, 'PROMO'::text as name, 5 as amount,
                 5 as remaining_amount, now() as created_at, now() as starts_at, now() as ends_at,
                 false as paused, 0 as held_amount;
             create view shop.claims as select shop.trap() as id, 'me'::text as user_id,
                 'PROMO'::text as coupon_name, now() as claimed_at, null::text as request_key;
             create view shop.holds as select 'PROMO'::text as coupon_name, 'me'::text as user_id,
                 now() as expires_at, now() as created_at, shop.trap()::text as request_key;
             create view shop.coupon_events as select shop.trap() as id, 'PROMO'::text as coupon_name,
                 'created'::text as kind, now() as at, 'me'::text as actor, '{}'::jsonb as details;",
        )
        .await?;
    assert_eq!(session.query(call, &[]).await?.len(), 1);
    for call in &CALLS[4..] {
        session
            .batch_execute(
                &call
                    .replace("honcho_", "store.honcho_")
                    .replace("'NEW'", "'NEWER'"),
            )
            .await?;
    }
    field.grant("store").await?;
    call_all(&mallory, "store").await?;
    field.nothing_trapped().await
}

/// The database's owner can rename the extension's schema and create another in its place, while a function
/// waits for a table that the owner has locked. PostgreSQL resolves names again after the wait.
#[tokio::test]
async fn functions_ignore_a_schema_swapped_in_while_they_wait() -> Result<()> {
    for (table, call) in [
        ("coupons", "select public.honcho_get_coupon('PROMO')"),
        ("coupons", "select public.honcho_list_coupons()"),
        ("coupons", "select public.honcho_create_coupon('OTHER', 1)"),
        ("coupons", "select public.honcho_verify()"),
        ("claims", "select public.honcho_get_claim('ann', 'PROMO')"),
        ("claims", "select public.honcho_list_claims('PROMO')"),
        ("claims", "select public.honcho_list_user_claims('ann')"),
        ("holds", "select public.honcho_get_hold('ann', 'PROMO')"),
        ("holds", "select public.honcho_list_holds('PROMO')"),
        ("holds", "select public.honcho_expire()"),
        ("coupons", "select public.honcho_get_stock('PROMO')"),
        (
            "coupons",
            "select public.honcho_delete_coupon('PROMO', true)",
        ),
        ("coupon_events", "select public.honcho_list_events()"),
        (
            "coupon_events",
            "select public.honcho_list_events(0, 1, 'PROMO')",
        ),
        (
            "coupon_events",
            "select public.honcho_purge_events('infinity')",
        ),
    ] {
        for is_planned in [false, true] {
            let field = Field::new().await?;
            field
                .owner
                .batch_execute(&format!(
                    "alter database {0} owner to {1};
                     create extension honcho;
                     select honcho_create_coupon('PROMO', 10);
                     select honcho_claim('ann', 'PROMO')",
                    field.database.name(),
                    field.mallory
                ))
                .await?;
            let victim = field.database.connect().await?;
            if is_planned {
                for _ in 0..2 {
                    victim.batch_execute(call).await?;
                }
            }
            let first = field.connect_as_mallory().await?;
            first
                .batch_execute(&format!("begin; analyze {table}"))
                .await?;
            let second = field.connect_as_mallory().await?;
            let vacuum = format!("vacuum full {table}");
            let vacuum = tokio::spawn(async move { second.batch_execute(&vacuum).await });
            until_waiting_for_tables(&field.owner, 1).await?;
            let answered = tokio::spawn(async move {
                let answered = victim.batch_execute(call).await;
                (victim, answered)
            });
            until_waiting_for_tables(&field.owner, 2).await?;
            let third = field.connect_as_mallory().await?;
            third
                .batch_execute(
                    "begin;
                     alter schema public rename to gone;
                     create schema public;
                     grant usage on schema public to public;
                     create function public.boom() returns bigint immutable language plpgsql as $$ begin
                         insert into loot.trapped values (current_user, 'view');
                         return 1;
                     end $$;
                     create view public.coupons as select public.boom() as id, 'PROMO'::varchar as name,
                         1 as amount, 1 as remaining_amount, now() as created_at, now() as starts_at,
                         now() as ends_at, false as paused, 1 as held_amount;
                     create view public.claims as select public.boom() as id, 'ann'::varchar as user_id,
                         'PROMO'::varchar as coupon_name, now() as claimed_at, null::varchar as request_key;
                     create view public.holds as select 'PROMO'::varchar as coupon_name,
                         public.boom()::varchar as user_id, now() as expires_at, now() as created_at,
                         null::varchar as request_key;
                     create view public.coupon_events as select public.boom() as id,
                         'PROMO'::varchar as coupon_name, 'created'::text as kind, now() as at,
                         'ann'::text as actor, '{}'::jsonb as details, '3'::xid as xmin;
                     commit",
                )
                .await?;
            first.batch_execute("commit").await?;
            vacuum.await??;
            let (victim, answered) = answered.await?;
            // The call fails or is right; it never uses the other schema.
            if let Err(error) = answered {
                let code = error.code().cloned();
                // Objects without a counterpart in the other schema are not found.
                let expected = [
                    SqlState::T_R_SERIALIZATION_FAILURE,
                    SqlState::UNDEFINED_TABLE,
                ];
                assert!(
                    code.is_some_and(|code| expected.contains(&code)),
                    "{call}: {error:?}"
                );
            }
            field.nothing_trapped().await?;
            let again = call.replace("public.", "gone.").replace("OTHER", "ANOTHER");
            victim.batch_execute(&again).await?;
            field.nothing_trapped().await?;
        }
    }
    Ok(())
}

/// Waits until this many sessions of the database wait for a table.
async fn until_waiting_for_tables(client: &Client, count: i64) -> Result<()> {
    eventually("the sessions to wait for the table", async || {
        let sql = "select count(*) from pg_locks
                    where not granted and locktype = 'relation'
                      and database = (select oid from pg_database where datname = current_database())";
        let waiting: i64 = client.query_one(sql, &[]).await?.get(0);
        Ok((waiting == count).then_some(()))
    })
    .await
}
