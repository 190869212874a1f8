//! What adapters add to products: `s · B (A x)`, for the rows of the sequences that each is chosen for.
//!
//! The thin products are those of float weights, one chain of additions for each value, so a row's result does not
//! depend on how many rows there are, nor on their adapters.

use std::ops::Range;

use neap_kernels::matmul::{self, MatmulJob, MatmulScratch};
use neap_kernels::{Context, WorkerPanic, ops};
use neap_memory::{Budget, Buffer, ChargeKind, OverBudget};

use super::SequenceChunk;
use crate::adapter::{Adapter, MAX_RANK};
use crate::config::ModelConfig;
use crate::source::TensorName;

/// Rows that go through an adapter at once.
const TILE_ROWS: usize = 64;

/// Rows, one after another, of one adapter.
pub(super) struct AdapterRun<'a> {
    adapter: &'a Adapter,
    rows: Range<usize>,
}

/// Rows of chunks, of which each has so many, that go through adapters: as few runs as their order allows.
pub(super) fn runs<'a>(
    batch: &[SequenceChunk<'a>],
    rows_of: impl Fn(&SequenceChunk<'a>) -> usize,
) -> Vec<AdapterRun<'a>> {
    let mut runs: Vec<AdapterRun<'a>> = Vec::new();
    let mut first = 0;
    for chunk in batch {
        let rows = first..first + rows_of(chunk);
        first = rows.end;
        let Some(adapter) = chunk.adapter.filter(|_| !rows.is_empty()) else {
            continue;
        };
        match runs.last_mut() {
            Some(last) if last.rows.end == rows.start && std::ptr::eq(last.adapter, adapter) => {
                last.rows.end = rows.end;
            }
            _ => runs.push(AdapterRun { adapter, rows }),
        }
    }
    runs
}

/// Working memory.
pub(super) struct AdaptScratch {
    /// `A x` of a tile.
    inner: Buffer<f32>,
    /// `B (A x)` of a tile, or of as many of its rows as it holds.
    outer: Buffer<f32>,
}

impl AdaptScratch {
    pub fn new(config: &ModelConfig, rows: usize, budget: &Budget) -> Result<Self, OverBudget> {
        let [inner, outer] = Self::lengths(config, rows);
        Ok(Self {
            inner: Buffer::zeroed(budget, ChargeKind::Scratch, inner)?,
            outer: Buffer::zeroed(budget, ChargeKind::Scratch, outer)?,
        })
    }

    /// Values of the two buffers, for steps of up to `rows` rows.
    pub fn lengths(config: &ModelConfig, rows: usize) -> [usize; 2] {
        let tile = rows.min(TILE_ROWS);
        let width = config.hidden_size.max(config.ffn_size).max(config.q_size());
        let logits = if config.has_output {
            config.vocab_size
        } else {
            0
        };
        [tile * MAX_RANK, (tile * width).max(logits)]
    }

    /// Bytes of [`MatmulScratch`] that the thin products need.
    pub fn matmul_bytes(rows: usize, threads: usize) -> usize {
        MatmulScratch::bytes_needed(rows.min(TILE_ROWS), MAX_RANK, threads)
    }
}

/// A product that adapters may add to.
pub(super) struct Product<'a> {
    /// Its matrix.
    pub name: TensorName,
    /// `[n, cols]`.
    pub x: &'a [f32],
    /// `[n, rows]`.
    pub out: &'a mut [f32],
}

/// `out += s · B (A x)` for the rows of each run whose adapter stands beside the product's matrix.
pub(super) fn add(
    context: Context<'_>,
    runs: &[AdapterRun<'_>],
    (scratch, matmul): (&mut AdaptScratch, &mut MatmulScratch),
    product: Product<'_>,
) -> Result<(), WorkerPanic> {
    for run in runs {
        let Some(pair) = run.adapter.pair(product.name) else {
            continue;
        };
        let (cols, rank, width) = (pair.a.cols(), pair.a.rows(), pair.b.rows());
        let most = TILE_ROWS.min(scratch.outer.len() / width);
        for first in run.rows.clone().step_by(most) {
            let n = most.min(run.rows.end - first);
            let inner = &mut scratch.inner[..n * rank];
            let outer = &mut scratch.outer[..n * width];
            let mut thin = [MatmulJob {
                weights: pair.a,
                out: &mut *inner,
            }];
            let x = &product.x[first * cols..][..n * cols];
            matmul::matmul(context, &mut thin, x, n, matmul)?;
            ops::scale(context, inner, pair.scale)?;
            let mut wide = [MatmulJob {
                weights: pair.b,
                out: &mut *outer,
            }];
            matmul::matmul(context, &mut wide, inner, n, matmul)?;
            ops::add(
                context,
                &mut product.out[first * width..][..n * width],
                outer,
            )?;
        }
    }
    Ok(())
}
