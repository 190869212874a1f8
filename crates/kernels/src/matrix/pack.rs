//! From rows to panels, a superblock at a time.
//!
//! The codes of every format are laid out so that four bytes of a file's row go to four bytes of
//! the panel as they are: packing is a transposition of 32-bit words.

use crate::format::unpack_scales_words;
use crate::matrix::layout::{
    K_FIFTH, K_PAIR, K_SHARED, PAIR_SCALES, Q4_0_PAIR, Q6K_HALF, Q6K_SCALES, Q8_0_PAIR,
};
use crate::simd::{LANES, Simd};

/// Transposes `16 * pieces` bytes at `skip` of each row to `to`.
///
/// # Safety
/// The bytes can be read, `to` has room for 16 times as many, and see [`Simd`].
#[inline(always)]
unsafe fn transpose<S: Simd>(
    rows: &[*const u8; LANES],
    skip: usize,
    pieces: usize,
    to: *mut u8,
    flip: u8,
) {
    for piece in 0..pieces {
        let mut from = *rows;
        for row in &mut from {
            *row = row.wrapping_add(skip + piece * 16);
        }
        // SAFETY: the caller's promise.
        unsafe { S::transpose(&from, to.add(piece * 16 * LANES), flip) }
    }
}

/// Copies two bytes at `skip` of each row to `to`.
///
/// # Safety
/// The bytes can be read, and 32 be written at `to`.
#[inline(always)]
unsafe fn half_of_each(rows: &[*const u8; LANES], skip: usize, to: *mut u8) {
    for (lane, row) in rows.iter().enumerate() {
        // SAFETY: the caller's promise; arrays of bytes have no alignment.
        unsafe {
            let half = row.add(skip).cast::<[u8; 2]>().read();
            to.add(lane * 2).cast::<[u8; 2]>().write(half);
        }
    }
}

/// # Safety
/// See [`Block::pack`](crate::matmul::block::Block::pack).
#[inline(always)]
pub(crate) unsafe fn q4_0<S: Simd>(rows: &[*const u8; LANES], len: usize, to: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { clear_odd_scales(len, to, Q4_0_PAIR) };
    for g in 0..len / 32 {
        // SAFETY: a block of 18 bytes for each group; a pair has the scales of both, then the
        // nibbles, 16 bytes of each row.
        unsafe {
            let (pair, half) = (to.add(g / 2 * Q4_0_PAIR), g % 2);
            half_of_each(rows, g * 18, pair.add(half * 2 * LANES));
            let codes = pair.add(PAIR_SCALES + half * 16 * LANES);
            transpose::<S>(rows, g * 18 + 2, 1, codes, 0);
        }
    }
}

/// # Safety
/// See [`Block::pack`](crate::matmul::block::Block::pack).
#[inline(always)]
pub(crate) unsafe fn q8_0<S: Simd>(rows: &[*const u8; LANES], len: usize, to: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { clear_odd_scales(len, to, Q8_0_PAIR) };
    for g in 0..len / 32 {
        // SAFETY: a block of 34 bytes for each group; a pair has the scales of both, then the
        // codes, 32 bytes of each row.
        unsafe {
            let (pair, half) = (to.add(g / 2 * Q8_0_PAIR), g % 2);
            half_of_each(rows, g * 34, pair.add(half * 2 * LANES));
            let codes = pair.add(PAIR_SCALES + half * 32 * LANES);
            transpose::<S>(rows, g * 34 + 2, 2, codes, 0x80);
        }
    }
}

/// Clears the place of the scales that the last of an odd number of groups leaves free.
///
/// # Safety
/// `to` has room for pairs of `len` columns.
#[inline(always)]
unsafe fn clear_odd_scales(len: usize, to: *mut u8, pair: usize) {
    if len / 32 % 2 == 1 {
        // SAFETY: the caller's promise.
        unsafe {
            to.add(len / 64 * pair + 2 * LANES)
                .write_bytes(0, 2 * LANES)
        }
    }
}

/// d, dmin, and the pairs of groups of Q4_K and Q5_K, whose nibbles are at `nibbles` of a row.
///
/// # Safety
/// Each row has a block; `to` has room for a superblock whose pairs begin at `pairs`; and see
/// [`Simd`].
#[inline(always)]
unsafe fn k_pairs<S: Simd>(rows: &[*const u8; LANES], nibbles: usize, to: *mut u8, pairs: usize) {
    // SAFETY: f16 d and dmin, then 12 bytes of scales and minima; 32 bytes of nibbles for a pair.
    unsafe {
        half_of_each(rows, 0, to);
        half_of_each(rows, 2, to.add(2 * LANES));
        let to = to.add(pairs);
        for (lane, row) in rows.iter().enumerate() {
            let words = row.add(4).cast::<[[u8; 4]; 3]>().read();
            let (scales, mins) = unpack_scales_words(words.map(u32::from_le_bytes));
            for g in 0..8 {
                let to = to.add(g / 2 * K_PAIR + g % 2 * LANES + lane);
                *to = scales[g];
                *to.add(2 * LANES) = mins[g];
            }
        }
        for pair in 0..4 {
            let to = to.add(pair * K_PAIR + PAIR_SCALES);
            transpose::<S>(rows, nibbles + pair * 32, 2, to, 0);
        }
    }
}

/// # Safety
/// See [`Block::pack`](crate::matmul::block::Block::pack).
#[inline(always)]
pub(crate) unsafe fn q4k<S: Simd>(rows: &[*const u8; LANES], _: usize, to: *mut u8) {
    // SAFETY: a block has 16 bytes of scales, then 128 of nibbles.
    unsafe { k_pairs::<S>(rows, 16, to, K_SHARED) }
}

/// # Safety
/// See [`Block::pack`](crate::matmul::block::Block::pack).
#[inline(always)]
pub(crate) unsafe fn q5k<S: Simd>(rows: &[*const u8; LANES], _: usize, to: *mut u8) {
    // SAFETY: a block has 16 bytes of scales, 32 of fifth bits, then 128 of nibbles.
    unsafe {
        k_pairs::<S>(rows, 48, to, K_SHARED + K_FIFTH);
        transpose::<S>(rows, 16, 2, to.add(K_SHARED), 0);
    }
}

/// # Safety
/// See [`Block::pack`](crate::matmul::block::Block::pack).
#[inline(always)]
pub(crate) unsafe fn q6k<S: Simd>(rows: &[*const u8; LANES], _: usize, to: *mut u8) {
    // SAFETY: a block has 128 bytes of nibbles, 64 of upper bits, 16 scales, and d.
    unsafe {
        half_of_each(rows, 208, to);
        to.add(2 * LANES).write_bytes(0, 2 * LANES);
        for half in 0..2 {
            let to = to.add(K_SHARED + half * Q6K_HALF);
            for (lane, row) in rows.iter().enumerate() {
                let scales = row.add(192 + half * 8).cast::<[u8; 8]>().read();
                for (g, scale) in scales.into_iter().enumerate() {
                    *to.add(g * LANES + lane) = scale;
                }
            }
            let to = to.add(Q6K_SCALES);
            for (run, piece) in [
                128 + half * 32,
                half * 64,
                128 + half * 32 + 16,
                half * 64 + 16,
            ]
            .into_iter()
            .enumerate()
            {
                transpose::<S>(rows, piece, 1, to.add(run * 256), 0);
            }
            transpose::<S>(rows, half * 64 + 32, 2, to.add(4 * 256), 0);
        }
    }
}

/// Rows of 4-byte values.
///
/// # Safety
/// See [`Block::pack`](crate::matmul::block::Block::pack).
#[inline(always)]
pub(crate) unsafe fn words<S: Simd>(rows: &[*const u8; LANES], len: usize, to: *mut u8) {
    // SAFETY: four columns are 16 bytes.
    unsafe {
        transpose::<S>(rows, 0, len / 4, to, 0);
        for k in len / 4 * 4..len {
            for (lane, row) in rows.iter().enumerate() {
                let word = row.add(k * 4).cast::<[u8; 4]>().read();
                to.add((k * LANES + lane) * 4).cast::<[u8; 4]>().write(word);
            }
        }
    }
}

/// Rows of 2-byte values.
///
/// # Safety
/// See [`Block::pack`](crate::matmul::block::Block::pack).
#[inline(always)]
pub(crate) unsafe fn halves(rows: &[*const u8; LANES], len: usize, to: *mut u8) {
    for k in 0..len {
        // SAFETY: two bytes for each column.
        unsafe { half_of_each(rows, k * 2, to.add(k * 2 * LANES)) }
    }
}
