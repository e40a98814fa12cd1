//! The targets of the Makefile.

use std::{fs, process::Command};

use anyhow::Result;

/// `make` alone prints this help.
#[test]
fn make_help_lists_all_targets() -> Result<()> {
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
