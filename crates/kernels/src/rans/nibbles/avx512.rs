//! One row a step: thirty-two states in one register.
//!
//! Each row waits for the states of the one before, so what counts is how long a state takes to become the next: the
//! chain is lookup of the symbol, lookup of its frequency (a shuffle, shorter than the wide permutations), product, sum,
//! comparison, expansion of the refill, sum.

use super::{Decoder, LANES, LOW, Row, models};
use crate::rans::ahead;
use std::arch::x86_64::*;

/// The low bytes of words.
const LOW_BYTES: __mmask64 = 0x5555_5555_5555_5555;

/// [`Decoder::decode`], for models that exist. Reads zeros behind the end, and counts them.
///
/// # Safety
/// The machine has AVX-512 F, BW, VL, VBMI and VBMI2.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2,popcnt")]
pub(super) unsafe fn decode(decoder: &mut Decoder<'_>, chosen: &[u8], rows: &mut [Row]) {
    let models = models();
    let low = _mm512_set1_epi16(LOW as i16);
    // SAFETY: the states are 32 numbers of 16 bits.
    let mut states = unsafe { _mm512_loadu_si512(decoder.states.as_ptr().cast()) };
    let mut at = decoder.at;
    let mut filled = [0; LANES];
    for (row, &model) in rows.iter_mut().zip(chosen) {
        let model = models.get(model);
        let slots = model.slots.as_ptr();
        // SAFETY: there are 256 slots.
        let [a, b, c, d] =
            [0, 64, 128, 192].map(|i| unsafe { _mm512_loadu_si512(slots.add(i).cast()) });
        // Sixteen bytes, of each symbol one, for every part of a register.
        // SAFETY: these are sixteen bytes each.
        let [frequencies, starts] = [&model.frequencies, &model.starts]
            .map(|all| unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(all.as_ptr().cast())) });
        // The index is a byte; seven bits of it choose within two registers, the eighth between the pairs. What is
        // looked up by the states' high bytes is never used.
        let is_upper = _mm512_movepi8_mask(states);
        let lower = _mm512_permutex2var_epi8(a, states, b);
        let upper = _mm512_permutex2var_epi8(c, states, d);
        let symbols = _mm512_mask_mov_epi8(lower, is_upper, upper);
        // SAFETY: a row is 32 bytes.
        unsafe { _mm256_storeu_si256(row.as_mut_ptr().cast(), _mm512_cvtepi16_epi8(symbols)) };
        let frequency = _mm512_maskz_shuffle_epi8(LOW_BYTES, frequencies, symbols);
        let start = _mm512_shuffle_epi8(starts, symbols);
        let rest = _mm512_maskz_sub_epi8(LOW_BYTES, states, start);
        let grown = _mm512_mullo_epi16(frequency, _mm512_srli_epi16::<8>(states));
        let next = _mm512_add_epi16(grown, rest);
        let is_small = _mm512_cmplt_epu16_mask(next, low);
        // SAFETY: these are 32 bytes.
        let ahead =
            unsafe { _mm256_loadu_si256(ahead(decoder.bytes, at, &mut filled).as_ptr().cast()) };
        let refill = _mm512_maskz_expand_epi16(is_small, _mm512_cvtepu8_epi16(ahead));
        states = _mm512_mask_add_epi16(next, is_small, _mm512_slli_epi16::<8>(next), refill);
        at += is_small.count_ones() as usize;
    }
    decoder.at = at;
    // SAFETY: as above.
    unsafe { _mm512_storeu_si512(decoder.states.as_mut_ptr().cast(), states) };
}
