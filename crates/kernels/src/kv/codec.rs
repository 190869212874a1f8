//! Writing and reading the tiles of each format.

use super::{BLOCK_TOKENS, KvFormat};
use crate::Isa;
use crate::format::{bf16_to_f32, f16_to_f32};
use crate::ops::lanes::{Kernel, LANES, Lanes, dispatch, load_part};

/// One head's keys and values of consecutive tokens, inside rows of all heads.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
    /// Numbers from one token to the next.
    pub(super) width: usize,
    /// Where the head begins in a token's row.
    pub(super) first: usize,
}

/// Writes `n` tokens into a tile of 16-bit numbers, from `first_slot` on.
pub(super) fn write_tile(
    isa: Isa,
    format: KvFormat,
    head_dim: usize,
    tile: &mut [u8],
    first_slot: usize,
    n: usize,
    source: Source<'_>,
) {
    dispatch(
        isa,
        WriteHalves {
            bf16: format == KvFormat::Bf16,
            head_dim,
            tile,
            first_slot,
            n,
            source,
        },
    );
}

/// The largest number of half precision.
pub(super) const LARGEST: f32 = 65504.0;

/// Writes a tile of 16-bit numbers.
struct WriteHalves<'a> {
    bf16: bool,
    head_dim: usize,
    tile: &'a mut [u8],
    first_slot: usize,
    n: usize,
    source: Source<'a>,
}

/// Sixteen numbers as 16-bit ones.
#[inline(always)]
pub(super) fn to_halves<L: Lanes>(l: L, bf16: bool, v: L::V) -> [u8; 2 * LANES] {
    let mut bytes = [0; 2 * LANES];
    if bf16 {
        l.store_bf16(v, &mut bytes);
    } else {
        let v = l.max(l.splat(-LARGEST), l.min(l.splat(LARGEST), v));
        l.store_f16(v, &mut bytes);
    }
    bytes
}

impl Kernel for WriteHalves<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self {
            bf16,
            head_dim,
            tile,
            first_slot,
            n,
            source,
        } = self;
        let (keys, values) = tile.split_at_mut(tile.len() / 2);
        let key_rows = keys.as_chunks_mut::<{ 2 * BLOCK_TOKENS }>().0;
        for token in 0..n {
            let slot = first_slot + token;
            let at = token * source.width + source.first;
            let k = source.keys[at..at + head_dim].as_chunks::<LANES>();
            let v = source.values[at..at + head_dim].as_chunks::<LANES>();
            let value_row = &mut values[2 * slot * head_dim..2 * (slot + 1) * head_dim];
            let (value_chunks, value_rest) = value_row.as_chunks_mut::<{ 2 * LANES }>();
            let (key_chunks, key_rest) = key_rows.as_chunks_mut::<LANES>();
            for i in 0..k.0.len() {
                value_chunks[i] = to_halves(l, bf16, l.load(&v.0[i]));
                write_column(
                    &mut key_chunks[i],
                    slot,
                    &to_halves(l, bf16, l.load(&k.0[i])),
                );
            }
            let rest = k.1.len();
            if rest > 0 {
                let bytes = to_halves(l, bf16, load_part(l, v.1, 0.0));
                value_rest.copy_from_slice(&bytes[..2 * rest]);
                write_column(key_rest, slot, &to_halves(l, bf16, load_part(l, k.1, 0.0)));
            }
        }
    }
}

/// Writes one token's keys of at most sixteen dimensions, of each of which there is a row of tokens.
#[inline(always)]
fn write_column(rows: &mut [[u8; 2 * BLOCK_TOKENS]], slot: usize, keys: &[u8; 2 * LANES]) {
    let keys = keys.as_chunks::<2>().0;
    assert!(slot < BLOCK_TOKENS && rows.len() <= LANES);
    for i in 0..rows.len() {
        (rows[i][2 * slot], rows[i][2 * slot + 1]) = (keys[i][0], keys[i][1]);
    }
}

/// Reads one token of a tile of 16-bit numbers.
pub(super) fn read_token(
    format: KvFormat,
    tile: &[u8],
    slot: usize,
    keys: &mut [f32],
    values: &mut [f32],
) {
    let head_dim = keys.len();
    let (key_bytes, value_bytes) = tile.split_at(tile.len() / 2);
    let at = |bytes: &[u8], i: usize| u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]);
    for dim in 0..head_dim {
        let (k, v) = (
            at(key_bytes, dim * BLOCK_TOKENS + slot),
            at(value_bytes, slot * head_dim + dim),
        );
        (keys[dim], values[dim]) = if format == KvFormat::Bf16 {
            (bf16_to_f32(k), bf16_to_f32(v))
        } else {
            (f16_to_f32(k), f16_to_f32(v))
        };
    }
}
