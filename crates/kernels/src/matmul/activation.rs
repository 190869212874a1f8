//! Activations as the kernels read them.
//!
//! For quantized weights: 8-bit integers with a shared power of two for each group of 32. This is
//! the MXINT8 format of the OCP Microscaling Formats specification, version 1.0, but for the place
//! of the binary point. A scale that is a power of two costs the product nothing: the integer sum
//! becomes a float by setting it into the mantissa of `magic = 1.5 * 2^(23 + e)` and taking that
//! number off again, which is exact. Its price is half a bit of precision on average: a relative
//! error of about 0.7 % for normal values, where a free scale would give 0.5 %.
//!
//! Rows are cut into tiles of a few, which a kernel takes at once. Within a superblock of columns
//! and a tile, what one step of the kernel needs of the rows of the tile stands side by side:
//!
//! ```text
//! codes  [superblock][tile][group][8][row][4] i8
//! magic  [superblock][tile][group][row] f32
//! sums   [superblock][tile][group][row] f32   2^e * Σ codes, of groups of 32 or of 16
//! starts [superblock][tile][group][row] i32   bits of magic - offset * Σ codes
//! values [superblock][tile][column][row] f32  for float weights instead
//! ```

use crate::matmul::block::WIDE_OFFSET;
use crate::matrix::layout::SUPERBLOCK;
use crate::simd::Simd;

/// Values that share an exponent.
pub(crate) const GROUP_LEN: usize = 32;

/// The least exponent of a group: smaller values become multiples of 2^-100.
const MIN_EXPONENT: i32 = -100;
/// The largest exponent; a group with values of 2^107 or more counts as not finite.
const MAX_EXPONENT: i32 = 100;

/// A quantized group: `x[i] = codes[i] * 2^exponent`.
pub(crate) struct Group {
    /// Codes, within ±127.
    pub codes: [i8; GROUP_LEN],
    /// 1.5 * 2^(23 + exponent); NaN if the group has a value that is not finite.
    pub magic: f32,
}

/// `dot * 2^exponent` by the exponent's magic number; exact for `|dot| < 2^22`.
#[inline(always)]
pub(crate) fn scaled(magic: f32, dot: i32) -> f32 {
    f32::from_bits(magic.to_bits().wrapping_add(dot as u32)) - magic
}

/// The exponent of a group whose largest magnitude has these bits: the least for which every code
/// is within ±127. `None` if the group has a value that is not finite or far out of range.
#[inline(always)]
pub(crate) fn exponent(magnitude_bits: u32) -> Option<i32> {
    // A mantissa of 127.5/128 or more rounds up to 128: it belongs to the next exponent.
    let exponent = (magnitude_bits.saturating_add(0x1_0000) >> 23) as i32 - 127 - 6;
    if exponent > MAX_EXPONENT {
        return None;
    }
    Some(exponent.max(MIN_EXPONENT))
}

/// `2^-exponent`.
#[inline(always)]
pub(crate) fn inverse_of(exponent: i32) -> f32 {
    f32::from_bits(((127 - exponent) << 23) as u32)
}

/// `1.5 * 2^(23 + exponent)`.
#[inline(always)]
pub(crate) fn magic_of(exponent: i32) -> f32 {
    f32::from_bits(((127 + 23 + exponent) << 23 | 0x40_0000) as u32)
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
    let inverse = inverse_of(exponent);
    Group {
        codes: x.map(|x| (x * inverse).round_ties_even() as i8),
        magic: magic_of(exponent),
    }
}

/// Which array of starts a format needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Starts {
    /// Codes are used as they are: the magic numbers themselves.
    Magic,
    /// Codes around 8, groups of 32.
    Offset8,
    /// Codes around 16, groups of 32.
    Offset16,
    /// Codes around 128, groups of 32.
    Offset128,
    /// Codes around 32, groups of 16.
    Offset32By16,
}

impl Starts {
    /// What sums of groups of `group` codes start from, by the offset of the codes; `wide_is_signed` says whether wide
    /// ones are taken as signed numbers.
    pub const fn of(group: usize, offset: u8, wide_is_signed: bool) -> Starts {
        match (group, offset) {
            (_, 0) => Starts::Magic,
            (32, 8) => Starts::Offset8,
            (32, 16) => Starts::Offset16,
            (32, WIDE_OFFSET) if wide_is_signed => Starts::Magic,
            (32, WIDE_OFFSET) => Starts::Offset128,
            (16, 32) => Starts::Offset32By16,
            _ => panic!("no format has such codes"),
        }
    }
}

/// Which arrays a call needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Codes and magic numbers.
    pub codes: bool,
    /// Sums of groups of 32.
    pub sums: bool,
    /// Sums of groups of 16.
    pub sums_of_16: bool,
    /// [`Starts::Offset8`].
    pub offset8: bool,
    /// [`Starts::Offset16`].
    pub offset16: bool,
    /// [`Starts::Offset128`].
    pub offset128: bool,
    /// [`Starts::Offset32By16`].
    pub offset32_by_16: bool,
    /// Plain values.
    pub values: bool,
}

/// Pointers to the arrays of some rows of activations; those not needed dangle.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Activations {
    /// Rows.
    pub n: usize,
    /// Columns.
    pub cols: usize,
    /// What is there.
    pub needs: Needs,
    /// See the module.
    pub codes: *mut i8,
    /// See the module.
    pub magic: *mut f32,
    /// See the module.
    pub sums: *mut f32,
    /// See the module.
    pub sums_of_16: *mut f32,
    /// See the module.
    pub offset8: *mut i32,
    /// See the module.
    pub offset16: *mut i32,
    /// See the module.
    pub offset128: *mut i32,
    /// See the module.
    pub offset32_by_16: *mut i32,
    /// See the module.
    pub values: *mut f32,
}

impl Activations {
    /// Bytes of the arrays, each a whole number of cache lines.
    pub fn bytes_needed(needs: Needs, n: usize, cols: usize) -> usize {
        let sizes = Self::sizes(needs, n, cols);
        sizes.iter().map(|s| s.next_multiple_of(64)).sum()
    }

    fn sizes(needs: Needs, n: usize, cols: usize) -> [usize; 9] {
        let values = n * cols;
        let groups = values / GROUP_LEN;
        [
            usize::from(needs.codes) * values,
            usize::from(needs.codes) * groups * 4,
            usize::from(needs.sums) * groups * 4,
            usize::from(needs.sums_of_16) * groups * 8,
            usize::from(needs.offset8) * groups * 4,
            usize::from(needs.offset16) * groups * 4,
            usize::from(needs.offset128) * groups * 4,
            usize::from(needs.offset32_by_16) * groups * 8,
            usize::from(needs.values) * values * 4,
        ]
    }

    /// Lays the arrays out in `memory`.
    ///
    /// # Panics
    /// If `memory` is shorter than [`Activations::bytes_needed`].
    pub fn place(needs: Needs, n: usize, cols: usize, memory: &mut [u8]) -> Self {
        let mut rest = memory;
        let mut parts = Self::sizes(needs, n, cols).map(|size| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(size.next_multiple_of(64));
            rest = after;
            part.as_mut_ptr()
        });
        let mut next = parts.iter_mut();
        let mut take = || next.next().map_or(std::ptr::null_mut(), |p| *p);
        Activations {
            n,
            cols,
            needs,
            codes: take().cast(),
            magic: take().cast(),
            sums: take().cast(),
            sums_of_16: take().cast(),
            offset8: take().cast(),
            offset16: take().cast(),
            offset128: take().cast(),
            offset32_by_16: take().cast(),
            values: take().cast(),
        }
    }

    /// The array that the integer sums of groups start from.
    pub fn starts(&self, starts: Starts) -> *const i32 {
        match starts {
            Starts::Magic => self.magic.cast_const().cast(),
            Starts::Offset8 => self.offset8,
            Starts::Offset16 => self.offset16,
            Starts::Offset128 => self.offset128,
            Starts::Offset32By16 => self.offset32_by_16,
        }
    }

    /// Writes the rows of one tile: `x` is its first row, `row` its number, `width` its rows.
    ///
    /// # Safety
    /// The arrays that [`Activations::needs`] names are placed and nobody else uses these rows of
    /// them; `width * cols` values can be read at `x`; and see [`Simd`].
    #[inline(always)]
    pub unsafe fn write_tile<S: Simd>(&self, x: *const f32, row: usize, width: usize) {
        for first in (0..self.cols).step_by(SUPERBLOCK) {
            let len = SUPERBLOCK.min(self.cols - first);
            for i in 0..width {
                // SAFETY: columns `first..first + len` of row `i` of the tile; in every array a
                // superblock begins at its first column times the number of rows, a tile within
                // it at its row times the columns of the superblock.
                unsafe {
                    let x = x.add(i * self.cols + first);
                    let at = first * self.n + row * len;
                    if self.needs.values {
                        for k in 0..len {
                            *self.values.add(at + k * width + i) = *x.add(k);
                        }
                    }
                    if self.needs.codes {
                        for g in 0..len / GROUP_LEN {
                            let place = Place {
                                codes: at + g * GROUP_LEN * width + i * 4,
                                group: at / GROUP_LEN + g * width + i,
                                half: at / 16 + 2 * g * width + i,
                                width,
                            };
                            self.write_group::<S>(x.add(g * GROUP_LEN), place);
                        }
                    }
                }
            }
        }
    }

    /// # Safety
    /// As [`Activations::write_tile`]; `place` is within the arrays.
    #[inline(always)]
    unsafe fn write_group<S: Simd>(&self, x: *const f32, place: Place) {
        let mut codes = [0i8; GROUP_LEN];
        // SAFETY: a group can be read at `x`, and `codes` takes one; the rest by `place`.
        unsafe {
            let group = S::quantize(x, codes.as_mut_ptr());
            for (j, four) in codes.as_chunks::<4>().0.iter().enumerate() {
                let to = self.codes.add(place.codes + j * 4 * place.width);
                to.cast::<[i8; 4]>().write(*four);
            }
            *self.magic.add(place.group) = group.magic;
            let bits = group.magic.to_bits() as i32;
            let sum = group.sums[0] + group.sums[1];
            if self.needs.sums {
                *self.sums.add(place.group) = scaled(group.magic, sum);
            }
            if self.needs.sums_of_16 {
                let [a, b] = group.sums;
                *self.sums_of_16.add(place.half) = scaled(group.magic, a);
                *self.sums_of_16.add(place.half + place.width) = scaled(group.magic, b);
            }
            if self.needs.offset8 {
                *self.offset8.add(place.group) = bits.wrapping_sub(8 * sum);
            }
            if self.needs.offset16 {
                *self.offset16.add(place.group) = bits.wrapping_sub(16 * sum);
            }
            if self.needs.offset128 {
                *self.offset128.add(place.group) = bits.wrapping_sub(128 * sum);
            }
            if self.needs.offset32_by_16 {
                let [a, b] = group.sums;
                *self.offset32_by_16.add(place.half) = bits.wrapping_sub(32 * a);
                *self.offset32_by_16.add(place.half + place.width) = bits.wrapping_sub(32 * b);
            }
        }
    }
}

/// Where what belongs to a group of one row goes.
#[derive(Clone, Copy)]
struct Place {
    codes: usize,
    group: usize,
    half: usize,
    width: usize,
}
