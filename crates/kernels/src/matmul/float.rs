//! The product kernel on float weights: one chain of multiply-adds for each output.

use std::marker::PhantomData;

use super::activation::Activations;
use super::block::Block;
use super::integer::each;
use crate::matrix::pack;
use crate::simd::{LANES, Simd};

/// A float format.
///
/// # Safety
/// See [`Simd`].
pub(crate) trait Float: 'static {
    /// Bytes of a value.
    const BYTES: usize;
    /// Reads 16 values.
    unsafe fn load<S: Simd>(at: *const u8) -> S::F;
}

/// F32.
pub(crate) struct F32;
/// F16.
pub(crate) struct F16;
/// BF16.
pub(crate) struct BF16;
/// Superblocks of values of a float format.
pub(crate) struct Floats<E>(PhantomData<E>);

impl Float for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load<S: Simd>(at: *const u8) -> S::F {
        // SAFETY: see Simd.
        unsafe { S::load(at.cast()) }
    }
}

impl Float for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<S: Simd>(at: *const u8) -> S::F {
        // SAFETY: see Simd.
        unsafe { S::load_f16(at) }
    }
}

impl Float for BF16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<S: Simd>(at: *const u8) -> S::F {
        // SAFETY: see Simd.
        unsafe { S::load_bf16(at) }
    }
}

impl<E: Float> Block for Floats<E> {
    type Expanded = Floats<F32>;
    const IS_FLOAT: bool = true;
    const HEAVY: bool = true;

    fn superblock_bytes(len: usize) -> usize {
        len * LANES * E::BYTES
    }

    fn row_bytes(len: usize) -> usize {
        len * E::BYTES
    }

    #[inline(always)]
    unsafe fn add_superblock<S: Simd, const R: usize, const W: usize>(
        panels: &[*const u8; R],
        len: usize,
        x: &Activations,
        at: usize,
        _: bool,
        sums: &mut [[S::F; R]; W],
    ) {
        // SAFETY: the caller's promise.
        unsafe { add_columns::<S, E, R, W>(panels, len, x.values.add(at), sums) }
    }

    #[inline(always)]
    unsafe fn expand<S: Simd>(from: *const u8, len: usize, to: *mut u8) {
        for k in 0..len {
            // SAFETY: 16 values for each column, before and after.
            unsafe {
                let values = E::load::<S>(from.add(k * LANES * E::BYTES));
                S::store(to.add(k * LANES * 4).cast(), values);
            }
        }
    }

    #[inline(always)]
    unsafe fn pack<S: Simd>(rows: &[*const u8; LANES], len: usize, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            if E::BYTES == 4 {
                pack::words::<S>(rows, len, to)
            } else {
                pack::halves(rows, len, to)
            }
        }
    }
}

/// # Safety
/// See [`Block::add_superblock`].
#[inline(always)]
unsafe fn add_columns<S: Simd, E: Float, const R: usize, const W: usize>(
    panels: &[*const u8; R],
    len: usize,
    x: *const f32,
    sums: &mut [[S::F; R]; W],
) {
    for k in 0..len {
        // SAFETY: column `k` of the superblock and of the tile.
        unsafe {
            let weights = each!(panels, panel => E::load::<S>(panel.add(k * LANES * E::BYTES)));
            for (i, sums) in sums.iter_mut().enumerate() {
                let x = S::splat(*x.add(k * W + i));
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = S::mul_add(weights, x, *sum);
                }
            }
        }
    }
}
