//! A row in one register.

use super::{DIFFERENCES, MIDDLE};
use crate::rans::nibbles::{Row, SYMBOLS, best_model_avx2};
use std::arch::x86_64::*;

/// [`super::choose`].
///
/// # Safety
/// The machine has AVX2.
#[target_feature(enable = "avx2,popcnt")]
pub(super) unsafe fn choose(rows: &mut [Row], models: &mut [u8]) {
    for (row, model) in rows.iter_mut().zip(models) {
        // SAFETY: a row is 32 bytes.
        let plain = unsafe { _mm256_loadu_si256(row.as_ptr().cast()) };
        let changes = differences(plain);
        let (of_plain, plain_cost) = best_model_avx2(&count(plain));
        let (of_changes, changes_cost) = best_model_avx2(&count(changes));
        *model = of_plain;
        if changes_cost < plain_cost {
            *model = of_changes | DIFFERENCES;
            // SAFETY: a row is 32 bytes.
            unsafe { _mm256_storeu_si256(row.as_mut_ptr().cast(), changes) };
        }
    }
}

/// Of each code to the one before, the first from [`MIDDLE`], plus [`MIDDLE`], modulo 16.
#[target_feature(enable = "avx2")]
#[inline]
fn differences(codes: __m256i) -> __m256i {
    let below = _mm256_permute2x128_si256::<0x08>(codes, codes);
    let before = _mm256_alignr_epi8::<15>(codes, below);
    let first = _mm256_zextsi128_si256(_mm_cvtsi32_si128(i32::from(MIDDLE)));
    let changes = _mm256_sub_epi8(codes, _mm256_or_si256(before, first));
    let changes = _mm256_add_epi8(changes, _mm256_set1_epi8(MIDDLE.cast_signed()));
    _mm256_and_si256(changes, _mm256_set1_epi8(SYMBOLS as i8 - 1))
}

/// How often each code occurs.
#[target_feature(enable = "avx2,popcnt")]
#[inline]
fn count(codes: __m256i) -> [u8; SYMBOLS] {
    let mut counts = [0; SYMBOLS];
    for (symbol, count) in counts.iter_mut().enumerate() {
        let is_it = _mm256_cmpeq_epi8(codes, _mm256_set1_epi8(symbol as i8));
        *count = _mm256_movemask_epi8(is_it).count_ones() as u8;
    }
    counts
}
