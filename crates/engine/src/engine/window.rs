//! Blocks behind a sliding window: what running sequences give before anything else is given up for them.

use neap_memory::cache::{SLACK_TOKENS, Trim};
use neap_memory::table::RECENT_TOKENS;
use neap_memory::{BlockTable, KvQuality};
use neap_model::decoder::Decoder;

use super::Engine;

/// Blocks of one age, and what each takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Age {
    /// How many are of this age at most.
    blocks: u64,
    block_bytes: u64,
}

impl<D: Decoder> Engine<D> {
    /// Where less is free than `wanted_bytes`, or the budget shrank, trims what is behind the windows of those that run:
    /// first where nothing ever branched off, which loses next to nothing; and where what no table uses is not enough
    /// either, everywhere, before old blocks sink and sequences are preempted.
    pub(super) fn trim(&mut self, wanted_bytes: u64) {
        if self.kv.window().is_none() {
            return;
        }
        let available = self.budget.available();
        let missing = self.budget.excess() + wanted_bytes.saturating_sub(available);
        let mut tables: Vec<&mut BlockTable> =
            self.running.iter_mut().map(|s| &mut s.table).collect();
        let freed = self
            .cache
            .trim_running(missing, Trim::Unbranched, &mut tables);
        let missing = missing.saturating_sub(freed);
        let missing = missing.saturating_sub(self.cache.freeable_bytes_up_to(missing));
        self.cache.trim_running(missing, Trim::All, &mut tables);
    }

    /// Newest tokens of a sequence whose blocks stay as they are written.
    pub(super) fn recent_tokens(&self) -> usize {
        self.whole_tokens().unwrap_or(0).max(RECENT_TOKENS)
    }

    /// Newest tokens whose blocks stay whole, where there is a window.
    fn whole_tokens(&self) -> Option<usize> {
        let window = self.kv.window()?;
        Some(window.tokens.saturating_add(SLACK_TOKENS))
    }

    /// What the blocks of a sequence take where room is short, from the newest on: new ones are as they are written, older
    /// ones sink as far as `quality` allows, and behind the window they are trimmed.
    pub(super) fn ages(&self, quality: KvQuality) -> [Age; 3] {
        let (level, block_tokens) = (quality.lowest(false), self.kv.block_tokens());
        // What a step writes is there besides.
        let blocks = |tokens: usize| {
            let tokens = tokens.saturating_add(self.config.batch_tokens);
            (tokens.div_ceil(block_tokens) + 2) as u64
        };
        let new = blocks(RECENT_TOKENS);
        let whole = self.whole_tokens().map_or(u64::MAX, blocks);
        [
            (new, self.kv.charged_block_bytes()),
            (
                whole.saturating_sub(new),
                self.cache.charged_bytes_at(level),
            ),
            (u64::MAX, self.cache.charged_head_bytes_at(level)),
        ]
        .map(|(blocks, block_bytes)| Age {
            blocks,
            block_bytes,
        })
    }
}

/// Bytes of so many blocks.
pub(super) fn bytes_of(blocks: u64, ages: &[Age]) -> u64 {
    let mut left = blocks;
    let bytes = ages.iter().map(|age| {
        let blocks = left.min(age.blocks);
        left -= blocks;
        blocks * age.block_bytes
    });
    bytes.sum()
}

/// The most blocks that find room in so many bytes.
pub(super) fn blocks_in(bytes: u64, ages: &[Age]) -> u64 {
    let (mut left, mut sum) = (bytes, 0);
    for age in ages {
        let blocks = (left / age.block_bytes).min(age.blocks);
        left -= blocks * age.block_bytes;
        sum += blocks;
        if blocks < age.blocks {
            break;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_blocks_fit_as_their_ages_take() {
        let ages = [(3, 10), (2, 5), (u64::MAX, 2)].map(|(blocks, block_bytes)| Age {
            blocks,
            block_bytes,
        });
        for blocks in 0..20 {
            let bytes = bytes_of(blocks, &ages);
            assert_eq!(blocks_in(bytes, &ages), blocks);
            assert!(blocks == 0 || blocks_in(bytes - 1, &ages) == blocks - 1);
        }
        assert_eq!(bytes_of(7, &ages), 30 + 10 + 4);
    }
}
