//! The inner loops: scores of a few query rows with a block's keys, and sums of a block's values.
#![expect(
    clippy::needless_range_loop,
    reason = "several arrays are walked together, and the loops are unrolled"
)]

use crate::kv::BLOCK_TOKENS;
use crate::ops::lanes::{LANES, Lanes};
use crate::ops::math;

/// Vectors of a block's tokens.
pub(super) const TOKEN_VECTORS: usize = BLOCK_TOKENS / LANES;
/// Query rows that go through an inner loop together, at most.
pub(super) const ROWS: usize = 4;
/// Vectors of a head's dimensions that go through an inner loop together, at most.
pub(super) const COLUMNS: usize = 4;

/// Keys and values of one block, KV head and layer, in some format.
pub(super) trait Source: Copy {
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

/// Numbers converted to `f32` before, values of a token filled up to whole vectors.
#[derive(Clone, Copy)]
pub(super) struct Converted {
    /// `[head_dim][32]`.
    pub(super) keys: *const [f32; LANES],
    /// `[32][lines]`.
    pub(super) values: *const [f32; LANES],
    pub(super) lines: usize,
}

impl Source for Converted {
    #[inline(always)]
    unsafe fn keys<L: Lanes>(self, l: L, dim: usize, vector: usize) -> L::V {
        // SAFETY: the caller stays within the head and the block.
        l.load(unsafe { &*self.keys.add(dim * TOKEN_VECTORS + vector) })
    }

    #[inline(always)]
    unsafe fn values<L: Lanes>(self, l: L, token: usize, vector: usize) -> L::V {
        // SAFETY: the caller stays within the head and the block.
        l.load(unsafe { &*self.values.add(token * self.lines + vector) })
    }
}

/// A tile of half-precision numbers as it stands in a block; `head_dim` is a multiple of 16.
#[derive(Clone, Copy)]
pub(super) struct Halves<const BF16: bool> {
    pub(super) keys: *const [u8; 2 * LANES],
    pub(super) values: *const [u8; 2 * LANES],
    pub(super) lines: usize,
}

impl<const BF16: bool> Halves<BF16> {
    #[inline(always)]
    unsafe fn load<L: Lanes>(l: L, from: *const [u8; 2 * LANES]) -> L::V {
        // SAFETY: the caller passes a pointer into the tile.
        let from = unsafe { &*from };
        if BF16 {
            l.load_bf16(from)
        } else {
            l.load_f16(from)
        }
    }
}

impl<const BF16: bool> Source for Halves<BF16> {
    #[inline(always)]
    unsafe fn keys<L: Lanes>(self, l: L, dim: usize, vector: usize) -> L::V {
        // SAFETY: the caller stays within the head and the block.
        unsafe { Self::load(l, self.keys.add(dim * TOKEN_VECTORS + vector)) }
    }

    #[inline(always)]
    unsafe fn values<L: Lanes>(self, l: L, token: usize, vector: usize) -> L::V {
        // SAFETY: the caller stays within the head and the block.
        unsafe { Self::load(l, self.values.add(token * self.lines + vector)) }
    }
}

/// Scores of `R` query rows with the block's tokens.
///
/// # Safety
/// `queries[r]` points to `head_dim` numbers, and `source` is a tile of as many dimensions.
#[inline(always)]
pub(super) unsafe fn scores<L: Lanes, S: Source, const R: usize>(
    l: L,
    source: S,
    queries: [*const f32; R],
    head_dim: usize,
) -> [[L::V; TOKEN_VECTORS]; R] {
    let mut sums = [[l.splat(0.0); TOKEN_VECTORS]; R];
    for dim in 0..head_dim {
        // SAFETY: the caller's promises.
        unsafe {
            let keys: [L::V; TOKEN_VECTORS] = std::array::from_fn(|v| source.keys(l, dim, v));
            for r in 0..R {
                let q = l.splat(*queries[r].add(dim));
                for v in 0..TOKEN_VECTORS {
                    sums[r][v] = l.fma(q, keys[v], sums[r][v]);
                }
            }
        }
    }
    sums
}

/// Adds the tokens' values times their probabilities to `C` vectors, from `first` on, of `R` rows.
///
/// # Safety
/// `sums[r]` points to as many vectors as the head has lines, of which `first + C` is at most the number;
/// `probabilities[r]` points to [`BLOCK_TOKENS`] numbers.
#[inline(always)]
pub(super) unsafe fn add_values<L: Lanes, S: Source, const R: usize, const C: usize>(
    l: L,
    source: S,
    probabilities: [*const f32; R],
    sums: [*mut [f32; LANES]; R],
    factors: Option<[f32; R]>,
    first: usize,
) {
    // SAFETY: the caller's promises.
    unsafe {
        let mut acc = [[l.splat(0.0); C]; R];
        for r in 0..R {
            for c in 0..C {
                acc[r][c] = l.load(&*sums[r].add(first + c));
            }
            if let Some(factors) = factors {
                for c in 0..C {
                    acc[r][c] = l.mul(acc[r][c], l.splat(factors[r]));
                }
            }
        }
        for token in 0..BLOCK_TOKENS {
            let values: [L::V; C] = std::array::from_fn(|c| source.values(l, token, first + c));
            for r in 0..R {
                let p = l.splat(*probabilities[r].add(token));
                for c in 0..C {
                    acc[r][c] = l.fma(p, values[c], acc[r][c]);
                }
            }
        }
        for r in 0..R {
            for c in 0..C {
                l.store(acc[r][c], &mut *sums[r].add(first + c));
            }
        }
    }
}

/// `2^x` of one number by the vector function.
#[inline(always)]
pub(super) fn exp2<L: Lanes>(l: L, x: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    l.store(math::exp2(l, l.splat(x)), &mut lanes);
    lanes[0]
}
