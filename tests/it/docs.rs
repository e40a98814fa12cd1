//! The documentation: its code blocks run and answer as they say, its links lead somewhere, and its lists of settings,
//! metrics, functions and problem codes are complete.
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
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use honcho_tests::{Cluster, ClusterOptions, Database, Service, books, connect, eventually};
use tokio_postgres::{Client, SimpleQueryMessage};

/// The address of the service in the documentation.
const ADDRESS: &str = "http://localhost:8080";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The paths of the pages, relative to the repository.
fn pages() -> Result<Vec<PathBuf>> {
    let mut pages = vec![PathBuf::from("README.md"), PathBuf::from("SECURITY.md")];
    let mut folders = vec![PathBuf::from("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    Ok(pages)
}

fn read(page: impl AsRef<Path>) -> Result<String> {
    let page = page.as_ref();
    fs::read_to_string(root().join(page)).with_context(|| page.display().to_string())
}

/// A part of a page that the test looks at.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// A fenced code block: its language, and its text without the indentation of its fence.
    Block {
        language: String,
        text: String,
        /// The reason why it is not run.
        not_run: Option<String>,
    },
    /// SQL that runs before the next block, and that readers do not see.
    Setup(String),
}

/// The parts of a page, each with the number of the line on which it begins.
fn parts(page: &str) -> Result<Vec<(usize, Part)>> {
    let mut parts = Vec::new();
    let mut not_run = None;
    let mut lines = (1..).zip(page.lines());
    while let Some((number, line)) = lines.next() {
        let trimmed = line.trim_start();
        if let Some(reason) = trimmed.strip_prefix("<!-- not run: ") {
            let reason = reason.strip_suffix(" -->").context("an unclosed comment")?;
            not_run = Some(reason.to_owned());
        } else if let Some(first) = trimmed.strip_prefix("<!-- setup:") {
            let mut sql = String::new();
            let mut rest = first;
            loop {
                let (content, is_last) = match rest.split_once("-->") {
                    Some((content, _)) => (content, true),
                    None => (rest, false),
                };
                sql.push_str(content);
                sql.push('\n');
                if is_last {
                    break;
                }
                (_, rest) = lines.next().context("an unclosed comment")?;
            }
            parts.push((number, Part::Setup(sql)));
        } else if let Some(language) = trimmed.strip_prefix("```") {
            let indentation = line.len() - trimmed.len();
            let mut text = String::new();
            loop {
                let (_, line) = lines.next().context("an unclosed block")?;
                if line.trim() == "```" {
                    break;
                }
                text.push_str(line.get(indentation..).unwrap_or_default());
                text.push('\n');
            }
            parts.push((
                number,
                Part::Block {
                    language: language.trim().to_owned(),
                    text,
                    not_run: not_run.take(),
                },
            ));
        } else if let Some(reason) = not_run.take() {
            bail!("line {number}: no block follows after \"not run: {reason}\"");
        }
    }
    ensure!(not_run.is_none(), "no block follows after \"not run\"");
    Ok(parts)
}

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

async fn run_sql(client: &Client, text: &str) -> Result<()> {
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
fn run(command: &mut Command, input: &str) -> Result<String> {
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

/// Runs the recipes' functions in the middle of claims and restocks: no deadlock, and right books.
#[tokio::test]
async fn recipes_hold_in_a_crowd() -> Result<()> {
    const USERS: usize = 12;
    const ROUNDS: usize = 25;
    // Its own, for the recipes make a role.
    let cluster = ClusterOptions::default().setting("fsync", "off").start()?;
    let database = Database::create_empty(&cluster).await?;
    let client = database.connect().await?;
    for (_, part) in parts(&read("docs/recipes.md")?)? {
        if let Part::Block { language, text, .. } = part
            && language == "sql"
        {
            run_sql(&client, &text).await?;
        }
    }
    client
        .batch_execute(
            "select honcho_create_coupon('ORDERED', 4), honcho_create_coupon('GIVEN', 4)",
        )
        .await?;
    // Two sessions for each user, so that they also meet themselves.
    let sessions = (0..2 * USERS).map(|session| {
        let url = database.superuser_url().to_owned();
        tokio::spawn(async move {
            let mut client = connect(&url).await?;
            let user = format!("user {}", session % USERS);
            for round in 0..ROUNDS {
                order(&mut client, &user, round).await?;
                // From one user to another: a claim first, then what changes the coupon.
                let other = format!("user {}", (session + round) % USERS);
                let transaction = client.transaction().await?;
                let claim = "select honcho_claim($1, 'GIVEN')::text";
                transaction.query_one(claim, &[&user]).await?;
                let give_back = "select shop.give_back($1, 'GIVEN')";
                transaction.query_one(give_back, &[&other]).await?;
                transaction.commit().await?;
                client.query_one(give_back, &[&other]).await?;
                if session == 0 && round % 5 == 0 {
                    let restock = "update coupons set amount = amount + 1,
                                                      remaining_amount = remaining_amount + 1
                                    where name = 'ORDERED'";
                    client.batch_execute(restock).await?;
                    client.batch_execute("call shop.expire()").await?;
                }
            }
            anyhow::Ok(())
        })
    });
    for session in sessions.collect::<Vec<_>>() {
        session.await??;
    }
    let differ = "select count(*) from
                      (select user_id from shop.orders
                        where coupon_name = 'ORDERED' and state <> 'cancelled') o
                      full join (select user_id from claims where coupon_name = 'ORDERED') c
                      on o.user_id = c.user_id
                  where o.user_id is null or c.user_id is null";
    let differ: i64 = client.query_one(differ, &[]).await?.get(0);
    assert_eq!(
        differ, 0,
        "orders without a claim, or claims without an order"
    );
    books(&client).await
}

/// Orders and claims in one transaction, then pays or cancels.
async fn order(client: &mut Client, user: &str, round: usize) -> Result<()> {
    let transaction = client.transaction().await?;
    let insert = "insert into shop.orders (user_id, coupon_name, pay_until)
                  values ($1, 'ORDERED', clock_timestamp() + $2 * interval '1 ms')
                  on conflict do nothing returning id";
    let Some(order) = transaction
        .query_opt(insert, &[&user, &f64::from(u8::try_from(round)?)])
        .await?
    else {
        return Ok(transaction.rollback().await?);
    };
    let order: i64 = order.get(0);
    let outcome = "select honcho_claim($1, 'ORDERED')::text";
    let outcome: String = transaction.query_one(outcome, &[&user]).await?.get(0);
    if outcome != "claimed" {
        return Ok(transaction.rollback().await?);
    }
    transaction.commit().await?;
    if round == 20 {
        let pay = "update shop.orders set state = 'paid' where id = $1 and state = 'pending'";
        client.execute(pay, &[&order]).await?;
    } else if !round.is_multiple_of(4) {
        client
            .query_one("select shop.cancel($1)", &[&order])
            .await?;
    }
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

/// The anchor that GitHub and mdBook give a heading.
fn anchor(heading: &str) -> String {
    heading
        .trim()
        .to_lowercase()
        .chars()
        .filter_map(|character| match character {
            ' ' => Some('-'),
            '-' | '_' => Some(character),
            other => other.is_alphanumeric().then_some(other),
        })
        .collect()
}

/// The lines of a page outside of its code blocks.
fn prose(page: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    page.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// The targets of a page's links to files of the repository.
fn links(page: &str) -> Vec<&str> {
    let mut links = Vec::new();
    for line in prose(page) {
        for rest in line.split("](").skip(1) {
            let target = rest.split(')').next().unwrap_or_default();
            if !target.contains("://") {
                links.push(target);
            }
        }
    }
    links
}

#[test]
fn links_of_the_documentation_lead_somewhere() -> Result<()> {
    let mut broken = Vec::new();
    for name in pages()? {
        let page = read(&name)?;
        for link in links(&page) {
            let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => name.clone(),
                path => name.with_file_name(path),
            };
            let found = root().join(&target);
            let leads = found.exists()
                && (fragment.is_empty()
                    || prose(&fs::read_to_string(&found)?).any(|line| {
                        let heading = line.trim_start_matches('#');
                        heading.len() < line.len() && anchor(heading) == fragment
                    }));
            if !leads {
                broken.push(format!("{}: {link}", name.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    Ok(())
}

#[test]
fn every_page_is_in_the_summary_and_the_readme_is_short() -> Result<()> {
    let summary = read("docs/SUMMARY.md")?;
    let listed = links(&summary);
    for page in pages()? {
        let is_listed = listed.iter().any(|link| {
            Path::new("docs").join(link) == page
                || link.strip_prefix("../").map(Path::new) == Some(&page)
        });
        assert!(
            is_listed || page.ends_with("SUMMARY.md"),
            "{} is not in SUMMARY.md",
            page.display()
        );
    }
    let length = read("README.md")?.lines().count();
    assert!(length <= 150, "README.md has {length} lines");
    Ok(())
}

#[test]
fn settings_are_documented_as_the_service_prints_them() -> Result<()> {
    let printed = run(
        Command::new(root().join("scripts/settings-doc")).arg("--print"),
        "",
    )?;
    assert!(
        printed == read("docs/settings.md")?,
        "docs/settings.md differs from what scripts/settings-doc writes: run it"
    );
    Ok(())
}

#[tokio::test]
async fn every_metric_is_documented_with_its_type() -> Result<()> {
    let database = crate::database().await?;
    let service = Service::start(database.caller_url()).await?;
    let metrics = reqwest::get(service.url("/metrics")).await?.text().await?;
    let shown: BTreeSet<(String, String)> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, kind)| {
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            (format!("{name}{suffix}"), kind.to_owned())
        })
        .collect();
    let page = read("docs/metrics.md")?;
    let documented: BTreeSet<(String, String)> = page
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split('|');
            let name = cells.next()?.trim().trim_end_matches('`');
            Some((name.to_owned(), cells.next()?.trim().to_owned()))
        })
        .filter(|(name, _)| name.starts_with("honcho_") || name.starts_with("process_"))
        .collect();
    assert_eq!(documented, shown);
    Ok(())
}

#[tokio::test]
async fn every_function_has_a_section() -> Result<()> {
    let database = crate::database().await?;
    let functions = database
        .connect()
        .await?
        .query(
            "select p.proname::text from pg_depend d
               join pg_proc p on d.classid = 'pg_proc'::regclass and d.objid = p.oid
               join pg_extension e on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid
              where e.extname = 'honcho' and d.deptype = 'e' and p.prorettype <> 'trigger'::regtype",
            &[],
        )
        .await?;
    let page = read("docs/sql.md")?;
    assert!(functions.len() >= 9);
    for function in functions {
        let name: &str = function.get(0);
        assert!(
            page.lines().any(|line| line == format!("### {name}")),
            "docs/sql.md has no section {name}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn every_problem_code_is_documented() -> Result<()> {
    let database = crate::database().await?;
    let service = Service::start(database.caller_url()).await?;
    let document: serde_json::Value = reqwest::get(service.url("/openapi.json"))
        .await?
        .json()
        .await?;
    let mut codes = BTreeSet::new();
    collect_codes(&document, &mut codes);
    assert!(codes.len() > 20, "{codes:?}");
    let page = read("docs/http.md")? + &read("docs/sql.md")?;
    for code in codes {
        assert!(
            page.contains(&format!("`{code}`")),
            "no {code} in the pages"
        );
    }
    Ok(())
}

/// The values of every property `code` in the API's description.
fn collect_codes(value: &serde_json::Value, codes: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            if let Some(values) = fields.get("code").and_then(|code| code["enum"].as_array()) {
                codes.extend(
                    values
                        .iter()
                        .filter_map(|value| value.as_str().map(ToOwned::to_owned)),
                );
            }
            for field in fields.values() {
                collect_codes(field, codes);
            }
        }
        serde_json::Value::Array(values) => {
            for value in values {
                collect_codes(value, codes);
            }
        }
        _ => {}
    }
}
