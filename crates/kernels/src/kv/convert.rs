//! Converting whole blocks between formats.
#![expect(
    clippy::needless_range_loop,
    reason = "iterator adapters are not always inlined into functions with more instructions than they have"
)]

mod coarse;
#[cfg(test)]
mod tests;

pub use coarse::{CodeBits, coarsen_block};

use super::codec::{LARGEST, to_halves};
use super::quantized::{
    Parts, QUAD, VALUE_GROUP, VECTOR_BYTES, added, get, put, room, scale, scale_code,
};
use super::{BLOCK_TOKENS, KvBlock, KvFormat, KvLayout};
use crate::Isa;
use crate::format::{f16_to_f32, f32_to_f16};
use crate::ops::lanes::{Kernel, LANES, Lanes, dispatch};
use std::ops::Range;

/// Vectors of a block's tokens.
const TOKEN_VECTORS: usize = BLOCK_TOKENS / LANES;
/// Channels of keys, or tokens of values, that are converted together: what shares bytes in the int4 format.
const STRIP: usize = 2 * QUAD;
/// Adding it rounds to an integer, which is then in the low bits.
const ROUND: f32 = 12_582_912.0;
/// The largest code of four bits.
const MOST_4: f32 = 15.0;
/// Scales tried for a group of four bits, from the one that covers it down: a smaller one cuts off the extremes and is
/// finer for all others. Chosen by squared error. Only groups of more than 32 numbers gain from the third.
const KEY_SCALES_TRIED: u8 = 2;
const VALUE_SCALES_TRIED: u8 = 3;
/// Vectors of a group of values in four bits.
const GROUP_LINES: usize = VALUE_GROUP / LANES;

/// Converts a whole block, keys and values of all layers, from one format to another, on the calling thread.
///
/// The same bits on every instruction set. What is stored is then, for 16-bit numbers `x` before:
///
/// * int8: `x` within half a scale (of its channel's keys, or its token's values: their largest magnitude / 127,
///   rounded to half precision) and 4e-6;
/// * int4: `x` within half a scale (at most an eighth more than (largest - least) / 15 or magnitude / 112, whichever is
///   more) and 4e-6 where the group is covered; a group's extremes may be cut off where that makes its squared error
///   smaller;
/// * f16, bf16: the nearest, as [`write_kv_run`](super::write_kv_run) stores it.
///
/// Zeros stay zeros in all of them. Numbers beyond ±65504 become that; not-a-numbers become zero on the way to int8 and
/// int4.
///
/// # Panics
/// If a block has not [`KvLayout::block_bytes`] bytes of its format.
pub fn convert_block(isa: Isa, layout: &KvLayout, from: KvBlock<'_>, to: KvFormat, out: &mut [u8]) {
    let (from_bytes, to_bytes) = (layout.block_bytes(from.format), layout.block_bytes(to));
    assert_eq!(from.bytes.len(), from_bytes, "the block's bytes");
    assert_eq!(out.len(), to_bytes, "the converted block's bytes");
    if from.format == to {
        out.copy_from_slice(from.bytes);
        return;
    }
    dispatch(
        isa,
        Convert {
            layout,
            from,
            to,
            out,
        },
    );
}

struct Convert<'a> {
    layout: &'a KvLayout,
    from: KvBlock<'a>,
    to: KvFormat,
    out: &'a mut [u8],
}

/// Channels or tokens, of each some vectors.
type Numbers<const N: usize> = [[[f32; LANES]; N]; STRIP];
/// Tokens of one channel.
type Channel = [[f32; LANES]; TOKEN_VECTORS];
/// Channels of keys.
type KeyStrip = Numbers<TOKEN_VECTORS>;
/// Tokens of values, each in whole vectors.
type ValueStrip = Numbers<{ KvLayout::MAX_HEAD_DIM / LANES }>;

impl Kernel for Convert<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let head_dim = self.layout.head_dim();
        let from_tiles = self
            .from
            .bytes
            .chunks_exact(self.layout.tile_bytes(self.from.format));
        let to_tiles = self.out.chunks_exact_mut(self.layout.tile_bytes(self.to));
        let mut keys: KeyStrip = [[[0.0; LANES]; TOKEN_VECTORS]; STRIP];
        let mut values: ValueStrip = [[[0.0; LANES]; KvLayout::MAX_HEAD_DIM / LANES]; STRIP];
        for (from, to) in from_tiles.zip(to_tiles) {
            let mut first = 0;
            while first < head_dim {
                let strip = Strip {
                    head_dim,
                    first,
                    count: STRIP.min(head_dim - first),
                };
                l.vectorize(ReadKeys(self.from.format, &strip, from, &mut keys));
                l.vectorize(WriteKeys(self.to, &strip, &keys, to));
                first += STRIP;
            }
            let mut first = 0;
            while first < BLOCK_TOKENS {
                let strip = Strip {
                    head_dim,
                    first,
                    count: STRIP,
                };
                l.vectorize(ReadValues(self.from.format, &strip, from, &mut values));
                l.vectorize(WriteValues(self.to, &strip, &mut values, to));
                first += STRIP;
            }
            fill(self.to, head_dim, to);
        }
    }
}

/// Zeros after the last part of a tile.
fn fill(format: KvFormat, head_dim: usize, tile: &mut [u8]) {
    let end = match format {
        KvFormat::F16 | KvFormat::Bf16 => return,
        KvFormat::Int8 => Parts::int8(head_dim).end,
        KvFormat::Int4 => Parts::int4(head_dim).end,
    };
    tile[end..].fill(0);
}

/// Which channels or tokens are being converted.
struct Strip {
    head_dim: usize,
    first: usize,
    /// [`STRIP`], but for the last channels of a head.
    count: usize,
}

impl Strip {
    /// Vectors of a token's values.
    fn lines(&self) -> usize {
        self.head_dim.div_ceil(LANES)
    }

    /// Its keys among the parts of a tile whose codes have so many bits.
    #[inline(always)]
    fn keys(&self, parts: &Parts, bits: usize) -> Place {
        Place {
            codes: parts.keys.start + self.first * BLOCK_TOKENS * bits / 8,
            row_bytes: QUAD * BLOCK_TOKENS,
            vectors: TOKEN_VECTORS,
            // Of eight bits two bytes.
            scales: parts.key_scales.start + self.first * bits / 4,
            offsets: parts.key_offsets.start + self.first,
            count: self.count,
        }
    }

    /// Its values likewise.
    #[inline(always)]
    fn values(&self, parts: &Parts, bits: usize) -> Place {
        Place {
            codes: parts.values.start + self.first * self.head_dim * bits / 8,
            row_bytes: QUAD * self.head_dim,
            vectors: self.lines(),
            scales: parts.value_scales.start + self.first * bits / 4,
            offsets: parts.value_offsets.start + self.first,
            count: STRIP,
        }
    }
}

/// Where a strip stands in a tile of codes: rows of vectors, each of four channels or tokens, or of two times four.
#[derive(Clone, Copy)]
struct Place {
    codes: usize,
    row_bytes: usize,
    /// Of a row; the last may be cut off.
    vectors: usize,
    /// Of the first channel or token, and in four bits of the first group of vectors.
    scales: usize,
    offsets: usize,
    /// Channels or tokens.
    count: usize,
}

impl Place {
    /// Where the codes of a row stand.
    #[inline(always)]
    fn row(&self, row: usize) -> Range<usize> {
        let at = self.codes + row * self.row_bytes;
        at..at + self.row_bytes
    }
}

/// Rounded to an integer.
#[inline(always)]
fn round<L: Lanes>(l: L, v: L::V) -> L::V {
    l.sub(l.add(v, l.splat(ROUND)), l.splat(ROUND))
}

/// Within what half precision holds; not-a-numbers are zero.
#[inline(always)]
fn clean<L: Lanes>(l: L, v: L::V) -> L::V {
    let size = l.max(l.abs(v), l.splat(0.0));
    l.with_sign(l.min(size, l.splat(LARGEST)), v)
}

#[inline(always)]
fn load_half<L: Lanes>(l: L, bf16: bool, from: &[u8; 2 * LANES]) -> L::V {
    let v = if bf16 {
        l.load_bf16(from)
    } else {
        l.load_f16(from)
    };
    clean(l, v)
}

/// Reads channels of keys.
struct ReadKeys<'a>(KvFormat, &'a Strip, &'a [u8], &'a mut KeyStrip);

impl Kernel for ReadKeys<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self(format, strip, tile, to) = self;
        match format {
            KvFormat::F16 | KvFormat::Bf16 => {
                let rows = &tile.as_chunks::<{ 2 * LANES }>().0[strip.first * TOKEN_VECTORS..];
                for channel in 0..strip.count {
                    for v in 0..TOKEN_VECTORS {
                        let row = &rows[channel * TOKEN_VECTORS + v];
                        let x = load_half(l, format == KvFormat::Bf16, row);
                        l.store(x, &mut to[channel][v]);
                    }
                }
            }
            KvFormat::Int8 => read_8(l, strip.keys(&Parts::int8(strip.head_dim), 8), tile, to),
            KvFormat::Int4 => read_4(l, strip.keys(&Parts::int4(strip.head_dim), 4), tile, to),
        }
    }
}

#[inline(always)]
fn read_8<L: Lanes, const N: usize>(l: L, at: Place, tile: &[u8], to: &mut Numbers<N>) {
    let scales = &tile[at.scales..];
    for quad in 0..at.count.div_ceil(QUAD) {
        let row = &tile[at.row(quad)];
        for v in 0..at.vectors {
            let numbers = l.load_codes(&get(&row[v * VECTOR_BYTES..]));
            for i in 0..QUAD.min(at.count - quad * QUAD) {
                let which = quad * QUAD + i;
                let scale = u16::from_le_bytes([scales[2 * which], scales[2 * which + 1]]);
                let x = clean(l, l.mul(numbers[i], l.splat(f16_to_f32(scale))));
                l.store(x, &mut to[which][v]);
            }
        }
    }
}

#[inline(always)]
fn read_4<L: Lanes, const N: usize>(l: L, at: Place, tile: &[u8], to: &mut Numbers<N>) {
    let row = &tile[at.row(0)];
    for v in 0..at.vectors {
        let group = v / GROUP_LINES * BLOCK_TOKENS;
        let scales = &tile[at.scales + group..];
        let added = added(&tile[at.offsets + group..]);
        let quads = l.unpack_nibbles(&get(&row[v * VECTOR_BYTES..]), &added);
        for half in 0..2 {
            let numbers = l.load_codes(&quads[half]);
            for i in 0..QUAD.min(at.count.saturating_sub(half * QUAD)) {
                let which = half * QUAD + i;
                let x = clean(l, l.mul(numbers[i], l.splat(scale(scales[which]))));
                l.store(x, &mut to[which][v]);
            }
        }
    }
}

/// Reads tokens' values.
struct ReadValues<'a>(KvFormat, &'a Strip, &'a [u8], &'a mut ValueStrip);

impl Kernel for ReadValues<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self(format, strip, tile, to) = self;
        match format {
            KvFormat::F16 | KvFormat::Bf16 => {
                let row_bytes = 2 * strip.head_dim;
                let values = &tile[tile.len() / 2..];
                for token in 0..STRIP {
                    let row = &values[(strip.first + token) * row_bytes..][..row_bytes];
                    for i in 0..strip.lines() {
                        let from = get(&row[2 * LANES * i..]);
                        let x = load_half(l, format == KvFormat::Bf16, &from);
                        l.store(x, &mut to[token][i]);
                    }
                }
            }
            KvFormat::Int8 => read_8(l, strip.values(&Parts::int8(strip.head_dim), 8), tile, to),
            KvFormat::Int4 => read_4(l, strip.values(&Parts::int4(strip.head_dim), 4), tile, to),
        }
    }
}

/// How a group is stored in eight bits: symmetric.
#[derive(Clone, Copy, Default)]
struct Group8 {
    /// The scale's bits in half precision.
    scale: u16,
    inverse: f32,
}

#[inline(always)]
fn group_8<L: Lanes>(l: L, group: &[[f32; LANES]]) -> Group8 {
    let mut most = l.splat(0.0);
    for i in 0..group.len() {
        most = l.max(l.abs(l.load(&group[i])), most);
    }
    let scale = f32_to_f16(l.reduce_max(most) * (1.0 / 127.0));
    let stored = f16_to_f32(scale);
    let inverse = if stored > 0.0 { 1.0 / stored } else { 0.0 };
    Group8 { scale, inverse }
}

/// The codes of numbers, in the low bits.
#[inline(always)]
fn codes_8<L: Lanes>(l: L, group: Group8, numbers: &[f32; LANES]) -> L::V {
    let scaled = l.mul(l.load(numbers), l.splat(group.inverse));
    let scaled = l.max(l.splat(-127.0), l.min(l.splat(127.0), scaled));
    l.add(scaled, l.splat(ROUND))
}

/// How a group is stored in four bits.
#[derive(Clone, Copy, Default)]
struct Group4 {
    scale: u8,
    inverse: f32,
    /// An integer from -127 to 112.
    offset: f32,
}

/// How groups of `N` vectors are stored. One step is made for all of them before the next one, so that none waits for its
/// own results.
#[inline(always)]
fn groups_4<L: Lanes, const N: usize>(
    l: L,
    groups: [&[[f32; LANES]; N]; STRIP],
    tried: u8,
) -> [Group4; STRIP] {
    let mut extremes = [(0.0, 0.0); STRIP];
    for i in 0..STRIP {
        let (mut low, mut high) = (l.load(&groups[i][0]), l.load(&groups[i][0]));
        for line in 1..N {
            low = l.min(low, l.load(&groups[i][line]));
            high = l.max(high, l.load(&groups[i][line]));
        }
        let low = l.reduce_max(l.sub(l.splat(0.0), low));
        extremes[i] = (-low, l.reduce_max(high));
    }
    // No branch depends on the errors: it could not be predicted.
    let (mut best, mut least_errors) = ([0; STRIP], [f32::INFINITY; STRIP]);
    for smaller in 0..tried {
        let mut next = [Group4::default(); STRIP];
        for i in 0..STRIP {
            next[i] = group_4(extremes[i], smaller);
        }
        let mut errors = [0.0; STRIP];
        for i in 0..STRIP {
            errors[i] = error_4(l, next[i], groups[i]);
        }
        for i in 0..STRIP {
            best[i] = if errors[i] < least_errors[i] {
                smaller
            } else {
                best[i]
            };
            least_errors[i] = least_errors[i].min(errors[i]);
        }
    }
    let mut stored = [Group4::default(); STRIP];
    for i in 0..STRIP {
        stored[i] = group_4(extremes[i], best[i]);
    }
    stored
}

/// A group of these extremes with the scale that covers it, or one so many steps smaller.
#[inline(always)]
fn group_4((low, high): (f32, f32), smaller: u8) -> Group4 {
    let covering = scale_code(((high - low) * (1.0 / MOST_4)).max(low.abs() * (1.0 / 112.0)));
    let code = covering.saturating_sub(smaller);
    let inverse = 1.0 / scale(code);
    let middle = 0.5 * (low + high) * inverse - 0.5 * MOST_4;
    // Zero has a code of its own, so that it stays zero.
    let (least, most) = if low <= 0.0 && high >= 0.0 {
        (-MOST_4, 0.0)
    } else {
        (-127.0, 112.0)
    };
    Group4 {
        scale: code,
        inverse,
        offset: middle.round_ties_even().clamp(least, most),
    }
}

/// The squared error of a group stored so.
#[inline(always)]
fn error_4<L: Lanes, const N: usize>(l: L, stored: Group4, group: &[[f32; LANES]; N]) -> f32 {
    let (scale, offset) = (l.splat(scale(stored.scale)), l.splat(stored.offset));
    let mut errors = l.splat(0.0);
    for line in 0..N {
        let number = l.add(codes_4(l, stored, &group[line]), offset);
        let error = l.fnma(number, scale, l.load(&group[line]));
        errors = l.fma(error, error, errors);
    }
    l.reduce_add(errors)
}

/// The codes of numbers.
#[inline(always)]
fn codes_4<L: Lanes>(l: L, group: Group4, numbers: &[f32; LANES]) -> L::V {
    let x = l.load(numbers);
    let scaled = l.fma(x, l.splat(group.inverse), l.splat(-group.offset));
    let scaled = l.max(l.splat(0.0), l.min(l.splat(MOST_4), scaled));
    round(l, scaled)
}

/// Codes of two groups in a byte each, in the low bits.
#[inline(always)]
fn joined<L: Lanes>(l: L, low: L::V, high: L::V) -> L::V {
    l.add(l.fma(high, l.splat(16.0), low), l.splat(ROUND))
}

/// Writes channels of keys.
struct WriteKeys<'a>(KvFormat, &'a Strip, &'a KeyStrip, &'a mut [u8]);

impl Kernel for WriteKeys<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self(format, strip, keys, tile) = self;
        match format {
            KvFormat::F16 | KvFormat::Bf16 => {
                let rows = tile.as_chunks_mut::<{ 2 * LANES }>().0;
                let rows = &mut rows[strip.first * TOKEN_VECTORS..];
                for channel in 0..strip.count {
                    for v in 0..TOKEN_VECTORS {
                        let x = l.load(&keys[channel][v]);
                        rows[channel * TOKEN_VECTORS + v] =
                            to_halves(l, format == KvFormat::Bf16, x);
                    }
                }
            }
            KvFormat::Int8 => write_8(l, strip.keys(&Parts::int8(strip.head_dim), 8), keys, tile),
            KvFormat::Int4 => write_keys_4(l, strip, keys, tile),
        }
    }
}

#[inline(always)]
fn write_8<L: Lanes, const N: usize>(l: L, at: Place, from: &Numbers<N>, tile: &mut [u8]) {
    let mut groups = [Group8::default(); STRIP];
    for which in 0..at.count {
        groups[which] = group_8(l, &from[which][..at.vectors]);
        let at = at.scales + 2 * which;
        tile[at..at + 2].copy_from_slice(&groups[which].scale.to_le_bytes());
    }
    for quad in 0..at.count.div_ceil(QUAD) {
        let row = &mut tile[at.row(quad)];
        for v in 0..at.vectors {
            let mut numbers = [l.splat(0.0); QUAD];
            for i in 0..QUAD.min(at.count - quad * QUAD) {
                let which = quad * QUAD + i;
                numbers[i] = codes_8(l, groups[which], &from[which][v]);
            }
            let mut codes = [0; VECTOR_BYTES];
            l.store_codes(numbers, &mut codes);
            put(&codes, room(row, VECTOR_BYTES, v));
        }
    }
}

/// Stores some vectors, which share groups, as these say.
#[inline(always)]
fn store_4<L: Lanes, const N: usize>(
    l: L,
    at: Place,
    (from, vectors): (&Numbers<N>, Range<usize>),
    groups: &[Group4; STRIP],
    tile: &mut [u8],
) {
    let group = vectors.start / GROUP_LINES * BLOCK_TOKENS;
    for which in 0..at.count {
        tile[at.scales + group + which] = groups[which].scale;
        tile[at.offsets + group + which] = groups[which].offset as i8 as u8;
    }
    let row = &mut tile[at.row(0)];
    for v in vectors {
        let mut numbers = [l.splat(0.0); QUAD];
        for i in 0..QUAD {
            let mut halves = [l.splat(0.0); 2];
            for half in 0..2 {
                let which = half * QUAD + i;
                if which < at.count {
                    halves[half] = codes_4(l, groups[which], &from[which][v]);
                }
            }
            numbers[i] = joined(l, halves[0], halves[1]);
        }
        let mut codes = [0; VECTOR_BYTES];
        l.store_codes(numbers, &mut codes);
        put(&codes, room(row, VECTOR_BYTES, v));
    }
}

#[inline(always)]
fn write_keys_4<L: Lanes>(l: L, strip: &Strip, keys: &KeyStrip, tile: &mut [u8]) {
    let mut channels = [&keys[0]; STRIP];
    for channel in 0..STRIP {
        channels[channel] = &keys[channel];
    }
    let groups = groups_4(l, channels, KEY_SCALES_TRIED);
    store_keys_4(l, strip, keys, &groups, tile);
}

/// Stores channels of keys as the groups say.
#[inline(always)]
fn store_keys_4<L: Lanes>(
    l: L,
    strip: &Strip,
    keys: &KeyStrip,
    groups: &[Group4; STRIP],
    tile: &mut [u8],
) {
    let at = strip.keys(&Parts::int4(strip.head_dim), 4);
    store_4(l, at, (keys, 0..TOKEN_VECTORS), groups, tile);
}

/// Writes tokens' values.
struct WriteValues<'a>(KvFormat, &'a Strip, &'a mut ValueStrip, &'a mut [u8]);

impl Kernel for WriteValues<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self(format, strip, values, tile) = self;
        let head_dim = strip.head_dim;
        match format {
            KvFormat::F16 | KvFormat::Bf16 => {
                let half = tile.len() / 2;
                for token in 0..STRIP {
                    let at = half + 2 * (strip.first + token) * head_dim;
                    let row = &mut tile[at..at + 2 * head_dim];
                    for i in 0..strip.lines() {
                        let x = l.load(&values[token][i]);
                        let bytes = to_halves(l, format == KvFormat::Bf16, x);
                        put(&bytes, room(row, 2 * LANES, i));
                    }
                }
            }
            KvFormat::Int8 => {
                repeat_first(strip, values);
                write_8(
                    l,
                    strip.values(&Parts::int8(strip.head_dim), 8),
                    values,
                    tile,
                );
            }
            KvFormat::Int4 => {
                repeat_first(strip, values);
                write_values_4(l, strip, values, tile);
            }
        }
    }
}

/// Fills the last vector of a token up with a number that changes no extremes: the first one of its group.
#[inline(always)]
fn repeat_first(strip: &Strip, values: &mut ValueStrip) {
    let first = (strip.head_dim - 1) / VALUE_GROUP * GROUP_LINES;
    for token in 0..STRIP {
        for dim in strip.head_dim..strip.lines() * LANES {
            values[token][dim / LANES][dim % LANES] = values[token][first][0];
        }
    }
}

/// [`groups_4`] of the tokens' vectors from `line` on.
#[inline(always)]
fn value_groups_4<L: Lanes, const N: usize>(
    l: L,
    values: &ValueStrip,
    line: usize,
) -> [Group4; STRIP] {
    let tokens = std::array::from_fn(|token| {
        let lines: Option<&[[f32; LANES]; N]> = values[token][line..].first_chunk();
        lines.expect("so many lines of a token")
    });
    groups_4(l, tokens, VALUE_SCALES_TRIED)
}

#[inline(always)]
fn write_values_4<L: Lanes>(l: L, strip: &Strip, values: &ValueStrip, tile: &mut [u8]) {
    let at = strip.values(&Parts::int4(strip.head_dim), 4);
    let mut line = 0;
    while line < strip.lines() {
        let lines = line..strip.lines().min(line + GROUP_LINES);
        let groups = match lines.len() {
            1 => value_groups_4::<L, 1>(l, values, line),
            2 => value_groups_4::<L, 2>(l, values, line),
            3 => value_groups_4::<L, 3>(l, values, line),
            _ => value_groups_4::<L, GROUP_LINES>(l, values, line),
        };
        store_4(l, at, (values, lines), &groups, tile);
        line += GROUP_LINES;
    }
}
