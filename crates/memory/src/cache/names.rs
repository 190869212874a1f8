//! What names of blocks take: the nodes of the tree, what the policy knows of blocks, and the disk level's index. They are
//! small beside blocks and many: a name is kept as long as there is a record on disk for it, also when the block is not in
//! RAM. So they are charged like everything else, and those that lead nowhere are removed little by little.
//!
//! Names cannot be refused as blocks can: a sequence that has its blocks has their names. Where there is no room for
//! their charge, cached blocks are let go of for it, and where there are none it is made up for later. Nor may they
//! starve blocks: what is over an eighth of the budget, as the index of a disk level a thousand times as large is, is
//! not charged.

use super::{Held, KvCache};
use crate::governor::Occasion;
use crate::prefix::NodeId;

/// Names are charged in steps of so many bytes.
const STEP_BYTES: u64 = 64 << 10;
/// What is less than this is part of what a process takes anyway.
const FREE_BYTES: u64 = 512 << 10;
/// Share of the budget that names of blocks which are not in RAM may take before they are removed: those on disk are found
/// again by their records, as far as they are full.
const MOST_SHARE: u64 = 32;
/// Share of the budget that is charged for names at most.
const CHARGED_SHARE: u64 = 8;
/// Names looked at for each that comes: more go than come, where there are any to go.
const SWEPT_EACH: usize = 2;
/// Share of the budget for what the policy remembers of blocks that are not held.
const REMEMBERED_SHARE: u64 = 128;

/// Which names are removed, besides those that lead nowhere.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sweep {
    Dead,
    AlsoOnDisk,
}

impl KvCache {
    /// Bytes that names take, roughly.
    #[must_use]
    pub fn names_bytes(&self) -> u64 {
        let by_id = self.nodes.len() * 2 * size_of::<(u64, NodeId)>();
        let tree = self.tree.len() * self.tree.node_bytes();
        let disk = self.options.disk.as_ref().map_or(0, |d| d.index_bytes());
        (tree + by_id + self.policy.bytes() + disk) as u64
    }

    /// Removes some names that lead nowhere, and charges what `new` ones will take.
    pub(super) fn pay_for_names(&mut self, new: usize, now_ms: u64) {
        self.sweep(SWEPT_EACH * new, Sweep::Dead);
        let limit = self.pool.budget().limit();
        let remembered = usize::try_from(limit / REMEMBERED_SHARE).unwrap_or(usize::MAX);
        self.policy.remember_within(remembered, now_ms);
        // What a sweep can remove: else one that removes nothing would be made for each name that comes.
        let not_in_ram = (self.tree.len() - self.nodes.len()) * self.tree.node_bytes();
        if (not_in_ram as u64).saturating_sub(FREE_BYTES) > limit / MOST_SHARE {
            self.sweep(self.tree.len_places(), Sweep::AlsoOnDisk);
        }
        if !self.charge_names(new) {
            self.free(STEP_BYTES, Occasion::Admission, now_ms);
            self.charge_names(new);
        }
    }

    /// Whether the charge covers the names there are, and `new` ones.
    fn charge_names(&mut self, new: usize) -> bool {
        let bytes = self.names_bytes() + (new * self.tree.node_bytes()) as u64;
        let most = self.pool.budget().limit() / CHARGED_SHARE / STEP_BYTES * STEP_BYTES;
        let needed = bytes.saturating_sub(FREE_BYTES);
        let needed = needed.next_multiple_of(STEP_BYTES).min(most);
        let charged = self.names.bytes();
        // A step is not given back and taken again by turns.
        (needed..=needed + STEP_BYTES).contains(&charged) || self.names.resize(needed).is_ok()
    }

    /// Looks at `places` of the tree, from where the last sweep ended.
    fn sweep(&mut self, places: usize, which: Sweep) {
        let all = self.tree.len_places();
        if all == 0 {
            return;
        }
        let places = places.min(all);
        let nodes: Vec<NodeId> = self.tree.nodes_from(self.hand % all, places).collect();
        self.hand = (self.hand + places) % all;
        for node in nodes {
            let held = self.tree.get(node).map(|entry| &entry.held);
            let is_on_disk = matches!(held, Some(Held::Disk)) && which == Sweep::AlsoOnDisk;
            if is_on_disk || self.is_dead(node) {
                self.prune(node);
            }
        }
    }

    fn is_dead(&self, node: NodeId) -> bool {
        let held = self.tree.get(node).map(|entry| &entry.held);
        matches!(held, Some(Held::Gone)) || self.has_lost_record(node)
    }

    /// Removes all names that lead nowhere.
    #[cfg(test)]
    pub(super) fn sweep_all(&mut self) {
        self.sweep(self.tree.len_places(), Sweep::Dead);
    }

    /// Removes a name that nothing hangs on, and those above that only it hung on and that lead nowhere.
    pub(super) fn prune(&mut self, node: NodeId) {
        let mut last = Some(node);
        while let Some(node) = last {
            let parent = self.tree.info(node).and_then(|info| info.parent);
            if self.tree.evict(node).is_none() {
                return;
            }
            last = parent.filter(|&parent| self.is_dead(parent));
        }
    }
}
