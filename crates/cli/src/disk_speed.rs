//! How fast a disk gives a file's bytes, past the system's cache.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

/// Direct reads start and end at multiples of this.
const ALIGNMENT: usize = 4096;
const READ_BYTES: usize = 4 << 20;
const LONG_ENOUGH: Duration = Duration::from_millis(300);

/// Bytes a second of sequential reads, measured for a third of a second. None where the file is small, a folder, or
/// its file system does not offer reads past the cache.
pub fn of_file(path: &Path) -> Option<f64> {
    let mut file = open_direct(path)?;
    let end = file.seek(SeekFrom::End(0)).ok()?;
    file.seek(SeekFrom::Start(0)).ok()?;
    let mut memory = vec![0; READ_BYTES + ALIGNMENT];
    let aligned = memory.as_ptr().align_offset(ALIGNMENT);
    let buffer = memory.get_mut(aligned..aligned + READ_BYTES)?;
    let (start, mut bytes) = (Instant::now(), 0);
    while start.elapsed() < LONG_ENOUGH && bytes + READ_BYTES as u64 <= end {
        bytes += file.read(buffer).ok()? as u64;
    }
    (bytes > 0).then(|| bytes as f64 / start.elapsed().as_secs_f64())
}

#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = OpenOptions::new();
    options
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .ok()
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_path: &Path) -> Option<File> {
    None
}
