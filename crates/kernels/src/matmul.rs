//! Products of activations with weight matrices.
//!
//! `out[i][r] = Σ_k weights[r][k] * x[i][k]`. With float weights this is one chain of fused
//! multiply-adds in the order of `k`. With quantized weights the activations are quantized too
//! (see [`activation`]); each group of 16 or 32 columns is an exact integer dot product, and the
//! groups are added by one chain of fused multiply-adds. Nothing in that order depends on the
//! other rows of `x`, on how work is divided, on the instruction set, or on how the weights are
//! laid out, so neither do the bits of the result.

mod activation;
mod reference;

use crate::Context;
use crate::matrix::{MatrixRef, Weights};
use crate::pool::WorkerPanic;

/// One product of a [`matmul`] call.
pub struct MatmulJob<'a> {
    /// The weights: `rows` output features, `cols` input features.
    pub weights: Weights<'a>,
    /// The result, `[n, rows]`, row-major.
    pub out: &'a mut [f32],
}

/// Working memory of [`matmul`], kept from call to call.
#[derive(Default)]
pub struct MatmulScratch {
    bytes: Vec<u8>,
}

impl MatmulScratch {
    /// Nothing allocated yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes that a product of `n` rows of `cols` activations with `threads` threads needs.
    /// Never less for more of anything, so the largest call decides.
    pub fn bytes_needed(n: usize, cols: usize, threads: usize) -> usize {
        let activations = n.saturating_mul(cols.saturating_mul(2));
        activations.saturating_add(threads.saturating_mul(256 << 10))
    }

    /// Bytes held now.
    pub fn bytes(&self) -> usize {
        self.bytes.capacity()
    }
}

/// Multiplies `n` rows of activations with the weights of every job, in one parallel region.
///
/// `x` is `[n, cols]`, row-major, shared by the jobs.
///
/// # Errors
/// If a worker panicked; the outputs are then unspecified.
///
/// # Panics
/// If the jobs' `cols` differ, `x` is not `n * cols` long, or an `out` is not `n * rows` long.
pub fn matmul(
    ctx: Context<'_>,
    jobs: &mut [MatmulJob<'_>],
    x: &[f32],
    n: usize,
    _scratch: &mut MatmulScratch,
) -> Result<(), WorkerPanic> {
    for job in jobs.iter() {
        assert_eq!(x.len(), n * job.weights.cols(), "the length of x");
        assert_eq!(job.out.len(), n * job.weights.rows(), "the length of out");
    }
    for job in jobs {
        let (rows, cols) = (job.weights.rows(), job.weights.cols());
        if rows == 0 || n == 0 {
            continue;
        }
        let matrix = match job.weights {
            Weights::Rows(m) => m,
            Weights::Panels(p) => match MatrixRef::new(p.format(), rows, cols, p.bytes()) {
                Ok(m) => m,
                Err(error) => unreachable!("checked: {error}"),
            },
        };
        let out = std::sync::Mutex::new(&mut *job.out);
        ctx.pool.run(rows.div_ceil(16), &|task, _| {
            let (first, last) = (task * 16, rows.min(task * 16 + 16));
            for i in 0..n {
                let x = &x[i * cols..][..cols];
                let mut sums = [0.0; 16];
                for (sum, row) in sums.iter_mut().zip(first..last) {
                    *sum = reference::dot_row(&matrix, row, x);
                }
                let mut out = out.lock().expect("no panic while held");
                out[i * rows + first..i * rows + last].copy_from_slice(&sums[..last - first]);
            }
        })?;
    }
    Ok(())
}
