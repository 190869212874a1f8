//! Sessions: conversations that are kept on purpose, under a name, across restarts.
//!
//! A session is a manifest on the disk level beside the blocks of its tokens, all pinned there. It is
//! acknowledged when [`Sessions::save`] returns: then it survives a kill at any instant.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

use crate::cache::KvCache;
use crate::disk::format::{Kind, RECORD_HEAD_BYTES, RecordHead, payload_checksum};
use crate::disk::{DiskError, DiskStore, Meta};
use crate::hash::{BlockHash, Fingerprint, Namespace};
use crate::level::KvQuality;

#[cfg(test)]
mod tests;

const MAGIC: &[u8; 4] = b"NSES";
const VERSION: u16 = 1;
const HEAD_BYTES: usize = 64;
/// Longest name, in bytes.
pub const MAX_NAME_BYTES: usize = 512;
/// Most tokens of a session.
pub const MAX_TOKENS: usize = 1 << 24;
/// "Segment" of the records of an exported file: no segment of a store has this number.
const EXPORT_SEGMENT: u64 = u64::MAX;
/// Largest block that an import takes.
const MAX_BLOCK_BYTES: u64 = 1 << 30;

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

    fn key(&self) -> BlockHash {
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
}

impl Sessions {
    /// Finds the sessions that `disk` holds for this fingerprint, and pins their blocks.
    #[must_use]
    pub fn open(disk: &Arc<DiskStore>, fingerprint: Fingerprint, block_tokens: usize) -> Self {
        let mut sessions = Self {
            disk: Arc::clone(disk),
            fingerprint,
            block_tokens,
            held: BTreeMap::new(),
        };
        for (key, of, bytes) in disk.session_keys() {
            let Some(bytes) = usize::try_from(bytes).ok().filter(|_| of == fingerprint) else {
                continue;
            };
            // The record lies within its file, so the file has earned the allocation.
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
        self.let_go(&key);
        self.disk.pin(key);
        for block in session.blocks(self.block_tokens) {
            self.disk.pin(block);
        }
        self.held.insert(key, session);
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
        // Pinned before they are written: a segment may go for want of room in between.
        let blocks = session.blocks(self.block_tokens);
        blocks.iter().for_each(|block| self.disk.pin(*block));
        let result = self.write(cache, &session);
        blocks.iter().for_each(|block| self.disk.unpin(block));
        result?;
        self.hold(session);
        Ok(())
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
        self.write_manifest(session)
    }

    /// The blocks are made to last before the manifest is written: a manifest that survives a power cut
    /// without being acknowledged must not stand for blocks that did not.
    fn write_manifest(&self, session: &Session) -> Result<(), SessionError> {
        self.disk.sync()?;
        let manifest = session.encode();
        let meta = self.meta(&manifest);
        self.disk
            .put(Kind::Session, session.key(), &meta, &manifest)?;
        Ok(self.disk.sync()?)
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

    fn meta(&self, payload: &[u8]) -> Meta {
        Meta {
            codec: 0,
            payload_bytes: payload.len() as u64,
            hot_bytes: 0,
            tokens: 0,
            fingerprint: self.fingerprint,
        }
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
        let session = self
            .held
            .get(&namespace.session_key(name))
            .filter(|session| !session.is_expired(now_ms))
            .ok_or_else(|| SessionError::Unknown(name.to_owned()))?;
        cache.adopt(namespace, &session.tokens, now_ms);
        Ok(session)
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

    /// Writes a session with its blocks as one file: records of the disk format, manifest first.
    ///
    /// # Errors
    /// [`SessionError`]; also when a block turns out to be damaged.
    pub fn export(
        &self,
        namespace: &Namespace,
        name: &str,
        out: &mut impl Write,
    ) -> Result<(), SessionError> {
        let unknown = || SessionError::Unknown(name.to_owned());
        let session = self
            .held
            .get(&namespace.session_key(name))
            .ok_or_else(unknown)?;
        let manifest = session.encode();
        let mut offset = 0;
        write_record(
            out,
            &mut offset,
            Kind::Session,
            session.key(),
            &self.meta(&manifest),
            &manifest,
        )?;
        let mut stored = 0;
        for (block, chunk) in session
            .blocks(self.block_tokens)
            .iter()
            .zip(session.tokens.chunks(self.block_tokens))
        {
            let incomplete = SessionError::Incomplete {
                stored,
                wanted: session.tokens.len(),
            };
            let Some(meta) = self.disk.meta(block, &self.fingerprint) else {
                return Err(incomplete);
            };
            let mut payload = vec![0; usize::try_from(meta.payload_bytes).unwrap_or(0)];
            if !self.disk.read(block, &self.fingerprint, &mut payload) {
                return Err(incomplete);
            }
            write_record(out, &mut offset, Kind::Block, *block, &meta, &payload)?;
            stored += chunk.len();
        }
        Ok(out.flush()?)
    }

    /// Reads a file of [`export`](Self::export) into `namespace` and keeps it under its name. The blocks
    /// get the names that they have here: secrets and tenants may differ, the fingerprint may not.
    ///
    /// # Errors
    /// [`SessionError`] naming the place; nothing is kept then.
    pub fn import(
        &mut self,
        namespace: &Namespace,
        file: &mut impl Read,
    ) -> Result<String, SessionError> {
        let mut offset = 0;
        let limit = (HEAD_BYTES + MAX_NAME_BYTES + MAX_TOKENS * 4) as u64;
        let (_, manifest) = self.read_record(file, &mut offset, Kind::Session, limit)?;
        let malformed = SessionError::Malformed {
            offset: RECORD_HEAD_BYTES,
            reason: "not a manifest of this version",
        };
        let mut session = Session::decode(&manifest).ok_or(malformed)?;
        if session.namespace.quality() > namespace.quality() {
            return Err(SessionError::Malformed {
                offset: RECORD_HEAD_BYTES,
                reason: "its keys and values are of a lower quality than is asked for here",
            });
        }
        session.namespace = *namespace;
        let blocks = session.blocks(self.block_tokens);
        blocks.iter().for_each(|block| self.disk.pin(*block));
        let result = self.import_blocks(&session, &blocks, file, &mut offset);
        blocks.iter().for_each(|block| self.disk.unpin(block));
        result?;
        let name = session.name.clone();
        self.hold(session);
        Ok(name)
    }

    fn import_blocks(
        &self,
        session: &Session,
        blocks: &[BlockHash],
        file: &mut impl Read,
        offset: &mut u64,
    ) -> Result<(), SessionError> {
        for (block, chunk) in blocks.iter().zip(session.tokens.chunks(self.block_tokens)) {
            let at = *offset;
            let (head, payload) = self.read_record(file, offset, Kind::Block, MAX_BLOCK_BYTES)?;
            if head.tokens as usize != chunk.len() {
                return Err(SessionError::Malformed {
                    offset: at,
                    reason: "a block of another number of tokens",
                });
            }
            let meta = Meta {
                codec: head.codec,
                payload_bytes: head.payload_bytes,
                hot_bytes: head.hot_bytes,
                tokens: head.tokens,
                fingerprint: head.fingerprint,
            };
            self.disk.put(Kind::Block, *block, &meta, &payload)?;
        }
        self.write_manifest(session)
    }

    fn read_record(
        &self,
        file: &mut impl Read,
        offset: &mut u64,
        kind: Kind,
        limit: u64,
    ) -> Result<(RecordHead, Vec<u8>), SessionError> {
        let at = *offset;
        let malformed = |reason| SessionError::Malformed { offset: at, reason };
        let mut head = [0; RECORD_HEAD_BYTES as usize];
        file.read_exact(&mut head)
            .map_err(|_| malformed("the file is cut off"))?;
        let head =
            RecordHead::decode(&head, EXPORT_SEGMENT, at).ok_or(malformed("not a record"))?;
        if head.kind != kind || head.payload_bytes > limit {
            return Err(malformed("another kind of record, or too large a one"));
        }
        if head.fingerprint != self.fingerprint {
            return Err(malformed(
                "made by another model, tokenizer or position scheme",
            ));
        }
        let padded = head.record_bytes().ok_or(malformed("too large"))? - RECORD_HEAD_BYTES;
        let mut payload = Vec::new();
        // Grows with what is really there, so a lying length costs nothing.
        let read = file.by_ref().take(padded).read_to_end(&mut payload)?;
        if read as u64 != padded {
            return Err(malformed("the file is cut off"));
        }
        payload.truncate(head.payload_bytes as usize);
        if payload_checksum(&payload) != head.checksum {
            return Err(malformed("a checksum does not match"));
        }
        *offset = at + RECORD_HEAD_BYTES + padded;
        Ok((head, payload))
    }
}

fn write_record(
    out: &mut impl Write,
    offset: &mut u64,
    kind: Kind,
    key: BlockHash,
    meta: &Meta,
    payload: &[u8],
) -> Result<(), SessionError> {
    let head = RecordHead {
        kind,
        codec: meta.codec,
        payload_bytes: payload.len() as u64,
        key,
        fingerprint: meta.fingerprint,
        hot_bytes: meta.hot_bytes,
        tokens: meta.tokens,
        checksum: payload_checksum(payload),
    };
    let bytes = head.record_bytes().ok_or(SessionError::TooLong)?;
    out.write_all(&head.encode(EXPORT_SEGMENT, *offset))?;
    out.write_all(payload)?;
    let padding = bytes - RECORD_HEAD_BYTES - payload.len() as u64;
    out.write_all(&vec![0; padding as usize])?;
    *offset += bytes;
    Ok(())
}
