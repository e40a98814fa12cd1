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
    assert!(grown < 16 * MIB, "the service grew by {} KiB", grown / 1024);

    assert_eq!(api.show("PROMO").await?.body["remaining_amount"], 990);
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
    // If the answers were kept, they would be 80 MB.
    let grown = api.service.resident_bytes()?.saturating_sub(before);
    assert!(grown < 16 * MIB, "the service grew by {} KiB", grown / 1024);
    Ok(())
}
