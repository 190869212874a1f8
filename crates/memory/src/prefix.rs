//! The prefix tree: which runs of tokens are held, and by which blocks.
//!
//! A radix tree whose edges are blocks of tokens (after SGLang's RadixAttention, Zheng et al. 2024, with
//! the fixed blocks of vLLM, Kwon et al. 2023). A node stands for the keys and values of one block of
//! tokens *in its place*, after all tokens above it. Full blocks may have children; a leaf may hold the
//! partial block at the end of a sequence.
//!
//! The tree knows nothing of bytes: a node carries a value `V` (a [`Block`](crate::Block), a place on
//! disk, nothing at all in a simulation) and decides nothing about eviction but its legality: children go
//! before their parents, pinned nodes stay.
//!
//! Full blocks are found by their chained hash in one table, so a lookup costs O(length) whatever the tree
//! holds. The longest common part with a block that does not match whole is the nearest neighbour in the
//! lexicographic order of the siblings, so it costs O(log siblings), also for a crowd of siblings that a
//! hostile client made.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::hash::{BlockHash, HashMapByHash, Namespace};

#[cfg(test)]
mod tests;

/// Names a node. Ids are not reused: a stale one finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId {
    index: u32,
    generation: u32,
}

impl NodeId {
    /// The id as one number, for plans.
    #[must_use]
    pub fn as_u64(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The id that [`as_u64`](Self::as_u64) gave.
    #[must_use]
    pub fn from_u64(number: u64) -> Self {
        Self {
            index: number as u32,
            generation: (number >> 32) as u32,
        }
    }
}

/// What a lookup found. `tokens` is the sum over both parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixMatch {
    /// Nodes whose blocks match whole, in order.
    pub full: Vec<NodeId>,
    /// A node of whose block the first tokens match: to be copied before it is continued.
    pub partial: Option<PartialMatch>,
    /// Tokens matched.
    pub tokens: usize,
}

/// The end of a match, within a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialMatch {
    /// The node.
    pub node: NodeId,
    /// How many of its first tokens match: at least one, fewer than the block holds.
    pub tokens: usize,
}

/// What an insertion did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Insertion {
    /// The nodes along the tokens, old and new.
    pub path: Vec<NodeId>,
    /// How many of them, counted from the end, are new.
    pub new_nodes: usize,
    /// The name of a partial block that a longer one took the place of; its value is gone from the tree.
    pub replaced: Option<BlockHash>,
}

struct Node<V> {
    hash: BlockHash,
    tokens: Arc<[u32]>,
    parent: Option<NodeId>,
    root: BlockHash,
    children: BTreeMap<Arc<[u32]>, NodeId>,
    value: V,
    pins: u32,
    hits: u64,
    last_access: u64,
    depth_blocks: u32,
}

/// Facts about a node that policies and the governor weigh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// The name of its block.
    pub hash: BlockHash,
    /// Tokens of its block.
    pub tokens: usize,
    /// Blocks above it.
    pub depth_blocks: usize,
    /// Nodes below it that hang on it directly.
    pub children: usize,
    /// Pins on the node itself.
    pub pins: u32,
    /// Lookups that matched it.
    pub hits: u64,
    /// The tree's clock (lookups and insertions) when it was last matched or inserted.
    pub last_access: u64,
    /// The node above.
    pub parent: Option<NodeId>,
}

struct Slot<V> {
    generation: u32,
    node: Option<Node<V>>,
}

/// See the [module's description](self).
///
/// ```
/// use neap_memory::hash::{Fingerprint, Namespace};
/// use neap_memory::prefix::PrefixTree;
/// let tenant = Namespace::new(&[7; 32], "alice", &Fingerprint::of_parts(&[("model", b"tiny")]));
/// let mut tree = PrefixTree::new(4);
/// tree.insert(&tenant, &[1, 2, 3, 4, 5, 6, 7, 8], |block| format!("block {block}"));
/// let found = tree.lookup(&tenant, &[1, 2, 3, 4, 5, 6, 99]);
/// assert_eq!(found.tokens, 6);                       // one whole block, two tokens of the next
/// assert_eq!(tree.get(found.full[0]).unwrap(), "block 0");
/// assert_eq!(tree.get(found.partial.unwrap().node).unwrap(), "block 1");
/// ```
pub struct PrefixTree<V> {
    block_tokens: usize,
    slots: Vec<Slot<V>>,
    free: Vec<u32>,
    by_hash: HashMapByHash<NodeId>,
    /// First blocks, per namespace.
    roots: HashMapByHash<BTreeMap<Arc<[u32]>, NodeId>>,
    clock: u64,
}

impl<V> PrefixTree<V> {
    /// An empty tree over blocks of `block_tokens`.
    ///
    /// # Panics
    /// If that is zero.
    #[must_use]
    pub fn new(block_tokens: usize) -> Self {
        assert!(block_tokens > 0, "a block holds tokens");
        Self {
            block_tokens,
            slots: Vec::new(),
            free: Vec::new(),
            by_hash: HashMapByHash::default(),
            roots: HashMapByHash::default(),
            clock: 0,
        }
    }

    /// Number of nodes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_hash.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_hash.is_empty()
    }

    /// Tokens of a full block.
    #[must_use]
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Bytes of bookkeeping per node, roughly: node, tokens, and entries in two tables.
    #[must_use]
    pub fn node_bytes(&self) -> usize {
        size_of::<Slot<V>>() + self.block_tokens * 4 + 16 + 2 * (32 + size_of::<NodeId>() + 16)
    }

    /// The longest prefix of `tokens` that is held, and counts as a use of every node on it.
    ///
    /// A model needs at least one token to run: look up `&tokens[..tokens.len() - 1]`.
    pub fn lookup(&mut self, namespace: &Namespace, tokens: &[u32]) -> PrefixMatch {
        let found = self.peek(namespace, tokens);
        self.clock += 1;
        let clock = self.clock;
        let partial = found.partial.map(|p| p.node);
        for &id in found.full.iter().chain(&partial) {
            if let Some(node) = self.node_mut(id) {
                node.hits += 1;
                node.last_access = clock;
            }
        }
        found
    }

    /// Like [`lookup`](Self::lookup), without counting as a use.
    #[must_use]
    pub fn peek(&self, namespace: &Namespace, tokens: &[u32]) -> PrefixMatch {
        let mut found = PrefixMatch::default();
        let mut hash = namespace.root();
        let mut rest = tokens;
        while rest.len() >= self.block_tokens {
            let (block, tail) = rest.split_at(self.block_tokens);
            let next = hash.child(block);
            match self.by_hash.get(&next) {
                // The hash settles it; the comparison keeps even a broken hash from serving wrong values.
                Some(&id) if self.node(id).is_some_and(|n| *n.tokens == *block) => {
                    found.full.push(id)
                }
                _ => break,
            }
            hash = next;
            rest = tail;
        }
        found.tokens = tokens.len() - rest.len();
        found.partial = self.longest_common(namespace, found.full.last().copied(), rest);
        found.tokens += found.partial.map_or(0, |p| p.tokens);
        found
    }

    /// The child of `parent` with the longest common start with `tokens`, if there is any.
    fn longest_common(
        &self,
        namespace: &Namespace,
        parent: Option<NodeId>,
        tokens: &[u32],
    ) -> Option<PartialMatch> {
        let children = self.children_of(namespace.root(), parent)?;
        let block = &tokens[..tokens.len().min(self.block_tokens)];
        let below = (Bound::Unbounded, Bound::Included(block));
        let above = (Bound::Excluded(block), Bound::Unbounded);
        let neighbours = [
            children.range::<[u32], _>(below).next_back(),
            children.range::<[u32], _>(above).next(),
        ];
        neighbours
            .into_iter()
            .flatten()
            .map(|(key, &node)| PartialMatch {
                node,
                tokens: common_len(key, block),
            })
            .filter(|m| m.tokens > 0)
            .max_by_key(|m| m.tokens)
    }

    fn children_of(
        &self,
        root: BlockHash,
        parent: Option<NodeId>,
    ) -> Option<&BTreeMap<Arc<[u32]>, NodeId>> {
        match parent {
            Some(id) => self.node(id).map(|n| &n.children),
            None => self.roots.get(&root),
        }
    }

    /// Makes the tree hold all of `tokens`; `value` is asked for the value of each block (by its index in
    /// the sequence) that is not there yet. The last block may be partial.
    ///
    /// A partial leaf that the inserted block continues is replaced, unless it is pinned. A partial block
    /// of which a longer one is held adds nothing: the path then ends with the longer one.
    pub fn insert(
        &mut self,
        namespace: &Namespace,
        tokens: &[u32],
        mut value: impl FnMut(usize) -> V,
    ) -> Insertion {
        self.clock += 1;
        let mut done = Insertion::default();
        let mut hash = namespace.root();
        for (index, block) in tokens.chunks(self.block_tokens).enumerate() {
            let parent = done.path.last().copied();
            hash = hash.child(block);
            if let Some(id) = self.held_as(namespace, parent, hash, block) {
                let clock = self.clock;
                if let Some(node) = self.node_mut(id) {
                    node.last_access = clock;
                }
                done.path.push(id);
                continue;
            }
            done.replaced = done
                .replaced
                .or(self.drop_shorter(namespace, parent, block));
            let id = self.add(namespace, parent, hash, block, value(index));
            done.path.push(id);
            done.new_nodes += 1;
        }
        done
    }

    /// The node that holds `block` below `parent` already: itself, or a longer one if it is partial.
    fn held_as(
        &self,
        namespace: &Namespace,
        parent: Option<NodeId>,
        hash: BlockHash,
        block: &[u32],
    ) -> Option<NodeId> {
        if let Some(&id) = self.by_hash.get(&hash) {
            return Some(id);
        }
        if block.len() == self.block_tokens {
            return None;
        }
        self.longest_common(namespace, parent, block)
            .filter(|m| m.tokens == block.len())
            .map(|m| m.node)
    }

    /// Removes the partial leaf that `block` continues, if there is one and nothing pins it.
    fn drop_shorter(
        &mut self,
        namespace: &Namespace,
        parent: Option<NodeId>,
        block: &[u32],
    ) -> Option<BlockHash> {
        let found = self.longest_common(namespace, parent, block)?;
        let node = self.node(found.node)?;
        if node.tokens.len() != found.tokens || node.pins > 0 {
            return None;
        }
        let hash = node.hash;
        self.evict(found.node).map(|_| hash)
    }

    fn add(
        &mut self,
        namespace: &Namespace,
        parent: Option<NodeId>,
        hash: BlockHash,
        block: &[u32],
        value: V,
    ) -> NodeId {
        let tokens: Arc<[u32]> = block.into();
        let depth_blocks = parent
            .and_then(|p| self.node(p))
            .map_or(0, |p| p.depth_blocks + 1);
        let node = Node {
            hash,
            tokens: Arc::clone(&tokens),
            parent,
            root: namespace.root(),
            children: BTreeMap::new(),
            value,
            pins: 0,
            hits: 0,
            last_access: self.clock,
            depth_blocks,
        };
        let id = self.store(node);
        self.by_hash.insert(hash, id);
        self.siblings_mut(namespace.root(), parent)
            .insert(tokens, id);
        id
    }

    fn store(&mut self, node: Node<V>) -> NodeId {
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            slot.node = Some(node);
            return NodeId {
                index,
                generation: slot.generation,
            };
        }
        let index = u32::try_from(self.slots.len()).expect("fewer than 2^32 blocks fit any memory");
        self.slots.push(Slot {
            generation: 0,
            node: Some(node),
        });
        NodeId {
            index,
            generation: 0,
        }
    }

    fn siblings_mut(
        &mut self,
        root: BlockHash,
        parent: Option<NodeId>,
    ) -> &mut BTreeMap<Arc<[u32]>, NodeId> {
        match parent {
            Some(id) => {
                &mut self.slots[id.index as usize]
                    .node
                    .as_mut()
                    .expect("the parent of a node is held")
                    .children
            }
            None => self.roots.entry(root).or_default(),
        }
    }

    fn node(&self, id: NodeId) -> Option<&Node<V>> {
        let slot = self.slots.get(id.index as usize)?;
        slot.node
            .as_ref()
            .filter(|_| slot.generation == id.generation)
    }

    fn node_mut(&mut self, id: NodeId) -> Option<&mut Node<V>> {
        let slot = self.slots.get_mut(id.index as usize)?;
        slot.node
            .as_mut()
            .filter(|_| slot.generation == id.generation)
    }

    /// The value of a node.
    #[must_use]
    pub fn get(&self, id: NodeId) -> Option<&V> {
        self.node(id).map(|n| &n.value)
    }

    /// The value of a node, to change: the way a block changes its level.
    #[must_use]
    pub fn get_mut(&mut self, id: NodeId) -> Option<&mut V> {
        self.node_mut(id).map(|n| &mut n.value)
    }

    /// The node that holds the block of this name.
    #[must_use]
    pub fn find(&self, hash: &BlockHash) -> Option<NodeId> {
        self.by_hash.get(hash).copied()
    }

    /// The tokens of a node's block.
    #[must_use]
    pub fn tokens(&self, id: NodeId) -> Option<&[u32]> {
        self.node(id).map(|n| &*n.tokens)
    }

    /// What policies weigh.
    #[must_use]
    pub fn info(&self, id: NodeId) -> Option<NodeInfo> {
        self.node(id).map(|node| NodeInfo {
            hash: node.hash,
            tokens: node.tokens.len(),
            depth_blocks: node.depth_blocks as usize,
            children: node.children.len(),
            pins: node.pins,
            hits: node.hits,
            last_access: node.last_access,
            parent: node.parent,
        })
    }

    /// The first child of a node, in the order of tokens; `None` for leaves.
    #[must_use]
    pub fn first_child(&self, id: NodeId) -> Option<NodeId> {
        self.children(id).next()
    }

    /// The children of a node, in the order of tokens.
    pub fn children(&self, id: NodeId) -> impl Iterator<Item = NodeId> {
        let children = self.node(id).map(|node| node.children.values().copied());
        children.into_iter().flatten()
    }

    /// The tree's clock: lookups and insertions so far.
    #[must_use]
    pub fn clock(&self) -> u64 {
        self.clock
    }

    /// Keeps a node, and with it everything above, from eviction until it is unpinned as often. Returns
    /// whether there is such a node.
    pub fn pin(&mut self, id: NodeId) -> bool {
        let Some(node) = self.node_mut(id) else {
            return false;
        };
        node.pins += 1;
        true
    }

    /// Takes one pin off. Returns whether there was one.
    pub fn unpin(&mut self, id: NodeId) -> bool {
        match self.node_mut(id) {
            Some(node) if node.pins > 0 => {
                node.pins -= 1;
                true
            }
            _ => false,
        }
    }

    /// Whether [`evict`](Self::evict) would take the node: a leaf that nothing pins.
    #[must_use]
    pub fn is_evictable(&self, id: NodeId) -> bool {
        self.node(id)
            .is_some_and(|n| n.children.is_empty() && n.pins == 0)
    }

    /// Removes an unpinned leaf and returns its value; `None` (and no change) for anything else.
    pub fn evict(&mut self, id: NodeId) -> Option<V> {
        if !self.is_evictable(id) {
            return None;
        }
        let slot = &mut self.slots[id.index as usize];
        let node = slot.node.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.index);
        self.by_hash.remove(&node.hash);
        self.siblings_mut(node.root, node.parent)
            .remove(&node.tokens);
        if node.parent.is_none() && self.roots.get(&node.root).is_some_and(BTreeMap::is_empty) {
            self.roots.remove(&node.root);
        }
        Some(node.value)
    }

    /// All nodes, in no particular order.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            slot.node.as_ref()?;
            Some(NodeId {
                index: u32::try_from(index).ok()?,
                generation: slot.generation,
            })
        })
    }

    /// Places for nodes, of which some may be empty.
    #[must_use]
    pub fn len_places(&self) -> usize {
        self.slots.len()
    }

    /// The nodes in `places` places from `first` on, going on from the start at the end: for samples.
    pub fn nodes_from(&self, first: usize, places: usize) -> impl Iterator<Item = NodeId> + '_ {
        let end = self.slots.len();
        (first..first + places.min(end)).filter_map(move |place| {
            let index = place % end;
            let slot = &self.slots[index];
            slot.node.as_ref()?;
            Some(NodeId {
                index: u32::try_from(index).ok()?,
                generation: slot.generation,
            })
        })
    }

    /// Checks the tree's laws: every node is listed once by hash and once under its parent, hashes chain,
    /// and only full blocks have children.
    ///
    /// # Errors
    /// A description of the first law that is broken.
    pub fn check_conservation(&self) -> Result<(), String> {
        let mut listed = 0;
        for children in self.roots.values() {
            listed += children.len();
        }
        for id in self.nodes() {
            let node = self.node(id).ok_or("a listed node is missing")?;
            self.check_node(id, node)
                .map_err(|e| format!("{:?}: {e}", node.hash))?;
            listed += node.children.len();
        }
        let held = self.slots.iter().filter(|s| s.node.is_some()).count();
        if held != self.by_hash.len()
            || held != listed
            || held + self.free.len() != self.slots.len()
        {
            return Err(format!(
                "{held} nodes, {} by hash, {listed} below parents, {} free of {}",
                self.by_hash.len(),
                self.free.len(),
                self.slots.len()
            ));
        }
        Ok(())
    }

    fn check_node(&self, id: NodeId, node: &Node<V>) -> Result<(), String> {
        if self.by_hash.get(&node.hash) != Some(&id) {
            return Err("not found by its hash".into());
        }
        let siblings = self
            .children_of(node.root, node.parent)
            .ok_or("its parent is missing")?;
        if siblings.get(&node.tokens) != Some(&id) {
            return Err("not found below its parent".into());
        }
        let above = match node.parent {
            None => node.root,
            Some(parent) => self.node(parent).ok_or("its parent is missing")?.hash,
        };
        if above.child(&node.tokens) != node.hash {
            return Err("its hash does not chain".into());
        }
        if node.tokens.is_empty() || node.tokens.len() > self.block_tokens {
            return Err(format!("it has {} tokens", node.tokens.len()));
        }
        if !node.children.is_empty() && node.tokens.len() < self.block_tokens {
            return Err("a partial block has children".into());
        }
        Ok(())
    }
}

fn common_len(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
