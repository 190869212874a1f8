//! From rows to panels, a superblock at a time.
//!
//! The codes of every format are laid out so that four bytes of a file's row go to four bytes of
//! the panel as they are: packing is a transposition of 32-bit words.

use crate::format::{half_power_of_two, iq4xs_scales, q3k_scales, unpack_scales_words};
use crate::matrix::layout::{
    BYTES, FIVE_BITS, FIVE_BITS_MIN, IQ4XS_CODES, K_FIFTH, K_PAIR, K_SHARED, NIBBLES, NIBBLES_MIN,
    PAIR_SCALES, Pairs, Q2K_CODES, Q3K_CODES, Q3K_THIRD, Q6K_HALF, Q6K_SCALES,
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

/// The same with the opposite sign.
///
/// # Safety
/// As [`half_of_each`].
#[inline(always)]
unsafe fn negated_half_of_each(rows: &[*const u8; LANES], skip: usize, to: *mut u8) {
    // SAFETY: the caller's promise; the sign is the highest bit of the second byte.
    unsafe {
        half_of_each(rows, skip, to);
        for lane in 0..LANES {
            *to.add(lane * 2 + 1) ^= 0x80;
        }
    }
}

/// Clears the head of a last pair that lacks its second group.
///
/// # Safety
/// `to` has room for pairs of `len` columns.
#[inline(always)]
unsafe fn clear_odd_head(len: usize, to: *mut u8, layout: Pairs) {
    if len / 32 % 2 == 1 {
        // SAFETY: the caller's promise.
        unsafe { to.add(layout.pair(len / 32)).write_bytes(0, layout.head) }
    }
}

/// # Safety
/// See [`Block::pack`](crate::matmul::block::Block::pack).
#[inline(always)]
pub(crate) unsafe fn q4_0<S: Simd>(rows: &[*const u8; LANES], len: usize, to: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { clear_odd_head(len, to, NIBBLES) };
    for g in 0..len / 32 {
        // SAFETY: a block of 18 bytes for each group, 16 of them nibbles.
        unsafe {
            half_of_each(rows, g * 18, to.add(NIBBLES.scales(g)));
            transpose::<S>(rows, g * 18 + 2, 1, to.add(NIBBLES.codes(g)), 0);
        }
    }
}

/// # Safety
/// See [`Block::pack`](crate::matmul::block::Block::pack).
#[inline(always)]
pub(crate) unsafe fn q4_1<S: Simd>(rows: &[*const u8; LANES], len: usize, to: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { clear_odd_head(len, to, NIBBLES_MIN) };
    for g in 0..len / 32 {
        // SAFETY: a block of 20 bytes for each group: scale, minimum and 16 of nibbles.
        unsafe {
            half_of_each(rows, g * 20, to.add(NIBBLES_MIN.scales(g)));
            negated_half_of_each(rows, g * 20 + 2, to.add(NIBBLES_MIN.mins(g)));
            transpose::<S>(rows, g * 20 + 4, 1, to.add(NIBBLES_MIN.codes(g)), 0);
        }
    }
}

/// # Safety
/// See [`Block::pack`](crate::matmul::block::Block::pack).
#[inline(always)]
pub(crate) unsafe fn q5_0<S: Simd>(rows: &[*const u8; LANES], len: usize, to: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { clear_odd_head(len, to, FIVE_BITS) };
    for g in 0..len / 32 {
        // SAFETY: a block of 22 bytes for each group: scale, 4 of fifth bits and 16 of nibbles.
        unsafe {
            half_of_each(rows, g * 22, to.add(FIVE_BITS.scales(g)));
            let codes = to.add(FIVE_BITS.codes(g));
            fifth_bits(rows, g * 22 + 2, codes);
            transpose::<S>(rows, g * 22 + 6, 1, codes.add(64), 0);
        }
    }
}

/// # Safety
/// See [`Block::pack`](crate::matmul::block::Block::pack).
#[inline(always)]
pub(crate) unsafe fn q5_1<S: Simd>(rows: &[*const u8; LANES], len: usize, to: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { clear_odd_head(len, to, FIVE_BITS_MIN) };
    for g in 0..len / 32 {
        // SAFETY: a block of 24 bytes for each group: scale, minimum, 4 of fifth bits and 16 of nibbles.
        unsafe {
            half_of_each(rows, g * 24, to.add(FIVE_BITS_MIN.scales(g)));
            negated_half_of_each(rows, g * 24 + 2, to.add(FIVE_BITS_MIN.mins(g)));
            let codes = to.add(FIVE_BITS_MIN.codes(g));
            fifth_bits(rows, g * 24 + 4, codes);
            transpose::<S>(rows, g * 24 + 8, 1, codes.add(64), 0);
        }
    }
}

/// The fifth bits of 32 columns of each row, 4 bytes at `skip`: bit `4j + k` becomes bit `j` of byte `k`.
///
/// # Safety
/// The bytes can be read, and 64 be written at `to`.
#[inline(always)]
unsafe fn fifth_bits(rows: &[*const u8; LANES], skip: usize, to: *mut u8) {
    for (lane, row) in rows.iter().enumerate() {
        // SAFETY: the caller's promise; arrays of bytes have no alignment.
        unsafe {
            let word = u32::from_le_bytes(row.add(skip).cast::<[u8; 4]>().read());
            let bytes: [u8; 4] = std::array::from_fn(|k| every_fourth_bit(word >> k));
            to.add(lane * 4).cast::<[u8; 4]>().write(bytes);
        }
    }
}

/// Bits 0, 4, 8, … together.
#[inline(always)]
fn every_fourth_bit(word: u32) -> u8 {
    let pairs = word & 0x1111_1111;
    let pairs = (pairs | pairs >> 3) & 0x0303_0303;
    let fours = (pairs | pairs >> 6) & 0x000F_000F;
    (fours | fours >> 12) as u8
}

/// # Safety
/// See [`Block::pack`](crate::matmul::block::Block::pack).
#[inline(always)]
pub(crate) unsafe fn q8_0<S: Simd>(rows: &[*const u8; LANES], len: usize, to: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { clear_odd_head(len, to, BYTES) };
    for g in 0..len / 32 {
        // SAFETY: a block of 34 bytes for each group, 32 of them codes.
        unsafe {
            half_of_each(rows, g * 34, to.add(BYTES.scales(g)));
            transpose::<S>(rows, g * 34 + 2, 2, to.add(BYTES.codes(g)), 0x80);
        }
    }
}

/// # Safety
/// See [`Block::pack`](crate::matmul::block::Block::pack).
#[inline(always)]
pub(crate) unsafe fn mxfp4<S: Simd>(rows: &[*const u8; LANES], len: usize, to: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { clear_odd_head(len, to, NIBBLES) };
    for g in 0..len / 32 {
        // SAFETY: a block of 17 bytes for each group, 16 of them nibbles. The upper half of a power of two is all of it.
        unsafe {
            for (lane, row) in rows.iter().enumerate() {
                let scale = half_power_of_two(*row.add(g * 17));
                let half = (scale.to_bits() >> 16) as u16;
                let to = to.add(NIBBLES.scales(g) + lane * 2);
                to.cast::<[u8; 2]>().write(half.to_le_bytes());
            }
            transpose::<S>(rows, g * 17 + 1, 1, to.add(NIBBLES.codes(g)), 0);
        }
    }
}

/// # Safety
/// See [`Block::pack`](crate::matmul::block::Block::pack).
#[inline(always)]
pub(crate) unsafe fn q2k<S: Simd>(rows: &[*const u8; LANES], _: usize, to: *mut u8) {
    // SAFETY: a block has 16 bytes of scales and minima, 64 of codes, d and dmin.
    unsafe {
        half_of_each(rows, 80, to);
        half_of_each(rows, 82, to.add(2 * LANES));
        for (lane, row) in rows.iter().enumerate() {
            let scales = row.cast::<[u8; 16]>().read();
            write_scales(scales, lane, to);
        }
        transpose::<S>(rows, 16, 4, to.add(Q2K_CODES), 0);
    }
}

/// # Safety
/// See [`Block::pack`](crate::matmul::block::Block::pack).
#[inline(always)]
pub(crate) unsafe fn q3k<S: Simd>(rows: &[*const u8; LANES], _: usize, to: *mut u8) {
    // SAFETY: a block has 32 bytes of third bits, 64 of codes, 12 of scales, and d.
    unsafe {
        half_of_each(rows, 108, to);
        to.add(2 * LANES).write_bytes(0, 2 * LANES);
        for (lane, row) in rows.iter().enumerate() {
            let packed = row.add(96).cast::<[u8; 12]>().read();
            write_scales(q3k_scales(&packed).map(|s| s as u8), lane, to);
        }
        transpose::<S>(rows, 0, 2, to.add(Q3K_THIRD), 0);
        transpose::<S>(rows, 32, 4, to.add(Q3K_CODES), 0);
    }
}

/// # Safety
/// See [`Block::pack`](crate::matmul::block::Block::pack).
#[inline(always)]
pub(crate) unsafe fn iq4xs<S: Simd>(rows: &[*const u8; LANES], _: usize, to: *mut u8) {
    // SAFETY: a block has d, 6 bytes of scales and 128 of nibbles.
    unsafe {
        half_of_each(rows, 0, to);
        to.add(2 * LANES).write_bytes(0, 2 * LANES);
        for (lane, row) in rows.iter().enumerate() {
            let packed = row.add(2).cast::<[u8; 6]>().read();
            write_scales(iq4xs_scales(&packed).map(|s| s as u8), lane, to);
        }
        for g in 0..8 {
            transpose::<S>(rows, 8 + g * 16, 1, to.add(IQ4XS_CODES + g * 256), 0);
        }
    }
}

/// Writes the scales of a row, a byte for each group, after what a superblock shares.
///
/// # Safety
/// The superblock at `to` has room for 16 rows of them.
#[inline(always)]
unsafe fn write_scales<const GROUPS: usize>(scales: [u8; GROUPS], lane: usize, to: *mut u8) {
    for (g, scale) in scales.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { *to.add(K_SHARED + g * LANES + lane) = scale }
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
