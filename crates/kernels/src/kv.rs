//! Keys and values in blocks.
//!
//! A block holds the keys and values of [`BLOCK_TOKENS`] tokens for all layers in one contiguous region. It consists of
//! one tile per layer and KV head, layers outermost:
//!
//! ```text
//! block = [layer 0: [head 0: tile][head 1: tile] …][layer 1: …] …
//! tile  = [keys, transposed: [head_dim][32 tokens]][values: [32 tokens][head_dim]]
//! ```
//!
//! Keys are transposed so that attention multiplies one query value with 32 tokens' keys at a time, and needs no sums
//! across lanes; values are not, so that one probability is multiplied with a token's values. A tile's two parts are
//! multiples of 64 bytes whatever `head_dim` is, so in a 64-byte aligned block all are aligned.
//!
//! That is how the 16-bit formats are stored, in which tokens are written. Whole blocks of them are then converted to
//! fewer bits by [`convert_block`]; how the tiles of these look stands in [`KvFormat`].

mod codec;
mod convert;
mod pack;
pub(crate) mod quantized;
#[cfg(test)]
mod tests;

use crate::Isa;
pub use convert::{CodeBits, coarsen_block, convert_block};
pub use pack::{PACK_VERSION, max_packed_bytes, pack_int4, packing_scratch_bytes, unpack_int4};
use std::ops::Range;

/// Tokens in a block.
pub const BLOCK_TOKENS: usize = 32;

/// How the numbers of a block are stored. Blocks of different formats may stand in one block table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvFormat {
    /// IEEE half precision. Larger numbers than 65504 are stored as that.
    F16,
    /// bfloat16.
    Bf16,
    /// Eight bits a number and a scale for each channel of 32 keys and for each token's values, both in half precision:
    /// 8.25 + 8 / `head_dim` bits a number. A tile is, without gaps but filled up with zeros to a multiple of 64 bytes:
    ///
    /// ```text
    /// key codes     [ceil(head_dim / 4)][32 tokens][4 channels]  i8, those of channels past head_dim are 0
    /// value codes   [32 / 4][head_dim][4 tokens]                 i8
    /// key scales    [head_dim]                                   f16
    /// value scales  [32 tokens]                                  f16
    /// number = scale * code, codes from -127 to 127
    /// ```
    ///
    /// Four codes that belong to one sum stand together, as the dot-product instructions take them.
    Int8,
    /// Four bits a number, and for each channel of 32 keys and for 64 channels of each token's values a scale and an offset
    /// of eight bits: 4.375 bits a number where `head_dim` is a multiple of 64. A tile is, without gaps but filled up with
    /// zeros to a multiple of 64 bytes:
    ///
    /// ```text
    /// key codes      [ceil(head_dim / 8)][32 tokens][4]  u8: channels 8i to 8i + 3 in the low four bits, the next in the high
    /// value codes    [32 / 8][head_dim][4]               u8: tokens 8i to 8i + 3 in the low four bits, the next in the high
    /// key scales     [head_dim]                          u8: (8 + s mod 8) * 2^(s div 8 - 20)
    /// key offsets    [head_dim]                          i8, from -127 to 112
    /// value scales   [ceil(head_dim / 64)][32 tokens]    u8
    /// value offsets  [ceil(head_dim / 64)][32 tokens]    i8
    /// number = scale * (code + offset), codes from 0 to 15
    /// ```
    Int4,
}

impl KvFormat {
    /// Every format.
    pub const ALL: [KvFormat; 4] = [
        KvFormat::F16,
        KvFormat::Bf16,
        KvFormat::Int8,
        KvFormat::Int4,
    ];
    /// The formats in which tokens are written.
    pub const WRITTEN: [KvFormat; 2] = [KvFormat::F16, KvFormat::Bf16];

    /// The format's name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            KvFormat::F16 => "f16",
            KvFormat::Bf16 => "bf16",
            KvFormat::Int8 => "int8",
            KvFormat::Int4 => "int4",
        }
    }

    /// Bytes of a tile.
    fn tile_bytes(self, head_dim: usize) -> usize {
        match self {
            KvFormat::F16 | KvFormat::Bf16 => 2 * head_dim * BLOCK_TOKENS * 2,
            KvFormat::Int8 => quantized::Parts::int8(head_dim).bytes,
            KvFormat::Int4 => quantized::Parts::int4(head_dim).bytes,
        }
    }
}

impl std::fmt::Display for KvFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Dimensions that make no block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{layers} layers of {kv_heads} KV heads of {head_dim} values: each must be positive, a head at most \
     {}, and a block at most {} bytes",
    KvLayout::MAX_HEAD_DIM,
    KvLayout::MAX_BLOCK_BYTES
)]
pub struct KvLayoutError {
    /// Layers.
    pub layers: usize,
    /// Key-value heads in a layer.
    pub kv_heads: usize,
    /// Values in a head.
    pub head_dim: usize,
}

/// The dimensions of a model's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvLayout {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl KvLayout {
    /// The largest head, in values.
    pub const MAX_HEAD_DIM: usize = 1024;
    /// The largest block, in bytes.
    pub const MAX_BLOCK_BYTES: usize = 1 << 30;

    /// Blocks for `layers` layers of `kv_heads` key-value heads of `head_dim` values.
    ///
    /// # Errors
    /// If one is zero, `head_dim` is above [`KvLayout::MAX_HEAD_DIM`], or a block would be larger than
    /// [`KvLayout::MAX_BLOCK_BYTES`].
    pub fn new(layers: usize, kv_heads: usize, head_dim: usize) -> Result<Self, KvLayoutError> {
        let heads = layers.checked_mul(kv_heads).filter(|&heads| heads > 0);
        // The widest format.
        let fits = heads
            .and_then(|heads| heads.checked_mul(head_dim))
            .and_then(|values| values.checked_mul(BLOCK_TOKENS * 4))
            .is_some_and(|bytes| bytes <= Self::MAX_BLOCK_BYTES);
        if fits && (1..=Self::MAX_HEAD_DIM).contains(&head_dim) {
            Ok(Self {
                layers,
                kv_heads,
                head_dim,
            })
        } else {
            Err(KvLayoutError {
                layers,
                kv_heads,
                head_dim,
            })
        }
    }

    /// Layers.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Key-value heads in a layer.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Values in a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Tokens in a block.
    pub fn block_tokens(&self) -> usize {
        BLOCK_TOKENS
    }

    /// Values of a token's keys in one layer (and of its values).
    pub fn width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Bytes of a block.
    pub fn block_bytes(&self, format: KvFormat) -> usize {
        self.layers * self.kv_heads * self.tile_bytes(format)
    }

    /// Bytes of one layer and KV head in a block.
    pub fn tile_bytes(&self, format: KvFormat) -> usize {
        format.tile_bytes(self.head_dim)
    }

    /// Where a layer and KV head stand in a block.
    pub fn tile_range(&self, format: KvFormat, layer: usize, kv_head: usize) -> Range<usize> {
        let bytes = self.tile_bytes(format);
        let start = (layer * self.kv_heads + kv_head) * bytes;
        start..start + bytes
    }

    /// Where a layer stands in a block.
    pub fn layer_range(&self, format: KvFormat, layer: usize) -> Range<usize> {
        let bytes = self.kv_heads * self.tile_bytes(format);
        layer * bytes..(layer + 1) * bytes
    }
}

/// A block to read.
#[derive(Clone, Copy, Debug)]
pub struct KvBlock<'a> {
    /// How it is stored.
    pub format: KvFormat,
    /// [`KvLayout::block_bytes`] bytes.
    pub bytes: &'a [u8],
}

/// Writes consecutive tokens' keys and values of one layer into a block, from `first_slot` on.
///
/// `keys` (after their rotary embedding) and `values` are `[n, kv_heads, head_dim]`.
///
/// # Panics
/// If the lengths differ or are not whole tokens, the tokens do not fit between `first_slot` and the block's end, the
/// layer does not exist, the block has not [`KvLayout::block_bytes`] bytes, or the format is none of
/// [`KvFormat::WRITTEN`].
#[expect(
    clippy::too_many_arguments,
    reason = "two of everything: where, and what"
)]
pub fn write_kv_run(
    isa: Isa,
    layout: &KvLayout,
    format: KvFormat,
    layer: usize,
    block: &mut [u8],
    first_slot: usize,
    keys: &[f32],
    values: &[f32],
) {
    let width = layout.width();
    let n = keys.len() / width;
    assert!(
        keys.len() == n * width && values.len() == keys.len(),
        "whole tokens' keys and values"
    );
    assert!(
        n <= BLOCK_TOKENS && first_slot <= BLOCK_TOKENS - n,
        "the tokens fit into the block"
    );
    check_block(layout, format, layer, block.len());
    assert!(
        KvFormat::WRITTEN.contains(&format),
        "tokens are not written in {format}: convert a whole block"
    );
    let tiles =
        block[layout.layer_range(format, layer)].chunks_exact_mut(layout.tile_bytes(format));
    for (kv_head, tile) in tiles.enumerate() {
        let source = codec::Source {
            keys,
            values,
            width,
            first: kv_head * layout.head_dim,
        };
        codec::write_tile(isa, format, layout.head_dim, tile, first_slot, n, source);
    }
}

/// Writes one token's keys and values of one layer into a block: [`write_kv_run`] of one.
///
/// # Panics
/// As [`write_kv_run`].
#[expect(
    clippy::too_many_arguments,
    reason = "two of everything: where, and what"
)]
pub fn write_kv(
    isa: Isa,
    layout: &KvLayout,
    format: KvFormat,
    layer: usize,
    block: &mut [u8],
    slot: usize,
    keys: &[f32],
    values: &[f32],
) {
    assert_eq!(keys.len(), layout.width(), "one token");
    write_kv_run(isa, layout, format, layer, block, slot, keys, values);
}

/// Reads a token's keys and values of one layer back, `[kv_heads, head_dim]` each.
///
/// # Panics
/// If the slot or layer does not exist, or a slice has another length than [`KvLayout`] says.
pub fn read_kv(
    layout: &KvLayout,
    block: KvBlock<'_>,
    layer: usize,
    slot: usize,
    keys: &mut [f32],
    values: &mut [f32],
) {
    assert!(
        slot < BLOCK_TOKENS,
        "slot {slot} of a block of {BLOCK_TOKENS}"
    );
    assert_eq!(keys.len(), layout.width(), "one token's keys");
    assert_eq!(values.len(), layout.width(), "one token's values");
    check_block(layout, block.format, layer, block.bytes.len());
    let heads = keys
        .chunks_exact_mut(layout.head_dim)
        .zip(values.chunks_exact_mut(layout.head_dim));
    for (kv_head, (keys, values)) in heads.enumerate() {
        let tile = &block.bytes[layout.tile_range(block.format, layer, kv_head)];
        read_token(block.format, tile, slot, keys, values);
    }
}

/// Reads one token of a tile.
fn read_token(format: KvFormat, tile: &[u8], slot: usize, keys: &mut [f32], values: &mut [f32]) {
    match format {
        KvFormat::F16 | KvFormat::Bf16 => codec::read_token(format, tile, slot, keys, values),
        KvFormat::Int8 => quantized::read_int8(tile, slot, keys, values),
        KvFormat::Int4 => quantized::read_int4(tile, slot, keys, values),
    }
}

fn check_block(layout: &KvLayout, format: KvFormat, layer: usize, bytes: usize) {
    assert!(layer < layout.layers, "layer {layer} of {}", layout.layers);
    assert_eq!(bytes, layout.block_bytes(format), "the block's bytes");
}
