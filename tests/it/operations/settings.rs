//! Settings: three places to say them, and what is said to who says them wrongly.

use std::{
    fs,
    process::{Command, Output, Stdio},
};

use anyhow::{Result, ensure};
use honcho_tests::{Cluster, Database, Service};

use crate::fixtures::api::Api;

/// What must never be shown.
const PASSWORD: &str = "s3cret";

/// The service's program with nothing of this process's environment that could be a setting.
fn program(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Command> {
    let mut command = Service::command()?;
    command.env_clear().args(arguments).stdin(Stdio::null());
    command.envs(environment.iter().copied());
    Ok(command)
}

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Output> {
    let output = program(arguments, environment)?.output()?;
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    ensure!(
        !String::from_utf8_lossy(&said).contains(PASSWORD),
        "a password is shown: {output:?}"
    );
    Ok(output)
}

/// Fails unless the program leaves with 2 and a line that begins so.
pub fn refused(arguments: &[&str], environment: &[(&str, &str)], expected: &str) -> Result<()> {
    let output = run(arguments, environment)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(2) && said.starts_with(&format!("honcho-service: {expected}")),
        "{arguments:?} {environment:?}: {} {said}",
        output.status
    );
    ensure!(said.lines().count() == 1, "{said}");
    Ok(())
}

/// A claim waits for LOCK_TIMEOUT once in line and once at its head, in one statement.
#[test]
fn a_lock_timeout_that_could_never_act_is_refused() -> Result<()> {
    for (statement, lock) in [("1s", "10s"), ("1s", "501ms"), ("5s", "3s")] {
        let environment = [
            URL,
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
        vec![URL, ("STATEMENT_TIMEOUT", "1s"), ("LOCK_TIMEOUT", "500ms")],
        // What is not said gives way.
        vec![URL, ("STATEMENT_TIMEOUT", "1s")],
    ] {
        let output = run(&["--check"], &environment)?;
        assert!(output.status.success(), "{environment:?}: {output:?}");
    }
    Ok(())
}

/// A setting that is not passed on has no effect in a container, without a word.
#[test]
fn the_compose_file_passes_every_setting_on() -> Result<()> {
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
        // The image listens on 8080 of all addresses, and has no file of settings.
        if ["CONFIG", "HOST", "PORT"].contains(&name.as_str()) {
            continue;
        }
        settings += 1;
        assert!(compose.contains(&format!("\n      {name}:")), "{name}");
    }
    assert!(settings > 30, "{help}");
    Ok(())
}

/// `make` alone lists what there is.
#[test]
fn make_help_lists_every_target() -> Result<()> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let output = Command::new("make")
        .args(["-s", "-C", root, "help"])
        .output()?;
    let listed = String::from_utf8(output.stdout)?;
    let makefile = fs::read_to_string(format!("{root}/Makefile"))?;
    let targets: Vec<&str> = makefile
        .lines()
        .filter(|line| line.contains(": ") && line.contains(" ## "))
        .filter_map(|line| line.split(':').next())
        .collect();
    assert!(targets.len() > 15, "{targets:?}");
    for target in targets {
        assert!(
            listed.contains(&format!("  make {target} ")),
            "{target}:\n{listed}"
        );
    }
    Ok(())
}

const URL: (&str, &str) = ("DATABASE_URL", "postgresql://user:s3cret@localhost/db");

#[test]
fn a_wrong_value_is_named_with_what_is_allowed() -> Result<()> {
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
    ] {
        let variable = flag
            .trim_start_matches('-')
            .replace('-', "_")
            .to_uppercase();
        let given = format!("{flag}={value}");
        let expected = format!("{flag} {allowed}, not {value:?}\n");
        refused(&["--check", &given], &[URL], &expected)?;
        let expected = format!("{variable} {allowed}, not {value:?}\n");
        refused(&["--check"], &[URL, (&variable, value)], &expected)?;
    }
    Ok(())
}

#[test]
fn a_wrong_connection_string_is_named_without_what_it_says() -> Result<()> {
    for (string, expected) in [
        (
            "postgresql://user:s3cret@localhost:port/db",
            "port must be from 1 to 65535",
        ),
        (
            "postgresql://user:s3cret@h1,h2/db?port=1,2,3",
            "port must be one, or as many as",
        ),
        (
            "postgresql://user:s3cret@localhost/db?sslmode=allow",
            "sslmode must be disable, prefer,",
        ),
        (
            "postgresql://user:s3cret@localhost/db?connect_timeout=no",
            "connect_timeout must be a whole",
        ),
        (
            "postgresql://user:s3cret@localhost/db?s3cret=1",
            "has a parameter that is not one of",
        ),
        (
            "postgresql://user:%ffs3cret@localhost/db",
            "must be valid UTF-8",
        ),
        (
            "host=localhost password=not s3cret=quoted",
            "has a parameter that is not one of",
        ),
        (
            "host=localhost password='s3cret",
            "has a quotation mark without its pair",
        ),
        (
            "localhost s3cret",
            "must be a URL, postgresql://…, or keywords",
        ),
        ("user=u password=s3cret", "must name the database's host"),
        (
            "host=localhost target_session_attrs=primary",
            "target_session_attrs must be any, read-write",
        ),
        (
            "host=localhost sslmode=verify-full",
            "sslmode needs sslrootcert beside it",
        ),
    ] {
        let expected = format!("DATABASE_URL: {expected}");
        refused(&["--check"], &[("DATABASE_URL", string)], &expected)?;
    }
    let variables = [("PGHOST", "localhost"), ("PGPASSWORD", PASSWORD)];
    for (name, value, expected) in [
        ("PGSSLMODE", "s3cret", "PGSSLMODE: must be disable,"),
        ("PGPORT", "s3cret", "PGPORT: must be from 1 to 65535"),
        (
            "PGCONNECT_TIMEOUT",
            "0",
            "PGCONNECT_TIMEOUT: must be a whole number of seconds",
        ),
        ("PGPASSFILE", "/nowhere", "PGPASSFILE: cannot be read"),
    ] {
        let variables = [variables[0], (name, value)];
        refused(&["--check"], &variables, expected)?;
    }
    Ok(())
}

#[test]
fn what_the_file_says_is_checked_as_well() -> Result<()> {
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
            &[URL][..]
        };
        refused(&["--config", &file], environment, &expected)?;
        let variable = [environment, &[("CONFIG_FILE", &*file)]].concat();
        refused(&["--check"], &variable, &expected)?;
    }
    refused(
        &["--config", "/nowhere"],
        &[URL],
        "--config: cannot read /nowhere",
    )?;
    refused(
        &[],
        &[URL, ("CONFIG_FILE", "/nowhere")],
        "CONFIG_FILE: cannot read /nowhere",
    )
}

#[test]
fn the_command_line_takes_flags_that_there_are() -> Result<()> {
    refused(
        &["--prot=1"],
        &[URL],
        "there is no flag --prot; did you mean --port?",
    )?;
    refused(
        &["--password=s3cret"],
        &[URL],
        "there is no flag --password; --help lists them",
    )?;
    refused(&[URL.1], &[], "takes only flags; --help lists them")?;
    refused(
        &["--port"],
        &[URL],
        "a value is required for '--port <NUMBER>'",
    )?;
    let valid = run(&["--check"], &[URL, ("PORT", "")])?;
    assert_eq!(valid.status.code(), Some(0), "{valid:?}");
    assert_eq!(valid.stdout, b"the configuration is valid\n");
    let version = run(&["--version"], &[URL])?;
    let expected = format!("honcho-service {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8_lossy(&version.stdout), expected);
    let help = String::from_utf8(run(&["--help"], &[URL])?.stdout)?;
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
async fn flags_are_stronger_than_the_environment_than_the_file() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("honcho.toml");
    fs::write(&file, "host = '127.0.0.2'\nport = 0\n")?;
    let file = file.to_string_lossy();
    let environment = [URL, ("CONFIG_FILE", &*file)];
    let with_variable = [URL, ("CONFIG_FILE", &*file), ("HOST", "127.0.0.3")];
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

#[tokio::test]
async fn libpqs_variables_say_what_the_url_leaves_out() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 10).await?;
    let cluster = crate::cluster().directory().to_string_lossy();
    let user = format!("{}_caller", database.name());
    let variables = [
        ("PORT", "0"),
        ("PGHOST", &*cluster),
        ("PGDATABASE", database.name()),
        ("PGUSER", "nobody"),
        ("PGAPPNAME", "shop"),
        ("PGOPTIONS", "-c statement_timeout=4321"),
        ("DATABASE_URL", &format!("user={user}")),
    ];
    let service = Service::spawn(program(&[], &variables)?).await?;
    let api = Api {
        service,
        http: reqwest::Client::new(),
    };
    api.until_ready().await?;
    assert_eq!(api.claim("user", "PROMO").await?.shown(), "200");
    let client = database.connect().await?;
    let sessions = "select count(*) from pg_stat_activity
                     where application_name = 'shop' and usename = $1";
    let sessions: i64 = client.query_one(sessions, &[&user]).await?.get(0);
    assert_eq!(sessions, 1);
    Ok(())
}

#[tokio::test]
async fn passwords_reach_the_database_and_nobody_else() -> Result<()> {
    let cluster = Cluster::start_new()?;
    let database = Database::create(&cluster).await?;
    let admin = database.connect().await?;
    let user = format!("{}_caller", database.name());
    admin
        .batch_execute(&format!("alter role {user} password '{PASSWORD}'"))
        .await?;
    let hba = cluster.directory().join("data/pg_hba.conf");
    fs::write(
        hba,
        format!("local all {user} scram-sha-256\nlocal all all trust\n"),
    )?;
    admin.batch_execute("select pg_reload_conf()").await?;
    honcho_tests::eventually("passwords to be asked for", async || {
        Ok(database.connect_as_caller().await.is_err().then_some(()))
    })
    .await?;
    let directory = tempfile::tempdir()?;
    let passfile = directory.path().join("pgpass");
    fs::write(
        &passfile,
        format!("# comment\nelsewhere:*:*:*:wrong\nlocalhost:*:*:{user}:{PASSWORD}\n"),
    )?;
    let host = cluster.directory().to_string_lossy();
    let base = [
        ("PORT", "0"),
        ("PGHOST", &*host),
        ("PGUSER", &*user),
        ("PGDATABASE", database.name()),
    ];
    let in_url = format!("postgresql://:{PASSWORD}@/");
    let passfile = passfile.to_string_lossy();
    for (name, value, right) in [
        ("PGPASSWORD", PASSWORD, true),
        ("PGPASSFILE", &*passfile, true),
        ("DATABASE_URL", &*in_url, true),
        ("PGPASSWORD", "wrong-s3cret", false),
        ("PGAPPNAME", "no password", false),
    ] {
        let variables = [&base[..], &[(name, value)]].concat();
        let api = Api {
            service: Service::spawn(program(&[], &variables)?).await?,
            http: reqwest::Client::new(),
        };
        if right {
            api.until_ready().await?;
        } else if name == "PGPASSWORD" {
            api.until_not_ready("the database refuses the service's connections")
                .await?;
            assert_eq!(api.claim("user", "PROMO").await?.shown(), "500 internal");
        } else {
            api.until_not_ready("the database cannot be reached")
                .await?;
        }
        let log = api.service.log();
        assert!(!log.contains(PASSWORD), "{name}: {log}");
    }
    Ok(())
}
