use anyhow::Result;

#[tokio::test]
async fn a_claim_is_taken_from_the_stock() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 2).await?;
    let client = database.connect_as_caller().await?;
    let outcome: String = client
        .query_one("select honcho_claim('user_1', 'PROMO')::text", &[])
        .await?
        .get(0);
    assert_eq!(outcome, "claimed");
    database.books().await
}
