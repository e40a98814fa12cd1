//! Requests go to the shard on which their coupon lives, and lists come from all.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::fixtures::{
    api::{Answer, Api, answer},
    shards::{Callers, Shards},
};

/// Names with their places, and more than letters in them.
const PLACES: &str = include_str!("../../places.tsv");

fn names() -> Vec<String> {
    PLACES
        .lines()
        .map(|line| line.rsplit_once('\t').unwrap().0)
        .map(|name| {
            name.replace("\\\\", "\0")
                .replace("\\t", "\t")
                .replace("\\n", "\n")
                .replace('\0', "\\")
        })
        .collect()
}

async fn send(api: &Api, method: Method, path: &str, body: Option<Value>) -> Result<Answer> {
    let request = api.request(method, path);
    answer(match body {
        Some(body) => request.json(&body),
        None => request,
    })
    .await
}

/// Uses every route of one coupon, leaves three claims there, and returns its path.
async fn live(api: &Api, name: &str) -> Result<String> {
    let created = api.create(name, 5).await?;
    ensure!(created.status == 201, "{name}: {created:?}");
    let coupon = created.header("location").to_owned();
    let path = |rest: &str| format!("{coupon}{rest}");
    let batch = json!({ "user_ids": ["batch", "kept"] });
    let hold = json!({ "user_id": "holder", "ttl": 60 });
    let (get, post, delete) = (Method::GET, Method::POST, Method::DELETE);
    for (method, path, body, expected) in [
        (
            &post,
            "/api/coupons".to_owned(),
            Some(json!({ "name": name, "amount": 1 })),
            "409 coupon_exists",
        ),
        (&post, path("/claims"), Some(batch), "200"),
        (&get, path("/claims/batch"), None, "200"),
        (&get, path("/claims"), None, "200"),
        (&delete, path("/claims/batch"), None, "200"),
        (&get, path("/claims/batch"), None, "404 claim_not_found"),
        (&post, path("/holds"), Some(hold), "201"),
        (&get, path("/holds/holder"), None, "200"),
        (&get, path("/holds"), None, "200"),
        (&post, path("/holds/holder/confirm"), None, "200"),
        (&post, path("/restock"), Some(json!({ "delta": 1 })), "200"),
        (
            &Method::PATCH,
            path(""),
            Some(json!({ "amount": 7 })),
            "200",
        ),
        (&get, path("/stock"), None, "200"),
        (&get, path(""), None, "200"),
    ] {
        let answered = send(api, method.clone(), &path, body).await?;
        ensure!(
            answered.shown() == expected,
            "{name:?} {method} {path}: {answered:?}"
        );
    }
    for (user, expected) in [
        ("claimer", "200"),
        ("claimer", "409 already_claimed"),
        ("kept", "409 already_claimed"),
    ] {
        let answered = api.claim(user, name).await?;
        ensure!(
            answered.shown() == expected,
            "{name:?} {user}: {answered:?}"
        );
    }
    let shown = send(api, Method::GET, &coupon, None).await?;
    let expected = json!({
        "name": name, "amount": 7, "remaining_amount": 4, "claimed_by": ["kept", "holder", "claimer"],
    });
    ensure!(shown.body == expected, "{name:?}: {shown:?}");
    Ok(coupon)
}

#[tokio::test]
async fn coupon_lives_on_the_shard_of_its_name_and_nowhere_else() -> Result<()> {
    let shards = Shards::start(&[crate::cluster()], 4, &[]).await?;
    let names = names();
    let mut paths = Vec::new();
    for name in &names {
        paths.push(live(&shards.api, name).await?);
    }
    for (number, database) in shards.databases.iter().enumerate() {
        let client = database.connect().await?;
        let there = client
            .query(
                "select name, (select string_agg(user_id, ' ' order by id) from claims where coupon_name = name),
                        get_byte(sha256(convert_to(name, 'UTF8')), 0)
                   from coupons",
                &[],
            )
            .await?;
        let expected: BTreeSet<&str> = names
            .iter()
            .filter(|name| shards.number_of(name) == number)
            .map(|name| &**name)
            .collect();
        assert!(expected.len() > 5, "shard {number}: {expected:?}");
        let found: BTreeSet<&str> = there.iter().map(|row| row.get(0)).collect();
        assert_eq!(found, expected, "shard {number}");
        for row in &there {
            assert_eq!(row.get::<_, &str>(1), "kept holder claimer");
            assert_eq!(row.get::<_, i32>(2) % 4, i32::try_from(number)?);
        }
    }
    shards.books().await?;
    for coupon in &paths {
        let path = format!("{coupon}?claims=true");
        let deleted = send(&shards.api, Method::DELETE, &path, None).await?;
        assert_eq!(deleted.status, 204, "{path}: {deleted:?}");
    }
    for database in &shards.databases {
        let client = database.connect().await?;
        assert!(client.query("select from coupons", &[]).await?.is_empty());
    }
    shards.books().await
}

/// Reads a list to its end by `Link`, and returns the field `id` of all entries, with the number of pages.
async fn all_pages(api: &Api, path: &str, list: &str, id: &str) -> Result<(Vec<i64>, usize)> {
    let (mut ids, mut pages) = (Vec::new(), 0);
    let mut next = Some(path.to_owned());
    while let Some(path) = next {
        let page = send(api, Method::GET, &path, None).await?;
        ensure!(page.status == 200, "{path}: {page:?}");
        let entries = page.body[list].as_array().context("no list")?;
        for entry in entries {
            ids.push(entry[id].as_i64().context("no id")?);
        }
        pages += 1;
        let link = page.header("link");
        next = link
            .strip_prefix('<')
            .and_then(|link| link.split('>').next())
            .map(ToOwned::to_owned);
    }
    Ok((ids, pages))
}

#[tokio::test]
async fn pages_over_all_shards_meet_each_coupon_once_while_others_claim() -> Result<()> {
    let shards = Shards::start(&[crate::cluster()], 4, &[]).await?;
    let busy = shards.coupon_on_each("BUSY", 1_000_000).await?;
    let mut expected = 0;
    for n in 0..100 {
        let name = format!("coupon {n}");
        // More coupons on one shard than on the others.
        if n % 2 == 0 || shards.number_of(&name) == 2 {
            assert_eq!(shards.api.create(&name, 10).await?.status, 201);
            if n % 3 == 0 {
                assert_eq!(shards.api.claim("collector", &name).await?.status, 200);
                expected += 1;
            }
        }
    }
    let mut ids = Vec::new();
    for database in &shards.databases {
        let client = database.connect().await?;
        for row in client.query("select id from coupons", &[]).await? {
            ids.push(row.get::<_, i64>(0));
        }
    }
    ids.sort_unstable();
    let callers = Callers::start(&shards.api, &busy, 2, "pages");
    callers.until(&busy, "200", 10).await?;
    for limit in [1, 7, 1000] {
        let path = format!("/api/coupons?limit={limit}");
        let (found, pages) = all_pages(&shards.api, &path, "coupons", "id").await?;
        assert_eq!(found, ids, "limit {limit}");
        assert_eq!(pages, ids.len().div_ceil(limit), "limit {limit}");
        let path = format!("/api/users/collector/claims?limit={limit}");
        let (found, _) = all_pages(&shards.api, &path, "claims", "coupon_id").await?;
        assert_eq!(found.len(), expected, "limit {limit}");
        assert!(found.is_sorted_by(|one, next| one < next), "{found:?}");
    }
    let answers = callers.end().await?;
    assert_eq!(shards.check(&answers).await?, answers.len());
    shards.books().await
}

#[tokio::test]
async fn coupon_and_its_claimants_are_of_one_moment_on_every_shard() -> Result<()> {
    const READS: usize = 60;
    let shards = Shards::start(&[crate::cluster()], 4, &[]).await?;
    let coupons = shards.coupon_on_each("PROMO", 1_000_000).await?;
    let callers = Callers::start(&shards.api, &coupons, 8, "reads");
    callers.until(&coupons, "200", 10).await?;
    let mut readers = JoinSet::new();
    for coupon in coupons {
        let api = Arc::clone(&shards.api);
        readers.spawn(async move {
            let mut last = 0;
            for _ in 0..READS {
                let shown = api.show(&coupon).await?.body;
                let claimed_by = shown["claimed_by"].as_array().context("no list")?.len() as u64;
                let remaining = shown["remaining_amount"].as_u64().context("no stock")?;
                ensure!(
                    remaining + claimed_by == 1_000_000,
                    "{coupon}: {remaining} {claimed_by}"
                );
                ensure!(claimed_by >= last, "{coupon}: {claimed_by} after {last}");
                last = claimed_by;
            }
            Ok(last)
        });
    }
    while let Some(reader) = readers.join_next().await {
        assert!(reader?? > 10);
    }
    let answers = callers.end().await?;
    let told = shards.check(&answers).await?;
    eprintln!("{} reads of one moment, {told} claims told", 4 * READS);
    shards.books().await
}
