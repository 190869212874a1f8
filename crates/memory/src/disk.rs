//! The disk level: blocks and sessions in append-only segment files.
//!
//! The format is described in `docs/disk-format.md`. Nothing that is read is trusted: a record that is
//! torn, damaged, or of another model is a miss, and a miss costs a recomputation, never an error.
#![forbid(unsafe_code)]

pub mod admission;
mod behind;
mod directory;
pub mod fake;
pub mod format;
pub mod prefetch;
pub mod storage;
mod store;

#[cfg(test)]
mod tests;

pub use admission::Admission;
pub use directory::{Directory, DirectoryOptions};
pub use prefetch::{Fetched, Payload, Prefetch};
pub use storage::Storage;
pub use store::{DiskOptions, DiskStats, DiskStore, Meta};

/// Why something was not written.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file system failed.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The record does not fit the store's limit.
    #[error("a record of {needed} bytes does not fit a disk level of {limit} bytes")]
    TooLarge {
        /// Bytes of the record.
        needed: u64,
        /// Bytes of the store.
        limit: u64,
    },
    /// Everything on disk is pinned.
    #[error("{needed} bytes do not fit: {pinned} of {limit} bytes of the disk level are pinned")]
    Full {
        /// Bytes of the record.
        needed: u64,
        /// Bytes pinned.
        pinned: u64,
        /// Bytes of the store.
        limit: u64,
    },
}
