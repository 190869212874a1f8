//! Bytes in sixteen lanes: four codes to a lane, and exact sums of their products with factors of up to 15 bits.

use super::LANES;
use super::portable::Portable;
use std::array::from_fn;

/// Four codes for each lane.
pub(crate) type Codes = [u8; 4 * LANES];

/// Sixteen factors, four of which belong to one quad of codes, in whatever form [`Bytes::dot4`] takes.
#[derive(Clone, Copy)]
#[repr(align(32))]
pub(crate) struct Factors(pub(super) [u8; 2 * LANES]);

impl Factors {
    pub(crate) const ZERO: Self = Self([0; 2 * LANES]);
    /// The largest factor: what is made of two signed bytes.
    pub(crate) const LARGEST: i32 = 127 * 256;
}

/// Operations of [`Lanes`](super::Lanes) on bytes. Integers are exact, so all instruction sets give the same bits.
pub(crate) trait Bytes: Copy + Send + Sync {
    /// Sixteen lanes.
    type V: Copy;
    /// Sixteen sums of products.
    type Sums: Copy;
    /// Whether there are registers for the sums of several rows and vectors at once.
    const MANY_SUMS: bool;

    /// The low bytes of the lanes' bits, lane after lane.
    fn store_bytes4(self, v: [Self::V; 4], to: &mut Codes);
    /// Codes as numbers, the first of each lane, the second, and so on.
    fn load_bytes4(self, from: &Codes) -> [Self::V; 4];
    /// Numbers whose bits are `(byte + bias) << shift`.
    fn load_shifted(self, from: &[u8; LANES], bias: u32, shift: u32) -> Self::V;
    /// The low and the high four bits of bytes, to which four bytes are added (wrapping) in each lane.
    fn unpack_nibbles(self, from: &Codes, added: [[u8; 4]; 2]) -> [Codes; 2];

    /// Factors from integers of at most [`Factors::LARGEST`].
    fn store_factors(self, v: Self::V, to: &mut Factors);
    fn no_sums(self) -> Self::Sums;
    /// Adds to each lane its four codes times four of the factors, those of a quarter.
    ///
    /// # Safety
    /// `quarter` is below four.
    unsafe fn dot4(
        self,
        sums: Self::Sums,
        codes: &Codes,
        factors: &Factors,
        quarter: usize,
    ) -> Self::Sums;
    /// The sums less a number, rounded to nearest even.
    fn finish_sums(self, sums: Self::Sums, less: i32) -> Self::V;
}

impl Bytes for Portable {
    type V = [f32; LANES];
    type Sums = [i32; LANES];
    const MANY_SUMS: bool = false;

    #[inline(always)]
    fn store_bytes4(self, v: [Self::V; 4], to: &mut Codes) {
        for (i, quad) in to.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            *quad = from_fn(|j| v[j][i].to_bits() as u8);
        }
    }

    #[inline(always)]
    fn load_bytes4(self, from: &Codes) -> [Self::V; 4] {
        from_fn(|j| from_fn(|i| f32::from(from[4 * i + j])))
    }

    #[inline(always)]
    fn load_shifted(self, from: &[u8; LANES], bias: u32, shift: u32) -> Self::V {
        from.map(|byte| f32::from_bits((u32::from(byte) + bias) << shift))
    }

    #[inline(always)]
    fn unpack_nibbles(self, from: &Codes, added: [[u8; 4]; 2]) -> [Codes; 2] {
        [
            from_fn(|i| (from[i] & 0xF).wrapping_add(added[0][i % 4])),
            from_fn(|i| (from[i] >> 4).wrapping_add(added[1][i % 4])),
        ]
    }

    #[inline(always)]
    fn store_factors(self, v: Self::V, to: &mut Factors) {
        for (bytes, x) in to.0.as_chunks_mut::<2>().0.iter_mut().zip(v) {
            *bytes = (x as i16).to_le_bytes();
        }
    }

    #[inline(always)]
    fn no_sums(self) -> Self::Sums {
        [0; LANES]
    }

    #[inline(always)]
    unsafe fn dot4(
        self,
        sums: Self::Sums,
        codes: &Codes,
        factors: &Factors,
        quarter: usize,
    ) -> Self::Sums {
        let factors: [i32; 4] = from_fn(|j| {
            let at = 8 * quarter + 2 * j;
            i32::from(i16::from_le_bytes([factors.0[at], factors.0[at + 1]]))
        });
        from_fn(|i| {
            let products = (0..4).map(|j| i32::from(codes[4 * i + j]) * factors[j]);
            sums[i].wrapping_add(products.sum())
        })
    }

    #[inline(always)]
    fn finish_sums(self, sums: Self::Sums, less: i32) -> Self::V {
        sums.map(|sum| sum.wrapping_sub(less) as f32)
    }
}
