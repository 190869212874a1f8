//! The way to disk.

use std::time::Instant;

use super::{Held, KvCache};
use crate::codec::{BlockCodec, PLAIN_ID, Packed};
use crate::disk::Meta;
use crate::disk::format::Kind;
use crate::hash::Namespace;
use crate::level::Level;
use crate::prefix::NodeId;

impl KvCache {
    /// Writes every block of `tokens` to disk that is not there. Returns how many tokens are now: fewer
    /// than all where a block is not cached or could not be written. Not acknowledged before the disk
    /// level's `sync`.
    pub fn store(&mut self, namespace: &Namespace, tokens: &[u32]) -> usize {
        let found = self.tree.peek(namespace, tokens);
        let mut stored = 0;
        let mut trimmed = Vec::new();
        for &node in found
            .full
            .iter()
            .chain(found.partial.as_ref().map(|p| &p.node))
        {
            // A longer block under another name does not count as this one.
            let Some(len) = self.tree.tokens(node).map(<[u32]>::len) else {
                break;
            };
            let fits = tokens.get(stored..stored + len) == self.tree.tokens(node);
            if !fits || !self.is_kept(node) {
                break;
            }
            stored += len;
            trimmed.push(self.is_record_trimmed(node));
        }
        self.pool.startable_tokens(stored, |block| trimmed[block])
    }

    /// Writes the block of `node` to disk if it is not there, and whether what is there can be relied on. A record of an
    /// earlier process that a power cut tore is written anew, where the block is in RAM.
    fn is_kept(&mut self, node: NodeId) -> bool {
        if self.spill(node) && self.is_sound(node) {
            return true;
        }
        self.forget_copy(node);
        self.spill(node) && self.is_sound(node)
    }

    fn is_sound(&self, node: NodeId) -> bool {
        let (disk, info) = (self.options.disk.as_ref(), self.tree.info(node));
        disk.zip(info)
            .is_some_and(|(disk, info)| disk.is_sound(&info.hash, &self.options.fingerprint))
    }

    /// Writes the block of `node` to disk, packed if that is smaller. Whether a record is there now.
    pub(super) fn spill(&mut self, node: NodeId) -> bool {
        let (Some(disk), Some(info)) = (&self.options.disk, self.tree.info(node)) else {
            return false;
        };
        let Some(entry) = self.tree.get_mut(node) else {
            return false;
        };
        let Held::Ram(block) = &entry.held else {
            return entry.is_on_disk;
        };
        let (key, fingerprint) = (info.hash, self.options.fingerprint);
        let covers = |meta: Meta| meta.hot_bytes >= block.hot_bytes() as u64;
        // A whole record is not given up for a trimmed one, whoever wrote it.
        if (entry.is_on_disk || (block.is_trimmed() && disk.is_sound(&key, &fingerprint)))
            && disk.meta(&key, &fingerprint).is_some_and(covers)
        {
            entry.is_on_disk = true;
            return true;
        }
        let packing: Option<&dyn BlockCodec> = match block.level() {
            Level::Hot => Some(&Packed),
            Level::Int4 => self.options.quantized.packed.as_deref(),
            _ => None,
        };
        let encoded = packing.and_then(|codec| {
            let bytes = codec.encode_from(block.level(), block.bytes(), &mut self.scratch);
            Some((codec.id(), bytes.ok()?))
        });
        let (codec, payload) = match (block.level(), encoded) {
            (_, Some((codec, bytes))) if bytes < block.bytes().len() => {
                (codec, &self.scratch[..bytes])
            }
            (Level::Hot, _) => (PLAIN_ID, block.bytes()),
            (Level::Packed, _) => (entry.packed_by, block.bytes()),
            (level, _) => match self.options.quantized.at(level) {
                Some(codec) => (codec.id(), block.bytes()),
                None => return false,
            },
        };
        let meta = Meta {
            codec,
            payload_bytes: payload.len() as u64,
            hot_bytes: block.hot_bytes() as u64,
            tokens: info.tokens as u32,
            fingerprint: self.options.fingerprint,
        };
        let start = Instant::now();
        let written = disk.put(Kind::Block, info.hash, &meta, payload).is_ok();
        if written && self.measures {
            self.costs
                .disk_write
                .observe(payload.len() as u64, start.elapsed().as_secs_f64() * 1e6);
        }
        entry.is_on_disk = written;
        if let Some(remote) = self.options.remote.as_ref().filter(|_| written) {
            remote.offer(info.hash, self.options.fingerprint, disk);
        }
        written
    }
}
