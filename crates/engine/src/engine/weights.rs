//! Weights as memory: they give way before a request fails, and come back when there is room.

use neap_model::decoder::Decoder;

use super::Engine;

/// Time after weights were let go of in which none are taken back: reading and repacking them costs more than a few
/// steps gain.
const PATIENCE_MS: u64 = 3000;

/// Blocks that weights make room for at a time, so that this does not happen for each block.
const BLOCKS_AT_A_TIME: u64 = 16;

impl<D: Decoder> Engine<D> {
    /// Lets weights go for what a shrink asks beyond all blocks but those of the first sequence. Takes some back
    /// when there is room beside the `wanted_bytes` of blocks and an eighth of the budget.
    pub(super) fn balance_weights(&mut self, wanted_bytes: u64) {
        let excess = match self.budget.excess() {
            0 => 0,
            excess => {
                self.release_adapters(excess);
                self.budget.excess()
            }
        };
        if excess > 0 {
            let blocks_bytes: u64 = self
                .running
                .iter()
                .skip(1)
                .map(|s| s.running_candidate(&self.cache).freeable_bytes)
                .sum();
            let missing = excess.saturating_sub(blocks_bytes);
            if missing > 0 {
                self.release_weights(missing);
            }
        } else if self
            .weights_released_ms
            .is_none_or(|released| self.now_ms >= released + PATIENCE_MS)
        {
            let kept_free = wanted_bytes + self.budget.limit() / 8;
            let spare_bytes = self.budget.available().saturating_sub(kept_free);
            if let Err(why) = self.decoder.take_weights_back(spare_bytes) {
                tracing::error!(%why, "weights could not be taken back");
            }
        }
    }

    /// For a sequence that would otherwise end for want of room, though it is alone. Whether there is room now.
    pub(super) fn release_weights_for_blocks(&mut self) -> bool {
        let block_bytes = self.kv.charged_block_bytes();
        self.release_weights(self.budget.excess() + BLOCKS_AT_A_TIME * block_bytes);
        self.budget.available() >= block_bytes
    }

    /// Lets go of adapters that nothing uses, then of weights, until `bytes` are free.
    pub(super) fn release_weights(&mut self, bytes: u64) {
        let freed = self.release_adapters(bytes);
        if freed >= bytes {
            return;
        }
        let freed = self.decoder.release_weights(bytes - freed);
        if freed > 0 {
            self.weights_released_ms = Some(self.now_ms);
            tracing::info!(
                wanted = bytes,
                freed,
                "weights give way: they are read from the file at each use"
            );
        }
    }
}
