//! The layouts of the quantized formats, as the kernels read them.

use super::activation::{Activations, Starts};
use super::block::{Block, Quantized};
use super::integer::{self, expanded_bytes, expanded_mins, expanded_scales};
use crate::format::WeightFormat;
use crate::matrix::layout::{
    self, K_FIFTH, K_PAIR, K_SHARED, PAIR_SCALES, Q4_0_PAIR, Q6K_HALF, Q6K_SCALES, Q8_0_PAIR,
};
use crate::matrix::pack;
use crate::simd::{LANES, Simd};

/// Q4_0.
pub(crate) struct Q4_0;
/// Q8_0.
pub(crate) struct Q8_0;
/// Q4_K.
pub(crate) struct Q4K;
/// Q5_K.
pub(crate) struct Q5K;
/// Q6_K.
pub(crate) struct Q6K;
/// Expanded groups of `GROUP` values: whole bytes of codes, then f32 scales, then f32 minima. The
/// starts are those of the format that was expanded.
pub(crate) struct Expanded<const GROUP: usize, const HAS_MIN: bool, const WIDE: bool>;

/// What becomes of Q4_0.
type Expanded32 = Expanded<32, false, false>;
/// What becomes of Q8_0.
type ExpandedWide = Expanded<32, false, true>;
/// What becomes of Q4_K and Q5_K.
type ExpandedMin = Expanded<32, true, false>;
/// What becomes of Q6_K.
type Expanded16 = Expanded<16, false, false>;

impl Quantized for Q4_0 {
    const GROUP: usize = 32;
    const HAS_MIN: bool = false;
    const WIDE: bool = false;
    const STREAMED: usize = 18 * LANES;

    fn starts(_: bool) -> Starts {
        Starts::Offset8
    }

    #[inline(always)]
    unsafe fn codes<S: Simd>(at: *const u8, _: usize, group: usize, j: usize) -> S::B {
        // SAFETY: four vectors of nibbles for each group, after the scales of the pair.
        unsafe {
            let pair = at.add(group / 2 * Q4_0_PAIR);
            let bytes = S::load_b(pair.add(PAIR_SCALES + group % 2 * 256 + j % 4 * 64));
            S::nibbles(bytes, j as u32 / 4 * 4)
        }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(at: *const u8, _: usize, group: usize) -> S::F {
        // SAFETY: 16 half-precision scales for each group, first in the pair.
        unsafe { S::load_f16(at.add(group / 2 * Q4_0_PAIR + group % 2 * 2 * LANES)) }
    }

    #[inline(always)]
    unsafe fn mins<S: Simd>(_: *const u8, _: usize, _: usize) -> S::F {
        // SAFETY: see Simd.
        unsafe { S::splat(0.0) }
    }
}

impl Quantized for Q8_0 {
    const GROUP: usize = 32;
    const HAS_MIN: bool = false;
    const WIDE: bool = true;
    const STREAMED: usize = 34 * LANES;

    fn starts(wide_is_signed: bool) -> Starts {
        if wide_is_signed {
            Starts::Magic
        } else {
            Starts::Offset128
        }
    }

    #[inline(always)]
    unsafe fn codes<S: Simd>(at: *const u8, _: usize, group: usize, j: usize) -> S::B {
        // SAFETY: eight vectors of codes for each group, after the scales of the pair.
        unsafe {
            let pair = at.add(group / 2 * Q8_0_PAIR);
            S::load_b(pair.add(PAIR_SCALES + group % 2 * 512 + j * 64))
        }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(at: *const u8, _: usize, group: usize) -> S::F {
        // SAFETY: 16 half-precision scales for each group, first in the pair.
        unsafe { S::load_f16(at.add(group / 2 * Q8_0_PAIR + group % 2 * 2 * LANES)) }
    }

    #[inline(always)]
    unsafe fn mins<S: Simd>(_: *const u8, _: usize, _: usize) -> S::F {
        // SAFETY: see Simd.
        unsafe { S::splat(0.0) }
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
        S::nibbles(bytes, group as u32 % 2 * 4)
    }
}

impl Quantized for Q4K {
    const GROUP: usize = 32;
    const HAS_MIN: bool = true;
    const WIDE: bool = false;
    const STREAMED: usize = (K_SHARED + 4 * K_PAIR) / 8;

    fn starts(_: bool) -> Starts {
        Starts::Magic
    }

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
    const WIDE: bool = false;
    const STREAMED: usize = (K_SHARED + K_FIFTH + 4 * K_PAIR) / 8;

    fn starts(_: bool) -> Starts {
        Starts::Magic
    }

    #[inline(always)]
    unsafe fn codes<S: Simd>(at: *const u8, _: usize, group: usize, j: usize) -> S::B {
        // SAFETY: eight vectors of fifth bits, bit g for group g, before the pairs.
        unsafe {
            let low = k_nibbles::<S>(at, K_SHARED + K_FIFTH, group, j);
            S::join_bits::<1>(low, S::load_b(at.add(K_SHARED + j * 64)), group as u32)
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
    const WIDE: bool = false;
    const STREAMED: usize = (K_SHARED + 2 * Q6K_HALF) / 16;

    fn starts(_: bool) -> Starts {
        Starts::Offset32By16
    }

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
            let low = S::nibbles(low, within as u32 / 4 * 4);
            let high = S::load_b(at.add((within % 2 * 8 + j) * 64));
            S::join_bits::<3>(low, high, within as u32 / 2 * 2)
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

    #[inline(always)]
    unsafe fn mins<S: Simd>(_: *const u8, _: usize, _: usize) -> S::F {
        // SAFETY: see Simd.
        unsafe { S::splat(0.0) }
    }
}

impl<const GROUP: usize, const HAS_MIN: bool, const WIDE: bool> Quantized
    for Expanded<GROUP, HAS_MIN, WIDE>
{
    const GROUP: usize = GROUP;
    const HAS_MIN: bool = HAS_MIN;
    const WIDE: bool = WIDE;
    const STREAMED: usize = 0;

    fn starts(wide_is_signed: bool) -> Starts {
        match (GROUP, HAS_MIN, WIDE) {
            (16, ..) => Q6K::starts(wide_is_signed),
            (_, true, _) => Q4K::starts(wide_is_signed),
            (_, _, true) => Q8_0::starts(wide_is_signed),
            _ => Q4_0::starts(wide_is_signed),
        }
    }

    #[inline(always)]
    unsafe fn codes<S: Simd>(at: *const u8, _: usize, group: usize, j: usize) -> S::B {
        // SAFETY: the codes of the groups in order, first of all.
        unsafe { S::load_b(at.add((group * (GROUP / 4) + j) * 64)) }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(at: *const u8, len: usize, group: usize) -> S::F {
        // SAFETY: then the scales.
        unsafe { S::load(at.add(expanded_scales(len) + group * 64).cast()) }
    }

    #[inline(always)]
    unsafe fn mins<S: Simd>(at: *const u8, len: usize, group: usize) -> S::F {
        // SAFETY: then the minima, where the format has them.
        unsafe { S::load(at.add(expanded_mins::<Self>(len) + group * 64).cast()) }
    }
}

/// The kernels of a file format by those of its groups.
macro_rules! block {
    ($format:ident, heavy: $heavy:literal, $expanded:ident, $pack:path) => {
        impl Block for $format {
            type Expanded = $expanded;
            const IS_FLOAT: bool = false;
            const HEAVY: bool = $heavy;

            fn superblock_bytes(len: usize) -> usize {
                layout::superblock_bytes(WeightFormat::$format, len)
            }

            fn row_bytes(len: usize) -> usize {
                let format = WeightFormat::$format;
                len / format.block_len() * format.block_bytes()
            }

            #[inline(always)]
            unsafe fn add_superblock<S: Simd, const R: usize, const W: usize>(
                panels: &[*const u8; R],
                len: usize,
                x: &Activations,
                at: usize,
                streams: bool,
                sums: &mut [[S::F; R]; W],
            ) {
                // SAFETY: the caller's promise.
                unsafe {
                    integer::add_superblock::<S, Self, R, W>(panels, len, x, at, streams, sums)
                }
            }

            #[inline(always)]
            unsafe fn expand<S: Simd>(from: *const u8, len: usize, to: *mut u8) {
                // SAFETY: the caller's promise.
                unsafe { integer::expand::<S, $format>(from, len, to) }
            }

            #[inline(always)]
            unsafe fn pack<S: Simd>(rows: &[*const u8; LANES], len: usize, to: *mut u8) {
                // SAFETY: the caller's promise.
                unsafe { $pack(rows, len, to) }
            }
        }
    };
}

block!(Q4_0, heavy: false, Expanded32, pack::q4_0::<S>);
block!(Q8_0, heavy: false, ExpandedWide, pack::q8_0::<S>);
block!(Q4K, heavy: true, ExpandedMin, pack::q4k::<S>);
block!(Q5K, heavy: true, ExpandedMin, pack::q5k::<S>);
block!(Q6K, heavy: true, Expanded16, pack::q6k::<S>);

impl<const GROUP: usize, const HAS_MIN: bool, const WIDE: bool> Block
    for Expanded<GROUP, HAS_MIN, WIDE>
{
    type Expanded = Self;
    const IS_FLOAT: bool = false;
    const HEAVY: bool = false;

    fn superblock_bytes(len: usize) -> usize {
        expanded_bytes::<Self>(len)
    }

    fn row_bytes(_: usize) -> usize {
        unreachable!("no file has expanded blocks")
    }

    #[inline(always)]
    unsafe fn add_superblock<S: Simd, const R: usize, const W: usize>(
        panels: &[*const u8; R],
        len: usize,
        x: &Activations,
        at: usize,
        streams: bool,
        sums: &mut [[S::F; R]; W],
    ) {
        // SAFETY: the caller's promise.
        unsafe { integer::add_superblock::<S, Self, R, W>(panels, len, x, at, streams, sums) }
    }

    unsafe fn expand<S: Simd>(_: *const u8, _: usize, _: *mut u8) {
        unreachable!("expanded already")
    }

    unsafe fn pack<S: Simd>(_: &[*const u8; LANES], _: usize, _: *mut u8) {
        unreachable!("no file has expanded blocks")
    }
}
