//! The rules of the tree that the compiler and clippy do not check.
//!
//! Each rule is a function from the files to problems, with good and bad snippets in its tests.

mod binaries;
mod dead;
mod edges;
mod length;
mod text;
mod unsafety;

use crate::scan::{self, Masked};
use crate::tree::{self, File};

/// What to do with numbers in `xtask/ratchet.txt` that the tree no longer needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ratchet {
    /// Report them.
    Check,
    /// Write the smaller ones.
    Lower,
}

/// Something that breaks a rule.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub path: String,
    /// Counted from 1; 0 for the whole file.
    pub line: usize,
    pub message: String,
}

impl Problem {
    pub fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            message: message.into(),
        }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.message),
            line => write!(f, "{}:{line}: {}", self.path, self.message),
        }
    }
}

/// A Rust file and what the scanner made of it.
pub struct Source<'a> {
    pub file: &'a File,
    pub masked: Masked,
}

fn sources(files: &[File]) -> Vec<Source<'_>> {
    let rust = files.iter().filter(|file| file.is_rust());
    rust.filter_map(|file| {
        Some(Source {
            file,
            masked: scan::mask(file.text()?),
        })
    })
    .collect()
}

/// Runs all rules.
pub fn run(ratchet: Ratchet) -> Result<String, String> {
    let files = tree::files()?;
    let sources = sources(&files);
    let mut problems = Vec::new();
    problems.extend(edges::check(&files));
    problems.extend(unsafety::check(&sources));
    problems.extend(dead::check(&files, &sources));
    problems.extend(text::check(&files, &sources));
    problems.extend(binaries::check(&files));
    problems.extend(length::check(&sources, ratchet)?);
    problems.sort();
    if problems.is_empty() {
        return Ok(format!(
            "tidy: {} files, {} of them Rust: clean",
            files.len(),
            sources.len()
        ));
    }
    let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
    Err(format!(
        "{}\ntidy: {} problems",
        lines.join("\n"),
        problems.len()
    ))
}
