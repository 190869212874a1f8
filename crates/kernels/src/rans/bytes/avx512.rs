//! Sixty-four symbols a step: four registers of states, so that none waits for the slots of another.

use super::{Entry, LOW, WIDE_LANES as LANES, WIDE_SCALE_BITS as SCALE_BITS};
use crate::rans::ahead;
use std::arch::x86_64::*;

const SLOTS: usize = 1 << SCALE_BITS;
/// States of a register.
const STEP: usize = 16;

/// Decodes groups of symbols; where the stream is read next. Reads zeros behind the end, and counts them.
///
/// # Safety
/// The machine has AVX-512 F, BW and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
pub(super) unsafe fn decode(
    entries: &[Entry; SLOTS],
    (bytes, mut at): (&[u8], usize),
    states: &mut [u32; LANES],
    groups: &mut [[u8; LANES]],
) -> usize {
    let slot = _mm512_set1_epi32(SLOTS as i32 - 1);
    let twelve = _mm512_set1_epi32(0xFFF);
    let low = _mm512_set1_epi32(LOW as i32);
    let mut registers = [_mm512_setzero_si512(); LANES / STEP];
    for (register, states) in registers.iter_mut().zip(states.as_chunks::<STEP>().0) {
        // SAFETY: these are sixteen numbers of 32 bits.
        *register = unsafe { _mm512_loadu_si512(states.as_ptr().cast()) };
    }
    let mut filled = [0; 2 * STEP];
    for group in groups {
        let out = group.as_chunks_mut::<STEP>().0;
        for (register, out) in registers.iter_mut().zip(out) {
            let slots = _mm512_and_si512(*register, slot);
            // SAFETY: a slot is below their number.
            let found = unsafe { _mm512_i32gather_epi32::<4>(slots, entries.as_ptr().cast()) };
            // SAFETY: these are sixteen bytes.
            unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(found)) };
            let frequency = _mm512_srli_epi32::<20>(found);
            let grown = _mm512_mullo_epi32(frequency, _mm512_srli_epi32::<SCALE_BITS>(*register));
            let start = _mm512_and_si512(_mm512_srli_epi32::<8>(found), twelve);
            let rest = _mm512_sub_epi32(slots, start);
            let next = _mm512_add_epi32(grown, rest);
            let is_small = _mm512_cmplt_epu32_mask(next, low);
            let words = ahead(bytes, at, &mut filled);
            // SAFETY: these are 32 bytes.
            let words = unsafe { _mm256_loadu_si256(words.as_ptr().cast()) };
            let refill = _mm512_maskz_expand_epi32(is_small, _mm512_cvtepu16_epi32(words));
            let refilled = _mm512_or_si512(_mm512_slli_epi32::<16>(next), refill);
            *register = _mm512_mask_mov_epi32(next, is_small, refilled);
            at += 2 * is_small.count_ones() as usize;
        }
    }
    for (register, states) in registers.iter().zip(states.as_chunks_mut::<STEP>().0) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_si512(states.as_mut_ptr().cast(), *register) };
    }
    at
}
