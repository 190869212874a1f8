//! Replays a trace against a policy, with the product's own prefix tree, at given sizes of RAM and disk.
//!
//! A request looks its prompt up, block by block; what is found is work saved. Its missing blocks are then
//! inserted. When RAM is too small its policy's candidates sink to disk; when that is too small, or there is none,
//! they are evicted; either way children go before parents. A block found on disk is brought up.

use std::collections::{BTreeMap, HashMap};

use neap_memory::hash::{Fingerprint, Namespace};
use neap_memory::policy::{Facts, Id, Policy};
use neap_memory::prefix::{NodeId, PrefixTree};

use crate::trace::{Request, TRACE_BLOCK_TOKENS};

/// Room, in blocks of the trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Blocks held in RAM.
    pub ram_blocks: usize,
    /// Blocks held on disk beside them.
    pub disk_blocks: usize,
}

/// What a replay measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Tokens of all prompts.
    pub input_tokens: u64,
    /// Of these, found in RAM.
    pub ram_hit_tokens: u64,
    /// Of these, found on disk.
    pub disk_hit_tokens: u64,
    /// Blocks that sank from RAM to disk.
    pub demoted_blocks: u64,
    /// Blocks brought up from disk.
    pub promoted_blocks: u64,
    /// Blocks let go.
    pub evicted_blocks: u64,
}

impl Outcome {
    /// Tokens that need not be computed.
    #[must_use]
    pub fn saved_tokens(&self) -> u64 {
        self.ram_hit_tokens + self.disk_hit_tokens
    }
}

/// For every request and block: the time of the next request that names the block, or `u64::MAX`.
#[must_use]
pub fn next_uses(trace: &[Request]) -> Vec<Vec<u64>> {
    let mut next: HashMap<u32, u64> = HashMap::new();
    let mut uses: Vec<Vec<u64>> = Vec::with_capacity(trace.len());
    for (index, request) in trace.iter().enumerate().rev() {
        // The order of requests, not their time: several may come in one millisecond.
        let of = |block: &u32| next.get(block).copied().unwrap_or(u64::MAX);
        uses.push(request.blocks.iter().map(of).collect());
        next.extend(request.blocks.iter().map(|&block| (block, index as u64)));
    }
    uses.reverse();
    uses
}

/// One level: its policy and its room.
struct Shelf {
    policy: Box<dyn Policy>,
    room: usize,
}

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Ram,
    Disk,
}

struct Held {
    place: Place,
    facts: Facts,
    /// Turn of the request that computed it.
    first_turn: u32,
}

/// A replay under way.
pub struct Replay {
    tree: PrefixTree<Held>,
    namespace: Namespace,
    nodes: HashMap<Id, NodeId>,
    ram: Shelf,
    disk: Shelf,
    outcome: Outcome,
}

impl Replay {
    /// Starts with nothing held. `policy` makes one instance per level.
    pub fn new(sizes: Sizes, policy: impl Fn() -> Box<dyn Policy>) -> Self {
        Self {
            tree: PrefixTree::new(1),
            namespace: Namespace::new(&[0; 32], "trace", &Fingerprint::of_parts(&[])),
            nodes: HashMap::new(),
            ram: Shelf {
                policy: policy(),
                room: sizes.ram_blocks,
            },
            disk: Shelf {
                policy: policy(),
                room: sizes.disk_blocks,
            },
            outcome: Outcome::default(),
        }
    }

    /// Runs a whole trace.
    pub fn run(mut self, trace: &[Request], next_uses: &[Vec<u64>]) -> Outcome {
        for (request, next) in trace.iter().zip(next_uses) {
            self.request(request, next);
        }
        self.outcome
    }

    /// Runs one request; `next_uses` is for the offline bound.
    pub fn request(&mut self, request: &Request, next_uses: &[u64]) {
        let found = self.tree.lookup(&self.namespace, &request.blocks).full;
        self.count_hits(request, &found);
        let turn = found
            .last()
            .and_then(|&node| self.tree.get(node))
            .map_or(0, |h| h.first_turn + 1);
        let new_tokens = self.new_tokens(request);
        let facts: Vec<Facts> = next_uses
            .iter()
            .enumerate()
            .map(|(block, &next_use)| Facts {
                is_partial: (block as u64 + 1) * TRACE_BLOCK_TOKENS > request.input_tokens,
                turn,
                new_tokens,
                next_use,
                ..Facts::at(request.at_ms)
            })
            .collect();
        let path = self
            .tree
            .insert(&self.namespace, &request.blocks, |block| Held {
                place: Place::Ram,
                facts: facts[block],
                first_turn: turn,
            })
            .path;
        // From the end to the start, so that parents are fresher than their children.
        for (block, &node) in path.iter().enumerate().rev() {
            self.use_block(node, facts[block], block >= found.len());
        }
        while self.ram.policy.len() > self.ram.room {
            self.shrink_ram(request.at_ms);
        }
        while self.disk.policy.len() > self.disk.room {
            self.shrink_disk(request.at_ms);
        }
    }

    /// Tokens of the prompt behind the last block that a level's policy remembers.
    fn new_tokens(&self, request: &Request) -> u64 {
        let mut hash = self.namespace.root();
        let is_known = move |block: &&u32| {
            hash = hash.child(&[**block]);
            let id = hash.short();
            self.ram.policy.remembers(id) || self.disk.policy.remembers(id)
        };
        let known = request.blocks.iter().take_while(is_known).count() as u64;
        request
            .input_tokens
            .saturating_sub(known * TRACE_BLOCK_TOKENS)
    }

    fn count_hits(&mut self, request: &Request, found: &[NodeId]) {
        self.outcome.input_tokens += request.input_tokens;
        let mut left = request.input_tokens;
        for &node in found {
            let tokens = left.min(TRACE_BLOCK_TOKENS);
            left -= tokens;
            match self.tree.get(node).map(|held| held.place) {
                Some(Place::Ram) => self.outcome.ram_hit_tokens += tokens,
                Some(Place::Disk) => self.outcome.disk_hit_tokens += tokens,
                None => {}
            }
        }
    }

    fn id(&self, node: NodeId) -> Id {
        self.tree.info(node).map_or(0, |info| info.hash.short())
    }

    fn use_block(&mut self, node: NodeId, facts: Facts, is_new: bool) {
        let id = self.id(node);
        if is_new {
            self.nodes.insert(id, node);
            self.ram.policy.insert(id, &facts);
            return;
        }
        let Some(held) = self.tree.get_mut(node) else {
            return;
        };
        let uses = held.facts.uses + 1;
        let facts = Facts { uses, ..facts };
        held.facts = facts;
        match std::mem::replace(&mut held.place, Place::Ram) {
            Place::Ram => self.ram.policy.touch(id, &facts),
            Place::Disk => {
                self.outcome.promoted_blocks += 1;
                // The use is news to the policy that kept it, too.
                self.disk.policy.touch(id, &facts);
                self.disk.policy.remove(id, false);
                self.ram.policy.insert(id, &facts);
            }
        }
    }

    fn shrink_ram(&mut self, now: u64) {
        let Some(mut id) = self.ram.policy.candidate(now) else {
            return;
        };
        if self.disk.room == 0 {
            return self.evict_below(id);
        }
        // As the cache does: what is below it is expected to be used no more often than a block, and sinks first. Else
        // room on disk would be had by letting go of what RAM was to keep.
        if let Some(mut node) = self.nodes.get(&id).copied() {
            while let Some(child) = self.ram_child(node) {
                node = child;
            }
            id = self.id(node);
        }
        self.ram.policy.remove(id, true);
        if let Some(held) = self
            .nodes
            .get(&id)
            .and_then(|&node| self.tree.get_mut(node))
        {
            held.place = Place::Disk;
            let facts = Facts {
                now,
                unused_for: now.saturating_sub(held.facts.now),
                ..held.facts
            };
            self.disk.policy.insert(id, &facts);
            self.outcome.demoted_blocks += 1;
        }
    }

    fn ram_child(&self, node: NodeId) -> Option<NodeId> {
        let is_in_ram = |child: &NodeId| {
            let held = self.tree.get(*child);
            held.is_some_and(|held| held.place == Place::Ram)
        };
        self.tree.children(node).find(is_in_ram)
    }

    fn shrink_disk(&mut self, now: u64) {
        if let Some(id) = self.disk.policy.candidate(now) {
            self.evict_below(id);
        }
    }

    /// Evicts a leaf at or below the block of `id`.
    fn evict_below(&mut self, id: Id) {
        let Some(mut node) = self.nodes.get(&id).copied() else {
            return;
        };
        while let Some(child) = self.tree.first_child(node) {
            node = child;
        }
        let id = self.id(node);
        self.tree.evict(node);
        self.nodes.remove(&id);
        self.ram.policy.remove(id, true);
        self.disk.policy.remove(id, true);
        self.outcome.evicted_blocks += 1;
    }

    /// Checks that every block is on exactly one level, and known by its node.
    ///
    /// # Errors
    /// A description of the first law that is broken.
    pub fn check_conservation(&self) -> Result<(), String> {
        self.tree.check_conservation()?;
        let held = self.ram.policy.len() + self.disk.policy.len();
        if held != self.tree.len() || held != self.nodes.len() {
            return Err(format!(
                "{held} blocks by level, {} nodes, {} by id",
                self.tree.len(),
                self.nodes.len()
            ));
        }
        if self.ram.policy.len() > self.ram.room || self.disk.policy.len() > self.disk.room {
            return Err("a level holds more than its room".into());
        }
        Ok(())
    }
}

/// Distinct blocks of a trace: the room at which nothing is evicted.
#[must_use]
pub fn distinct_blocks(trace: &[Request]) -> usize {
    let all: BTreeMap<u32, ()> = trace
        .iter()
        .flat_map(|r| &r.blocks)
        .map(|&block| (block, ()))
        .collect();
    all.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use neap_memory::policy::{Belady, CostModel, Fifo, Lru, S3Fifo, Sieve};

    type Make = fn() -> Box<dyn Policy>;

    const ALL: [Make; 6] = [
        || Box::new(Fifo::default()),
        || Box::new(Lru::default()),
        || Box::new(S3Fifo::default()),
        || Box::new(Sieve::default()),
        || Box::new(CostModel::default()),
        || Box::new(Belady::default()),
    ];

    /// Conversations that come back and grow, among single requests.
    fn workload(seed: u64) -> Vec<Request> {
        let mut state = seed;
        let mut random = move |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut talks: Vec<Vec<u32>> = vec![vec![0]; 30];
        let mut next_block = 1;
        (0..600)
            .map(|i| {
                let talk = &mut talks[random(30) as usize];
                if random(8) == 0 || talk.len() > 20 {
                    *talk = vec![0];
                }
                for _ in 0..=random(4) {
                    talk.push(next_block);
                    next_block += 1;
                }
                Request {
                    at_ms: i * 100,
                    input_tokens: talk.len() as u64 * TRACE_BLOCK_TOKENS - random(511),
                    output_tokens: 1,
                    blocks: talk.clone(),
                }
            })
            .collect()
    }

    #[test]
    fn laws_hold_and_no_policy_beats_the_offline_bound() {
        for seed in 0..4 {
            let trace = workload(seed);
            let next = next_uses(&trace);
            for sizes in [(20, 0), (100, 0), (300, 0), (50, 100)] {
                let sizes = Sizes {
                    ram_blocks: sizes.0,
                    disk_blocks: sizes.1,
                };
                let outcomes = ALL.map(|make| {
                    let mut replay = Replay::new(sizes, make);
                    for (request, next) in trace.iter().zip(&next) {
                        replay.request(request, next);
                        replay.check_conservation().unwrap();
                    }
                    replay.outcome
                });
                let bound = outcomes[5].saved_tokens();
                assert!(bound > 0);
                // The blocks at the ends of prompts hold fewer tokens than others: a margin for them.
                assert!(
                    outcomes
                        .iter()
                        .all(|o| o.saved_tokens() <= bound + bound / 50)
                );
            }
        }
    }

    #[test]
    fn with_room_for_all_every_policy_saves_the_same() {
        let trace = workload(1);
        let next = next_uses(&trace);
        let sizes = Sizes {
            ram_blocks: distinct_blocks(&trace),
            disk_blocks: 0,
        };
        let outcomes = ALL.map(|make| Replay::new(sizes, make).run(&trace, &next));
        assert!(
            outcomes
                .iter()
                .all(|o| *o == outcomes[0] && o.evicted_blocks == 0)
        );
    }
}
