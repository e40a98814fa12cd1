//! The extension `honcho_router`: the functions of honcho over several shards, which PL/Proxy calls.

mod calls;
mod installation;
mod limits;
mod lists;
mod many;
mod moves;
mod outages;
mod sqlstates;
mod transactions;

use std::{fs::File, process::Stdio};

use anyhow::{Result, ensure};
use honcho_tests::{Cluster, Database};
use tokio_postgres::Client;

use crate::fixtures::sql::claim_coupon as claim;

/// SQL that makes the role as which routers connect to shards, if the cluster does not have it.
const ROLE: &str = "do $$ begin
    create role honcho_router login;
exception when duplicate_object or unique_violation then null;
end $$";

/// A database with `honcho_router`, and the databases of its shards.
struct Router {
    database: Database,
    shards: Vec<Database>,
}

impl Router {
    /// Makes all of them in the shared cluster.
    async fn new(shards: usize) -> Result<Self> {
        Self::over(crate::cluster(), &vec![crate::cluster(); shards]).await
    }

    /// Makes them in these clusters.
    async fn over(cluster: &Cluster, clusters: &[&Cluster]) -> Result<Self> {
        Self::in_database(Database::create_empty(cluster).await?, clusters).await
    }

    /// Makes the shards in these clusters, and the router in an empty database.
    async fn in_database(database: Database, clusters: &[&Cluster]) -> Result<Self> {
        let mut options = Vec::new();
        let mut shards = Vec::new();
        for (n, cluster) in clusters.iter().enumerate() {
            let shard = Database::create(cluster).await?;
            let grant = "grant execute on all functions in schema public to honcho_router";
            shard
                .connect()
                .await?
                .batch_execute(&format!("{ROLE}; {grant}"))
                .await?;
            number(cluster, &shard, n)?;
            options.push(format!(
                "p{n} 'host={} port={} dbname={}'",
                cluster.directory().display(),
                cluster.port(),
                shard.name()
            ));
            shards.push(shard);
        }
        let set_up = format!(
            "{ROLE};
             create extension honcho_router cascade;
             create server honcho foreign data wrapper plproxy options (query_timeout '5', {});
             create user mapping for honcho_router server honcho options (user 'honcho_router');
             grant usage on foreign server honcho to honcho_router;
             grant usage on schema honcho_router to {caller};
             grant execute on all functions in schema public to {caller};
             grant execute on function honcho_router.place(text), honcho_router.shard(text) to {caller}",
            options.join(", "),
            caller = format!("{}_caller", database.name()),
        );
        database.connect().await?.batch_execute(&set_up).await?;
        Ok(Self { database, shards })
    }

    /// Creates a coupon on a shard, and returns its name.
    async fn create_coupon(&self, shard: i32, amount: i32) -> Result<String> {
        let names = self.names(shard, 1).await?;
        self.shards[shard as usize]
            .create_coupon(&names[0], amount)
            .await?;
        Ok(names[0].clone())
    }

    /// Names of coupons on a shard.
    async fn names(&self, shard: i32, count: i64) -> Result<Vec<String>> {
        let names = "select array(
                         select name from (select 'coupon ' || n as name from generate_series(1, 10000) n) names
                          where honcho_router.shard(name) = $1 limit $2
                     )";
        let client = self.database.connect().await?;
        Ok(client.query_one(names, &[&shard, &count]).await?.get(0))
    }

    /// Fails unless the books of all shards are right.
    async fn books(&self) -> Result<()> {
        for shard in &self.shards {
            shard.books().await?;
        }
        Ok(())
    }
}

/// Runs `shard.sql` in the database of a shard.
fn number(cluster: &Cluster, shard: &Database, number: usize) -> Result<()> {
    number_with(cluster, shard, number, &[])
}

/// The same with more arguments of psql.
fn number_with(cluster: &Cluster, shard: &Database, number: usize, more: &[&str]) -> Result<()> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../router/shard.sql");
    let output = cluster
        .program("psql")
        .args(["-q", "-d", shard.name(), "-v", &format!("shard={number}")])
        .args(more)
        .args(["-f", "-"])
        // The cluster's owner may lack access to the checkout.
        .stdin(File::open(script)?)
        .stdout(Stdio::null())
        .output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The SQLSTATE with which these statements end.
async fn sqlstate(client: &Client, sql: &str) -> String {
    match client.batch_execute(sql).await {
        Ok(()) => "00000".to_owned(),
        Err(error) => error.code().map_or_else(
            || format!("no SQLSTATE: {error}"),
            |code| code.code().to_owned(),
        ),
    }
}
