//! Where everything stands in the tiles of [`KvFormat::Int8`] and [`KvFormat::Int4`], and reading single numbers.
//!
//! Keys have a scale for each channel because in large models a few channels are much larger than the others, always the
//! same ones; values have one for each token because they have none of that (KIVI, Liu et al. 2024). What else was tried
//! for four bits, by `examples/kv_formats`: the error of attention's outputs relative to their size, in thousandths, on
//! synthetic heads of 128 channels, keys with such channels.
//!
//! | keys | bits | error | values | bits | error |
//! |---|---|---|---|---|---|
//! | **channel, 8-bit scale and offset** | 4.5 | 158 | **64 of a token, 8-bit scale and offset** | 4.25 | 107 |
//! | channel, f16 scale and least (KIVI) | 5.0 | 141 | token, f16 scale and least (KIVI) | 4.25 | 130 |
//! | channel, the same, levels not uniform | 5.0 | 154 | token, 8-bit scale and offset | 4.125 | 125 |
//! | channel, f16 scale | 4.5 | 284 | 32 of a token, 8-bit scale and offset | 4.5 | 89 |
//! | channel, f16 scale, two channels apart | 4.69 | 224 | rotated, token, 8-bit scale and offset | 4.125 | 94 |
//! | 32 of a token, f16 scale (Q4_0) | 4.5 | 504 | 32 of a token, f16 scale (Q4_0) | 4.5 | 106 |
//! | rotated, token, Lloyd-Max levels (TurboQuant) | 4.125 | 327 | the same | 4.125 | 94 |
//! | rotated, channel, 8-bit scale and offset | 4.5 | 133 | | | |
//! | channel before the rotary embedding (KVQuant), 8-bit scale and offset | 4.5 | 98 | | | |
//!
//! In eight bits a scale for each channel of the keys has an error of 16 where one for each token has 40. A Hadamard
//! rotation would make the errors of four bits a sixth smaller, but needs sums of its own beside those of other formats.
//! Keys from before the rotary embedding would make them a third smaller where channels are large and steady, and none
//! where they are not; but then the codes of two tokens are no longer multiplied by the same query. Every key would have to
//! be decoded and rotated at every reading, with the sines of its position, which is several times the work of the product
//! of codes that attention does, for each head of the keys.
//!
//! [`KvFormat::Int8`]: super::KvFormat::Int8
//! [`KvFormat::Int4`]: super::KvFormat::Int4

use super::BLOCK_TOKENS;
use crate::format::f16_to_f32;
use std::ops::Range;

/// Codes that the dot-product instructions take together.
pub(crate) const QUAD: usize = 4;
/// Channels of a token's values that share a scale in four bits.
pub(crate) const VALUE_GROUP: usize = 64;
/// Bytes of a vector of codes: four for each of sixteen lanes.
pub(crate) const VECTOR_BYTES: usize = 64;
/// What a scale of eight bits begins with as an `f32`, whose bits it is but for them: 2^-17.
pub(crate) const SCALE_BIAS: u32 = 110 << 3;
/// Bits of an `f32` after those of a scale.
pub(crate) const SCALE_SHIFT: u32 = 20;

/// A quantized tile's parts.
pub(crate) struct Parts {
    pub(crate) keys: Range<usize>,
    pub(crate) values: Range<usize>,
    pub(crate) key_scales: Range<usize>,
    /// Empty where the format has none.
    pub(crate) key_offsets: Range<usize>,
    pub(crate) value_scales: Range<usize>,
    pub(crate) value_offsets: Range<usize>,
    /// What stands after the last part is filler.
    pub(crate) end: usize,
    /// Bytes of the tile.
    pub(crate) bytes: usize,
}

impl Parts {
    pub(crate) fn int8(head_dim: usize) -> Self {
        let keys = head_dim.div_ceil(QUAD) * QUAD * BLOCK_TOKENS;
        Self::of([
            keys,
            BLOCK_TOKENS * head_dim,
            2 * head_dim,
            0,
            2 * BLOCK_TOKENS,
            0,
        ])
    }

    pub(crate) fn int4(head_dim: usize) -> Self {
        let keys = head_dim.div_ceil(2 * QUAD) * QUAD * BLOCK_TOKENS;
        let value_groups = head_dim.div_ceil(VALUE_GROUP) * BLOCK_TOKENS;
        Self::of([
            keys,
            BLOCK_TOKENS / 2 * head_dim,
            head_dim,
            head_dim,
            value_groups,
            value_groups,
        ])
    }

    /// Of the parts' lengths.
    fn of(bytes: [usize; 6]) -> Self {
        let mut end = 0;
        let mut part = |bytes: usize| {
            end += bytes;
            end - bytes..end
        };
        let [
            keys,
            values,
            key_scales,
            key_offsets,
            value_scales,
            value_offsets,
        ] = bytes.map(&mut part);
        Self {
            keys,
            values,
            key_scales,
            key_offsets,
            value_scales,
            value_offsets,
            end,
            bytes: end.next_multiple_of(VECTOR_BYTES),
        }
    }
}

/// Where a key's code stands among those of eight bits.
fn key_at(dim: usize, slot: usize) -> usize {
    (dim / QUAD * BLOCK_TOKENS + slot) * QUAD + dim % QUAD
}

/// Where a value's code stands among those of eight bits.
fn value_at(head_dim: usize, slot: usize, dim: usize) -> usize {
    (slot / QUAD * head_dim + dim) * QUAD + slot % QUAD
}

/// One token of an int8 tile.
pub(super) fn read_int8(tile: &[u8], slot: usize, keys: &mut [f32], values: &mut [f32]) {
    let head_dim = keys.len();
    let parts = Parts::int8(head_dim);
    let (key_codes, value_codes) = (&tile[parts.keys], &tile[parts.values]);
    let scale = |of: &Range<usize>, i: usize| {
        let at = of.start + 2 * i;
        f16_to_f32(u16::from_le_bytes([tile[at], tile[at + 1]]))
    };
    let number = |code: u8| f32::from(code.cast_signed());
    for dim in 0..head_dim {
        keys[dim] = scale(&parts.key_scales, dim) * number(key_codes[key_at(dim, slot)]);
        let code = value_codes[value_at(head_dim, slot, dim)];
        values[dim] = scale(&parts.value_scales, slot) * number(code);
    }
}

/// One token of an int4 tile.
pub(super) fn read_int4(tile: &[u8], slot: usize, keys: &mut [f32], values: &mut [f32]) {
    let head_dim = keys.len();
    let parts = Parts::int4(head_dim);
    let (key_codes, value_codes) = (&tile[parts.keys], &tile[parts.values]);
    let number = |scales: &Range<usize>, offsets: &Range<usize>, i: usize, code: u8| {
        let offset = i32::from(tile[offsets.start + i].cast_signed());
        scale(tile[scales.start + i]) * (i32::from(code) + offset) as f32
    };
    // Quads go in pairs: the second one of each in the high four bits.
    let nibble = |codes: &[u8], quad: usize, at: usize| codes[at] >> (4 * (quad % 2)) & 0xF;
    for dim in 0..head_dim {
        let at = key_at(dim / (2 * QUAD) * QUAD + dim % QUAD, slot);
        let code = nibble(key_codes, dim / QUAD, at);
        keys[dim] = number(&parts.key_scales, &parts.key_offsets, dim, code);
        let at = value_at(head_dim, slot / (2 * QUAD) * QUAD + slot % QUAD, dim);
        let code = nibble(value_codes, slot / QUAD, at);
        let group = dim / VALUE_GROUP * BLOCK_TOKENS + slot;
        values[dim] = number(&parts.value_scales, &parts.value_offsets, group, code);
    }
}

/// A scale of eight bits.
pub(crate) fn scale(code: u8) -> f32 {
    f32::from_bits((u32::from(code) + SCALE_BIAS) << SCALE_SHIFT)
}

/// The least scale of eight bits that is not below `least`, or the largest.
pub(super) fn scale_code(least: f32) -> u8 {
    let up = (least.to_bits() + (1 << SCALE_SHIFT) - 1) >> SCALE_SHIFT;
    up.saturating_sub(SCALE_BIAS).min(255) as u8
}

/// As many bytes of a vector as there are.
#[inline(always)]
pub(crate) fn get<const N: usize>(from: &[u8]) -> [u8; N] {
    match from.first_chunk() {
        Some(whole) => *whole,
        None => {
            let mut filled = [0; N];
            filled[..from.len()].copy_from_slice(from);
            filled
        }
    }
}

/// Writes as many bytes of a vector as there is room for.
#[inline(always)]
pub(super) fn put<const N: usize>(vector: &[u8; N], to: &mut [u8]) {
    match to.first_chunk_mut() {
        Some(whole) => *whole = *vector,
        None => to.copy_from_slice(&vector[..to.len()]),
    }
}

/// Where the `i`th vector stands in a row, whose last one may not be whole.
#[inline(always)]
pub(super) fn room(row: &mut [u8], bytes: usize, i: usize) -> &mut [u8] {
    let end = row.len().min((i + 1) * bytes);
    &mut row[i * bytes..end]
}

/// What is added to the codes of two quads to make signed codes of them: their offsets.
#[inline(always)]
pub(crate) fn added(offsets: &[u8]) -> [[u8; QUAD]; 2] {
    let offsets: [u8; 2 * QUAD] = get(offsets);
    let [a, b, c, d, e, f, g, h] = offsets;
    [[a, b, c, d], [e, f, g, h]]
}
