//! Formats of groups of 32 that each have a scale, and perhaps a minimum: the groups stand in pairs.

use crate::format::{IQ4_CODES, MXFP4_CODES};
use crate::matmul::block::{Quantized, WIDE_OFFSET};
use crate::matrix::layout::{BYTES, FIVE_BITS, FIVE_BITS_MIN, NIBBLES, NIBBLES_MIN, Pairs};
use crate::simd::Simd;

/// Q4_0.
pub(crate) struct Q4_0;
/// Q4_1.
pub(crate) struct Q4_1;
/// Q5_0.
pub(crate) struct Q5_0;
/// Q5_1.
pub(crate) struct Q5_1;
/// Q8_0.
pub(crate) struct Q8_0;
/// IQ4_NL.
pub(crate) struct IQ4NL;
/// MXFP4.
pub(crate) struct MXFP4;

/// Codes as they are looked up: each with what kernels take off again.
const fn raised(codes: [i8; 16], offset: u8) -> [u8; 16] {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = (codes[i] as u8).wrapping_add(offset);
        i += 1;
    }
    table
}

/// The codes of IQ4_NL and IQ4_XS, which need all eight bits.
pub(super) const IQ4_TABLE: [u8; 16] = raised(IQ4_CODES, WIDE_OFFSET);
const MXFP4_TABLE: [u8; 16] = raised(MXFP4_CODES, MXFP4::OFFSET);

/// Columns `4j` on of four vectors of nibbles: the low ones are columns 0 to 15 of a group.
///
/// # Safety
/// The vectors stand at `at`, and see [`Simd`].
#[inline(always)]
pub(super) unsafe fn nibbles<S: Simd>(at: *const u8, j: usize) -> S::B {
    // SAFETY: the caller's promise.
    unsafe { S::bits::<0xF>(S::load_b(at.add(j % 4 * 64)), j as u32 / 4 * 4) }
}

/// The same with a vector of fifth bits before them.
///
/// # Safety
/// As [`nibbles`].
#[inline(always)]
unsafe fn five_bits<S: Simd>(at: *const u8, j: usize) -> S::B {
    // SAFETY: the caller's promise.
    unsafe {
        let low = nibbles::<S>(at.add(64), j);
        S::join_bits::<1, 4>(low, S::load_b(at), j as u32)
    }
}

/// Half-precision scales.
///
/// # Safety
/// `at` is a superblock of this layout which has the group, and see [`Simd`].
#[inline(always)]
unsafe fn scales<S: Simd>(layout: Pairs, at: *const u8, group: usize) -> S::F {
    // SAFETY: the caller's promise.
    unsafe { S::load_f16(at.add(layout.scales(group))) }
}

/// Half-precision minima.
///
/// # Safety
/// As [`scales`], and the layout has minima.
#[inline(always)]
unsafe fn mins<S: Simd>(layout: Pairs, at: *const u8, group: usize) -> S::F {
    // SAFETY: the caller's promise.
    unsafe { S::load_f16(at.add(layout.mins(group))) }
}

impl Quantized for Q4_0 {
    const GROUP: usize = 32;
    const HAS_MIN: bool = false;
    const OFFSET: u8 = 8;
    const STREAMED: usize = NIBBLES.streamed();

    #[inline(always)]
    unsafe fn codes<S: Simd>(at: *const u8, _: usize, group: usize, j: usize) -> S::B {
        // SAFETY: the superblock has the group.
        unsafe { nibbles::<S>(at.add(NIBBLES.codes(group)), j) }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(at: *const u8, _: usize, group: usize) -> S::F {
        // SAFETY: the superblock has the group.
        unsafe { scales::<S>(NIBBLES, at, group) }
    }
}

impl Quantized for Q4_1 {
    const GROUP: usize = 32;
    const HAS_MIN: bool = true;
    const OFFSET: u8 = 0;
    const STREAMED: usize = NIBBLES_MIN.streamed();

    #[inline(always)]
    unsafe fn codes<S: Simd>(at: *const u8, _: usize, group: usize, j: usize) -> S::B {
        // SAFETY: the superblock has the group.
        unsafe { nibbles::<S>(at.add(NIBBLES_MIN.codes(group)), j) }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(at: *const u8, _: usize, group: usize) -> S::F {
        // SAFETY: the superblock has the group.
        unsafe { scales::<S>(NIBBLES_MIN, at, group) }
    }

    #[inline(always)]
    unsafe fn mins<S: Simd>(at: *const u8, _: usize, group: usize) -> S::F {
        // SAFETY: the superblock has the group, and the layout minima.
        unsafe { mins::<S>(NIBBLES_MIN, at, group) }
    }
}

impl Quantized for Q5_0 {
    const GROUP: usize = 32;
    const HAS_MIN: bool = false;
    const OFFSET: u8 = 16;
    const STREAMED: usize = FIVE_BITS.streamed();

    #[inline(always)]
    unsafe fn codes<S: Simd>(at: *const u8, _: usize, group: usize, j: usize) -> S::B {
        // SAFETY: the superblock has the group.
        unsafe { five_bits::<S>(at.add(FIVE_BITS.codes(group)), j) }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(at: *const u8, _: usize, group: usize) -> S::F {
        // SAFETY: the superblock has the group.
        unsafe { scales::<S>(FIVE_BITS, at, group) }
    }
}

impl Quantized for Q5_1 {
    const GROUP: usize = 32;
    const HAS_MIN: bool = true;
    const OFFSET: u8 = 0;
    const STREAMED: usize = FIVE_BITS_MIN.streamed();

    #[inline(always)]
    unsafe fn codes<S: Simd>(at: *const u8, _: usize, group: usize, j: usize) -> S::B {
        // SAFETY: the superblock has the group.
        unsafe { five_bits::<S>(at.add(FIVE_BITS_MIN.codes(group)), j) }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(at: *const u8, _: usize, group: usize) -> S::F {
        // SAFETY: the superblock has the group.
        unsafe { scales::<S>(FIVE_BITS_MIN, at, group) }
    }

    #[inline(always)]
    unsafe fn mins<S: Simd>(at: *const u8, _: usize, group: usize) -> S::F {
        // SAFETY: the superblock has the group, and the layout minima.
        unsafe { mins::<S>(FIVE_BITS_MIN, at, group) }
    }
}

impl Quantized for Q8_0 {
    const GROUP: usize = 32;
    const HAS_MIN: bool = false;
    const OFFSET: u8 = WIDE_OFFSET;
    const STREAMED: usize = BYTES.streamed();

    #[inline(always)]
    unsafe fn codes<S: Simd>(at: *const u8, _: usize, group: usize, j: usize) -> S::B {
        // SAFETY: eight vectors of codes for each group.
        unsafe { S::load_b(at.add(BYTES.codes(group) + j * 64)) }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(at: *const u8, _: usize, group: usize) -> S::F {
        // SAFETY: the superblock has the group.
        unsafe { scales::<S>(BYTES, at, group) }
    }
}

impl Quantized for IQ4NL {
    const GROUP: usize = 32;
    const HAS_MIN: bool = false;
    const OFFSET: u8 = WIDE_OFFSET;
    const STREAMED: usize = NIBBLES.streamed();

    #[inline(always)]
    unsafe fn codes<S: Simd>(at: *const u8, _: usize, group: usize, j: usize) -> S::B {
        // SAFETY: the superblock has the group.
        unsafe { S::lookup(nibbles::<S>(at.add(NIBBLES.codes(group)), j), &IQ4_TABLE) }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(at: *const u8, _: usize, group: usize) -> S::F {
        // SAFETY: the superblock has the group.
        unsafe { scales::<S>(NIBBLES, at, group) }
    }
}

impl Quantized for MXFP4 {
    const GROUP: usize = 32;
    const HAS_MIN: bool = false;
    const OFFSET: u8 = 16;
    const STREAMED: usize = NIBBLES.streamed();

    #[inline(always)]
    unsafe fn codes<S: Simd>(at: *const u8, _: usize, group: usize, j: usize) -> S::B {
        // SAFETY: the superblock has the group.
        unsafe { S::lookup(nibbles::<S>(at.add(NIBBLES.codes(group)), j), &MXFP4_TABLE) }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(at: *const u8, _: usize, group: usize) -> S::F {
        // SAFETY: the superblock has the group.
        unsafe { S::load_bf16(at.add(NIBBLES.scales(group))) }
    }
}
