//! Prompts whose prefix comes from both ends: computed from the first token on, loaded from the last; and blocks that
//! are brought up ahead of need.

use neap_memory::costs::LinearCost;

use super::decoder::{compute, reads_right};
use super::{BLOCK_BYTES, TALKS, World, quality_of};
use neap_memory::BlockTable;

/// Microseconds per stored byte: a computed block's bytes cost about 5 each.
const READ_COSTS_US: [f64; 4] = [0.002, 1.0, 5.0, 50.0];

impl World {
    /// Attaches what is known of the first `known` of `tokens`, loading its end where that is told to be slow, while
    /// faults go on. Returns how many tokens were found; `None` if the prompt was cancelled or found no room.
    pub(super) fn attach_or_load(
        &mut self,
        (talk, tokens, known): (u64, &[u32], usize),
        table: &mut BlockTable,
    ) -> Result<Option<usize>, String> {
        let namespace = self.namespace(talk);
        let cost =
            |world: &mut Self| LinearCost::guess(READ_COSTS_US[world.random.below(4) as usize]);
        let (disk_read, remote_read) = (cost(self), cost(self));
        let costs = self.cache.costs_mut();
        (costs.disk_read, costs.remote_read) = (disk_read, remote_read);
        // As the engine does: what is not slow is read before.
        if !self
            .cache
            .would_meet(&namespace, &tokens[..known], self.now_ms)
        {
            self.cache
                .adopt_remote(&namespace, &tokens[..known], self.now_ms);
        }
        let begun = self
            .cache
            .attach_or_load(&namespace, &tokens[..known], table, self.now_ms);
        let at_hand = table.len_tokens();
        let mut found = at_hand;
        let mut coming = begun;
        while let Some(mut incoming) = coming.take() {
            if self.random.one_in(8) {
                self.disturb();
            }
            if self.random.one_in(25) {
                return Ok(None);
            }
            let (before, most_blocks) = (table.len_tokens(), self.random.below(5) as usize);
            let goes_on = self
                .cache
                .attach_incoming(&mut incoming, table, most_blocks);
            found += table.len_tokens() - before;
            if !reads_right(table, &tokens[..table.len_tokens()], quality_of(talk)) {
                return Err(format!("wrong keys or values were loaded of talk {talk}"));
            }
            if goes_on {
                let end = self.cache.meeting_tokens(&incoming, table.len_tokens());
                let Some(end) = end.filter(|&end| end > table.len_tokens() && end <= known) else {
                    return Err(format!(
                        "{end:?} of {known} tokens are to be computed first"
                    ));
                };
                let end = if self.random.one_in(6) {
                    table.len_tokens() + 1
                } else {
                    end
                };
                if self.reserve(table, end - table.len_tokens()) {
                    compute(table, &tokens[..end], quality_of(talk));
                    coming = Some(incoming);
                }
            }
        }
        self.report.loaded_tokens += (found - at_hand) as u64;
        Ok(Some(found))
    }

    /// A fault, or a budget that changes, in the middle of a prompt.
    fn disturb(&mut self) {
        if self.random.one_in(2) {
            self.inject();
        } else {
            let blocks = 10 + self.random.below(240);
            self.budget.set_limit(blocks * BLOCK_BYTES as u64);
            let _ = self.cache.shrink(self.now_ms);
        }
    }

    /// Blocks of a conversation that waits are brought up, a few at a time.
    pub(super) fn promote(&mut self) -> Result<(), String> {
        let talk = self.random.below(TALKS);
        let (namespace, tokens) = (self.namespace(talk), self.talks[talk as usize].clone());
        // Often there is room: memory was given back.
        if self.random.one_in(2) {
            self.budget.set_limit(300 * BLOCK_BYTES as u64);
        }
        self.cache.costs_mut().disk_read = LinearCost::guess(READ_COSTS_US[0]);
        let keep_free = self.random.below(8) * BLOCK_BYTES as u64;
        while self.cache.promote(&namespace, &tokens, keep_free) {}
        let mut table = BlockTable::new(&self.pool);
        let cached = self
            .cache
            .attach(&namespace, &tokens, &mut table, self.now_ms);
        if !reads_right(&table, &tokens[..cached], quality_of(talk)) {
            return Err(format!(
                "wrong keys or values of talk {talk} were brought up"
            ));
        }
        Ok(())
    }
}
