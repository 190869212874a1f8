//! What lies below RAM under a server's prefix cache; it stays when the model changes.

use std::path::Path;
use std::sync::Arc;

use neap_memory::Budget;
use neap_memory::remote::RemoteLevel;

use crate::args::ServeArgs;
use crate::blocks::BlockFolder;
use crate::failure::Failure;
use crate::remote::{self, Remote, random_secret, secret};

/// See the [module's description](self).
pub struct Below {
    pub disk: Option<Disk>,
    pub remote: Option<Arc<RemoteLevel>>,
    /// Names of blocks are keyed with it: that of the processes that share the remote store, since with another one
    /// they would not meet, or the disk's.
    pub secret: [u8; 32],
}

impl Below {
    /// Opens what `args` name; what is in flight is charged to `budget`.
    pub fn open(args: &ServeArgs, budget: &Budget) -> Result<Self, Failure> {
        let disk = args
            .disk
            .as_deref()
            .map(|folder| Disk::open(folder, args.disk_limit))
            .transpose()?;
        let remote = Remote::from_args(&args.remote)?;
        let secret = match (&remote, &disk) {
            (Some(remote), _) => remote.secret,
            (None, Some(disk)) => disk.secret,
            (None, None) => random_secret()?,
        };
        Ok(Self {
            disk,
            remote: remote.map(|remote| remote.level(budget)).transpose()?,
            secret,
        })
    }

    /// Has everything that was written last beyond the process.
    pub fn finish(&self) -> Result<(), Failure> {
        remote::finish(self.remote.as_ref());
        if let Some(disk) = &self.disk {
            disk.blocks.store.sync()?;
        }
        Ok(())
    }
}

/// The disk level under the prefix cache.
pub struct Disk {
    pub blocks: BlockFolder,
    /// Names of blocks are keyed with it, so it must be the same after a restart.
    secret: [u8; 32],
}

impl Disk {
    fn open(folder: &Path, limit_bytes: u64) -> Result<Self, Failure> {
        let blocks = BlockFolder::open(folder, limit_bytes)?;
        let secret = secret(&folder.join("secret"))?;
        Ok(Self { blocks, secret })
    }
}
