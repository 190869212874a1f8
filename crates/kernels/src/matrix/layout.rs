//! How panels are laid out.
//!
//! A panel is 16 rows of weights, one for each lane of a vector. It is cut into superblocks of 256
//! columns (the last may be shorter); a superblock holds the scales of its rows and the codes: for
//! each four columns 64 bytes, four of each row, so that one dot-product instruction with four
//! activations serves all 16 rows.
//!
//! Eight panels make a group (the last may have fewer), in which the first superblocks of all
//! panels come first, then the second ones, and so on. A kernel goes through a group from its
//! beginning to its end, so that memory can be read ahead, and meets the activations of only 256
//! columns at a time, so that they stay in the first-level cache: going through a panel of 4,096
//! columns at once, the weights would push them out, at the cost of 30 % of the bandwidth.
//!
//! ```text
//! Q4_0   2 groups: f16 scale[2][16] | nibbles[2][4][16][4], columns 4j and 4j + 16 of a group
//! Q8_0   2 groups: f16 scale[2][16] | codes[2][8][16][4], xor 0x80
//! Q4_K   f16 d[16], dmin[16], then
//!        2 groups: u8 scale[2][16], min[2][16] | nibbles[8][16][4], a group low, a group high
//! Q5_K   f16 d[16], dmin[16] | fifth bits[8][16][4], bit g of group g, then
//!        2 groups: as Q4_K
//! Q6_K   f16 d[16], 32 bytes nothing, then
//!        128 columns: i8 scale[8][16] | upper bits, nibbles (4 vectors each), the same once more,
//!        and 8 vectors of nibbles
//! F16 .. values[k][16]
//! ```
//!
//! The bytes are as many as in the file, but for the scales of Q4_K and Q5_K, which are 8 bits
//! instead of 6 (2.8 % and 2.3 %), the gap of Q6_K (1 %), and what fills up the last panel.
//! Formats without a layout of their own stay as rows.

use crate::format::WeightFormat;
use crate::simd::LANES;

/// Columns of a superblock.
pub(crate) const SUPERBLOCK: usize = 256;
/// Panels of a group.
pub(crate) const GROUP_PANELS: usize = 8;

/// Bytes of two groups of Q4_0: scales, then codes.
pub(crate) const Q4_0_PAIR: usize = 4 * LANES + 2 * 16 * LANES;
/// Bytes of two groups of Q8_0: scales, then codes.
pub(crate) const Q8_0_PAIR: usize = 4 * LANES + 2 * 32 * LANES;
/// Bytes of the scales of two groups, of any of these formats.
pub(crate) const PAIR_SCALES: usize = 4 * LANES;
/// Bytes of two groups of Q4_K and Q5_K: scales and minima, then nibbles.
pub(crate) const K_PAIR: usize = PAIR_SCALES + 32 * LANES;
/// Bytes of what is shared by a superblock: d and dmin.
pub(crate) const K_SHARED: usize = 4 * LANES;
/// Bytes of the fifth bits of Q5_K.
pub(crate) const K_FIFTH: usize = 32 * LANES;
/// Bytes of 128 columns of Q6_K.
pub(crate) const Q6K_HALF: usize = (8 + 32 + 64) * LANES;
/// Bytes of their scales.
pub(crate) const Q6K_SCALES: usize = 8 * LANES;

/// Whether a format has a panel layout; others are kept as rows.
pub(crate) fn has_panels(format: WeightFormat) -> bool {
    match format {
        WeightFormat::F32
        | WeightFormat::F16
        | WeightFormat::BF16
        | WeightFormat::Q4_0
        | WeightFormat::Q8_0
        | WeightFormat::Q4K
        | WeightFormat::Q5K
        | WeightFormat::Q6K => true,
        WeightFormat::Q4_1
        | WeightFormat::Q5_0
        | WeightFormat::Q5_1
        | WeightFormat::Q2K
        | WeightFormat::Q3K
        | WeightFormat::IQ4NL
        | WeightFormat::IQ4XS
        | WeightFormat::MXFP4 => false,
    }
}

/// Bytes of a superblock of `cols` columns (at most [`SUPERBLOCK`]).
pub(crate) const fn superblock_bytes(format: WeightFormat, cols: usize) -> usize {
    // The scales of a group that lacks its second are followed by nothing.
    let pairs = cols.div_ceil(64);
    match format {
        WeightFormat::F32 => cols * 4 * LANES,
        WeightFormat::F16 | WeightFormat::BF16 => cols * 2 * LANES,
        WeightFormat::Q8_0 => pairs * PAIR_SCALES + cols * LANES,
        WeightFormat::Q4K => K_SHARED + 4 * K_PAIR,
        WeightFormat::Q5K => K_SHARED + K_FIFTH + 4 * K_PAIR,
        WeightFormat::Q6K => K_SHARED + 2 * Q6K_HALF,
        _ => pairs * PAIR_SCALES + cols * LANES / 2,
    }
}

/// Bytes of a panel, or `None` if more than can be counted.
pub(crate) fn panel_len(format: WeightFormat, cols: usize) -> Option<usize> {
    let whole = (cols / SUPERBLOCK).checked_mul(superblock_bytes(format, SUPERBLOCK))?;
    let rest = match cols % SUPERBLOCK {
        0 => 0,
        rest => superblock_bytes(format, rest),
    };
    whole.checked_add(rest)
}
