//! The prefix cache over all levels: the tree, the blocks, the disk and the governor put together.
//!
//! The life of a cached block is one enum, [`Held`]:
//!
//! | state | who holds the bytes | what letting go does |
//! |---|---|---|
//! | `Ram`, attendable (hot, int8, int4) | the tree, and every table that attached it | pages to the system with the last claim |
//! | `Ram`, packed | the tree alone | pages to the system |
//! | `Disk` | a record of the disk level, under the block's hash | nothing; the record ages with its segment |
//! | `Gone` | nobody; the name is kept for the blocks below it | – |
//!
//! A block that cannot be brought back (torn, damaged, no room) ends the match: it costs a recomputation,
//! never an error, and is filled again when its tokens are inserted again. Where a match ends, the remote level
//! can be [asked](KvCache::ask_remote), if there is one.
//!
//! Where the pool has a [window](crate::pool::Window), a block at any level may be whole or trimmed to its head. A prefix
//! is found as far as a sequence can go on from it: see [`KvPool::startable_tokens`].
//!
//! Blocks sink to int8 and int4 only in namespaces whose [`KvQuality`] allows it, never the first block of a
//! sequence nor a partial one, and of a running sequence never the newest: see
//! [`BlockTable::sinkable_blocks`]. In an exact namespace every attached block has the very bytes that the
//! model wrote.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use foldhash::HashMap;

use crate::budget::{Charge, ChargeKind, OverBudget};
use crate::buffer::Buffer;
use crate::codec::{BlockCodec, PACKED_ID, Packed, QuantizedLevels};
use crate::costs::CostMeter;
use crate::disk::DiskStore;
use crate::governor::DecisionLog;
use crate::hash::{Fingerprint, Namespace};
use crate::level::KvQuality;
use crate::policy::{CostModel, Id, Policy};
use crate::pool::{Block, KvPool};
use crate::prefix::{NodeId, PrefixTree};
use crate::region::page_bytes;
use crate::remote::RemoteLevel;
use crate::table::BlockTable;
use ranking::Use;

mod attach;
mod census;
mod forecast;
mod free;
mod from_remote;
mod incoming;
#[cfg(test)]
mod level_tests;
mod names;
mod promote;
mod ranking;
mod sink;
mod store;
#[cfg(test)]
mod tests;
mod trim;

pub use census::Census;
pub use forecast::Forecast;
pub use from_remote::Asked;
pub use incoming::Incoming;
pub use trim::{SLACK_TOKENS, Trim};

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
    quality: KvQuality,
    last_use_ms: u64,
    /// The codec of its packed form, while it is packed.
    packed_by: u16,
}

/// How a cache works.
#[derive(Clone, Debug)]
pub struct CacheOptions {
    /// What the bytes depend on.
    pub fingerprint: Fingerprint,
    /// The disk level, if there is one.
    pub disk: Option<Arc<DiskStore>>,
    /// The store shared with other processes, if there is one; what goes to disk is written to it too.
    pub remote: Option<Arc<RemoteLevel>>,
    /// Whether blocks may be packed in RAM.
    pub may_pack: bool,
    /// Codecs of the lossy levels; without one its level is not used.
    pub quantized: QuantizedLevels,
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
            remote: None,
            may_pack: true,
            quantized: QuantizedLevels::default(),
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
    /// Of these, attached from RAM as they were, hot.
    pub hot_hit_tokens: u64,
    /// Of these, attached from RAM at int8 or int4.
    pub lossy_hit_tokens: u64,
    /// Of these, attached after unpacking.
    pub packed_hit_tokens: u64,
    /// Of these, attached after reading from disk.
    pub disk_hit_tokens: u64,
    /// Tokens read from the remote level; they count as attached from RAM besides.
    pub remote_tokens: u64,
    /// Blocks brought up for requests that waited. Their tokens count as attached from RAM.
    pub promoted_blocks: u64,
    /// Blocks packed.
    pub packed_blocks: u64,
    /// Blocks that sank to int8.
    pub int8_blocks: u64,
    /// Blocks that sank to int4.
    pub int4_blocks: u64,
    /// Blocks trimmed to what is read beyond the window.
    pub trimmed_blocks: u64,
    /// Blocks written to disk.
    pub spilled_blocks: u64,
    /// Blocks let go of.
    pub dropped_blocks: u64,
    /// Blocks that were to be brought back and could not be.
    pub failed_blocks: u64,
    /// Time that the governor took to weigh blocks, without what it had done to them.
    pub weighing: Duration,
}

/// See the [module's description](self).
pub struct KvCache {
    pool: KvPool,
    options: CacheOptions,
    tree: PrefixTree<Entry>,
    /// Blocks in RAM, by the policy's name for them.
    nodes: HashMap<Id, NodeId>,
    policy: CostModel,
    /// For names, of which there may be many more than blocks in RAM.
    names: Charge,
    /// Where the next sweep over names begins.
    hand: usize,
    costs: CostMeter,
    log: DecisionLog,
    measures: bool,
    /// Encoded form of one block, charged once: saving must work when nothing more is granted.
    scratch: Buffer<u8>,
    /// What codecs allocate for themselves while they work on a block.
    _codec_scratch: Charge,
    /// Pages of packed blocks to those of hot ones: lossless, and of four-bit values.
    packed_ratio: f64,
    packed_int4_ratio: f64,
    /// When the remote level was last asked.
    remote_asked_ms: Option<u64>,
    stats: CacheStats,
}

impl KvCache {
    /// An empty cache of blocks of `pool`.
    ///
    /// # Errors
    /// [`OverBudget`] when the scratch for encoding one block does not fit.
    pub fn new(pool: &KvPool, options: CacheOptions) -> Result<Self, OverBudget> {
        if let Some(disk) = &options.disk {
            disk.charge_to(pool.budget());
        }
        let (budget, block_bytes) = (pool.budget(), pool.block_bytes());
        // Blocks take whole pages: one of a single page does not get smaller.
        let one_page = page_bytes() as f64 / pool.charged_block_bytes() as f64;
        let most = |of: &dyn Fn(&dyn BlockCodec) -> usize| {
            let quantized = options.quantized.iter().chain(&options.quantized.packed);
            quantized
                .map(|codec| of(&**codec))
                .fold(of(&Packed), usize::max)
        };
        let encoded_bytes = most(&|codec| codec.max_encoded_bytes(block_bytes));
        let codec_bytes = most(&|codec| codec.scratch_bytes(block_bytes));
        Ok(Self {
            scratch: Buffer::zeroed(budget, ChargeKind::Scratch, encoded_bytes)?,
            _codec_scratch: budget.try_charge(ChargeKind::Scratch, codec_bytes as u64)?,
            pool: pool.clone(),
            options,
            tree: PrefixTree::new(pool.block_tokens()),
            nodes: HashMap::default(),
            policy: CostModel::default(),
            names: budget.try_charge(ChargeKind::Index, 0)?,
            hand: 0,
            costs: CostMeter::default(),
            log: DecisionLog::new(256),
            measures: true,
            packed_ratio: one_page.max(0.85),
            packed_int4_ratio: one_page.max(0.2),
            remote_asked_ms: None,
            stats: CacheStats::default(),
        })
    }

    /// Inserts `tokens`, of which a sequence found the first `attached` and computed the others, with values of
    /// `held`. What is there already is not used by this. The caller [ranks](Self::rank) the path that this gives.
    fn enter(
        &mut self,
        namespace: &Namespace,
        tokens: &[u32],
        attached: usize,
        now_ms: u64,
        mut held: impl FnMut(usize) -> (Held, bool),
    ) -> (Vec<NodeId>, Use) {
        let block_tokens = self.pool.block_tokens();
        self.pay_for_names(tokens.len().div_ceil(block_tokens), now_ms);
        let known = self.tree.peek(namespace, tokens).full;
        let found = (attached / block_tokens).min(known.len());
        let turn = self.turn_after(known[..found].last().copied());
        let done = self.tree.insert(namespace, tokens, |block| {
            let (held, is_on_disk) = held(block);
            Entry {
                held,
                is_on_disk,
                first_turn: turn,
                quality: namespace.quality(),
                last_use_ms: now_ms,
                packed_by: PACKED_ID,
            }
        });
        if let Some(replaced) = done.replaced {
            self.unrank(replaced.short(), false);
        }
        let entered = &done.path[done.path.len() - done.new_nodes..];
        let is_remembered = |node: &&NodeId| {
            let info = self.tree.info(**node);
            info.is_some_and(|info| self.policy.remembers(info.hash.short()))
        };
        let remembered = entered.iter().take_while(is_remembered).count();
        let new_tokens = tokens
            .len()
            .saturating_sub(attached + remembered * block_tokens);
        let first_use = Use {
            now_ms,
            turn,
            new_tokens,
        };
        (done.path, first_use)
    }

    fn turn_after(&self, last: Option<NodeId>) -> u32 {
        last.and_then(|node| self.tree.get(node))
            .map_or(0, |e| e.first_turn.saturating_add(1))
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
        let (path, first_use) = self.enter(
            namespace,
            tokens,
            table.attached_tokens(),
            now_ms,
            |block| (Held::Ram(blocks[block].clone()), false),
        );
        let chunks = tokens.chunks(self.pool.block_tokens());
        for ((index, &node), chunk) in path.iter().enumerate().zip(chunks) {
            // A longer block may stand for a partial one.
            if self.tree.tokens(node) != Some(chunk) {
                continue;
            }
            match self.tree.get(node).map(|entry| &entry.held) {
                Some(Held::Ram(cached))
                    if cached.level().is_attendable() && cached.covers(&blocks[index]) =>
                {
                    if !cached.is_same(&blocks[index]) && index < table.len_full_blocks() {
                        table.swap_block(index, cached.clone());
                    }
                }
                _ => self.take_over(node, &blocks[index]),
            }
        }
        self.rank(&path, first_use);
    }

    /// The costs measured so far.
    #[must_use]
    pub fn costs(&self) -> &CostMeter {
        &self.costs
    }

    /// Takes in that computing `tokens` tokens, which attended to `pairs` tokens together, took `us` microseconds.
    pub fn observe_prefill(&mut self, tokens: u64, pairs: u64, us: f64) {
        if self.measures {
            self.costs.recompute.observe(tokens, pairs, us);
        }
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

    /// The remote level, if there is one.
    #[must_use]
    pub fn remote(&self) -> Option<&RemoteLevel> {
        self.options.remote.as_deref()
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

    /// Checks that tree, ids and policy agree, and the laws of tree, pool and budget.
    ///
    /// # Errors
    /// A description of the first law that is broken.
    pub fn check_conservation(&self) -> Result<(), String> {
        self.tree.check_conservation()?;
        self.check_ranking()?;
        for entry in self.tree.nodes().filter_map(|node| self.tree.get(node)) {
            if let Held::Ram(block) = &entry.held
                && block.level().is_lossy()
                && block.level() > entry.quality.lowest(true)
            {
                let (level, quality) = (block.level(), entry.quality);
                return Err(format!("a block of quality {quality} is at {level}"));
            }
        }
        self.check_trimmed()?;
        if let Some(disk) = &self.options.disk {
            disk.check_conservation()?;
        }
        self.pool.check_conservation()
    }
}
