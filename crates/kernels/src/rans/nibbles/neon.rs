//! One row a step: the low bytes of thirty-two states in two registers, their high bytes in two others.

use super::{Decoder, LANES, Model, Row, encode_each, models};
use crate::rans::ahead;
use crate::rans::shuffles::{compress_bytes, set_of};
use std::arch::aarch64::*;

/// Bytes of a register.
const BYTES: usize = 16;
/// Words of a register.
const WORDS: usize = 8;

#[target_feature(enable = "neon")]
#[inline]
fn load(bytes: &[u8; BYTES]) -> uint8x16_t {
    // SAFETY: these are sixteen bytes.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

#[target_feature(enable = "neon")]
#[inline]
fn load_row(bytes: &[u8; LANES]) -> [uint8x16_t; 2] {
    let halves = bytes.as_chunks::<BYTES>().0;
    [load(&halves[0]), load(&halves[1])]
}

/// [`super::encode_plain`].
///
/// # Safety
/// The machine has NEON.
#[target_feature(enable = "neon")]
pub(super) unsafe fn encode(
    rows: &[Row],
    chosen: &[u8],
    states: &mut [u16; LANES],
    out: &mut [u8],
) -> Option<usize> {
    let eights = states.as_chunks_mut::<WORDS>().0;
    let mut registers = [vdupq_n_u16(0); LANES / WORDS];
    for (register, states) in registers.iter_mut().zip(&*eights) {
        // SAFETY: these are eight words.
        *register = unsafe { vld1q_u16(states.as_ptr()) };
    }
    let at = encode_each(rows, chosen, out, |row, model, room| {
        encode_row(row, model, &mut registers, room)
    })?;
    for (register, states) in registers.into_iter().zip(eights) {
        // SAFETY: these are eight words.
        unsafe { vst1q_u16(states.as_mut_ptr(), register) };
    }
    Some(at)
}

/// Writes a row to the end of `room`; how many bytes. What stands before them there is lost.
#[target_feature(enable = "neon")]
#[inline]
fn encode_row(
    row: &Row,
    model: &Model,
    states: &mut [uint16x8_t; LANES / WORDS],
    room: &mut [u8; LANES],
) -> usize {
    let symbols = load_row(row);
    let mut end = LANES;
    for half in (0..2).rev() {
        let of_symbols = |table: &[u8; 16]| vqtbl1q_u8(load(table), symbols[half]);
        let zero = vdupq_n_u8(0);
        let frequencies = words(of_symbols(&model.frequencies), zero);
        let starts = words(of_symbols(&model.starts), zero);
        let [low, high] = &model.reciprocals;
        let reciprocals = words(of_symbols(low), of_symbols(high));
        for i in (0..2).rev() {
            let state = &mut states[2 * half + i];
            let range = (frequencies[i], starts[i], reciprocals[i]);
            let (set, bytes) = encode_eight(range, state);
            // The lanes behind took at most eight bytes of each eight.
            let last = &mut room[end - WORDS..end];
            // SAFETY: these are eight bytes.
            unsafe { vst1_u8(last.as_mut_ptr(), compress_bytes(set, bytes)) };
            end -= set.count_ones() as usize;
        }
    }
    LANES - end
}

/// Bytes with others above them, as words.
#[target_feature(enable = "neon")]
#[inline]
fn words(low: uint8x16_t, high: uint8x16_t) -> [uint16x8_t; 2] {
    [vzip1q_u8(low, high), vzip2q_u8(low, high)].map(|both| vreinterpretq_u16_u8(both))
}

/// Encodes eight symbols of these frequencies, starts and reciprocals; the lanes whose byte is written, and the bytes.
#[target_feature(enable = "neon")]
#[inline]
fn encode_eight(
    (frequencies, starts, reciprocals): (uint16x8_t, uint16x8_t, uint16x8_t),
    states: &mut uint16x8_t,
) -> (u8, uint8x8_t) {
    let high = vshrq_n_u16::<8>(*states);
    let is_small = vcgtq_u16(frequencies, high);
    let bytes = vmovn_u16(*states);
    let state = vbslq_u16(is_small, *states, high);
    let quotients = high_product(state, reciprocals);
    let rest = vmlsq_u16(state, quotients, frequencies);
    // One more to the quotient where it is too little: 256 more, and a frequency less in the rest.
    let is_less = vcgeq_u16(rest, frequencies);
    let more = vandq_u16(is_less, vsubq_u16(vdupq_n_u16(256), frequencies));
    let coded = vaddq_u16(vshlq_n_u16::<8>(quotients), rest);
    *states = vaddq_u16(vaddq_u16(coded, starts), more);
    (!set_of(vmovn_u16(is_small)), bytes)
}

/// The high halves of the products.
#[target_feature(enable = "neon")]
#[inline]
fn high_product(a: uint16x8_t, b: uint16x8_t) -> uint16x8_t {
    let low = vmull_u16(vget_low_u16(a), vget_low_u16(b));
    let high = vmull_high_u16(a, b);
    vuzp2q_u16(vreinterpretq_u16_u32(low), vreinterpretq_u16_u32(high))
}

/// [`Decoder::decode`], for models that exist. Reads zeros behind the end, and counts them.
///
/// # Safety
/// The machine has NEON.
#[target_feature(enable = "neon")]
pub(super) unsafe fn decode(decoder: &mut Decoder<'_>, chosen: &[u8], rows: &mut [Row]) {
    let models = models();
    // SAFETY: the states are twice sixteen words.
    let [a, b] = [0, 16].map(|i| unsafe { vld2q_u8(decoder.states.as_ptr().add(i).cast()) });
    let (mut low, mut high) = ([a.0, b.0], [a.1, b.1]);
    let mut at = decoder.at;
    let mut filled = [0; LANES];
    for (row, &model) in rows.iter_mut().zip(chosen) {
        let model = models.get(model);
        let (mut next, mut is_small) = ([low, high], [vdupq_n_u8(0); 2]);
        for (half, row) in row.as_chunks_mut::<BYTES>().0.iter_mut().enumerate() {
            let symbols = look_up(&model.slots, low[half]);
            // SAFETY: these are sixteen bytes.
            unsafe { vst1q_u8(row.as_mut_ptr(), symbols) };
            let (next_low, next_high) = step(model, symbols, low[half], high[half]);
            (next[0][half], next[1][half]) = (next_low, next_high);
            is_small[half] = vceqzq_u8(next_high);
        }
        let ahead = load_row(ahead(decoder.bytes, at, &mut filled));
        let (refill, taken) = expand(is_small, ahead);
        for half in 0..2 {
            high[half] = vbslq_u8(is_small[half], next[0][half], next[1][half]);
            low[half] = vbslq_u8(is_small[half], refill[half], next[0][half]);
        }
        at += taken;
    }
    decoder.at = at;
    for half in 0..2 {
        let both = uint8x16x2_t(low[half], high[half]);
        // SAFETY: the states are twice sixteen words.
        unsafe { vst2q_u8(decoder.states.as_mut_ptr().add(16 * half).cast(), both) };
    }
}

/// What a table has for each slot.
#[target_feature(enable = "neon")]
#[inline]
fn look_up(table: &[u8; 256], slots: uint8x16_t) -> uint8x16_t {
    let mut found = vdupq_n_u8(0);
    for (i, part) in table.as_chunks::<64>().0.iter().enumerate() {
        // SAFETY: these are 64 bytes.
        let part = unsafe { vld1q_u8_x4(part.as_ptr()) };
        // Slots of other parts are out of range then, of which a lookup makes zero.
        let index = veorq_u8(slots, vdupq_n_u8(64 * i as u8));
        found = vorrq_u8(found, vqtbl4q_u8(part, index));
    }
    found
}

/// The states after a row, low bytes and high ones, before any is refilled.
#[target_feature(enable = "neon")]
#[inline]
fn step(
    model: &Model,
    symbols: uint8x16_t,
    low: uint8x16_t,
    high: uint8x16_t,
) -> (uint8x16_t, uint8x16_t) {
    let frequencies = vqtbl1q_u8(load(&model.frequencies), symbols);
    let rest = vsubq_u8(low, vqtbl1q_u8(load(&model.starts), symbols));
    let first = vmull_u8(vget_low_u8(frequencies), vget_low_u8(high));
    let first = vreinterpretq_u8_u16(vaddw_u8(first, vget_low_u8(rest)));
    let second = vmull_high_u8(frequencies, high);
    let second = vreinterpretq_u8_u16(vaddw_high_u8(second, rest));
    (vuzp1q_u8(first, second), vuzp2q_u8(first, second))
}

/// To each lane of a set the next of `from`, in order; how many. What other lanes get is of no use.
#[target_feature(enable = "neon")]
#[inline]
fn expand(is_in: [uint8x16_t; 2], from: [uint8x16_t; 2]) -> ([uint8x16_t; 2], usize) {
    // How many lanes are in it up to each one, of the same half and then of both.
    let first = sums(vshrq_n_u8::<7>(is_in[0]));
    let second = sums(vshrq_n_u8::<7>(is_in[1]));
    let second = vaddq_u8(second, vdupq_laneq_u8::<15>(first));
    let (from, one) = (uint8x16x2_t(from[0], from[1]), vdupq_n_u8(1));
    let expanded = [first, second].map(|sums| vqtbl2q_u8(from, vsubq_u8(sums, one)));
    (expanded, usize::from(vgetq_lane_u8::<15>(second)))
}

/// Of each lane the sum of all up to it.
#[target_feature(enable = "neon")]
#[inline]
fn sums(lanes: uint8x16_t) -> uint8x16_t {
    let zero = vdupq_n_u8(0);
    let mut sums = lanes;
    sums = vaddq_u8(sums, vextq_u8::<15>(zero, sums));
    sums = vaddq_u8(sums, vextq_u8::<14>(zero, sums));
    sums = vaddq_u8(sums, vextq_u8::<12>(zero, sums));
    vaddq_u8(sums, vextq_u8::<8>(zero, sums))
}
