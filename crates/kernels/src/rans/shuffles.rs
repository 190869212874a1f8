//! Putting the bytes or words of some lanes together, and taking them apart again, with AVX2.

use std::arch::x86_64::*;

/// What a byte shuffle makes zero of.
const ZERO: u8 = 128;
/// Of each set of eight lanes, where each lane's byte stands among those of the set.
static EXPAND: [[u8; 8]; 256] = shuffles(false);
/// Of each set of eight lanes, their numbers at the end, in order.
static COMPRESS: [[u8; 8]; 256] = shuffles(true);

const fn shuffles(compress: bool) -> [[u8; 8]; 256] {
    let mut all = [[ZERO; 8]; 256];
    let mut set = 0;
    while set < 256 {
        let first = 8 - (set as u8).count_ones() as usize;
        let (mut lane, mut found) = (0, 0);
        while lane < 8 {
            if set >> lane & 1 == 1 {
                if compress {
                    all[set][first + found] = lane as u8;
                } else {
                    all[set][lane] = found as u8;
                }
                found += 1;
            }
            lane += 1;
        }
        set += 1;
    }
    all
}

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
pub(super) fn expand_bytes(set: u8, from: __m128i) -> __m128i {
    _mm_shuffle_epi8(from, of_bytes(&EXPAND[usize::from(set)]))
}

/// The bytes of the set's lanes, of the low half, at its end.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn compress_bytes(set: u8, from: __m128i) -> __m128i {
    _mm_shuffle_epi8(from, of_bytes(&COMPRESS[usize::from(set)]))
}

/// [`expand_bytes`] of words.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn expand_words(set: u8, from: __m128i) -> __m128i {
    _mm_shuffle_epi8(from, of_words(&EXPAND[usize::from(set)]))
}

/// [`compress_bytes`] of words.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn compress_words(set: u8, from: __m128i) -> __m128i {
    _mm_shuffle_epi8(from, of_words(&COMPRESS[usize::from(set)]))
}
