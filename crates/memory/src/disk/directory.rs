//! A directory of the real file system, past the page cache where it can be.
//!
//! What the disk level holds is in RAM under its own budget, or meant to be out of RAM: copies of it in the page cache
//! would be a second memory world. So payloads are read, and appends written, with direct I/O where the file system
//! has it; where it refuses, the same is done through the page cache.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::behind::Behind;
use super::storage::Storage;
use crate::budget::Budget;

/// Places, lengths and addresses of direct I/O are multiples of this: no disk has larger sectors.
pub(super) const DIRECT_BYTES: usize = 4096;

/// How a directory is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryOptions {
    /// Past the page cache where the file system allows it.
    pub is_direct: bool,
    /// Bytes of each of the two buffers that appends are gathered in; fewer where the budget is small, and none where
    /// it has no room for them.
    pub buffer_bytes: usize,
}

impl Default for DirectoryOptions {
    fn default() -> Self {
        Self {
            is_direct: true,
            buffer_bytes: 4 << 20,
        }
    }
}

/// A file, opened twice: direct I/O is a property of the handle.
#[derive(Debug)]
pub(super) struct Opened {
    plain: File,
    direct: Option<File>,
    /// The file system takes the flag but not the writes or reads.
    refuses_direct: AtomicBool,
}

impl Opened {
    fn new(path: &Path, is_new: bool, is_direct: bool) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(is_new);
        let plain = options.open(path)?;
        Ok(Self {
            plain,
            direct: is_direct.then(|| imp::open_direct(path)).flatten(),
            refuses_direct: AtomicBool::new(false),
        })
    }

    fn direct(&self) -> Option<&File> {
        let is_refused = self.refuses_direct.load(Ordering::Relaxed);
        self.direct.as_ref().filter(|_| !is_refused)
    }

    /// Writes whole units of [`DIRECT_BYTES`] of a buffer that begins at a page.
    pub(super) fn write_units(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if let Some(direct) = self.direct() {
            match imp::write_all_at(direct, bytes, offset) {
                Err(why) if why.kind() == io::ErrorKind::InvalidInput => {
                    self.refuses_direct.store(true, Ordering::Relaxed);
                }
                done => return done,
            }
        }
        imp::write_all_at(&self.plain, bytes, offset)
    }

    /// Reads through the page cache.
    pub(super) fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        imp::read_exact_at(&self.plain, out, offset)
    }

    /// Reads the units around a range; gives where in `buffer` the range begins, or `None` where there is no direct
    /// I/O.
    fn read_units(&self, offset: u64, len: usize, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(direct) = self.direct() else {
            return Ok(None);
        };
        let begin = (offset % DIRECT_BYTES as u64) as usize;
        let wanted = begin + len;
        let out = buffer
            .get_mut(..wanted.next_multiple_of(DIRECT_BYTES))
            .ok_or(io::ErrorKind::InvalidInput)?;
        let mut read = 0;
        // The file may end within the last unit. Short reads go on where a unit begins.
        while read < wanted {
            let at = offset - begin as u64 + read as u64;
            match imp::read_some_at(direct, &mut out[read..], at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(some) if some >= wanted - read => read += some,
                Ok(some) if some < DIRECT_BYTES => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(some) => read += some / DIRECT_BYTES * DIRECT_BYTES,
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) if why.kind() == io::ErrorKind::InvalidInput => {
                    self.refuses_direct.store(true, Ordering::Relaxed);
                    return Ok(None);
                }
                Err(why) => return Err(why),
            }
        }
        Ok(Some(begin))
    }
}

/// See the module's description. Files are opened once and kept open.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    options: DirectoryOptions,
    files: Mutex<HashMap<String, Arc<Opened>>>,
    /// Gathers appends, once there is a budget for its buffers.
    behind: OnceLock<Option<Behind>>,
    /// Files were made or removed since the directory was last synced.
    is_changed: AtomicBool,
}

impl Directory {
    /// Opens `path`, making it if it is not there.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::open_with(path, DirectoryOptions::default())
    }

    /// Opens `path` to be used in this way.
    ///
    /// # Errors
    /// What the system says.
    pub fn open_with(path: &Path, options: DirectoryOptions) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        Ok(Self {
            path: path.to_owned(),
            options,
            files: Mutex::default(),
            behind: OnceLock::new(),
            is_changed: AtomicBool::new(true),
        })
    }

    fn file(&self, name: &str) -> io::Result<Arc<Opened>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(name) {
            return Ok(Arc::clone(file));
        }
        let path = self.path.join(name);
        let file = Arc::new(Opened::new(&path, false, self.options.is_direct)?);
        files.insert(name.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    fn behind(&self) -> Option<&Behind> {
        self.behind.get().and_then(Option::as_ref)
    }
}

impl Storage for Directory {
    fn list(&self) -> io::Result<Vec<String>> {
        let names =
            fs::read_dir(&self.path)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
        names.filter_map(Result::transpose).collect()
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        Ok(self.file(name)?.plain.metadata()?.len())
    }

    fn create(&self, name: &str) -> io::Result<()> {
        let path = self.path.join(name);
        let file = Opened::new(&path, true, self.options.is_direct)?;
        self.is_changed.store(true, Ordering::Relaxed);
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.insert(name.to_owned(), Arc::new(file));
        Ok(())
    }

    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let file = self.file(name)?;
        match self.behind() {
            Some(behind) if behind.append((name, &file), offset, bytes)? => Ok(()),
            _ => imp::write_all_at(&file.plain, bytes, offset),
        }
    }

    fn read_at(&self, name: &str, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let file = self.file(name)?;
        let on_disk = match self.behind() {
            Some(behind) => behind.read(name, offset, bytes)?,
            None => bytes.len(),
        };
        file.read_at(offset, &mut bytes[..on_disk])
    }

    fn read_into(
        &self,
        name: &str,
        offset: u64,
        len: usize,
        buffer: &mut [u8],
    ) -> io::Result<Range<usize>> {
        let file = self.file(name)?;
        let is_on_disk = self
            .behind()
            .is_none_or(|behind| behind.is_on_disk(name, offset + len as u64));
        if is_on_disk && let Some(begin) = file.read_units(offset, len, buffer)? {
            return Ok(begin..begin + len);
        }
        let out = buffer.get_mut(..len).ok_or(io::ErrorKind::InvalidInput)?;
        self.read_at(name, offset, out)?;
        Ok(0..len)
    }

    /// Whole units around the bytes.
    fn slack_bytes(&self) -> usize {
        if self.options.is_direct {
            2 * DIRECT_BYTES
        } else {
            0
        }
    }

    fn reserve(&self, budget: &Budget) {
        let bytes = self.options.buffer_bytes;
        self.behind.get_or_init(|| Behind::start(budget, bytes));
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        let file = self.file(name)?;
        if let Some(behind) = self.behind() {
            behind.flush(name)?;
        }
        file.plain.sync_data()?;
        if self.is_changed.swap(false, Ordering::Relaxed) {
            let synced = imp::sync_directory(&self.path);
            if synced.is_err() {
                self.is_changed.store(true, Ordering::Relaxed);
            }
            synced?;
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        if let Some(behind) = self.behind() {
            behind.forget(name);
        }
        self.files
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name);
        self.is_changed.store(true, Ordering::Relaxed);
        fs::remove_file(self.path.join(name))
    }
}

/// Opens a file for direct I/O, where there is such a flag and the file system takes it.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn open_direct(path: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options.custom_flags(libc::O_DIRECT).open(path).ok()
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn open_direct(_: &Path) -> Option<File> {
    None
}

#[cfg(unix)]
mod imp {
    use std::fs::File;
    use std::io;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    pub(super) use super::open_direct;

    pub(super) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    pub(super) fn read_some_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        file.read_at(bytes, offset)
    }

    pub(super) fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        file.read_exact_at(bytes, offset)
    }

    pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

#[cfg(windows)]
mod imp {
    use std::fs::File;
    use std::io;
    use std::os::windows::fs::FileExt;
    use std::path::Path;

    pub(super) use super::open_direct;

    pub(super) fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match file.seek_write(bytes, offset)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => {
                    bytes = &bytes[written..];
                    offset += written as u64;
                }
            }
        }
        Ok(())
    }

    pub(super) fn read_some_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        file.seek_read(bytes, offset)
    }

    pub(super) fn read_exact_at(
        file: &File,
        mut bytes: &mut [u8],
        mut offset: u64,
    ) -> io::Result<()> {
        while !bytes.is_empty() {
            match file.seek_read(bytes, offset)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => {
                    bytes = &mut bytes[read..];
                    offset += read as u64;
                }
            }
        }
        Ok(())
    }

    /// Windows has no handle for a directory to flush; NTFS journals the entry.
    pub(super) fn sync_directory(_: &Path) -> io::Result<()> {
        Ok(())
    }
}
