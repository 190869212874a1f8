//! Normalization of rows.

use crate::Context;
use crate::ops::lanes::{Kernel, Lanes, dispatch, elementwise};
use crate::ops::{AddRow, SharedSlice, Sum, SumOfSquares};
use crate::pool::WorkerPanic;

#[cfg(test)]
mod tests;

/// Numbers in a task, about: what takes several microseconds.
const GRAIN: usize = 16 << 10;

/// RMSNorm (Zhang and Sennrich 2019): `out = x / sqrt(mean(x²) + eps) * weight`, row by row.
///
/// `x` and `out` are `[n, weight.len()]`. For norms of heads (QK-norm) let a row be a head.
///
/// # Errors
/// If a worker panicked.
///
/// # Panics
/// If the lengths of `x` and `out` differ, or are not a whole number of rows.
pub fn rms_norm(
    ctx: Context<'_>,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut [f32],
) -> Result<(), WorkerPanic> {
    assert_eq!(x.len(), out.len(), "an output for every input");
    let out = SharedSlice::new(out);
    rows(ctx, x.len(), weight.len(), &|range| {
        // SAFETY: the tasks' ranges are disjoint.
        let out = unsafe { out.part(range.clone()) };
        for (x, out) in x[range]
            .chunks_exact(weight.len())
            .zip(out.chunks_exact_mut(weight.len()))
        {
            dispatch(
                ctx.isa,
                NormRow {
                    x: Some(x),
                    weight,
                    eps,
                    out,
                },
            );
        }
    })
}

/// [`rms_norm`] in place.
///
/// # Errors
/// If a worker panicked.
///
/// # Panics
/// If the length of `x` is not a whole number of rows.
pub fn rms_norm_in_place(
    ctx: Context<'_>,
    x: &mut [f32],
    weight: &[f32],
    eps: f32,
) -> Result<(), WorkerPanic> {
    let len = x.len();
    let x = SharedSlice::new(x);
    rows(ctx, len, weight.len(), &|range| {
        // SAFETY: the tasks' ranges are disjoint.
        for out in unsafe { x.part(range) }.chunks_exact_mut(weight.len()) {
            dispatch(
                ctx.isa,
                NormRow {
                    x: None,
                    weight,
                    eps,
                    out,
                },
            );
        }
    })
}

/// LayerNorm (Ba et al. 2016): `out = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias`, row by row, the variance
/// without Bessel's correction.
///
/// `x` and `out` are `[n, weight.len()]`.
///
/// # Errors
/// If a worker panicked.
///
/// # Panics
/// If the lengths of `x` and `out` differ, or are not a whole number of rows, or `bias` has not the length of `weight`.
pub fn layer_norm(
    ctx: Context<'_>,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
    out: &mut [f32],
) -> Result<(), WorkerPanic> {
    assert_eq!(x.len(), out.len(), "an output for every input");
    assert!(
        bias.is_none_or(|bias| bias.len() == weight.len()),
        "a bias for every weight"
    );
    let out = SharedSlice::new(out);
    rows(ctx, x.len(), weight.len(), &|range| {
        // SAFETY: the tasks' ranges are disjoint.
        let out = unsafe { out.part(range.clone()) };
        for (x, out) in x[range]
            .chunks_exact(weight.len())
            .zip(out.chunks_exact_mut(weight.len()))
        {
            let mean = dispatch(ctx.isa, Sum(x)) / weight.len() as f32;
            out.copy_from_slice(x);
            dispatch(ctx.isa, Shift { x: out, by: -mean });
            dispatch(
                ctx.isa,
                NormRow {
                    x: None,
                    weight,
                    eps,
                    out,
                },
            );
            if let Some(bias) = bias {
                dispatch(ctx.isa, AddRow { x: out, y: bias });
            }
        }
    })
}

/// A residual connection and the norm after it in one pass: `x += delta`, `out = rms_norm(x)`. The same bits as
/// [`crate::ops::add`] and [`rms_norm`].
///
/// # Errors
/// If a worker panicked.
///
/// # Panics
/// If the lengths of `x`, `delta` and `out` differ, or are not a whole number of rows.
pub fn add_rms_norm(
    ctx: Context<'_>,
    x: &mut [f32],
    delta: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut [f32],
) -> Result<(), WorkerPanic> {
    assert_eq!(x.len(), out.len(), "an output for every input");
    assert_eq!(x.len(), delta.len(), "an addend for every input");
    let len = x.len();
    let (x, out) = (SharedSlice::new(x), SharedSlice::new(out));
    rows(ctx, len, weight.len(), &|range| {
        // SAFETY: the tasks' ranges are disjoint.
        let (x, out) = unsafe { (x.part(range.clone()), out.part(range.clone())) };
        let cols = weight.len();
        let deltas = delta[range].chunks_exact(cols);
        for ((x, delta), out) in x
            .chunks_exact_mut(cols)
            .zip(deltas)
            .zip(out.chunks_exact_mut(cols))
        {
            dispatch(ctx.isa, AddRow { x, y: delta });
            dispatch(
                ctx.isa,
                NormRow {
                    x: Some(x),
                    weight,
                    eps,
                    out,
                },
            );
        }
    })
}

/// Runs `f` on ranges of whole rows of about [`GRAIN`] elements.
fn rows(
    ctx: Context<'_>,
    len: usize,
    cols: usize,
    f: &(dyn Fn(std::ops::Range<usize>) + Sync),
) -> Result<(), WorkerPanic> {
    assert!(len.is_multiple_of(cols.max(1)), "whole rows");
    let rows = len / cols.max(1);
    let rows_per_task = GRAIN.div_ceil(cols.max(1));
    let tasks = rows.div_ceil(rows_per_task);
    let range =
        |task: usize| task * rows_per_task * cols..((task + 1) * rows_per_task).min(rows) * cols;
    if tasks <= 1 || ctx.pool.threads() == 1 {
        (0..tasks).for_each(|task| f(range(task)));
        return Ok(());
    }
    ctx.pool.run(tasks, &|task, _| f(range(task)))
}

struct NormRow<'a> {
    /// The row, or nothing if it stands in `out`.
    x: Option<&'a [f32]>,
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for NormRow<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let sum = SumOfSquares(match self.x {
            Some(x) => x,
            None => self.out,
        })
        .run(l);
        let mean = sum / self.weight.len() as f32;
        let factor = 1.0 / (mean + self.eps).sqrt();
        if let Some(x) = self.x {
            self.out.copy_from_slice(x);
        }
        Scale {
            x: self.out,
            weight: self.weight,
            factor,
        }
        .run(l);
    }
}

elementwise!(Shift { x: x, number by } |l| l.add(x, by));
elementwise!(Scale { x: x, slice weight, number factor } |l| l.mul(l.mul(x, factor), weight));
