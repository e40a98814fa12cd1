//! Imports go down: reads the `crate::` and `super::` paths of every source file, and compares them with the floors
//! that ARCHITECTURE.md lists. Test modules at the end of a file are left out.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

/// Modules of a crate by floor, the highest first.
struct Floors {
    /// Directory of the crate's sources.
    source: String,
    floors: Vec<Vec<String>>,
}

impl Floors {
    /// Reads the lists from fenced blocks ```` ```floors <directory> ````: one floor a line, the highest first.
    fn read(text: &str) -> Vec<Self> {
        let mut lists = Vec::new();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let Some(source) = line.strip_prefix("```floors ") else {
                continue;
            };
            let floors = lines
                .by_ref()
                .take_while(|line| *line != "```")
                .map(|line| line.split_whitespace().map(str::to_owned).collect())
                .collect();
            lists.push(Self {
                source: source.trim().to_owned(),
                floors,
            });
        }
        lists
    }

    /// Finds the listed module that contains `module`, and its floor: the longest that fits.
    fn find(&self, module: &str) -> Option<(&str, usize)> {
        let listed = self.floors.iter().enumerate().flat_map(|(floor, modules)| {
            modules.iter().map(move |module| (module.as_str(), floor))
        });
        listed
            .filter(|(listed, _)| is_within(module, listed))
            .max_by_key(|(listed, _)| listed.len())
    }

    /// Describes the paths of a file that go up, or across to another module of the same floor.
    fn check(&self, file: &str, module: &str, text: &str) -> Vec<String> {
        let Some((own, floor)) = self.find(module) else {
            return vec![format!("{file}: no floor lists the module {module}")];
        };
        let mut wrong = Vec::new();
        for path in paths(text, module) {
            match self.find(&path) {
                None => wrong.push(format!("{file}: no floor lists {path}")),
                Some((other, _)) if other == own => {}
                Some((_, below)) if below > floor => {}
                Some((other, _)) => {
                    wrong.push(format!("{file}: {own} must not use {path} of {other}"));
                }
            }
        }
        wrong
    }
}

fn is_within(module: &str, listed: &str) -> bool {
    module
        .strip_prefix(listed)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Lists the paths of the crate that a file uses, relative to its root.
fn paths(text: &str, module: &str) -> BTreeSet<String> {
    let code = text.split("#[cfg(test)]\n").next().unwrap_or_default();
    let code: String = code
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .fold(String::new(), |mut code, line| {
            writeln!(code, "{line}").unwrap();
            code
        });
    let mut found = BTreeSet::new();
    for (keyword, root) in [("crate::", ""), ("super::", parent(module))] {
        for (start, _) in code.match_indices(keyword) {
            let before = code[..start].chars().next_back();
            if before.is_some_and(|character| character.is_alphanumeric() || character == '_') {
                continue;
            }
            let mut rest = &code[start + keyword.len()..];
            let mut root = root;
            while let Some(further) = rest.strip_prefix("super::") {
                root = parent(root);
                rest = further;
            }
            add(rest, root, &mut found);
        }
    }
    found
}

fn parent(module: &str) -> &str {
    module.rsplit_once("::").map_or("", |(parent, _)| parent)
}

/// Adds the paths of a tree such as `a::{b, c::d}`; returns the text after it.
fn add<'a>(text: &'a str, root: &str, found: &mut BTreeSet<String>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = rest.trim_start_matches([',', ' ', '\n']);
            if let Some(after) = rest.strip_prefix('}') {
                return after;
            }
            rest = add(rest, root, found);
            // `as name`
            rest = &rest[rest.find([',', '}']).unwrap()..];
        }
    }
    let end = text
        .find(|character: char| !character.is_alphanumeric() && character != '_')
        .unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let path = match (root, name) {
        (root, "self" | "") => root.to_owned(),
        ("", name) => name.to_owned(),
        (root, name) => format!("{root}::{name}"),
    };
    match rest.strip_prefix("::") {
        Some(rest) => add(rest, &path, found),
        None => {
            if !path.is_empty() {
                found.insert(path);
            }
            rest
        }
    }
}

/// Lists the source files below `directory`, with their modules.
fn files(directory: &Path, module: &str, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let module = if module.is_empty() {
            name.to_owned()
        } else {
            format!("{module}::{name}")
        };
        if path.is_dir() {
            files(&path, &module, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push((path, module));
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn imports_go_down() {
    let architecture = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let lists = Floors::read(&architecture);
    let sources: Vec<_> = lists.iter().map(|list| list.source.as_str()).collect();
    assert_eq!(sources, ["service/src", "extension/src"]);
    let mut wrong = Vec::new();
    for list in lists {
        let mut found = Vec::new();
        files(&root().join(&list.source), "", &mut found);
        assert!(found.len() > 10, "{}: {} files", list.source, found.len());
        for (path, module) in found {
            let text = fs::read_to_string(&path).unwrap();
            wrong.extend(list.check(&path.display().to_string(), &module, &text));
        }
        for module in list.floors.iter().flatten() {
            let path = root().join(&list.source).join(module.replace("::", "/"));
            let exists = path.with_extension("rs").exists() || path.is_dir();
            if !exists {
                wrong.push(format!("{} has no module {module}", list.source));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn imports_that_go_up_or_across_are_found() {
    let list = &Floors::read("```floors src\nhttp\nhttp::routes\nlanes health\nerror\n```")[0];
    let check = |module: &str, text: &str| list.check("file", module, text).join("\n");
    for (module, text) in [
        (
            "http",
            "use crate::{error::Error, http::routes, lanes::{self, Lanes as L}};",
        ),
        (
            "http::routes::claims",
            "use super::invalid;\nuse crate::lanes::Lanes;",
        ),
        (
            "lanes",
            "use crate::error::Error; // crate::http\n#[cfg(test)]\nuse crate::http;",
        ),
    ] {
        assert_eq!(check(module, text), "", "{text}");
    }
    for (module, text, wrong) in [
        (
            "error",
            "use crate::http::routes::X;",
            "error must not use http::routes::X of http::routes",
        ),
        (
            "lanes",
            "use crate::{\n    error::Error,\n    health::Health,\n};",
            "lanes must not use health::Health of health",
        ),
        (
            "http::routes::claims",
            "use super::super::App;",
            "http::routes must not use http::App of http",
        ),
        (
            "lanes",
            "fn f() { crate::http::g() }",
            "lanes must not use http::g of http",
        ),
        ("error", "use crate::other::X;", "no floor lists other::X"),
        ("other", "", "no floor lists the module other"),
    ] {
        assert!(
            check(module, text).contains(wrong),
            "{text}: {}",
            check(module, text)
        );
    }
}
