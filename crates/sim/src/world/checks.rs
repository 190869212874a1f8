//! The laws that are checked after every step.

use neap_memory::{Block, Level};

use super::decoder::reads_right;
use super::{World, quality_of};

impl World {
    /// Every law that holds between steps.
    pub(super) fn check(&self) -> Result<(), String> {
        self.cache.check_conservation()?;
        if let Some(running) = &self.running
            && !reads_right(&running.table, &running.tokens, quality_of(running.talk))
        {
            return Err("a running sequence's blocks changed under it".into());
        }
        self.check_claims()
    }

    /// Every block is claimed by the cache or by the running sequence: nobody else is there between steps.
    fn check_claims(&self) -> Result<(), String> {
        let cached: u64 = Level::ALL
            .iter()
            .zip(self.cache.census())
            .filter(|(level, _)| level.is_in_ram())
            .map(|(_, census)| census.blocks)
            .sum();
        let own = |block: &&Block| !block.is_shared();
        let running = self.running.as_ref();
        let running = running.map_or(0, |r| r.table.blocks().iter().filter(own).count());
        let held = self.pool.stats().held_blocks;
        if held != cached as usize + running {
            return Err(format!(
                "{held} blocks are held, {cached} by the cache and {running} by a sequence alone"
            ));
        }
        Ok(())
    }

    /// Starts, records that the disk level lost, and cached blocks that are nowhere for want of a record.
    pub(super) fn lost_records(&self) -> (u64, u64, usize) {
        let disk = self.disk.stats();
        let lost = disk.evicted + disk.damaged + disk.unsynced;
        (self.report.restarts, lost, self.cache.missing_records())
    }

    /// Where the disk level lost no record, no block was let go of that has none.
    pub(super) fn check_records(&self, before: (u64, u64, usize)) -> Result<(), String> {
        let after = self.lost_records();
        if (after.0, after.1) == (before.0, before.1) && after.2 > before.2 {
            return Err(format!(
                "{} blocks were let go of without a record on disk",
                after.2 - before.2
            ));
        }
        Ok(())
    }
}
