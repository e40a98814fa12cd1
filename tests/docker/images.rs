//! The images, and how compose passes settings to them.

use anyhow::{Context, Result};
use tokio::process::Command;

use crate::stack::{Stack, compose_command, container, docker, run, variable};

const MB: u64 = 1_000_000;

#[tokio::test]
async fn images_are_small() -> Result<()> {
    for (name, most) in [("postgres", 10 * MB), ("service", 100 * MB)] {
        let base = variable(&format!("HONCHO_{}_BASE", name.to_uppercase()))?;
        let whole = size(&image(name)?).await?;
        let own = whole - size(&base).await?;
        println!(
            "image honcho-{name}: {:.1} MB, of which {:.1} MB are not {base}",
            whole as f64 / MB as f64,
            own as f64 / MB as f64
        );
        assert!(own < most, "honcho-{name} adds {own} bytes to {base}");
    }
    Ok(())
}

#[tokio::test]
async fn images_contain_no_secrets() -> Result<()> {
    for name in ["postgres", "service"] {
        let image = image(name)?;
        let settings = docker(&["image", "inspect", &image]).await?;
        let steps = docker(&["image", "history", "--no-trunc", &image]).await?;
        for secret in ["POSTGRES_PASSWORD", "HONCHO_SERVICE_PASSWORD"] {
            let value = variable(secret)?;
            assert!(!settings.contains(&value), "{image} has {secret}");
            assert!(!steps.contains(&value), "{image} was built with {secret}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn containers_report_health() -> Result<()> {
    let _stack = Stack::up().await?;
    for service in ["postgres", "service"] {
        let container = container(service).await?;
        honcho_tests::eventually("a container to be healthy", async || {
            let arguments = ["inspect", "--format={{.State.Health.Status}}", &container];
            Ok((docker(&arguments).await? == "healthy").then_some(()))
        })
        .await?;
    }
    // Without a listener, the health checks fail.
    for (name, check) in [
        ("postgres", ["pg_isready", "--host=127.0.0.1"]),
        ("service", ["honcho-service", "--health-check"]),
    ] {
        let image = image(name)?;
        let [program, argument] = check;
        let entrypoint = format!("--entrypoint={program}");
        let arguments = [
            "run",
            "--rm",
            "--network=none",
            &entrypoint,
            &image,
            argument,
        ];
        let checked = run(Command::new("docker").args(arguments)).await?;
        assert!(
            matches!(checked.status.code(), Some(1..=2)),
            "{name}: {checked:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn passwords_must_be_set() -> Result<()> {
    let mut command = compose_command();
    command
        .env("HONCHO_ENV_FILE", ".env.example")
        .env_remove("POSTGRES_PASSWORD")
        .env_remove("HONCHO_SERVICE_PASSWORD")
        .arg("config");
    let refusal = run(&mut command).await?;
    let said = String::from_utf8_lossy(&refusal.stderr);
    assert!(!refusal.status.success());
    assert!(said.contains("PASSWORD"), "{said}");
    assert!(said.contains(".env.example"), "{said}");
    Ok(())
}

fn image(name: &str) -> Result<String> {
    Ok(format!("honcho-{name}:{}", variable("HONCHO_TAG")?))
}

async fn size(image: &str) -> Result<u64> {
    let size = docker(&["image", "inspect", "--format={{.Size}}", image]).await?;
    size.parse().with_context(|| format!("{image}: {size}"))
}
