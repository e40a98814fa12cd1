use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::{
    cluster::{Frozen, bindir, free_port, kill_with_children, owner, signal},
    connect,
    directory::Directory,
    eventually,
};

/// The page with the configuration that these servers have.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/failover.md");

/// Longest wait for a server that may be frozen.
const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// Replication under Patroni.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replication {
    /// Patroni's default.
    Asynchronous,
    /// `synchronous_mode`, as docs/failover.md has it.
    Synchronous,
}

/// Two PostgreSQL servers under Patroni, with the configuration of docs/failover.md, and the etcd in which Patroni keeps
/// its state. They are reachable at ports of the loopback address, and are stopped and removed when this is dropped or
/// this process ends.
#[derive(Debug)]
pub struct Patroni {
    etcd: Child,
    nodes: [Node; 2],
    // The last field: its guard stops the servers when Patroni is gone.
    directory: Directory,
}

/// A server and its Patroni.
#[derive(Debug)]
struct Node {
    name: &'static str,
    port: u16,
    patroni: Option<Child>,
}

impl Patroni {
    /// Starts both servers with the programs that `$ETCD` and `$PATRONI` name, and waits until one has a standby: node 0,
    /// which starts first.
    pub async fn start(replication: Replication) -> Result<Self> {
        let directory = Directory::new(&std::env::temp_dir())?;
        let etcd_port = free_port()?;
        let address = format!("127.0.0.1:{etcd_port}");
        let url = format!("http://{address}");
        let mut command = program(&directory, "ETCD", "etcd")?;
        command.args(["--data-dir", "etcd", "--listen-client-urls", &url]);
        command.args(["--advertise-client-urls", &url]);
        command.args([
            "--listen-peer-urls",
            &format!("http://127.0.0.1:{}", free_port()?),
        ]);
        // The tests do not stop it, and it must not wait for the disk that they keep busy.
        command.arg("--unsafe-no-fsync");
        let etcd = command.spawn().context("etcd did not start")?;
        fs::write(directory.path().join("etcd.pid"), etcd.id().to_string())?;
        let node = |name| {
            let node = Node {
                name,
                port: free_port()?,
                patroni: None,
            };
            let configuration = configuration(&directory, &node, &address, replication)?;
            fs::write(directory.path().join(format!("{name}.yml")), configuration)?;
            Ok::<_, anyhow::Error>(node)
        };
        let mut patroni = Self {
            nodes: [node("db1")?, node("db2")?],
            etcd,
            directory,
        };
        patroni.start_node(0)?;
        patroni.until_leader(0).await?;
        patroni.start_node(1)?;
        patroni.until_followed(0, replication).await?;
        Ok(patroni)
    }

    /// Starts Patroni on a node, which starts PostgreSQL there.
    pub fn start_node(&mut self, node: usize) -> Result<()> {
        let name = self.nodes[node].name;
        ensure!(self.nodes[node].patroni.is_none(), "{name} runs already");
        let mut command = program(&self.directory, "PATRONI", name)?;
        command.arg(format!("{name}.yml"));
        let child = command.spawn().context("Patroni did not start")?;
        fs::write(self.file(node, "pid"), child.id().to_string())?;
        self.nodes[node].patroni = Some(child);
        Ok(())
    }

    /// Kills Patroni and all processes of PostgreSQL on a node, as the end of the machine does.
    pub fn kill(&mut self, node: usize) -> Result<()> {
        let postmaster = self.postmaster(node)?;
        let mut patroni = self.nodes[node]
            .patroni
            .take()
            .context("the node does not run")?;
        fs::remove_file(self.file(node, "pid"))?;
        // Neither acts any more while the other ends.
        signal(patroni.id(), Signal::STOP)?;
        kill_with_children(postmaster)?;
        patroni.kill()?;
        patroni.wait()?;
        Ok(())
    }

    /// Stops Patroni and all processes of PostgreSQL on a node until the returned value is dropped, as a machine that
    /// hangs.
    pub fn freeze(&self, node: usize) -> Result<Frozen> {
        let postmaster = self.postmaster(node)?;
        let patroni = self.nodes[node].patroni.as_ref();
        let mut frozen = Frozen::default();
        frozen.add(patroni.context("the node does not run")?.id())?;
        frozen.add_server(postmaster)?;
        Ok(frozen)
    }

    /// Runs `patronictl switchover`.
    pub fn switch_over(&self, from: usize, to: usize) -> Result<()> {
        let [from, to] = [from, to].map(|node| self.nodes[node].name);
        let mut command = program(&self.directory, "PATRONICTL", "patronictl")?;
        command.args(["-c", &format!("{from}.yml"), "switchover", "--force"]);
        command.args(["--leader", from, "--candidate", to]);
        let status = command.spawn()?.wait()?;
        ensure!(
            status.success(),
            "patronictl switchover: {status}\n{}",
            self.log("patronictl")
        );
        Ok(())
    }

    /// The URL of both servers, for libpq and for the service, which leads to the one that takes writes.
    pub fn url(&self, user: &str, database: &str) -> String {
        let [a, b] = [0, 1].map(|node| self.nodes[node].port);
        format!(
            "postgresql://{user}@127.0.0.1:{a},127.0.0.1:{b}/{database}?target_session_attrs=read-write"
        )
    }

    /// The URL of one server.
    pub fn url_of(&self, node: usize, user: &str, database: &str) -> String {
        let port = self.nodes[node].port;
        format!("postgresql://{user}@127.0.0.1:{port}/{database}")
    }

    /// Waits until a node is the primary.
    pub async fn until_leader(&self, node: usize) -> Result<()> {
        let sql = "select not pg_is_in_recovery()";
        self.until_true(node, sql, "a primary").await
    }

    /// Waits until the other node is the standby of the primary, and Patroni would promote it.
    pub async fn until_followed(&self, primary: usize, replication: Replication) -> Result<()> {
        let role = match replication {
            Replication::Asynchronous => "Replica",
            Replication::Synchronous => "Sync Standby",
        };
        let streams = "select exists (select from pg_stat_replication where state = 'streaming')";
        self.until_true(primary, streams, "followed").await?;
        eventually(&format!("Patroni to list a {role}"), async || {
            let name = self.nodes[primary].name;
            let mut command = program(&self.directory, "PATRONICTL", "patronictl")?;
            command.args(["-c", &format!("{name}.yml"), "list", "--format", "json"]);
            let listed = command.stdout(Stdio::piped()).output()?.stdout;
            let members: Value = serde_json::from_slice(&listed).unwrap_or_default();
            let is_there = members.as_array().is_some_and(|members| {
                members
                    .iter()
                    .any(|member| member["Member"] != name && member["Role"] == role)
            });
            Ok(is_there.then_some(()))
        })
        .await
    }

    /// Connects to a node as superuser, unless it does not run or does not answer.
    pub async fn connect_to(&self, node: usize, database: &str) -> Option<Client> {
        let url = self.url_of(node, "postgres", database);
        timeout(ANSWER_WAIT, connect(&url)).await.ok()?.ok()
    }

    async fn until_true(&self, node: usize, sql: &str, what: &str) -> Result<()> {
        let name = self.nodes[node].name;
        let what = format!("{name} to be {what}");
        let became = eventually(&what, async || {
            let Some(client) = self.connect_to(node, "postgres").await else {
                return Ok(None);
            };
            let answer = timeout(ANSWER_WAIT, client.query_one(sql, &[])).await;
            let is_true = answer.is_ok_and(|row| row.is_ok_and(|row| row.get(0)));
            Ok(is_true.then_some(()))
        });
        became.await.with_context(|| {
            let logs = self.nodes.each_ref().map(|node| self.log(node.name));
            format!("Patroni's logs:\n{}", logs.join("\n"))
        })
    }

    fn file(&self, node: usize, extension: &str) -> PathBuf {
        let name = self.nodes[node].name;
        self.directory.path().join(format!("{name}.{extension}"))
    }

    /// The process id of a node's PostgreSQL.
    fn postmaster(&self, node: usize) -> Result<u32> {
        let data = self.directory.path().join(self.nodes[node].name);
        let lock = fs::read_to_string(data.join("postmaster.pid"))?;
        let pid = lock.lines().next().context("an empty lock file")?;
        Ok(pid.trim().parse()?)
    }

    /// The last lines of a program's log.
    fn log(&self, name: &str) -> String {
        let log = fs::read_to_string(self.directory.path().join(format!("{name}.log")));
        let log = log.unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Patroni {
    fn drop(&mut self) {
        let programs = self
            .nodes
            .iter_mut()
            .map(|node| (node.name, node.patroni.as_mut()));
        for (name, program) in programs.chain([("etcd", Some(&mut self.etcd))]) {
            if let Some(program) = program {
                // It may have exited already.
                let _ = program.kill();
                let _ = program.wait();
                let _ = fs::remove_file(self.directory.path().join(format!("{name}.pid")));
            }
        }
    }
}

/// A command for the program that this variable names, as the user that runs PostgreSQL, in the directory of all, with a
/// log there.
fn program(directory: &Directory, variable: &str, name: &str) -> Result<Command> {
    let program = std::env::var_os(variable)
        .with_context(|| format!("{variable} must name the program (make test-scale does)"))?;
    let log = File::options()
        .create(true)
        .append(true)
        .open(directory.path().join(format!("{name}.log")))?;
    let mut command = Command::new(program);
    command
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0);
    if let Some((user, group)) = owner()? {
        command.uid(user).gid(group);
    }
    Ok(command)
}

/// The configuration of docs/failover.md, with the addresses, paths and users of a test.
fn configuration(
    directory: &Directory,
    node: &Node,
    etcd: &str,
    replication: Replication,
) -> Result<String> {
    let page = fs::read_to_string(PAGE)?;
    let mut blocks = page.split("```yaml\n").skip(1);
    let (Some(block), None) = (blocks.next(), blocks.next()) else {
        bail!("docs/failover.md must have one block of YAML");
    };
    let (block, _) = block.split_once("\n```").context("no end of the block")?;
    let mut configuration = block.to_owned();
    let bindir = bindir(None)?;
    let path = |name: &str| directory.path().join(name).display().to_string();
    let replaced = [
        ("name: db1", format!("name: {}", node.name)),
        ("10.0.0.1:8008", format!("127.0.0.1:{}", free_port()?)),
        ("10.0.0.1:5432", format!("127.0.0.1:{}", node.port)),
        (
            "10.0.0.11:2379, 10.0.0.12:2379, 10.0.0.13:2379",
            etcd.to_owned(),
        ),
        ("10.0.0.0/24", "127.0.0.1/32".to_owned()),
        ("/var/lib/postgresql/15/honcho", path(node.name)),
        (
            "/var/lib/postgresql/honcho.pgpass",
            path(&format!("{}.pgpass", node.name)),
        ),
        ("/usr/lib/postgresql/15/bin", bindir.display().to_string()),
        ("/var/run/postgresql", path("")),
        ("scram-sha-256", "trust".to_owned()),
        ("local all postgres peer", "local all all trust".to_owned()),
    ];
    for (documented, tested) in replaced {
        ensure!(
            configuration.contains(documented),
            "the configuration in docs/failover.md has no {documented}"
        );
        configuration = configuration.replace(documented, &tested);
    }
    let synchronous = "synchronous_mode: true";
    ensure!(configuration.contains(synchronous), "no {synchronous}");
    if replication == Replication::Asynchronous {
        configuration = configuration.replace(synchronous, "synchronous_mode: false");
    }
    Ok(configuration)
}
