//! The prefix cache: blocks of running, finished and preempted sequences, kept until the room is
//! needed (RadixAttention, Zheng et al. 2024).
//!
//! A running sequence holds claims on its blocks; the cache holds another on those that it knows.
//! Only a leaf that nobody else claims is evicted: anything else would free nothing.

use std::collections::HashMap;

use neap_memory::policy::{Facts, Lru, Policy};
use neap_memory::prefix::{NodeId, PrefixMatch};
use neap_memory::{Block, BlockTable, Budget, Fingerprint, Namespace, PrefixTree};

/// Figures of the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Blocks held.
    pub blocks: usize,
    /// Blocks that nobody else claims.
    pub evictable_blocks: usize,
    /// Tokens of prompts that were looked up.
    pub asked_tokens: u64,
    /// Tokens of prompts that were found.
    pub hit_tokens: u64,
    /// Blocks evicted for want of room.
    pub evicted_blocks: u64,
}

/// What the cache holds of a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hit {
    /// Tokens found.
    pub tokens: usize,
    /// Blocks of these that running sequences use too: taking them costs no room.
    pub shared_blocks: usize,
}

pub(crate) struct PrefixCache {
    tree: PrefixTree<Block>,
    policy: Box<dyn Policy + Send>,
    /// By the policy's id.
    nodes: HashMap<u64, NodeId>,
    secret: [u8; 32],
    fingerprint: Fingerprint,
    stats: CacheStats,
}

impl PrefixCache {
    /// `fingerprint` tells the model and everything else that a block's contents depend on; `secret`
    /// keeps one tenant from guessing the names of another's blocks.
    pub fn new(block_tokens: usize, secret: [u8; 32], fingerprint: Fingerprint) -> Self {
        Self {
            tree: PrefixTree::new(block_tokens),
            policy: Box::new(Lru::default()),
            nodes: HashMap::new(),
            secret,
            fingerprint,
            stats: CacheStats::default(),
        }
    }

    /// The namespace in which a tenant's blocks are found, by that tenant only.
    pub fn namespace(&self, tenant: &str) -> Namespace {
        Namespace::new(&self.secret, tenant, &self.fingerprint)
    }

    /// What a lookup of all but the last of `tokens` would find; the last must be computed.
    pub fn peek(&self, namespace: &Namespace, tokens: &[u32]) -> Hit {
        let found = self.tree.peek(namespace, &tokens[..tokens.len() - 1]);
        let is_shared = |node: &&NodeId| self.tree.get(**node).is_some_and(Block::is_shared);
        Hit { tokens: found.tokens, shared_blocks: found.full.iter().filter(is_shared).count() }
    }

    /// Gives an empty table the blocks that are held for all but the last of `tokens`. A block that
    /// matches in part is shared too: the table copies it before it writes.
    pub fn attach(&mut self, namespace: &Namespace, tokens: &[u32], table: &mut BlockTable) {
        let found = self.tree.lookup(namespace, &tokens[..tokens.len() - 1]);
        self.stats.asked_tokens += tokens.len() as u64;
        self.stats.hit_tokens += found.tokens as u64;
        self.touch(&found);
        for &node in &found.full {
            if let Some(block) = self.tree.get(node) {
                table.attach(block.clone(), self.tree.block_tokens());
            }
        }
        if let Some(partial) = found.partial
            && let Some(block) = self.tree.get(partial.node)
        {
            table.attach(block.clone(), partial.tokens);
        }
    }

    /// From the end to the start, so that a parent is always the fresher one.
    fn touch(&mut self, found: &PrefixMatch) {
        let now = self.tree.clock();
        let partial = found.partial.map(|p| p.node);
        for node in found.full.iter().copied().chain(partial).rev() {
            if let Some(info) = self.tree.info(node) {
                self.policy.touch(info.hash.short(), &Facts::at(now));
            }
        }
    }

    /// Shares a table's blocks of `tokens`, which it holds computed. Blocks that are known already
    /// stay as they are; the last one may be partial.
    pub fn insert(&mut self, namespace: &Namespace, tokens: &[u32], table: &BlockTable) {
        let replaced_before = self.nodes.len();
        let done = self.tree.insert(namespace, tokens, |index| table.share_block(index));
        let now = self.tree.clock();
        let first_new = done.path.len() - done.new_nodes;
        for (depth, &node) in done.path.iter().enumerate().rev() {
            let Some(info) = self.tree.info(node) else { continue };
            let id = info.hash.short();
            let facts = Facts { is_partial: info.tokens < self.tree.block_tokens(), ..Facts::at(now) };
            if depth >= first_new {
                self.nodes.insert(id, node);
                self.policy.insert(id, &facts);
            } else {
                self.policy.touch(id, &facts);
            }
        }
        if done.replaced.is_some() {
            self.forget_missing();
        }
        debug_assert!(self.nodes.len() <= replaced_before + done.new_nodes);
    }

    /// Forgets ids whose nodes are gone from the tree: partial leaves that a longer block replaced.
    fn forget_missing(&mut self) {
        let (tree, policy) = (&self.tree, &mut self.policy);
        self.nodes.retain(|&id, &mut node| {
            let is_there = tree.get(node).is_some();
            if !is_there {
                policy.remove(id, false);
            }
            is_there
        });
    }

    /// Evicts until `bytes` are free in the budget; false if nothing more can go.
    pub fn make_room(&mut self, budget: &Budget, bytes: u64) -> bool {
        let mut tries = 2 * self.nodes.len() + 1;
        while budget.available() < bytes || budget.excess() > 0 {
            let Some(id) = self.policy.candidate(self.tree.clock()).filter(|_| tries > 0) else {
                return false;
            };
            tries -= 1;
            if !self.evict_below(id) {
                self.policy.defer(id);
            }
        }
        true
    }

    /// Evicts the node named `id` or a leaf below it; false if that would free nothing.
    fn evict_below(&mut self, id: u64) -> bool {
        let Some(&top) = self.nodes.get(&id) else {
            self.policy.remove(id, false);
            return true;
        };
        let mut leaf = top;
        while let Some(child) = self.tree.first_child(leaf) {
            leaf = child;
        }
        if self.tree.get(leaf).is_none_or(Block::is_shared) || !self.tree.is_evictable(leaf) {
            return false;
        }
        if let Some(info) = self.tree.info(leaf) {
            self.policy.remove(info.hash.short(), true);
            self.nodes.remove(&info.hash.short());
        }
        self.stats.evicted_blocks += 1;
        self.tree.evict(leaf).is_some()
    }

    /// Blocks that could be evicted: those that nobody else claims.
    pub fn evictable_blocks(&self) -> usize {
        self.tree.nodes().filter(|&node| self.tree.get(node).is_some_and(|b| !b.is_shared())).count()
    }

    /// Figures.
    pub fn stats(&self) -> CacheStats {
        CacheStats { blocks: self.tree.len(), evictable_blocks: self.evictable_blocks(), ..self.stats }
    }

    /// Lets everything go that nobody else claims.
    pub fn clear(&mut self, budget: &Budget) {
        self.make_room(budget, u64::MAX);
    }

    /// Checks the laws that tie tree, policy and ids together.
    pub fn check_conservation(&self) -> Result<(), String> {
        self.tree.check_conservation()?;
        if self.tree.len() != self.nodes.len() || self.nodes.len() != self.policy.len() {
            let (tree, ids, policy) = (self.tree.len(), self.nodes.len(), self.policy.len());
            return Err(format!("{tree} nodes, {ids} ids and {policy} blocks of the policy"));
        }
        Ok(())
    }
}
