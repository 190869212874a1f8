//! A store in a folder that several processes see: a network file system, or a disk of this machine.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{RemoteError, RemoteStore};

/// A store in a folder, which processes share.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Makes names of files being written distinct within this process.
    writes: AtomicU64,
}

impl Folder {
    /// Opens `path`, making it if it is not there.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        fs::create_dir_all(path)?;
        Ok(Self {
            path: path.to_owned(),
            writes: AtomicU64::new(0),
        })
    }
}

impl RemoteStore for Folder {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn get(&self, object: &str, out: &mut [u8]) -> Result<Option<usize>, RemoteError> {
        let mut file = match File::open(self.path.join(object)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut len = 0;
        loop {
            match file.read(&mut out[len..]) {
                // Also where `out` is full: then one byte more tells whether that was all.
                Ok(0) if len < out.len() => return Ok(Some(len)),
                Ok(0) => break,
                Ok(read) => len += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        match file.read(&mut [0])? {
            0 => Ok(Some(len)),
            _ => Err(RemoteError::TooLarge {
                limit_bytes: out.len(),
            }),
        }
    }

    fn has(&self, object: &str) -> Result<bool, RemoteError> {
        Ok(self.path.join(object).try_exists()?)
    }

    /// Not synced: an object that a power cut tears is found out by its hash.
    fn put(&self, object: &str, bytes: &[u8]) -> Result<(), RemoteError> {
        let path = self.path.join(object);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let write = self.writes.fetch_add(1, Ordering::Relaxed);
        // Named by process and time too: other machines write into the same folder.
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let nanos = since_1970.map_or(0, |t| t.as_nanos());
        let new = path.with_extension(format!("new-{}-{nanos}-{write}", std::process::id()));
        let written = File::create_new(&new)
            .and_then(|mut file| file.write_all(bytes))
            .and_then(|()| fs::rename(&new, &path));
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        Ok(written?)
    }
}
