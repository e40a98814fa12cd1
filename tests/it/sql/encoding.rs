//! Databases with another encoding than UTF8: the extension refuses them, because it counts characters and
//! its strings are UTF-8.

use anyhow::Result;
use honcho_tests::connect;
use tokio_postgres::error::SqlState;

use crate::{
    cluster,
    fixtures::sql::{CALLS, CALLS_OF_0_2_0, releases},
};

const ENCODINGS: [&str; 4] = ["LATIN1", "WIN1252", "EUC_JP", "SQL_ASCII"];

async fn refused(client: &tokio_postgres::Client, sql: &str) {
    let error = client.batch_execute(sql).await.expect_err(sql);
    assert_eq!(
        error.code(),
        Some(&SqlState::FEATURE_NOT_SUPPORTED),
        "{sql}: {error:?}"
    );
}

#[tokio::test]
async fn other_encodings_than_utf8_are_refused() -> Result<()> {
    let releases = releases().await?;
    for encoding in ENCODINGS {
        let name = format!("in_{}", encoding.to_lowercase());
        let encoding = format!("--encoding={encoding}");
        let create = ["--template=template0", "--locale=C", &encoding, &name];
        cluster().run("createdb", create)?;
        let client = connect(&cluster().url("postgres", &name)).await?;
        refused(&client, "create extension honcho").await;

        // The SQL of earlier releases can be created there, but no function works.
        for release in &releases {
            let create = format!("create extension honcho version '{release}'");
            client.batch_execute(&create).await?;
            // 0.1.0 has no `honcho_list_coupons`.
            let calls = CALLS[..CALLS_OF_0_2_0]
                .iter()
                .filter(|call| release != "0.1.0" || !call.contains("list_coupons"));
            for call in calls {
                refused(&client, call).await;
            }
            // Elements of an array are not checked by the caller: this one has no valid characters.
            let bytes = "convert_from(decode('a1a1', 'hex'), current_setting('server_encoding'))";
            let claim = format!("select honcho_claim_batch('PROMO', array[repeat({bytes}, 300)])");
            refused(&client, &claim).await;
            refused(&client, "alter extension honcho update").await;
            client.batch_execute("drop extension honcho").await?;
        }
    }
    Ok(())
}
