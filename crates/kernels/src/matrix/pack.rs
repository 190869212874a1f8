//! From rows to panels, a superblock at a time.
//!
//! The codes of every format are laid out so that four bytes of a file's row go to four bytes of
//! the panel as they are: packing is a transposition of 32-bit words.

use crate::format::unpack_scales_words;
use crate::matrix::layout::{K_CODES, K_MINS, K_SCALES, Q6K_HIGH, Q6K_LOW};
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
    for g in 0..len / 32 {
        // SAFETY: a block of 18 bytes for each group; 2 bytes of scales for each group and row,
        // then 16 bytes of nibbles.
        unsafe {
            half_of_each(rows, g * 18, to.add(g * 2 * LANES));
            transpose::<S>(rows, g * 18 + 2, 1, to.add(len + g * 16 * LANES), 0);
        }
    }
}

/// # Safety
/// See [`Block::pack`](crate::matmul::block::Block::pack).
#[inline(always)]
pub(crate) unsafe fn q8_0<S: Simd>(rows: &[*const u8; LANES], len: usize, to: *mut u8) {
    for g in 0..len / 32 {
        // SAFETY: a block of 34 bytes for each group; 2 bytes of scales for each group and row,
        // then 32 bytes of codes.
        unsafe {
            half_of_each(rows, g * 34, to.add(g * 2 * LANES));
            transpose::<S>(rows, g * 34 + 2, 2, to.add(len + g * 32 * LANES), 0x80);
        }
    }
}

/// The scales and minima of Q4_K and Q5_K.
///
/// # Safety
/// Each row has a block, and `K_CODES` bytes can be written at `to`.
#[inline(always)]
unsafe fn k_scales(rows: &[*const u8; LANES], to: *mut u8) {
    // SAFETY: f16 d and dmin, then 12 bytes of scales and minima.
    unsafe {
        half_of_each(rows, 0, to);
        half_of_each(rows, 2, to.add(2 * LANES));
        for (lane, row) in rows.iter().enumerate() {
            let words = row
                .add(4)
                .cast::<[[u8; 4]; 3]>()
                .read()
                .map(u32::from_le_bytes);
            let (scales, mins) = unpack_scales_words(words);
            for g in 0..8 {
                *to.add(K_SCALES + g * LANES + lane) = scales[g];
                *to.add(K_MINS + g * LANES + lane) = mins[g];
            }
        }
    }
}

/// # Safety
/// See [`Block::pack`](crate::matmul::block::Block::pack).
#[inline(always)]
pub(crate) unsafe fn q4k<S: Simd>(rows: &[*const u8; LANES], _: usize, to: *mut u8) {
    // SAFETY: a block has 16 bytes of scales, then 128 of nibbles.
    unsafe {
        k_scales(rows, to);
        transpose::<S>(rows, 16, 8, to.add(K_CODES), 0);
    }
}

/// # Safety
/// See [`Block::pack`](crate::matmul::block::Block::pack).
#[inline(always)]
pub(crate) unsafe fn q5k<S: Simd>(rows: &[*const u8; LANES], _: usize, to: *mut u8) {
    // SAFETY: a block has 16 bytes of scales, 32 of fifth bits, then 128 of nibbles.
    unsafe {
        k_scales(rows, to);
        transpose::<S>(rows, 16, 10, to.add(K_CODES), 0);
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
        for (lane, row) in rows.iter().enumerate() {
            let scales = row.add(192).cast::<[u8; 16]>().read();
            for (g, scale) in scales.into_iter().enumerate() {
                *to.add(64 + g * LANES + lane) = scale;
            }
        }
        transpose::<S>(rows, 0, 8, to.add(Q6K_LOW), 0);
        transpose::<S>(rows, 128, 4, to.add(Q6K_HIGH), 0);
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
