//! Sixty-four symbols a step: eight registers of states, so that none waits for the slots of another.

use super::{Entry, LOW, Ranges, WIDE_LANES as LANES, WIDE_SCALE_BITS as SCALE_BITS};
use crate::rans::ahead;
use crate::rans::shuffles::{compress_words, expand_words};
use std::arch::x86_64::*;

const SLOTS: usize = 1 << SCALE_BITS;
/// States of a register.
const STEP: usize = 8;
/// Bytes that a group may take.
const GROUP_BYTES: usize = 2 * LANES;

type Registers = [__m256i; LANES / STEP];

#[target_feature(enable = "avx2")]
#[inline]
fn load(states: &[u32; LANES]) -> Registers {
    let mut registers = [_mm256_setzero_si256(); LANES / STEP];
    for (register, states) in registers.iter_mut().zip(states.as_chunks::<STEP>().0) {
        // SAFETY: these are eight numbers of 32 bits.
        *register = unsafe { _mm256_loadu_si256(states.as_ptr().cast()) };
    }
    registers
}

#[target_feature(enable = "avx2")]
#[inline]
fn store(registers: &Registers, states: &mut [u32; LANES]) {
    for (register, states) in registers.iter().zip(states.as_chunks_mut::<STEP>().0) {
        // SAFETY: these are eight numbers of 32 bits.
        unsafe { _mm256_storeu_si256(states.as_mut_ptr().cast(), *register) };
    }
}

/// Encodes groups of values, the last first, into the end of `out` as far as there is room for any. What remains of them,
/// and where those encoded begin.
///
/// # Safety
/// The machine has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn encode<'a>(
    ranges: &Ranges,
    groups: &'a [u8],
    states: &mut [u32; LANES],
    out: &mut [u8],
) -> (&'a [u8], usize) {
    let mut registers = load(states);
    let mut at = out.len();
    let (mut rest, _) = groups.as_chunks::<LANES>();
    while let Some((group, before)) = rest.split_last()
        && let Some(room) = out[..at].last_chunk_mut::<GROUP_BYTES>()
    {
        let mut end = GROUP_BYTES;
        for i in (0..LANES / STEP).rev() {
            let values = &group.as_chunks::<STEP>().0[i];
            end -= encode_step(ranges, values, &mut registers[i], (room, end));
        }
        at -= GROUP_BYTES - end;
        rest = before;
    }
    store(&registers, states);
    (rest.as_flattened(), at)
}

/// Encodes eight values before what stands at `end`, where there is room for them at their longest; in how many bytes.
#[target_feature(enable = "avx2")]
#[inline]
fn encode_step(
    ranges: &Ranges,
    values: &[u8; STEP],
    states: &mut __m256i,
    (out, end): (&mut [u8; GROUP_BYTES], usize),
) -> usize {
    // SAFETY: these are eight bytes.
    let values = unsafe { _mm_loadl_epi64(values.as_ptr().cast()) };
    let values = _mm256_cvtepu8_epi32(values);
    let gather = |table: &[u32; 256]| {
        // SAFETY: a value is below 256.
        unsafe { _mm256_i32gather_epi32::<4>(table.as_ptr().cast(), values) }
    };
    let range = gather(&ranges.ranges);
    let reciprocals = gather(&ranges.reciprocals);
    let frequencies = _mm256_and_si256(range, _mm256_set1_epi32(0xFFFF));
    let high = _mm256_srli_epi32::<{ 32 - SCALE_BITS as i32 }>(*states);
    let is_small = _mm256_cmpgt_epi32(frequencies, high);
    let set = !_mm256_movemask_ps(_mm256_castsi256_ps(is_small)) as u8;
    let words = _mm256_blend_epi16::<0xAA>(*states, _mm256_setzero_si256());
    let words = _mm_packus_epi32(
        _mm256_castsi256_si128(words),
        _mm256_extracti128_si256::<1>(words),
    );
    let last = &mut out[end - 2 * STEP..end];
    // SAFETY: these are sixteen bytes.
    unsafe { _mm_storeu_si128(last.as_mut_ptr().cast(), compress_words(set, words)) };
    let state = _mm256_blendv_epi8(_mm256_srli_epi32::<16>(*states), *states, is_small);
    let quotients = high_product(state, reciprocals);
    let rest = _mm256_sub_epi32(state, _mm256_mullo_epi32(quotients, frequencies));
    // One more to the quotient where it is too little: all slots more, and a frequency less in the rest.
    let is_exact = _mm256_cmpgt_epi32(frequencies, rest);
    let more = _mm256_sub_epi32(_mm256_set1_epi32(SLOTS as i32), frequencies);
    let more = _mm256_andnot_si256(is_exact, more);
    let starts = _mm256_add_epi32(_mm256_srli_epi32::<16>(range), more);
    let coded = _mm256_add_epi32(_mm256_slli_epi32::<{ SCALE_BITS as i32 }>(quotients), rest);
    *states = _mm256_add_epi32(coded, starts);
    2 * set.count_ones() as usize
}

/// The high halves of the products of numbers without sign.
#[target_feature(enable = "avx2")]
#[inline]
fn high_product(a: __m256i, b: __m256i) -> __m256i {
    let even = _mm256_mul_epu32(a, b);
    let odd = _mm256_mul_epu32(_mm256_srli_epi64::<32>(a), _mm256_srli_epi64::<32>(b));
    _mm256_blend_epi32::<0xAA>(_mm256_srli_epi64::<32>(even), odd)
}

/// Decodes groups of symbols; where the stream is read next. Reads zeros behind the end, and counts them.
///
/// # Safety
/// The machine has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn decode(
    entries: &[Entry; SLOTS],
    (bytes, mut at): (&[u8], usize),
    states: &mut [u32; LANES],
    groups: &mut [[u8; LANES]],
) -> usize {
    let mut registers = load(states);
    let mut filled = [0; 2 * STEP];
    for group in groups {
        let out = group.as_chunks_mut::<STEP>().0;
        for i in 0..LANES / STEP {
            let ahead = ahead(bytes, at, &mut filled);
            at += 2 * decode_step(entries, ahead, &mut registers[i], &mut out[i]);
        }
    }
    store(&registers, states);
    at
}

/// Decodes eight symbols; how many of the words are taken.
#[target_feature(enable = "avx2")]
#[inline]
fn decode_step(
    entries: &[Entry; SLOTS],
    words: &[u8; 2 * STEP],
    states: &mut __m256i,
    out: &mut [u8; STEP],
) -> usize {
    let slots = _mm256_and_si256(*states, _mm256_set1_epi32(SLOTS as i32 - 1));
    // SAFETY: a slot is below their number.
    let found = unsafe { _mm256_i32gather_epi32::<4>(entries.as_ptr().cast(), slots) };
    let symbols = _mm256_and_si256(found, _mm256_set1_epi32(0xFF));
    let symbols = _mm_packus_epi32(
        _mm256_castsi256_si128(symbols),
        _mm256_extracti128_si256::<1>(symbols),
    );
    *out = _mm_cvtsi128_si64(_mm_packus_epi16(symbols, symbols)).to_le_bytes();
    let grown = _mm256_mullo_epi32(
        _mm256_srli_epi32::<20>(found),
        _mm256_srli_epi32::<{ SCALE_BITS as i32 }>(*states),
    );
    let starts = _mm256_and_si256(_mm256_srli_epi32::<8>(found), _mm256_set1_epi32(0xFFF));
    let rest = _mm256_sub_epi32(slots, starts);
    let next = _mm256_add_epi32(grown, rest);
    let high = _mm256_srli_epi32::<{ LOW.trailing_zeros() as i32 }>(next);
    let is_small = _mm256_cmpeq_epi32(high, _mm256_setzero_si256());
    let set = _mm256_movemask_ps(_mm256_castsi256_ps(is_small)) as u8;
    // SAFETY: these are sixteen bytes.
    let words = unsafe { _mm_loadu_si128(words.as_ptr().cast()) };
    let refill = _mm256_cvtepu16_epi32(expand_words(set, words));
    let refilled = _mm256_or_si256(_mm256_slli_epi32::<16>(next), refill);
    *states = _mm256_blendv_epi8(next, refilled, is_small);
    set.count_ones() as usize
}
