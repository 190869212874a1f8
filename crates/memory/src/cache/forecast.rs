//! What a scheduler asks before it decides: what a prompt would find, and what could be freed.

use super::{Entry, Held, KvCache};
use crate::codec::PACKED_ID;
use crate::hash::Namespace;
use crate::level::Level;
use crate::pool::KvPool;
use crate::prefix::NodeId;
use crate::region::round_to_pages;

/// What the cache holds of a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forecast {
    /// Tokens that [`KvCache::attach`] would find, if nothing has to be let go of and nothing is damaged.
    pub tokens: usize,
    /// Bytes of room that attaching them takes: those of blocks that are not in RAM or are packed there, at the most
    /// that they may come back with, and those that could be let go of otherwise. Blocks that tables use at this moment take
    /// none.
    pub attach_bytes: u64,
}

impl KvCache {
    /// What [`attach`](Self::attach) would find. Counts as no use.
    #[must_use]
    pub fn forecast(&self, namespace: &Namespace, tokens: &[u32]) -> Forecast {
        let found = self.tree.peek(namespace, tokens);
        let block_tokens = self.pool.block_tokens();
        let full = found.full.iter().map(|&node| (node, block_tokens));
        let partial = found.partial.map(|p| (p.node, p.tokens));
        let mut path: Vec<(NodeId, usize)> = full
            .chain(partial)
            .take_while(|&(node, _)| self.is_held(node))
            .collect();
        self.cut_to_startable(&mut path);
        let entries = path.iter().filter_map(|&(node, _)| self.tree.get(node));
        Forecast {
            tokens: path.iter().map(|(_, tokens)| tokens).sum(),
            attach_bytes: entries.map(|entry| self.attach_bytes(entry)).sum(),
        }
    }

    fn attach_bytes(&self, entry: &Entry) -> u64 {
        match &entry.held {
            Held::Ram(block) if block.is_shared() => 0,
            Held::Ram(block) if block.level().is_attendable() => block.charged_bytes(),
            Held::Ram(_) if entry.packed_by != PACKED_ID => {
                let codec = self.options.quantized.packed.as_ref();
                self.charged_bytes_at(codec.map_or(Level::Hot, |codec| codec.decodes_to()))
            }
            _ => self.pool.charged_block_bytes(),
        }
    }

    /// Bytes in RAM of cached blocks that no table uses: what [`free`](Self::free) could give back at
    /// most.
    #[must_use]
    pub fn freeable_bytes(&self) -> u64 {
        self.freeable_bytes_up_to(u64::MAX)
    }

    /// [`freeable_bytes`](Self::freeable_bytes), counted only until `enough` are found.
    #[must_use]
    pub fn freeable_bytes_up_to(&self, enough: u64) -> u64 {
        let mut sum = 0;
        for &node in self.nodes.values() {
            if sum >= enough {
                // Not what was found besides: that depends on the order of a table.
                return enough;
            }
            sum += self.freeable_bytes_of(node);
        }
        sum.min(enough)
    }

    fn freeable_bytes_of(&self, node: NodeId) -> u64 {
        match self.tree.get(node).map(|entry| &entry.held) {
            Some(Held::Ram(block)) if !block.is_shared() => block.charged_bytes(),
            _ => 0,
        }
    }

    /// Bytes that a block is charged at an attendable level; those of a hot one where a level has no codec.
    #[must_use]
    pub fn charged_bytes_at(&self, level: Level) -> u64 {
        let hot_bytes = self.pool.charged_block_bytes();
        let codec = self.options.quantized.at(level);
        let bytes =
            codec.and_then(|c| round_to_pages(c.max_encoded_bytes(self.pool.block_bytes())));
        bytes.map_or(hot_bytes, |bytes| hot_bytes.min(bytes as u64))
    }

    /// The pool whose blocks are cached.
    #[must_use]
    pub fn pool(&self) -> &KvPool {
        &self.pool
    }
}
