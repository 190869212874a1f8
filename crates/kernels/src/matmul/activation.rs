//! Activations as 8-bit integers with a shared power of two for each group of 32.
//!
//! This is the MXINT8 format of the OCP Microscaling Formats specification, version 1.0, but for
//! the place of the binary point. A scale that is a power of two costs the product nothing: the
//! integer sum becomes a float by setting it into the mantissa of `1.5 * 2^(23 + e)` and taking
//! that number off again, which is exact. Its price is half a bit of precision on average: a
//! relative error of about 0.7 % for normal values, where a free scale would give 0.5 %.

/// Values that share an exponent.
pub(crate) const GROUP_LEN: usize = 32;

/// The least exponent of a group: smaller values become multiples of 2^-100.
const MIN_EXPONENT: i32 = -100;
/// The largest exponent; a group with values of 2^107 or more counts as not finite.
const MAX_EXPONENT: i32 = 100;

/// A quantized group: `x[i] = codes[i] * 2^exponent`.
pub(crate) struct Group {
    pub codes: [i8; GROUP_LEN],
    /// 1.5 * 2^(23 + exponent); NaN if the group has a value that is not finite.
    pub magic: f32,
}

impl Group {
    /// `dot * 2^exponent`, exact for `|dot| < 2^22`.
    pub fn scaled(&self, dot: i32) -> f32 {
        f32::from_bits(self.magic.to_bits().wrapping_add(dot as u32)) - self.magic
    }
}

/// The exponent of a group whose largest magnitude has these bits: the least for which every code
/// is within ±127. `None` if the group has a value that is not finite or far out of range.
#[inline(always)]
pub(crate) fn exponent(magnitude_bits: u32) -> Option<i32> {
    // A mantissa of 127.5/128 or more rounds up to 128: it belongs to the next exponent.
    let exponent = (magnitude_bits.saturating_add(0x1_0000) >> 23) as i32 - 127 - 6;
    (exponent <= MAX_EXPONENT).then_some(exponent.max(MIN_EXPONENT))
}

/// Quantizes a group, to the nearest, ties to even.
pub(crate) fn quantize_group(x: [f32; GROUP_LEN]) -> Group {
    let magnitude = x.iter().map(|x| x.to_bits() & 0x7FFF_FFFF).max();
    let Some(exponent) = exponent(magnitude.unwrap_or(0)) else {
        return Group {
            codes: [0; GROUP_LEN],
            magic: f32::NAN,
        };
    };
    let inverse = f32::from_bits(((127 - exponent) << 23) as u32);
    Group {
        codes: x.map(|x| (x * inverse).round_ties_even() as i8),
        magic: f32::from_bits(((127 + 23 + exponent) << 23 | 0x40_0000) as u32),
    }
}
