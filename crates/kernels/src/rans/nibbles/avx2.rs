//! One row a step: thirty-two states in two registers.
//!
//! Bytes become words by interleaving the halves of a register's two lanes with zeros, and words bytes by the reverse, so
//! the first register of states has lanes 0 to 7 and 16 to 23.

use super::models::Costs;
use super::{Decoder, LANES, Model, Row, SYMBOLS, encode_each, models};
use crate::rans::ahead;
use crate::rans::shuffles::{compress_bytes, expand_bytes};
use std::arch::x86_64::*;

/// Sixteen bytes of a model, in both lanes.
#[target_feature(enable = "avx2")]
#[inline]
fn both(bytes: &[u8; 16]) -> __m256i {
    // SAFETY: these are sixteen bytes.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

#[target_feature(enable = "avx2")]
#[inline]
fn load(bytes: &[u8; LANES]) -> __m256i {
    // SAFETY: these are 32 bytes.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// The states, as words of lanes 0 to 7 and 16 to 23, and of the others.
#[target_feature(enable = "avx2")]
#[inline]
fn load_states(states: &[u16; LANES]) -> [__m256i; 2] {
    // SAFETY: these are 32 words.
    let [a, b] = [0, 16].map(|i| unsafe { _mm256_loadu_si256(states.as_ptr().add(i).cast()) });
    [
        _mm256_permute2x128_si256::<0x20>(a, b),
        _mm256_permute2x128_si256::<0x31>(a, b),
    ]
}

/// The reverse of [`load_states`], which is its own.
#[target_feature(enable = "avx2")]
#[inline]
fn store_states([a, b]: [__m256i; 2], states: &mut [u16; LANES]) {
    let halves = [
        _mm256_permute2x128_si256::<0x20>(a, b),
        _mm256_permute2x128_si256::<0x31>(a, b),
    ];
    for (i, half) in halves.into_iter().enumerate() {
        // SAFETY: these are 32 words.
        unsafe { _mm256_storeu_si256(states.as_mut_ptr().add(16 * i).cast(), half) };
    }
}

/// Bytes with others above them, as words.
#[target_feature(enable = "avx2")]
#[inline]
fn widen(low: __m256i, high: __m256i) -> [__m256i; 2] {
    [
        _mm256_unpacklo_epi8(low, high),
        _mm256_unpackhi_epi8(low, high),
    ]
}

/// [`super::encode_plain`].
///
/// # Safety
/// The machine has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn encode(
    rows: &[Row],
    chosen: &[u8],
    states: &mut [u16; LANES],
    out: &mut [u8],
) -> Option<usize> {
    let mut registers = load_states(states);
    let at = encode_each(rows, chosen, out, |row, model, room| {
        encode_row(load(row), model, &mut registers, room)
    })?;
    store_states(registers, states);
    Some(at)
}

/// Writes a row to the end of `room`; how many bytes. What stands before them there is lost.
#[target_feature(enable = "avx2")]
#[inline]
fn encode_row(
    symbols: __m256i,
    model: &Model,
    states: &mut [__m256i; 2],
    room: &mut [u8; LANES],
) -> usize {
    let zero = _mm256_setzero_si256();
    let of_symbols = |table: &[u8; 16]| _mm256_shuffle_epi8(both(table), symbols);
    let frequencies = widen(of_symbols(&model.frequencies), zero);
    let starts = widen(of_symbols(&model.starts), zero);
    let [low, high] = &model.reciprocals;
    let reciprocals = widen(of_symbols(low), of_symbols(high));
    let (mut smalls, mut bytes) = ([zero; 2], [zero; 2]);
    for i in 0..2 {
        let (state, frequency) = (states[i], frequencies[i]);
        let high = _mm256_srli_epi16::<8>(state);
        let is_small = _mm256_cmpgt_epi16(frequency, high);
        smalls[i] = is_small;
        bytes[i] = _mm256_and_si256(state, _mm256_set1_epi16(0xFF));
        let state = _mm256_blendv_epi8(high, state, is_small);
        let quotient = _mm256_mulhi_epu16(state, reciprocals[i]);
        let rest = _mm256_sub_epi16(state, _mm256_mullo_epi16(quotient, frequency));
        // One more to the quotient where it is too little: 256 more, and a frequency less in the rest.
        let is_exact = _mm256_cmpgt_epi16(frequency, rest);
        let more = _mm256_sub_epi16(_mm256_set1_epi16(256), frequency);
        let more = _mm256_andnot_si256(is_exact, more);
        let coded = _mm256_add_epi16(_mm256_slli_epi16::<8>(quotient), rest);
        states[i] = _mm256_add_epi16(_mm256_add_epi16(coded, starts[i]), more);
    }
    let smalls = _mm256_packs_epi16(smalls[0], smalls[1]);
    let set = !_mm256_movemask_epi8(smalls).cast_unsigned();
    let bytes = _mm256_packus_epi16(bytes[0], bytes[1]);
    write_back(set, bytes, room)
}

/// Writes the bytes of a set of lanes to the end of `room`; how many.
#[target_feature(enable = "avx2")]
#[inline]
fn write_back(set: u32, bytes: __m256i, room: &mut [u8; LANES]) -> usize {
    let halves = [
        _mm256_castsi256_si128(bytes),
        _mm256_extracti128_si256::<1>(bytes),
    ];
    let mut end = LANES;
    for i in (0..4).rev() {
        let set = set.to_le_bytes()[i];
        let mut eight = halves[i / 2];
        if i % 2 == 1 {
            eight = _mm_unpackhi_epi64(eight, eight);
        }
        let eight = _mm_cvtsi128_si64(compress_bytes(set, eight)).to_le_bytes();
        // The groups behind took at most eight bytes each.
        room[end - 8..end].copy_from_slice(&eight);
        end -= set.count_ones() as usize;
    }
    LANES - end
}

/// [`Decoder::decode`], for models that exist. Reads zeros behind the end, and counts them.
///
/// # Safety
/// The machine has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn decode(decoder: &mut Decoder<'_>, chosen: &[u8], rows: &mut [Row]) {
    let models = models();
    let (zero, byte) = (_mm256_setzero_si256(), _mm256_set1_epi16(0xFF));
    // The states' low and high bytes.
    let [a, b] = load_states(&decoder.states);
    let mut low = _mm256_packus_epi16(_mm256_and_si256(a, byte), _mm256_and_si256(b, byte));
    let mut high = _mm256_packus_epi16(_mm256_srli_epi16::<8>(a), _mm256_srli_epi16::<8>(b));
    let mut at = decoder.at;
    for (row, &model) in rows.iter_mut().zip(chosen) {
        let model = models.get(model);
        let starts = both(&model.starts);
        let symbols = find(starts, low);
        // SAFETY: a row is 32 bytes.
        unsafe { _mm256_storeu_si256(row.as_mut_ptr().cast(), symbols) };
        let frequencies = _mm256_shuffle_epi8(both(&model.frequencies), symbols);
        let rest = _mm256_sub_epi8(low, _mm256_shuffle_epi8(starts, symbols));
        let (frequencies, rest) = (widen(frequencies, zero), widen(rest, zero));
        let highs = widen(high, zero);
        let next = |i: usize| {
            let grown = _mm256_mullo_epi16(frequencies[i], highs[i]);
            _mm256_add_epi16(grown, rest[i])
        };
        let (a, b) = (next(0), next(1));
        low = _mm256_packus_epi16(_mm256_and_si256(a, byte), _mm256_and_si256(b, byte));
        high = _mm256_packus_epi16(_mm256_srli_epi16::<8>(a), _mm256_srli_epi16::<8>(b));
        let is_small = _mm256_cmpeq_epi8(high, zero);
        let set = _mm256_movemask_epi8(is_small).cast_unsigned();
        let refill = read_ahead(set, decoder.bytes, at);
        high = _mm256_blendv_epi8(high, low, is_small);
        low = _mm256_blendv_epi8(low, refill, is_small);
        at += set.count_ones() as usize;
    }
    decoder.at = at;
    store_states(widen(low, high), &mut decoder.states);
}

/// The symbols that slots belong to: of each the last whose start is not behind the slot, by halving.
#[target_feature(enable = "avx2")]
#[inline]
fn find(starts: __m256i, slots: __m256i) -> __m256i {
    let mut symbols = _mm256_setzero_si256();
    for i in 0..4 {
        let further = _mm256_or_si256(symbols, _mm256_set1_epi8(8 >> i));
        let start = _mm256_shuffle_epi8(starts, further);
        let is_reached = _mm256_cmpeq_epi8(_mm256_max_epu8(slots, start), slots);
        symbols = _mm256_blendv_epi8(symbols, further, is_reached);
    }
    symbols
}

/// The next bytes of the stream, one to each lane of a set, in order.
#[target_feature(enable = "avx2")]
#[inline]
fn read_ahead(set: u32, bytes: &[u8], at: usize) -> __m256i {
    let mut filled = [0; LANES];
    let ahead = ahead(bytes, at, &mut filled);
    let (mut first, mut groups) = (0, [_mm_setzero_si128(); 4]);
    for (i, group) in groups.iter_mut().enumerate() {
        let set = set.to_le_bytes()[i];
        // SAFETY: these are eight bytes of 32: the groups before took at most eight each.
        let eight = unsafe { _mm_loadl_epi64(ahead.as_ptr().add(first).cast()) };
        first += set.count_ones() as usize;
        *group = expand_bytes(set, eight);
    }
    let [a, b, c, d] = groups;
    _mm256_set_m128i(_mm_unpacklo_epi64(c, d), _mm_unpacklo_epi64(a, b))
}

/// Costs of a register.
const COSTS: usize = 16;
/// Registers of all models' costs.
const REGISTERS: usize = size_of::<Costs>() / 32;
const _: () = assert!(REGISTERS == 8, "a bit of 128 for each");

/// [`super::best_model`].
#[target_feature(enable = "avx2")]
pub(crate) fn best_model(counts: &[u8; SYMBOLS]) -> (u8, u16) {
    let models = models();
    let mut sums = [_mm256_setzero_si256(); REGISTERS];
    // Most rows have few symbols, side by side.
    let used = u128::from_le_bytes(*counts);
    let (first, end) = (used.trailing_zeros() / 8, 16 - used.leading_zeros() / 8);
    let used = first as usize..end.max(first) as usize;
    for (&count, costs) in counts[used.clone()].iter().zip(&models.costs[used]) {
        let count = _mm256_set1_epi16(i16::from(count));
        let costs = costs.as_chunks::<COSTS>().0;
        for i in 0..REGISTERS {
            // SAFETY: these are sixteen words.
            let costs = unsafe { _mm256_loadu_si256(costs[i].as_ptr().cast()) };
            sums[i] = _mm256_add_epi16(sums[i], _mm256_mullo_epi16(costs, count));
        }
    }
    let mut least = sums[0];
    for sum in &sums[1..] {
        least = _mm256_min_epu16(least, *sum);
    }
    let halves = (
        _mm256_castsi256_si128(least),
        _mm256_extracti128_si256::<1>(least),
    );
    let least = _mm_cvtsi128_si32(_mm_minpos_epu16(_mm_min_epu16(halves.0, halves.1))) as u16;
    let wanted = _mm256_set1_epi16(least.cast_signed());
    let mut found = 0_u128;
    for i in (0..REGISTERS).step_by(2).rev() {
        let (a, b) = (sums[i], sums[i + 1]);
        let is_it =
            _mm256_packs_epi16(_mm256_cmpeq_epi16(a, wanted), _mm256_cmpeq_epi16(b, wanted));
        let is_it = _mm256_permute4x64_epi64::<0xD8>(is_it);
        found = found << 32 | u128::from(_mm256_movemask_epi8(is_it).cast_unsigned());
    }
    (found.trailing_zeros() as u8, least)
}
