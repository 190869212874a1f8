//! Names of blocks: chained, salted, cryptographic hashes.
//!
//! The hash of a block covers every token before it, the tenant, and everything that the bytes depend on
//! (the [`Fingerprint`]). Two blocks with one hash therefore hold the same keys and values, in this
//! process, in a file, or on another machine; and a tenant without the secret can neither guess nor
//! collide with the blocks of another. A hash that is not cryptographic would make the cache an oracle.
#![forbid(unsafe_code)]

use crate::level::KvQuality;

use std::fmt;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// What the bytes of a block depend on besides the tokens: model, tokenizer, position scheme, codec.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Hashes named parts. Names and values are framed by their lengths, so that no two different lists
    /// have the same input.
    #[must_use]
    pub fn of_parts(parts: &[(&str, &[u8])]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("neap 2026 block fingerprint v1");
        for (name, value) in parts {
            update_framed(&mut hasher, name.as_bytes());
            update_framed(&mut hasher, value);
        }
        Self(*hasher.finalize().as_bytes())
    }

    /// A fingerprint read back from a file.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, "Fingerprint", &self.0)
    }
}

/// The root of one tenant's hashes under one fingerprint.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Namespace {
    root: BlockHash,
    quality: KvQuality,
}

impl Namespace {
    /// The namespace of `tenant`. `secret` is random and kept from all tenants; nodes that share a
    /// remote store share it.
    #[must_use]
    pub fn new(secret: &[u8; 32], tenant: &str, fingerprint: &Fingerprint) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(secret);
        update_framed(&mut hasher, b"neap prefix namespace v1");
        update_framed(&mut hasher, tenant.as_bytes());
        update_framed(&mut hasher, fingerprint.as_bytes());
        Self {
            root: BlockHash(*hasher.finalize().as_bytes()),
            quality: KvQuality::Exact,
        }
    }

    /// The same tenant's namespace for blocks of `quality`, apart from those of every other quality: a
    /// block that was computed while attending to lossy ones is never taken for an exact one.
    #[must_use]
    pub fn with_quality(self, quality: KvQuality) -> Self {
        if quality == self.quality {
            return self;
        }
        let mut hasher = blake3::Hasher::new_keyed(&self.root.0);
        update_framed(&mut hasher, b"neap prefix namespace of quality v1");
        update_framed(&mut hasher, quality.name().as_bytes());
        Self {
            root: BlockHash(*hasher.finalize().as_bytes()),
            quality,
        }
    }

    /// How low its blocks may sink.
    #[must_use]
    pub fn quality(&self) -> KvQuality {
        self.quality
    }

    /// A namespace read back from a file.
    pub(crate) fn from_root(root: BlockHash, quality: KvQuality) -> Self {
        Self { root, quality }
    }

    /// The key of the session of this name.
    #[must_use]
    pub fn session_key(&self, name: &str) -> BlockHash {
        // A key of its own keeps sessions apart from blocks, whose hashes are keyed by the root itself.
        let mut hasher = blake3::Hasher::new_derive_key("neap 2026 session name v1");
        hasher.update(&self.root.0);
        update_framed(&mut hasher, name.as_bytes());
        BlockHash(*hasher.finalize().as_bytes())
    }

    /// The hash that the first block of every sequence is chained to.
    #[must_use]
    pub fn root(&self) -> BlockHash {
        self.root
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, "Namespace", &self.root.0)
    }
}

/// The name of one block in its place: after these tokens, for this tenant, of this model.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockHash([u8; 32]);

impl BlockHash {
    /// The hash of a block of `tokens` that follows the block named `self`.
    #[must_use]
    pub fn child(&self, tokens: &[u32]) -> Self {
        // Keyed by the parent: the key input is as strong as hashing it, and one compression shorter.
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        let mut bytes = [0u8; 128];
        for chunk in tokens.chunks(bytes.len() / 4) {
            for (out, token) in bytes.chunks_exact_mut(4).zip(chunk) {
                out.copy_from_slice(&token.to_le_bytes());
            }
            hasher.update(&bytes[..chunk.len() * 4]);
        }
        Self(*hasher.finalize().as_bytes())
    }

    /// A hash read back from a file.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Its first eight bytes as a number: an id for policies and hash tables.
    #[must_use]
    pub fn short(&self) -> u64 {
        let mut head = [0u8; 8];
        head.copy_from_slice(&self.0[..8]);
        u64::from_le_bytes(head)
    }
}

impl Hash for BlockHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.short());
    }
}

impl fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, "BlockHash", &self.0)
    }
}

/// For maps keyed by [`BlockHash`], which is already uniform: hashing it again would buy nothing.
#[derive(Default)]
pub(crate) struct UniformHasher(u64);

impl Hasher for UniformHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

pub(crate) type HashMapByHash<V> =
    std::collections::HashMap<BlockHash, V, BuildHasherDefault<UniformHasher>>;

fn update_framed(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

fn write_hex(f: &mut fmt::Formatter<'_>, name: &str, bytes: &[u8; 32]) -> fmt::Result {
    // Eight bytes tell blocks apart in a log.
    write!(f, "{name}(")?;
    for byte in &bytes[..8] {
        write!(f, "{byte:02x}")?;
    }
    write!(f, "…)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_differ_in_secret_tenant_and_fingerprint() {
        let a = Fingerprint::of_parts(&[("model", b"m"), ("codec", b"f16")]);
        let b = Fingerprint::of_parts(&[("model", b"mcodec"), ("", b"f16")]);
        let roots = [
            Namespace::new(&[1; 32], "x", &a),
            Namespace::new(&[2; 32], "x", &a),
            Namespace::new(&[1; 32], "y", &a),
            Namespace::new(&[1; 32], "x", &b),
            Namespace::new(&[1; 32], "x", &a).with_quality(KvQuality::High),
            Namespace::new(&[1; 32], "x", &a).with_quality(KvQuality::Small),
            Namespace::new(&[1; 32], "y", &a).with_quality(KvQuality::Small),
        ];
        assert_eq!(roots[0].with_quality(KvQuality::Exact), roots[0]);
        for (i, left) in roots.iter().enumerate() {
            for right in &roots[i + 1..] {
                assert_ne!(left.root().child(&[1, 2]), right.root().child(&[1, 2]));
            }
        }
    }

    #[test]
    fn a_hash_covers_all_tokens_before_it() {
        let root = BlockHash::from_bytes([7; 32]);
        let a = root.child(&[1, 2]).child(&[3, 4]);
        assert_eq!(a, root.child(&[1, 2]).child(&[3, 4]));
        assert_ne!(a, root.child(&[1, 9]).child(&[3, 4]));
        assert_ne!(a, root.child(&[1, 2, 3, 4]));
        // More tokens than the stack buffer holds, split otherwise, is still the same input.
        let tokens: Vec<u32> = (0..100).collect();
        let mut hasher = blake3::Hasher::new_keyed(&[7; 32]);
        for token in &tokens {
            hasher.update(&token.to_le_bytes());
        }
        assert_eq!(root.child(&tokens).as_bytes(), hasher.finalize().as_bytes());
    }
}
