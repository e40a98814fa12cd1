//! The stack as a user starts it: compose's commands, and the ports that it publishes.

use std::{env, net::SocketAddr, process::Output};

use anyhow::{Context, Result, ensure};
use honcho_tests::{books, connect, eventually};
use serde_json::{Value, json};
use tokio::{
    process::Command,
    sync::{Mutex, MutexGuard},
};
use tokio_postgres::Client;

/// The running stack, for one test at a time.
pub struct Stack {
    http: reqwest::Client,
    _turn: MutexGuard<'static, ()>,
}

impl Stack {
    /// Waits for other tests, and starts missing containers.
    pub async fn up() -> Result<Self> {
        static TURN: Mutex<()> = Mutex::const_new(());
        let stack = Self {
            _turn: TURN.lock().await,
            http: reqwest::Client::new(),
        };
        stack.bring_up().await?;
        Ok(stack)
    }

    /// `compose up`, until the service answers from the database.
    pub async fn bring_up(&self) -> Result<()> {
        compose(&["up", "--detach", "--no-build"]).await?;
        eventually("an answer from the database", async || {
            Ok(match self.show("NONE").await {
                Ok((404, _)) => Some(()),
                _ => None,
            })
        })
        .await
    }

    /// The address that is published for a service's port.
    pub async fn published(&self, service: &str, port: &str) -> Result<SocketAddr> {
        let published = compose(&["port", service, port]).await?;
        published
            .parse()
            .with_context(|| format!("{service} is published at {published:?}"))
    }

    /// Creates a coupon.
    pub async fn create(&self, name: &str, amount: i32) -> Result<()> {
        let url = self.url("/api/coupons").await?;
        let coupon = json!({ "name": name, "amount": amount });
        let answer = self.http.post(url).json(&coupon).send().await?;
        ensure!(answer.status() == 201, "{}", answer.text().await?);
        Ok(())
    }

    /// Requests a coupon, and returns status and body.
    pub async fn show(&self, name: &str) -> Result<(u16, Value)> {
        let url = self.url(&format!("/api/coupons/{name}")).await?;
        let answer = self.http.get(url).send().await?;
        Ok((answer.status().as_u16(), answer.json().await?))
    }

    /// A client that claims through the currently published port.
    pub async fn claimant(&self) -> Result<Claimant> {
        Ok(Claimant {
            http: self.http.clone(),
            url: self.url("/api/coupons/claim").await?,
        })
    }

    /// Connects to the published database as its superuser.
    pub async fn connect(&self) -> Result<Client> {
        self.connect_as("postgres", "POSTGRES_PASSWORD").await
    }

    /// Connects as `user`, with the password from the environment.
    pub async fn connect_as(&self, user: &str, password: &str) -> Result<Client> {
        let address = self.published("postgres", "5432").await?;
        let password = variable(password)?;
        connect(&format!("postgresql://{user}:{password}@{address}/honcho")).await
    }

    /// Fails unless the books are right.
    pub async fn books(&self) -> Result<()> {
        books(&self.connect().await?).await
    }

    async fn url(&self, path: &str) -> Result<String> {
        let port = self.published("service", "8080").await?.port();
        Ok(format!("http://127.0.0.1:{port}{path}"))
    }
}

/// A client that claims coupons.
#[derive(Clone)]
pub struct Claimant {
    http: reqwest::Client,
    url: String,
}

impl Claimant {
    /// Claims, and returns the status, with the code if it is a problem: `409 sold_out`.
    pub async fn claim(&self, user_id: &str, coupon_name: &str) -> Result<String> {
        let claim = json!({ "user_id": user_id, "coupon_name": coupon_name });
        let answer = self.http.post(&self.url).json(&claim).send().await?;
        let status = answer.status().as_u16();
        let body: Value = answer.json().await?;
        Ok(match body["code"].as_str() {
            Some(code) => format!("{status} {code}"),
            None => status.to_string(),
        })
    }
}

/// Runs a command of compose and returns what it printed.
pub async fn compose(arguments: &[&str]) -> Result<String> {
    compose_with(&[], arguments).await
}

/// The same with more environment variables.
pub async fn compose_with(environment: &[(&str, &str)], arguments: &[&str]) -> Result<String> {
    let mut command = compose_command();
    command.envs(environment.iter().copied()).args(arguments);
    succeed(&mut command).await
}

/// Compose, on this checkout's file.
pub fn compose_command() -> Command {
    let mut command = Command::new("scripts/compose");
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command
}

/// Runs a command of docker and returns what it printed.
pub async fn docker(arguments: &[&str]) -> Result<String> {
    succeed(Command::new("docker").args(arguments)).await
}

/// Runs a command and returns what it printed on its standard output.
pub async fn succeed(command: &mut Command) -> Result<String> {
    let output = run(command).await?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}

/// Runs a command to its end, and returns its output even if it fails.
pub async fn run(command: &mut Command) -> Result<Output> {
    let output = command.kill_on_drop(true).output().await;
    output.with_context(|| format!("{command:?} does not run"))
}

/// The container of a service.
pub async fn container(service: &str) -> Result<String> {
    compose(&["ps", "--all", "--quiet", service]).await
}

/// A variable that `make test-docker` sets.
pub fn variable(name: &str) -> Result<String> {
    env::var(name).with_context(|| format!("{name} is not set: make test-docker sets it"))
}
