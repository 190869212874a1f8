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
//! Pairs of groups of 32: f16 scale[2][16], perhaps f16 min[2][16], then for each of the two
//! Q4_0, Q4_1, IQ4_NL, MXFP4   nibbles[4][16][4], columns 4j and 4j + 16
//! Q5_0, Q5_1                  fifth bits[16][4], bit j of column 4j + k, then nibbles as Q4_0
//! Q8_0                        codes[8][16][4], xor 0x80
//!
//! Superblocks:
//! Q2_K   f16 d[16], dmin[16] | u8 scale and min[16][16], a nibble each
//!        | codes[2][2][4][16][4]: of 128 columns the even groups, then the odd ones, bits 2g of the g-th
//! Q3_K   f16 d[16], 32 bytes nothing | i8 scale[16][16]
//!        | third bits[2][4][16][4]: even groups, then odd ones, bit g of the g-th | codes as Q2_K
//! Q4_K   f16 d[16], dmin[16], then
//!        2 groups: u8 scale[2][16], min[2][16] | nibbles[8][16][4], a group low, a group high
//! Q5_K   f16 d[16], dmin[16] | fifth bits[8][16][4], bit g of group g, then
//!        2 groups: as Q4_K
//! Q6_K   f16 d[16], 32 bytes nothing, then
//!        128 columns: i8 scale[8][16] | upper bits, nibbles (4 vectors each), the same once more,
//!        and 8 vectors of nibbles
//! IQ4_XS f16 d[16], 32 bytes nothing | i8 scale[8][16] | nibbles as Q4_0
//! F16 .. values[k][16]
//! ```
//!
//! The minima of Q4_1 and Q5_1 are negated, so that all are taken off. The scales of MXFP4, powers of two, are bf16.
//!
//! The bytes are as many as in the file, but for the scales of Q3_K, Q4_K, Q5_K and IQ4_XS, which are 8 bits
//! instead of 6, and of MXFP4, 16 instead of 8, what is left free beside d, and what fills up the last panel: 1 % more
//! for Q6_K, 2 to 3 % for Q4_K, Q5_K and IQ4_XS, 5.5 % for Q3_K, 5.9 % for MXFP4.

use crate::format::WeightFormat;
use crate::simd::LANES;

/// Columns of a superblock.
pub(crate) const SUPERBLOCK: usize = 256;
/// Panels of a group.
pub(crate) const GROUP_PANELS: usize = 8;

/// A layout of pairs of groups of 32.
#[derive(Clone, Copy)]
pub(crate) struct Pairs {
    /// Bytes of what comes first in a pair: scales, and perhaps minima.
    pub head: usize,
    /// Bytes of a group.
    pub group: usize,
}

/// Q4_0, IQ4_NL and MXFP4.
pub(crate) const NIBBLES: Pairs = Pairs {
    head: 64,
    group: 256,
};
/// Q4_1.
pub(crate) const NIBBLES_MIN: Pairs = Pairs {
    head: 128,
    group: 256,
};
/// Q5_0.
pub(crate) const FIVE_BITS: Pairs = Pairs {
    head: 64,
    group: 320,
};
/// Q5_1.
pub(crate) const FIVE_BITS_MIN: Pairs = Pairs {
    head: 128,
    group: 320,
};
/// Q8_0.
pub(crate) const BYTES: Pairs = Pairs {
    head: 64,
    group: 512,
};

impl Pairs {
    /// Where the pair of a group begins.
    pub const fn pair(self, group: usize) -> usize {
        group / 2 * (self.head + 2 * self.group)
    }

    /// Where the codes of a group begin.
    pub const fn codes(self, group: usize) -> usize {
        self.pair(group) + self.head + group % 2 * self.group
    }

    /// Where the scales of a group stand.
    pub const fn scales(self, group: usize) -> usize {
        self.pair(group) + group % 2 * 2 * LANES
    }

    /// Where the minima of a group stand, if it has them.
    pub const fn mins(self, group: usize) -> usize {
        self.scales(group) + PAIR_SCALES
    }

    /// Bytes of a group with its share of the head.
    pub const fn streamed(self) -> usize {
        self.group + self.head / 2
    }

    /// Bytes of `cols` columns. The scales of a group that lacks its second are followed by nothing.
    const fn bytes(self, cols: usize) -> usize {
        cols.div_ceil(64) * self.head + cols / 32 * self.group
    }
}

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

/// Where the codes of a superblock of Q2_K begin: after 16 scales and minima of each row.
pub(crate) const Q2K_CODES: usize = K_SHARED + 16 * LANES;
/// Where the third bits of a superblock of Q3_K begin: after 16 scales of each row.
pub(crate) const Q3K_THIRD: usize = K_SHARED + 16 * LANES;
/// Where the codes of a superblock of Q3_K begin.
pub(crate) const Q3K_CODES: usize = Q3K_THIRD + 32 * LANES;
/// Bytes of the codes of Q2_K and of the lower bits of those of Q3_K.
const TWO_BITS: usize = 64 * LANES;
/// Where the codes of a superblock of IQ4_XS begin: after 8 scales of each row.
pub(crate) const IQ4XS_CODES: usize = K_SHARED + 8 * LANES;

/// Bytes of a superblock of `cols` columns (at most [`SUPERBLOCK`]).
pub(crate) const fn superblock_bytes(format: WeightFormat, cols: usize) -> usize {
    match format {
        WeightFormat::F32 => cols * 4 * LANES,
        WeightFormat::F16 | WeightFormat::BF16 => cols * 2 * LANES,
        WeightFormat::Q4_0 | WeightFormat::IQ4NL | WeightFormat::MXFP4 => NIBBLES.bytes(cols),
        WeightFormat::Q4_1 => NIBBLES_MIN.bytes(cols),
        WeightFormat::Q5_0 => FIVE_BITS.bytes(cols),
        WeightFormat::Q5_1 => FIVE_BITS_MIN.bytes(cols),
        WeightFormat::Q8_0 => BYTES.bytes(cols),
        WeightFormat::Q2K => Q2K_CODES + TWO_BITS,
        WeightFormat::Q3K => Q3K_CODES + TWO_BITS,
        WeightFormat::Q4K => K_SHARED + 4 * K_PAIR,
        WeightFormat::Q5K => K_SHARED + K_FIFTH + 4 * K_PAIR,
        WeightFormat::Q6K => K_SHARED + 2 * Q6K_HALF,
        WeightFormat::IQ4XS => IQ4XS_CODES + 128 * LANES,
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
