//! Attention over blocks of keys and values.
//!
//! One pass with an online softmax (Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022), a block of
//! [`BLOCK_TOKENS`] tokens at a time. One read of a KV head's keys and values serves all query heads of its group.
//!
//! **The result of a row depends on its query, its keys and values, and its position alone**, bit for bit: not on the
//! other rows of the step, on how a prompt was cut into chunks, on threads or instruction sets. Every row goes through
//! the same operations whichever way work is divided:
//!
//! * a score is one chain of fused multiply-adds over `head_dim`, lanes being tokens;
//! * a block's probabilities are relative to a running reference, which is raised to the block's maximum only if that
//!   is much higher; the values are added in the order of tokens, lanes being dimensions;
//! * every [`SPLIT_TOKENS`] tokens of context a new running state is begun, and the states are merged from the first to
//!   the last. The boundaries are fixed positions, so they may be computed by different threads, or not.
//!
//! Tokens that a row must not see have probability zero, and a chain that adds zeros stays as it is.

pub mod bench;
mod codes;
mod micro;
mod plan;
#[cfg(test)]
mod reference;
mod source;
mod state;
mod task;
#[cfg(test)]
mod tests;

use crate::Context;
use crate::kv::{BLOCK_TOKENS, KvBlock, KvLayout};
use crate::ops::SharedSlice;
use crate::ops::lanes::{LANES, dispatch, drive};
use crate::pool::WorkerPanic;
use plan::Plan;
use state::Merge;
use task::RunTask;

/// Tokens of context after which a new running state is begun.
pub const SPLIT_TOKENS: usize = 1024;

/// What attention is computed like: the same for all sequences of a layer.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape<'a> {
    /// The layer whose keys and values are read.
    pub layer: usize,
    /// Query heads: a multiple of the KV heads, each of which serves as many neighbouring ones.
    pub heads: usize,
    /// What scores are multiplied with, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// A row sees only this many newest tokens, itself included.
    pub window: Option<usize>,
    /// Scores become `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// For each query head a score that takes part in the softmax but has no value (an attention sink).
    pub sinks: Option<&'a [f32]>,
}

/// A sequence's blocks and new rows.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSequence<'a> {
    /// The blocks from position 0 on, at least up to the last row's position; the rows' own keys and values are in
    /// them already. Blocks before a window may be empty slices, and no block need reach beyond the layer.
    pub blocks: &'a [KvBlock<'a>],
    /// Query rows of this sequence.
    pub rows: usize,
    /// The position of the first row; row i sees the tokens at positions 0 to `first_position + i`.
    pub first_position: usize,
}

/// Working memory of [`attention`], kept from call to call.
#[derive(Default)]
pub struct AttentionScratch {
    lines: Vec<Line>,
    plan: Plan,
}

/// A cache line of numbers: one vector, aligned.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line([f32; LANES]);

impl AttentionScratch {
    /// Nothing allocated yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes that a call needs at most with so many `rows` (of all its sequences together), positions below
    /// `max_context`, and `threads`. Never less for more of anything, so the largest call decides.
    pub fn bytes_needed(
        layout: &KvLayout,
        heads: usize,
        rows: usize,
        max_context: usize,
        threads: usize,
    ) -> usize {
        plan::bytes_needed(layout, heads, rows, max_context, threads)
    }

    /// Bytes held now.
    pub fn bytes(&self) -> usize {
        self.lines.capacity() * size_of::<Line>() + self.plan.bytes()
    }
}

/// Attention of all rows of all sequences in one layer.
///
/// `q` and `out` are `[rows of all sequences, heads, head_dim]`, rows in the order of `sequences`.
///
/// # Errors
/// If a worker panicked; `out` is then unspecified.
///
/// # Panics
/// If `heads` is not a multiple of the layout's KV heads, a slice has not the length stated, a sequence has too few
/// blocks, or a block that is read ends before the layer does.
pub fn attention(
    ctx: Context<'_>,
    layout: &KvLayout,
    shape: &AttentionShape<'_>,
    sequences: &[AttentionSequence<'_>],
    q: &[f32],
    out: &mut [f32],
    scratch: &mut AttentionScratch,
) -> Result<(), WorkerPanic> {
    check(layout, shape, sequences, q.len(), out.len());
    let AttentionScratch { lines, plan } = scratch;
    plan.make(layout, shape, sequences, ctx.pool.threads());
    let needed = plan.lines_per_worker * ctx.pool.threads() + plan.partial_lines;
    if lines.len() < needed {
        lines.reserve_exact(needed - lines.len());
        lines.resize(needed, Line([0.0; LANES]));
    }
    let (partials, workers) = lines.split_at_mut(plan.partial_lines);
    let (out, workers) = (SharedSlice::new(out), SharedSlice::new(workers));
    {
        let partials = SharedSlice::new(partials);
        ctx.pool.run(plan.tasks.len(), &|task, worker| {
            let own = worker * plan.lines_per_worker;
            // SAFETY: each worker has a part of its own.
            let lines = unsafe { workers.part(own..own + plan.lines_per_worker) };
            let task = &plan.tasks[task];
            let sequence = &sequences[task.sequence];
            let (out, partials) = (&out, &partials);
            drive(
                ctx.isa,
                RunTask {
                    layout,
                    shape,
                    sequence,
                    task,
                    q,
                    out,
                    lines,
                    partials,
                },
            );
        })?;
    }
    let partials = &*partials;
    let merge = |task: usize| {
        dispatch(
            ctx.isa,
            Merge {
                layout,
                shape,
                merge: &plan.merges[task],
                partials,
                out: &out,
            },
        );
    };
    if plan.merges.len() < 2 {
        (0..plan.merges.len()).for_each(merge);
        return Ok(());
    }
    ctx.pool.run(plan.merges.len(), &|task, _| merge(task))
}

fn check(
    layout: &KvLayout,
    shape: &AttentionShape<'_>,
    sequences: &[AttentionSequence<'_>],
    q_len: usize,
    out_len: usize,
) {
    assert!(
        shape.heads > 0 && shape.heads.is_multiple_of(layout.kv_heads()),
        "query heads"
    );
    assert!(
        shape.layer < layout.layers(),
        "layer {} of {}",
        shape.layer,
        layout.layers()
    );
    assert!(
        shape.sinks.is_none_or(|sinks| sinks.len() == shape.heads),
        "a sink for every head"
    );
    let rows: usize = sequences.iter().map(|sequence| sequence.rows).sum();
    assert_eq!(
        q_len,
        rows * shape.heads * layout.head_dim(),
        "the length of q"
    );
    assert_eq!(out_len, q_len, "the length of out");
    for sequence in sequences.iter().filter(|sequence| sequence.rows > 0) {
        let context = sequence.first_position + sequence.rows;
        assert!(
            sequence.blocks.len() >= context.div_ceil(BLOCK_TOKENS),
            "blocks for {context} tokens"
        );
        let first_seen = plan::first_seen(shape.window, sequence.first_position) / BLOCK_TOKENS;
        for block in &sequence.blocks[first_seen..context.div_ceil(BLOCK_TOKENS)] {
            let end = layout.layer_range(block.format, shape.layer).end;
            assert!(block.bytes.len() >= end, "a block's bytes");
        }
    }
}
