//! Libraries in C that are preloaded into a server, to make its machine fail.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};

/// A compiled library, removed when dropped: it must stay where the server was told to find it.
pub struct Library {
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Library {
    /// Compiles `source` under this name.
    pub fn compile(name: &str, source: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        // Root's directories are closed to the user that PostgreSQL runs as.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        let input = directory.path().join(format!("{name}.c"));
        let path = directory.path().join(format!("{name}.so"));
        fs::write(&input, source)?;
        let compiled = Command::new("cc")
            .args(["-O1", "-shared", "-fPIC", "-o"])
            .args([&path, &input])
            .arg("-ldl")
            .output()?;
        ensure!(
            compiled.status.success(),
            "{}",
            String::from_utf8_lossy(&compiled.stderr)
        );
        Ok(Self {
            path,
            _directory: directory,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
