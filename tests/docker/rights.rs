//! Rights: of the processes in the containers, of the service in the database, of the network.

use anyhow::{Context, Result};
use honcho_tests::eventually;
use tokio_postgres::error::SqlState;

use crate::stack::{Stack, compose_with, container, docker};

#[tokio::test]
async fn no_container_runs_as_root() -> Result<()> {
    let _stack = Stack::up().await?;
    for service in ["service", "postgres"] {
        let status = status(service).await?;
        for user in field(&status, "Uid")?.split_whitespace() {
            assert_ne!(user, "0", "{service}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn service_container_is_read_only_and_unprivileged() -> Result<()> {
    let _stack = Stack::up().await?;
    let status = status("service").await?;
    assert_eq!(field(&status, "CapBnd")?, "0000000000000000");
    assert_eq!(field(&status, "NoNewPrivs")?, "1");
    let container = container("service").await?;
    let denied = docker(&["exec", "--user=0", &container, "touch", "/probe"]).await;
    let denied = denied.expect_err("the service's files can be written");
    assert!(denied.to_string().contains("Read-only"), "{denied}");
    Ok(())
}

#[tokio::test]
async fn ports_are_published_on_the_loopback_only() -> Result<()> {
    let stack = Stack::up().await?;
    for (service, port) in [("postgres", "5432"), ("service", "8080")] {
        let address = stack.published(service, port).await?;
        assert!(address.ip().is_loopback(), "{service}: {address}");
    }
    Ok(())
}

#[tokio::test]
async fn api_tokens_reach_the_service() -> Result<()> {
    let stack = Stack::up().await?;
    let tokens = [("API_TOKENS", "a-token-of-this-test:read")];
    compose_with(&tokens, &["up", "--detach", "--no-build"]).await?;
    eventually("a service that asks for a token", async || {
        Ok(match stack.show("NONE").await {
            Ok((401, _)) => Some(()),
            _ => None,
        })
    })
    .await?;
    // The next test needs a stack without it.
    stack.bring_up().await
}

#[tokio::test]
async fn service_role_has_no_rights_on_tables() -> Result<()> {
    let stack = Stack::up().await?;
    stack.create("RIGHTS", 1).await?;
    let superuser = stack.connect().await?;
    let powers = superuser
        .query_one(
            "select rolsuper or rolcreaterole or rolcreatedb or rolreplication or rolbypassrls
               from pg_roles where rolname = 'honcho_service'",
            &[],
        )
        .await?;
    assert!(!powers.get::<_, bool>(0));

    let service = stack
        .connect_as("honcho_service", "HONCHO_SERVICE_PASSWORD")
        .await?;
    service
        .query_one("select honcho_claim('user', 'RIGHTS')::text", &[])
        .await?;
    let relations = superuser
        .query(
            "select c.oid::regclass::text, c.relkind = 'S'
               from pg_depend d
               join pg_extension e on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid
               join pg_class c on d.classid = 'pg_class'::regclass and d.objid = c.oid
              where e.extname = 'honcho' and c.relkind in ('r', 'v', 'm', 'p', 'S')",
            &[],
        )
        .await?;
    assert!(
        relations.len() >= 4,
        "two tables and their sequences, at least"
    );
    for relation in &relations {
        let name: &str = relation.get(0);
        let mut touches = vec![format!("select from {name}")];
        if relation.get(1) {
            touches.push(format!("select nextval('{name}')"));
        } else {
            touches.extend([
                format!("insert into {name} default values"),
                format!("delete from {name}"),
                format!("truncate {name} cascade"),
                format!("alter table {name} add column mine text"),
            ]);
        }
        for touch in touches {
            let refusal = service.batch_execute(&touch).await.expect_err(&touch);
            assert_eq!(
                refusal.code(),
                Some(&SqlState::INSUFFICIENT_PRIVILEGE),
                "{touch}: {refusal:?}"
            );
        }
    }
    stack.books().await
}

/// The kernel's status of the first process in a service's container.
async fn status(service: &str) -> Result<String> {
    let container = container(service).await?;
    docker(&["exec", &container, "cat", "/proc/1/status"]).await
}

fn field<'a>(status: &'a str, name: &str) -> Result<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
        .with_context(|| format!("no {name} in {status}"))
}
