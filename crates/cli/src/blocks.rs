//! A folder with a disk level in it, which one program uses at a time.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;

use neap_memory::disk::{Directory, DiskOptions, DiskStore};

use crate::failure::Failure;

/// The disk level of a folder.
pub struct BlockFolder {
    pub store: Arc<DiskStore>,
    /// Held as long as the folder is in use: a segment has one writer.
    _lock: File,
}

impl BlockFolder {
    /// Opens the disk level in `folder`, making both if they are not there.
    pub fn open(folder: &Path, limit_bytes: u64) -> Result<Self, Failure> {
        let failed = |why: &dyn std::fmt::Display| {
            Failure::new(format!(
                "the folder {} can't be used: {why}",
                folder.display()
            ))
        };
        let blocks = folder.join("blocks");
        std::fs::create_dir_all(&blocks).map_err(|why| failed(&why))?;
        let lock = File::create(folder.join("lock")).map_err(|why| failed(&why))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(failed(
                    &"another neap uses it: end that one, or give another folder",
                ));
            }
            Err(TryLockError::Error(why)) => return Err(failed(&why)),
        }
        let storage = Directory::open(&blocks).map_err(|why| failed(&why))?;
        let options = DiskOptions::with_limit(limit_bytes);
        let store = DiskStore::open(Arc::new(storage), options).map_err(|why| failed(&why))?;
        Ok(Self {
            store: Arc::new(store),
            _lock: lock,
        })
    }
}
