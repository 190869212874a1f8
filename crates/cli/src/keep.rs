//! Conversations that outlive the program: what was said as a JSON file, and its keys and values on
//! the disk level.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use neap_memory::cache::KvCache;
use neap_memory::disk::DiskStore;
use neap_memory::session::{KeepOptions, Sessions};
use neap_memory::{Fingerprint, Namespace};
use neap_model::chat::ChatMessage;

use crate::args::ChatArgs;
use crate::blocks::BlockFolder;
use crate::failure::Failure;
use crate::generate::clock_ms;

/// The folder of all conversations, and the disk level in it.
pub struct Store {
    folder: PathBuf,
    blocks: BlockFolder,
    /// Tell what is kept.
    verbose: bool,
}

impl Store {
    /// Opens the folder that `args` name, or the usual one; `None` if no conversation is to be kept.
    pub fn open(args: &ChatArgs) -> Result<Option<Self>, Failure> {
        if args.session.is_none() {
            return Ok(None);
        }
        let folder = match args
            .store
            .clone()
            .or_else(|| crate::chat::state_folder().map(|f| f.join("store")))
        {
            Some(folder) => folder,
            None => {
                return Err(Failure::new(
                    "there is no home directory to keep the session in: give --store",
                ));
            }
        };
        let blocks = BlockFolder::open(&folder, args.store_limit)?;
        Ok(Some(Self {
            folder,
            blocks,
            verbose: args.verbose,
        }))
    }

    /// The disk level, for the prefix cache.
    pub fn disk(&self) -> &Arc<DiskStore> {
        &self.blocks.store
    }

    /// The conversation of this name, new or old.
    pub fn conversation(
        &self,
        name: &str,
        (fingerprint, namespace): (Fingerprint, Namespace),
        block_tokens: usize,
    ) -> Conversation {
        Conversation {
            name: name.to_owned(),
            words: self.folder.join(format!("{name}.json")),
            sessions: Sessions::open(&self.blocks.store, fingerprint, block_tokens),
            namespace,
            verbose: self.verbose,
        }
    }
}

/// One conversation that is kept.
pub struct Conversation {
    name: String,
    words: PathBuf,
    sessions: Sessions,
    namespace: Namespace,
    verbose: bool,
}

impl Conversation {
    /// What was said so far. The blocks are found again by the prefix cache as they are asked for.
    pub fn load(&self) -> Result<Vec<ChatMessage>, Failure> {
        let failed = |why: &dyn std::fmt::Display| {
            let path = self.words.display();
            Failure::new(format!(
                "the session {path} can't be read: {why}; move it away to begin anew"
            ))
        };
        match std::fs::read(&self.words) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|why| failed(&why)),
            Err(why) if why.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(why) => Err(failed(&why)),
        }
    }

    /// Keeps what was said, and the blocks of `tokens`. When this returns, both are on stable storage.
    /// Blocks that can't be kept cost a recomputation, so that is only a warning.
    pub fn save(
        &mut self,
        messages: &[ChatMessage],
        tokens: &[u32],
        cache: &mut KvCache,
    ) -> Result<(), Failure> {
        write_whole(&self.words, &serde_json::to_vec_pretty(messages)?).map_err(|why| {
            Failure::new(format!(
                "the session was not kept in {}: {why}",
                self.words.display()
            ))
        })?;
        let session = (&self.namespace, self.name.as_str(), tokens);
        let kept = self
            .sessions
            .save(cache, session, KeepOptions::default(), clock_ms());
        match kept {
            Ok(()) if self.verbose => eprintln!(
                "kept:                 {} messages, keys and values of {} tokens",
                messages.len(),
                tokens.len()
            ),
            Ok(()) => {}
            Err(why) => eprintln!(
                "neap: the session's keys and values were not kept and will be computed again: {why}"
            ),
        }
        Ok(())
    }
}

/// Writes a file so that a crash leaves the old contents or the new, nothing between.
pub fn write_whole(path: &Path, contents: &[u8]) -> std::io::Result<()> {
    let new = path.with_extension("json.new");
    let mut file = File::create(&new)?;
    file.write_all(contents)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    // The rename itself must last too; where a folder can't be opened as a file it does without.
    match path.parent().map(File::open) {
        Some(Ok(folder)) => folder.sync_all(),
        _ => Ok(()),
    }
}
