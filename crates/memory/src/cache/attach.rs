//! The way up: finding a prefix, and bringing its blocks to a level that is attended to.

use std::time::Instant;

use super::ranking::Use;
use super::{Held, KvCache};
use crate::codec::{BlockCodec, PACKED_ID, PLAIN_ID, Packed, Plain, QuantizedLevels};
use crate::disk::{Meta, Prefetch};
use crate::governor::Occasion;
use crate::hash::Namespace;
use crate::level::Level;
use crate::pool::{Block, KvPool};
use crate::prefix::NodeId;
use crate::table::BlockTable;

/// Why stored bytes did not become a block.
pub(super) enum Undecoded {
    /// The budget has no room for it.
    NoRoom,
    /// They are no block that may be used here.
    Bad,
}

impl KvCache {
    /// Attaches the longest cached prefix of `tokens` to `table`, which is empty, and returns its length.
    /// Packed blocks are unpacked, blocks on disk read; the remote level is [asked](Self::ask_remote) before. A model needs a token to run: leave the last out.
    ///
    /// # Panics
    /// If the table is not empty.
    pub fn attach(
        &mut self,
        namespace: &Namespace,
        tokens: &[u32],
        table: &mut BlockTable,
        now_ms: u64,
    ) -> usize {
        assert!(
            table.capacity_tokens() == 0,
            "a prefix is attached to an empty table"
        );
        self.adopt(namespace, tokens, now_ms);
        self.attach_known(namespace, tokens, table, now_ms)
    }

    /// [`attach`](Self::attach) of what the tree knows.
    pub(super) fn attach_known(
        &mut self,
        namespace: &Namespace,
        tokens: &[u32],
        table: &mut BlockTable,
        now_ms: u64,
    ) -> usize {
        let found = self.tree.lookup(namespace, tokens);
        self.stats.asked_tokens += tokens.len() as u64;
        let block_tokens = self.pool.block_tokens();
        let mut path: Vec<(NodeId, usize)> = found
            .full
            .iter()
            .map(|&node| (node, block_tokens))
            .chain(found.partial.map(|p| (p.node, p.tokens)))
            .collect();
        self.cut_to_startable(&mut path);
        // Claims on what is in RAM, so that making room for the rest does not let go of it.
        let claims: Vec<Option<Block>> = path.iter().map(|&(node, _)| self.claim(node)).collect();
        self.make_room_for(&claims, now_ms);
        let mut reads = self.read_ahead(&path);
        for (&(node, tokens), claim) in path.iter().zip(claims) {
            let Some(block) = self.bring_up(node, tokens, claim, &mut reads) else {
                break;
            };
            table.attach(block, tokens);
        }
        drop(reads);
        // Where the match ended before its time, what is trimmed may be read whole.
        table.truncate(table.startable_tokens());
        let turn = self.turn_after(found.full.last().copied());
        let nodes: Vec<NodeId> = path.iter().map(|p| p.0).collect();
        let of = Use {
            now_ms,
            turn,
            new_tokens: tokens.len() - table.len_tokens(),
        };
        self.touch(&nodes, of);
        table.len_tokens()
    }

    /// Enters blocks of `tokens` into the tree that the disk level has and the tree does not: after a
    /// restart. A partial block is found if `tokens` end where it does.
    pub fn adopt(&mut self, namespace: &Namespace, tokens: &[u32], now_ms: u64) {
        let Some(disk) = &self.options.disk else {
            return;
        };
        let known = self.tree.peek(namespace, tokens).full;
        let mut hash = known
            .last()
            .and_then(|&n| self.tree.info(n))
            .map_or(namespace.root(), |i| i.hash);
        let mut end = known.len() * self.pool.block_tokens();
        for chunk in tokens.chunks(self.pool.block_tokens()).skip(known.len()) {
            hash = hash.child(chunk);
            if disk.meta(&hash, &self.options.fingerprint).is_none() {
                break;
            }
            end += chunk.len();
        }
        if end > known.len() * self.pool.block_tokens() {
            let found = known.len() * self.pool.block_tokens();
            // Nothing of it is in RAM, so there is nothing to rank.
            self.enter(namespace, &tokens[..end], found, now_ms, |_| {
                (Held::Disk, true)
            });
        }
    }

    pub(super) fn claim(&self, node: NodeId) -> Option<Block> {
        match &self.tree.get(node)?.held {
            Held::Ram(block) => Some(block.clone()),
            Held::Disk | Held::Gone => None,
        }
    }

    /// Frees room for the hot form of everything on a path that is not attendable, and for the reads in
    /// flight.
    fn make_room_for(&mut self, claims: &[Option<Block>], now_ms: u64) {
        let is_attendable =
            |c: &&Option<Block>| c.as_ref().is_some_and(|b| b.level().is_attendable());
        let sunken = claims.len() - claims.iter().filter(is_attendable).count();
        let reads = claims
            .iter()
            .filter(|c| c.is_none())
            .count()
            .min(self.options.reads_in_flight);
        if sunken > 0 {
            self.make_room(sunken + reads, now_ms);
        }
    }

    /// Frees room for so many hot blocks.
    pub(super) fn make_room(&mut self, blocks: usize, now_ms: u64) {
        let slack_bytes = self.options.reads_in_flight as u64 * self.slack_bytes();
        let needed = blocks as u64 * self.pool.charged_block_bytes() + slack_bytes;
        let missing = needed.saturating_sub(self.pool.budget().available());
        if missing > 0 {
            self.free(missing, Occasion::Admission, now_ms);
        }
    }

    /// Bytes that a read from disk takes beside a block's own.
    pub(super) fn slack_bytes(&self) -> u64 {
        let disk = self.options.disk.as_ref();
        disk.map_or(0, |disk| disk.slack_bytes() as u64)
    }

    /// Starts to read what of the path is on disk.
    pub(super) fn read_ahead(&self, path: &[(NodeId, usize)]) -> Option<Prefetch> {
        let disk = self.options.disk.as_ref()?;
        let entry = |node: &NodeId| Some((self.tree.get(*node)?, self.tree.info(*node)?));
        let keys: Vec<_> = path
            .iter()
            .filter_map(|(node, _)| entry(node))
            .filter(|(entry, _)| matches!(entry.held, Held::Disk))
            .map(|(_, info)| info.hash)
            .collect();
        if keys.is_empty() {
            return None;
        }
        let fingerprint = self.options.fingerprint;
        Prefetch::start(
            disk,
            self.pool.budget(),
            fingerprint,
            &keys,
            self.options.reads_in_flight,
        )
        .ok()
    }

    /// A claim on the block of `node` in attendable form; `None` if it cannot be had.
    fn bring_up(
        &mut self,
        node: NodeId,
        tokens: usize,
        claim: Option<Block>,
        reads: &mut Option<Prefetch>,
    ) -> Option<Block> {
        let block = match (&self.tree.get(node)?.held, claim) {
            (_, Some(block)) if block.level().is_attendable() => {
                if block.level().is_lossy() {
                    self.stats.lossy_hit_tokens += tokens as u64;
                } else {
                    self.stats.hot_hit_tokens += tokens as u64;
                }
                block
            }
            (_, Some(block)) => {
                let block = self.unpack(node, &block)?;
                self.stats.packed_hit_tokens += tokens as u64;
                block
            }
            (Held::Disk, None) => {
                let block = self.load(node, reads)?;
                self.stats.disk_hit_tokens += tokens as u64;
                block
            }
            _ => return self.fail(node),
        };
        if block.level().is_lossy() && tokens < self.pool.block_tokens() {
            // The sequence goes on within it, and only hot blocks are written.
            return self.hot_copy(&block);
        }
        Some(block)
    }

    pub(super) fn unpack(&mut self, node: NodeId, packed: &Block) -> Option<Block> {
        let start = Instant::now();
        let lowest = self.tree.get(node)?.quality.lowest(true);
        let codec = self.tree.get(node)?.packed_by;
        let block = match decode_as(
            &self.pool,
            &self.options.quantized,
            (codec, lowest),
            (packed.hot_bytes(), packed.bytes()),
        ) {
            Ok(block) => block,
            Err(Undecoded::NoRoom) => return None,
            Err(Undecoded::Bad) => return self.fail(node),
        };
        if self.measures {
            let us = start.elapsed().as_secs_f64() * 1e6;
            self.costs.unpack.observe(packed.hot_bytes() as u64, us);
        }
        Some(self.keep(node, block))
    }

    /// The next of `reads`, which is of `node`'s block, at the level that it was stored at.
    pub(super) fn load(&mut self, node: NodeId, reads: &mut Option<Prefetch>) -> Option<Block> {
        let start = Instant::now();
        let read = reads.as_mut().and_then(Iterator::next);
        let Some((meta, bytes)) = read.and_then(|fetched| fetched.payload) else {
            // For want of room, if the record is still there.
            return if self.is_stored(node) {
                None
            } else {
                self.fail(node)
            };
        };
        let lowest = self.tree.get(node)?.quality.lowest(true);
        match self.decode_stored(lowest, &meta, &bytes) {
            Ok(block) => {
                if self.measures {
                    let us = start.elapsed().as_secs_f64() * 1e6;
                    self.costs.disk_read.observe(meta.payload_bytes, us);
                }
                Some(self.keep(node, block))
            }
            Err(Undecoded::NoRoom) => None,
            Err(Undecoded::Bad) => self.fail(node),
        }
    }

    pub(super) fn decode_stored(
        &self,
        lowest: Level,
        meta: &Meta,
        bytes: &[u8],
    ) -> Result<Block, Undecoded> {
        decode_stored(&self.pool, &self.options.quantized, lowest, meta, bytes)
    }

    /// The tree keeps the attendable form: it was wanted just now.
    fn keep(&mut self, node: NodeId, block: Block) -> Block {
        self.hold(node, Held::Ram(block.clone()));
        block
    }

    /// A hot block with what is left of the values of a lossy one.
    fn hot_copy(&mut self, block: &Block) -> Option<Block> {
        let codec = self.options.quantized.at(block.level())?;
        let mut hot = self.pool.allocate().ok()?;
        codec.decode(block.bytes(), hot.bytes_mut()?).ok()?;
        Some(hot)
    }

    pub(super) fn fail(&mut self, node: NodeId) -> Option<Block> {
        self.stats.failed_blocks += 1;
        self.forget_copy(node);
        self.hold(node, Held::Gone);
        None
    }

    /// Whether a record holds all that is held of the block.
    pub(super) fn is_stored(&self, node: NodeId) -> bool {
        let held_bytes = self.claim(node).map_or(0, |block| block.hot_bytes());
        self.stored_hot_bytes(node)
            .is_some_and(|bytes| bytes >= held_bytes as u64)
    }
}

/// A block of stored bytes, at the level that they were stored at or come back at: `lowest` or above.
pub(super) fn decode_stored(
    pool: &KvPool,
    quantized: &QuantizedLevels,
    lowest: Level,
    meta: &Meta,
    bytes: &[u8],
) -> Result<Block, Undecoded> {
    let hot_bytes = usize::try_from(meta.hot_bytes).map_err(|_| Undecoded::Bad)?;
    decode_as(pool, quantized, (meta.codec, lowest), (hot_bytes, bytes))
}

/// A block of what the codec of this number wrote of a hot one of `hot_bytes`, whole or trimmed.
fn decode_as(
    pool: &KvPool,
    quantized: &QuantizedLevels,
    (id, lowest): (u16, Level),
    (hot_bytes, bytes): (usize, &[u8]),
) -> Result<Block, Undecoded> {
    let is_trimmed = hot_bytes != pool.block_bytes();
    if is_trimmed && pool.window().is_none_or(|w| w.head_bytes != hot_bytes) {
        return Err(Undecoded::Bad);
    }
    // A block of a lossy level is attended to as it was stored.
    let (codec, level): (&dyn BlockCodec, Level) = match id {
        PLAIN_ID => (&Plain, Level::Hot),
        PACKED_ID => (&Packed, Level::Hot),
        _ => match quantized.iter().find(|codec| codec.id() == id) {
            Some(codec) => (&Plain, codec.level()),
            None => match quantized.packed.as_deref().filter(|codec| codec.id() == id) {
                Some(codec) => (codec, codec.decodes_to()),
                None => return Err(Undecoded::Bad),
            },
        },
    };
    if level.is_lossy() && level > lowest {
        return Err(Undecoded::Bad);
    }
    let held_bytes = quantized
        .at(level)
        .map_or(hot_bytes, |codec| codec.max_encoded_bytes(hot_bytes));
    let mut block = pool
        .allocate_form((level, is_trimmed), held_bytes)
        .map_err(|_| Undecoded::NoRoom)?;
    let out = block.bytes_mut().ok_or(Undecoded::Bad)?;
    codec.decode(bytes, out).map_err(|_| Undecoded::Bad)?;
    Ok(block)
}
