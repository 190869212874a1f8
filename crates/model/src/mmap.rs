//! Model files as bytes: mapped read-only, never copied.
//!
//! The one place in this crate with `unsafe` code.
//!
//! **Known limit.** A mapped file must not be changed while Neap uses it. If another process truncates it, the system
//! answers the next touch of a lost page with `SIGBUS`, which ends the process; if it overwrites it, the weights
//! change under the model. Downloads and conversions should therefore write a new file and rename it.
#![allow(unsafe_code)]

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;

/// The bytes of a file, mapped, or a buffer that stands for one.
#[derive(Debug)]
pub struct FileBytes {
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    Mapped(memmap2::Mmap),
    Memory(Cow<'static, [u8]>),
}

impl FileBytes {
    /// Maps the whole of a regular file for reading.
    ///
    /// # Errors
    /// If the file cannot be opened or mapped, or is not a regular file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("is not a regular file"));
        }
        if metadata.len() == 0 {
            return Ok(Self::from_vec(Vec::new())); // a mapping of no bytes is refused by the system
        }
        // SAFETY: the mapping is private and read-only, and only shared slices of it are handed out. That nobody
        // changes the file meanwhile cannot be enforced; the module's documentation states it as a known limit.
        let mapping = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self {
            bytes: Bytes::Mapped(mapping),
        })
    }

    /// A buffer in place of a file, for tests and fuzzing.
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        Self {
            bytes: Bytes::Memory(Cow::Owned(bytes)),
        }
    }

    /// Bytes that are part of the program, in place of a file.
    pub fn from_static(bytes: &'static [u8]) -> Self {
        Self {
            bytes: Bytes::Memory(Cow::Borrowed(bytes)),
        }
    }

    /// Tells the system that `range` will be read soon, so that it may read ahead. Advice only: never fails.
    pub fn will_need(&self, range: Range<usize>) {
        let Some(range) = self.clamp(range) else {
            return;
        };
        #[cfg(unix)]
        if let Bytes::Mapped(mapping) = &self.bytes {
            let _ = mapping.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Gives the pages that lie wholly inside `range` back: they leave this process's resident memory now and are read
    /// from the file again if they are touched again. Advice only: never fails.
    pub fn done_with(&self, range: Range<usize>) {
        let Some(range) = self.clamp(range) else {
            return;
        };
        #[cfg(unix)]
        if let Bytes::Mapped(mapping) = &self.bytes {
            let Some(pages) = whole_pages(range, page_bytes(), mapping.len()) else {
                return;
            };
            // SAFETY: `MADV_DONTNEED` on a shared, read-only mapping of a file loses nothing: the pages are clean and
            // the next read brings them back from the file with the same contents.
            let _ = unsafe {
                mapping.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    pages.start,
                    pages.len(),
                )
            };
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Whether the bytes are a mapping (as against a buffer in memory).
    pub fn is_mapped(&self) -> bool {
        matches!(self.bytes, Bytes::Mapped(_))
    }

    fn clamp(&self, range: Range<usize>) -> Option<Range<usize>> {
        let end = range.end.min(self.len());
        (range.start < end).then_some(range.start..end)
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(mapping) => mapping,
            Bytes::Memory(bytes) => bytes,
        }
    }
}

/// The largest run of whole pages inside `range` of a mapping that starts at a page. The last page of the mapping
/// counts as whole when the range reaches the end of the file.
#[cfg(unix)]
fn whole_pages(range: Range<usize>, page: usize, len: usize) -> Option<Range<usize>> {
    let start = range.start.checked_next_multiple_of(page)?;
    let end = if range.end == len {
        len
    } else {
        range.end / page * page
    };
    (start < end).then_some(start..end)
}

/// The page size, or a multiple of every page size in use where the system does not tell: rounding to too large a
/// page only keeps a little more resident.
#[cfg(unix)]
fn page_bytes() -> usize {
    64 * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_a_file_and_survives_advice() {
        let path = std::env::temp_dir().join(format!("neap-mmap-{}", std::process::id()));
        let contents: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &contents).unwrap();
        let bytes = FileBytes::open(&path).unwrap();
        assert!(bytes.is_mapped());
        bytes.will_need(0..usize::MAX);
        bytes.will_need(10..10);
        assert_eq!(bytes[..], contents[..]);
        bytes.done_with(1..299_000);
        bytes.done_with(0..usize::MAX);
        bytes.done_with(usize::MAX - 1..usize::MAX);
        assert_eq!(bytes[..], contents[..]);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn an_empty_file_has_no_bytes_and_a_folder_is_refused() {
        let path = std::env::temp_dir().join(format!("neap-mmap-empty-{}", std::process::id()));
        std::fs::write(&path, []).unwrap();
        assert!(FileBytes::open(&path).unwrap().is_empty());
        std::fs::remove_file(path).unwrap();
        assert!(FileBytes::open(&std::env::temp_dir()).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn only_whole_pages_are_given_back() {
        assert_eq!(whole_pages(1..99, 10, 100), Some(10..90));
        assert_eq!(whole_pages(0..100, 10, 100), Some(0..100));
        assert_eq!(whole_pages(95..97, 10, 97), None);
        assert_eq!(whole_pages(11..19, 10, 100), None);
        assert_eq!(whole_pages(20..97, 10, 97), Some(20..97));
    }
}
