//! Sessions as files, to be moved between machines and tenants; see `docs/session-format.md`.
//!
//! Neither reading nor writing needs the [`Sessions`](super::Sessions): both may be done on another thread, with
//! the blocks pinned meanwhile. Nothing of a file is trusted.

use std::io::{Read, Write};
use std::sync::Arc;

use super::{HEAD_BYTES, MAX_NAME_BYTES, MAX_TOKENS, Session, SessionError};
use crate::budget::{Budget, ChargeKind};
use crate::buffer::Buffer;
use crate::disk::format::{Kind, RECORD_HEAD_BYTES, RecordHead, payload_checksum};
use crate::disk::{DiskStore, Meta};
use crate::hash::{BlockHash, Fingerprint, Namespace};

/// Version that this code writes, and the only one that it reads.
pub const VERSION: u32 = 1;
/// Bytes of a file's head.
pub const FILE_HEAD_BYTES: u64 = 64;
/// Most bytes of what was said.
pub const MAX_WORDS_BYTES: u64 = 64 << 20;

const MAGIC: &[u8; 8] = b"NEAPSES\0";
/// "Segment" of the records of a file: no segment of a store has this number.
const SEGMENT: u64 = u64::MAX;
/// Largest block that is read.
const MAX_BLOCK_BYTES: u64 = 1 << 30;
/// Read before more room is charged for what a file claims to hold.
const FIRST_BYTES: usize = 1 << 20;

/// Keeps blocks from eviction as long as it lives.
struct Pins {
    disk: Arc<DiskStore>,
    keys: Vec<BlockHash>,
}

impl Pins {
    fn new(disk: &Arc<DiskStore>, keys: Vec<BlockHash>) -> Self {
        keys.iter().for_each(|&key| disk.pin(key));
        Self {
            disk: Arc::clone(disk),
            keys,
        }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        self.keys.iter().for_each(|key| self.disk.unpin(key));
    }
}

fn file_head(fingerprint: &Fingerprint, block_tokens: u32) -> [u8; FILE_HEAD_BYTES as usize] {
    let mut bytes = [0; FILE_HEAD_BYTES as usize];
    bytes[0..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&block_tokens.to_le_bytes());
    bytes[16..48].copy_from_slice(fingerprint.as_bytes());
    let sum = blake3::hash(&bytes[..56]);
    bytes[56..64].copy_from_slice(&sum.as_bytes()[..8]);
    bytes
}

/// A session that is being written to a file.
pub struct Export {
    session: Session,
    fingerprint: Fingerprint,
    block_tokens: usize,
    /// All its blocks, in order.
    blocks: Pins,
}

impl Export {
    pub(super) fn new(
        disk: &Arc<DiskStore>,
        fingerprint: Fingerprint,
        block_tokens: usize,
        session: Session,
    ) -> Self {
        let blocks = Pins::new(disk, session.blocks(block_tokens));
        Self {
            session,
            fingerprint,
            block_tokens,
            blocks,
        }
    }

    /// Writes the whole file. `words` is what was said, in whatever form the caller keeps it, if it does.
    ///
    /// # Errors
    /// [`SessionError`]; also when a block turns out to be damaged, or the budget has no room for one.
    pub fn write(&self, words: Option<&[u8]>, out: &mut impl Write) -> Result<(), SessionError> {
        out.write_all(&file_head(&self.fingerprint, self.block_tokens as u32))?;
        let mut offset = FILE_HEAD_BYTES;
        let key = self.session.key();
        let manifest = self.session.encode();
        for (kind, payload) in [(Kind::Session, Some(&manifest[..])), (Kind::Words, words)] {
            if let Some(payload) = payload {
                let meta = super::plain_meta(self.fingerprint, payload);
                write_record(out, &mut offset, (kind, key), &meta, payload)?;
            }
        }
        let disk = &self.blocks.disk;
        let chunks = self.session.tokens.chunks(self.block_tokens);
        let mut stored = 0;
        for (block, chunk) in self.blocks.keys.iter().zip(chunks) {
            let incomplete = SessionError::Incomplete {
                stored,
                wanted: self.session.tokens.len(),
            };
            let Some(meta) = disk.meta(block, &self.fingerprint) else {
                return Err(incomplete);
            };
            let bytes = usize::try_from(meta.payload_bytes).unwrap_or(usize::MAX);
            let mut payload = Buffer::<u8>::zeroed(&disk.budget(), ChargeKind::Io, bytes)?;
            if !disk.copy(block, &self.fingerprint, &mut payload) {
                return Err(incomplete);
            }
            write_record(out, &mut offset, (Kind::Block, *block), &meta, &payload)?;
            stored += chunk.len();
        }
        Ok(out.flush()?)
    }
}

fn write_record(
    out: &mut impl Write,
    offset: &mut u64,
    (kind, key): (Kind, BlockHash),
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
    out.write_all(&head.encode(SEGMENT, *offset))?;
    out.write_all(payload)?;
    let padding = bytes - RECORD_HEAD_BYTES - payload.len() as u64;
    out.write_all(&[0; 64][..padding as usize])?;
    *offset += bytes;
    Ok(())
}

/// A file whose head was read.
pub struct SessionFile<R> {
    file: R,
    offset: u64,
    /// What its keys and values depend on.
    pub fingerprint: Fingerprint,
    /// Tokens of a block.
    pub block_tokens: usize,
}

/// A session that was read from a file: its blocks and its manifest are on stable storage.
pub struct Imported {
    /// The session, of the namespace that it was read into.
    pub session: Session,
    /// What was said, if the file tells.
    pub words: Option<Vec<u8>>,
    /// Until it is held with all others.
    pub(super) _blocks: ImportedPins,
}

/// Hides the pins of an [`Imported`].
pub(super) struct ImportedPins(#[allow(dead_code)] Pins);

impl<R: Read> SessionFile<R> {
    /// Reads the head.
    ///
    /// # Errors
    /// When the file is none of ours, or of a version that is not known.
    pub fn open(mut file: R) -> Result<Self, SessionError> {
        let malformed = |offset, reason| SessionError::Malformed { offset, reason };
        let mut head = [0; FILE_HEAD_BYTES as usize];
        file.read_exact(&mut head)
            .map_err(|_| malformed(0, "the file is cut off"))?;
        if &head[..8] != MAGIC {
            return Err(malformed(0, "not a session file"));
        }
        if head[8..12] != VERSION.to_le_bytes() {
            return Err(malformed(8, "of a version that this program does not know"));
        }
        let mut tokens = [0; 4];
        tokens.copy_from_slice(&head[12..16]);
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(&head[16..48]);
        let fingerprint = Fingerprint::from_bytes(fingerprint);
        let block_tokens = u32::from_le_bytes(tokens);
        if head != file_head(&fingerprint, block_tokens) || block_tokens == 0 {
            return Err(malformed(56, "a checksum does not match"));
        }
        Ok(Self {
            file,
            offset: FILE_HEAD_BYTES,
            fingerprint,
            block_tokens: block_tokens as usize,
        })
    }

    /// Reads the session and stores its blocks and its manifest on `disk`, on stable storage when this
    /// returns. `place` says whose it will be; the blocks get the names that they have there. Its time to live
    /// begins at `now_ms`.
    ///
    /// # Errors
    /// [`SessionError`] naming the place in the file; nothing is kept then.
    pub fn read(
        mut self,
        disk: &Arc<DiskStore>,
        place: impl FnOnce(&Session) -> Result<Namespace, SessionError>,
        now_ms: u64,
    ) -> Result<Imported, SessionError> {
        let budget = disk.budget();
        let mut session = self.manifest(&budget)?;
        let namespace = place(&session)?;
        if session.namespace.quality() > namespace.quality() {
            return Err(SessionError::Malformed {
                offset: FILE_HEAD_BYTES,
                reason: "its keys and values are of a lower quality than is asked for here",
            });
        }
        session.namespace = namespace;
        let ttl_ms = session
            .expires_ms
            .map(|ms| ms.saturating_sub(session.saved_ms));
        session.expires_ms = ttl_ms.map(|ttl| now_ms.saturating_add(ttl));
        session.saved_ms = now_ms;
        let blocks = Pins::new(disk, session.blocks(self.block_tokens));
        let words = self.blocks(&budget, &session, |index, meta, payload| {
            let key = &blocks.keys[index];
            // One that was computed here is believed rather than the file's.
            if !disk.is_sound(key, &meta.fingerprint) {
                disk.put(Kind::Block, *key, meta, payload)?;
            }
            Ok(())
        })?;
        self.expect_end()?;
        super::write_manifest(disk, self.fingerprint, &session)?;
        Ok(Imported {
            session,
            words,
            _blocks: ImportedPins(blocks),
        })
    }

    /// Reads the file to its end and stores nothing.
    ///
    /// # Errors
    /// [`SessionError`] naming the first place that is wrong.
    pub fn check(mut self, budget: &Budget) -> Result<Session, SessionError> {
        let session = self.manifest(budget)?;
        self.blocks(budget, &session, |_, _, _| Ok(()))?;
        self.expect_end()?;
        Ok(session)
    }

    fn manifest(&mut self, budget: &Budget) -> Result<Session, SessionError> {
        let limit = (HEAD_BYTES + MAX_NAME_BYTES + MAX_TOKENS * 4) as u64;
        let (_, manifest) = self.record(budget, &[Kind::Session], limit)?;
        Session::decode(&manifest).ok_or(SessionError::Malformed {
            offset: FILE_HEAD_BYTES,
            reason: "not a manifest of this version",
        })
    }

    /// Gives each block to `take`, by its number; gives what was said.
    fn blocks(
        &mut self,
        budget: &Budget,
        session: &Session,
        mut take: impl FnMut(usize, &Meta, &[u8]) -> Result<(), SessionError>,
    ) -> Result<Option<Vec<u8>>, SessionError> {
        let mut words = None;
        let mut kinds = &[Kind::Words, Kind::Block][..];
        let mut chunks = session.tokens.chunks(self.block_tokens).enumerate();
        let mut next = chunks.next();
        while let Some((index, chunk)) = next {
            let at = self.offset;
            let (head, payload) = self.record(budget, kinds, MAX_BLOCK_BYTES)?;
            // What was said comes first if at all.
            kinds = &[Kind::Block];
            if head.kind == Kind::Words {
                words = Some(payload.to_vec());
                continue;
            }
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
            take(index, &meta, &payload)?;
            next = chunks.next();
        }
        Ok(words)
    }

    fn record(
        &mut self,
        budget: &Budget,
        kinds: &[Kind],
        limit: u64,
    ) -> Result<(RecordHead, Buffer<u8>), SessionError> {
        let at = self.offset;
        let malformed = |reason| SessionError::Malformed { offset: at, reason };
        let mut head = [0; RECORD_HEAD_BYTES as usize];
        self.file
            .read_exact(&mut head)
            .map_err(|_| malformed("the file is cut off"))?;
        let head = RecordHead::decode(&head, SEGMENT, at).ok_or(malformed("not a record"))?;
        let limit = match head.kind {
            Kind::Words => MAX_WORDS_BYTES,
            _ => limit,
        };
        if !kinds.contains(&head.kind) || head.payload_bytes > limit {
            return Err(malformed("another kind of record, or too large a one"));
        }
        if head.fingerprint != self.fingerprint {
            return Err(malformed(
                "made by another model, tokenizer or position scheme",
            ));
        }
        let padded = head.record_bytes().ok_or(malformed("too large"))? - RECORD_HEAD_BYTES;
        let padded = usize::try_from(padded).map_err(|_| malformed("too large"))?;
        let mut payload = self.payload(budget, padded)?;
        payload.resize(head.payload_bytes as usize)?;
        if payload_checksum(&payload) != head.checksum {
            return Err(malformed("a checksum does not match"));
        }
        self.offset = at + RECORD_HEAD_BYTES + padded as u64;
        Ok((head, payload))
    }

    /// `bytes` of the file. Room grows with what is really there, so a lying length costs nothing.
    fn payload(&mut self, budget: &Budget, bytes: usize) -> Result<Buffer<u8>, SessionError> {
        let first = bytes.min(FIRST_BYTES);
        let mut payload = Buffer::<u8>::zeroed(budget, ChargeKind::Io, first)?;
        let mut read = 0;
        loop {
            self.file
                .read_exact(&mut payload[read..])
                .map_err(|_| SessionError::Malformed {
                    offset: self.offset,
                    reason: "the file is cut off",
                })?;
            read = payload.len();
            if read == bytes {
                return Ok(payload);
            }
            payload.resize(bytes.min(read.saturating_mul(2)))?;
        }
    }

    fn expect_end(&mut self) -> Result<(), SessionError> {
        match self.file.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(SessionError::Malformed {
                offset: self.offset,
                reason: "there is more than the session",
            }),
        }
    }
}
