//! Links, the summary, and the length of the README.

use std::{fs, path::Path};

use anyhow::Result;

use super::pages::{pages, read, root};

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
