//! Promotion ahead of need: the blocks of a request that waits are brought up a few at a time, while others run.

use super::{Held, KvCache};
use crate::hash::Namespace;
use crate::prefix::NodeId;

/// How long one call may take, by what blocks took before: running sequences wait for it.
const PATIENCE_US: f64 = 20_000.0;

impl KvCache {
    /// Brings some blocks of the longest cached prefix of `tokens` up to a level that is attended to, from the first
    /// that is not: as many as take about 20 ms, at least one, and as find room beside `keep_free_bytes`. Nothing is let go of
    /// for it. Counts as no use. Returns whether it did something and there is more to do.
    pub fn promote(&mut self, namespace: &Namespace, tokens: &[u32], keep_free_bytes: u64) -> bool {
        let found = self.tree.peek(namespace, tokens);
        let block_tokens = self.pool.block_tokens();
        let usable = |&&node: &&NodeId| {
            let held = self.tree.get(node).map(|entry| &entry.held);
            held.is_some_and(|held| !matches!(held, Held::Gone))
        };
        let sunken: Vec<(NodeId, usize)> = found
            .full
            .iter()
            .take_while(usable)
            .take_while(|&&node| self.is_worth_loading(node))
            .filter(|&&node| self.cost_of_promotion_us(node).is_some())
            .map(|&node| (node, block_tokens))
            .collect();
        let mut chosen = 0;
        let mut us = 0.0;
        // A payload that is read takes room beside the block that it becomes.
        let block_bytes = self.pool.charged_block_bytes();
        let slack_bytes = self.options.reads_in_flight as u64 * self.slack_bytes();
        let spare = self
            .pool
            .budget()
            .available()
            .saturating_sub(keep_free_bytes.saturating_add(slack_bytes));
        let fitting = (spare / block_bytes) as usize;
        for &(node, _) in sunken
            .iter()
            .take(fitting.saturating_sub(self.options.reads_in_flight))
        {
            us += self.cost_of_promotion_us(node).unwrap_or(0.0);
            if chosen > 0 && us > PATIENCE_US {
                break;
            }
            chosen += 1;
        }
        let mut reads = self.read_ahead(&sunken[..chosen]);
        let mut promoted = 0;
        for &(node, _) in &sunken[..chosen] {
            let packed = self.claim(node);
            let block = match packed {
                Some(packed) => self.unpack(node, &packed),
                None => self.load(node, &mut reads),
            };
            if block.is_none() {
                break;
            }
            self.rank_unused(node);
            promoted += 1;
        }
        self.stats.promoted_blocks += promoted as u64;
        promoted > 0 && promoted < sunken.len()
    }

    /// Whether a block is up, or bringing it up takes no longer than computing it.
    fn is_worth_loading(&self, node: NodeId) -> bool {
        let (Some(us), Some(info)) = (self.cost_of_promotion_us(node), self.tree.info(node)) else {
            return true;
        };
        let before = info.depth_blocks * self.pool.block_tokens();
        us <= self.costs.recompute.of(before as u64, info.tokens as u64)
    }

    /// Expected time to bring a block up; none if it is up, or cannot be brought up from here.
    fn cost_of_promotion_us(&self, node: NodeId) -> Option<f64> {
        let hot_bytes = self.pool.block_bytes() as u64;
        match &self.tree.get(node)?.held {
            Held::Ram(block) if block.level().is_attendable() => None,
            Held::Ram(_) => Some(self.costs.unpack.of(hot_bytes)),
            Held::Disk => Some(self.costs.disk_read.of(hot_bytes)),
            Held::Gone => None,
        }
    }
}
