//! Upgrades from every release: no data is lost, and the schema is the one that `create extension` makes.

use std::collections::HashSet;

use anyhow::{Context, Result, ensure};
use honcho_tests::{Database, connect};
use tokio_postgres::Client;

use crate::{
    cluster,
    fixtures::{api::Api, sql::releases},
};

async fn text(client: &Client, query: &str) -> Result<String> {
    Ok(client.query_one(query, &[]).await?.get(0))
}

/// Uses all functions that every release has, with the current library.
async fn sell(client: &Client, coupon: &str) -> Result<()> {
    let created: bool = client
        .query_one("select honcho_create_coupon($1, 5)", &[&coupon])
        .await?
        .get(0);
    assert!(created);
    let outcomes: Vec<String> = client
        .query(
            "select honcho_claim('anna', $1)::text
             union all select outcome::text
             from honcho_claim_batch($1, array['anna', 'bert']) order by 1",
            &[&coupon],
        )
        .await?
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(outcomes, ["already_claimed", "claimed", "claimed"]);
    let id: i64 = client
        .query_one("select honcho_claim_or_raise('carl', $1)", &[&coupon])
        .await?
        .get(0);
    let row = client
        .query_one(
            "select id, user_id, coupon_name, claimed_at <= clock_timestamp()
             from honcho_get_claim('carl', $1)",
            &[&coupon],
        )
        .await?;
    assert_eq!(row.get::<_, i64>(0), id);
    assert_eq!(
        (row.get::<_, &str>(1), row.get::<_, &str>(2), row.get(3)),
        ("carl", coupon, true)
    );
    let users: Vec<String> = client
        .query("select user_id from honcho_list_claims($1)", &[&coupon])
        .await?
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(users, ["anna", "bert", "carl"]);
    let row = client
        .query_one(
            "select name, amount, remaining_amount, paused, starts_at is null, ends_at is null
             from honcho_get_coupon($1)",
            &[&coupon],
        )
        .await?;
    assert_eq!(
        (row.get(0), row.get(1), row.get(2)),
        (coupon, 5, 2),
        "the stock of {coupon}"
    );
    assert!(!row.get::<_, bool>(3) && row.get(4) && row.get(5));
    Ok(())
}

/// Uses the functions that came later, in one session from before the upgrade and one from after it.
async fn live_on(before: &Client, after: &Client, coupon: &str) -> Result<()> {
    for (client, sql, expected) in [
        (after, "honcho_release('anna', $1)::text", "released"),
        (after, "honcho_reserve('dora', $1, '1 hour', 'key')", "held"),
        (before, "honcho_reserve('emil', $1, '1 hour')", "held"),
        (after, "honcho_reserve('fred', $1, '1 hour')", "held"),
        // The session from before knows of the holds.
        (before, "honcho_claim('gina', $1)::text", "all_held"),
        (before, "honcho_claim('dora', $1)::text", "claimed"),
        (after, "honcho_claim('dora', $1, 'key')::text", "claimed"),
        (before, "honcho_confirm('emil', $1)::text", "claimed"),
        (after, "honcho_cancel('fred', $1)::text", "cancelled"),
        (before, "honcho_restock($1, 1)", "updated"),
        (after, "honcho_update_coupon($1, paused => true)", "updated"),
        (before, "honcho_claim('gina', $1)::text", "paused"),
        (
            after,
            "honcho_update_coupon($1, paused => false)",
            "updated",
        ),
        (before, "honcho_get_stock($1)", coupon),
        (before, "honcho_delete_coupon($1)::text", "in_use"),
    ] {
        let answer = text(
            client,
            &format!(
                "select ({})::text",
                sql.replace("$1", &format!("'{coupon}'"))
            ),
        )
        .await
        .context(sql)?;
        let answer = answer.trim_start_matches('(').split([',', ')']).next();
        assert_eq!(answer, Some(expected), "{sql}");
    }
    let kinds =
        "select string_agg(kind, ' ' order by id) from honcho_list_events(coupon_name => $1)";
    let kinds: String = before.query_one(kinds, &[&coupon]).await?.get(0);
    // A coupon from before the upgrade has no event of its creation.
    assert_eq!(
        kinds.trim_start_matches("created "),
        "released sold_out available_again restocked paused resumed"
    );
    Ok(())
}

/// All rows. An upgrade may add columns, so the rows after it contain the rows before.
const ROWS: &str = "select jsonb_build_object(
    'coupons', (select jsonb_agg(c order by id) from coupons c),
    'claims', (select jsonb_agg(c order by id) from claims c),
    'coupon_count', (select count(*) from coupons),
    'claim_count', (select count(*) from claims))";

/// The functions that the caller may execute.
const RIGHTS: &str = "select p.oid::regprocedure::text
    from pg_depend d join pg_proc p on d.classid = 'pg_proc'::regclass and d.objid = p.oid
    where d.refclassid = 'pg_extension'::regclass and d.deptype = 'e'
      and d.refobjid = (select oid from pg_extension where extname = 'honcho')
      and has_function_privilege(p.oid, 'execute')
    order by 1";

async fn rights(client: &Client) -> Result<Vec<String>> {
    let rows = client.query(RIGHTS, &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

#[tokio::test]
async fn upgrade_keeps_data_and_rights() -> Result<()> {
    for release in releases().await? {
        let database = Database::create_released(cluster(), &release).await?;
        let superuser = database.connect().await?;
        let caller = database.connect_as_caller().await?;
        let version = "select extversion from pg_extension where extname = 'honcho'";
        assert_eq!(text(&superuser, version).await?, release);
        // The release's SQL works with the current library, as it must between the installation of a new
        // package and the upgrade of each database.
        sell(&caller, "BEFORE").await?;
        database.books().await?;
        let rows = text(&superuser, &format!("select ({ROWS})::text")).await?;
        let may = rights(&caller).await?;
        assert!(!may.is_empty());
        let api = Api::start(database.caller_url()).await?;
        assert_eq!(
            api.claim("anna", "BEFORE").await?.shown(),
            "409 already_claimed"
        );

        superuser
            .batch_execute("alter extension honcho update")
            .await?;

        let built = "select default_version from pg_available_extensions where name = 'honcho'";
        assert_eq!(
            text(&superuser, version).await?,
            text(&superuser, built).await?
        );
        let kept = format!("select ({ROWS}) @> $1::text::jsonb");
        let kept: bool = superuser.query_one(&kept, &[&rows]).await?.get(0);
        assert!(kept, "not all is left of {rows}");
        let still = rights(&caller).await?;
        for function in &may {
            assert!(still.contains(function), "{function} lost its grants");
        }
        // Sessions from before the upgrade, new sessions and the service all continue.
        sell(&caller, "AFTER").await?;
        let new = database.connect_as_caller().await?;
        sell(&new, "LATER").await?;
        // The new functions have no grants yet.
        let grant = format!(
            "grant execute on all functions in schema public to {}_caller",
            database.name()
        );
        superuser.batch_execute(&grant).await?;
        for coupon in ["AFTER", "LATER"] {
            live_on(&caller, &new, coupon).await?;
        }
        sell(&caller, "BOTH").await?;
        live_on(&new, &caller, "BOTH").await?;
        assert_eq!(api.claim("dora", "BEFORE").await?.shown(), "200");
        assert_eq!(api.claim("emil", "BEFORE").await?.shown(), "200");
        assert_eq!(api.claim("fred", "BEFORE").await?.shown(), "409 sold_out");
        database.books().await?;
    }
    Ok(())
}

/// The unique keys of `claims`, by name.
async fn keys(client: &Client) -> Result<Vec<String>> {
    let keys = "select conname::text from pg_constraint
                where conrelid = 'claims'::regclass and contype = 'u' order by 1";
    let rows = client.query(keys, &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Objects that may depend on the key of 0.1.0, and statements with which their owner removes the dependency
/// and the key.
const NEEDS: [(&str, &str); 3] = [
    (
        "create table orders (user_id varchar, coupon_name varchar,
                              constraint claimed foreign key (user_id, coupon_name)
                                  references claims (user_id, coupon_name));
         insert into orders values ('anna', 'BEFORE')",
        "alter table orders drop constraint claimed;
         alter table claims drop constraint claims_user_id_coupon_name_key;
         alter table orders add constraint claimed foreign key (user_id, coupon_name)
             references claims (user_id, coupon_name)",
    ),
    (
        "alter table claims replica identity using index claims_user_id_coupon_name_key",
        "alter table claims replica identity using index claims_coupon_name_user_id_key;
         alter table claims drop constraint claims_user_id_coupon_name_key",
    ),
    (
        "create function claim_by_hand() returns void begin atomic
             insert into claims (user_id, coupon_name) values ('x', 'y')
             on conflict on constraint claims_user_id_coupon_name_key do nothing; end",
        "drop function claim_by_hand();
         alter table claims drop constraint claims_user_id_coupon_name_key",
    ),
];

#[tokio::test]
async fn upgrade_keeps_the_old_unique_key_if_something_depends_on_it() -> Result<()> {
    let (old, new) = (
        "claims_user_id_coupon_name_key",
        "claims_coupon_name_user_id_key",
    );
    for (need, let_go) in NEEDS {
        let database = Database::create_released(cluster(), "0.1.0").await?;
        let client = database.connect().await?;
        sell(&client, "BEFORE").await?;
        client.batch_execute(need).await?;
        client
            .batch_execute("alter extension honcho update")
            .await
            .with_context(|| format!("after {need}"))?;
        assert_eq!(keys(&client).await?, [new, old], "{need}");
        sell(&client, "AFTER").await?;
        database.books().await?;

        client.batch_execute(let_go).await?;
        assert_eq!(keys(&client).await?, [new], "{need}");
        sell(&client, "LATER").await?;
        database.books().await?;
    }
    let database = Database::create_released(cluster(), "0.1.0").await?;
    let client = database.connect().await?;
    client
        .batch_execute("alter extension honcho update")
        .await?;
    assert_eq!(keys(&client).await?, [new], "nothing needs the old key");
    Ok(())
}

/// Creates a database with the extension and describes the extension: its registration, its members, and
/// their definitions by `pg_dump`. As `pg_dump` leaves out members of extensions, they are detached first.
async fn schema(database: &str, create_extension: &str) -> Result<String> {
    cluster().run("createdb", ["--template=template0", database])?;
    let client = connect(&cluster().url("postgres", database)).await?;
    client.batch_execute(create_extension).await?;
    let registered = text(
        &client,
        "select concat_ws(e'\\n', extversion, extnamespace::regnamespace, extconfig::regclass[], extcondition,
                          (select string_agg(pg_describe_object(classid, objid, objsubid), e'\\n'
                                             order by pg_describe_object(classid, objid, objsubid) collate \"C\")
                           from pg_depend where refclassid = 'pg_extension'::regclass
                                            and refobjid = e.oid and deptype = 'e'))
         from pg_extension e where extname = 'honcho'",
    )
    .await?;
    client
        .batch_execute(
            "delete from pg_depend where refclassid = 'pg_extension'::regclass and deptype = 'e'
                 and refobjid = (select oid from pg_extension where extname = 'honcho');
             delete from pg_init_privs where privtype = 'e'",
        )
        .await?;
    let dump = cluster().run("pg_dump", ["--schema-only", database])?;
    let dump: Vec<&str> = str::from_utf8(&dump.stdout)?
        .lines()
        // These lines contain a random key.
        .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"))
        .collect();
    let dump = dump.join("\n");
    for object in [
        "CREATE TABLE public.claims",
        "CREATE FUNCTION public.honcho_claim(",
        "COMMENT ON COLUMN public.coupons.amount",
        "REVOKE ALL ON FUNCTION public.honcho_claim(",
    ] {
        ensure!(dump.contains(object), "the dump has no {object}:\n{dump}");
    }
    Ok(format!("{registered}\n{dump}"))
}

#[tokio::test]
async fn upgrade_makes_the_schema_that_create_extension_makes() -> Result<()> {
    let created = schema("created", "create extension honcho").await?;
    for release in releases().await? {
        let upgraded = schema(
            &format!("upgraded_from_{release}"),
            &format!("create extension honcho version '{release}'; alter extension honcho update"),
        )
        .await?;
        let lines = |one: &str, other: &str| -> Vec<String> {
            let known: HashSet<&str> = other.lines().collect();
            let unknown = one.lines().filter(|line| !known.contains(line));
            unknown.map(str::to_owned).collect()
        };
        assert!(
            upgraded == created,
            "after an upgrade from {release} there is too much: {:#?}, missing is: {:#?}, or the order differs:\n{upgraded}",
            lines(&upgraded, &created),
            lines(&created, &upgraded)
        );
    }
    Ok(())
}
