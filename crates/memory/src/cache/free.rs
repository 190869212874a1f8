//! The way down: what sinks, goes to disk or is let go of, and doing so.

use std::time::{Duration, Instant};

use foldhash::HashMap;

use super::sink::Running;
use super::{Entry, Held, KvCache};
use crate::budget::Budget;
use crate::governor::{Action, Candidate, Occasion, Plan, Sink, Situation, Step};
use crate::level::Level;
use crate::prefix::{NodeId, NodeInfo};
use crate::region::round_to_pages;
use crate::table::BlockTable;

/// Blocks that are weighed, for each that is to be freed and at least. The policy knows which are used least; among some
/// of these the governor finds those that cost least to bring back.
const WEIGHED_EACH: usize = 4;
const WEIGHED_AT_LEAST: usize = 128;
/// So many times as many are weighed next where these were not enough.
const WIDER: usize = 4;
/// One block in so many is freed at once at least, up to so many: finding one costs about as much as finding a few.
const FREED_SHARE: usize = 64;
const FREED_AHEAD: usize = 16;

/// What attending to a token at a lossy level is priced at, as a share of computing it anew. A judgement: a
/// running sequence's block sinks to int8 before so much is let go of that a hundred thousandth of its uses
/// would have to be computed, and int4 loses ten times as much.
const INT8_PRICE: f64 = 1e-5;
const INT4_PRICE: f64 = 1e-4;
/// Uses per second of a block that a running sequence attends to: it goes on for so many steps within the
/// horizon.
const RUNNING_USES_PER_S: f64 = 1.0;
/// A block is cold when nothing has used it for so long.
pub(super) const COLD_MS: u64 = 60_000;

/// Which blocks a plan may move.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Those that no table uses, and running ones.
    All,
    /// Running ones only.
    Running,
    /// Those that no table uses, as far as nothing is lost by it.
    Lossless,
}

/// What is expected of a node, as far as it was weighed.
#[derive(Clone, Copy)]
struct Weighed {
    node: NodeId,
    info: NodeInfo,
    uses_per_s: f64,
    /// A pin is on it or below it.
    is_pinned: bool,
    /// Children weighed, that have nothing below them that was not.
    whole_children: usize,
    /// Everything below it was weighed.
    is_whole: bool,
}

impl Weighed {
    fn new(node: NodeId, info: NodeInfo) -> Self {
        Self {
            node,
            info,
            uses_per_s: 0.0,
            is_pinned: false,
            whole_children: 0,
            is_whole: false,
        }
    }

    fn take_in(&mut self, child: &Self) {
        // A little more, so that of equals the child goes first.
        let at_least = child.uses_per_s * 1.0001 + 1e-12;
        self.uses_per_s = self.uses_per_s.max(at_least);
        self.is_pinned |= child.is_pinned;
        self.whole_children += usize::from(child.is_whole);
    }
}

/// What may be done with blocks besides letting go of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum May {
    /// Everything: packing, quantizing, writing to disk.
    Sink,
    /// Writing to disk.
    Spill,
    /// Nothing.
    Drop,
}

impl KvCache {
    /// Frees about `bytes` of cached blocks that no table uses: packs, spills or drops what is worth
    /// least. Returns the bytes really given back to the budget.
    pub fn free(&mut self, bytes: u64, occasion: Occasion, now_ms: u64) -> u64 {
        self.free_with(bytes, occasion, now_ms, &mut [])
    }

    /// Like [`free`](Self::free), and blocks of `running` tables sink too where their quality allows it.
    pub fn free_with(
        &mut self,
        bytes: u64,
        occasion: Occasion,
        now_ms: u64,
        running: &mut [&mut BlockTable],
    ) -> u64 {
        self.free_within(Scope::All, (bytes, occasion), now_ms, running)
    }

    /// Frees about `bytes` of cached blocks that no table uses without losing any: writes them to disk, or packs
    /// them where there is none. For times without work; returns the bytes given back, 0 when nothing more can be.
    pub fn sink_unused(&mut self, bytes: u64, now_ms: u64) -> u64 {
        let why = (bytes, Occasion::Idle);
        self.free_within(Scope::Lossless, why, now_ms, &mut [])
    }

    pub(super) fn free_within(
        &mut self,
        scope: Scope,
        (bytes, occasion): (u64, Occasion),
        now_ms: u64,
        running: &mut [&mut BlockTable],
    ) -> u64 {
        let budget = self.pool.budget().clone();
        let before = budget.charged();
        let freed = |budget: &Budget| before.saturating_sub(budget.charged());
        let mut running = Running::new(running);
        // What the first round could not carry out (a block that does not pack, or not as well as others), the
        // second writes to disk, and what that could not (a full disk, or none) the third lets go of.
        let rounds = match scope {
            Scope::Lossless => &[May::Sink, May::Spill][..],
            Scope::All | Scope::Running => &[May::Sink, May::Spill, May::Drop],
        };
        for &may in rounds {
            let mut count = 0;
            loop {
                let missing = bytes.saturating_sub(freed(&budget));
                if missing == 0 {
                    return freed(&budget);
                }
                count = self.weighed_for(missing).max(WIDER * count);
                let is_last = scope == Scope::Running || count >= self.nodes.len();
                let start = self.measures.then(Instant::now);
                let wanted = (missing, count, occasion);
                let plan = self.plan((scope, may), wanted, now_ms, &running);
                self.stats.weighing += start.map_or(Duration::ZERO, |start| start.elapsed());
                for step in &plan.steps {
                    self.carry_out(step, (scope, may), now_ms, &mut running);
                }
                if is_last {
                    break;
                }
            }
        }
        freed(&budget)
    }

    /// What to do for about `bytes`, chosen among `count` blocks.
    fn plan(
        &mut self,
        (scope, may): (Scope, May),
        (bytes, count, occasion): (u64, usize, Occasion),
        now_ms: u64,
        running: &Running<'_, '_>,
    ) -> Plan {
        let bytes = bytes.max(self.least_freed(scope));
        let nodes = self.nodes_to_weigh(scope, (count, now_ms), running);
        let situation = self.situation((scope, bytes), may, (&nodes, now_ms), running);
        match situation.candidates.is_empty() {
            true => Plan::default(),
            false => self.log.plan(now_ms, occasion, &situation),
        }
    }

    /// Frees what is charged above the budget's limit. Returns the bytes that are still above it: held
    /// by running sequences and others.
    pub fn shrink(&mut self, now_ms: u64) -> u64 {
        self.shrink_with(now_ms, &mut [])
    }

    /// Like [`shrink`](Self::shrink), and blocks of `running` tables sink too where their quality allows it.
    pub fn shrink_with(&mut self, now_ms: u64, running: &mut [&mut BlockTable]) -> u64 {
        let excess = self.pool.budget().excess();
        if excess > 0 {
            self.free_with(excess, Occasion::Shrink, now_ms, running);
        }
        self.pool.budget().excess()
    }

    /// How many blocks are weighed at first for so many bytes.
    fn weighed_for(&self, bytes: u64) -> usize {
        let blocks = bytes.div_ceil(self.pool.charged_block_bytes());
        let blocks = usize::try_from(blocks).unwrap_or(usize::MAX);
        blocks.saturating_mul(WEIGHED_EACH).max(WEIGHED_AT_LEAST)
    }

    fn least_freed(&self, scope: Scope) -> u64 {
        if scope == Scope::Running {
            return 0;
        }
        let blocks = (self.nodes.len() / FREED_SHARE).min(FREED_AHEAD);
        blocks as u64 * self.pool.charged_block_bytes()
    }

    /// Of those that no table uses, the `count` that are worth least; and those of running sequences that may sink.
    fn nodes_to_weigh(
        &mut self,
        scope: Scope,
        (count, now_ms): (usize, u64),
        running: &Running<'_, '_>,
    ) -> Vec<NodeId> {
        let mut nodes = match scope {
            Scope::Running => Vec::new(),
            Scope::All | Scope::Lossless => self.least_worth(count, now_ms),
        };
        if !running.is_empty() {
            let may_sink = |node: &NodeId| match self.tree.get(*node).map(|entry| &entry.held) {
                Some(Held::Ram(block)) => block.is_shared() && running.may_sink(block),
                _ => false,
            };
            nodes.extend(self.nodes.values().copied().filter(may_sink));
            nodes.sort_unstable();
            nodes.dedup();
        }
        nodes
    }

    fn situation(
        &self,
        (scope, bytes_to_free): (Scope, u64),
        may: May,
        (nodes, now_ms): (&[NodeId], u64),
        running: &Running<'_, '_>,
    ) -> Situation {
        let spills = may != May::Drop && self.options.disk.is_some();
        let weighed = self.weigh(nodes, now_ms);
        let single_file = match scope {
            Scope::All => self.single_file_tokens(nodes),
            Scope::Running | Scope::Lossless => HashMap::default(),
        };
        let candidates = weighed
            .iter()
            .filter_map(|weighed| {
                let node = weighed.node;
                let candidate = self.candidate(weighed, now_ms, running)?;
                // At the last, pins do not keep what lost its record on disk: the budget holds first.
                let may_drop = candidate.may_drop || (may == May::Drop && weighed.is_whole);
                let trimmed_bytes = match &self.tree.get(node)?.held {
                    Held::Ram(block) if self.is_unbranched(single_file.get(&node).copied()) => {
                        self.charged_head_bytes_of(block)
                    }
                    _ => candidate.bytes,
                };
                Some(Candidate {
                    trimmed_bytes,
                    may_drop: may_drop && scope != Scope::Lossless,
                    ..candidate
                })
            })
            .filter(|candidate| scope != Scope::Running || candidate.is_in_use);
        Situation {
            bytes_to_free,
            candidates: candidates.collect(),
            sinks: match may {
                May::Sink => self.sinks(scope),
                May::Spill | May::Drop => Vec::new(),
            },
            disk_room: if spills { u64::MAX / 2 } else { 0 },
            costs: self.costs,
            horizon_s: self.options.horizon_s,
        }
    }

    /// Levels in RAM that take fewer pages than a hot block.
    fn sinks(&self, scope: Scope) -> Vec<Sink> {
        let hot_bytes = self.pool.charged_block_bytes();
        let price = |share: f64| share * self.costs.recompute.per_token_us;
        // Of packed blocks the mean is known, not every one's pages.
        let mut sinks = Vec::new();
        if self.options.may_pack {
            sinks.push(Sink {
                level: Level::Packed,
                comes_back_at: Level::Hot,
                ratio: self.packed_ratio,
                quality_price_us: 0.0,
            });
            sinks.extend(self.options.quantized.packed.iter().map(|codec| Sink {
                level: Level::Packed,
                comes_back_at: codec.decodes_to(),
                ratio: self.packed_int4_ratio,
                quality_price_us: price(INT4_PRICE),
            }));
        }
        sinks.extend(self.options.quantized.iter().filter_map(|codec| {
            let bytes = codec.max_encoded_bytes(self.pool.block_bytes());
            Some(Sink {
                level: codec.level(),
                comes_back_at: codec.level(),
                ratio: round_to_pages(bytes)? as f64 / hot_bytes as f64,
                quality_price_us: price(match codec.level() {
                    Level::Int8 => INT8_PRICE,
                    _ => INT4_PRICE,
                }),
            })
        }));
        let may_lose = scope != Scope::Lossless;
        sinks.retain(|sink| sink.ratio < 1.0 && (may_lose || !sink.comes_back_at.is_lossy()));
        sinks
    }

    /// What is expected of each of `nodes`: at least as many uses as of its children among them. The deepest first.
    fn weigh(&self, nodes: &[NodeId], now_ms: u64) -> Vec<Weighed> {
        let mut deepest: Vec<(usize, NodeId)> = nodes
            .iter()
            .filter_map(|&node| Some((self.tree.info(node)?.depth_blocks, node)))
            .collect();
        deepest.sort_unstable_by(|a, b| b.cmp(a));
        let mut all: Vec<Weighed> = deepest
            .iter()
            .filter_map(|&(_, node)| Some(Weighed::new(node, self.tree.info(node)?)))
            .collect();
        let places: HashMap<NodeId, usize> = all
            .iter()
            .enumerate()
            .map(|(place, weighed)| (weighed.node, place))
            .collect();
        for place in 0..all.len() {
            let weighed = &mut all[place];
            let own = self.policy.expected_uses(weighed.info.hash.short(), now_ms);
            weighed.uses_per_s = weighed.uses_per_s.max(f64::from(own) * 1000.0);
            weighed.is_pinned |= weighed.info.pins > 0;
            weighed.is_whole = weighed.whole_children == weighed.info.children;
            let mine = *weighed;
            let parent = mine.info.parent.and_then(|parent| places.get(&parent));
            if let Some(&parent) = parent {
                all[parent].take_in(&mine);
            }
        }
        all
    }

    fn candidate(
        &self,
        weighed: &Weighed,
        now_ms: u64,
        running: &Running<'_, '_>,
    ) -> Option<Candidate> {
        let (node, info) = (weighed.node, &weighed.info);
        let entry = self.tree.get(node)?;
        let Held::Ram(block) = &entry.held else {
            return None;
        };
        let is_in_use = block.is_shared();
        // While a table holds the block, letting go of it here frees nothing; but it may sink in all
        // tables at once, if all of them are known.
        if is_in_use && !running.may_sink(block) {
            return None;
        }
        let is_cold = !is_in_use && now_ms.saturating_sub(entry.last_use_ms) >= COLD_MS;
        Some(Candidate {
            id: node.as_u64(),
            level: block.level(),
            bytes: block.charged_bytes(),
            hot_bytes: self.charged_hot_bytes(block),
            trimmed_bytes: block.charged_bytes(),
            tokens: info.tokens as u64,
            before: (info.depth_blocks * self.pool.block_tokens()) as u64,
            uses_per_s: if is_in_use {
                weighed.uses_per_s.max(RUNNING_USES_PER_S)
            } else {
                weighed.uses_per_s
            },
            is_on_disk: entry.is_on_disk,
            lowest: self.lowest(node, entry, is_cold),
            is_in_use,
            // Letting go of an inner block loses what is below it: only where that goes first.
            may_drop: weighed.is_whole && !weighed.is_pinned,
        })
    }

    /// The lowest level that a block may be attended to at, as its quality, age and place allow.
    pub(super) fn lowest(&self, node: NodeId, entry: &Entry, is_cold: bool) -> Level {
        let is_full_and_not_first = self
            .tree
            .info(node)
            .is_some_and(|info| info.depth_blocks > 0 && info.tokens == self.pool.block_tokens());
        if is_full_and_not_first {
            entry.quality.lowest(is_cold)
        } else {
            Level::Hot
        }
    }

    fn carry_out(
        &mut self,
        step: &Step,
        (scope, may): (Scope, May),
        now_ms: u64,
        running: &mut Running<'_, '_>,
    ) {
        let node = NodeId::from_u64(step.id);
        match step.action {
            Action::Trim => {
                self.trim(node, running);
            }
            Action::Demote(level) => {
                let lowest = match self.tree.get(node) {
                    Some(entry) if scope != Scope::Lossless => {
                        let is_cold = now_ms.saturating_sub(entry.last_use_ms) >= COLD_MS;
                        self.lowest(node, entry, is_cold)
                    }
                    _ => Level::Hot,
                };
                self.demote(node, (level, lowest), running);
            }
            Action::Spill => {
                if self.spill(node) {
                    self.stats.spilled_blocks += 1;
                    self.hold(node, Held::Disk);
                }
            }
            Action::DropCopied if self.is_stored(node) => self.hold(node, Held::Disk),
            // Its record went with its segment: it is weighed again, as one that is on no disk. At the last it goes.
            Action::DropCopied if may != May::Drop => self.forget_copy(node),
            Action::DropCopied => {
                self.stats.dropped_blocks += 1;
                self.forget_copy(node);
                self.drop_block(node);
            }
            Action::Drop => {
                self.stats.dropped_blocks += 1;
                self.drop_block(node);
            }
        }
    }

    pub(super) fn forget_copy(&mut self, node: NodeId) {
        if let Some(entry) = self.tree.get_mut(node) {
            entry.is_on_disk = false;
        }
    }
}
