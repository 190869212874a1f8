//! The prefix cache over all levels: the tree, the blocks, the disk and the governor put together.
//!
//! The life of a cached block is one enum, [`Held`]:
//!
//! | state | who holds the bytes | what letting go does |
//! |---|---|---|
//! | `Ram`, attendable | the tree, and every table that attached it | pages to the system with the last claim |
//! | `Ram`, packed | the tree alone | pages to the system |
//! | `Disk` | a record of the disk level, under the block's hash | nothing; the record ages with its segment |
//! | `Gone` | nobody; the name is kept for the blocks below it | – |
//!
//! A block that cannot be brought back (torn, damaged, no room) ends the match: it costs a recomputation,
//! never an error, and is filled again when its tokens are inserted again.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::budget::{ChargeKind, OverBudget};
use crate::buffer::Buffer;
use crate::codec::{BlockCodec, Packed, Plain};
use crate::costs::CostMeter;
use crate::disk::format::Kind;
use crate::disk::{DiskStore, Meta, Prefetch};
use crate::governor::{Action, Candidate, DecisionLog, Occasion, Sink, Situation, Step};
use crate::hash::{Fingerprint, Namespace};
use crate::level::Level;
use crate::policy::{CostModel, Facts, Id, Policy};
use crate::pool::{Block, KvPool};
use crate::prefix::{NodeId, PrefixTree};
use crate::region::round_to_pages;
use crate::table::BlockTable;

mod forecast;
#[cfg(test)]
mod tests;

pub use forecast::Forecast;

/// Where the bytes of a cached block are; see the [module's description](self).
#[derive(Debug)]
pub enum Held {
    /// In RAM, at the block's own level.
    Ram(Block),
    /// On disk only.
    Disk,
    /// Nowhere.
    Gone,
}

#[derive(Debug)]
struct Entry {
    held: Held,
    /// A record of the disk level holds the same bytes.
    is_on_disk: bool,
    first_turn: u32,
}

/// How a cache works.
#[derive(Clone, Debug)]
pub struct CacheOptions {
    /// What the bytes depend on.
    pub fingerprint: Fingerprint,
    /// The disk level, if there is one.
    pub disk: Option<Arc<DiskStore>>,
    /// Whether blocks may be packed in RAM.
    pub may_pack: bool,
    /// Reads from disk in flight.
    pub reads_in_flight: usize,
    /// Seconds ahead that the governor looks.
    pub horizon_s: f64,
}

impl CacheOptions {
    /// RAM alone, packing allowed.
    #[must_use]
    pub fn new(fingerprint: Fingerprint) -> Self {
        Self {
            fingerprint,
            disk: None,
            may_pack: true,
            reads_in_flight: 4,
            horizon_s: 300.0,
        }
    }
}

/// Counters of a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Tokens looked up.
    pub asked_tokens: u64,
    /// Of these, attached from RAM as they were.
    pub hot_hit_tokens: u64,
    /// Of these, attached after unpacking.
    pub packed_hit_tokens: u64,
    /// Of these, attached after reading from disk.
    pub disk_hit_tokens: u64,
    /// Blocks packed.
    pub packed_blocks: u64,
    /// Blocks written to disk.
    pub spilled_blocks: u64,
    /// Blocks let go of.
    pub dropped_blocks: u64,
    /// Blocks that were to be brought back and could not be.
    pub failed_blocks: u64,
}

/// See the [module's description](self).
pub struct KvCache {
    pool: KvPool,
    options: CacheOptions,
    tree: PrefixTree<Entry>,
    nodes: HashMap<Id, NodeId>,
    ids: HashMap<NodeId, Id>,
    policy: CostModel,
    costs: CostMeter,
    log: DecisionLog,
    measures: bool,
    /// Encoded form of one block, charged once: saving must work when nothing more is granted.
    scratch: Buffer<u8>,
    packed_ratio: f64,
    stats: CacheStats,
}

impl KvCache {
    /// An empty cache of blocks of `pool`.
    ///
    /// # Errors
    /// [`OverBudget`] when the scratch for one encoded block does not fit.
    pub fn new(pool: &KvPool, options: CacheOptions) -> Result<Self, OverBudget> {
        let scratch_bytes = Packed.max_encoded_bytes(pool.block_bytes());
        Ok(Self {
            scratch: Buffer::zeroed(pool.budget(), ChargeKind::Scratch, scratch_bytes)?,
            pool: pool.clone(),
            options,
            tree: PrefixTree::new(pool.block_tokens()),
            nodes: HashMap::new(),
            ids: HashMap::new(),
            policy: CostModel::default(),
            costs: CostMeter::default(),
            log: DecisionLog::new(256),
            measures: true,
            packed_ratio: 0.85,
            stats: CacheStats::default(),
        })
    }

    /// Attaches the longest cached prefix of `tokens` to `table`, which is empty, and returns its length.
    /// Packed blocks are unpacked, blocks on disk read. A model needs a token to run: leave the last out.
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
        let found = self.tree.lookup(namespace, tokens);
        self.stats.asked_tokens += tokens.len() as u64;
        let block_tokens = self.pool.block_tokens();
        let path: Vec<(NodeId, usize)> = found
            .full
            .iter()
            .map(|&node| (node, block_tokens))
            .chain(found.partial.map(|p| (p.node, p.tokens)))
            .collect();
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
        let turn = self.turn_after(found.full.last().copied());
        self.touch(path.iter().map(|p| p.0), turn, now_ms);
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
            self.enter(namespace, &tokens[..end], now_ms, |_| (Held::Disk, true));
        }
    }

    /// Inserts `tokens` with values of `held`; keeps ids and policy in step with the tree.
    fn enter(
        &mut self,
        namespace: &Namespace,
        tokens: &[u32],
        now_ms: u64,
        mut held: impl FnMut(usize) -> (Held, bool),
    ) -> Vec<NodeId> {
        let known = self.tree.peek(namespace, tokens).full;
        let turn = self.turn_after(known.last().copied());
        let done = self.tree.insert(namespace, tokens, |block| {
            let (held, is_on_disk) = held(block);
            Entry {
                held,
                is_on_disk,
                first_turn: turn,
            }
        });
        if let Some(replaced) = done.replaced {
            self.forget(replaced, false);
        }
        for &node in &done.path[done.path.len() - done.new_nodes..] {
            if let Some(info) = self.tree.info(node) {
                self.nodes.insert(info.hash.short(), node);
                self.ids.insert(node, info.hash.short());
            }
        }
        let block_tokens = self.pool.block_tokens();
        for &node in done.path.iter().rev() {
            let (Some(&id), Some(info)) = (self.ids.get(&node), self.tree.info(node)) else {
                continue;
            };
            let is_partial = info.tokens < block_tokens;
            self.policy
                .insert(id, &self.facts(is_partial, turn, now_ms));
        }
        done.path
    }

    fn facts(&self, is_partial: bool, turn: u32, now_ms: u64) -> Facts {
        Facts {
            bytes: self.pool.charged_block_bytes(),
            way_back: self.costs.recompute.of(self.pool.block_tokens() as u64) as f32,
            is_partial,
            turn,
            ..Facts::at(now_ms)
        }
    }

    fn turn_after(&self, last: Option<NodeId>) -> u32 {
        last.and_then(|node| self.tree.get(node))
            .map_or(0, |e| e.first_turn.saturating_add(1))
    }

    /// Tells the policy of a use, from the end to the start.
    fn touch(&mut self, path: impl DoubleEndedIterator<Item = NodeId>, turn: u32, now_ms: u64) {
        let block_tokens = self.pool.block_tokens();
        for node in path.rev() {
            if let (Some(&id), Some(info)) = (self.ids.get(&node), self.tree.info(node)) {
                let facts = self.facts(info.tokens < block_tokens, turn, now_ms);
                self.policy.touch(id, &facts);
            }
        }
    }

    fn forget(&mut self, node: NodeId, was_evicted: bool) {
        if let Some(id) = self.ids.remove(&node) {
            self.nodes.remove(&id);
            self.policy.remove(id, was_evicted);
        }
    }

    fn claim(&self, node: NodeId) -> Option<Block> {
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
        let needed = (sunken + reads) as u64 * self.pool.charged_block_bytes();
        let missing = needed.saturating_sub(self.pool.budget().available());
        if sunken > 0 && missing > 0 {
            self.free(missing, Occasion::Admission, now_ms);
        }
    }

    /// Starts to read what of the path is on disk.
    fn read_ahead(&self, path: &[(NodeId, usize)]) -> Option<Prefetch> {
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
        let (level, codec, payload) = match (&self.tree.get(node)?.held, claim) {
            (_, Some(block)) if block.level().is_attendable() => {
                self.stats.hot_hit_tokens += tokens as u64;
                return Some(block);
            }
            (_, Some(block)) => (Level::Packed, Packed.id(), Payload::Ram(block)),
            (Held::Disk, None) => match reads
                .as_mut()
                .and_then(Iterator::next)
                .and_then(|f| f.payload)
            {
                Some((meta, bytes)) => (Level::Disk, meta.codec, Payload::Disk(bytes)),
                // For want of room, if the record is still there.
                None if self.is_stored(node) => return None,
                None => return self.fail(node),
            },
            _ => return self.fail(node),
        };
        let start = Instant::now();
        let mut block = self.pool.allocate().ok()?;
        let decoded = match (block.bytes_mut(), codec) {
            (Some(hot), 0) => Plain.decode(payload.bytes(), hot),
            (Some(hot), 1) => Packed.decode(payload.bytes(), hot),
            _ => return self.fail(node),
        };
        if decoded.is_err() {
            return self.fail(node);
        }
        let (us, bytes) = (
            start.elapsed().as_secs_f64() * 1e6,
            block.bytes().len() as u64,
        );
        if level == Level::Packed {
            if self.measures {
                self.costs.unpack.observe(bytes, us);
            }
            self.stats.packed_hit_tokens += tokens as u64;
        } else {
            self.stats.disk_hit_tokens += tokens as u64;
        }
        // The tree keeps the hot form: it was wanted just now.
        self.tree.get_mut(node)?.held = Held::Ram(block.clone());
        Some(block)
    }

    fn fail(&mut self, node: NodeId) -> Option<Block> {
        self.stats.failed_blocks += 1;
        let entry = self.tree.get_mut(node)?;
        entry.held = Held::Gone;
        entry.is_on_disk = false;
        None
    }

    fn is_stored(&self, node: NodeId) -> bool {
        let (disk, info) = (self.options.disk.as_ref(), self.tree.info(node));
        disk.zip(info)
            .is_some_and(|(disk, info)| disk.meta(&info.hash, &self.options.fingerprint).is_some())
    }

    /// Caches the blocks of `table`, which hold `tokens` in order. Blocks that are cached already in
    /// attendable form take the place of the table's own, which are freed; those that had sunk are cached
    /// as the table has them.
    ///
    /// The last block may be partial. A sequence that goes on writing would have to copy it: insert
    /// partial blocks when a sequence ends.
    ///
    /// # Panics
    /// If the table holds fewer tokens.
    pub fn insert(
        &mut self,
        namespace: &Namespace,
        tokens: &[u32],
        table: &mut BlockTable,
        now_ms: u64,
    ) {
        assert!(
            tokens.len() <= table.len_tokens(),
            "the table holds the tokens"
        );
        let blocks: Vec<Block> = table.blocks().to_vec();
        let path = self.enter(namespace, tokens, now_ms, |block| {
            (Held::Ram(blocks[block].clone()), false)
        });
        let chunks = tokens.chunks(self.pool.block_tokens());
        for ((index, &node), chunk) in path.iter().enumerate().zip(chunks) {
            // A longer block may stand for a partial one.
            if self.tree.tokens(node) != Some(chunk) {
                continue;
            }
            let Some(entry) = self.tree.get_mut(node) else {
                continue;
            };
            match &entry.held {
                Held::Ram(cached) if cached.level().is_attendable() => {
                    if !cached.is_same(&blocks[index]) && index < table.len_full_blocks() {
                        table.swap_block(index, cached.clone());
                    }
                }
                _ => entry.held = Held::Ram(blocks[index].clone()),
            }
        }
    }

    /// Frees about `bytes` of cached blocks that no table uses: packs, spills or drops what is worth
    /// least. Returns the bytes really given back to the budget.
    pub fn free(&mut self, bytes: u64, occasion: Occasion, now_ms: u64) -> u64 {
        let budget = self.pool.budget().clone();
        let before = budget.charged();
        let freed = |budget: &crate::Budget| before.saturating_sub(budget.charged());
        // What the first round could not carry out (a full disk, a block that does not pack) the second
        // lets go of.
        for may_sink in [true, false] {
            let missing = bytes.saturating_sub(freed(&budget));
            if missing == 0 {
                break;
            }
            let situation = self.situation(missing, may_sink, now_ms);
            let plan = self.log.plan(now_ms, occasion, &situation);
            for step in &plan.steps {
                self.carry_out(step);
            }
        }
        freed(&budget)
    }

    /// Frees what is charged above the budget's limit. Returns the bytes that are still above it: held
    /// by running sequences and others.
    pub fn shrink(&mut self, now_ms: u64) -> u64 {
        let excess = self.pool.budget().excess();
        if excess > 0 {
            self.free(excess, Occasion::Shrink, now_ms);
        }
        self.pool.budget().excess()
    }

    fn situation(&self, bytes_to_free: u64, may_sink: bool, now_ms: u64) -> Situation {
        let packed = Sink {
            level: Level::Packed,
            ratio: self.packed_ratio,
            quality_price_us: 0.0,
        };
        let hot_bytes = self.pool.charged_block_bytes();
        let packed_bytes = (hot_bytes as f64 * self.packed_ratio) as usize;
        let packs = may_sink
            && self.options.may_pack
            && round_to_pages(packed_bytes).is_some_and(|bytes| (bytes as u64) < hot_bytes);
        let spills = may_sink && self.options.disk.is_some();
        let uses = self.expected_uses(now_ms);
        let candidates = uses
            .iter()
            .filter_map(|(&node, worth)| self.candidate(node, *worth));
        Situation {
            bytes_to_free,
            candidates: candidates.collect(),
            sinks: if packs { vec![packed] } else { Vec::new() },
            disk_room: if spills { u64::MAX / 2 } else { 0 },
            costs: self.costs,
            horizon_s: self.options.horizon_s,
        }
    }

    /// Uses expected per second of every node, at least those of its children; and whether a pin is on
    /// it or below it.
    fn expected_uses(&self, now_ms: u64) -> HashMap<NodeId, (f64, bool)> {
        let mut nodes: Vec<(usize, NodeId)> = self
            .tree
            .nodes()
            .filter_map(|node| Some((self.tree.info(node)?.depth_blocks, node)))
            .collect();
        nodes.sort_unstable_by(|a, b| b.cmp(a));
        let mut uses: HashMap<NodeId, (f64, bool)> = HashMap::with_capacity(nodes.len());
        for (_, node) in nodes {
            let Some(info) = self.tree.info(node) else {
                continue;
            };
            let own = f64::from(self.policy.expected_uses(info.hash.short(), now_ms)) * 1000.0;
            let entry = uses.entry(node).or_insert((0.0, false));
            *entry = (entry.0.max(own), entry.1 || info.pins > 0);
            let (mine, pinned) = *entry;
            if let Some(parent) = info.parent {
                let above = uses.entry(parent).or_insert((0.0, false));
                // A little more, so that of equals the child goes first.
                *above = (above.0.max(mine * 1.0001 + 1e-12), above.1 || pinned);
            }
        }
        uses
    }

    fn candidate(&self, node: NodeId, (uses_per_s, is_pinned): (f64, bool)) -> Option<Candidate> {
        let (entry, id) = (self.tree.get(node)?, *self.ids.get(&node)?);
        let Held::Ram(block) = &entry.held else {
            return None;
        };
        // While a table holds the block, letting go of it here frees nothing.
        (!block.is_shared()).then(|| Candidate {
            id,
            level: block.level(),
            bytes: block.charged_bytes(),
            hot_bytes: self.pool.charged_block_bytes(),
            tokens: self.tree.tokens(node).map_or(0, <[u32]>::len) as u64,
            uses_per_s,
            is_on_disk: entry.is_on_disk,
            is_in_use: false,
            may_drop: !is_pinned,
        })
    }

    fn carry_out(&mut self, step: &Step) {
        let Some(&node) = self.nodes.get(&step.id) else {
            return;
        };
        match step.action {
            Action::Demote(_) => self.pack(node),
            Action::Spill => {
                if self.spill(node) {
                    self.stats.spilled_blocks += 1;
                    self.let_go(node, Held::Disk);
                }
            }
            Action::DropCopied => self.let_go(node, Held::Disk),
            Action::Drop => {
                self.stats.dropped_blocks += 1;
                if self.tree.evict(node).is_some() {
                    self.forget(node, true);
                } else {
                    self.let_go(node, Held::Gone);
                }
            }
        }
    }

    fn let_go(&mut self, node: NodeId, held: Held) {
        if let Some(entry) = self.tree.get_mut(node) {
            entry.held = held;
        }
    }

    fn pack(&mut self, node: NodeId) {
        let Some(entry) = self.tree.get_mut(node) else {
            return;
        };
        let block = match std::mem::replace(&mut entry.held, Held::Gone) {
            Held::Ram(block) if block.level() == Level::Hot => block,
            other => {
                entry.held = other;
                return;
            }
        };
        let (hot_bytes, start) = (block.bytes().len() as u64, Instant::now());
        let packed = match Packed.encode(block.bytes(), &mut self.scratch) {
            Ok(bytes) => self
                .pool
                .replace(block, Level::Packed, &self.scratch[..bytes]),
            Err(_) => Err(block),
        };
        if let Ok(packed) = &packed {
            self.stats.packed_blocks += 1;
            if self.measures {
                let us = start.elapsed().as_secs_f64() * 1e6;
                self.costs.pack.observe(hot_bytes, us);
            }
            let ratio = packed.charged_bytes() as f64 / self.pool.charged_block_bytes() as f64;
            self.packed_ratio += 0.1 * (ratio - self.packed_ratio);
        }
        entry.held = Held::Ram(packed.unwrap_or_else(|block| block));
    }

    /// Writes the block of `node` to disk, packed if that is smaller. Whether a record is there now.
    fn spill(&mut self, node: NodeId) -> bool {
        let (Some(disk), Some(info)) = (&self.options.disk, self.tree.info(node)) else {
            return false;
        };
        let Some(entry) = self.tree.get_mut(node) else {
            return false;
        };
        let Held::Ram(block) = &entry.held else {
            return entry.is_on_disk;
        };
        if entry.is_on_disk && disk.meta(&info.hash, &self.options.fingerprint).is_some() {
            return true;
        }
        let encoded = match block.level() {
            Level::Hot => Packed.encode(block.bytes(), &mut self.scratch).ok(),
            _ => None,
        };
        let (codec, payload) = match (block.level(), encoded) {
            (Level::Hot, Some(bytes)) if bytes < block.bytes().len() => {
                (Packed.id(), &self.scratch[..bytes])
            }
            (Level::Hot, _) => (Plain.id(), block.bytes()),
            (Level::Packed, _) => (Packed.id(), block.bytes()),
            _ => return false,
        };
        let meta = Meta {
            codec,
            payload_bytes: payload.len() as u64,
            hot_bytes: self.pool.block_bytes() as u64,
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
        written
    }

    /// The costs measured so far; tell it what recomputing takes.
    pub fn costs_mut(&mut self) -> &mut CostMeter {
        &mut self.costs
    }

    /// Stops measuring: decisions depend on the calls alone from now on, as simulations want.
    pub fn fix_costs(&mut self) {
        self.measures = false;
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        self.stats
    }

    /// The latest decisions of the governor.
    #[must_use]
    pub fn log(&self) -> &DecisionLog {
        &self.log
    }

    /// The tree of names.
    #[must_use]
    pub fn len_blocks(&self) -> usize {
        self.tree.len()
    }

    /// How a cached block is held, by the tokens up to and including it.
    #[must_use]
    pub fn held(&self, namespace: &Namespace, tokens: &[u32]) -> Option<&Held> {
        let found = self.tree.peek(namespace, tokens);
        let last = found
            .partial
            .map(|p| p.node)
            .or(found.full.last().copied())?;
        (found.tokens == tokens.len()).then(|| self.tree.get(last).map(|e| &e.held))?
    }

    /// Writes every block of `tokens` to disk that is not there. Returns how many tokens are now: fewer
    /// than all where a block is not cached or could not be written. Not acknowledged before the disk
    /// level's `sync`.
    pub fn store(&mut self, namespace: &Namespace, tokens: &[u32]) -> usize {
        let found = self.tree.peek(namespace, tokens);
        let mut stored = 0;
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
            if !fits || !self.spill(node) || !self.is_stored(node) {
                break;
            }
            stored += len;
        }
        stored
    }

    /// Checks that tree, ids and policy agree, and the laws of tree, pool and budget.
    ///
    /// # Errors
    /// A description of the first law that is broken.
    pub fn check_conservation(&self) -> Result<(), String> {
        self.tree.check_conservation()?;
        let (nodes, ids, held) = (self.nodes.len(), self.ids.len(), self.policy.len());
        if [nodes, ids, held] != [self.tree.len(); 3] {
            return Err(format!(
                "{} nodes, {nodes} by id, {ids} ids, {held} in the policy",
                self.tree.len()
            ));
        }
        if let Some(disk) = &self.options.disk {
            disk.check_conservation()?;
        }
        self.pool.check_conservation()
    }
}

/// The encoded bytes of a block that is being brought up.
enum Payload {
    Ram(Block),
    Disk(Buffer<u8>),
}

impl Payload {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Ram(block) => block.bytes(),
            Self::Disk(buffer) => buffer,
        }
    }
}
