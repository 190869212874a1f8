//! What the policy is told: the blocks in RAM, and each use of one. It ranks no others, so that what is on disk is not in
//! the way of those that must be found when room is short.

use foldhash::HashSet;

use super::{Held, KvCache};
use crate::policy::{Facts, Policy};
use crate::prefix::{NodeId, NodeInfo};

#[cfg(test)]
mod tests;

/// Nodes below a block that are weighed with it at most; one with more below it can't be let go of before they are.
const MOST_BELOW: usize = 1024;

/// A use of a path by a sequence, or its first being there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Use {
    pub(super) now_ms: u64,
    /// Earlier prompts that the sequence continues.
    pub(super) turn: u32,
    /// Tokens of the sequence that no block was remembered for.
    pub(super) new_tokens: usize,
}

impl KvCache {
    /// Changes how the block of `node` is held. One that leaves RAM is remembered by the policy; one that comes is told to
    /// it by whoever knows why it came.
    pub(super) fn hold(&mut self, node: NodeId, held: Held) {
        let leaves = !matches!(held, Held::Ram(_));
        self.put(node, held);
        if leaves && let Some(info) = self.tree.info(node) {
            self.unrank(info.hash.short(), true);
        }
    }

    /// [`hold`](Self::hold) while a block changes its form: the policy hears nothing.
    pub(super) fn put(&mut self, node: NodeId, held: Held) {
        if let Some(entry) = self.tree.get_mut(node) {
            entry.held = held;
        }
    }

    /// Lets go of a block, and of the names that nothing hangs on any more.
    pub(super) fn drop_block(&mut self, node: NodeId) {
        self.hold(node, Held::Gone);
        self.prune(node);
    }

    pub(super) fn is_in_ram(&self, node: NodeId) -> bool {
        let entry = self.tree.get(node);
        entry.is_some_and(|entry| matches!(entry.held, Held::Ram(_)))
    }

    pub(super) fn unrank(&mut self, id: u64, was_evicted: bool) {
        self.nodes.remove(&id);
        self.policy.remove(id, was_evicted);
    }

    fn facts(&self, info: &NodeInfo, of: Use) -> Facts {
        Facts {
            // All blocks cost the same here: the governor weighs bytes and ways back itself, at the costs of its day.
            is_partial: info.tokens < self.pool.block_tokens(),
            turn: of.turn,
            new_tokens: of.new_tokens as u64,
            uses: u32::try_from(info.hits).unwrap_or(u32::MAX),
            ..Facts::at(of.now_ms)
        }
    }

    /// Tells the policy of blocks of a path that are in RAM and that it does not have: from the end to the start, so that
    /// parents are fresher.
    pub(super) fn rank(&mut self, path: &[NodeId], of: Use) {
        for &node in path.iter().rev() {
            if let Some(info) = self.tree.info(node).filter(|_| self.is_in_ram(node)) {
                let facts = self.facts(&info, of);
                if self.nodes.insert(info.hash.short(), node).is_none() {
                    self.policy.insert(info.hash.short(), &facts);
                }
            }
        }
    }

    /// Ranks a block that came back into RAM before anybody used it.
    pub(super) fn rank_unused(&mut self, node: NodeId) {
        let Some((info, entry)) = self.tree.info(node).zip(self.tree.get(node)) else {
            return;
        };
        let of = Use {
            now_ms: entry.last_use_ms,
            turn: entry.first_turn,
            new_tokens: 0,
        };
        let id = info.hash.short();
        match !self.nodes.contains_key(&id) && self.policy.take_back(id) {
            true => {
                self.nodes.insert(id, node);
            }
            false => self.rank(&[node], of),
        }
    }

    /// Tells the policy of a use of a path, from the end to the start.
    pub(super) fn touch(&mut self, path: &[NodeId], of: Use) {
        for &node in path.iter().rev() {
            if let Some(info) = self.tree.info(node) {
                match self.nodes.contains_key(&info.hash.short()) {
                    true => {
                        let facts = self.facts(&info, of);
                        self.policy.touch(info.hash.short(), &facts);
                    }
                    false => self.rank(&[node], of),
                }
            }
            if let Some(entry) = self.tree.get_mut(node) {
                entry.last_use_ms = of.now_ms;
            }
        }
    }

    /// About `count` blocks that are worth least and that no table uses, and the nodes below them.
    pub(super) fn least_worth(&mut self, count: usize, now_ms: u64) -> Vec<NodeId> {
        let (tree, nodes) = (&self.tree, &self.nodes);
        let is_unused = |id| {
            let entry = nodes.get(&id).and_then(|&node| tree.get(node));
            entry.is_some_and(|entry| match &entry.held {
                Held::Ram(block) => !block.is_shared(),
                _ => false,
            })
        };
        let least = self.policy.least(count, now_ms, is_unused);
        let mut found = Vec::with_capacity(2 * least.len());
        let mut seen = HashSet::default();
        for node in least.iter().filter_map(|id| self.nodes.get(id)) {
            let first = found.len();
            if seen.insert(*node) {
                found.push(*node);
                self.push_below(first, &mut found, &mut seen);
            }
        }
        found
    }

    /// Adds what is below the node at `first`, unless that is too much.
    fn push_below(&self, first: usize, found: &mut Vec<NodeId>, seen: &mut HashSet<NodeId>) {
        let mut next = first;
        while next < found.len() {
            for child in self.tree.children(found[next]) {
                if seen.insert(child) {
                    found.push(child);
                }
            }
            next += 1;
            if found.len() - first > MOST_BELOW {
                for node in found.drain(first + 1..) {
                    seen.remove(&node);
                }
                return;
            }
        }
    }

    /// The policy has the blocks in RAM, all of them and no others.
    pub(super) fn check_ranking(&self) -> Result<(), String> {
        let mut count = 0;
        for node in self.tree.nodes().filter(|&node| self.is_in_ram(node)) {
            count += 1;
            let id = self.tree.info(node).map(|info| info.hash.short());
            if id.and_then(|id| self.nodes.get(&id)) != Some(&node) {
                return Err("a block in RAM is not ranked".into());
            }
        }
        let (nodes, ranked) = (self.nodes.len(), self.policy.len());
        if [nodes, ranked] != [count; 2] {
            return Err(format!(
                "{count} blocks in RAM, {nodes} by id, {ranked} in the policy"
            ));
        }
        Ok(())
    }
}
