//! Sixty-four symbols a step, eight of them in two registers. Tables are looked up one by one: NEON does not gather.

use super::{Entry, LOW, Ranges, WIDE_LANES as LANES, WIDE_SCALE_BITS as SCALE_BITS};
use crate::rans::ahead;
use crate::rans::shuffles::{compress_words, expand_words, set_of};
use std::arch::aarch64::*;

const SLOTS: usize = 1 << SCALE_BITS;
/// States that are coded together.
const STEP: usize = 8;
/// Bytes that a group may take.
const GROUP_BYTES: usize = 2 * LANES;

type Eight = [uint32x4_t; 2];

#[target_feature(enable = "neon")]
#[inline]
fn load(numbers: &[u32; STEP]) -> Eight {
    // SAFETY: these are eight numbers of 32 bits.
    unsafe {
        [
            vld1q_u32(numbers.as_ptr()),
            vld1q_u32(numbers[4..].as_ptr()),
        ]
    }
}

#[target_feature(enable = "neon")]
#[inline]
fn store(eight: Eight, numbers: &mut [u32; STEP]) {
    for (four, numbers) in eight.into_iter().zip(numbers.as_chunks_mut::<4>().0) {
        // SAFETY: these are four numbers of 32 bits.
        unsafe { vst1q_u32(numbers.as_mut_ptr(), four) };
    }
}

/// The lanes that are all ones, of such as are all or none.
#[target_feature(enable = "neon")]
#[inline]
fn lanes_of(eight: Eight) -> u8 {
    let both = vcombine_u16(vmovn_u32(eight[0]), vmovn_u32(eight[1]));
    set_of(vmovn_u16(both))
}

/// Encodes groups of values, the last first, into the end of `out` as far as there is room for any. What remains of them,
/// and where those encoded begin.
///
/// # Safety
/// The machine has NEON.
#[target_feature(enable = "neon")]
pub(super) unsafe fn encode<'a>(
    ranges: &Ranges,
    groups: &'a [u8],
    states: &mut [u32; LANES],
    out: &mut [u8],
) -> (&'a [u8], usize) {
    let states = states.as_chunks_mut::<STEP>().0;
    let mut at = out.len();
    let (mut rest, _) = groups.as_chunks::<LANES>();
    while let Some((group, before)) = rest.split_last()
        && let Some(room) = out[..at].last_chunk_mut::<GROUP_BYTES>()
    {
        let mut end = GROUP_BYTES;
        let steps = group.as_chunks::<STEP>().0.iter().zip(&mut *states);
        for (values, states) in steps.rev() {
            let mut eight = load(states);
            end -= encode_step(ranges, values, &mut eight, (room, end));
            store(eight, states);
        }
        at -= GROUP_BYTES - end;
        rest = before;
    }
    (rest.as_flattened(), at)
}

/// Encodes eight values before what stands at `end`, where there is room for them at their longest; in how many bytes.
#[target_feature(enable = "neon")]
#[inline]
fn encode_step(
    ranges: &Ranges,
    values: &[u8; STEP],
    states: &mut Eight,
    (out, end): (&mut [u8; GROUP_BYTES], usize),
) -> usize {
    let of_values = |table: &[u32; 256]| load(&values.map(|value| table[usize::from(value)]));
    let range = of_values(&ranges.ranges);
    let reciprocals = of_values(&ranges.reciprocals);
    let words = vcombine_u16(vmovn_u32(states[0]), vmovn_u32(states[1]));
    let mut smalls = range;
    for i in 0..2 {
        let frequencies = vandq_u32(range[i], vdupq_n_u32(0xFFFF));
        let high = vshrq_n_u32::<{ 32 - SCALE_BITS as i32 }>(states[i]);
        let is_small = vcgtq_u32(frequencies, high);
        smalls[i] = is_small;
        let state = vbslq_u32(is_small, states[i], vshrq_n_u32::<16>(states[i]));
        let quotients = high_product(state, reciprocals[i]);
        let rest = vmlsq_u32(state, quotients, frequencies);
        // One more to the quotient where it is too little: all slots more, and a frequency less in the rest.
        let is_less = vcgeq_u32(rest, frequencies);
        let more = vsubq_u32(vdupq_n_u32(SLOTS as u32), frequencies);
        let starts = vaddq_u32(vshrq_n_u32::<16>(range[i]), vandq_u32(is_less, more));
        let coded = vaddq_u32(vshlq_n_u32::<{ SCALE_BITS as i32 }>(quotients), rest);
        states[i] = vaddq_u32(coded, starts);
    }
    let set = !lanes_of(smalls);
    let last = &mut out[end - 2 * STEP..end];
    // SAFETY: these are sixteen bytes.
    unsafe {
        vst1q_u8(
            last.as_mut_ptr(),
            compress_words(set, vreinterpretq_u8_u16(words)),
        )
    };
    2 * set.count_ones() as usize
}

/// The high halves of the products.
#[target_feature(enable = "neon")]
#[inline]
fn high_product(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
    let low = vmull_u32(vget_low_u32(a), vget_low_u32(b));
    let high = vmull_high_u32(a, b);
    vuzp2q_u32(vreinterpretq_u32_u64(low), vreinterpretq_u32_u64(high))
}

/// Decodes groups of symbols; where the stream is read next. Reads zeros behind the end, and counts them.
///
/// # Safety
/// The machine has NEON.
#[target_feature(enable = "neon")]
pub(super) unsafe fn decode(
    entries: &[Entry; SLOTS],
    (bytes, mut at): (&[u8], usize),
    states: &mut [u32; LANES],
    groups: &mut [[u8; LANES]],
) -> usize {
    let states = states.as_chunks_mut::<STEP>().0;
    let mut filled = [0; 2 * STEP];
    for group in groups {
        for (out, states) in group.as_chunks_mut::<STEP>().0.iter_mut().zip(&mut *states) {
            let ahead = ahead(bytes, at, &mut filled);
            at += 2 * decode_step(entries, ahead, states, out);
        }
    }
    at
}

/// Decodes eight symbols; how many of the words are taken.
#[target_feature(enable = "neon")]
#[inline]
fn decode_step(
    entries: &[Entry; SLOTS],
    words: &[u8; 2 * STEP],
    states: &mut [u32; STEP],
    out: &mut [u8; STEP],
) -> usize {
    let found = states.map(|state| entries[state as usize % SLOTS]);
    *out = found.map(|entry| entry as u8);
    let (state, found) = (load(states), load(&found));
    let (mut next, mut is_small) = (state, state);
    for i in 0..2 {
        let slots = vandq_u32(state[i], vdupq_n_u32(SLOTS as u32 - 1));
        let starts = vandq_u32(vshrq_n_u32::<8>(found[i]), vdupq_n_u32(0xFFF));
        let (rest, frequencies) = (vsubq_u32(slots, starts), vshrq_n_u32::<20>(found[i]));
        next[i] = vmlaq_u32(
            rest,
            frequencies,
            vshrq_n_u32::<{ SCALE_BITS as i32 }>(state[i]),
        );
        is_small[i] = vcltq_u32(next[i], vdupq_n_u32(LOW));
    }
    let set = lanes_of(is_small);
    // SAFETY: these are sixteen bytes.
    let words = unsafe { vld1q_u8(words.as_ptr()) };
    let refill = vreinterpretq_u16_u8(expand_words(set, words));
    let refill = [vmovl_u16(vget_low_u16(refill)), vmovl_high_u16(refill)];
    for i in 0..2 {
        let refilled = vorrq_u32(vshlq_n_u32::<16>(next[i]), refill[i]);
        next[i] = vbslq_u32(is_small[i], refilled, next[i]);
    }
    store(next, states);
    set.count_ones() as usize
}
