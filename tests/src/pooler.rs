use std::{
    fs::{self, File},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail};
use tokio::net::TcpStream;

use crate::{Cluster, Database, cluster::free_port, eventually};

/// A PgBouncer in front of a cluster, on a free port of the loopback address, killed when dropped. It accepts
/// the caller of one database.
#[derive(Debug)]
pub struct Pooler {
    child: Child,
    address: SocketAddr,
    log: PathBuf,
    url: String,
}

impl Pooler {
    /// Starts the PgBouncer that `$PGBOUNCER` names and waits until it takes connections.
    ///
    /// # Arguments
    /// `settings`: lines of the section `[pgbouncer]` of its configuration.
    pub async fn start(cluster: &Cluster, database: &Database, settings: &str) -> Result<Self> {
        Self::start_program(&program()?, cluster, database, settings).await
    }

    /// The same with the PgBouncer that `$NEW_PGBOUNCER` names, which is of version 1.21 or newer.
    pub async fn start_new(cluster: &Cluster, database: &Database, settings: &str) -> Result<Self> {
        let program = std::env::var("NEW_PGBOUNCER")
            .context("NEW_PGBOUNCER must name the program (make test-scale does)")?;
        Self::start_program(&program, cluster, database, settings).await
    }

    async fn start_program(
        program: &str,
        cluster: &Cluster,
        database: &Database,
        settings: &str,
    ) -> Result<Self> {
        let port = free_port()?;
        let caller = format!("{}_caller", database.name());
        // It runs as the cluster's owner, because it refuses to run as root.
        let file = |name: &str| cluster.directory().join(format!("pooler-{port}.{name}"));
        fs::write(file("users"), format!("\"{caller}\" \"\"\n"))?;
        let configuration = format!(
            "[databases]\n* = host={host} port={server}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {users}\n{settings}\n",
            host = cluster.directory().display(),
            server = cluster.port(),
            users = file("users").display(),
        );
        fs::write(file("ini"), configuration)?;
        let log = File::create(file("log"))?;
        let child = cluster
            .program(program)
            .arg(file("ini"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("PgBouncer did not start")?;
        let mut pooler = Self {
            child,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            log: file("log"),
            url: format!("postgresql://{caller}@127.0.0.1:{port}/{}", database.name()),
        };
        eventually("PgBouncer to listen", async || {
            if let Some(status) = pooler.child.try_wait()? {
                bail!("PgBouncer ended with {status}:\n{}", pooler.log());
            }
            Ok(TcpStream::connect(pooler.address).await.ok())
        })
        .await?;
        Ok(pooler)
    }

    /// The URL of the database's caller through this pooler.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its whole log.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The version of `$PGBOUNCER`: its first two numbers.
    pub fn version() -> Result<(u32, u32)> {
        let output = Command::new(program()?).arg("--version").output()?;
        let said = String::from_utf8(output.stdout)?;
        let version = said
            .strip_prefix("PgBouncer ")
            .and_then(|rest| rest.lines().next())
            .with_context(|| format!("no version in {said:?}"))?;
        let mut numbers = version.split('.').map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
            _ => bail!("an unknown version: {version}"),
        }
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> Result<String> {
    std::env::var("PGBOUNCER").context("PGBOUNCER must name the program (make test-it does)")
}
