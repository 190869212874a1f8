//! The store: an index in memory over segment files.
//!
//! Lock order: the store's lock, then the storage's. Reads take the lock to find the place only.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::DiskError;
use super::format::{
    ALIGN_BYTES, Kind, RECORD_HEAD_BYTES, RecordHead, SEGMENT_HEAD_BYTES, encode_segment_head,
    is_segment_head, payload_checksum, record_bytes, segment_name, segment_number,
};
use super::storage::Storage;
use crate::budget::{Budget, ChargeKind};
use crate::buffer::Buffer;
use crate::hash::{BlockHash, Fingerprint, HashMapByHash};

/// Bytes read at once while looking for the next valid head.
const SCAN_BYTES: usize = 64 * 1024;
/// Bytes copied at once when a record is written anew; fewer where the budget has no room for them.
const COPY_BYTES: usize = 256 * 1024;
/// Bytes copied at once where the budget has no room at all.
const LEAST_COPY_BYTES: usize = 4096;

/// Sizes of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// Bytes of all segments together. While the oldest is being removed, what is kept of it may come
    /// on top for a moment.
    pub limit_bytes: u64,
    /// Bytes of one segment, at which the next is begun.
    pub segment_bytes: u64,
}

impl DiskOptions {
    /// A store of `limit_bytes` in segments of a sixteenth, between 1 and 256 MiB.
    #[must_use]
    pub fn with_limit(limit_bytes: u64) -> Self {
        Self {
            limit_bytes,
            segment_bytes: (limit_bytes / 16).clamp(1 << 20, 256 << 20),
        }
    }
}

/// What is known of a stored record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Codec of the payload.
    pub codec: u16,
    /// Bytes of the payload.
    pub payload_bytes: u64,
    /// Bytes of the block when hot.
    pub hot_bytes: u64,
    /// Tokens in the block.
    pub tokens: u32,
    /// What the bytes depend on.
    pub fingerprint: Fingerprint,
}

/// Figures of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// Blocks held.
    pub blocks: usize,
    /// Sessions held.
    pub sessions: usize,
    /// Segments.
    pub segments: usize,
    /// Bytes of all segments.
    pub bytes: u64,
    /// Bytes written since the store was opened, compaction included.
    pub written_bytes: u64,
    /// Payload bytes read and found good.
    pub read_bytes: u64,
    /// Reads that failed their checksum or could not be read.
    pub damaged: u64,
    /// Records forgotten because a sync failed behind them.
    pub unsynced: u64,
    /// Records that went with their segment.
    pub evicted: u64,
    /// Records written anew because they were pinned or in use.
    pub kept_on: u64,
}

#[derive(Clone, Copy, Debug)]
struct Location {
    segment: u64,
    offset: u64,
    head: RecordHead,
    was_read: bool,
    /// The payload was written by this process, or found to be as it was written. Until then a power cut may have torn
    /// what an earlier process wrote.
    is_sound: bool,
}

struct Active {
    segment: u64,
    end: u64,
}

struct Inner {
    index: HashMapByHash<Location>,
    /// Bytes of each segment.
    segments: BTreeMap<u64, u64>,
    active: Option<Active>,
    next_segment: u64,
    /// Segments written to since their last sync, and from where on.
    unsynced: BTreeMap<u64, u64>,
    pinned: HashMapByHash<u32>,
    stats: DiskStats,
}

/// See the [module's description](super).
pub struct DiskStore {
    storage: Arc<dyn Storage>,
    options: DiskOptions,
    budget: OnceLock<Budget>,
    inner: Mutex<Inner>,
}

impl DiskStore {
    /// Opens the store in `storage` and rebuilds its index. Files that cannot be read are left alone.
    ///
    /// # Errors
    /// When the files cannot be listed.
    pub fn open(storage: Arc<dyn Storage>, options: DiskOptions) -> Result<Self, DiskError> {
        let names = storage.list().map_err(|source| DiskError::Io {
            file: "the disk level's directory".into(),
            source,
        })?;
        let mut numbers: Vec<u64> = names
            .iter()
            .filter_map(|name| segment_number(name))
            .collect();
        numbers.sort_unstable();
        let mut inner = Inner {
            index: HashMapByHash::default(),
            segments: BTreeMap::new(),
            active: None,
            // Also beyond segments that cannot be read: no number is used twice.
            next_segment: numbers.last().map_or(0, |last| last.saturating_add(1)),
            unsynced: BTreeMap::new(),
            pinned: HashMapByHash::default(),
            stats: DiskStats::default(),
        };
        for segment in numbers {
            if let Some(bytes) = scan_segment(&*storage, segment, &mut inner.index) {
                inner.segments.insert(segment, bytes);
            }
        }
        Ok(Self {
            storage,
            options,
            budget: OnceLock::new(),
            inner: Mutex::new(inner),
        })
    }

    /// From now on buffers for reading and writing are charged to `budget`; the first call counts.
    pub fn charge_to(&self, budget: &Budget) {
        if self.budget.set(budget.clone()).is_ok() {
            self.storage.reserve(budget);
        }
    }

    /// What buffers for this store's records are to be charged to: nobody's before [`charge_to`](Self::charge_to).
    #[must_use]
    pub fn budget(&self) -> Budget {
        let budget = self.budget.get().cloned();
        budget.unwrap_or_else(|| Budget::new(u64::MAX))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of RAM that the index takes, roughly.
    #[must_use]
    pub fn index_bytes(&self) -> usize {
        // A table is three quarters full on average.
        self.lock().index.len() * size_of::<(BlockHash, Location)>() * 4 / 3
    }

    /// Bytes that a buffer of [`read_into`](Self::read_into) needs beside the payload.
    #[must_use]
    pub fn slack_bytes(&self) -> usize {
        self.storage.slack_bytes()
    }

    /// Appends a record. It is read back from now on, and acknowledged by the next [`sync`](Self::sync).
    ///
    /// # Errors
    /// When the record does not fit, or the file system fails; the store is then as it was, but for what
    /// was evicted to make room.
    pub fn put(
        &self,
        kind: Kind,
        key: BlockHash,
        meta: &Meta,
        payload: &[u8],
    ) -> Result<(), DiskError> {
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
        let mut inner = self.lock();
        self.make_room(&mut inner, &head)?;
        self.append(&mut inner, head, payload)
    }

    /// Appends a record without looking at the limit.
    fn append(&self, inner: &mut Inner, head: RecordHead, payload: &[u8]) -> Result<(), DiskError> {
        self.append_from(inner, head, |write| write(payload))
            .map(|_| ())
    }

    /// Appends a record whose payload `give` hands out in pieces, front to back.
    fn append_from(
        &self,
        inner: &mut Inner,
        head: RecordHead,
        give: impl FnOnce(&mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()>,
    ) -> Result<(), DiskError> {
        let needed = record_bytes(head.payload_bytes).ok_or(DiskError::TooLarge {
            needed: u64::MAX,
            limit: self.options.limit_bytes,
        })?;
        let (segment, offset) = self.place(inner, needed)?;
        let name = segment_name(segment);
        let mut at = offset;
        // Front to back, as storage gathers it best. A record that is cut off reaches beyond the end of its file,
        // or has not got the checksum of its payload.
        let mut write = |bytes: &[u8]| {
            self.storage.write_at(&name, at, bytes)?;
            at += bytes.len() as u64;
            Ok(())
        };
        let padding = needed - RECORD_HEAD_BYTES - head.payload_bytes;
        let written = write(&head.encode(segment, offset))
            .and_then(|()| give(&mut write))
            .and_then(|()| write(&[0; ALIGN_BYTES as usize][..padding as usize]));
        inner.segments.insert(segment, offset + needed);
        if let Err(source) = written {
            // What is behind is unknown: nothing more goes into this segment.
            inner.active = None;
            return Err(DiskError::Io { file: name, source });
        }
        if let Some(active) = &mut inner.active {
            active.end = offset + needed;
        }
        inner.unsynced.entry(segment).or_insert(offset);
        inner.stats.written_bytes += needed;
        let location = Location {
            segment,
            offset,
            head,
            was_read: false,
            is_sound: true,
        };
        match head.kind {
            Kind::Removal => inner.index.remove(&head.key),
            Kind::Block | Kind::Session | Kind::Words => inner.index.insert(head.key, location),
        };
        Ok(())
    }

    /// Where the next record of `needed` bytes goes; begins a new segment if it must.
    fn place(&self, inner: &mut Inner, needed: u64) -> Result<(u64, u64), DiskError> {
        if let Some(active) = &inner.active
            && active.end + needed <= self.options.segment_bytes.max(SEGMENT_HEAD_BYTES + needed)
        {
            return Ok((active.segment, active.end));
        }
        let segment = inner.next_segment;
        let name = segment_name(segment);
        inner.next_segment += 1;
        self.storage
            .create(&name)
            .and_then(|()| {
                self.storage
                    .write_at(&name, 0, &encode_segment_head(segment))
            })
            .map_err(|source| DiskError::Io { file: name, source })?;
        inner.segments.insert(segment, SEGMENT_HEAD_BYTES);
        inner.active = Some(Active {
            segment,
            end: SEGMENT_HEAD_BYTES,
        });
        Ok((segment, SEGMENT_HEAD_BYTES))
    }

    /// Removes oldest segments until a record with this head fits.
    fn make_room(&self, inner: &mut Inner, head: &RecordHead) -> Result<(), DiskError> {
        let limit = self.options.limit_bytes;
        let needed = record_bytes(head.payload_bytes)
            .and_then(|bytes| bytes.checked_add(SEGMENT_HEAD_BYTES))
            .unwrap_or(u64::MAX);
        if needed > limit {
            return Err(DiskError::TooLarge { needed, limit });
        }
        let pinned = pinned_bytes(inner);
        if pinned.saturating_add(needed) > limit {
            return Err(DiskError::Full {
                needed,
                pinned,
                limit,
            });
        }
        let mut rounds = inner.segments.len() + 1;
        while total_bytes(inner).saturating_add(needed) > limit {
            if rounds == 0 {
                return Err(DiskError::Full {
                    needed,
                    pinned,
                    limit,
                });
            }
            rounds -= 1;
            self.remove_oldest(inner)?;
        }
        Ok(())
    }

    /// Removes the oldest segment; what is pinned, or was read, of it is written anew first.
    fn remove_oldest(&self, inner: &mut Inner) -> Result<(), DiskError> {
        let Some((&segment, _)) = inner.segments.first_key_value() else {
            return Ok(());
        };
        if inner
            .active
            .as_ref()
            .is_some_and(|active| active.segment == segment)
        {
            inner.active = None;
        }
        let mut held: Vec<Location> = inner
            .index
            .values()
            .filter(|l| l.segment == segment)
            .copied()
            .collect();
        // In order of place; pinned ones first, since the others may not all find room.
        held.sort_by_key(|l| (!inner.pinned.contains_key(&l.head.key), l.offset));
        let mut room = self.options.segment_bytes / 2;
        for location in held {
            let is_pinned = inner.pinned.contains_key(&location.head.key);
            let bytes = location.head.record_bytes().unwrap_or(u64::MAX);
            let moves = is_pinned || (location.was_read && bytes <= room);
            inner.index.remove(&location.head.key);
            if !moves {
                inner.stats.evicted += 1;
                continue;
            }
            room = room.saturating_sub(bytes);
            match self.move_record(inner, &location) {
                Ok(true) => inner.stats.kept_on += 1,
                Ok(false) => {
                    inner.index.remove(&location.head.key);
                    inner.stats.damaged += 1;
                }
                Err(why) => {
                    // Not moved: it stays where it is, and so does its segment.
                    inner.index.insert(location.head.key, location);
                    return Err(why);
                }
            }
        }
        // A crash in between must not lose what was acknowledged before it was moved.
        self.sync_segments(inner)?;
        inner.segments.remove(&segment);
        inner.unsynced.remove(&segment);
        let name = segment_name(segment);
        self.storage
            .remove(&name)
            .map_err(|source| DiskError::Io { file: name, source })
    }

    /// Appends a record anew, a piece at a time; whether its payload was as it was written.
    fn move_record(&self, inner: &mut Inner, from: &Location) -> Result<bool, DiskError> {
        let mut bytes =
            COPY_BYTES.min(usize::try_from(from.head.payload_bytes).unwrap_or(COPY_BYTES));
        let mut buffer = loop {
            match Buffer::<u8>::zeroed(&self.budget(), ChargeKind::Io, bytes) {
                Ok(buffer) => break Some(buffer),
                Err(_) if bytes > LEAST_COPY_BYTES => bytes /= 2,
                Err(_) => break None,
            }
        };
        // Segments must be removable when nothing more is granted.
        let mut least = [0; LEAST_COPY_BYTES];
        let piece: &mut [u8] = match &mut buffer {
            Some(buffer) => buffer,
            None => &mut least,
        };
        let mut hasher = blake3::Hasher::new();
        let name = segment_name(from.segment);
        self.append_from(inner, from.head, |write| {
            let mut at = from.offset + RECORD_HEAD_BYTES;
            let end = at + from.head.payload_bytes;
            while at < end {
                let len = piece
                    .len()
                    .min(usize::try_from(end - at).unwrap_or(usize::MAX));
                // What can't be read fails the checksum.
                if self.storage.read_at(&name, at, &mut piece[..len]).is_err() {
                    piece[..len].fill(0);
                }
                hasher.update(&piece[..len]);
                write(&piece[..len])?;
                at += len as u64;
            }
            Ok(())
        })?;
        Ok(hasher.finalize().as_bytes()[..16] == from.head.checksum)
    }

    fn read_checked(&self, location: &Location, out: &mut [u8]) -> bool {
        let name = segment_name(location.segment);
        let at = location.offset + RECORD_HEAD_BYTES;
        self.storage.read_at(&name, at, out).is_ok()
            && payload_checksum(out) == location.head.checksum
    }

    /// What is stored under this key for this fingerprint.
    #[must_use]
    pub fn meta(&self, key: &BlockHash, fingerprint: &Fingerprint) -> Option<Meta> {
        let inner = self.lock();
        let head = &inner.index.get(key)?.head;
        (head.fingerprint == *fingerprint).then_some(Meta {
            codec: head.codec,
            payload_bytes: head.payload_bytes,
            hot_bytes: head.hot_bytes,
            tokens: head.tokens,
            fingerprint: head.fingerprint,
        })
    }

    /// Whether what is stored under this key for this fingerprint can be relied on: for records of an earlier process the
    /// payload is read once. One that is not as it was written is forgotten.
    #[must_use]
    pub fn is_sound(&self, key: &BlockHash, fingerprint: &Fingerprint) -> bool {
        let Some(location) = self.find(key, fingerprint) else {
            return false;
        };
        if !location.is_sound {
            // One is read at a time, also where the budget is exceeded: nothing is acknowledged unread.
            let budget = self.budget();
            let _charge = budget.try_charge(ChargeKind::Io, location.head.payload_bytes);
            let is_good = is_whole(&*self.storage, &location);
            self.note_read(&location, is_good, false);
            return is_good;
        }
        true
    }

    /// Reads the payload stored under this key into all of `out`. `false` is a miss: nothing is there, it
    /// is of another fingerprint or length, or it was damaged (and is forgotten).
    #[must_use]
    pub fn read(&self, key: &BlockHash, fingerprint: &Fingerprint, out: &mut [u8]) -> bool {
        self.read_as(key, fingerprint, out, true)
    }

    /// Like [`read`](Self::read), with as little work as storage can do: the payload comes to lie somewhere in `buffer`,
    /// which begins at a page and has [`slack_bytes`](Self::slack_bytes) more than the payload. Gives where;
    /// `None` is a miss.
    #[must_use]
    pub fn read_into(
        &self,
        key: &BlockHash,
        fingerprint: &Fingerprint,
        buffer: &mut [u8],
    ) -> Option<Range<usize>> {
        let location = self.find(key, fingerprint)?;
        let len = usize::try_from(location.head.payload_bytes).ok()?;
        let name = segment_name(location.segment);
        let at = location.offset + RECORD_HEAD_BYTES;
        let read = self.storage.read_into(&name, at, len, buffer);
        let good = read
            .ok()
            .filter(|place| payload_checksum(&buffer[place.clone()]) == location.head.checksum);
        self.note_read(&location, good.is_some(), true);
        good
    }

    /// Like [`read`](Self::read), but no use of the record: it does not keep it from being evicted.
    #[must_use]
    pub fn copy(&self, key: &BlockHash, fingerprint: &Fingerprint, out: &mut [u8]) -> bool {
        self.read_as(key, fingerprint, out, false)
    }

    fn read_as(
        &self,
        key: &BlockHash,
        fingerprint: &Fingerprint,
        out: &mut [u8],
        is_use: bool,
    ) -> bool {
        let Some(location) = self.find(key, fingerprint) else {
            return false;
        };
        if location.head.payload_bytes != out.len() as u64 {
            return false;
        }
        let good = self.read_checked(&location, out);
        self.note_read(&location, good, is_use);
        good
    }

    fn find(&self, key: &BlockHash, fingerprint: &Fingerprint) -> Option<Location> {
        let found = self.lock().index.get(key).copied();
        found.filter(|location| location.head.fingerprint == *fingerprint)
    }

    fn note_read(&self, location: &Location, is_good: bool, is_use: bool) {
        let mut inner = self.lock();
        let key = &location.head.key;
        // The record may have been moved or replaced while it was read.
        let same = |held: &&mut Location| {
            (held.segment, held.offset) == (location.segment, location.offset)
        };
        if is_good {
            inner.stats.read_bytes += location.head.payload_bytes;
            if let Some(held) = inner.index.get_mut(key).filter(same) {
                held.was_read |= is_use;
                held.is_sound = true;
            }
        } else if inner.index.get_mut(key).filter(same).is_some() {
            inner.stats.damaged += 1;
            inner.index.remove(key);
        }
    }

    /// Removes what is stored under this key, for good once [`sync`](Self::sync) returned.
    ///
    /// # Errors
    /// When the removal cannot be written. The key is gone until the store is opened again even so.
    pub fn remove(&self, key: &BlockHash) -> Result<bool, DiskError> {
        let mut inner = self.lock();
        let Some(location) = inner.index.remove(key) else {
            return Ok(false);
        };
        let head = RecordHead {
            kind: Kind::Removal,
            codec: 0,
            payload_bytes: 0,
            checksum: payload_checksum(&[]),
            ..location.head
        };
        self.append(&mut inner, head, &[])?;
        Ok(true)
    }

    /// Keeps a key from eviction until it is unpinned as often; it need not be stored yet.
    pub fn pin(&self, key: BlockHash) {
        *self.lock().pinned.entry(key).or_insert(0) += 1;
    }

    /// Takes one pin off.
    pub fn unpin(&self, key: &BlockHash) {
        let mut inner = self.lock();
        if let Some(pins) = inner.pinned.get_mut(key) {
            *pins -= 1;
            if *pins == 0 {
                inner.pinned.remove(key);
            }
        }
    }

    /// Returns when all that was put is on stable storage: acknowledged.
    ///
    /// # Errors
    /// When the file system fails: nothing is acknowledged then.
    pub fn sync(&self) -> Result<(), DiskError> {
        self.sync_segments(&mut self.lock())
    }

    fn sync_segments(&self, inner: &mut Inner) -> Result<(), DiskError> {
        let unsynced: Vec<(u64, u64)> =
            inner.unsynced.iter().map(|(&s, &from)| (s, from)).collect();
        for (segment, from) in unsynced {
            let name = segment_name(segment);
            let result = self.storage.sync(&name);
            inner.unsynced.remove(&segment);
            if let Err(source) = result {
                // The kernel may have dropped the pages and call the next sync a success: what was
                // written since the last good one is not there any more, and nothing goes behind it.
                inner.active = None;
                let known = inner.index.len();
                inner
                    .index
                    .retain(|_, l| l.segment != segment || l.offset < from);
                inner.stats.unsynced += (known - inner.index.len()) as u64;
                return Err(DiskError::Io { file: name, source });
            }
        }
        Ok(())
    }

    /// Keys of all stored sessions.
    #[must_use]
    pub fn session_keys(&self) -> Vec<(BlockHash, Fingerprint, u64)> {
        let inner = self.lock();
        let sessions = inner
            .index
            .values()
            .filter(|l| l.head.kind == Kind::Session);
        sessions
            .map(|l| (l.head.key, l.head.fingerprint, l.head.payload_bytes))
            .collect()
    }

    /// Figures of this moment.
    #[must_use]
    pub fn stats(&self) -> DiskStats {
        let inner = self.lock();
        let sessions = inner
            .index
            .values()
            .filter(|l| l.head.kind == Kind::Session)
            .count();
        DiskStats {
            blocks: inner.index.len() - sessions,
            sessions,
            segments: inner.segments.len(),
            bytes: total_bytes(&inner),
            ..inner.stats
        }
    }

    /// Checks the store's laws: every record lies within a segment that is there, no two overlap, and the
    /// limit holds.
    ///
    /// # Errors
    /// A description of the first law that is broken.
    pub fn check_conservation(&self) -> Result<(), String> {
        let inner = self.lock();
        let mut places: Vec<(u64, u64, u64)> = Vec::new();
        for (key, location) in &inner.index {
            let bytes = location
                .head
                .record_bytes()
                .ok_or("a record's length overflows")?;
            let end = location
                .offset
                .checked_add(bytes)
                .ok_or("a record's end overflows")?;
            let segment = inner
                .segments
                .get(&location.segment)
                .ok_or("a record's segment is gone")?;
            if *key != location.head.key || end > *segment || location.offset < SEGMENT_HEAD_BYTES {
                return Err(format!("{key:?} lies outside its segment"));
            }
            places.push((location.segment, location.offset, end));
        }
        places.sort_unstable();
        if places
            .windows(2)
            .any(|w| w[0].0 == w[1].0 && w[0].2 > w[1].1)
        {
            return Err("two records overlap".into());
        }
        Ok(())
    }
}

impl fmt::Debug for DiskStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskStore")
            .field("options", &self.options)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

fn total_bytes(inner: &Inner) -> u64 {
    inner.segments.values().sum()
}

fn pinned_bytes(inner: &Inner) -> u64 {
    let pinned = inner.pinned.keys().filter_map(|key| inner.index.get(key));
    pinned
        .filter_map(|location| location.head.record_bytes())
        .sum()
}

/// Reads the record heads of a segment into the index; returns its bytes, or `None` if it is none of ours.
fn scan_segment(
    storage: &dyn Storage,
    segment: u64,
    index: &mut HashMapByHash<Location>,
) -> Option<u64> {
    let name = segment_name(segment);
    let file_bytes = storage.len(&name).ok()?;
    let mut head = [0; SEGMENT_HEAD_BYTES as usize];
    storage.read_at(&name, 0, &mut head).ok()?;
    if !is_segment_head(&head, segment) {
        return None;
    }
    let mut offset = SEGMENT_HEAD_BYTES;
    while let Some((at, head)) = next_head(storage, segment, offset, file_bytes) {
        offset = at + head.record_bytes()?;
        let location = Location {
            segment,
            offset: at,
            head,
            was_read: false,
            is_sound: false,
        };
        if head.kind == Kind::Removal {
            index.remove(&head.key);
        } else if !index.contains_key(&head.key) || is_whole(storage, &location) {
            index.insert(head.key, location);
        }
    }
    Some(file_bytes)
}

/// Whether the payload is as it was written. Asked when opening for records that supersede another: one
/// that a power cut tore must not hide the good one that was acknowledged before it.
fn is_whole(storage: &dyn Storage, location: &Location) -> bool {
    let Ok(bytes) = usize::try_from(location.head.payload_bytes) else {
        return false;
    };
    // The record lies within the file, so the file has earned the allocation.
    let mut payload = vec![0; bytes];
    let at = location.offset + RECORD_HEAD_BYTES;
    let name = segment_name(location.segment);
    storage.read_at(&name, at, &mut payload).is_ok()
        && payload_checksum(&payload) == location.head.checksum
}

/// The first valid head at or behind `offset` whose record lies within the file.
fn next_head(
    storage: &dyn Storage,
    segment: u64,
    offset: u64,
    file_bytes: u64,
) -> Option<(u64, RecordHead)> {
    let name = segment_name(segment);
    let valid = |bytes: &[u8], at: u64| {
        let head = RecordHead::decode(bytes.first_chunk()?, segment, at)?;
        let end = at.checked_add(head.record_bytes()?)?;
        (end <= file_bytes).then_some((at, head))
    };
    let mut first = [0; RECORD_HEAD_BYTES as usize];
    if offset.checked_add(RECORD_HEAD_BYTES)? > file_bytes {
        return None;
    }
    storage.read_at(&name, offset, &mut first).ok()?;
    if let Some(found) = valid(&first, offset) {
        return Some(found);
    }
    // The head is damaged or torn: look for the next one, a stretch at a time.
    let mut stretch = vec![0; SCAN_BYTES];
    let mut begin = offset + ALIGN_BYTES;
    while begin + RECORD_HEAD_BYTES <= file_bytes {
        let bytes = SCAN_BYTES.min(usize::try_from(file_bytes - begin).unwrap_or(SCAN_BYTES));
        storage.read_at(&name, begin, &mut stretch[..bytes]).ok()?;
        let mut step = 0;
        while step + RECORD_HEAD_BYTES as usize <= bytes {
            if let Some(found) = valid(&stretch[step..bytes], begin + step as u64) {
                return Some(found);
            }
            step += ALIGN_BYTES as usize;
        }
        begin += step as u64;
    }
    None
}
