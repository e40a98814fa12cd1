//! Settings of several databases, and the refusal of wrong lists.

use anyhow::Result;
use honcho_tests::Database;

use crate::fixtures::{
    program::{refused, run},
    scrape::Scrape,
    shards::Shards,
};

const A: &str = "postgresql://user@a.example/honcho";
const B: &str = "postgres://user@b1.example,b2.example/honcho";

#[test]
fn wrong_lists_of_shards_are_refused_with_the_reason() -> Result<()> {
    let secret = "postgresql://user:s3cret@a.example/honcho?ssl=1";
    for (list, said) in [
        (" ".to_owned(), "lists 0 databases: there must be 2, 4, 8"),
        (A.to_owned(), "lists 1 databases: there must be 2, 4, 8"),
        (
            format!("{A} {B},{secret}"),
            "shard 1 holds a second URL: separate URLs by blanks",
        ),
        (format!("{A} {B} {A}"), "lists 3 databases"),
        (
            (0..512).map(|n| format!("{A}{n} ")).collect(),
            "lists 512 databases",
        ),
        (
            format!("{A} host=b.example"),
            "shard 1 must begin with postgresql://",
        ),
        (
            format!("{A} {B} {B}2 {A}"),
            "shard 3 is the same database as shard 0",
        ),
        (format!("{B} {secret}"), "shard 1 "),
    ] {
        let variable = [("DATABASE_SHARDS", &*list)];
        refused(&["--check"], &variable, &format!("DATABASE_SHARDS: {said}"))?;
    }
    let both = [("DATABASE_SHARDS", A), ("DATABASE_URL", B)];
    refused(
        &["--check"],
        &both,
        "DATABASE_SHARDS: is set, but DATABASE_URL is, too",
    )
}

#[test]
fn lists_of_shards_are_read_from_variable_flags_and_file() -> Result<()> {
    let list = format!(" {A}\n{B} ");
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), format!("database_shards = [{A:?}, {B:?}]"))?;
    let named = file.path().to_str().unwrap();
    for (flags, environment) in [
        (vec!["--check"], vec![("DATABASE_SHARDS", &*list)]),
        (
            vec!["--check", "--database-shards", A, "--database-shards", B],
            vec![],
        ),
        (vec!["--check", "--config", named], vec![]),
    ] {
        let output = run(&flags, &environment)?;
        assert!(output.status.success(), "{flags:?}: {output:?}");
    }
    Ok(())
}

#[tokio::test]
async fn metrics_name_the_shard_only_if_there_are_several() -> Result<()> {
    for count in [1, 2] {
        let shards = Shards::start(&[crate::cluster()], count, &[]).await?;
        shards.api.until_ready().await?;
        shards.coupon_on_each("PROMO", 1).await?;
        let scrape = Scrape::of(&shards.api.service).await?;
        let named = |name: &str| {
            let series = scrape.series().into_iter();
            let of_metric = series.filter(|series| series.starts_with(name));
            of_metric.map(ToOwned::to_owned).collect::<Vec<_>>()
        };
        let pools = named("honcho_pool_connections{");
        let permits = named("honcho_permit_timeouts_total{kind=\"read\"");
        if count == 1 {
            assert!(!scrape.0.contains("shard"), "{}", scrape.0);
            assert_eq!(pools.len(), 2, "{pools:?}");
            assert_eq!(scrape.value("honcho_ready{reason=\"none\"}"), 1.0);
        } else {
            assert_eq!(pools.len(), 4, "{pools:?}");
            assert!(
                pools.contains(&"honcho_pool_connections{pool=\"fast\",shard=\"1\"}".to_owned()),
                "{pools:?}"
            );
            assert_eq!(permits.len(), 2, "{permits:?}");
        }
        shards.books().await?;
    }
    Ok(())
}

/// With a list in the wrong order, coupons would be created on shards that are not searched for their names.
#[tokio::test]
async fn shards_in_another_order_are_not_used() -> Result<()> {
    let mut shards = Shards::start(&[crate::cluster()], 4, &[]).await?;
    shards.api.until_ready().await?;
    let coupons = shards.coupon_on_each("PROMO", 10).await?;
    shards.databases.swap(1, 3);
    // Ids that have not been set.
    shards.databases[2] = Database::create(crate::cluster()).await?;
    shards.api = Shards::start_service(&shards.databases, &[]).await?;
    for (number, expected) in [
        "200",
        "503 unavailable",
        "503 unavailable",
        "503 unavailable",
    ]
    .into_iter()
    .enumerate()
    {
        let claimed = shards.api.claim("user", &coupons[number]).await?;
        assert_eq!(claimed.shown(), expected, "shard {number}");
    }
    for said in [
        "the database is not shard 1: its coupons' ids begin at 4 in steps of 256",
        "the database is not shard 2: its coupons' ids begin at 1 in steps of 1",
        "the database is not shard 3: its coupons' ids begin at 2 in steps of 256",
    ] {
        shards.api.service.logged(said).await?;
    }
    let scrape = Scrape::of(&shards.api.service).await?;
    assert!(
        scrape
            .0
            .contains("honcho_ready{reason=\"other_shard\",shard=\"1\"} 0"),
        "{}",
        scrape.0
    );
    // They begin as those of the first shard do, and each would be another shard's too.
    shards.databases[0] = Database::create(crate::cluster()).await?;
    shards.api = Shards::start_service(&shards.databases, &[]).await?;
    let claimed = shards.api.claim("user", &coupons[0]).await?;
    assert_eq!(claimed.shown(), "503 unavailable");
    let said = "the database is not shard 0: its coupons' ids begin at 1 in steps of 1";
    shards.api.service.logged(said).await?;
    shards.books().await
}
