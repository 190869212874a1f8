//! Names and bytes of objects; see `docs/remote-format.md`.

use std::fmt::Write as _;

use crate::disk::Meta;
use crate::hash::{BlockHash, Fingerprint};

/// Version that this code writes, and the only one that it reads.
pub const VERSION: u32 = 1;
/// Bytes of an object before its payload.
pub const HEAD_BYTES: usize = 96;

const MAGIC: &[u8; 8] = b"NEAPREM\0";
const MAC_AT: usize = 64;

/// The key of the hashes of all objects, from the secret that the processes share.
#[must_use]
pub fn mac_key(secret: &[u8; 32]) -> [u8; 32] {
    blake3::derive_key("neap 2026 remote object v1", secret)
}

/// The object of a block.
#[must_use]
pub fn object_name(key: &BlockHash, fingerprint: &Fingerprint) -> String {
    let mut name = String::from("v1/");
    push_hex(&mut name, fingerprint.as_bytes());
    name.push('/');
    // Folders of two digits, since some file systems do not like a million files in one.
    push_hex(&mut name, &key.as_bytes()[..1]);
    name.push('/');
    push_hex(&mut name, key.as_bytes());
    name
}

fn push_hex(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
}

/// Writes the head of `object`, whose payload stands behind it already.
///
/// # Panics
/// If `object` is shorter than a head.
pub fn seal(mac_key: &[u8; 32], key: &BlockHash, meta: &Meta, object: &mut [u8]) {
    object[..HEAD_BYTES].fill(0);
    object[0..8].copy_from_slice(MAGIC);
    object[8..12].copy_from_slice(&VERSION.to_le_bytes());
    object[12..14].copy_from_slice(&meta.codec.to_le_bytes());
    object[16..24].copy_from_slice(&meta.payload_bytes.to_le_bytes());
    object[24..32].copy_from_slice(&meta.hot_bytes.to_le_bytes());
    object[32..36].copy_from_slice(&meta.tokens.to_le_bytes());
    let mac = mac(mac_key, key, &meta.fingerprint, object);
    object[MAC_AT..HEAD_BYTES].copy_from_slice(mac.as_bytes());
}

/// What an object says of its payload, which is all that follows the head; `None` if it is not the object of
/// this block, whole and as it was written by one who knows the secret.
#[must_use]
pub fn open(
    mac_key: &[u8; 32],
    key: &BlockHash,
    fingerprint: &Fingerprint,
    object: &[u8],
) -> Option<Meta> {
    let head: &[u8; HEAD_BYTES] = object.first_chunk()?;
    if &head[0..8] != MAGIC || head[8..12] != VERSION.to_le_bytes() {
        return None;
    }
    let found = blake3::Hash::from_bytes(*head[MAC_AT..].first_chunk()?);
    // Compared in constant time.
    if mac(mac_key, key, fingerprint, object) != found {
        return None;
    }
    let meta = Meta {
        codec: u16::from_le_bytes(*head[12..].first_chunk()?),
        payload_bytes: u64::from_le_bytes(*head[16..].first_chunk()?),
        hot_bytes: u64::from_le_bytes(*head[24..].first_chunk()?),
        tokens: u32::from_le_bytes(*head[32..].first_chunk()?),
        fingerprint: *fingerprint,
    };
    (meta.payload_bytes == (object.len() - HEAD_BYTES) as u64).then_some(meta)
}

fn mac(
    mac_key: &[u8; 32],
    key: &BlockHash,
    fingerprint: &Fingerprint,
    object: &[u8],
) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(mac_key);
    hasher.update(key.as_bytes());
    hasher.update(fingerprint.as_bytes());
    hasher.update(&object[..MAC_AT]);
    hasher.update(&object[HEAD_BYTES..]);
    hasher.finalize()
}
