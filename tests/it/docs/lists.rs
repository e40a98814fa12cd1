//! Lists that must be complete: settings, metrics, functions, problem codes.

use std::{collections::BTreeSet, process::Command};

use anyhow::Result;
use honcho_tests::Service;

use super::{
    blocks::run,
    pages::{read, root},
};

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
