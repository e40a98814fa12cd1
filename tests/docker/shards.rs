//! docker-compose.shards.yml: HTTP and SQL over two shards, one of which stops.

use anyhow::{Context as _, Result, ensure};
use honcho_tests::{connect, eventually};
use serde_json::json;
use tokio_postgres::{Client, error::SqlState};

use crate::stack::{compose_with, docker, variable};

/// The containers that run.
const SERVICES: [&str; 6] = [
    "shard-0",
    "shard-1",
    "haproxy-0",
    "haproxy-1",
    "router",
    "service",
];

/// Runs a command of compose on that file.
async fn shards(arguments: &[&str]) -> Result<String> {
    let project = format!("{}-shards", variable("COMPOSE_PROJECT_NAME")?);
    let environment = [
        ("COMPOSE_FILE", "docker-compose.shards.yml"),
        ("COMPOSE_PROJECT_NAME", &*project),
    ];
    compose_with(&environment, arguments).await
}

/// Sends a request and returns its status, with the code if it is a problem.
async fn sent(request: reqwest::RequestBuilder) -> Result<String> {
    let answer = request.send().await?;
    let status = answer.status().as_u16();
    let body: serde_json::Value = answer.json().await?;
    Ok(match body["code"].as_str() {
        Some(code) => format!("{status} {code}"),
        None => status.to_string(),
    })
}

/// Claims through the router, and returns the outcome or the SQLSTATE.
async fn claim(router: &Client, user: &str, coupon: &str) -> Result<String> {
    let call = "select honcho_claim($1, $2)::text";
    match router.query_one(call, &[&user, &coupon]).await {
        Ok(row) => Ok(row.get(0)),
        Err(error) => Ok(error.code().context("no SQLSTATE")?.code().to_owned()),
    }
}

/// The faults that `honcho_verify()` finds on a shard.
async fn faults(shard: &str) -> Result<String> {
    let sql = "select * from honcho_verify() where holds is not true";
    shards(&["exec", "-T", shard, "psql", "-XAtd", "honcho", "-c", sql]).await
}

#[tokio::test]
async fn http_and_sql_reach_both_shards_and_one_may_stop() -> Result<()> {
    shards(&["up", "--detach", "--no-build"]).await?;
    let http = reqwest::Client::new();
    let url = format!(
        "http://{}/api/coupons",
        shards(&["port", "service", "8080"]).await?
    );
    let address = shards(&["port", "router", "5432"]).await?;
    let password = variable("HONCHO_SERVICE_PASSWORD")?;
    let router_url = format!("postgresql://honcho_service:{password}@{address}/honcho");
    let router = eventually("the router", async || Ok(connect(&router_url).await.ok())).await?;

    let names =
        "select name from (select 'COUPON_' || n as name from generate_series(1, 99) n) names
                  where honcho_router.shard(name) = $1 limit 1";
    let mut coupons = Vec::new();
    for shard in 0..2_i32 {
        let name: String = router.query_one(names, &[&shard]).await?.get(0);
        let coupon = json!({ "name": name, "amount": 100 });
        eventually("a shard", async || {
            let created = sent(http.post(&url).json(&coupon)).await?;
            ensure!(
                ["201", "409 coupon_exists"].contains(&&*created) || created.starts_with("503"),
                "{created}"
            );
            Ok((!created.starts_with("503")).then_some(()))
        })
        .await?;
        coupons.push(name);
    }
    let claim_over_http = async |user: &str, coupon: &str| {
        let claim = json!({ "user_id": user, "coupon_name": coupon });
        sent(http.post(format!("{url}/claim")).json(&claim)).await
    };
    for coupon in &coupons {
        assert_eq!(claim_over_http("ann", coupon).await?, "200");
        assert_eq!(claim(&router, "ann", coupon).await?, "already_claimed");
        assert_eq!(claim(&router, "bob", coupon).await?, "claimed");
        assert_eq!(claim_over_http("bob", coupon).await?, "409 already_claimed");
    }

    shards(&["stop", "shard-1"]).await?;
    eventually("the outage", async || {
        Ok(
            (claim(&router, "eve", &coupons[1]).await? == SqlState::CANNOT_CONNECT_NOW.code())
                .then_some(()),
        )
    })
    .await?;
    assert_eq!(
        claim_over_http("eve", &coupons[1]).await?,
        "503 unavailable"
    );
    assert_eq!(claim_over_http("eve", &coupons[0]).await?, "200");
    assert_eq!(claim(&router, "joe", &coupons[0]).await?, "claimed");
    shards(&["up", "--detach", "--no-build"]).await?;
    eventually("the end of the outage", async || {
        let claimed = claim_over_http("eve", &coupons[1]).await?;
        Ok(["200", "409 already_claimed"]
            .contains(&&*claimed)
            .then_some(()))
    })
    .await?;
    eventually("the end of the outage", async || {
        let claimed = claim(&router, "joe", &coupons[1]).await?;
        Ok(["claimed", "already_claimed"]
            .contains(&&*claimed)
            .then_some(()))
    })
    .await?;
    for shard in ["shard-0", "shard-1"] {
        assert_eq!(faults(shard).await?, "");
    }

    // No root, and no file system to write to.
    for service in SERVICES {
        let container = shards(&["ps", "--all", "--quiet", service]).await?;
        let format = "--format={{.HostConfig.ReadonlyRootfs}} {{.Config.User}}";
        let inspected = docker(&["inspect", format, &container]).await?;
        let user = inspected.strip_prefix("true ").context(inspected.clone())?;
        ensure!(!["", "root", "0"].contains(&user), "{service}: {inspected}");
    }
    shards(&["down", "--volumes"]).await?;
    Ok(())
}
