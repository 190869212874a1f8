//! Elementwise operations, activations, and reductions over logits.
//!
//! What takes a [`Context`] divides long slices among the pool's threads; what takes an [`Isa`] runs on the calling
//! thread. Results are the same bits on every instruction set and with every number of threads.
#![expect(
    clippy::needless_range_loop,
    reason = "iterator adapters are not always inlined into functions with more instructions than they have"
)]

pub(crate) mod lanes;
pub(crate) mod math;
mod share;
#[cfg(test)]
mod tests;

use crate::pool::WorkerPanic;
use crate::{Context, Isa};
use lanes::{Kernel, LANES, Lanes, dispatch, elementwise, load_part, store_part};
pub(crate) use share::SharedSlice;

/// Elements below which another thread costs more than it saves.
const GRAIN: usize = 4 << 10;

/// An elementwise operation with a second operand, run in parallel pieces.
macro_rules! binary {
    ($(#[$doc:meta])* $name:ident, |$l:ident, $x:ident, $y:ident| $body:expr) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// If a worker panicked.
        ///
        /// # Panics
        /// If the lengths differ.
        pub fn $name(ctx: Context<'_>, x: &mut [f32], y: &[f32]) -> Result<(), WorkerPanic> {
            elementwise!(Piece { x: $x, slice $y } |$l| $body);
            assert_eq!(x.len(), y.len(), "two slices of one length");
            share::in_pieces(ctx, x, GRAIN, |piece, range| {
                dispatch(ctx.isa, Piece { $x: piece, $y: &y[range] });
            })
        }
    };
}

/// An elementwise operation with constant parameters, run in parallel pieces.
macro_rules! unary {
    ($(#[$doc:meta])* $name:ident($($arg:ident),*), |$l:ident, $x:ident| $body:expr) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// If a worker panicked.
        pub fn $name(ctx: Context<'_>, x: &mut [f32] $(, $arg: f32)*) -> Result<(), WorkerPanic> {
            elementwise!(Piece { x: $x $(, number $arg)* } |$l| $body);
            share::in_pieces(ctx, x, GRAIN, |x, _| dispatch(ctx.isa, Piece { $x: x $(, $arg)* }))
        }
    };
}

binary! {
    /// `x += y`.
    add, |l, x, y| l.add(x, y)
}
binary! {
    /// `x *= y`.
    mul, |l, x, y| l.mul(x, y)
}
binary! {
    /// SwiGLU (Shazeer 2020): `x = silu(x) * y`, where `x` is the gate and `y` the up projection.
    swiglu, |l, x, y| l.mul(math::silu(l, x), y)
}
binary! {
    /// GeGLU with GELU's tanh form: `x = gelu(x) * y`, where `x` is the gate and `y` the up projection.
    geglu_tanh, |l, x, y| l.mul(math::gelu_tanh(l, x), y)
}
binary! {
    /// GeGLU with GELU by the error function: `x = gelu(x) * y`.
    geglu_erf, |l, x, y| l.mul(math::gelu_erf(l, x), y)
}
unary! {
    /// `x *= factor`.
    scale(factor), |l, x| l.mul(x, factor)
}
unary! {
    /// `x = cap * tanh(x / cap)`, which keeps `x` within ±`cap`.
    soft_cap(cap), |l, x| l.mul(cap, math::tanh(l, l.div(x, cap)))
}
unary! {
    /// `x = x / (1 + e^-x)`.
    silu(), |l, x| math::silu(l, x)
}
unary! {
    /// `x = 1 / (1 + e^-x)`.
    sigmoid(), |l, x| math::sigmoid(l, x)
}
unary! {
    /// GELU by its tanh form.
    gelu_tanh(), |l, x| math::gelu_tanh(l, x)
}
unary! {
    /// GELU by the error function.
    gelu_erf(), |l, x| math::gelu_erf(l, x)
}

elementwise!(pub(crate) AddRow { x: x, slice y } |l| l.add(x, y));

/// Adds `bias` to every row of `x`, which is `[n, bias.len()]`.
///
/// # Panics
/// If `x` is not a whole number of rows.
pub fn add_bias(isa: Isa, x: &mut [f32], bias: &[f32]) {
    assert!(x.len().is_multiple_of(bias.len().max(1)), "whole rows");
    for row in x.chunks_exact_mut(bias.len().max(1)) {
        dispatch(isa, AddRow { x: row, y: bias });
    }
}

struct Maximum<'a>(&'a [f32]);

impl Kernel for Maximum<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> f32 {
        let (whole, rest) = self.0.as_chunks::<LANES>();
        // Four chains hide the latency; the order of a maximum does not matter.
        let mut best = [l.splat(f32::NEG_INFINITY); 4];
        let (fours, ones) = whole.as_chunks::<4>();
        for i in 0..fours.len() {
            for j in 0..4 {
                best[j] = l.max(l.load(&fours[i][j]), best[j]);
            }
        }
        for i in 0..ones.len() {
            best[0] = l.max(l.load(&ones[i]), best[0]);
        }
        best[1] = l.max(load_part(l, rest, f32::NEG_INFINITY), best[1]);
        l.reduce_max(l.max(l.max(best[0], best[1]), l.max(best[2], best[3])))
    }
}

/// The largest of `x`, not-a-numbers left out; negative infinity if there is none.
pub fn max(isa: Isa, x: &[f32]) -> f32 {
    dispatch(isa, Maximum(x))
}

/// The first index of the largest of `x`, not-a-numbers left out; nothing if there is none.
pub fn argmax(isa: Isa, x: &[f32]) -> Option<usize> {
    let best = max(isa, x);
    x.iter().position(|&v| v == best)
}

/// Replaces `x` by `e^(x - max)` and returns the sum of that; or only returns the sum.
struct ExpSum<'a> {
    x: &'a mut [f32],
    max: f32,
    keep: bool,
}

impl Kernel for ExpSum<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> f32 {
        let max = l.splat(self.max);
        let mut sums = [l.splat(0.0); 4];
        let (whole, rest) = self.x.as_chunks_mut::<LANES>();
        let (fours, ones) = whole.as_chunks_mut::<4>();
        for i in 0..fours.len() {
            for j in 0..4 {
                let e = math::exp(l, l.sub(l.load(&fours[i][j]), max));
                sums[j] = l.add(sums[j], e);
                if self.keep {
                    l.store(e, &mut fours[i][j]);
                }
            }
        }
        for i in 0..ones.len() {
            let e = math::exp(l, l.sub(l.load(&ones[i]), max));
            sums[0] = l.add(sums[0], e);
            if self.keep {
                l.store(e, &mut ones[i]);
            }
        }
        if !rest.is_empty() {
            let e = math::exp(l, l.sub(load_part(l, rest, f32::NEG_INFINITY), max));
            sums[0] = l.add(sums[0], e);
            if self.keep {
                store_part(l, e, rest);
            }
        }
        l.reduce_add(l.add(l.add(sums[0], sums[1]), l.add(sums[2], sums[3])))
    }
}

elementwise!(Multiply { x: x, number y } |l| l.mul(x, y));
elementwise!(Subtract { x: x, number y } |l| l.sub(x, y));

/// `x = e^x / Σ e^x`. Where all are negative infinity (or none is a number) every result is not a number.
pub fn softmax(isa: Isa, x: &mut [f32]) {
    let max = max(isa, x);
    let sum = dispatch(isa, ExpSum { x, max, keep: true });
    dispatch(isa, Multiply { x, y: 1.0 / sum });
}

/// `ln Σ e^x`; `x` is left as it is.
pub fn log_sum_exp(isa: Isa, x: &[f32]) -> f32 {
    let max = max(isa, x);
    if max == f32::NEG_INFINITY {
        return max;
    }
    let sum = x.chunks(1024).fold(0.0_f64, |sum, chunk| {
        let mut copy = [0.0; 1024];
        let copy = &mut copy[..chunk.len()];
        copy.copy_from_slice(chunk);
        sum + f64::from(dispatch(
            isa,
            ExpSum {
                x: copy,
                max,
                keep: false,
            },
        ))
    });
    (f64::from(max) + sum.ln()) as f32
}

/// `x = x - ln Σ e^x`: the logarithms of the softmax.
pub fn log_softmax(isa: Isa, x: &mut [f32]) {
    let log_sum = log_sum_exp(isa, x);
    dispatch(isa, Subtract { x, y: log_sum });
}

/// The sum, in four times sixteen partial sums.
pub(crate) struct Sum<'a>(pub(crate) &'a [f32]);

impl Kernel for Sum<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> f32 {
        let mut sums = [l.splat(0.0); 4];
        let (whole, rest) = self.0.as_chunks::<LANES>();
        let (fours, ones) = whole.as_chunks::<4>();
        for i in 0..fours.len() {
            for j in 0..4 {
                sums[j] = l.add(l.load(&fours[i][j]), sums[j]);
            }
        }
        for i in 0..ones.len() {
            sums[0] = l.add(l.load(&ones[i]), sums[0]);
        }
        sums[0] = l.add(load_part(l, rest, 0.0), sums[0]);
        l.reduce_add(l.add(l.add(sums[0], sums[1]), l.add(sums[2], sums[3])))
    }
}

/// The sum of squares, in four times sixteen partial sums.
pub(crate) struct SumOfSquares<'a>(pub(crate) &'a [f32]);

impl Kernel for SumOfSquares<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> f32 {
        let mut sums = [l.splat(0.0); 4];
        let (whole, rest) = self.0.as_chunks::<LANES>();
        let (fours, ones) = whole.as_chunks::<4>();
        for i in 0..fours.len() {
            for j in 0..4 {
                let v = l.load(&fours[i][j]);
                sums[j] = l.fma(v, v, sums[j]);
            }
        }
        for i in 0..ones.len() {
            let v = l.load(&ones[i]);
            sums[0] = l.fma(v, v, sums[0]);
        }
        let v = load_part(l, rest, 0.0);
        sums[0] = l.fma(v, v, sums[0]);
        l.reduce_add(l.add(l.add(sums[0], sums[1]), l.add(sums[2], sums[3])))
    }
}
