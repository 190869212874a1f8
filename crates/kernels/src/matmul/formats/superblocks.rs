//! Formats of 256 columns whose groups' scales are themselves codes.

use super::pairs::{IQ4_TABLE, nibbles};
use crate::format::WeightFormat;
use crate::matmul::block::{Quantized, WIDE_OFFSET};
use crate::matrix::layout::{
    IQ4XS_CODES, K_FIFTH, K_PAIR, K_SHARED, PAIR_SCALES, Q2K_CODES, Q3K_CODES, Q3K_THIRD, Q6K_HALF,
    Q6K_SCALES, SUPERBLOCK, superblock_bytes,
};
use crate::simd::{LANES, Simd};

/// Q2_K.
pub(crate) struct Q2K;
/// Q3_K.
pub(crate) struct Q3K;
/// Q4_K.
pub(crate) struct Q4K;
/// Q5_K.
pub(crate) struct Q5K;
/// Q6_K.
pub(crate) struct Q6K;
/// IQ4_XS.
pub(crate) struct IQ4XS;

/// Three bits, each with the 4 that codes of Q3_K stand below them, raised to 32 as kernels take them in groups of 16.
const Q3K_TABLE: [u8; 16] = [28, 29, 30, 31, 32, 33, 34, 35, 0, 0, 0, 0, 0, 0, 0, 0];

/// The lower two bits of columns `4j` on of a group of 16: 128 columns share eight vectors.
///
/// # Safety
/// The codes of a superblock of Q2_K or Q3_K stand at `at`, and see [`Simd`].
#[inline(always)]
unsafe fn two_bits<S: Simd>(at: *const u8, group: usize, j: usize) -> S::B {
    // SAFETY: four vectors for every second group of 128 columns, and four for the others.
    unsafe {
        let run = group / 8 * 2 + group % 2;
        let bytes = S::load_b(at.add((run * 4 + j) * 64));
        S::bits::<3>(bytes, group as u32 % 8 / 2 * 2)
    }
}

/// Half-precision scales of superblocks times those of a group, signed bytes.
///
/// # Safety
/// `at` is a superblock whose scales stand after what it shares, and see [`Simd`].
#[inline(always)]
unsafe fn signed_scales<S: Simd>(at: *const u8, group: usize) -> S::F {
    // SAFETY: the caller's promise.
    unsafe {
        S::mul(
            S::load_f16(at),
            S::load_i8(at.add(K_SHARED + group * LANES)),
        )
    }
}

impl Quantized for Q2K {
    const GROUP: usize = 16;
    const HAS_MIN: bool = true;
    const OFFSET: u8 = 0;
    const STREAMED: usize = superblock_bytes(WeightFormat::Q2K, SUPERBLOCK) / 16;

    #[inline(always)]
    unsafe fn codes<S: Simd>(at: *const u8, _: usize, group: usize, j: usize) -> S::B {
        // SAFETY: the superblock has the group.
        unsafe { two_bits::<S>(at.add(Q2K_CODES), group, j) }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(at: *const u8, _: usize, group: usize) -> S::F {
        // SAFETY: f16 d[16] first, a byte of each row for the group after dmin.
        unsafe {
            S::mul(
                S::load_f16(at),
                S::load_u4(at.add(K_SHARED + group * LANES), 0),
            )
        }
    }

    #[inline(always)]
    unsafe fn mins<S: Simd>(at: *const u8, _: usize, group: usize) -> S::F {
        // SAFETY: f16 dmin[16] follows d.
        unsafe {
            let mins = S::load_u4(at.add(K_SHARED + group * LANES), 4);
            S::mul(S::load_f16(at.add(2 * LANES)), mins)
        }
    }
}

impl Quantized for Q3K {
    const GROUP: usize = 16;
    const HAS_MIN: bool = false;
    const OFFSET: u8 = 32;
    const STREAMED: usize = superblock_bytes(WeightFormat::Q3K, SUPERBLOCK) / 16;

    #[inline(always)]
    unsafe fn codes<S: Simd>(at: *const u8, _: usize, group: usize, j: usize) -> S::B {
        // SAFETY: four vectors of third bits for all even groups, and four for the odd ones.
        unsafe {
            let low = two_bits::<S>(at.add(Q3K_CODES), group, j);
            let third = S::load_b(at.add(Q3K_THIRD + (group % 2 * 4 + j) * 64));
            let bits = S::join_bits::<1, 2>(low, third, group as u32 / 2);
            S::lookup(bits, &Q3K_TABLE)
        }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(at: *const u8, _: usize, group: usize) -> S::F {
        // SAFETY: the superblock has the group.
        unsafe { signed_scales::<S>(at, group) }
    }
}

impl Quantized for IQ4XS {
    const GROUP: usize = 32;
    const HAS_MIN: bool = false;
    const OFFSET: u8 = WIDE_OFFSET;
    const STREAMED: usize = superblock_bytes(WeightFormat::IQ4XS, SUPERBLOCK) / 8;

    #[inline(always)]
    unsafe fn codes<S: Simd>(at: *const u8, _: usize, group: usize, j: usize) -> S::B {
        // SAFETY: four vectors of nibbles for each group.
        unsafe {
            S::lookup(
                nibbles::<S>(at.add(IQ4XS_CODES + group * 256), j),
                &IQ4_TABLE,
            )
        }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(at: *const u8, _: usize, group: usize) -> S::F {
        // SAFETY: the superblock has the group.
        unsafe { signed_scales::<S>(at, group) }
    }
}

/// Scales of a group of Q4_K and Q5_K.
///
/// # Safety
/// `at` is a superblock whose pairs begin at `pairs` and which has the group; and see [`Simd`].
#[inline(always)]
unsafe fn k_scales<S: Simd>(at: *const u8, pairs: usize, group: usize) -> S::F {
    // SAFETY: f16 d[16] first of all, u8 scales[2][16] first in a pair.
    unsafe {
        let scales = at.add(pairs + group / 2 * K_PAIR + group % 2 * LANES);
        S::mul(S::load_f16(at), S::load_u8(scales))
    }
}

/// Minima of a group of Q4_K and Q5_K.
///
/// # Safety
/// As [`k_scales`].
#[inline(always)]
unsafe fn k_mins<S: Simd>(at: *const u8, pairs: usize, group: usize) -> S::F {
    // SAFETY: f16 dmin[16] follows d, u8 mins[2][16] the scales.
    unsafe {
        let mins = at.add(pairs + group / 2 * K_PAIR + (2 + group % 2) * LANES);
        S::mul(S::load_f16(at.add(2 * LANES)), S::load_u8(mins))
    }
}

/// Nibbles of a group of Q4_K and Q5_K: a pair shares eight vectors.
///
/// # Safety
/// As [`k_scales`].
#[inline(always)]
unsafe fn k_nibbles<S: Simd>(at: *const u8, pairs: usize, group: usize, j: usize) -> S::B {
    // SAFETY: the nibbles follow the minima.
    unsafe {
        let bytes = S::load_b(at.add(pairs + group / 2 * K_PAIR + PAIR_SCALES + j * 64));
        S::bits::<0xF>(bytes, group as u32 % 2 * 4)
    }
}

impl Quantized for Q4K {
    const GROUP: usize = 32;
    const HAS_MIN: bool = true;
    const OFFSET: u8 = 0;
    const STREAMED: usize = (K_SHARED + 4 * K_PAIR) / 8;

    #[inline(always)]
    unsafe fn codes<S: Simd>(at: *const u8, _: usize, group: usize, j: usize) -> S::B {
        // SAFETY: the superblock has the group.
        unsafe { k_nibbles::<S>(at, K_SHARED, group, j) }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(at: *const u8, _: usize, group: usize) -> S::F {
        // SAFETY: the superblock has the group.
        unsafe { k_scales::<S>(at, K_SHARED, group) }
    }

    #[inline(always)]
    unsafe fn mins<S: Simd>(at: *const u8, _: usize, group: usize) -> S::F {
        // SAFETY: the superblock has the group.
        unsafe { k_mins::<S>(at, K_SHARED, group) }
    }
}

impl Quantized for Q5K {
    const GROUP: usize = 32;
    const HAS_MIN: bool = true;
    const OFFSET: u8 = 0;
    const STREAMED: usize = (K_SHARED + K_FIFTH + 4 * K_PAIR) / 8;

    #[inline(always)]
    unsafe fn codes<S: Simd>(at: *const u8, _: usize, group: usize, j: usize) -> S::B {
        // SAFETY: eight vectors of fifth bits, bit g for group g, before the pairs.
        unsafe {
            let low = k_nibbles::<S>(at, K_SHARED + K_FIFTH, group, j);
            S::join_bits::<1, 4>(low, S::load_b(at.add(K_SHARED + j * 64)), group as u32)
        }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(at: *const u8, _: usize, group: usize) -> S::F {
        // SAFETY: the superblock has the group.
        unsafe { k_scales::<S>(at, K_SHARED + K_FIFTH, group) }
    }

    #[inline(always)]
    unsafe fn mins<S: Simd>(at: *const u8, _: usize, group: usize) -> S::F {
        // SAFETY: the superblock has the group.
        unsafe { k_mins::<S>(at, K_SHARED + K_FIFTH, group) }
    }
}

impl Quantized for Q6K {
    const GROUP: usize = 16;
    const HAS_MIN: bool = false;
    const OFFSET: u8 = 32;
    const STREAMED: usize = (K_SHARED + 2 * Q6K_HALF) / 16;

    #[inline(always)]
    unsafe fn codes<S: Simd>(at: *const u8, _: usize, group: usize, j: usize) -> S::B {
        // SAFETY: for each half of the columns 16 vectors of nibbles and 8 of upper bits. Columns
        // 0 to 63 of a half have the low nibbles, 64 to 127 the high ones; columns l, l + 32,
        // l + 64 and l + 96 share a byte of upper bits.
        unsafe {
            let (half, within) = (at.add(K_SHARED + group / 8 * Q6K_HALF), group % 8);
            let at = half.add(Q6K_SCALES);
            // Runs of four vectors: upper 0, nibbles 0, upper 1, nibbles 1, nibbles 2, nibbles 3.
            let run = [1, 3, 4, 5][within % 4];
            let low = S::load_b(at.add((run * 4 + j) * 64));
            let low = S::bits::<0xF>(low, within as u32 / 4 * 4);
            let high = S::load_b(at.add((within % 2 * 8 + j) * 64));
            S::join_bits::<3, 4>(low, high, within as u32 / 2 * 2)
        }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(at: *const u8, _: usize, group: usize) -> S::F {
        // SAFETY: f16 d[16] first, i8 scales[16][16] after a gap.
        unsafe {
            let scales = S::load_i8(at.add(K_SHARED + group / 8 * Q6K_HALF + group % 8 * LANES));
            S::mul(S::load_f16(at), scales)
        }
    }
}
