//! One row a step: thirty-two states, their low bytes in one register and their high bytes in another.
//!
//! Each row waits for the states of the one before, so what counts is how long a state takes to become the next. Two
//! thirds of that are a comparison that fills a mask and the expansion by it (12 cycles of 19 on Zen 4). So which states
//! need a refill is looked up by the slot, as the symbol is, and the product is made meanwhile.

use super::{Decoder, LANES, Model, Row, models};
use crate::rans::ahead;
use std::arch::x86_64::*;

/// [`Decoder::decode`], for models that exist. Reads zeros behind the end, and counts them.
///
/// # Safety
/// The machine has AVX-512 F, BW, VL, VBMI and VBMI2.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2,popcnt")]
pub(super) unsafe fn decode(decoder: &mut Decoder<'_>, chosen: &[u8], rows: &mut [Row]) {
    let models = models();
    let (mut low, mut high) = load_states(&decoder.states);
    let mut at = decoder.at;
    let mut filled = [0; LANES];
    for (row, &model) in rows.iter_mut().zip(chosen) {
        let model = models.get(model);
        let symbols = look_up(&model.slots, low);
        let small = look_up(&model.small, low);
        let is_small = _mm256_cmple_epu8_mask(high, small);
        let ahead = ahead(decoder.bytes, at, &mut filled);
        // SAFETY: these are 32 bytes.
        let ahead = unsafe { _mm256_loadu_si256(ahead.as_ptr().cast()) };
        let refill = _mm256_maskz_expand_epi8(is_small, ahead);
        at += is_small.count_ones() as usize;
        // SAFETY: a row is 32 bytes.
        unsafe { _mm256_storeu_si256(row.as_mut_ptr().cast(), symbols) };
        let (next_low, next_high) = step(model, symbols, low, high);
        high = _mm256_mask_mov_epi8(next_high, is_small, next_low);
        low = _mm256_mask_mov_epi8(next_low, is_small, refill);
    }
    decoder.at = at;
    store_states(low, high, &mut decoder.states);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2,popcnt")]
#[inline]
fn load_states(states: &[u16; LANES]) -> (__m256i, __m256i) {
    // SAFETY: the states are 32 numbers of 16 bits.
    let states = unsafe { _mm512_loadu_si512(states.as_ptr().cast()) };
    let high = _mm512_srli_epi16::<8>(states);
    (_mm512_cvtepi16_epi8(states), _mm512_cvtepi16_epi8(high))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2,popcnt")]
#[inline]
fn store_states(low: __m256i, high: __m256i, states: &mut [u16; LANES]) {
    let high = _mm512_slli_epi16::<8>(_mm512_cvtepu8_epi16(high));
    let both = _mm512_or_si512(_mm512_cvtepu8_epi16(low), high);
    // SAFETY: the states are 32 numbers of 16 bits.
    unsafe { _mm512_storeu_si512(states.as_mut_ptr().cast(), both) };
}

/// The states after a row, low bytes and high ones, before any is refilled.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2,popcnt")]
#[inline]
fn step(model: &Model, symbols: __m256i, low: __m256i, high: __m256i) -> (__m256i, __m256i) {
    let frequencies = _mm256_shuffle_epi8(both(&model.frequencies), symbols);
    let rest = _mm256_sub_epi8(low, _mm256_shuffle_epi8(both(&model.starts), symbols));
    let byte = _mm256_set1_epi16(0xFF);
    let even = _mm256_mullo_epi16(
        _mm256_and_si256(frequencies, byte),
        _mm256_and_si256(high, byte),
    );
    let even = _mm256_add_epi16(even, _mm256_and_si256(rest, byte));
    let odd = _mm256_mullo_epi16(
        _mm256_srli_epi16::<8>(frequencies),
        _mm256_srli_epi16::<8>(high),
    );
    let odd = _mm256_add_epi16(odd, _mm256_srli_epi16::<8>(rest));
    let odd_bytes = 0xAAAA_AAAA;
    (
        _mm256_mask_mov_epi8(even, odd_bytes, _mm256_slli_epi16::<8>(odd)),
        _mm256_mask_mov_epi8(_mm256_srli_epi16::<8>(even), odd_bytes, odd),
    )
}

/// Sixteen bytes of a model, in both lanes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2,popcnt")]
#[inline]
fn both(bytes: &[u8; 16]) -> __m256i {
    // SAFETY: these are sixteen bytes.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

/// What a table has for each slot.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2,popcnt")]
#[inline]
fn look_up(table: &[u8; 256], slots: __m256i) -> __m256i {
    let parts = table.as_chunks::<64>().0;
    // Seven bits of an index choose within two registers, the eighth between the pairs.
    let index = _mm512_castsi256_si512(slots);
    let lower = _mm512_permutex2var_epi8(load(&parts[0]), index, load(&parts[1]));
    let upper = _mm512_permutex2var_epi8(load(&parts[2]), index, load(&parts[3]));
    _mm256_mask_mov_epi8(
        _mm512_castsi512_si256(lower),
        _mm256_movepi8_mask(slots),
        _mm512_castsi512_si256(upper),
    )
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2,popcnt")]
#[inline]
fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: these are 64 bytes.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}
