//! TLS to the database: every `sslmode`, with servers that satisfy it and servers that do not.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, ensure};
use honcho_tests::{Cluster, ClusterOptions, Database, connect, eventually};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::fixtures::{api::Api, program::refused};

/// A server with TLS, whose certificate is for `localhost`.
struct Server {
    cluster: Cluster,
    database: Database,
    /// Directory of the clients' files.
    directory: tempfile::TempDir,
}

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Result<Authority> {
    let mut parameters = CertificateParams::new(Vec::new())?;
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok(CertifiedIssuer::self_signed(
        parameters,
        KeyPair::generate()?,
    )?)
}

/// The base64 body of the first certificate in a text.
fn fingerprint(text: &str) -> Result<String> {
    let (_, rest) = text
        .split_once("-----BEGIN CERTIFICATE-----")
        .context("no certificate")?;
    let (body, _) = rest
        .split_once("-----END CERTIFICATE-----")
        .context("the certificate has no end")?;
    Ok(body.split_whitespace().collect())
}

/// Issues a certificate and its key, for a host or a user.
fn certify(
    authority: &Authority,
    host: Option<&str>,
    user: Option<&str>,
) -> Result<(String, String)> {
    let hosts: Vec<String> = host.iter().map(|&host| host.to_owned()).collect();
    let mut parameters = CertificateParams::new(hosts)?;
    if let Some(user) = user {
        parameters.distinguished_name.push(DnType::CommonName, user);
    }
    let key = KeyPair::generate()?;
    let certificate = parameters.signed_by(&key, authority)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

impl Server {
    async fn start() -> Result<Self> {
        let cluster = ClusterOptions::default().tcp().start()?;
        let database = Database::create(&cluster).await?;
        database.create_coupon("PROMO", 1000).await?;
        let server = Self {
            cluster,
            database,
            directory: tempfile::tempdir()?,
        };
        let (ours, another) = (authority("ours")?, authority("another")?);
        fs::write(server.file("ours.crt"), ours.pem())?;
        fs::write(server.file("another.crt"), another.pem())?;
        let user = format!("{}_caller", server.database.name());
        let (certificate, key) = certify(&ours, None, Some(&user))?;
        fs::write(server.file("client.crt"), certificate)?;
        fs::write(server.file("client.key"), key)?;
        let (certificate, key) = certify(&ours, Some("localhost"), None)?;
        server.give("server.crt", &certificate)?;
        server.give("server.key", &key)?;
        server.give("root.crt", &ours.pem())?;
        Ok(server)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file in the server's data directory.
    fn give(&self, name: &str, text: &str) -> Result<()> {
        let data = self.cluster.directory().join("data");
        let owner = fs::metadata(&data)?;
        let path = data.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(chown(&path, Some(owner.uid()), Some(owner.gid()))?)
    }

    /// Switches TLS on or off, and sets the access rule for TCP.
    async fn configure(&self, ssl: &str, access: &str) -> Result<()> {
        self.give("pg_hba.conf", &format!("local all all trust\n{access}\n"))?;
        let admin = self.database.connect().await?;
        admin
            .batch_execute("alter system set ssl_ca_file = 'root.crt'")
            .await?;
        admin
            .batch_execute(&format!("alter system set ssl = {ssl}"))
            .await?;
        admin.batch_execute("select pg_reload_conf()").await?;
        eventually("the server to have its settings", async || {
            // A new session shows the server's current settings.
            let client = self.database.connect().await?;
            let now: String = client.query_one("show ssl", &[]).await?.get(0);
            Ok((now == ssl).then_some(()))
        })
        .await
    }

    /// Makes the server present another certificate.
    async fn present(&self, name: &str) -> Result<()> {
        let certificate = fs::read_to_string(self.file(&format!("{name}.crt")))?;
        self.give("server.crt", &certificate)?;
        self.give(
            "server.key",
            &fs::read_to_string(self.file(&format!("{name}.key")))?,
        )?;
        let admin = self.database.connect().await?;
        admin.batch_execute("select pg_reload_conf()").await?;
        let expected = fingerprint(&certificate)?;
        eventually("the server to present the certificate", async || {
            let output = Command::new("openssl")
                .args(["s_client", "-starttls", "postgres", "-connect"])
                .arg(format!("127.0.0.1:{}", self.cluster.port()))
                .stdin(Stdio::null())
                .output()?;
            let presented = String::from_utf8_lossy(&output.stdout).into_owned();
            Ok(fingerprint(&presented)
                .is_ok_and(|found| found == expected)
                .then_some(()))
        })
        .await
    }

    fn url(&self, host: &str, parameters: &str) -> String {
        let name = self.database.name();
        let path = |file: &str| self.file(file).display().to_string();
        let parameters = parameters
            .replace("OURS", &path("ours.crt"))
            .replace("ANOTHER", &path("another.crt"))
            .replace("CLIENT", &path("client"));
        let port = self.cluster.port();
        format!("postgresql://{name}_caller@{host}:{port}/{name}?{parameters}")
    }

    /// Starts a service with these parameters. Returns `tls`, `plain` or the reason why it is not ready, and
    /// its log.
    async fn outcome(&self, host: &str, parameters: &str) -> Result<(String, String)> {
        let mut api = Api::start(&self.url(host, parameters)).await?;
        let found = eventually("readiness or its reason", async || {
            let answer = api.health("ready").await?;
            let detail = answer.body["detail"].as_str().unwrap_or_default();
            Ok((detail != "the service is starting").then(|| detail.to_owned()))
        })
        .await?;
        if !found.is_empty() {
            api.service.terminate()?;
            api.service.exit().await?;
            return Ok((found, api.service.log()));
        }
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let user = format!("user {}", NEXT.fetch_add(1, Ordering::Relaxed));
        let answered = api.claim(&user, "PROMO").await?;
        assert_eq!(
            answered.shown(),
            "200",
            "{parameters}: {}",
            api.service.log()
        );
        let sql = "select ssl from pg_stat_ssl join pg_stat_activity using (pid)
                    where datname = current_database() and application_name = 'honcho-service'";
        let client = connect(self.database.superuser_url()).await?;
        let row = client.query_opt(sql, &[]).await?.context("no session")?;
        let found = if row.get(0) { "tls" } else { "plain" };
        let log = api.service.log();
        drop(api);
        eventually("its session to end", async || {
            Ok(client.query_opt(sql, &[]).await?.is_none().then_some(()))
        })
        .await?;
        Ok((found.to_owned(), log))
    }

    async fn check(&self, rows: &[(&str, &str, &str)]) -> Result<()> {
        for (host, parameters, expected) in rows {
            let (found, log) = self.outcome(host, parameters).await?;
            assert_eq!(&found, expected, "{host} {parameters}\n{log}");
        }
        Ok(())
    }
}

const UNREACHABLE: &str = "the database cannot be reached";
const REFUSED: &str = "the database refuses the service's connections";

#[tokio::test]
async fn sslmodes_mean_what_they_mean_to_libpq() -> Result<()> {
    let server = Server::start().await?;
    server
        .configure("on", "host all all 127.0.0.1/32 trust")
        .await?;
    server
        .check(&[
            ("127.0.0.1", "sslmode=disable", "plain"),
            ("127.0.0.1", "", "tls"),
            ("127.0.0.1", "sslmode=prefer", "tls"),
            ("127.0.0.1", "sslmode=require", "tls"),
            // With a root certificate, `require` verifies it.
            ("127.0.0.1", "sslmode=require&sslrootcert=OURS", "tls"),
            (
                "127.0.0.1",
                "sslmode=require&sslrootcert=ANOTHER",
                UNREACHABLE,
            ),
            ("127.0.0.1", "sslmode=verify-ca&sslrootcert=OURS", "tls"),
            (
                "127.0.0.1",
                "sslmode=verify-ca&sslrootcert=ANOTHER",
                UNREACHABLE,
            ),
            ("localhost", "sslmode=verify-full&sslrootcert=OURS", "tls"),
            (
                "localhost",
                "sslmode=verify-full&sslrootcert=ANOTHER",
                UNREACHABLE,
            ),
            // The certificate is not for this name.
            (
                "127.0.0.1",
                "sslmode=verify-full&sslrootcert=OURS",
                UNREACHABLE,
            ),
            // No authority of the system has signed it.
            ("localhost", "sslrootcert=system", UNREACHABLE),
        ])
        .await?;
    let (_, log) = server
        .outcome("127.0.0.1", "sslmode=verify-full&sslrootcert=OURS")
        .await?;
    assert!(log.contains("certificate not valid for name"), "{log}");
    let (_, log) = server
        .outcome("localhost", "sslmode=verify-full&sslrootcert=ANOTHER")
        .await?;
    assert!(log.contains("UnknownIssuer"), "{log}");
    server.database.books().await
}

#[tokio::test]
async fn server_without_tls_satisfies_only_disable_and_prefer() -> Result<()> {
    let server = Server::start().await?;
    server
        .configure("off", "host all all 127.0.0.1/32 trust")
        .await?;
    server
        .check(&[
            ("127.0.0.1", "sslmode=disable", "plain"),
            ("127.0.0.1", "sslmode=prefer", "plain"),
            ("127.0.0.1", "sslmode=require", UNREACHABLE),
            (
                "localhost",
                "sslmode=verify-full&sslrootcert=OURS",
                UNREACHABLE,
            ),
        ])
        .await?;
    let (_, log) = server.outcome("127.0.0.1", "sslmode=require").await?;
    assert!(log.contains("server does not support TLS"), "{log}");
    // Unix sockets have no TLS, whatever is asked for.
    let socket = server.cluster.directory().display().to_string();
    let url = |mode: &str| {
        format!(
            "host={socket} port={} user={name}_caller dbname={name} sslmode={mode}",
            server.cluster.port(),
            name = server.database.name()
        )
    };
    Api::start(&url("require")).await?.until_ready().await
}

#[tokio::test]
async fn client_certificate_is_presented_to_the_server() -> Result<()> {
    let server = Server::start().await?;
    server
        .configure("on", "hostssl all all 127.0.0.1/32 cert")
        .await?;
    server
        .check(&[
            ("127.0.0.1", "sslmode=disable", REFUSED),
            ("127.0.0.1", "sslmode=require", REFUSED),
            (
                "127.0.0.1",
                "sslmode=require&sslcert=CLIENT.crt&sslkey=CLIENT.key",
                "tls",
            ),
        ])
        .await?;
    server.database.books().await
}

#[tokio::test]
async fn invalid_certificate_files_are_refused_at_start() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let empty = directory.path().join("empty.crt");
    fs::write(&empty, "nothing")?;
    let missing = directory.path().join("missing.crt");
    let url = |parameters: &str, file: &Path| {
        format!(
            "postgresql://u:s3cret@localhost/d?{parameters}={}",
            file.display()
        )
    };
    for (parameters, file, expected) in [
        (
            "sslmode=verify-full&sslrootcert",
            &empty,
            "DATABASE_URL: sslrootcert names a file without a certificate",
        ),
        (
            "sslmode=verify-ca&sslrootcert",
            &missing,
            "DATABASE_URL: sslrootcert cannot be read",
        ),
        (
            "sslcert",
            &empty,
            "DATABASE_URL: sslcert needs sslkey beside it",
        ),
        (
            "sslmode=require&sslrootcert=system&user",
            &empty,
            "DATABASE_URL: sslmode must be verify-full where sslrootcert is system",
        ),
    ] {
        let url = url(parameters, file);
        refused(&["--check"], &[("DATABASE_URL", &url)], expected)?;
    }
    Ok(())
}

/// Runs OpenSSL in the directory of the clients' files.
fn openssl(directory: &Path, arguments: &str) -> Result<()> {
    let output = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(directory)
        .output()
        .context("openssl does not run")?;
    ensure!(
        output.status.success(),
        "openssl {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Certificates made with OpenSSL as PostgreSQL's manual shows: libpq accepts them.
#[tokio::test]
async fn openssl_certificates_are_verified_as_libpq_does() -> Result<()> {
    let server = Server::start().await?;
    let files = server.directory.path();
    let key = "-newkey rsa:2048 -nodes";
    fs::write(files.join("v3"), "basicConstraints = CA:FALSE\n")?;
    fs::write(files.join("other"), "subjectAltName = DNS:other.example\n")?;
    fs::write(files.join("address"), "subjectAltName = IP:127.0.0.1\n")?;
    fs::write(
        files.join("within"),
        "basicConstraints = critical, CA:TRUE\nnameConstraints = critical, permitted;DNS:example.org\n",
    )?;
    let sign = |name: &str, subject: &str, extensions: Option<&str>, authority: &str| {
        openssl(
            files,
            &format!("req -new {key} -keyout {name}.key -out {name}.csr -subj /CN={subject}"),
        )?;
        let extensions = extensions.map_or(String::new(), |file| format!(" -extfile {file}"));
        openssl(
            files,
            &format!(
                "x509 -req -in {name}.csr -days 2 -CA {authority}.crt -CAkey {authority}.key \
                 -CAcreateserial -out {name}.crt{extensions}"
            ),
        )
    };
    let itself = |name: &str, subject: &str| {
        openssl(
            files,
            &format!(
                "req -new -x509 {key} -days 2 -keyout {name}.key -out {name}.crt -subj /CN={subject}"
            ),
        )
    };
    itself("root", "root.example")?;
    itself("self", "localhost")?;
    itself("stranger", "localhost")?;
    itself("elsewhere", "elsewhere.example")?;
    // OpenSSL cannot make an expired certificate.
    let mut expired = CertificateParams::new(vec!["localhost".to_owned()])?;
    expired.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    expired.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let expired = CertifiedIssuer::self_signed(expired, KeyPair::generate()?)?;
    fs::write(files.join("expired.crt"), expired.pem())?;
    fs::write(files.join("expired.key"), expired.key().serialize_pem())?;
    sign("named", "localhost", Some("v3"), "root")?;
    sign("numbered", "127.0.0.1", Some("v3"), "root")?;
    sign("another-san", "localhost", Some("other"), "root")?;
    sign("address-san", "localhost", Some("address"), "root")?;
    sign("within", "within.example", Some("within"), "root")?;
    sign("constrained", "localhost", Some("v3"), "within")?;
    sign("old", "localhost", None, "root")?;
    let chain = fs::read_to_string(files.join("constrained.crt"))?
        + &fs::read_to_string(files.join("within.crt"))?;
    fs::write(files.join("constrained.crt"), chain)?;
    server
        .configure("on", "host all all 127.0.0.1/32 trust")
        .await?;
    for (certificate, root, host, mode, expected) in [
        // A self-signed certificate, as `openssl req -x509` makes it.
        ("self", "self", "localhost", "verify-full", "tls"),
        ("self", "self", "127.0.0.1", "verify-ca", "tls"),
        ("self", "self", "127.0.0.1", "verify-full", UNREACHABLE),
        (
            "elsewhere",
            "elsewhere",
            "localhost",
            "verify-full",
            UNREACHABLE,
        ),
        ("elsewhere", "elsewhere", "localhost", "verify-ca", "tls"),
        // Another certificate with the same name as the trusted one.
        ("stranger", "self", "localhost", "verify-ca", UNREACHABLE),
        ("expired", "expired", "localhost", "verify-ca", UNREACHABLE),
        // The host is in the common name only.
        ("named", "root", "localhost", "verify-full", "tls"),
        ("named", "root", "127.0.0.1", "verify-full", UNREACHABLE),
        ("named", "self", "localhost", "verify-full", UNREACHABLE),
        ("numbered", "root", "127.0.0.1", "verify-full", "tls"),
        ("numbered", "root", "localhost", "verify-full", UNREACHABLE),
        // A subject alternative name of the host's kind replaces the common name.
        (
            "another-san",
            "root",
            "localhost",
            "verify-full",
            UNREACHABLE,
        ),
        ("address-san", "root", "localhost", "verify-full", "tls"),
        ("address-san", "root", "127.0.0.1", "verify-full", "tls"),
        // The authority is constrained to example.org.
        (
            "constrained",
            "root",
            "localhost",
            "verify-full",
            UNREACHABLE,
        ),
        ("constrained", "root", "localhost", "verify-ca", "tls"),
    ] {
        let case = format!("{certificate} {root} {host} {mode}");
        server.present(certificate).await?;
        let root = server.file(&format!("{root}.crt")).display().to_string();
        let parameters = format!("sslmode={mode}&sslrootcert={root}");
        let (found, log) = server.outcome(host, &parameters).await?;
        assert_eq!(found, expected, "{case}\n{log}");
    }
    // Some versions of OpenSSL make X.509 version 1 certificates with the manual's commands.
    let old = Command::new("openssl")
        .args(["x509", "-in", "old.crt", "-noout", "-text"])
        .current_dir(files)
        .output()?;
    if String::from_utf8_lossy(&old.stdout).contains("Version: 1 ") {
        server.present("old").await?;
        let root = server.file("root.crt").display().to_string();
        let parameters = format!("sslmode=verify-full&sslrootcert={root}");
        let (found, log) = server.outcome("localhost", &parameters).await?;
        assert_eq!(found, UNREACHABLE);
        assert!(
            log.contains("X.509 version 1") && log.contains("-extfile"),
            "{log}"
        );
    }
    server.database.books().await
}

/// Certificates are replaced while the service runs.
#[tokio::test]
async fn reload_reads_certificates_again() -> Result<()> {
    let server = Server::start().await?;
    server
        .configure("on", "hostssl all all 127.0.0.1/32 cert")
        .await?;
    let keep = |name: &str, from: &str| fs::copy(server.file(from), server.file(name));
    let stranger = authority("stranger")?;
    let user = format!("{}_caller", server.database.name());
    let (certificate, key) = certify(&stranger, None, Some(&user))?;
    fs::write(server.file("mine.crt"), certificate)?;
    fs::write(server.file("mine.key"), key)?;
    keep("trusted.crt", "another.crt")?;
    let path = |name: &str| server.file(name).display().to_string();
    let parameters = format!(
        "sslmode=verify-full&sslrootcert={}&sslcert={}&sslkey={}",
        path("trusted.crt"),
        path("mine.crt"),
        path("mine.key")
    );
    let api = Api::start(&server.url("localhost", &parameters)).await?;
    api.until_not_ready(UNREACHABLE).await?;
    keep("trusted.crt", "ours.crt")?;
    api.reload("new connections to the database use").await?;
    // The server's certificate is trusted now, and the client's is not.
    api.until_not_ready(UNREACHABLE).await?;
    fs::write(server.file("mine.crt"), "nothing")?;
    api.reload("the old tokens, keys and certificates stay: DATABASE_URL: sslcert")
        .await?;
    keep("mine.crt", "client.crt")?;
    keep("mine.key", "client.key")?;
    api.reload("new connections to the database use").await?;
    api.until_ready().await?;
    assert_eq!(api.claim("user", "PROMO").await?.shown(), "200");
    server.database.books().await
}
