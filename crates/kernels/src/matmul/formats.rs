//! The layouts of the quantized formats, as the kernels read them.

mod pairs;
mod superblocks;

use super::activation::Activations;
use super::block::{Block, Quantized};
use super::integer::{self, expanded_bytes, expanded_mins, expanded_scales};
use crate::format::WeightFormat;
use crate::matrix::layout;
use crate::matrix::pack;
use crate::simd::{LANES, Simd};

pub(crate) use pairs::{IQ4NL, MXFP4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
pub(crate) use superblocks::{IQ4XS, Q2K, Q3K, Q4K, Q5K, Q6K};

/// Expanded groups of `GROUP` values: whole bytes of codes, then f32 scales, then f32 minima.
pub(crate) struct Expanded<const GROUP: usize, const HAS_MIN: bool, const OFFSET: u8>;

/// What becomes of formats of the same groups and offset.
type ExpandedOf8 = Expanded<32, false, 8>;
type ExpandedOf16 = Expanded<32, false, 16>;
type ExpandedWide = Expanded<32, false, 128>;
type ExpandedMin = Expanded<32, true, 0>;
type ExpandedOf32By16 = Expanded<16, false, 32>;
type ExpandedMinBy16 = Expanded<16, true, 0>;

impl<const GROUP: usize, const HAS_MIN: bool, const OFFSET: u8> Quantized
    for Expanded<GROUP, HAS_MIN, OFFSET>
{
    const GROUP: usize = GROUP;
    const HAS_MIN: bool = HAS_MIN;
    const OFFSET: u8 = OFFSET;
    const STREAMED: usize = 0;

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

block!(Q4_0, heavy: false, ExpandedOf8, pack::q4_0::<S>);
block!(Q4_1, heavy: false, ExpandedMin, pack::q4_1::<S>);
block!(Q5_0, heavy: true, ExpandedOf16, pack::q5_0::<S>);
block!(Q5_1, heavy: true, ExpandedMin, pack::q5_1::<S>);
block!(Q8_0, heavy: false, ExpandedWide, pack::q8_0::<S>);
block!(IQ4NL, heavy: true, ExpandedWide, pack::q4_0::<S>);
block!(MXFP4, heavy: true, ExpandedOf16, pack::mxfp4::<S>);
block!(Q2K, heavy: true, ExpandedMinBy16, pack::q2k::<S>);
block!(Q3K, heavy: true, ExpandedOf32By16, pack::q3k::<S>);
block!(Q4K, heavy: true, ExpandedMin, pack::q4k::<S>);
block!(Q5K, heavy: true, ExpandedMin, pack::q5k::<S>);
block!(Q6K, heavy: true, ExpandedOf32By16, pack::q6k::<S>);
block!(IQ4XS, heavy: true, ExpandedWide, pack::iq4xs::<S>);

impl<const GROUP: usize, const HAS_MIN: bool, const OFFSET: u8> Block
    for Expanded<GROUP, HAS_MIN, OFFSET>
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
