//! Four-bit blocks with coarse and mostly equal steps, whose codes take few bits when they are entropy-coded.
//!
//! [`convert_block`](super::convert_block) spreads each group over all sixteen codes, so an entropy coder finds little. Here
//! all channels of a tile's keys have one step (as large as their mean information allows), and all its values: that is
//! the least squared error for a given number of bits, channels that vary less taking fewer (reverse water-filling,
//! Berger 1971). Groups that are too wide for sixteen codes have a larger step.

use super::*;

/// The mean information that a code is to have, in bits. What an entropy coder makes of it is a little more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CodeBits {
    /// Of a key.
    pub keys: f32,
    /// Of a value.
    pub values: f32,
}

/// Converts a whole block to [`KvFormat::Int4`] with codes of about so much information, on the calling thread.
///
/// The same bits on every instruction set. A number `x` is then within half a step of what is stored, unless its group
/// has so wide a range that its step is larger: (largest - least) / 15 or magnitude / 112, whichever is more, and an eighth.
///
/// # Panics
/// If a block has not [`KvLayout::block_bytes`] bytes.
pub fn coarsen_block(
    isa: Isa,
    layout: &KvLayout,
    from: KvBlock<'_>,
    bits: CodeBits,
    out: &mut [u8],
) {
    let (from_bytes, to_bytes) = (
        layout.block_bytes(from.format),
        layout.block_bytes(KvFormat::Int4),
    );
    assert_eq!(from.bytes.len(), from_bytes, "the block's bytes");
    assert_eq!(out.len(), to_bytes, "the converted block's bytes");
    dispatch(
        isa,
        Coarsen {
            layout,
            from,
            bits,
            out,
        },
    );
}

struct Coarsen<'a> {
    layout: &'a KvLayout,
    from: KvBlock<'a>,
    bits: CodeBits,
    out: &'a mut [u8],
}

impl Kernel for Coarsen<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let head_dim = self.layout.head_dim();
        let format = self.from.format;
        let from_tiles = self.from.bytes.chunks_exact(self.layout.tile_bytes(format));
        let to_tiles = self
            .out
            .chunks_exact_mut(self.layout.tile_bytes(KvFormat::Int4));
        let mut keys: KeyStrip = [[[0.0; LANES]; TOKEN_VECTORS]; STRIP];
        let mut values: ValueStrip = [[[0.0; LANES]; KvLayout::MAX_HEAD_DIM / LANES]; STRIP];
        let mut deviations = [0.0; KvLayout::MAX_HEAD_DIM];
        for (from, to) in from_tiles.zip(to_tiles) {
            let deviations = &mut deviations[..head_dim];
            for strip in strips(head_dim, head_dim) {
                l.vectorize(ReadKeys(format, &strip, from, &mut keys));
                for channel in 0..strip.count {
                    deviations[strip.first + channel] = deviation(l, &keys[channel]);
                }
            }
            let step = step_of(deviations, self.bits.keys);
            for strip in strips(head_dim, head_dim) {
                l.vectorize(ReadKeys(format, &strip, from, &mut keys));
                coarse_keys(l, &strip, (&keys, step), to);
            }
            let mut sums = [[0.0; KvLayout::MAX_HEAD_DIM]; 2];
            for strip in strips(head_dim, BLOCK_TOKENS) {
                l.vectorize(ReadValues(format, &strip, from, &mut values));
                add_values(l, &strip, &values, &mut sums);
            }
            for channel in 0..head_dim {
                let n = BLOCK_TOKENS as f32;
                let mean = sums[0][channel] / n;
                let variance = sums[1][channel] / n - mean * mean;
                deviations[channel] = variance.max(0.0).sqrt();
            }
            let step = step_of(deviations, self.bits.values);
            for strip in strips(head_dim, BLOCK_TOKENS) {
                l.vectorize(ReadValues(format, &strip, from, &mut values));
                repeat_first(&strip, &mut values);
                coarse_values(l, &strip, (&values, step), to);
            }
            fill(KvFormat::Int4, head_dim, to);
        }
    }
}

/// The strips of so many channels or tokens.
fn strips(head_dim: usize, count: usize) -> impl Iterator<Item = Strip> {
    (0..count).step_by(STRIP).map(move |first| Strip {
        head_dim,
        first,
        count: STRIP.min(count - first),
    })
}

/// The standard deviation of a channel's keys.
#[inline(always)]
fn deviation<L: Lanes>(l: L, channel: &Channel) -> f32 {
    let n = BLOCK_TOKENS as f32;
    let mut sum = l.splat(0.0);
    for v in 0..TOKEN_VECTORS {
        sum = l.add(sum, l.load(&channel[v]));
    }
    let mean = l.splat(l.reduce_add(sum) / n);
    let mut squares = l.splat(0.0);
    for v in 0..TOKEN_VECTORS {
        let difference = l.sub(l.load(&channel[v]), mean);
        squares = l.fma(difference, difference, squares);
    }
    (l.reduce_add(squares) / n).sqrt()
}

/// Adds tokens' values, and their squares, to sums of each channel.
#[inline(always)]
fn add_values<L: Lanes>(
    l: L,
    strip: &Strip,
    values: &ValueStrip,
    sums: &mut [[f32; KvLayout::MAX_HEAD_DIM]; 2],
) {
    let [sums, squares] = sums;
    let (sums, squares) = (
        sums.as_chunks_mut::<LANES>().0,
        squares.as_chunks_mut::<LANES>().0,
    );
    for i in 0..strip.lines() {
        let (mut sum, mut square) = (l.load(&sums[i]), l.load(&squares[i]));
        for token in 0..STRIP {
            let x = l.load(&values[token][i]);
            sum = l.add(sum, x);
            square = l.fma(x, x, square);
        }
        l.store(sum, &mut sums[i]);
        l.store(square, &mut squares[i]);
    }
}

/// The step that gives the codes of channels of these deviations so many bits on average; `None` if none varies.
///
/// A normal variable of deviation d, in steps of s, has about log2(1 + 2 pi e (d / s)²) / 2 bits.
fn step_of(deviations: &[f32], bits: f32) -> Option<f32> {
    const TWO_PI_E: f32 = 17.079_468;
    let largest = deviations.iter().copied().fold(0.0, f32::max);
    if largest <= 0.0 || !largest.is_finite() {
        return None;
    }
    let n = deviations.len() as f32;
    let varying = || deviations.iter().filter(|&&d| d > largest * 1e-6);
    let count = varying().count() as f32;
    // Without the 1 in the formula the step is known, and smaller. From there Newton's method only ever goes up, since the
    // bits fall ever less steeply with the step.
    let logs: f32 = varying().map(|d| d.log2()).sum();
    let mut log_step = 0.5 * TWO_PI_E.log2() + (logs - bits * n) / count;
    for _ in 0..4 {
        let inverse = (-log_step).exp2();
        let (mut found, mut slope) = (0.0, 0.0);
        for deviation in varying() {
            let ratio = TWO_PI_E * (deviation * inverse).powi(2);
            found += 0.5 * (1.0 + ratio).log2();
            slope += ratio / (1.0 + ratio);
        }
        log_step += (found - bits * n) / slope;
    }
    Some(log_step.exp2())
}

/// A group with this step, or a larger one if its range is too wide for it; `middle` is to have code 8 if it can.
#[inline(always)]
fn coarse_group((low, high): (f32, f32), middle: f32, step: f32) -> Group4 {
    let widest = ((high - low) * (1.0 / MOST_4)).max(low.abs().max(high.abs()) * (1.0 / 112.0));
    // Of the two scales around the step the lower one.
    let common = scale_code(step).saturating_sub(u8::from(scale(scale_code(step)) > step));
    let wide = scale_code(widest);
    let mut code = common;
    if wide > common {
        code = wide;
    }
    loop {
        let inverse = 1.0 / scale(code);
        let (least, most) = (
            (low * inverse).round_ties_even(),
            (high * inverse).round_ties_even(),
        );
        // Rounding may take a code more than the range has steps.
        if most - least <= MOST_4 || code == 255 {
            let offset = (middle * inverse).round_ties_even() - 8.0;
            let offset = offset.max(most - MOST_4).min(least).clamp(-127.0, 112.0);
            return Group4 {
                scale: code,
                inverse,
                offset,
            };
        }
        code += 1;
    }
}

#[inline(always)]
fn coarse_keys<L: Lanes>(
    l: L,
    strip: &Strip,
    (keys, step): (&KeyStrip, Option<f32>),
    tile: &mut [u8],
) {
    let Some(step) = step else {
        return write_keys_4(l, strip, keys, tile);
    };
    let mut groups = [Group4::default(); STRIP];
    for channel in 0..strip.count {
        let (mut low, mut high) = (l.load(&keys[channel][0]), l.load(&keys[channel][0]));
        let mut sum = l.splat(0.0);
        for v in 0..TOKEN_VECTORS {
            let x = l.load(&keys[channel][v]);
            (low, high, sum) = (l.min(low, x), l.max(high, x), l.add(sum, x));
        }
        let low = -l.reduce_max(l.sub(l.splat(0.0), low));
        let mean = l.reduce_add(sum) / BLOCK_TOKENS as f32;
        groups[channel] = coarse_group((low, l.reduce_max(high)), mean, step);
    }
    store_keys_4(l, strip, keys, &groups, tile);
}

#[inline(always)]
fn coarse_values<L: Lanes>(
    l: L,
    strip: &Strip,
    (values, step): (&ValueStrip, Option<f32>),
    tile: &mut [u8],
) {
    let Some(step) = step else {
        return write_values_4(l, strip, values, tile);
    };
    let at = strip.values(&Parts::int4(strip.head_dim), 4);
    let mut line = 0;
    while line < strip.lines() {
        let lines = line..strip.lines().min(line + GROUP_LINES);
        let mut groups = [Group4::default(); STRIP];
        for token in 0..STRIP {
            let first = l.load(&values[token][line]);
            let (mut low, mut high) = (first, first);
            for i in lines.clone() {
                let x = l.load(&values[token][i]);
                (low, high) = (l.min(low, x), l.max(high, x));
            }
            let low = -l.reduce_max(l.sub(l.splat(0.0), low));
            groups[token] = coarse_group((low, l.reduce_max(high)), 0.0, step);
        }
        store_4(l, at, (values, lines), &groups, tile);
        line += GROUP_LINES;
    }
}
