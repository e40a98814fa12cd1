//! A sale through the published port.

use anyhow::Result;
use honcho_tests::{concurrently, counts};
use serde_json::json;

use crate::stack::Stack;

#[tokio::test]
async fn sale_sells_exactly_the_stock() -> Result<()> {
    let stack = Stack::up().await?;
    for (name, users, stock) in [("SALE_SMALL", 50, 5), ("SALE_BIG", 500, 50)] {
        stack.create(name, stock).await?;
        let claimant = stack.claimant().await?;
        let outcomes = concurrently((0..users).map(|n| format!("user_{n}")).collect(), |user| {
            let claimant = claimant.clone();
            async move { Ok(async move { claimant.claim(&user, name).await }) }
        })
        .await?;
        let claimed = stock as usize;
        assert_eq!(
            outcomes,
            counts(&[("200", claimed), ("409 sold_out", users - claimed)])
        );
        let (status, shown) = stack.show(name).await?;
        assert_eq!(status, 200);
        assert_eq!(shown["remaining_amount"], 0);
        assert_eq!(shown["claimed_by"].as_array().map(Vec::len), Some(claimed));
    }
    stack.books().await
}

#[tokio::test]
async fn user_claims_only_once() -> Result<()> {
    let stack = Stack::up().await?;
    stack.create("DOUBLE_DIP", 10).await?;
    let claimant = stack.claimant().await?;
    let outcomes = concurrently(vec!["user".to_owned(); 15], |user| {
        let claimant = claimant.clone();
        async move { Ok(async move { claimant.claim(&user, "DOUBLE_DIP").await }) }
    })
    .await?;
    assert_eq!(outcomes, counts(&[("200", 1), ("409 already_claimed", 14)]));
    let (_, shown) = stack.show("DOUBLE_DIP").await?;
    assert_eq!(shown["remaining_amount"], 9);
    assert_eq!(shown["claimed_by"], json!(["user"]));
    stack.books().await
}
