//! Sessions: conversations that are kept on purpose, under a name, across restarts.
//!
//! A session is a manifest on the disk level beside the blocks of its tokens, all pinned there. It is
//! acknowledged when [`Sessions::save`] returns: then it survives a kill at any instant.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

use crate::budget::{Charge, ChargeKind, OverBudget};
use crate::cache::KvCache;
use crate::disk::format::Kind;
use crate::disk::{DiskError, DiskStore, Meta};
use crate::hash::{BlockHash, Fingerprint, Namespace};
use crate::level::KvQuality;

mod file;
#[cfg(test)]
mod tests;

pub use file::{Export, Imported, SessionFile};

const MAGIC: &[u8; 4] = b"NSES";
const VERSION: u16 = 1;
const HEAD_BYTES: usize = 64;
/// Longest name, in bytes.
pub const MAX_NAME_BYTES: usize = 512;
/// Most tokens of a session.
pub const MAX_TOKENS: usize = 1 << 24;

/// Why a session was not kept, found or moved.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Not all of its blocks are cached, or fit the disk level.
    #[error("of {wanted} tokens only {stored} could be stored")]
    Incomplete {
        /// Tokens stored.
        stored: usize,
        /// Tokens of the session.
        wanted: usize,
    },
    /// Name or tokens are too long.
    #[error(
        "a session's name has at most {MAX_NAME_BYTES} bytes and its text at most {MAX_TOKENS} tokens"
    )]
    TooLong,
    /// There is no session of this name, or it has expired.
    #[error("there is no session {0:?}")]
    Unknown(String),
    /// The disk level failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A file to export to or import from failed.
    #[error("session file: {0}")]
    Io(#[from] io::Error),
    /// The budget has no room for the manifest, or for a block on its way.
    #[error(transparent)]
    NoRoom(#[from] OverBudget),
    /// A file to import is not a session, or one of another model.
    #[error("session file, byte {offset}: {reason}")]
    Malformed {
        /// Where in the file.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
}

/// A kept conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its name within its namespace.
    pub name: String,
    /// Whose it is.
    pub namespace: Namespace,
    /// Greater is kept longer when the disk level is too small.
    pub priority: u8,
    /// When it was saved, in milliseconds of the caller's wall clock.
    pub saved_ms: u64,
    /// When it expires; `None`: never.
    pub expires_ms: Option<u64>,
    /// Its tokens.
    pub tokens: Vec<u32>,
}

impl Session {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + self.name.len() + self.tokens.len() * 4);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[self.priority, self.namespace.quality() as u8]);
        bytes.extend_from_slice(&self.saved_ms.to_le_bytes());
        bytes.extend_from_slice(&self.expires_ms.unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(self.namespace.root().as_bytes());
        bytes.extend_from_slice(&(self.name.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(self.tokens.len() as u32).to_le_bytes());
        bytes.extend_from_slice(self.name.as_bytes());
        for token in &self.tokens {
            bytes.extend_from_slice(&token.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, body) = bytes.split_first_chunk::<HEAD_BYTES>()?;
        let u64_at = |at: usize| head[at..].first_chunk().map(|b| u64::from_le_bytes(*b));
        let u32_at = |at: usize| {
            head[at..]
                .first_chunk()
                .map(|b| u32::from_le_bytes(*b) as usize)
        };
        if &head[..4] != MAGIC || head[4..6] != VERSION.to_le_bytes() {
            return None;
        }
        let (name_bytes, tokens) = (u32_at(56)?, u32_at(60)?);
        if name_bytes > MAX_NAME_BYTES
            || tokens > MAX_TOKENS
            || body.len() != name_bytes + tokens * 4
        {
            return None;
        }
        let (name, tokens) = body.split_at(name_bytes);
        Some(Self {
            name: String::from_utf8(name.to_vec()).ok()?,
            namespace: Namespace::from_root(
                BlockHash::from_bytes(*head[24..].first_chunk()?),
                KvQuality::from_number(head[7])?,
            ),
            priority: head[6],
            saved_ms: u64_at(8)?,
            expires_ms: u64_at(16).filter(|&ms| ms > 0),
            tokens: tokens
                .chunks_exact(4)
                .map(|t| u32::from_le_bytes([t[0], t[1], t[2], t[3]]))
                .collect(),
        })
    }

    /// Names it among all sessions.
    #[must_use]
    pub fn key(&self) -> BlockHash {
        self.namespace.session_key(&self.name)
    }

    /// Names of its blocks, in order.
    fn blocks(&self, block_tokens: usize) -> Vec<BlockHash> {
        let mut hash = self.namespace.root();
        let chunks = self.tokens.chunks(block_tokens);
        chunks
            .map(|chunk| {
                hash = hash.child(chunk);
                hash
            })
            .collect()
    }

    /// Bytes that it takes in RAM.
    fn held_bytes(&self) -> u64 {
        (size_of::<Self>() + self.name.len() + self.tokens.len() * 4) as u64
    }

    fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|expires| expires <= now_ms)
    }
}

/// How a session is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeepOptions {
    /// Greater is kept longer when the disk level is too small.
    pub priority: u8,
    /// Milliseconds from now until it expires; `None`: never.
    pub ttl_ms: Option<u64>,
}

/// All sessions of a disk level.
pub struct Sessions {
    disk: Arc<DiskStore>,
    fingerprint: Fingerprint,
    block_tokens: usize,
    held: BTreeMap<BlockHash, Session>,
    /// For the manifests that are held.
    charge: Charge,
}

impl Sessions {
    /// What the sessions on a disk level depend on: one fingerprint for each model that kept any.
    #[must_use]
    pub fn fingerprints(disk: &DiskStore) -> Vec<Fingerprint> {
        let keys = disk.session_keys();
        let all: BTreeMap<[u8; 32], Fingerprint> =
            keys.iter().map(|key| (*key.1.as_bytes(), key.1)).collect();
        all.into_values().collect()
    }

    /// Finds the sessions that `disk` holds for this fingerprint, and pins their blocks.
    ///
    /// Manifests are charged to the disk level's budget as I/O. What is on disk is held even where the budget
    /// refuses its manifest: it is charged once there is room.
    #[must_use]
    pub fn open(disk: &Arc<DiskStore>, fingerprint: Fingerprint, block_tokens: usize) -> Self {
        let mut sessions = Self {
            disk: Arc::clone(disk),
            fingerprint,
            block_tokens,
            held: BTreeMap::new(),
            charge: disk
                .budget()
                .try_charge(ChargeKind::Io, 0)
                .expect("no bytes always fit"),
        };
        for (key, of, bytes) in disk.session_keys() {
            let Some(bytes) = usize::try_from(bytes).ok().filter(|_| of == fingerprint) else {
                continue;
            };
            // The record lies within its file, so the file has earned the allocation.
            // One is read at a time, also where the budget is exceeded: it was acknowledged.
            let _charge = disk.budget().try_charge(ChargeKind::Io, bytes as u64);
            let mut manifest = vec![0; bytes];
            if !disk.read(&key, &fingerprint, &mut manifest) {
                continue;
            }
            if let Some(session) = Session::decode(&manifest).filter(|s| s.key() == key) {
                sessions.hold(session);
            }
        }
        sessions
    }

    fn hold(&mut self, session: Session) {
        let key = session.key();
        self.disk.pin(key);
        for block in session.blocks(self.block_tokens) {
            self.disk.pin(block);
        }
        // After its blocks are pinned for the new one.
        self.let_go(&key);
        self.held.insert(key, session);
        // What is refused now is charged with the next change.
        let _ = self.recharge(0);
    }

    /// Charges what is held, and `more` bytes.
    fn recharge(&mut self, more: u64) -> Result<(), OverBudget> {
        let held: u64 = self.held.values().map(Session::held_bytes).sum();
        self.charge.resize(held.saturating_add(more)).map(|_| ())
    }

    fn let_go(&mut self, key: &BlockHash) -> Option<Session> {
        let session = self.held.remove(key)?;
        self.disk.unpin(key);
        for block in session.blocks(self.block_tokens) {
            self.disk.unpin(&block);
        }
        Some(session)
    }

    /// Keeps `tokens`, whose blocks are cached, under `name`. When this returns, the session is on stable
    /// storage. One of the same name is replaced, and stays if this fails.
    ///
    /// Where the disk level is full of pins, sessions of lower priority give way, oldest first.
    ///
    /// # Errors
    /// [`SessionError`]; nothing is acknowledged then.
    pub fn save(
        &mut self,
        cache: &mut KvCache,
        session: (&Namespace, &str, &[u32]),
        options: KeepOptions,
        now_ms: u64,
    ) -> Result<(), SessionError> {
        let (namespace, name, tokens) = session;
        if name.len() > MAX_NAME_BYTES || tokens.len() > MAX_TOKENS {
            return Err(SessionError::TooLong);
        }
        self.expire(now_ms)?;
        let session = Session {
            name: name.to_owned(),
            namespace: *namespace,
            priority: options.priority,
            saved_ms: now_ms,
            expires_ms: options.ttl_ms.map(|ttl| now_ms.saturating_add(ttl)),
            tokens: tokens.to_vec(),
        };
        self.recharge(session.held_bytes())?;
        // Pinned before they are written: a segment may go for want of room in between.
        let blocks = session.blocks(self.block_tokens);
        blocks.iter().for_each(|block| self.disk.pin(*block));
        let result = self.write(cache, &session);
        match result {
            Ok(()) => self.hold(session),
            Err(_) => {
                let _ = self.recharge(0);
            }
        }
        blocks.iter().for_each(|block| self.disk.unpin(block));
        result
    }

    fn write(&mut self, cache: &mut KvCache, session: &Session) -> Result<(), SessionError> {
        let wanted = session.tokens.len();
        loop {
            let stored = cache.store(&session.namespace, &session.tokens);
            if stored == wanted {
                break;
            }
            if !self.give_way(session)? {
                return Err(SessionError::Incomplete { stored, wanted });
            }
        }
        write_manifest(&self.disk, self.fingerprint, session)
    }

    /// Deletes the oldest session of the lowest priority below that of `session`; whether there was one.
    fn give_way(&mut self, session: &Session) -> Result<bool, SessionError> {
        let lower = self
            .held
            .iter()
            .filter(|(_, s)| s.priority < session.priority);
        match lower
            .min_by_key(|(_, s)| (s.priority, s.saved_ms))
            .map(|(&key, _)| key)
        {
            Some(key) => {
                self.let_go(&key);
                self.disk.remove(&key)?;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    fn find(
        &self,
        namespace: &Namespace,
        name: &str,
        now_ms: u64,
    ) -> Result<&Session, SessionError> {
        self.held
            .get(&namespace.session_key(name))
            .filter(|session| !session.is_expired(now_ms))
            .ok_or_else(|| SessionError::Unknown(name.to_owned()))
    }

    /// The session of this name, and its blocks entered into the cache.
    ///
    /// # Errors
    /// [`SessionError::Unknown`].
    pub fn restore(
        &self,
        cache: &mut KvCache,
        namespace: &Namespace,
        name: &str,
        now_ms: u64,
    ) -> Result<&Session, SessionError> {
        let session = self.find(namespace, name, now_ms)?;
        cache.adopt(namespace, &session.tokens, now_ms);
        Ok(session)
    }

    /// The session of this name, unless it has expired.
    #[must_use]
    pub fn get(&self, namespace: &Namespace, name: &str, now_ms: u64) -> Option<&Session> {
        self.find(namespace, name, now_ms).ok()
    }

    /// Bytes of the session's blocks on disk, shared ones included.
    #[must_use]
    pub fn stored_bytes(&self, session: &Session) -> u64 {
        let blocks = session.blocks(self.block_tokens);
        let metas = blocks
            .iter()
            .filter_map(|block| self.disk.meta(block, &self.fingerprint));
        metas.map(|meta| meta.payload_bytes).sum()
    }

    /// What all of them depend on.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Tokens of a block.
    #[must_use]
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// All sessions that have not expired, whosever they are.
    pub fn iter(&self, now_ms: u64) -> impl Iterator<Item = &Session> {
        self.held.values().filter(move |s| !s.is_expired(now_ms))
    }

    /// The sessions of a namespace that have not expired.
    pub fn list(&self, namespace: &Namespace, now_ms: u64) -> impl Iterator<Item = &Session> {
        let namespace = *namespace;
        self.held
            .values()
            .filter(move |s| s.namespace == namespace && !s.is_expired(now_ms))
    }

    /// Deletes a session. Its blocks stay as long as the disk level sees fit.
    ///
    /// # Errors
    /// [`SessionError::Unknown`], or when the deletion could not be made to last.
    pub fn delete(&mut self, namespace: &Namespace, name: &str) -> Result<(), SessionError> {
        let key = namespace.session_key(name);
        self.let_go(&key)
            .ok_or_else(|| SessionError::Unknown(name.to_owned()))?;
        self.disk.remove(&key)?;
        Ok(self.disk.sync()?)
    }

    /// Deletes what has expired.
    ///
    /// # Errors
    /// When a deletion could not be written.
    pub fn expire(&mut self, now_ms: u64) -> Result<(), SessionError> {
        let expired: Vec<_> = self
            .held
            .iter()
            .filter(|(_, s)| s.is_expired(now_ms))
            .map(|(&key, _)| key)
            .collect();
        for key in expired {
            self.let_go(&key);
            self.disk.remove(&key)?;
        }
        Ok(())
    }

    /// Gives a session another priority and another end, counted from `now_ms`. When this returns, that is on
    /// stable storage.
    ///
    /// # Errors
    /// [`SessionError`]; the session is as it was then.
    pub fn set_keep(
        &mut self,
        namespace: &Namespace,
        name: &str,
        options: KeepOptions,
        now_ms: u64,
    ) -> Result<(), SessionError> {
        let mut session = self.find(namespace, name, now_ms)?.clone();
        session.priority = options.priority;
        session.expires_ms = options.ttl_ms.map(|ttl| now_ms.saturating_add(ttl));
        write_manifest(&self.disk, self.fingerprint, &session)?;
        self.hold(session);
        Ok(())
    }

    /// A session to be written to a file, here or on another thread.
    ///
    /// # Errors
    /// [`SessionError::Unknown`].
    pub fn exporter(
        &self,
        namespace: &Namespace,
        name: &str,
        now_ms: u64,
    ) -> Result<Export, SessionError> {
        let session = self.find(namespace, name, now_ms)?.clone();
        let block_tokens = self.block_tokens;
        Ok(Export::new(
            &self.disk,
            self.fingerprint,
            block_tokens,
            session,
        ))
    }

    /// Writes a session with its blocks as one file; see `docs/session-format.md`.
    ///
    /// # Errors
    /// [`SessionError`]; also when a block turns out to be damaged.
    pub fn export(
        &self,
        namespace: &Namespace,
        name: &str,
        now_ms: u64,
        out: &mut impl Write,
    ) -> Result<(), SessionError> {
        self.exporter(namespace, name, now_ms)?.write(None, out)
    }

    /// Reads a file of [`export`](Self::export) into `namespace` and keeps it under its name. The blocks
    /// get the names that they have here: secrets and tenants may differ, the fingerprint may not.
    ///
    /// # Errors
    /// [`SessionError`] naming the place; nothing is kept then.
    pub fn import(
        &mut self,
        namespace: &Namespace,
        now_ms: u64,
        file: &mut impl Read,
    ) -> Result<String, SessionError> {
        let file = SessionFile::open(file)?;
        self.check_model(&file)?;
        let imported = file.read(&self.disk, |_| Ok(*namespace), now_ms)?;
        let name = imported.session.name.clone();
        self.take(imported);
        Ok(name)
    }

    /// Checks that a file is of this model.
    ///
    /// # Errors
    /// [`SessionError::Malformed`] if it is not.
    pub fn check_model<R: Read>(&self, file: &SessionFile<R>) -> Result<(), SessionError> {
        let malformed = |offset, reason| Err(SessionError::Malformed { offset, reason });
        if file.fingerprint != self.fingerprint {
            return malformed(16, "made by another model, tokenizer or position scheme");
        }
        if file.block_tokens != self.block_tokens {
            return malformed(12, "made with blocks of another number of tokens");
        }
        Ok(())
    }

    /// Holds what was read from a file with all others; one of the same name is replaced.
    pub fn take(&mut self, imported: Imported) {
        self.hold(imported.session);
    }

    /// The disk level that all this is on.
    #[must_use]
    pub fn disk(&self) -> &Arc<DiskStore> {
        &self.disk
    }
}

fn plain_meta(fingerprint: Fingerprint, payload: &[u8]) -> Meta {
    Meta {
        codec: 0,
        payload_bytes: payload.len() as u64,
        hot_bytes: 0,
        tokens: 0,
        fingerprint,
    }
}

/// The blocks are made to last before the manifest is written: a manifest that survives a power cut
/// without being acknowledged must not stand for blocks that did not.
fn write_manifest(
    disk: &DiskStore,
    fingerprint: Fingerprint,
    session: &Session,
) -> Result<(), SessionError> {
    disk.sync()?;
    let manifest = session.encode();
    let meta = plain_meta(fingerprint, &manifest);
    disk.put(Kind::Session, session.key(), &meta, &manifest)?;
    Ok(disk.sync()?)
}
