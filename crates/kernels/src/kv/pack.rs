//! Blocks of four bits, entropy-coded without loss: what they are kept as where nothing attends to them.
//!
//! A row is the 32 codes of one channel, of its keys or its values, and is coded by the model of
//! [`rans::nibbles`](crate::rans::nibbles) that suits it. Where a channel changes little from token to token, as the slowly
//! rotated ones do, the row holds the differences instead (CacheGen, Liu et al. 2024). What says how the codes are to be
//! read (models, scales, offsets) is coded by [`rans::bytes`](crate::rans::bytes), scales and offsets as differences from the
//! median of their tile.
//!
//! ```text
//! [0]      1, the version
//! [1]      0: the block follows as it is; 1: what is below follows
//! [2, 4)   0
//! [4, 8)   bytes of the stream of codes, u32 little-endian
//! [8, …)   the stream of codes, tiles in their order, of each the rows of its keys, then of its values;
//!          then these parts, coded together:
//!            medians         of each tile four bytes: of key scales, key offsets, value scales, value offsets
//!            models          of each row a byte: keys by channel, then values by channel; 128 more where the row holds
//!                            differences: (code - the code before + 8) mod 16, the first from 8
//!            key scales      of each channel, less the median (mod 256)
//!            key offsets     likewise
//!            value scales    of each group, in the tile's order, likewise
//!            value offsets   likewise
//! ```
//!
//! Where unpacking's time goes, of the blocks of a small model (4 tiles of 64 channels, AVX-512; sampled): nearly half to the
//! states of the rows, 7 ns a row, each of which waits for the one before; a third to the bytes beside them, whose four
//! states wait likewise; a twentieth to putting the codes into their order. A second stream of rows would wait at the same
//! time as the first, but takes 64 bytes of states, 0.03 bits a value of such a block. Four of the bytes after each row, while
//! the next one waits, gain nothing: both together have 145 instructions, of which the machine (Zen 4) does four a cycle.
//! Models by a distribution that is part of the format, rather than by a table in the block, would save at most 68 bytes there
//! (fitted to the same blocks).

use super::quantized::{Parts, QUAD};
use super::{BLOCK_TOKENS, KvFormat, KvLayout};
use crate::Isa;
use crate::ops::lanes::{Kernel, Lanes, dispatch};
use crate::rans::nibbles::{self, Row};
use crate::rans::{RansError, bytes};
use std::ops::Range;

mod choose;
#[cfg(test)]
mod tests;

/// Version that is written, and the only one that is read.
pub const PACK_VERSION: u8 = 1;
const HEAD_BYTES: usize = 8;
const PLAIN: u8 = 0;
const CODED: u8 = 1;
/// Marks a row of differences beside its model.
const DIFFERENCES: u8 = 128;
/// What a code is taken to be before the first: the middle.
const MIDDLE: u8 = 8;

/// Bytes that [`pack_int4`] writes at most.
pub fn max_packed_bytes(layout: &KvLayout) -> usize {
    HEAD_BYTES + layout.block_bytes(KvFormat::Int4)
}

/// Bytes that packing or unpacking a block allocates meanwhile, at most.
pub fn packing_scratch_bytes(layout: &KvLayout) -> usize {
    // Rows, models, scales and offsets, some of them twice, and the tables of `rans::bytes`.
    let tiles = layout.layers() * layout.kv_heads();
    tiles
        * (2 * layout.head_dim() * (BLOCK_TOKENS + 4)
            + 8 * BLOCK_TOKENS * layout.head_dim().div_ceil(64))
        + (128 << 10)
}

/// A part of what stands beside the codes of a tile, and where it stands in the tile.
type Plane<'a> = (&'a mut [u8], Range<usize>);

/// What stands beside the codes of a block.
struct Side {
    medians: Vec<u8>,
    models: Vec<u8>,
    key_scales: Vec<u8>,
    key_offsets: Vec<u8>,
    value_scales: Vec<u8>,
    value_offsets: Vec<u8>,
}

impl Side {
    fn new(layout: &KvLayout) -> Self {
        let tiles = layout.layers() * layout.kv_heads();
        let parts = Parts::int4(layout.head_dim());
        let zeros = |each: usize| vec![0; tiles * each];
        Self {
            medians: zeros(4),
            models: zeros(2 * layout.head_dim()),
            key_scales: zeros(parts.key_scales.len()),
            key_offsets: zeros(parts.key_offsets.len()),
            value_scales: zeros(parts.value_scales.len()),
            value_offsets: zeros(parts.value_offsets.len()),
        }
    }

    fn parts(&self) -> [&[u8]; 6] {
        [
            &self.medians,
            &self.models,
            &self.key_scales,
            &self.key_offsets,
            &self.value_scales,
            &self.value_offsets,
        ]
    }

    fn parts_mut(&mut self) -> [&mut [u8]; 6] {
        [
            &mut self.medians,
            &mut self.models,
            &mut self.key_scales,
            &mut self.key_offsets,
            &mut self.value_scales,
            &mut self.value_offsets,
        ]
    }

    /// The parts of a tile that are differences, and their medians.
    fn of_tile<'a>(&'a mut self, number: usize, parts: &Parts) -> ([Plane<'a>; 4], &'a mut [u8]) {
        let places = [
            &parts.key_scales,
            &parts.key_offsets,
            &parts.value_scales,
            &parts.value_offsets,
        ];
        let of = |all: &'a mut [u8], place: &Range<usize>| {
            let first = number * place.len();
            (&mut all[first..first + place.len()], place.clone())
        };
        let planes = [
            of(&mut self.key_scales, places[0]),
            of(&mut self.key_offsets, places[1]),
            of(&mut self.value_scales, places[2]),
            of(&mut self.value_offsets, places[3]),
        ];
        (planes, &mut self.medians[4 * number..4 * number + 4])
    }
}

/// Encodes a block of [`KvFormat::Int4`] into the start of `out`. Returns the bytes written, at most
/// [`max_packed_bytes`]; `None` if `out` has not so many.
///
/// # Panics
/// If the block has not [`KvLayout::block_bytes`] bytes.
pub fn pack_int4(isa: Isa, layout: &KvLayout, block: &[u8], out: &mut [u8]) -> Option<usize> {
    assert_eq!(
        block.len(),
        layout.block_bytes(KvFormat::Int4),
        "the block's bytes"
    );
    let out = out.get_mut(..max_packed_bytes(layout))?;
    out[..HEAD_BYTES].fill(0);
    out[0] = PACK_VERSION;
    if let Some(bytes) = encode(isa, layout, block, out) {
        out[1] = CODED;
        return Some(bytes);
    }
    out[..HEAD_BYTES].fill(0);
    (out[0], out[1]) = (PACK_VERSION, PLAIN);
    out[HEAD_BYTES..].copy_from_slice(block);
    Some(out.len())
}

fn encode(isa: Isa, layout: &KvLayout, block: &[u8], out: &mut [u8]) -> Option<usize> {
    let (tile_bytes, head_dim) = (layout.tile_bytes(KvFormat::Int4), layout.head_dim());
    let mut side = Side::new(layout);
    let mut rows = vec![[0; BLOCK_TOKENS]; side.models.len()];
    let of_tile = 2 * head_dim;
    for (number, tile) in block.chunks_exact(tile_bytes).enumerate() {
        split_off(tile, number, &mut side)?;
        let rows = &mut rows[number * of_tile..][..of_tile];
        let models = &mut side.models[number * of_tile..][..of_tile];
        dispatch(
            isa,
            ReadRows {
                head_dim,
                tile,
                rows,
            },
        );
        choose::choose(isa, rows, models);
    }
    let chosen: Vec<u8> = side.models.iter().map(|m| m & !DIFFERENCES).collect();
    let bytes = nibbles::encode(isa, &rows, &chosen, &mut out[HEAD_BYTES..])?;
    out[4..HEAD_BYTES].copy_from_slice(&(bytes as u32).to_le_bytes());
    let at = HEAD_BYTES + bytes;
    Some(at + bytes::encode(isa, &side.parts(), &mut out[at..])?)
}

/// Takes scales and offsets off a tile; `None` if it has something where zeros belong.
fn split_off(tile: &[u8], number: usize, side: &mut Side) -> Option<()> {
    let head_dim = side.models.len() / (side.medians.len() / 4) / 2;
    let parts = Parts::int4(head_dim);
    let keys = &tile[parts.keys.clone()];
    let rest = head_dim % (2 * QUAD);
    let is_zero = rest == 0
        || keys[keys.len() - QUAD * BLOCK_TOKENS..]
            .iter()
            .enumerate()
            .all(|(i, &byte)| {
                let low = i % QUAD < rest || byte & 0xF == 0;
                low && (i % QUAD + QUAD < rest || byte >> 4 == 0)
            });
    if !is_zero || tile[parts.end..].iter().any(|&byte| byte != 0) {
        return None;
    }
    let (planes, medians) = side.of_tile(number, &parts);
    for ((plane, place), median) in planes.into_iter().zip(medians) {
        let bytes = &tile[place];
        *median = median_of(bytes);
        for (out, byte) in plane.iter_mut().zip(bytes) {
            *out = byte.wrapping_sub(*median);
        }
    }
    Some(())
}

fn median_of(bytes: &[u8]) -> u8 {
    let mut counts = [0_u32; 256];
    for &byte in bytes {
        counts[usize::from(byte)] += 1;
    }
    // By value as signed bytes, so that offsets around zero stay together.
    let (mut below, half) = (0, bytes.len() as u32 / 2);
    let by_value = (0..=255_u8).map(|i| i.wrapping_add(128));
    by_value
        .into_iter()
        .find(|&value| {
            below += counts[usize::from(value)];
            below > half
        })
        .unwrap_or(0)
}

fn bad(offset: usize, reason: &'static str) -> RansError {
    RansError { offset, reason }
}

/// Decodes what [`pack_int4`] wrote into all of `block`, bit for bit.
///
/// # Errors
/// If `packed` is no such encoding. `block` then holds nothing of use.
///
/// # Panics
/// If the block has not [`KvLayout::block_bytes`] bytes.
pub fn unpack_int4(
    isa: Isa,
    layout: &KvLayout,
    packed: &[u8],
    block: &mut [u8],
) -> Result<(), RansError> {
    assert_eq!(
        block.len(),
        layout.block_bytes(KvFormat::Int4),
        "the block's bytes"
    );
    let Some((head, body)) = packed.split_first_chunk::<HEAD_BYTES>() else {
        return Err(bad(packed.len(), "the head is cut off"));
    };
    if head[0] != PACK_VERSION || head[2..4] != [0; 2] {
        return Err(bad(0, "another version"));
    }
    match head[1] {
        PLAIN if body.len() == block.len() && head[4..] == [0; 4] => {
            block.copy_from_slice(body);
            Ok(())
        }
        PLAIN => Err(bad(HEAD_BYTES, "another length than the block's")),
        CODED => decode(isa, layout, (head, body), block),
        _ => Err(bad(1, "unknown form")),
    }
}

fn decode(
    isa: Isa,
    layout: &KvLayout,
    (head, body): (&[u8; HEAD_BYTES], &[u8]),
    block: &mut [u8],
) -> Result<(), RansError> {
    let stream_bytes = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
    let (stream, rest) = body
        .split_at_checked(stream_bytes)
        .ok_or(bad(4, "the stream is longer than what follows"))?;
    let after = |base: usize| move |error: RansError| bad(error.offset + base, error.reason);
    let mut side = Side::new(layout);
    bytes::decode(isa, rest, &mut side.parts_mut()).map_err(after(HEAD_BYTES + stream_bytes))?;
    decode_codes(isa, layout, (stream, &mut side), block).map_err(after(HEAD_BYTES))
}

fn decode_codes(
    isa: Isa,
    layout: &KvLayout,
    (stream, side): (&[u8], &mut Side),
    block: &mut [u8],
) -> Result<(), RansError> {
    let head_dim = layout.head_dim();
    let parts = Parts::int4(head_dim);
    let mut decoder = nibbles::Decoder::new(isa, stream)?;
    let mut rows = vec![[0; BLOCK_TOKENS]; 2 * head_dim];
    let mut chosen = vec![0; 2 * head_dim];
    for (number, tile) in block.chunks_exact_mut(parts.bytes).enumerate() {
        let models = &side.models[number * rows.len()..][..rows.len()];
        for (chosen, model) in chosen.iter_mut().zip(models) {
            *chosen = model & !DIFFERENCES;
        }
        decoder.decode(&chosen, &mut rows)?;
        for (row, model) in rows.iter_mut().zip(models) {
            if model & DIFFERENCES != 0 {
                add_up(row);
            }
        }
        let (rows, out) = (&rows, &mut *tile);
        dispatch(
            isa,
            WriteRows {
                head_dim,
                rows,
                tile: out,
            },
        );
        let (planes, medians) = side.of_tile(number, &parts);
        for ((plane, place), &mut median) in planes.into_iter().zip(medians) {
            for (out, byte) in tile[place].iter_mut().zip(plane) {
                *out = byte.wrapping_add(median);
            }
        }
        tile[parts.end..].fill(0);
    }
    decoder.finish()
}

/// Codes from their differences, eight at a time: a product with ones adds up the bytes before each.
fn add_up(row: &mut Row) {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let mut before = u64::from(MIDDLE);
    for eight in row.as_chunks_mut::<8>().0 {
        // At most 15 + 8 * 15, so that no byte reaches the next.
        let sums = (u64::from_le_bytes(*eight) + before).wrapping_mul(ONES);
        // Each difference is 8 too large: an odd number of them makes 8, modulo 16.
        let codes = (sums ^ 0x0008_0008_0008_0008) & (15 * ONES);
        *eight = codes.to_le_bytes();
        before = codes >> 56;
    }
}

/// The codes of a tile by channel, keys, then values.
struct ReadRows<'a> {
    head_dim: usize,
    tile: &'a [u8],
    rows: &'a mut [Row],
}

impl Kernel for ReadRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let parts = Parts::int4(self.head_dim);
        let (keys, values) = self.rows.split_at_mut(self.head_dim);
        let codes = &self.tile[parts.keys];
        for (i, eight) in keys.chunks_mut(2 * QUAD).enumerate() {
            let codes = &codes[i * QUAD * BLOCK_TOKENS..][..QUAD * BLOCK_TOKENS];
            for (c, row) in eight.iter_mut().enumerate() {
                for t in 0..BLOCK_TOKENS {
                    row[t] = codes[t * QUAD + c % QUAD] >> (4 * (c / QUAD)) & 0xF;
                }
            }
        }
        let codes = &self.tile[parts.values];
        for (i, eight) in codes.chunks_exact(QUAD * self.head_dim).enumerate() {
            for (row, quad) in values.iter_mut().zip(eight.as_chunks::<QUAD>().0) {
                let both = u64::from(u32::from_le_bytes(*quad));
                let apart = (both | both << 28) & 0x0F0F_0F0F_0F0F_0F0F;
                row[2 * QUAD * i..][..2 * QUAD].copy_from_slice(&apart.to_le_bytes());
            }
        }
    }
}

/// The reverse of [`ReadRows`].
struct WriteRows<'a> {
    head_dim: usize,
    rows: &'a [Row],
    tile: &'a mut [u8],
}

impl Kernel for WriteRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let parts = Parts::int4(self.head_dim);
        let (keys, values) = self.rows.split_at(self.head_dim);
        let codes = self.tile[parts.keys].as_chunks_mut::<QUAD>().0;
        for (eight, codes) in keys
            .chunks(2 * QUAD)
            .zip(codes.chunks_exact_mut(BLOCK_TOKENS))
        {
            let mut rows = [[0; BLOCK_TOKENS]; 2 * QUAD];
            rows[..eight.len()].copy_from_slice(eight);
            for t in 0..BLOCK_TOKENS {
                let byte = |c: usize| u32::from(rows[c][t] | rows[QUAD + c][t] << 4) << (8 * c);
                codes[t] = (byte(0) | byte(1) | byte(2) | byte(3)).to_le_bytes();
            }
        }
        let codes = self.tile[parts.values].as_chunks_mut::<QUAD>().0;
        for (channel, row) in values.iter().enumerate() {
            for (i, eight) in row.as_chunks::<8>().0.iter().enumerate() {
                let both = u64::from_le_bytes(*eight);
                let joined = (both as u32) | ((both >> 32) as u32) << 4;
                codes[i * self.head_dim + channel] = joined.to_le_bytes();
            }
        }
    }
}
