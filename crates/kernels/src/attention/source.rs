//! Where the inner loops read keys and values from.
#![expect(
    clippy::needless_range_loop,
    reason = "iterator adapters are not always inlined into functions with more instructions than they have"
)]

use super::Line;
use super::micro::{QueryRows, TOKEN_VECTORS, ValueRows, add_all_values, scores};
use super::plan::head_lines;
use crate::kv::BLOCK_TOKENS;
use crate::ops::lanes::{Kernel, LANES, Lanes};

/// Keys and values of one block, KV head and layer, in some format.
pub(super) trait Source: Copy {
    /// Dimensions of the head.
    fn head_dim(&self) -> usize;
    /// Bytes of the next tile that [`Source::scores`] asks for.
    fn key_bytes(&self) -> usize;
    /// Scores of `R` query rows with the block's tokens. Meanwhile asks for the keys of the tile at `next`.
    ///
    /// # Safety
    /// There are `R` rows of as many lines as the head has; `R` is at most [`ROWS`](super::micro::ROWS).
    unsafe fn scores<L: Lanes, const R: usize>(
        self,
        l: L,
        queries: &QueryRows,
        next: *const u8,
    ) -> [[L::V; TOKEN_VECTORS]; R];
    /// Adds the block's values times probabilities to the sums of `R` rows.
    ///
    /// # Safety
    /// The pointers are to `R` rows as [`ValueRows`] says, to which nothing else refers.
    unsafe fn add_values<L: Lanes, const R: usize>(self, l: L, rows: &ValueRows<R>);
}

/// Keys and values that are read as numbers.
pub(super) trait Numbers: Copy {
    /// Dimensions of the head.
    fn dims(&self) -> usize;
    /// The keys of dimension `dim` of tokens `16 · vector` to `16 · vector + 15`.
    ///
    /// # Safety
    /// `dim` is below the head's dimensions, `vector` below [`TOKEN_VECTORS`].
    unsafe fn keys<L: Lanes>(self, l: L, dim: usize, vector: usize) -> L::V;
    /// The values of dimensions `16 · vector` to `16 · vector + 15` of a token.
    ///
    /// # Safety
    /// `token` is below [`BLOCK_TOKENS`], `vector` below the head's lines.
    unsafe fn values<L: Lanes>(self, l: L, token: usize, vector: usize) -> L::V;
}

impl<S: Numbers> Source for S {
    #[inline(always)]
    fn head_dim(&self) -> usize {
        self.dims()
    }

    #[inline(always)]
    fn key_bytes(&self) -> usize {
        self.dims() * BLOCK_TOKENS * 2
    }

    #[inline(always)]
    unsafe fn scores<L: Lanes, const R: usize>(
        self,
        l: L,
        queries: &QueryRows,
        next: *const u8,
    ) -> [[L::V; TOKEN_VECTORS]; R] {
        // SAFETY: the caller's promise.
        unsafe { scores::<L, S, R>(l, self, queries, next) }
    }

    #[inline(always)]
    unsafe fn add_values<L: Lanes, const R: usize>(self, l: L, rows: &ValueRows<R>) {
        // SAFETY: the caller's promise.
        unsafe { add_all_values::<L, S, R>(l, self, rows) }
    }
}

/// A tile of 16-bit numbers as it stands in a block, converted as it is read: for few query rows.
#[derive(Clone, Copy)]
pub(super) struct Halves<'a, const BF16: bool> {
    /// `[head_dim][32]`.
    keys: &'a [[u8; 2 * LANES]],
    /// `[32][head_dim]`.
    values: &'a [[u8; 2 * LANES]],
    head_dim: usize,
}

impl<'a, const BF16: bool> Halves<'a, BF16> {
    /// # Panics
    /// If the tile is not that of a head of whole vectors.
    #[inline(always)]
    pub(super) fn new(tile: &'a [u8], head_dim: usize) -> Self {
        let (keys, values) = tile.split_at(tile.len() / 2);
        let (keys, values) = (keys.as_chunks().0, values.as_chunks().0);
        assert!(head_dim.is_multiple_of(LANES));
        assert!(keys.len() == head_dim * TOKEN_VECTORS && values.len() == keys.len());
        Self {
            keys,
            values,
            head_dim,
        }
    }
}

#[inline(always)]
fn load<L: Lanes, const BF16: bool>(l: L, from: &[u8; 2 * LANES]) -> L::V {
    if BF16 {
        l.load_bf16(from)
    } else {
        l.load_f16(from)
    }
}

impl<const BF16: bool> Numbers for Halves<'_, BF16> {
    #[inline(always)]
    fn dims(&self) -> usize {
        self.head_dim
    }

    #[inline(always)]
    unsafe fn keys<L: Lanes>(self, l: L, dim: usize, vector: usize) -> L::V {
        // SAFETY: `new` saw that there are two vectors for each dimension.
        load::<L, BF16>(l, unsafe {
            self.keys.get_unchecked(dim * TOKEN_VECTORS + vector)
        })
    }

    #[inline(always)]
    unsafe fn values<L: Lanes>(self, l: L, token: usize, vector: usize) -> L::V {
        let at = token * (self.head_dim / LANES) + vector;
        // SAFETY: `new` saw that there are as many vectors as lines in a head, for each token.
        load::<L, BF16>(l, unsafe { self.values.get_unchecked(at) })
    }
}

/// Numbers converted to `f32` before, values of a token filled up to whole vectors: for many query rows.
#[derive(Clone, Copy)]
pub(super) struct Converted<'a> {
    /// `[head_dim][32]`.
    keys: &'a [Line],
    /// `[32][lines]`.
    values: &'a [Line],
    lines: usize,
}

impl<'a> Converted<'a> {
    /// # Panics
    /// If the lines are not those of whole heads.
    pub(super) fn new(keys: &'a [Line], values: &'a [Line], head_dim: usize) -> Self {
        let lines = head_lines(head_dim);
        assert!(keys.len() == head_dim * TOKEN_VECTORS && values.len() == BLOCK_TOKENS * lines);
        Self {
            keys,
            values,
            lines,
        }
    }
}

impl Numbers for Converted<'_> {
    #[inline(always)]
    fn dims(&self) -> usize {
        self.keys.len() / TOKEN_VECTORS
    }

    #[inline(always)]
    unsafe fn keys<L: Lanes>(self, l: L, dim: usize, vector: usize) -> L::V {
        // SAFETY: `new` saw that there are two vectors for each dimension.
        l.load(unsafe { &self.keys.get_unchecked(dim * TOKEN_VECTORS + vector).0 })
    }

    #[inline(always)]
    unsafe fn values<L: Lanes>(self, l: L, token: usize, vector: usize) -> L::V {
        // SAFETY: `new` saw that there are so many lines for each token.
        l.load(unsafe { &self.values.get_unchecked(token * self.lines + vector).0 })
    }
}

/// Converts a tile of 16-bit numbers for [`Converted`].
pub(super) struct Convert<'a, const BF16: bool> {
    pub(super) tile: &'a [u8],
    pub(super) head_dim: usize,
    /// `[head_dim][32]`.
    pub(super) keys: &'a mut [Line],
    /// `[32][lines]`.
    pub(super) values: &'a mut [Line],
}

impl<const BF16: bool> Kernel for Convert<'_, BF16> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (keys, values) = self.tile.split_at(self.tile.len() / 2);
        let keys = keys.as_chunks().0;
        assert!(keys.len() == self.keys.len());
        for i in 0..keys.len() {
            l.store(load::<L, BF16>(l, &keys[i]), &mut self.keys[i].0);
        }
        let (row_bytes, lines) = (2 * self.head_dim, head_lines(self.head_dim));
        for token in 0..BLOCK_TOKENS {
            let from = &values[token * row_bytes..][..row_bytes];
            let to = &mut self.values[token * lines..][..lines];
            for i in 0..lines {
                let from = &from[2 * LANES * i..];
                let v = match from.first_chunk() {
                    Some(from) => load::<L, BF16>(l, from),
                    None => {
                        let mut filled = [0; 2 * LANES];
                        filled[..from.len()].copy_from_slice(from);
                        load::<L, BF16>(l, &filled)
                    }
                };
                l.store(v, &mut to[i].0);
            }
        }
    }
}
