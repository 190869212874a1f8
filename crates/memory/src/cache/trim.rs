//! Blocks that are behind the window: which may be trimmed, and what can be gone on from afterwards.
//!
//! What is trimmed cannot be branched off from near its end any more, and that is all that is lost. So blocks go first
//! whose successors all have one child: nothing ever branched off there. Where two sequences part, and where one ends,
//! a window of whole blocks is kept as long as there is something else to give.

use std::ops::Range;

use foldhash::HashMap;

use super::sink::Running;
use super::{Held, KvCache};
use crate::level::Level;
use crate::pool::Block;
use crate::prefix::NodeId;
use crate::region::round_to_pages;
use crate::table::BlockTable;

#[cfg(test)]
mod tests;

/// Tokens beyond the window for which blocks stay whole: a sequence that comes back may have lost its last block, or
/// have its last token computed anew.
pub const SLACK_TOKENS: usize = 64;

/// Which blocks of running sequences are trimmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trim {
    /// Those near whose end nothing ever branched off.
    Unbranched,
    /// All that are behind the window.
    All,
}

/// The blocks of a table that may be trimmed.
pub(super) fn trimmable_blocks(table: &BlockTable) -> Range<usize> {
    let slack_blocks = SLACK_TOKENS.div_ceil(table.block_tokens());
    0..table
        .blocks_behind_window()
        .end
        .saturating_sub(slack_blocks)
}

impl KvCache {
    /// Frees about `bytes` of what `running` tables hold of blocks that no later token of theirs reads whole, from the
    /// first block on. Returns the bytes given back to the budget: none where the pool has no window.
    pub fn trim_running(
        &mut self,
        bytes: u64,
        which: Trim,
        running: &mut [&mut BlockTable],
    ) -> u64 {
        if self.pool.window().is_none() || bytes == 0 {
            return 0;
        }
        let budget = self.pool.budget().clone();
        let before = budget.charged();
        let mut running = Running::new(running);
        let may_trim = |node: &NodeId| match self.tree.get(*node).map(|entry| &entry.held) {
            Some(Held::Ram(block)) => {
                block.is_shared() && !block.is_trimmed() && running.may_trim(block)
            }
            _ => false,
        };
        let mut nodes: Vec<NodeId> = self.nodes.values().copied().filter(may_trim).collect();
        if which == Trim::Unbranched && !nodes.is_empty() {
            let all: Vec<NodeId> = self.tree.nodes().collect();
            let single_file = self.single_file_tokens(&all);
            nodes.retain(|node| self.is_unbranched(single_file.get(node).copied()));
        }
        nodes.sort_by_key(|&node| (self.tree.info(node).map(|info| info.depth_blocks), node));
        for node in nodes {
            if before.saturating_sub(budget.charged()) >= bytes {
                break;
            }
            self.trim(node, &mut running);
        }
        before.saturating_sub(budget.charged())
    }

    /// Makes the block of `node` its head, in the tree and in the `running` tables. Whether it did.
    pub(super) fn trim(&mut self, node: NodeId, running: &mut Running<'_, '_>) -> bool {
        let Some(block) = self.claim(node) else {
            return false;
        };
        let Some(bytes) = self.head_bytes(block.level()) else {
            return false;
        };
        // The tree's claim, this one, and those of the tables.
        if block.claims() != 2 + running.count(&block) {
            return false;
        }
        let places = running.take(&block);
        self.put(node, Held::Gone);
        let trimmed = self.pool.trim(block, bytes);
        let is_trimmed = trimmed.is_ok();
        let block = trimmed.unwrap_or_else(|block| block);
        running.fill(places, &block);
        self.put(node, Held::Ram(block));
        self.stats.trimmed_blocks += u64::from(is_trimmed);
        is_trimmed
    }

    /// Bytes of the head of a block at an attendable level: the first of the block's.
    fn head_bytes(&self, level: Level) -> Option<usize> {
        let hot_bytes = self.pool.window()?.head_bytes;
        match level {
            Level::Hot => Some(hot_bytes),
            _ => Some(
                self.options
                    .quantized
                    .at(level)?
                    .max_encoded_bytes(hot_bytes),
            ),
        }
    }

    /// Bytes that a trimmed block is charged at an attendable level; those of a whole one where there is no window.
    #[must_use]
    pub fn charged_head_bytes_at(&self, level: Level) -> u64 {
        let head = self.head_bytes(level).and_then(round_to_pages);
        let hot_bytes = self.pool.charged_head_bytes();
        match (self.pool.window(), head) {
            (None, _) => self.charged_bytes_at(level),
            (_, Some(bytes)) => hot_bytes.min(bytes as u64),
            (_, None) => hot_bytes,
        }
    }

    /// Bytes that a block is charged when trimmed where it is; what it is charged if it can't be.
    pub(super) fn charged_head_bytes_of(&self, block: &Block) -> u64 {
        let head = self.head_bytes(block.level()).and_then(round_to_pages);
        match head {
            Some(bytes) if !block.is_trimmed() => block.charged_bytes().min(bytes as u64),
            _ => block.charged_bytes(),
        }
    }

    /// Bytes that the hot form of a block is charged.
    pub(super) fn charged_hot_bytes(&self, block: &Block) -> u64 {
        match block.is_trimmed() {
            true => self.pool.charged_head_bytes(),
            false => self.pool.charged_block_bytes(),
        }
    }

    /// Whether a block with so many tokens behind it before anything branches off may be trimmed without thought.
    pub(super) fn is_unbranched(&self, single_file_tokens: Option<usize>) -> bool {
        let whole = |window: crate::pool::Window| window.tokens.saturating_add(SLACK_TOKENS);
        self.pool
            .window()
            .map(whole)
            .zip(single_file_tokens)
            .is_some_and(|(whole, tokens)| whole <= tokens)
    }

    /// For each of `nodes`, the tokens that follow it in single file: up to where a sequence ends, or two part.
    pub(super) fn single_file_tokens(&self, nodes: &[NodeId]) -> HashMap<NodeId, usize> {
        let mut all = HashMap::default();
        if self.pool.window().is_none() {
            return all;
        }
        let mut deepest: Vec<(usize, NodeId)> = nodes
            .iter()
            .filter_map(|&node| Some((self.tree.info(node)?.depth_blocks, node)))
            .collect();
        deepest.sort_unstable_by(|a, b| b.cmp(a));
        for (_, node) in deepest {
            let only_child = self
                .tree
                .first_child(node)
                .filter(|_| self.tree.info(node).is_some_and(|info| info.children == 1));
            let tokens = only_child.map_or(0, |child| {
                let own = self.tree.tokens(child).map_or(0, <[u32]>::len);
                own + all.get(&child).copied().unwrap_or(0)
            });
            all.insert(node, tokens);
        }
        all
    }

    /// Whether the block of `node` is held anywhere.
    pub(super) fn is_held(&self, node: NodeId) -> bool {
        let held = self.tree.get(node).map(|entry| &entry.held);
        held.is_some_and(|held| !matches!(held, Held::Gone))
    }

    /// Whether what is held of the block of `node` is its head alone.
    pub(super) fn is_trimmed(&self, node: NodeId) -> bool {
        match self.tree.get(node).map(|entry| &entry.held) {
            Some(Held::Ram(block)) => block.is_trimmed(),
            Some(Held::Disk) => self.is_record_trimmed(node),
            _ => false,
        }
    }

    /// Whether the record on disk, if there is one, is of the block's head alone.
    pub(super) fn is_record_trimmed(&self, node: NodeId) -> bool {
        self.stored_hot_bytes(node)
            .is_some_and(|bytes| bytes < self.pool.block_bytes() as u64)
    }

    /// Bytes of the hot form of what the record of `node` holds.
    pub(super) fn stored_hot_bytes(&self, node: NodeId) -> Option<u64> {
        let (disk, info) = (self.options.disk.as_ref()?, self.tree.info(node)?);
        let meta = disk.meta(&info.hash, &self.options.fingerprint)?;
        Some(meta.hot_bytes)
    }

    /// Lets the tree hold `block` as `node`'s, unless that holds more of it somewhere else.
    pub(super) fn take_over(&mut self, node: NodeId, block: &Block) {
        if !block.is_trimmed() || !self.is_held(node) || self.is_trimmed(node) {
            self.hold(node, Held::Ram(block.clone()));
        }
    }

    /// Cuts a path of nodes and their tokens to what a sequence can go on from.
    pub(super) fn cut_to_startable(&self, path: &mut Vec<(NodeId, usize)>) {
        if self.pool.window().is_none() {
            return;
        }
        let held = path.iter().take_while(|&&(node, _)| self.is_held(node));
        let held = held.count();
        path.truncate(held);
        let tokens = path.iter().map(|(_, tokens)| tokens).sum();
        let startable = self
            .pool
            .startable_tokens(tokens, |block| self.is_trimmed(path[block].0));
        if startable < tokens {
            path.truncate(startable / self.pool.block_tokens());
        }
    }

    /// Only full blocks are trimmed, and only where there is a window.
    pub(super) fn check_trimmed(&self) -> Result<(), String> {
        for node in self.tree.nodes() {
            let Some(Held::Ram(block)) = self.tree.get(node).map(|entry| &entry.held) else {
                continue;
            };
            let is_full =
                self.tree.tokens(node).map(<[u32]>::len) == Some(self.pool.block_tokens());
            if block.is_trimmed() && (!is_full || self.pool.window().is_none()) {
                return Err("a block is trimmed that later tokens read whole".into());
            }
        }
        Ok(())
    }
}
