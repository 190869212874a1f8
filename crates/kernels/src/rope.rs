//! Rotary position embedding (Su et al. 2021) and its ways to longer contexts.
//!
//! A [`RopeTable`] is made once per model. Once per step [`RopeTable::fill`] computes the cosines and sines of the
//! step's positions (angles in `f64`, so position 100,000 is as exact as position 1), and [`apply`] turns the heads of
//! every layer by them.

use crate::Context;
use crate::ops::SharedSlice;
use crate::ops::lanes::{Kernel, LANES, Lanes, dispatch, elementwise, load_part, store_part};
use crate::pool::WorkerPanic;
use std::f64::consts::TAU;

#[cfg(test)]
mod tests;

/// Which two values of a head are turned together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// Values 2i and 2i + 1: "normal" in llama.cpp; Llama's GGUF files are permuted for it.
    Interleaved,
    /// Values i and i + dims / 2: "NeoX", and what Hugging Face's models use.
    Halves,
}

/// How frequencies are changed for contexts longer than the model was first trained on.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies divided by `factor` (Chen et al. 2023).
    Linear {
        /// What to divide by.
        factor: f64,
    },
    /// Llama 3.1's rule: low frequencies divided by `factor`, high ones kept, a blend between.
    Llama3 {
        /// What to divide by.
        factor: f64,
        /// Frequencies with fewer than this many turns in the original context are low.
        low_freq_factor: f64,
        /// Frequencies with more than this many turns in the original context are high.
        high_freq_factor: f64,
        /// The original context, in tokens.
        original_context: usize,
    },
    /// YaRN (Peng et al. 2023).
    Yarn {
        /// What low frequencies are divided by.
        factor: f64,
        /// The original context, in tokens.
        original_context: usize,
        /// More turns than this in the original context: kept (32 in the paper).
        beta_fast: f64,
        /// Fewer turns than this in the original context: divided (1 in the paper).
        beta_slow: f64,
        /// Multiplies cosines and sines; nothing for the paper's `0.1 ln(factor) + 1`.
        attention_factor: Option<f64>,
    },
    /// A divisor for every frequency, as in GGUF's tensor `rope_freqs.weight`.
    Factors {
        /// `dims / 2` divisors.
        factors: Vec<f32>,
        /// Multiplies cosines and sines.
        attention_factor: f64,
    },
    /// LongRoPE (Ding et al. 2024): two sets of divisors, chosen once by the context that the model is run with, so
    /// that keys written early stay right.
    LongRope {
        /// `dims / 2` divisors for contexts up to `original_context`.
        short_factors: Vec<f32>,
        /// `dims / 2` divisors for longer contexts.
        long_factors: Vec<f32>,
        /// The original context, in tokens.
        original_context: usize,
        /// The context that the model is run with, in tokens.
        context: usize,
        /// Multiplies cosines and sines; nothing for `sqrt(1 + ln(s) / ln(original_context))` where `s`, the ratio of
        /// the contexts, is above 1.
        attention_factor: Option<f64>,
    },
}

/// Parameters of a model's rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeParams {
    /// The base of the frequencies: pair i turns by `base^(-2i / dims)` a token.
    pub base: f64,
    /// Values of a head that are turned, the first ones: even, not above `head_dim`.
    pub dims: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Which values are turned together.
    pub layout: RopeLayout,
    /// How frequencies are changed for long contexts.
    pub scaling: RopeScaling,
}

/// Parameters that make no rotary embedding.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RopeError {
    /// `dims` is odd, or above `head_dim`.
    #[error("rope: {dims} dimensions cannot be turned in heads of {head_dim}")]
    Dims {
        /// Values that should be turned.
        dims: usize,
        /// Values of a head.
        head_dim: usize,
    },
    /// A parameter that must be positive and finite is not.
    #[error("rope: {name} is {value}, but must be positive and finite")]
    NotPositive {
        /// The parameter.
        name: &'static str,
        /// Its value.
        value: f64,
    },
    /// The number of per-frequency divisors is not `dims / 2`.
    #[error("rope: {found} frequency factors for {expected} frequencies")]
    FactorCount {
        /// Divisors given.
        found: usize,
        /// Divisors needed.
        expected: usize,
    },
    /// Llama 3's two bounds are not in order.
    #[error("rope: low_freq_factor {low} is not below high_freq_factor {high}")]
    Bounds {
        /// `low_freq_factor`.
        low: f64,
        /// `high_freq_factor`.
        high: f64,
    },
}

/// The frequencies of a model's rotary embedding.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// Radians a token, for each pair.
    frequencies: Vec<f64>,
    /// Multiplies cosines and sines.
    magnitude: f64,
    head_dim: usize,
    layout: RopeLayout,
}

impl RopeTable {
    /// The frequencies for these parameters.
    ///
    /// # Errors
    /// [`RopeError`] for parameters that make no embedding; they may come straight from a file.
    pub fn new(params: &RopeParams) -> Result<Self, RopeError> {
        let RopeParams {
            base,
            dims,
            head_dim,
            layout,
            ref scaling,
        } = *params;
        if !dims.is_multiple_of(2) || dims > head_dim {
            return Err(RopeError::Dims { dims, head_dim });
        }
        positive("base", base)?;
        let plain = |i: usize| base.powf(-2.0 * i as f64 / dims as f64);
        let mut frequencies: Vec<f64> = (0..dims / 2).map(plain).collect();
        let magnitude = scale(&mut frequencies, params, scaling)?;
        Ok(Self {
            frequencies,
            magnitude,
            head_dim,
            layout,
        })
    }

    /// Values of a head that are turned.
    pub fn dims(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Numbers that [`RopeTable::fill`] writes for each position.
    pub fn row_len(&self) -> usize {
        match self.layout {
            RopeLayout::Halves => self.dims(),
            RopeLayout::Interleaved => 2 * self.dims(),
        }
    }

    /// Computes cosines and sines for [`apply`]: `out` is `[positions.len(), row_len]`.
    ///
    /// # Panics
    /// If `out` has another length.
    pub fn fill(&self, positions: &[usize], out: &mut [f32]) {
        let row_len = self.row_len();
        assert_eq!(
            out.len(),
            positions.len() * row_len,
            "a row for every position"
        );
        if row_len == 0 {
            return;
        }
        for (&position, row) in positions.iter().zip(out.chunks_exact_mut(row_len)) {
            let (cosines, sines) = row.split_at_mut(row_len / 2);
            for (i, frequency) in self.frequencies.iter().enumerate() {
                // The remainder is exact, and small angles are what sine and cosine are fast for.
                let (sin, cos) = (position as f64 * frequency % TAU).sin_cos();
                let (cos, sin) = ((cos * self.magnitude) as f32, (sin * self.magnitude) as f32);
                match self.layout {
                    RopeLayout::Halves => (cosines[i], sines[i]) = (cos, sin),
                    RopeLayout::Interleaved => {
                        cosines[2 * i..2 * i + 2].fill(cos);
                        sines[2 * i] = -sin;
                        sines[2 * i + 1] = sin;
                    }
                }
            }
        }
    }
}

fn positive(name: &'static str, value: f64) -> Result<(), RopeError> {
    if value.is_finite() && value > 0.0 {
        Ok(())
    } else {
        Err(RopeError::NotPositive { name, value })
    }
}

/// Changes the frequencies and returns the magnitude.
fn scale(
    frequencies: &mut [f64],
    params: &RopeParams,
    scaling: &RopeScaling,
) -> Result<f64, RopeError> {
    match *scaling {
        RopeScaling::None => Ok(1.0),
        RopeScaling::Linear { factor } => {
            positive("factor", factor)?;
            frequencies.iter_mut().for_each(|f| *f /= factor);
            Ok(1.0)
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_context,
        } => {
            positive("factor", factor)?;
            positive("original_context", original_context as f64)?;
            let gap = high_freq_factor - low_freq_factor;
            if gap.is_nan() || gap <= 0.0 {
                return Err(RopeError::Bounds {
                    low: low_freq_factor,
                    high: high_freq_factor,
                });
            }
            for f in frequencies {
                let turns = original_context as f64 * *f / TAU;
                let kept = (turns - low_freq_factor) / gap;
                let kept = kept.clamp(0.0, 1.0);
                *f = (1.0 - kept) * *f / factor + kept * *f;
            }
            Ok(1.0)
        }
        RopeScaling::Yarn { .. } => yarn(frequencies, params, scaling),
        RopeScaling::Factors {
            ref factors,
            attention_factor,
        } => {
            positive("attention_factor", attention_factor)?;
            divide(frequencies, factors)?;
            Ok(attention_factor)
        }
        RopeScaling::LongRope {
            ref short_factors,
            ref long_factors,
            original_context,
            context,
            attention_factor,
        } => {
            positive("original_context", original_context as f64)?;
            let long = context > original_context;
            divide(frequencies, if long { long_factors } else { short_factors })?;
            let ratio = context as f64 / original_context as f64;
            let magnitude = attention_factor.unwrap_or(if long && original_context > 1 {
                (1.0 + ratio.ln() / (original_context as f64).ln()).sqrt()
            } else {
                1.0
            });
            positive("attention_factor", magnitude)?;
            Ok(magnitude)
        }
    }
}

fn divide(frequencies: &mut [f64], factors: &[f32]) -> Result<(), RopeError> {
    if factors.len() != frequencies.len() {
        return Err(RopeError::FactorCount {
            found: factors.len(),
            expected: frequencies.len(),
        });
    }
    for (f, &factor) in frequencies.iter_mut().zip(factors) {
        positive("a frequency factor", f64::from(factor))?;
        *f /= f64::from(factor);
    }
    Ok(())
}

/// YaRN's ramp between dividing and keeping, over the pair's number.
fn yarn(
    frequencies: &mut [f64],
    params: &RopeParams,
    scaling: &RopeScaling,
) -> Result<f64, RopeError> {
    let RopeScaling::Yarn {
        factor,
        original_context,
        beta_fast,
        beta_slow,
        attention_factor,
    } = *scaling
    else {
        return Ok(1.0);
    };
    positive("factor", factor)?;
    positive("original_context", original_context as f64)?;
    positive("beta_fast", beta_fast)?;
    positive("beta_slow", beta_slow)?;
    let dims = params.dims as f64;
    // The (fractional) pair that makes `turns` turns in the original context.
    let pair = |turns: f64| {
        dims * (original_context as f64 / (turns * TAU)).ln() / (2.0 * params.base.ln())
    };
    let low = pair(beta_fast).floor().max(0.0);
    let high = pair(beta_slow).ceil().min(dims - 1.0);
    for (i, f) in frequencies.iter_mut().enumerate() {
        let divided = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
        *f = *f / factor * divided + *f * (1.0 - divided);
    }
    let magnitude = attention_factor.unwrap_or(0.1 * factor.ln().max(0.0) + 1.0);
    positive("attention_factor", magnitude)?;
    Ok(magnitude)
}

/// Turns the heads of `x`, `[n, heads, head_dim]`, by the `n` rows that [`RopeTable::fill`] wrote.
///
/// # Errors
/// If a worker panicked.
///
/// # Panics
/// If the lengths of `x` and `cos_sin` are not those of the same `n`.
pub fn apply(
    ctx: Context<'_>,
    table: &RopeTable,
    cos_sin: &[f32],
    heads: usize,
    x: &mut [f32],
) -> Result<(), WorkerPanic> {
    /// Numbers in a task, about.
    const GRAIN: usize = 16 << 10;
    let (row_len, width) = (table.row_len(), heads * table.head_dim);
    if row_len == 0 || width == 0 {
        return Ok(());
    }
    let n = x.len() / width;
    assert_eq!(x.len(), n * width, "whole rows");
    assert_eq!(
        cos_sin.len(),
        n * row_len,
        "cosines and sines for every row"
    );
    let rows_per_task = GRAIN.div_ceil(width);
    let x = SharedSlice::new(x);
    let turn = |task: usize| {
        let rows = task * rows_per_task..((task + 1) * rows_per_task).min(n);
        // SAFETY: the tasks' ranges are disjoint.
        let x = unsafe { x.part(rows.start * width..rows.end * width) };
        let cos_sin = &cos_sin[rows.start * row_len..rows.end * row_len];
        dispatch(
            ctx.isa,
            Turn {
                table,
                cos_sin,
                width,
                x,
            },
        );
    };
    let tasks = n.div_ceil(rows_per_task);
    if tasks == 1 || ctx.pool.threads() == 1 {
        (0..tasks).for_each(turn);
        return Ok(());
    }
    ctx.pool.run(tasks, &|task, _| turn(task))
}

/// The work of a task of [`apply`].
struct Turn<'a> {
    table: &'a RopeTable,
    cos_sin: &'a [f32],
    width: usize,
    x: &'a mut [f32],
}

impl Kernel for Turn<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (row_len, dims) = (self.table.row_len(), self.table.dims());
        let head_dim = self.table.head_dim;
        let heads = self.width / head_dim;
        for head in 0..self.x.len() / head_dim {
            let cos_sin = &self.cos_sin[head / heads * row_len..][..row_len];
            let (cosines, sines) = cos_sin.split_at(row_len / 2);
            let head = &mut self.x[head * head_dim..][..dims];
            match self.table.layout {
                RopeLayout::Interleaved => TurnInterleaved {
                    x: head,
                    cosines,
                    sines,
                }
                .run(l),
                RopeLayout::Halves => turn_halves(l, head, cosines, sines),
            }
        }
    }
}

/// Turns sixteen pairs, or fewer: `first` and `second` values of each.
#[inline(always)]
fn turn_pairs<L: Lanes>(l: L, (a, b): (L::V, L::V), (cos, sin): (L::V, L::V)) -> (L::V, L::V) {
    (l.fnma(b, sin, l.mul(a, cos)), l.fma(a, sin, l.mul(b, cos)))
}

#[inline(always)]
fn turn_halves<L: Lanes>(l: L, head: &mut [f32], cosines: &[f32], sines: &[f32]) {
    let (first, second) = head.split_at_mut(head.len() / 2);
    let (first, first_rest) = first.as_chunks_mut::<LANES>();
    let (second, second_rest) = second.as_chunks_mut::<LANES>();
    let (cosines, cosines_rest) = cosines.as_chunks::<LANES>();
    let (sines, sines_rest) = sines.as_chunks::<LANES>();
    for i in 0..first.len() {
        let pairs = (l.load(&first[i]), l.load(&second[i]));
        let (a, b) = turn_pairs(l, pairs, (l.load(&cosines[i]), l.load(&sines[i])));
        l.store(a, &mut first[i]);
        l.store(b, &mut second[i]);
    }
    if !first_rest.is_empty() {
        let pairs = (
            load_part(l, first_rest, 0.0),
            load_part(l, second_rest, 0.0),
        );
        let angles = (
            load_part(l, cosines_rest, 0.0),
            load_part(l, sines_rest, 0.0),
        );
        let (a, b) = turn_pairs(l, pairs, angles);
        store_part(l, a, first_rest);
        store_part(l, b, second_rest);
    }
}

elementwise!(TurnInterleaved { x: x, slice cosines, slice sines }
    |l| l.fma(l.swap_pairs(x), sines, l.mul(x, cosines)));
