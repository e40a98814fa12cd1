//! The pages of the documentation, and their code blocks.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

pub(super) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The paths of the pages, relative to the repository.
pub(super) fn pages() -> Result<Vec<PathBuf>> {
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

pub(super) fn read(page: impl AsRef<Path>) -> Result<String> {
    let page = page.as_ref();
    fs::read_to_string(root().join(page)).with_context(|| page.display().to_string())
}

/// A part of a page that the test looks at.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
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
pub(super) fn parts(page: &str) -> Result<Vec<(usize, Part)>> {
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
