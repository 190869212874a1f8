//! With NEON.

use super::{COMPRESS, EXPAND};
use std::arch::aarch64::*;

/// A bit of each lane, the first lowest.
static BITS: [u8; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

#[target_feature(enable = "neon")]
#[inline]
fn load(bytes: &[u8; 8]) -> uint8x8_t {
    // SAFETY: these are eight bytes.
    unsafe { vld1_u8(bytes.as_ptr()) }
}

/// The lanes whose bytes are all ones, of such as have all or none.
#[target_feature(enable = "neon")]
#[inline]
pub(in crate::rans) fn set_of(lanes: uint8x8_t) -> u8 {
    vaddv_u8(vand_u8(lanes, load(&BITS)))
}

/// A shuffle of words from one of bytes.
#[target_feature(enable = "neon")]
#[inline]
fn of_words(shuffle: &[u8; 8]) -> uint8x16_t {
    let shuffle = vcombine_u8(load(shuffle), load(shuffle));
    let twice = vzip1q_u8(shuffle, shuffle);
    let second = vreinterpretq_u8_u16(vdupq_n_u16(0x0100));
    // Saturating, so that what makes zero still does.
    vqaddq_u8(vqaddq_u8(twice, twice), second)
}

/// The bytes of the set's lanes, at its end.
#[target_feature(enable = "neon")]
#[inline]
pub(in crate::rans) fn compress_bytes(set: u8, from: uint8x8_t) -> uint8x8_t {
    vtbl1_u8(from, load(&COMPRESS[usize::from(set)]))
}

/// To the lanes of the set the words of `from` in order, zero to others.
#[target_feature(enable = "neon")]
#[inline]
pub(in crate::rans) fn expand_words(set: u8, from: uint8x16_t) -> uint8x16_t {
    vqtbl1q_u8(from, of_words(&EXPAND[usize::from(set)]))
}

/// [`compress_bytes`] of words.
#[target_feature(enable = "neon")]
#[inline]
pub(in crate::rans) fn compress_words(set: u8, from: uint8x16_t) -> uint8x16_t {
    vqtbl1q_u8(from, of_words(&COMPRESS[usize::from(set)]))
}
