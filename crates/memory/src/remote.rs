//! The remote level: blocks in a store that several processes share.
//!
//! An object is one block, under a name made of its fingerprint and its hash; its bytes are described in
//! `docs/remote-format.md`. Equal prefixes of processes with one secret therefore meet. Nothing that comes
//! back is trusted: an object carries a keyed hash over itself, its name and the payload, so a store that
//! fails, lies or is slow costs a recomputation and no more. After a few failures in a row it is left
//! alone for a while ([`breaker`]).
//!
//! Reading is done by threads of its own, so that a caller looks now and then at what has come, or waits until a
//! deadline and not longer, whatever the store does; writing is done behind the
//! caller's back by a thread of its own, from what the disk level holds.
#![forbid(unsafe_code)]

pub mod breaker;
pub mod fake;
mod folder;
pub mod format;
mod level;

#[cfg(test)]
mod tests;

pub use folder::Folder;
pub use level::{Got, Next, Object, Reading, RemoteLevel, RemoteOptions, RemoteStats, Run};

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// It took too long.
    #[error("the remote store took too long")]
    TimedOut,
    /// The object is larger than any that is written.
    #[error("the object has more than {limit_bytes} bytes")]
    TooLarge {
        /// Room for it.
        limit_bytes: usize,
    },
    /// The store, or the way to it, failed.
    #[error("remote store: {0}")]
    Failed(String),
}

impl From<std::io::Error> for RemoteError {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::TimedOut {
            Self::TimedOut
        } else {
            Self::Failed(error.to_string())
        }
    }
}

/// What the remote level needs of a store of objects. Calls may block; they come from several threads.
///
/// Names consist of lower-case letters, digits and `/`.
pub trait RemoteStore: Send + Sync {
    /// Where it is, for messages.
    fn name(&self) -> String;

    /// Reads an object into the start of `out`; gives its length, or `None` if it is not there.
    ///
    /// # Errors
    /// [`RemoteError`]; what `out` holds then is of no use.
    fn get(&self, object: &str, out: &mut [u8]) -> Result<Option<usize>, RemoteError>;

    /// Whether there is an object of this name.
    ///
    /// # Errors
    /// [`RemoteError`].
    fn has(&self, object: &str) -> Result<bool, RemoteError>;

    /// Writes a whole object, in place of one that was there.
    ///
    /// # Errors
    /// [`RemoteError`]; readers find the old object, the new one, or none.
    fn put(&self, object: &str, bytes: &[u8]) -> Result<(), RemoteError>;
}
