//! Heads of segments and records; see `docs/disk-format.md`.

use crate::hash::{BlockHash, Fingerprint};

/// Version that this code writes, and the only one that it reads.
pub const VERSION: u32 = 1;
/// Bytes of a segment's head.
pub const SEGMENT_HEAD_BYTES: u64 = 64;
/// Bytes of a record's head.
pub const RECORD_HEAD_BYTES: u64 = 128;
/// Records begin at multiples of this.
pub const ALIGN_BYTES: u64 = 64;

const SEGMENT_MAGIC: &[u8; 8] = b"NEAPSEG\0";
const RECORD_MAGIC: &[u8; 4] = b"NREC";

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The bytes of a block.
    Block,
    /// The manifest of a session.
    Session,
    /// The end of an earlier record.
    Removal,
    /// What was said in a session, as the program that keeps it writes it: in session files only.
    Words,
}

impl Kind {
    fn from_number(number: u16) -> Option<Self> {
        match number {
            1 => Some(Self::Block),
            2 => Some(Self::Session),
            3 => Some(Self::Removal),
            4 => Some(Self::Words),
            _ => None,
        }
    }

    fn number(self) -> u16 {
        match self {
            Self::Block => 1,
            Self::Session => 2,
            Self::Removal => 3,
            Self::Words => 4,
        }
    }
}

/// The head of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHead {
    /// What it is.
    pub kind: Kind,
    /// Codec of the payload.
    pub codec: u16,
    /// Bytes of payload.
    pub payload_bytes: u64,
    /// Name.
    pub key: BlockHash,
    /// What the bytes depend on.
    pub fingerprint: Fingerprint,
    /// Bytes of the block when hot.
    pub hot_bytes: u64,
    /// Tokens in the block.
    pub tokens: u32,
    /// Checksum of the payload.
    pub checksum: [u8; 16],
}

impl RecordHead {
    /// Bytes from this record's start to the next one's; `None` on overflow.
    #[must_use]
    pub fn record_bytes(&self) -> Option<u64> {
        record_bytes(self.payload_bytes)
    }

    /// The head as it stands at `offset` of segment `segment`.
    #[must_use]
    pub fn encode(&self, segment: u64, offset: u64) -> [u8; RECORD_HEAD_BYTES as usize] {
        let mut bytes = [0; RECORD_HEAD_BYTES as usize];
        bytes[0..4].copy_from_slice(RECORD_MAGIC);
        bytes[4..6].copy_from_slice(&self.kind.number().to_le_bytes());
        bytes[6..8].copy_from_slice(&self.codec.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[16..48].copy_from_slice(self.key.as_bytes());
        bytes[48..80].copy_from_slice(self.fingerprint.as_bytes());
        bytes[80..88].copy_from_slice(&self.hot_bytes.to_le_bytes());
        bytes[88..92].copy_from_slice(&self.tokens.to_le_bytes());
        bytes[96..112].copy_from_slice(&self.checksum);
        let sum = place_checksum(segment, offset, &bytes[..120]);
        bytes[120..128].copy_from_slice(&sum);
        bytes
    }

    /// Reads a head; `None` if it is not one that belongs at this place.
    #[must_use]
    pub fn decode(
        bytes: &[u8; RECORD_HEAD_BYTES as usize],
        segment: u64,
        offset: u64,
    ) -> Option<Self> {
        // Cheap first: scans for a lost head look at many places.
        if &bytes[0..4] != RECORD_MAGIC
            || place_checksum(segment, offset, &bytes[..120]) != bytes[120..128]
        {
            return None;
        }
        let head = Self {
            kind: Kind::from_number(u16::from_le_bytes(array(&bytes[4..6])))?,
            codec: u16::from_le_bytes(array(&bytes[6..8])),
            payload_bytes: u64::from_le_bytes(array(&bytes[8..16])),
            key: BlockHash::from_bytes(array(&bytes[16..48])),
            fingerprint: Fingerprint::from_bytes(array(&bytes[48..80])),
            hot_bytes: u64::from_le_bytes(array(&bytes[80..88])),
            tokens: u32::from_le_bytes(array(&bytes[88..92])),
            checksum: array(&bytes[96..112]),
        };
        head.record_bytes().map(|_| head)
    }
}

/// Copies a slice of known length into an array; the caller's range gives the length.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(bytes);
    out
}

/// Head, payload and padding.
#[must_use]
pub fn record_bytes(payload_bytes: u64) -> Option<u64> {
    payload_bytes
        .checked_add(RECORD_HEAD_BYTES)?
        .checked_next_multiple_of(ALIGN_BYTES)
}

/// Checksum of a payload.
#[must_use]
pub fn payload_checksum(payload: &[u8]) -> [u8; 16] {
    array(&blake3::hash(payload).as_bytes()[..16])
}

fn place_checksum(segment: u64, offset: u64, head: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&segment.to_le_bytes());
    hasher.update(&offset.to_le_bytes());
    hasher.update(head);
    array(&hasher.finalize().as_bytes()[..8])
}

/// The head of segment `segment`.
#[must_use]
pub fn encode_segment_head(segment: u64) -> [u8; SEGMENT_HEAD_BYTES as usize] {
    let mut bytes = [0; SEGMENT_HEAD_BYTES as usize];
    bytes[0..8].copy_from_slice(SEGMENT_MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[16..24].copy_from_slice(&segment.to_le_bytes());
    let sum = blake3::hash(&bytes[..56]);
    bytes[56..64].copy_from_slice(&sum.as_bytes()[..8]);
    bytes
}

/// Whether these are the head of segment `segment` in the version that this code reads.
#[must_use]
pub fn is_segment_head(bytes: &[u8], segment: u64) -> bool {
    bytes == encode_segment_head(segment)
}

/// The file of segment `segment`.
#[must_use]
pub fn segment_name(segment: u64) -> String {
    format!("seg-{segment:016x}.neap")
}

/// The number of the segment in a file of this name.
#[must_use]
pub fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("seg-")?.strip_suffix(".neap")?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    (segment_name(number) == name).then_some(number)
}
