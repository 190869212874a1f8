//! How many blocks are held at which level, for those who look.

use super::{Held, KvCache};
use crate::level::Level;
use crate::prefix::NodeId;

/// Cached blocks of one level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Blocks held at this level.
    pub blocks: u64,
    /// Of these, used by running sequences at this moment.
    pub in_use_blocks: u64,
    /// Bytes of RAM that they are charged.
    pub charged_bytes: u64,
}

impl KvCache {
    /// Counts the blocks by level, in the order of [`Level::ALL`]. A block of which only the name is kept counts
    /// nowhere.
    #[must_use]
    pub fn census(&self) -> [Census; Level::ALL.len()] {
        let mut census = [Census::default(); Level::ALL.len()];
        for node in self.tree.nodes() {
            let Some(entry) = self.tree.get(node) else {
                continue;
            };
            let (level, in_use, bytes) = match &entry.held {
                Held::Ram(block) => (block.level(), block.is_shared(), block.charged_bytes()),
                Held::Disk => (Level::Disk, false, 0),
                Held::Gone => continue,
            };
            let at = &mut census[level as usize];
            at.blocks += 1;
            at.in_use_blocks += u64::from(in_use);
            at.charged_bytes += bytes;
        }
        census
    }

    /// Blocks said to be on disk alone whose record is not there any more: it went with its segment, or was found
    /// damaged. They cost a recomputation.
    #[must_use]
    pub fn missing_records(&self) -> usize {
        let is_missing = |&node: &NodeId| self.has_lost_record(node);
        self.tree.nodes().filter(is_missing).count()
    }

    /// Whether a block is said to be on disk alone, and its record is not there any more.
    pub(super) fn has_lost_record(&self, node: NodeId) -> bool {
        let held = self.tree.get(node).map(|entry| &entry.held);
        matches!(held, Some(Held::Disk)) && !self.is_stored(node)
    }
}
