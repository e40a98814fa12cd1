//! Long lists: streamed, from one snapshot, in little memory.

use anyhow::{Context, Result, ensure};
use tokio::io::AsyncReadExt;

use crate::fixtures::{
    MIB,
    api::Api,
    long_list::{check_list, create_claimed, read_list},
    raw_client::RawClient,
};

#[tokio::test]
async fn lists_of_any_length_are_complete() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    for claims in [0, 1, 999, 1000, 1001, 1999, 2000, 2001, 5000] {
        let name = format!("PROMO_{claims}");
        create_claimed(&database, &name, claims).await?;
        let shown = api.show(&name).await?;
        assert_eq!(shown.status, 200);
        check_list(&shown.body, claims);
    }
    database.books().await
}

#[tokio::test]
async fn long_list_is_one_snapshot_in_little_memory() -> Result<()> {
    let claims = 300_000;
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    create_claimed(&database, "PROMO", claims).await?;
    // The memory of a first request and connection is not the list's.
    assert_eq!(api.claim("nobody", "NOTHING").await?.status, 404);
    let before = api.service.resident_bytes()?;

    let mut response = api.show_request("PROMO").send().await?;
    let first = response.chunk().await?.unwrap().to_vec();
    // The list has 30 MB and the client does not read, so the service cannot have sent all of it.
    for n in 0..10 {
        assert_eq!(api.claim(&format!("late_{n}"), "PROMO").await?.status, 200);
    }
    check_list(&read_list(response, first).await?, claims);
    let grown = api.service.peak_resident_bytes()?.saturating_sub(before);
    assert!(grown < 32 * MIB, "the service grew by {} KiB", grown / 1024);

    assert_eq!(api.show("PROMO").await?.body["remaining_amount"], 990);
    database.books().await
}

#[tokio::test]
async fn long_list_is_of_one_moment_among_releases_and_holds() -> Result<()> {
    let claims = 100_000;
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    create_claimed(&database, "PROMO", claims).await?;
    for n in 0..10 {
        let user = format!("holder {n}");
        assert_eq!(api.reserve(&user, "PROMO", 600).await?.status, 201);
    }
    let mut response = api.show_request("PROMO").send().await?;
    let first = response.chunk().await?.unwrap().to_vec();
    // The client does not read, so the service cannot have read all of the list. Ten of its end go, and more come
    // than went.
    let user = |n: i32| format!("{n:u>100}");
    let gone = claims - 10..claims;
    for n in gone.clone() {
        assert_eq!(api.release(&user(n), "PROMO").await?.status, 200, "{n}");
    }
    for n in 0..10 {
        let holder = format!("holder {n}");
        assert_eq!(api.confirm(&holder, "PROMO").await?.status, 200);
        assert_eq!(api.claim(&format!("late {n}"), "PROMO").await?.status, 200);
    }
    // A claim that was released and made again is a later one.
    assert_eq!(api.claim(&user(claims - 1), "PROMO").await?.status, 200);
    let list = read_list(response, first).await?;
    assert_eq!(list["amount"], claims + 1000);
    assert_eq!(list["remaining_amount"], 990);
    let shown = list["claimed_by"].as_array().context("no list")?;
    let expected: Vec<_> = (1..=claims)
        .filter(|n| !gone.contains(n))
        .map(user)
        .collect();
    assert!(
        shown
            .iter()
            .map(|user| user.as_str())
            .eq(expected.iter().map(|user| Some(&**user))),
        "{} users",
        shown.len()
    );
    database.books().await
}

#[tokio::test]
async fn connections_keep_no_buffers_of_large_answers() -> Result<()> {
    let database = crate::database().await?;
    let client = database.connect().await?;
    client
        .batch_execute(
            "select honcho_create_coupon(lpad(n::text, 200, 'n'), 1) from generate_series(1, 1000) n",
        )
        .await?;
    let api = Api::start(database.caller_url()).await?;
    let paths = ["/docs/swagger-ui-bundle.js", "/api/coupons?limit=1000"];
    let read = async |path: &str| -> Result<RawClient> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: here\r\naccept-encoding: gzip\r\n\r\n");
        let mut client = RawClient::connect(api.service.address()).await?;
        client.send(&request).await?;
        let mut received = Vec::new();
        let mut whole = usize::MAX;
        while received.len() < whole {
            ensure!(
                client.stream.read_buf(&mut received).await? > 0,
                "no whole answer"
            );
            if whole == usize::MAX
                && let Some(end) = received.windows(4).position(|part| part == b"\r\n\r\n")
            {
                let head = std::str::from_utf8(&received[..end])?;
                let (_, length) = head.split_once("content-length: ").context("no length")?;
                let length = length.lines().next().context("no length")?;
                whole = end + 4 + length.parse::<usize>()?;
                ensure!(whole > 300_000, "{path}: {head}");
            }
        }
        Ok(client)
    };
    // The memory of the first answers is not kept by connections.
    let mut open = Vec::new();
    for path in paths {
        open.push(read(path).await?);
    }
    let before = api.service.resident_bytes()?;
    for _ in 0..100 {
        for path in paths {
            open.push(read(path).await?);
        }
    }
    // If the answers were kept, they would be 80 MB. Each thread keeps some of the memory that it has freed.
    let grown = api.service.resident_bytes()?.saturating_sub(before);
    assert!(grown < 32 * MIB, "the service grew by {} KiB", grown / 1024);
    Ok(())
}
