//! Runs the code blocks.
//!
//! A page's `sql` blocks run in order in a database of the page's own, which is empty at first. Its `sh` blocks run
//! against a service on another database of the page's own. A block that is not run says why in a comment above it,
//! `<!-- not run: … -->`, and statements that a reader need not see stand in `<!-- setup: … -->`.
//!
//! - `sql`: a comment behind a statement that returns rows is its result, or `no row`, and behind a statement that
//!   fails it is `ERROR` and the SQLSTATE; an explanation may follow after `: `.
//! - `sh`: comment lines below a command are its output.
//! - `python`: comments behind `print(…)` are the output, line by line.
//! - `toml`: a configuration that `honcho-service --check` accepts.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use honcho_tests::{Cluster, ClusterOptions, Database, Service, books, connect, eventually};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::pages::{Part, pages, parts, read};

/// Address of the service in the documentation.
const ADDRESS: &str = "http://localhost:8080";

/// The statements of a block, each with the comment that stands behind it.
fn statements(text: &str) -> Result<Vec<(String, Option<String>)>> {
    let mut statements = Vec::new();
    let mut statement = String::new();
    let mut is_quoted = false;
    for line in text.lines() {
        is_quoted ^= line.matches("$$").count() % 2 == 1;
        let (code, comment) = match line.find("--") {
            Some(at) => (&line[..at], Some(line[at + 2..].trim().to_owned())),
            None => (line, None),
        };
        if code.trim().is_empty() {
            continue;
        }
        statement.push_str(code);
        statement.push('\n');
        if code.trim_end().ends_with(';') && !is_quoted {
            statements.push((std::mem::take(&mut statement), comment));
        }
    }
    ensure!(
        statement.is_empty(),
        "a statement without its end: {statement}"
    );
    Ok(statements)
}

/// The rows as a comment has them: columns separated by ` | `, rows by `, `. None if there was no result set.
fn rows(messages: &[SimpleQueryMessage]) -> Option<String> {
    let mut rows = Vec::new();
    let mut has_columns = false;
    for message in messages {
        match message {
            SimpleQueryMessage::RowDescription(_) => has_columns = true,
            SimpleQueryMessage::Row(row) => {
                let columns: Vec<&str> = (0..row.len())
                    .map(|column| row.get(column).unwrap_or_default())
                    .collect();
                rows.push(columns.join(" | "));
            }
            _ => {}
        }
    }
    if rows.is_empty() {
        has_columns.then(|| "no row".to_owned())
    } else {
        Some(rows.join(", "))
    }
}

/// Returns true if a comment says `result`, perhaps with an explanation behind it.
fn says(comment: &str, result: &str) -> bool {
    comment
        .strip_prefix(result)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(": "))
}

pub(super) async fn run_sql(client: &Client, text: &str) -> Result<()> {
    for (statement, comment) in statements(text)? {
        let result = match client.simple_query(&statement).await {
            Ok(messages) => rows(&messages),
            Err(error) => {
                let Some(state) = error.code() else {
                    return Err(error.into());
                };
                let result = format!("ERROR {}", state.code());
                let expected = comment
                    .as_ref()
                    .is_some_and(|comment| says(comment, &result));
                ensure!(expected, "{statement}gave {error:?}");
                continue;
            }
        };
        let Some(comment) = comment else {
            continue;
        };
        ensure!(
            !comment.starts_with("ERROR "),
            "{statement}gave {result:?}, not {comment}"
        );
        if let Some(result) = result {
            ensure!(
                says(&comment, &result),
                "{statement}gave {result:?}, not {comment:?}"
            );
        }
    }
    Ok(())
}

/// Runs a program with `input` as its standard input, and gives what it wrote.
pub(super) fn run(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{command:?} does not start"))?;
    child
        .stdin
        .take()
        .context("no standard input")?
        .write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// The commands of a block, each with the comment lines below it.
fn commands(text: &str) -> Vec<(String, String)> {
    let mut commands = Vec::new();
    let mut command = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        command.push_str(line);
        command.push('\n');
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut expected = Vec::new();
        while let Some(output) = lines.next_if(|line| line.starts_with("# ")) {
            expected.push(&output[2..]);
        }
        if !expected.is_empty() || lines.peek().is_none() {
            commands.push((std::mem::take(&mut command), expected.join("\n")));
        }
    }
    commands
}

fn run_sh(service: &Service, text: &str) -> Result<()> {
    let own = format!("http://{}", service.address());
    for (command, expected) in commands(text) {
        let script = command.replace(ADDRESS, &own);
        let output = run(Command::new("sh").args(["-e", "-s"]), &script)
            .with_context(|| format!("{script} failed"))?;
        let output = output.replace(&own, ADDRESS).replace('\r', "");
        ensure!(
            expected.is_empty() || output.trim() == expected,
            "{script}gave {output}not {expected}"
        );
    }
    Ok(())
}

fn run_python(cluster: &Cluster, database: &Database, text: &str) -> Result<()> {
    let expected: Vec<&str> = text
        .lines()
        .filter(|line| line.trim_start().starts_with("print("))
        .filter_map(|line| line.rsplit_once("# ").map(|(_, comment)| comment))
        .collect();
    // Debian's own, for which scripts/setup installs the driver.
    let mut python = Command::new("/usr/bin/python3");
    python
        .arg("-")
        .env("PGHOST", cluster.directory())
        .env("PGPORT", cluster.port().to_string())
        .env("PGUSER", "postgres")
        .env("PGDATABASE", database.name());
    let output = run(&mut python, text)?;
    let output: Vec<&str> = output.lines().collect();
    ensure!(output == expected, "gave {output:?}, not {expected:?}");
    Ok(())
}

fn run_toml(text: &str) -> Result<()> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(text.as_bytes())?;
    let mut check = Service::command()?;
    run(check.arg("--check").arg("--config").arg(file.path()), "")?;
    Ok(())
}

/// The database, and if need be the service, on which the blocks of one page run.
struct Page {
    database: Database,
    client: Client,
    /// The service, with a database of its own.
    service: Option<Service>,
}

impl Page {
    async fn new(cluster: &Cluster) -> Result<Self> {
        let database = Database::create_empty(cluster).await?;
        Ok(Self {
            client: database.connect().await?,
            database,
            service: None,
        })
    }

    async fn service(&mut self, cluster: &Cluster) -> Result<&Service> {
        if self.service.is_none() {
            let database = Database::create(cluster).await?;
            let service = Service::start(database.superuser_url()).await?;
            eventually("the service to be ready", async || {
                let ready = reqwest::get(service.url("/health/ready")).await?;
                Ok(ready.status().is_success().then_some(()))
            })
            .await?;
            self.service = Some(service);
        }
        self.service.as_ref().context("no service")
    }

    async fn run(&mut self, cluster: &Cluster, part: &Part) -> Result<()> {
        let (language, text) = match part {
            Part::Setup(sql) => return Ok(self.client.batch_execute(sql).await?),
            Part::Block {
                not_run: Some(reason),
                ..
            } => {
                ensure!(!reason.is_empty(), "no reason");
                return Ok(());
            }
            Part::Block { language, text, .. } => (language.as_str(), text),
        };
        match language {
            "sql" => run_sql(&self.client, text).await,
            "sh" => run_sh(self.service(cluster).await?, text),
            "python" => run_python(cluster, &self.database, text),
            "toml" => run_toml(text),
            // A picture.
            "text" => Ok(()),
            other => bail!("nothing here runs blocks of the kind {other:?}"),
        }
    }
}

#[tokio::test]
async fn code_blocks_of_the_documentation_run() -> Result<()> {
    // Its own, for pages make roles and prepare transactions.
    let cluster = ClusterOptions::default()
        .setting("fsync", "off")
        .setting("max_prepared_transactions", "5")
        .start()?;
    let mut count = 0;
    let mut failures = Vec::new();
    for name in pages()? {
        let parts = parts(&read(&name)?).with_context(|| name.display().to_string())?;
        if parts.is_empty() {
            continue;
        }
        let mut page = Page::new(&cluster).await?;
        for (line, part) in parts {
            count += 1;
            if let Err(error) = page.run(&cluster, &part).await {
                failures.push(format!("{}:{line}: {error:#}", name.display()));
                break;
            }
        }
        let has_functions = "select to_regprocedure('honcho_verify(text)') is not null";
        let client = connect(page.database.superuser_url()).await?;
        if client.query_one(has_functions, &[]).await?.get(0) {
            books(&client)
                .await
                .with_context(|| name.display().to_string())?;
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    assert!(count > 50, "only {count} blocks were found");
    Ok(())
}

#[test]
fn broken_blocks_are_noticed() -> Result<()> {
    let page =
        "<!-- not run: why -->\n```go\nx\n```\n\n1. a\n   ```sql\n   select 1;  -- 1\n   ```\n";
    let block = |language: &str, text: &str, not_run: Option<&str>| Part::Block {
        language: language.to_owned(),
        text: text.to_owned(),
        not_run: not_run.map(ToOwned::to_owned),
    };
    assert_eq!(
        parts(page)?,
        [
            (2, block("go", "x\n", Some("why"))),
            (7, block("sql", "select 1;  -- 1\n", None)),
        ]
    );
    for broken in [
        "```sql\nselect 1;\n",
        "<!-- not run: why -->\n\n```sql\n```\n",
        "<!-- not run: why -->\n",
        "<!-- setup: select 1;\n",
    ] {
        assert!(parts(broken).is_err(), "{broken}");
    }
    let body = "do $$\nbegin\n  null;\nend $$;  -- done\nselect 'a';\n-- by itself\n";
    let split = statements(body)?;
    assert_eq!(split.len(), 2, "{split:?}");
    assert_eq!(split[0].1.as_deref(), Some("done"));
    assert!(statements("select 1\n").is_err());
    assert!(says("claimed", "claimed") && says("claimed: one of two", "claimed"));
    assert!(!says("claimed once", "claimed") && !says("sold_out", "claimed"));
    let split = commands("# first\na\n# out\n# put\n\nb\n");
    let expected = [("# first\na\n", "out\nput"), ("\nb\n", "")];
    assert_eq!(
        split,
        expected.map(|(command, output)| (command.to_owned(), output.to_owned()))
    );
    Ok(())
}
