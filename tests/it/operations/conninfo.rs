//! Connection strings and the variables of libpq.

use std::fs;

use anyhow::Result;
use honcho_tests::{Cluster, Database, Service};

use crate::fixtures::{
    api::Api,
    program::{PASSWORD, program, refused},
};

#[test]
fn wrong_connection_string_is_refused_without_showing_it() -> Result<()> {
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

#[tokio::test]
async fn libpq_variables_complete_the_url() -> Result<()> {
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
async fn passwords_reach_the_database_and_no_log() -> Result<()> {
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
