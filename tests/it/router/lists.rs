//! Places of coupons, their ids, and what is read from one shard or all of them.

use std::{collections::BTreeSet, fs::File, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use honcho_tests::Database;
use tokio::sync::Semaphore;

use super::{Router, claim, number, sqlstate};

#[tokio::test]
async fn places_are_those_of_the_golden_file() -> Result<()> {
    let router = Router::new(1).await?;
    let client = router.database.connect().await?;
    client
        .batch_execute("create table places (name text, place integer)")
        .await?;
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/places.tsv");
    let copied = crate::cluster()
        .program("psql")
        .args([
            "-d",
            router.database.name(),
            "-c",
            "\\copy places from pstdin",
        ])
        .stdin(File::open(golden)?)
        .output()?;
    ensure!(copied.status.success(), "{copied:?}");
    let count: i64 = client
        .query_one("select count(*) from places", &[])
        .await?
        .get(0);
    assert!(count > 50, "{count} places");
    let other = "select name, place, honcho_router.place(name) as ours from places
                  where honcho_router.place(name) is distinct from place";
    let other = client.query(other, &[]).await?;
    assert!(other.is_empty(), "{other:?}");
    Ok(())
}

#[tokio::test]
async fn call_goes_to_the_shard_of_its_place() -> Result<()> {
    let router = Router::new(4).await?;
    let client = router.database.connect_as_caller().await?;
    for n in 0..20 {
        let name = format!("name {n}");
        let sql =
            "select honcho_create_coupon($1, 1), honcho_router.place($1), honcho_router.shard($1)";
        let row = client.query_one(sql, &[&name]).await?;
        let (place, shard): (i32, i32) = (row.get(1), row.get(2));
        assert_eq!(shard, place % 4);
        let shard = router.shards[shard as usize].connect().await?;
        let found = "select from coupons where name = $1";
        assert_eq!(shard.query(found, &[&name]).await?.len(), 1, "{name}");
    }
    router.books().await
}

#[tokio::test]
async fn pages_of_all_shards_hold_each_coupon_once() -> Result<()> {
    let router = Router::new(4).await?;
    let client = router.database.connect_as_caller().await?;
    let names: BTreeSet<String> = (0..50).map(|n| format!("name {n}")).collect();
    for name in &names {
        let sql = "select honcho_create_coupon($1, 1)";
        client.query_one(sql, &[name]).await?;
        assert_eq!(claim(&client, "ann", name).await?, "claimed");
    }
    for page in [
        "select id, name from honcho_list_coupons($1, 3)",
        "select coupon_id, coupon_name from honcho_list_user_claims('ann', $1, 3)",
    ] {
        let (mut after, mut listed) = (0, Vec::new());
        loop {
            let rows = client.query(page, &[&after]).await?;
            assert!(rows.len() <= 3, "{page}: {} rows", rows.len());
            for row in &rows {
                let id: i64 = row.get(0);
                assert!(id > after, "{page}: {id} after {after}");
                after = id;
                listed.push(row.get::<_, String>(1));
            }
            if rows.len() < 3 {
                break;
            }
        }
        assert_eq!(listed.len(), names.len(), "{page}");
        assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), names, "{page}");
    }
    let checked = "select coupon_name from honcho_verify() where invariant = 'stock'";
    let checked = client.query(checked, &[]).await?;
    let checked: Vec<String> = checked.iter().map(|row| row.get(0)).collect();
    assert_eq!(checked, names.into_iter().collect::<Vec<_>>());
    router.books().await
}

/// Honcho sorts names by their bytes. The router must not sort them by the collation of its own database.
#[tokio::test]
async fn rows_are_in_the_order_of_honcho_whatever_the_collation() -> Result<()> {
    let cluster = crate::cluster();
    let database = Database::create_sorted_as_english(cluster).await?;
    let router = Router::in_database(database, &[cluster; 2]).await?;
    let direct = crate::database().await?;
    let mut names = vec!["a", "B", "Z", "\u{e9}", "_", "9", "10"];
    let owner = router.database.connect().await?;
    let sorted = "select array(select name from unnest($1::text[]) name order by name)";
    let sorted = owner.query_one(sorted, &[&names]).await?;
    let shards = "select count(distinct honcho_router.shard(name)) from unnest($1::text[]) name";
    let shards: i64 = owner.query_one(shards, &[&names]).await?.get(0);
    assert_eq!(shards, 2);
    for database in [&router.database, &direct] {
        let session = database.connect_as_caller().await?;
        for name in &names {
            let create = "select honcho_create_coupon($1, 9)";
            session.query_one(create, &[name]).await?;
        }
        for user in &names {
            let reserve = "select honcho_reserve($1, 'a', '1 hour')::text";
            session.query_one(reserve, &[user]).await?;
        }
    }
    for database in router.shards.iter().chain([&direct]) {
        let spoil = "update coupons set amount = amount + 1";
        database.connect().await?.batch_execute(spoil).await?;
    }
    let lists = async |database: &Database| {
        let mut lists = Vec::new();
        for list in [
            "select coupon_name from honcho_verify() where invariant = 'stock' and not holds",
            "select v::text from honcho_verify() v",
            "select user_id from honcho_list_holds('a', '10', 5)",
        ] {
            let rows = database.connect_as_caller().await?.query(list, &[]).await?;
            lists.push(rows.iter().map(|row| row.get(0)).collect());
        }
        anyhow::Ok::<Vec<Vec<String>>>(lists)
    };
    let routed = lists(&router.database).await?;
    assert_eq!(routed, lists(&direct).await?);
    names.sort_unstable();
    assert_eq!(routed[0], names);
    assert_ne!(sorted.get::<_, Vec<&str>>(0), names);
    Ok(())
}

#[tokio::test]
async fn numbered_shard_gives_ids_of_its_own() -> Result<()> {
    for shard in [0, 3, 255] {
        let database = crate::database().await?;
        let client = database.connect().await?;
        let mut given = BTreeSet::new();
        let first = shard as i64 + 1;
        let sequences = ["coupons", "claims", "coupon_events"];
        // Numbered, and numbered again after ids.
        for coupon in 0..6 {
            if coupon == 2 {
                // Its id is only known to the sequence.
                let delete = "select honcho_delete_coupon('coupon 1', true)";
                client.batch_execute(delete).await?;
            }
            if coupon == 4 {
                for table in sequences {
                    let behind = format!("alter sequence {table}_id_seq restart with {first}");
                    client.batch_execute(&behind).await?;
                }
            }
            if coupon % 2 == 0 {
                number(crate::cluster(), &database, shard)?;
                number(crate::cluster(), &database, shard)?;
            }
            let name = format!("coupon {coupon}");
            database.create_coupon(&name, 1).await?;
            assert_eq!(claim(&client, "ann", &name).await?, "claimed");
            let ids = "select c.id, l.id, (select max(id) from coupon_events)
                         from coupons c join claims l on l.coupon_name = c.name where c.name = $1";
            let row = client.query_one(ids, &[&name]).await?;
            let ids: [i64; 3] = [row.get(0), row.get(1), row.get(2)];
            assert_eq!(
                ids.map(|id| (id - first).rem_euclid(256)),
                [0; 3],
                "{ids:?}"
            );
            for (kind, id) in ids.into_iter().enumerate() {
                assert!(given.insert((kind, id)), "the id {id} was given twice");
            }
        }
        // The service reads these.
        let shape = "select seqstart, seqincrement from pg_sequence
                      where seqrelid = any ($1::text[]::regclass[])";
        let names = sequences.map(|table| format!("{table}_id_seq"));
        for row in client.query(shape, &[&names.to_vec()]).await? {
            assert_eq!((row.get(0), row.get(1)), (first, 256_i64));
        }
        database.books().await?;
    }
    ensure!(
        number(crate::cluster(), &crate::database().await?, 256).is_err(),
        "there is no shard 256"
    );
    Ok(())
}

#[tokio::test]
async fn database_with_ids_of_another_shard_is_refused() -> Result<()> {
    let cluster = crate::cluster();
    for first in [None, Some(0)] {
        let shard = Database::create(cluster).await?;
        if let Some(first) = first {
            number(cluster, &shard, first)?;
        }
        for coupon in ["a", "b"] {
            shard.create_coupon(coupon, 1).await?;
        }
        let error = number(cluster, &shard, 1).unwrap_err();
        let said = "coupons has ids that are not those of shard 1";
        assert!(error.to_string().contains(said), "{error}");
        // The ids go on as they were.
        shard.create_coupon("c", 1).await?;
        let client = shard.connect().await?;
        let step = "select max(id) - min(id) from coupons";
        let step: i64 = client.query_one(step, &[]).await?.get(0);
        assert_eq!(step, if first.is_some() { 512 } else { 2 });
        shard.books().await?;
    }
    Ok(())
}

#[tokio::test]
async fn coupon_and_its_claims_are_of_one_moment() -> Result<()> {
    let router = Router::new(2).await?;
    let coupon = router.create_coupon(1, 10_000).await?;
    // The claims that may be made: some more for each reading.
    let due = Arc::new(Semaphore::new(0));
    let writers: Vec<_> = (0..2)
        .map(|writer| {
            let due = Arc::clone(&due);
            let shard = router.shards[1].superuser_url().to_owned();
            let coupon = coupon.clone();
            tokio::spawn(async move {
                let shard = honcho_tests::connect(&shard).await?;
                let mut claims = 0;
                while let Ok(permit) = due.acquire().await {
                    permit.forget();
                    claims += 1;
                    claim(&shard, &format!("user {writer} {claims}"), &coupon).await?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    let reader = router.database.connect_as_caller().await?;
    let mut seen = BTreeSet::new();
    let mut wrong = Vec::new();
    for function in ["honcho_get_coupon", "honcho_get_stock"] {
        let sql = format!(
            "select c.amount - c.remaining_amount, count(l.id)
               from {function}($1) c left join honcho_list_claims($1, 0, 10000) l on true group by 1"
        );
        let statement = reader.prepare(&sql).await?;
        for _ in 0..120 {
            due.add_permits(30);
            let row = reader.query_one(&statement, &[&coupon]).await?;
            let (claimed, listed): (i32, i64) = (row.get(0), row.get(1));
            seen.insert(claimed);
            if i64::from(claimed) != listed {
                wrong.push((claimed, listed));
            }
        }
    }
    due.close();
    for writer in writers {
        writer.await??;
    }
    assert_eq!(wrong, [], "of 240");
    assert!(seen.len() > 100, "no load: {} moments", seen.len());
    router.books().await
}

#[tokio::test]
async fn list_shows_a_claim_of_its_own_statement_and_transaction() -> Result<()> {
    let router = Router::new(1).await?;
    let coupon = router.create_coupon(0, 10).await?;
    let session = router.database.connect().await?;
    session
        .batch_execute(&format!(
            "select honcho_reserve('holder', '{coupon}', '1 hour')"
        ))
        .await?;
    // All read the coupon first, and must not end the later list there.
    let calls = [
        format!("honcho_claim('ann', '{coupon}')"),
        format!("honcho_claim('keyed', '{coupon}', 'key')"),
        format!("honcho_claim_batch('{coupon}', '{{one}}')"),
        format!("honcho_claim_batch('{coupon}', '{{two}}', '{{key}}')"),
        format!("honcho_claim_many('{{three}}', '{{{coupon}}}')"),
        format!("honcho_claim_or_raise('four', '{coupon}')"),
        format!("honcho_confirm('holder', '{coupon}')"),
        format!("honcho_apply('{coupon}', '{{claim}}', '{{five}}')"),
    ];
    for (claims, call) in (1..).zip(&calls) {
        session
            .batch_execute(&format!(
                "do $$ begin
                     perform honcho_get_coupon('{coupon}');
                     perform {call};
                     assert (select count(*) from honcho_list_claims('{coupon}')) = {claims};
                 end $$"
            ))
            .await
            .with_context(|| call.clone())?;
    }
    // Another coupon's newest claim is not this one's.
    session
        .batch_execute("select honcho_create_coupon('OTHER', 1)")
        .await?;
    session
        .batch_execute(&format!(
            "do $$ begin
                 perform honcho_get_coupon('OTHER');
                 assert (select count(*) from honcho_list_claims('{coupon}')) = 8;
             end $$"
        ))
        .await?;
    session
        .batch_execute(&format!("begin; select honcho_get_coupon('{coupon}')"))
        .await?;
    let shard = router.shards[0].connect().await?;
    claim(&shard, "bob", &coupon).await?;
    let listed = session
        .query("select honcho_list_claims($1)", &[&coupon])
        .await?;
    assert_eq!(listed.len(), calls.len() + 1);
    Ok(())
}

#[tokio::test]
async fn what_one_shard_cannot_answer_is_refused() -> Result<()> {
    let router = Router::new(2).await?;
    let [one, two] = [
        router.create_coupon(0, 9).await?,
        router.create_coupon(1, 9).await?,
    ];
    let session = router.database.connect_as_caller().await?;
    let many = format!("select honcho_claim_many('{{ann,bob}}', '{{{one},{two}}}')");
    assert_eq!(sqlstate(&session, &many).await, "0A000");
    assert_eq!(
        sqlstate(&session, "select honcho_list_events()").await,
        "0A000"
    );
    let names = router.names(1, 2).await?;
    assert_eq!(names[0], two);
    let sql = "select array(select outcome::text from honcho_claim_many($1, $2) order by ordinal)";
    let row = session
        .query_one(sql, &[&vec!["ann", "bob"], &names])
        .await?;
    assert_eq!(row.get::<_, Vec<String>>(0), ["claimed", "not_found"]);
    router.books().await
}
