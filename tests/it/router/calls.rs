//! The functions of `honcho_router` against those of honcho: signatures and answers.

use anyhow::Result;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::{Router, number};
use crate::fixtures::sql::CALLS;

/// Names, arguments and results of the functions that callers use.
async fn signatures(client: &Client) -> Result<Vec<(String, Vec<String>)>> {
    let functions = "select p.proname || '(' || pg_get_function_arguments(p.oid) || ')',
                            format('select * from %I(%s)', p.proname,
                                   (select string_agg('null::' || t::regtype, ', ')
                                      from unnest(p.proargtypes::oid[]) t))
                       from pg_proc p
                      where p.pronamespace = 'public'::regnamespace and p.proname like 'honcho%'
                        and p.prorettype <> 'trigger'::regtype
                      order by 1";
    let mut signatures = Vec::new();
    for row in client.query(functions, &[]).await? {
        let call: &str = row.get(1);
        let result = client.prepare(call).await?;
        let columns = result.columns().iter();
        let columns = columns.map(|column| format!("{} {}", column.name(), column.type_()));
        signatures.push((row.get(0), columns.collect()));
    }
    Ok(signatures)
}

#[tokio::test]
async fn router_has_the_signatures_of_honcho() -> Result<()> {
    let router = Router::new(1).await?;
    let ours = signatures(&router.database.connect().await?).await?;
    let direct = signatures(&router.shards[0].connect().await?).await?;
    assert_eq!(ours, direct);
    assert_eq!(ours.len(), 27);
    let labels = "select array(select enumlabel::text from pg_enum
                                where enumtypid = 'public.honcho_outcome'::regtype order by enumsortorder)";
    let mut outcomes = Vec::new();
    for database in [&router.database, &router.shards[0]] {
        let row = database.connect().await?.query_one(labels, &[]).await?;
        outcomes.push(row.get::<_, Vec<String>>(0));
    }
    assert_eq!(outcomes[0], outcomes[1]);
    Ok(())
}

/// The rows that a call returns, without times and the name of the session's user.
async fn answers(client: &Client, call: &str) -> Result<Vec<String>> {
    let mut rows = Vec::new();
    for message in client.simple_query(call).await? {
        if let SimpleQueryMessage::Row(row) = message {
            let row = row.get(0).unwrap_or_default();
            let fields = row.split(',').filter(|field| !field.contains("+00"));
            rows.push(fields.collect::<Vec<_>>().join(","));
        }
    }
    Ok(rows)
}

#[tokio::test]
async fn router_answers_as_honcho_does() -> Result<()> {
    let router = Router::new(1).await?;
    let direct = crate::database().await?;
    // For the same ids.
    number(crate::cluster(), &direct, 0)?;
    let sessions = [
        direct.connect_as_caller().await?,
        router.database.connect_as_caller().await?,
    ];
    for session in &sessions {
        session
            .batch_execute("select honcho_create_coupon('PROMO', 20)")
            .await?;
    }
    for call in CALLS {
        if call == "select honcho_list_events()" {
            continue;
        }
        let [direct, routed] = [
            answers(&sessions[0], call).await?,
            answers(&sessions[1], call).await?,
        ];
        assert_eq!(direct, routed, "{call}");
    }
    direct.books().await?;
    router.books().await
}

#[tokio::test]
async fn times_and_arrays_arrive_as_they_are_meant() -> Result<()> {
    let router = Router::new(2).await?;
    let [name] = &router.names(1, 1).await?[..] else {
        panic!("one name");
    };
    let client = router.database.connect_as_caller().await?;
    let stored = format!(
        "select starts_at = '2027-02-01 10:00+00' and ends_at = '2027-03-04 10:00+00'
           from coupons where name = '{name}'"
    );
    let shard = router.shards[1].connect().await?;
    for style in ["ISO, YMD", "SQL, DMY", "Postgres, MDY", "German"] {
        client
            .batch_execute(&format!(
                "set datestyle = '{style}'; set timezone = 'Asia/Kolkata'"
            ))
            .await?;
        let created = format!(
            "select honcho_create_coupon('{name}', 5, timestamptz '2027-02-01 10:00+00',
                                         timestamptz '2027-03-04 10:00+00')"
        );
        client.batch_execute(&created).await?;
        let row = shard.query_one(&stored, &[]).await?;
        assert!(row.get::<_, bool>(0), "{style}");
        let purged = "select honcho_purge_events(timestamptz '2020-05-12 00:00+00')";
        let row = client.query_one(purged, &[]).await?;
        assert_eq!(row.get::<_, i32>(0), 0, "{style}");
        client
            .batch_execute(&format!(
                "select honcho_update_coupon('{name}', starts_at => '-infinity',
                                             ends_at => timestamptz '2999-02-01 10:00+00')"
            ))
            .await?;
        let changed = "select from coupons where ends_at = '2999-02-01 10:00+00'";
        assert_eq!(shard.query(changed, &[]).await?.len(), 1, "{style}");
        for (users, names) in [("[5:5]={ann}", "[5:5]={@}"), ("{{bob}}", "{{@}}")] {
            let names = names.replace('@', &format!("\"{name}\""));
            let many = format!("select outcome::text from honcho_claim_many('{users}', '{names}')");
            let row = client.query_one(&many, &[]).await?;
            assert_eq!(row.get::<_, &str>(0), "claimed", "{many}");
        }
        let deleted = format!("select honcho_delete_coupon('{name}', true)");
        client.batch_execute(&deleted).await?;
    }
    router.books().await
}
