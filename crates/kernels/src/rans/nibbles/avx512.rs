//! One row a step: thirty-two states in one register.

use super::{Decoder, LANES, LOW, Row, models};
use crate::rans::ahead;
use std::arch::x86_64::*;

/// [`Decoder::decode`], for models that exist. Reads zeros behind the end, and counts them.
///
/// # Safety
/// The machine has AVX-512 F, BW, VL, VBMI and VBMI2.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2")]
pub(super) unsafe fn decode(decoder: &mut Decoder<'_>, chosen: &[u8], rows: &mut [Row]) {
    let models = models();
    let byte = _mm512_set1_epi16(0xFF);
    let low = _mm512_set1_epi16(LOW as i16);
    // SAFETY: the states are 32 numbers of 16 bits.
    let mut states = unsafe { _mm512_loadu_si512(decoder.states.as_ptr().cast()) };
    let mut at = decoder.at;
    for (row, &model) in rows.iter_mut().zip(chosen) {
        let model = models.get(model);
        let slots = model.slots.as_ptr();
        // SAFETY: there are 256 slots.
        let [a, b, c, d] =
            [0, 64, 128, 192].map(|i| unsafe { _mm512_loadu_si512(slots.add(i).cast()) });
        // SAFETY: there are 32 bytes: of each symbol its frequency and start.
        let ranges = unsafe { _mm256_loadu_si256(model.ranges.as_ptr().cast()) };
        // The index is a byte; seven bits of it choose within two registers, the eighth between the pairs. What is
        // looked up by the states' high bytes is masked off.
        let lower = _mm512_permutex2var_epi8(a, states, b);
        let upper = _mm512_permutex2var_epi8(c, states, d);
        let symbols = _mm512_mask_blend_epi8(_mm512_movepi8_mask(states), lower, upper);
        let symbols = _mm512_and_si512(symbols, byte);
        // SAFETY: a row is 32 bytes.
        unsafe { _mm256_storeu_si256(row.as_mut_ptr().cast(), _mm512_cvtepi16_epi8(symbols)) };
        let ranges = _mm512_permutexvar_epi16(symbols, _mm512_castsi256_si512(ranges));
        let frequencies = _mm512_and_si512(ranges, byte);
        let rest = _mm512_sub_epi16(
            _mm512_and_si512(states, byte),
            _mm512_srli_epi16::<8>(ranges),
        );
        let grown = _mm512_mullo_epi16(frequencies, _mm512_srli_epi16::<8>(states));
        let next = _mm512_add_epi16(grown, rest);
        let is_small = _mm512_cmplt_epu16_mask(next, low);
        let ahead: [u8; LANES] = ahead(decoder.bytes, at);
        // SAFETY: these are 32 bytes.
        let ahead = unsafe { _mm256_loadu_si256(ahead.as_ptr().cast()) };
        let refill = _mm512_cvtepu8_epi16(_mm256_maskz_expand_epi8(is_small, ahead));
        let refilled = _mm512_or_si512(_mm512_slli_epi16::<8>(next), refill);
        states = _mm512_mask_mov_epi16(next, is_small, refilled);
        at += is_small.count_ones() as usize;
    }
    decoder.at = at;
    // SAFETY: as above.
    unsafe { _mm512_storeu_si512(decoder.states.as_mut_ptr().cast(), states) };
}
