//! The store of blocks that several processes share, and the secret that they share for it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use neap_memory::Budget;
use neap_memory::remote::{Folder, RemoteLevel, RemoteOptions, RemoteStore};

use crate::args::RemoteArgs;
use crate::failure::Failure;
use s3::S3;

mod s3;

/// Time for what waits to be written when the program ends.
const LAST_WRITES: Duration = Duration::from_secs(10);

/// A store that can be reached, and its secret.
#[derive(Clone)]
pub struct Remote {
    store: Arc<dyn RemoteStore>,
    /// Names and bytes of blocks are keyed with it.
    pub secret: [u8; 32],
}

impl Remote {
    /// The store that `args` name, if they name one.
    pub fn from_args(args: &RemoteArgs) -> Result<Option<Self>, Failure> {
        let (Some(url), Some(secret_file)) = (&args.remote, &args.remote_secret_file) else {
            return Ok(None);
        };
        Ok(Some(Self {
            store: open(url, args.remote_credentials.as_deref())?,
            secret: secret(secret_file)?,
        }))
    }

    /// The level over it; what is in flight is charged to `budget`.
    pub fn level(&self, budget: &Budget) -> Result<Arc<RemoteLevel>, Failure> {
        let options = RemoteOptions::new(self.secret);
        let level = RemoteLevel::start(Arc::clone(&self.store), budget, options)?;
        Ok(Arc::new(level))
    }
}

/// Gives the last blocks time to be written.
pub fn finish(remote: Option<&Arc<RemoteLevel>>) {
    if let Some(remote) = remote
        && !remote.flush(LAST_WRITES)
    {
        eprintln!(
            "neap: {} was too slow for the last blocks; others compute them again",
            remote.name()
        );
    }
}

fn open(url: &str, credentials: Option<&Path>) -> Result<Arc<dyn RemoteStore>, Failure> {
    if url.starts_with("s3://") {
        let store = S3::open(url, credentials)?;
        if let Some(why) = store.probe() {
            eprintln!(
                "neap: {} does not answer as it should now: {why}",
                store.name()
            );
        }
        return Ok(Arc::new(store));
    }
    let path = folder_of(url)?;
    let folder = Folder::open(&path)
        .map_err(|why| Failure::new(format!("--remote {url} can't be used: {why}")))?;
    Ok(Arc::new(folder))
}

fn folder_of(url: &str) -> Result<PathBuf, Failure> {
    match url.split_once("://") {
        None => Ok(PathBuf::from(url)),
        Some(("file", path)) if path.starts_with('/') => Ok(PathBuf::from(path)),
        Some((scheme, _)) => Err(Failure::new(format!(
            "--remote {url}: {scheme} is no store that neap knows: give a folder, as a path or as file:///PATH, or s3://BUCKET/PREFIX"
        ))),
    }
}

/// The secret that the file holds, or a new one that it holds from now on. A damaged file makes the blocks that it was
/// for unknown, which costs a recomputation.
pub fn secret(path: &Path) -> Result<[u8; 32], Failure> {
    if let Ok(bytes) = std::fs::read(path)
        && let Ok(secret) = bytes.try_into()
    {
        return Ok(secret);
    }
    let secret = random_secret()?;
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let write = || -> std::io::Result<()> {
        let mut file = options.open(path)?;
        file.write_all(&secret)?;
        file.sync_all()
    };
    write().map_err(|why| Failure::new(format!("{} can't be written: {why}", path.display())))?;
    Ok(secret)
}

/// From the system's random numbers.
pub fn random_secret() -> Result<[u8; 32], Failure> {
    let mut secret = [0; 32];
    #[cfg(unix)]
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut secret))
        .map_err(|why| Failure::new(format!("/dev/urandom can't be read: {why}")))?;
    // The standard library's hash keys are random where there is no such file.
    #[cfg(not(unix))]
    for part in secret.chunks_exact_mut(8) {
        use std::hash::{BuildHasher, Hasher};
        let random = std::hash::RandomState::new().build_hasher().finish();
        part.copy_from_slice(&random.to_le_bytes());
    }
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_paths_or_file_urls() {
        assert_eq!(folder_of("a/b").ok(), Some("a/b".into()));
        assert_eq!(folder_of("file:///srv/neap").ok(), Some("/srv/neap".into()));
        for bad in ["file://host/x", "ftp://x/y"] {
            assert!(folder_of(bad).is_err(), "{bad}");
        }
    }
}
