use std::{
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};

use crate::cluster::owner;

/// Ends the programs and servers in a directory and removes it at the end of its standard input, which comes when the
/// owning process drops the directory or dies in any way. Statics are never dropped, so the shared cluster of a test
/// binary depends on it.
const GUARD: &str = r#"
cat >/dev/null
# First the programs that would start a server again.
for file in "$1"/*.pid; do
    if [ -f "$file" ]; then kill -KILL "$(cat "$file")" 2>/dev/null; fi
done
for file in "$1"/*/postmaster.pid; do
    # A server that was killed leaves its lock file behind.
    if [ -f "$file" ] && kill -QUIT "$(head -n 1 "$file")" 2>/dev/null; then
        # It may be frozen.
        kill -CONT "$(head -n 1 "$file")" 2>/dev/null
        tries=0
        while [ -f "$file" ] && [ "$tries" -lt 100 ]; do
            sleep 0.1
            tries=$((tries + 1))
        done
    fi
done
rm -rf "$1"
"#;

/// A directory of servers, which belongs to the user that runs PostgreSQL. When it is dropped or this process ends, the
/// servers whose data directories are in it are stopped, the programs whose process ids are in its files `*.pid` are
/// killed, and it is removed.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    guard: Child,
}

impl Directory {
    /// Makes a directory under `parent`.
    pub(crate) fn new(parent: &Path) -> Result<Self> {
        let path = tempfile::Builder::new()
            .prefix("honcho-")
            .tempdir_in(parent)
            .with_context(|| format!("no directory under {}", parent.display()))?
            .keep();
        let guard = Command::new("sh")
            .args(["-c", GUARD, "honcho-guard"])
            .arg(&path)
            .stdin(Stdio::piped())
            // Its own process group: a Ctrl+C at the terminal must not end it with its owner.
            .process_group(0)
            .spawn()
            .context("the guard did not start")?;
        let directory = Self { path, guard };
        if let Some((user, group)) = owner()? {
            chown(&directory.path, Some(user), Some(group))?;
        }
        Ok(directory)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}
