//! Attention over the sequences' blocks.

use std::ops::Range;

use neap_kernels::WorkerPanic;
use neap_kernels::attention::{self, AttentionSequence, AttentionShape};
use neap_kernels::kv::KvBlock;

use super::SequenceChunk;
use super::cpu::Pass;
use super::levels::format_of;

/// The blocks of a chunk, its new tokens' among them.
fn blocks_of<'a>(chunk: &'a SequenceChunk<'_>) -> Vec<KvBlock<'a>> {
    let tokens = chunk.table.len_tokens() + chunk.tokens.len();
    let used = tokens.div_ceil(chunk.table.block_tokens());
    let block = |index| {
        let view = chunk.table.view(index);
        KvBlock {
            format: format_of(view.level),
            bytes: view.bytes,
        }
    };
    (0..used).map(block).collect()
}

impl Pass<'_> {
    /// attended = softmax(q · K) · V over each sequence's blocks.
    pub(super) fn attend(
        &mut self,
        layer: usize,
        batch: &[SequenceChunk<'_>],
    ) -> Result<(), WorkerPanic> {
        let config = self.model.config();
        let blocks: Vec<Vec<KvBlock<'_>>> = batch.iter().map(blocks_of).collect();
        let window = config.window(layer);
        if !config.causal {
            return self.attend_both_ways(layer, batch, &blocks);
        }
        let chunks = batch.iter().zip(&blocks);
        let sequences: Vec<AttentionSequence<'_>> = chunks
            .map(|(chunk, blocks)| AttentionSequence {
                blocks,
                rows: chunk.tokens.len(),
                first_position: chunk.table.len_tokens(),
            })
            .collect();
        self.attend_rows(layer, window, &sequences, 0..self.s.rows)
    }

    /// Every row sees the tokens to both sides of it: all, or those in the window.
    fn attend_both_ways(
        &mut self,
        layer: usize,
        batch: &[SequenceChunk<'_>],
        blocks: &[Vec<KvBlock<'_>>],
    ) -> Result<(), WorkerPanic> {
        let side = self.model.config().window(layer);
        let mut first = 0;
        for (chunk, blocks) in batch.iter().zip(blocks) {
            let (before, n) = (chunk.table.len_tokens(), chunk.tokens.len());
            let tokens = before + n;
            let row = |last: usize| AttentionSequence {
                blocks,
                rows: 1,
                first_position: last,
            };
            let rows = first..first + n;
            first += n;
            let Some(side) = side.filter(|&side| tokens > side + 1) else {
                let all: Vec<_> = rows.clone().map(|_| row(tokens - 1)).collect();
                self.attend_rows(layer, None, &all, rows)?;
                continue;
            };
            // Rows whose window ends within the text, then those near its end, whose windows are cut off there.
            let whole = (tokens - side).saturating_sub(before);
            let sequences: Vec<_> = (before..before + whole).map(|at| row(at + side)).collect();
            let split = rows.start + whole;
            self.attend_rows(layer, Some(2 * side + 1), &sequences, rows.start..split)?;
            for (at, index) in (before + whole..tokens).zip(split..) {
                let width = tokens - at.saturating_sub(side);
                self.attend_rows(layer, Some(width), &[row(tokens - 1)], index..index + 1)?;
            }
        }
        Ok(())
    }

    /// Those of `rows`, which are the sequences'.
    fn attend_rows(
        &mut self,
        layer: usize,
        window: Option<usize>,
        sequences: &[AttentionSequence<'_>],
        rows: Range<usize>,
    ) -> Result<(), WorkerPanic> {
        let config = self.model.config();
        let shape = AttentionShape {
            layer: self.model.kv_place(layer),
            heads: config.heads,
            scale: config.attention_scale,
            window,
            softcap: config.attention_cap,
            sinks: None,
        };
        let values = rows.start * config.q_size()..rows.end * config.q_size();
        let (q, out) = (&self.s.q[values.clone()], &mut self.s.attended[values]);
        let layout = self.model.kv_layout();
        let scratch = &mut self.s.attention;
        attention::attention(self.context, &layout, &shape, sequences, q, out, scratch)
    }
}
