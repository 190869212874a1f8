//! What can be wrong with a model file.

use std::io;
use std::path::{Path, PathBuf};

/// Why a model file was refused. Every variant names the file; those about its contents name the field, and the
/// offset where there is one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelFileError {
    /// The system could not open, read or map the file.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// The bytes break the rules of the file's format.
    #[error("{}: {field} at byte {offset}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Which part of the file.
        field: String,
        /// Offset in bytes from the start of the file.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
    /// A field of the metadata or of `config.json` is missing, contradictory or not supported.
    #[error("{}: {field}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The field, under the name that it has in the file.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor is missing, misshapen, not known, or holds values that cannot be used.
    #[error("{}: tensor '{tensor}': {reason}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor, under the name that it has in the file.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl ModelFileError {
    pub(crate) fn io(path: &Path, error: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            error,
        }
    }

    pub(crate) fn config(path: &Path, field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Config {
            path: path.to_owned(),
            field: field.into(),
            reason: reason.into(),
        }
    }

    pub(crate) fn tensor(
        path: &Path,
        tensor: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Self::Tensor {
            path: path.to_owned(),
            tensor: tensor.into(),
            reason: reason.into(),
        }
    }
}

/// What is wrong with a file that is the pointer by which Git stands in for a large one. Cloned without Git LFS, all of
/// a model's files are such.
pub(crate) fn git_lfs_pointer(contents: &[u8]) -> Option<&'static str> {
    contents.starts_with(b"version https://git-lfs").then_some(
        "is a pointer that Git LFS left in place of the file: get it by `git lfs pull`, or the model by `neap pull`",
    )
}

/// A fault found by a parser that does not know the file's name; `at` gives it one.
#[derive(Debug)]
pub(crate) struct Fault {
    pub field: String,
    pub offset: usize,
    pub reason: String,
}

impl Fault {
    pub(crate) fn new(field: impl ToString, offset: usize, reason: impl Into<String>) -> Self {
        Self {
            field: field.to_string(),
            offset,
            reason: reason.into(),
        }
    }

    pub(crate) fn at(self, path: &Path) -> ModelFileError {
        ModelFileError::Malformed {
            path: path.to_owned(),
            field: self.field,
            offset: self.offset as u64,
            reason: self.reason,
        }
    }
}
