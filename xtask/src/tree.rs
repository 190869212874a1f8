//! The files of the repository.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies one folder below the root")
}

/// A file of the tree: its path from the root with `/` between parts, and its bytes.
#[derive(Debug, Clone)]
pub struct File {
    pub path: String,
    pub bytes: Vec<u8>,
}

impl File {
    #[cfg(test)]
    pub fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            bytes: text.as_bytes().to_vec(),
        }
    }

    /// The text of the file, or `None` for a binary.
    pub fn text(&self) -> Option<&str> {
        if self.bytes.contains(&0) {
            return None;
        }
        std::str::from_utf8(&self.bytes).ok()
    }

    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// The crate folder that the file lies in: `crates/<name>`, `xtask` or `fuzz`.
    pub fn crate_dir(&self) -> Option<&str> {
        let mut parts = self.path.split('/');
        match parts.next()? {
            "crates" => {
                let name = parts.next()?;
                Some(&self.path[.."crates/".len() + name.len()])
            }
            top @ ("xtask" | "fuzz") => Some(&self.path[..top.len()]),
            _ => None,
        }
    }
}

/// Reads every file that git tracks or would track.
pub fn files() -> Result<Vec<File>, String> {
    let output = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(root())
        .output()
        .map_err(|error| format!("git ls-files: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "git ls-files: {}",
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    let names = String::from_utf8_lossy(&output.stdout);
    let mut files = Vec::new();
    for name in names.split('\0').filter(|name| !name.is_empty()) {
        let path: PathBuf = root().join(name);
        // A tracked file may have been removed from the work tree, and a link may point anywhere.
        let is_file = path
            .symlink_metadata()
            .is_ok_and(|metadata| metadata.is_file());
        if is_file {
            let bytes = std::fs::read(&path).map_err(|error| format!("{name}: {error}"))?;
            files.push(File {
                path: name.to_owned(),
                bytes,
            });
        }
    }
    Ok(files)
}
