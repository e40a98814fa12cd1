use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, ensure};
use tokio_postgres::{Client, NoTls};

use crate::Cluster;

/// A separate database with the extension, and two roles for it: a caller that may execute the extension's
/// functions and nothing else, and a stranger without any rights.
#[derive(Debug)]
pub struct Database {
    name: String,
    superuser_url: String,
    caller_url: String,
    stranger_url: String,
}

impl Database {
    /// Creates the database, the extension and the roles.
    pub async fn create(cluster: &Cluster) -> Result<Self> {
        Self::create_with(cluster, "create extension honcho").await
    }

    /// The same with the SQL of a release.
    pub async fn create_released(cluster: &Cluster, version: &str) -> Result<Self> {
        Self::create_with(
            cluster,
            &format!("create extension honcho version '{version}'"),
        )
        .await
    }

    /// The same without the extension, which the test creates itself.
    pub async fn create_empty(cluster: &Cluster) -> Result<Self> {
        Self::create_with(cluster, "").await
    }

    /// An empty one that is sorted as in English by default, where `a` is before `B`.
    pub async fn create_sorted_as_english(cluster: &Cluster) -> Result<Self> {
        Self::create_at_with(
            |user, database| cluster.url(user, database),
            "locale_provider icu icu_locale 'en'",
            "",
        )
        .await
    }

    /// Creates the database, the extension and the roles on a server.
    ///
    /// # Arguments
    /// `url`: makes the server's URL for a user and a database.
    pub async fn create_at(url: impl Fn(&str, &str) -> String) -> Result<Self> {
        Self::create_at_with(url, "", "create extension honcho").await
    }

    async fn create_with(cluster: &Cluster, create_extension: &str) -> Result<Self> {
        Self::create_at_with(
            |user, database| cluster.url(user, database),
            "",
            create_extension,
        )
        .await
    }

    async fn create_at_with(
        url: impl Fn(&str, &str) -> String,
        options: &str,
        create_extension: &str,
    ) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let caller = format!("{name}_caller");
        let stranger = format!("{name}_stranger");
        let admin = connect(&url("postgres", "postgres")).await?;
        admin
            .batch_execute(&format!(
                "create database {name} template template0 {options}"
            ))
            .await?;
        let database = Self {
            superuser_url: url("postgres", &name),
            caller_url: url(&caller, &name),
            stranger_url: url(&stranger, &name),
            name,
        };
        let superuser = database.connect().await?;
        superuser
            .batch_execute(&format!(
                "{create_extension};
                 create role {caller} login;
                 create role {stranger} login;
                 grant execute on all functions in schema public to {caller};"
            ))
            .await?;
        Ok(database)
    }

    /// The database of the same name and its roles in another cluster, where they may not be yet.
    pub fn in_cluster(&self, cluster: &Cluster) -> Self {
        Self {
            name: self.name.clone(),
            superuser_url: cluster.url("postgres", &self.name),
            caller_url: cluster.url(&format!("{}_caller", self.name), &self.name),
            stranger_url: cluster.url(&format!("{}_stranger", self.name), &self.name),
        }
    }

    /// The database's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Connects as the superuser.
    pub async fn connect(&self) -> Result<Client> {
        connect(&self.superuser_url).await
    }

    /// Connects as the role that may execute the extension's functions.
    pub async fn connect_as_caller(&self) -> Result<Client> {
        connect(&self.caller_url).await
    }

    /// Connects as the role without grants.
    pub async fn connect_as_stranger(&self) -> Result<Client> {
        connect(&self.stranger_url).await
    }

    /// The superuser's URL.
    pub fn superuser_url(&self) -> &str {
        &self.superuser_url
    }

    /// The URL of the role that may execute the extension's functions.
    pub fn caller_url(&self) -> &str {
        &self.caller_url
    }

    /// Creates a coupon.
    pub async fn create_coupon(&self, name: &str, amount: i32) -> Result<()> {
        let created: bool = self
            .connect()
            .await?
            .query_one("select honcho_create_coupon($1, $2)", &[&name, &amount])
            .await?
            .get(0);
        ensure!(created, "the coupon {name} was there before");
        Ok(())
    }

    /// Fails unless the books of this database are right; see [`books`].
    pub async fn books(&self) -> Result<()> {
        books(&self.connect().await?).await
    }
}

/// Connects, and drives the connection in a task until the client is dropped.
pub async fn connect(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(async move {
        // The client's next query reports a broken connection.
        let _ = connection.await;
    });
    Ok(client)
}

/// Fails unless `honcho_verify()` covers every coupon and finds every invariant to hold. The client must be
/// allowed to read the tables.
pub async fn books(client: &Client) -> Result<()> {
    let broken = client
        .query(
            "select format('%s: %s: %s', coupon_name, invariant, detail)
               from honcho_verify() where holds is not true",
            &[],
        )
        .await?;
    let broken: Vec<String> = broken.iter().map(|row| row.get(0)).collect();
    ensure!(
        broken.is_empty(),
        "the books are broken:\n{}",
        broken.join("\n")
    );
    let overlooked: i64 = client
        .query_one(
            "select count(*) from coupons
              where name not in (select coupon_name from honcho_verify())",
            &[],
        )
        .await?
        .get(0);
    ensure!(
        overlooked == 0,
        "honcho_verify() overlooked {overlooked} coupons"
    );
    Ok(())
}
