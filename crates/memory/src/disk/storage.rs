//! What the disk level needs of a file system, so that tests may put a failing one in its place.

use std::io;
use std::ops::Range;

use crate::budget::Budget;

/// A flat directory of files, addressed by name.
pub trait Storage: Send + Sync {
    /// Names of all files.
    ///
    /// # Errors
    /// What the system says.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Bytes of a file.
    ///
    /// # Errors
    /// What the system says.
    fn len(&self, name: &str) -> io::Result<u64>;

    /// Makes an empty file that is not there yet.
    ///
    /// # Errors
    /// What the system says.
    fn create(&self, name: &str) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// What the system says; any part may have been written then.
    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Fills all of `bytes` from `offset` on.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::UnexpectedEof`] beyond the end.
    fn read_at(&self, name: &str, offset: u64, bytes: &mut [u8]) -> io::Result<()>;

    /// Reads `len` bytes from `offset` on to where in `buffer` it is least work, and gives where. `buffer` begins at
    /// a page and has [`slack_bytes`](Self::slack_bytes) more than `len`.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    fn read_into(
        &self,
        name: &str,
        offset: u64,
        len: usize,
        buffer: &mut [u8],
    ) -> io::Result<Range<usize>> {
        let out = buffer.get_mut(..len).ok_or(io::ErrorKind::InvalidInput)?;
        self.read_at(name, offset, out)?;
        Ok(0..len)
    }

    /// Bytes that a buffer of [`read_into`](Self::read_into) needs beside those that are read.
    fn slack_bytes(&self) -> usize {
        0
    }

    /// Takes from `budget` what makes writing fast, where there is room for it. Called once.
    fn reserve(&self, _budget: &Budget) {}

    /// Returns when the data of a file, and its being there, are on stable storage.
    ///
    /// # Errors
    /// What the system says.
    fn sync(&self, name: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// What the system says.
    fn remove(&self, name: &str) -> io::Result<()>;
}
