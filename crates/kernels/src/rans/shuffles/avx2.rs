//! With AVX2, registers of sixteen bytes.

use super::{COMPRESS, EXPAND};
use std::arch::x86_64::*;

#[target_feature(enable = "avx2")]
#[inline]
fn of_bytes(shuffle: &[u8; 8]) -> __m128i {
    _mm_cvtsi64_si128(i64::from_le_bytes(*shuffle))
}

/// The same of words.
#[target_feature(enable = "avx2")]
#[inline]
fn of_words(shuffle: &[u8; 8]) -> __m128i {
    let twice = _mm_unpacklo_epi8(of_bytes(shuffle), of_bytes(shuffle));
    // Saturating, so that what makes zero still does.
    _mm_adds_epu8(_mm_adds_epu8(twice, twice), _mm_set1_epi16(0x0100))
}

/// To the lanes of the set the low bytes of `from` in order, zero to others; in the low half.
#[target_feature(enable = "avx2")]
#[inline]
pub(in crate::rans) fn expand_bytes(set: u8, from: __m128i) -> __m128i {
    _mm_shuffle_epi8(from, of_bytes(&EXPAND[usize::from(set)]))
}

/// The bytes of the set's lanes, of the low half, at its end.
#[target_feature(enable = "avx2")]
#[inline]
pub(in crate::rans) fn compress_bytes(set: u8, from: __m128i) -> __m128i {
    _mm_shuffle_epi8(from, of_bytes(&COMPRESS[usize::from(set)]))
}

/// [`expand_bytes`] of words.
#[target_feature(enable = "avx2")]
#[inline]
pub(in crate::rans) fn expand_words(set: u8, from: __m128i) -> __m128i {
    _mm_shuffle_epi8(from, of_words(&EXPAND[usize::from(set)]))
}

/// [`compress_bytes`] of words.
#[target_feature(enable = "avx2")]
#[inline]
pub(in crate::rans) fn compress_words(set: u8, from: __m128i) -> __m128i {
    _mm_shuffle_epi8(from, of_words(&COMPRESS[usize::from(set)]))
}
