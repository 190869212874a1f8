//! How panels are laid out.
//!
//! A panel is 16 rows of weights, one for each lane of a vector. It is cut into superblocks of 256
//! columns (the last may be shorter); a superblock holds first the scales of its rows, then the
//! codes: for each four columns 64 bytes, four of each row, so that one dot-product instruction
//! with four activations serves all 16 rows.
//!
//! ```text
//! Q4_0   f16 scale[g][16]                     | nibbles[g][4][16][4]: columns 4j and 4j + 16 of a group
//! Q8_0   f16 scale[g][16]                     | codes[g][8][16][4], xor 0x80
//! Q4_K   f16 d[16], dmin[16], u8 scale[8][16], min[8][16] | nibbles[4][8][16][4]: two groups each
//! Q5_K   as Q4_K                              | fifth bits[8][16][4], then nibbles as Q4_K
//! Q6_K   f16 d[16], 32 bytes nothing, i8 scale[16][16] | nibbles[32][16][4], upper bits[16][16][4]
//! F16 .. nothing                              | values[k][16]
//! ```
//!
//! The bytes are as many as in the file, but for the scales of Q4_K and Q5_K, which are 8 bits
//! instead of 6 (2.8 % and 2.3 %), the gap of Q6_K (1 %), and what fills up the last panel and the
//! last cache line of a panel. Formats without a layout of their own stay as rows.

use crate::format::WeightFormat;
use crate::simd::LANES;

/// Columns of a superblock.
pub(crate) const SUPERBLOCK: usize = 256;
/// Panels begin at multiples of this.
const LINE: usize = 64;

/// Where the scales of a superblock of Q4_K or Q5_K stand, and its minima, and the rest.
pub(crate) const K_SCALES: usize = 64;
/// See [`K_SCALES`].
pub(crate) const K_MINS: usize = K_SCALES + 8 * LANES;
/// See [`K_SCALES`].
pub(crate) const K_CODES: usize = K_MINS + 8 * LANES;
/// Where the nibbles of Q6_K stand.
pub(crate) const Q6K_LOW: usize = 64 + 16 * LANES;
/// Where the upper bits of Q6_K stand.
pub(crate) const Q6K_HIGH: usize = Q6K_LOW + 128 * LANES;

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
        | WeightFormat::Q3K => false,
    }
}

/// Bytes that a column of a panel takes, where they are the same for all; for the K formats, whose
/// superblocks are always whole, see [`superblock_bytes`].
const fn column_bytes_of_32(format: WeightFormat) -> usize {
    match format {
        WeightFormat::F32 => 32 * 4 * LANES,
        WeightFormat::F16 | WeightFormat::BF16 => 32 * 2 * LANES,
        WeightFormat::Q8_0 => 34 * LANES,
        _ => 18 * LANES,
    }
}

/// Bytes of a superblock of `cols` columns (at most [`SUPERBLOCK`]).
pub(crate) const fn superblock_bytes(format: WeightFormat, cols: usize) -> usize {
    match format {
        WeightFormat::Q4K => K_CODES + 128 * LANES,
        WeightFormat::Q5K => K_CODES + (32 + 128) * LANES,
        WeightFormat::Q6K => Q6K_HIGH + 64 * LANES,
        // Exact for every number of columns: of quantized formats they are multiples of 32.
        _ => cols * column_bytes_of_32(format) / 32,
    }
}

/// Bytes from one panel to the next, or `None` if more than can be counted.
pub(crate) fn panel_stride(format: WeightFormat, cols: usize) -> Option<usize> {
    let whole = (cols / SUPERBLOCK).checked_mul(superblock_bytes(format, SUPERBLOCK))?;
    let rest = match cols % SUPERBLOCK {
        0 => 0,
        rest => superblock_bytes(format, rest),
    };
    whole.checked_add(rest)?.checked_next_multiple_of(LINE)
}
