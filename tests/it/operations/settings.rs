//! Settings: flags, environment and file, and the refusal of wrong values.

use std::fs;

use anyhow::{Context, Result};
use honcho_tests::Service;

use crate::fixtures::program::{DATABASE_URL, PASSWORD, program, refusal, refused, run};

/// One claim, one statement, can wait for LOCK_TIMEOUT twice: in line and at its head.
#[test]
fn lock_timeout_beyond_the_statement_timeout_is_refused() -> Result<()> {
    for (statement, lock) in [("1s", "10s"), ("1s", "501ms"), ("5s", "3s")] {
        let environment = [
            DATABASE_URL,
            ("STATEMENT_TIMEOUT", statement),
            ("LOCK_TIMEOUT", lock),
        ];
        refused(
            &["--check"],
            &environment,
            &format!("LOCK_TIMEOUT: is {lock}, but"),
        )?;
        refused(&[], &environment, &format!("LOCK_TIMEOUT: is {lock}, but"))?;
    }
    for environment in [
        vec![
            DATABASE_URL,
            ("STATEMENT_TIMEOUT", "1s"),
            ("LOCK_TIMEOUT", "500ms"),
        ],
        // The default is lowered if only the other setting is given.
        vec![DATABASE_URL, ("STATEMENT_TIMEOUT", "1s")],
    ] {
        let output = run(&["--check"], &environment)?;
        assert!(output.status.success(), "{environment:?}: {output:?}");
    }
    Ok(())
}

/// A setting that is not passed on would silently have no effect in the container.
#[test]
fn compose_file_passes_all_settings_on() -> Result<()> {
    let help = String::from_utf8(run(&["--help"], &[])?.stdout)?;
    let compose = fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docker-compose.yml"
    ))?;
    let mut settings = 0;
    for flag in help
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("--"))
        .filter(|line| line.contains('<'))
        .filter_map(|line| line.split(' ').next())
    {
        let name = flag.replace('-', "_").to_uppercase();
        // The image listens on port 8080 of all addresses, without a configuration file, and there is one database.
        if ["CONFIG", "HOST", "PORT", "DATABASE_SHARDS"].contains(&name.as_str()) {
            continue;
        }
        settings += 1;
        assert!(compose.contains(&format!("\n      {name}:")), "{name}");
    }
    assert!(settings > 30, "{help}");
    Ok(())
}

#[test]
fn wrong_setting_is_refused_with_its_allowed_values() -> Result<()> {
    refused(
        &[],
        &[],
        "DATABASE_URL: must name the database's host, or PGHOST must",
    )?;
    for (flag, value, allowed) in [
        ("--port", "http", "must be a whole number from 0 to 65535"),
        ("--port", "65536", "must be a whole number from 0 to 65535"),
        ("--port", "-1", "must be a whole number from 0 to 65535"),
        (
            "--worker-threads",
            "0",
            "must be a whole number from 1 to 1024",
        ),
        (
            "--database-pool-size",
            "0",
            "must be a whole number from 1 to 10000",
        ),
        (
            "--batch-limit",
            "10001",
            "must be a whole number from 1 to 10000",
        ),
        ("--lane-limit", "0", "must be a whole number from 1"),
        ("--waiting-limit", "1.5", "must be a whole number from 1"),
        (
            "--lock-timeout",
            "0s",
            "must be a time from 10ms to 5m, such as 500ms, 5s or 1m",
        ),
        (
            "--statement-timeout",
            "5",
            "must be a time from 10ms to 5m, such as 500ms, 5s or 1m",
        ),
        (
            "--shutdown-delay",
            "1h",
            "must be a time from 0s to 5m, such as 500ms, 5s or 1m",
        ),
        (
            "--shutdown-timeout",
            "soon",
            "must be a time from 0s to 5m, such as 500ms, 5s or 1m",
        ),
        (
            "--hold-ttl",
            "500ms",
            "must be a time from 1s to 1day, such as 5s, 1m or 2h",
        ),
    ] {
        let variable = flag
            .trim_start_matches('-')
            .replace('-', "_")
            .to_uppercase();
        let given = format!("{flag}={value}");
        let expected = format!("{flag} {allowed}, not {value:?}\n");
        refused(&["--check", &given], &[DATABASE_URL], &expected)?;
        let expected = format!("{variable} {allowed}, not {value:?}\n");
        refused(&["--check"], &[DATABASE_URL, (&variable, value)], &expected)?;
    }
    Ok(())
}

#[test]
fn wrong_settings_in_the_file_are_refused() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("honcho.toml");
    let file = path.to_string_lossy();
    for (text, expected) in [
        (
            "port = 70000",
            "port must be a whole number from 0 to 65535, not \"70000\"",
        ),
        (
            "port = 1979-05-27",
            "port must be a text, a number, true or false, or a list of them",
        ),
        (
            "prot = 1",
            "there is no setting \"prot\"; --help lists them",
        ),
        (
            "check = true",
            "there is no setting \"check\"; --help lists them",
        ),
        (
            "port = 1\n\ndatabase_url = postgres://u:s3cret@h",
            "line 3: ",
        ),
        (
            "database_url = 'host=h password=s3cret x=y'",
            "database_url: has a parameter that",
        ),
    ] {
        fs::write(&path, text)?;
        let expected = format!("{file}: {expected}");
        let environment = if text.contains("database_url") {
            &[][..]
        } else {
            &[DATABASE_URL][..]
        };
        refused(&["--config", &file], environment, &expected)?;
        let variable = [environment, &[("CONFIG_FILE", &*file)]].concat();
        refused(&["--check"], &variable, &expected)?;
    }
    refused(
        &["--config", "/nowhere"],
        &[DATABASE_URL],
        "--config: cannot read /nowhere",
    )?;
    refused(
        &[],
        &[DATABASE_URL, ("CONFIG_FILE", "/nowhere")],
        "CONFIG_FILE: cannot read /nowhere",
    )
}

#[test]
fn unknown_flags_are_refused() -> Result<()> {
    refused(
        &["--prot=1"],
        &[DATABASE_URL],
        "there is no flag --prot; did you mean --port?",
    )?;
    refused(
        &["--password=s3cret"],
        &[DATABASE_URL],
        "there is no flag --password; --help lists them",
    )?;
    refused(
        &[DATABASE_URL.1],
        &[],
        "takes only flags; --help lists them",
    )?;
    refused(
        &["--port"],
        &[DATABASE_URL],
        "a value is required for '--port <NUMBER>'",
    )?;
    let valid = run(&["--check"], &[DATABASE_URL, ("PORT", "")])?;
    assert_eq!(valid.status.code(), Some(0), "{valid:?}");
    assert_eq!(valid.stdout, b"the configuration is valid\n");
    let version = run(&["--version"], &[DATABASE_URL])?;
    let expected = format!("honcho-service {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8_lossy(&version.stdout), expected);
    let help = String::from_utf8(run(&["--help"], &[DATABASE_URL])?.stdout)?;
    for setting in [
        "--database-url",
        "--lock-timeout",
        "--shutdown-delay",
        "SOME_NAME",
    ] {
        assert!(help.contains(setting), "{help}");
    }
    Ok(())
}

#[tokio::test]
async fn flags_override_environment_overrides_file() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("honcho.toml");
    fs::write(&file, "host = '127.0.0.2'\nport = 0\n")?;
    let file = file.to_string_lossy();
    let environment = [DATABASE_URL, ("CONFIG_FILE", &*file)];
    let with_variable = [DATABASE_URL, ("CONFIG_FILE", &*file), ("HOST", "127.0.0.3")];
    for (arguments, environment, expected) in [
        (&[][..], &environment[..], "127.0.0.2"),
        (&[], &with_variable, "127.0.0.3"),
        (&["--host", "127.0.0.4"], &with_variable, "127.0.0.4"),
        (&["--host", "127.0.0.4"], &environment, "127.0.0.4"),
    ] {
        let service = Service::spawn(program(arguments, environment)?).await?;
        assert_eq!(service.address().ip().to_string(), expected);
        assert!(!service.log().contains(PASSWORD));
    }
    Ok(())
}

#[test]
fn wrong_settings_are_refused_without_showing_secrets() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = |name: &str, content: &str| -> Result<String> {
        let path = directory.path().join(name);
        fs::write(&path, content)?;
        Ok(path.to_str().context("no path")?.to_owned())
    };
    let empty = file("empty", "# nothing\n")?;
    let same = file("same", "hushhushhushhush:claim\n")?;
    let short = file("short", "hushhush\n")?;
    let jwks = file("jwks", r#"{"keys":[{"kty":"oct","k":"aHVzaGh1c2g"}]}"#)?;
    for (environment, answered) in [
        (
            vec![("API_TOKENS", "hushhushhushhush")],
            vec!["API_TOKENS: entry 1 on line 1"],
        ),
        (
            vec![("API_TOKENS", "hushhushhushhush:write")],
            vec!["API_TOKENS", "claim, read, admin"],
        ),
        (
            vec![("API_TOKENS", "hushhush:claim")],
            vec!["API_TOKENS", "at least 16 characters"],
        ),
        (
            vec![("API_TOKENS", " ")],
            vec!["API_TOKENS: holds no token"],
        ),
        (
            vec![("API_TOKENS", "# none yet")],
            vec!["API_TOKENS: holds no token"],
        ),
        (
            vec![("API_TOKENS", "hushhushhushhush:claim hushhushhushhush:read")],
            vec!["API_TOKENS: entry 2 on line 1: this token has an entry already"],
        ),
        (
            vec![
                ("API_TOKENS", "hushhushhushhush:claim"),
                ("API_TOKENS_FILE", &same),
            ],
            vec![
                "API_TOKENS_FILE",
                "entry 1: this token has an entry already",
            ],
        ),
        (
            vec![("API_TOKENS_FILE", &empty)],
            vec!["API_TOKENS_FILE", "holds no token"],
        ),
        (
            vec![("API_TOKENS_FILE", "/nowhere/tokens")],
            vec!["API_TOKENS_FILE", "/nowhere/tokens"],
        ),
        (
            vec![("JWT_SECRET", "hushhush")],
            vec!["JWT_SECRET", "at least 32 bytes"],
        ),
        (
            vec![("JWT_SECRET_FILE", &short)],
            vec!["JWT_SECRET_FILE", "at least 32 bytes"],
        ),
        (
            vec![("JWT_JWKS_FILE", &jwks)],
            vec!["JWT_JWKS_FILE", "RS256 or ES256"],
        ),
        (
            vec![("JWT_JWKS_FILE", &empty)],
            vec!["JWT_JWKS_FILE", "no JWKS"],
        ),
        (
            vec![("JWT_ISSUER", "https://issuer")],
            vec!["JWT_ISSUER", "without a key"],
        ),
        (
            vec![("CORS_ORIGINS", "shop.example")],
            vec!["CORS_ORIGINS", "shop.example"],
        ),
        (
            vec![("CORS_ORIGINS", "https://shop.example/")],
            vec!["CORS_ORIGINS", "no origin"],
        ),
        (vec![("RATE_LIMIT", "10")], vec!["RATE_LIMIT", "20/s"]),
        (
            vec![("RATE_LIMIT_BY", "name")],
            vec!["RATE_LIMIT_BY", "address or token"],
        ),
        (
            vec![("RATE_LIMIT_BY", "token")],
            vec!["RATE_LIMIT_BY", "no tokens"],
        ),
        (
            vec![("TRUSTED_PROXIES", "10.0.0.0/99")],
            vec![
                "TRUSTED_PROXIES must be addresses and networks such as 10.0.0.0/8, separated by commas, \
                 not \"10.0.0.0/99\"",
            ],
        ),
        (
            vec![("HEADER_TIMEOUT", "soon")],
            vec!["HEADER_TIMEOUT", "10ms"],
        ),
        (
            vec![("CONNECTION_LIMIT", "0")],
            vec!["CONNECTION_LIMIT", "from 1"],
        ),
        (
            vec![("CONNECTION_LIMIT", "100"), ("STREAM_LIMIT", "100")],
            vec!["STREAM_LIMIT: is 100", "one of the 100 connections"],
        ),
    ] {
        let environment = [vec![DATABASE_URL], environment].concat();
        let said = refusal(&["--check"], &environment)?;
        for answered in answered {
            assert!(said.contains(answered), "{environment:?}: {said}");
        }
        assert!(!said.contains("hush"), "{environment:?}: {said}");
    }
    Ok(())
}
