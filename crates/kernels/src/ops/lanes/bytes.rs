//! Bytes in sixteen lanes: four signed codes to a lane, and exact sums of their products with factors of 16 bits.

use super::LANES;
use super::portable::Portable;
use std::array::from_fn;

/// Four codes for each lane.
pub(crate) type Codes = [u8; 4 * LANES];

/// Sixteen factors in whatever form [`Bytes::dot4`] takes, those of a quad of codes in a quarter.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Factors(pub(super) [u8; 4 * LANES]);

impl Factors {
    /// The largest factor.
    pub(crate) const LARGEST: f32 = 32_512.0;
    /// The largest factor of 8 bits.
    pub(crate) const LARGEST_BYTE: f32 = 255.0;
    /// Bytes of a quad's factors.
    pub(super) const QUARTER: usize = 16;
}

/// Operations of [`Lanes`](super::Lanes) on bytes. Integers are exact, so all instruction sets give the same bits.
pub(crate) trait Bytes: Copy + Send + Sync {
    /// Sixteen lanes.
    type V: Copy;
    /// Sixteen sums of products with factors of 16 bits.
    type Sums: Copy;
    /// Sixteen sums of products with factors of 8 bits.
    type ByteSums: Copy;
    /// What the form of the factors adds to sums of their products with codes.
    type Bias: Copy;
    /// Whether there are registers for the sums of several rows and vectors at once.
    const MANY_SUMS: bool;

    /// The low bytes of the lanes' bits, lane after lane.
    fn store_codes(self, v: [Self::V; 4], to: &mut Codes);
    /// Signed codes as numbers, the first of each lane, the second, and so on.
    fn load_codes(self, from: &Codes) -> [Self::V; 4];
    /// Numbers whose bits are `(byte + bias) << shift`.
    fn load_shifted(self, from: &[u8; LANES], bias: u32, shift: u32) -> Self::V;
    /// The low and the high four bits of bytes, to which four bytes are added (wrapping) in each lane.
    fn unpack_nibbles(self, from: &Codes, added: &[[u8; 4]; 2]) -> [Codes; 2];

    /// Factors from numbers within ±[`Factors::LARGEST`], rounded to nearest even. Their products' sums are finished by
    /// [`Bytes::finish_signed`].
    fn store_signed(self, v: Self::V, to: &mut Factors);
    /// Factors from numbers from 0 to [`Factors::LARGEST_BYTE`], for [`Bytes::dot4_bytes`].
    fn store_bytes(self, v: Self::V, to: &mut Factors);
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
    fn no_byte_sums(self) -> Self::ByteSums;
    /// [`Bytes::dot4`] with factors of 8 bits.
    ///
    /// # Safety
    /// `quarter` is below four.
    unsafe fn dot4_bytes(
        self,
        sums: Self::ByteSums,
        codes: &Codes,
        factors: &Factors,
        quarter: usize,
    ) -> Self::ByteSums;
    fn no_bias(self) -> Self::Bias;
    /// Takes account of codes that [`Bytes::dot4`] takes.
    fn add_bias(self, bias: Self::Bias, codes: &Codes) -> Self::Bias;
    fn store_bias(self, bias: Self::Bias, to: &mut [f32; LANES]);
    fn load_bias(self, from: &[f32; LANES]) -> Self::Bias;
    /// The sums, rounded to nearest even, of codes all of which the bias has taken account of.
    fn finish_signed(self, sums: Self::Sums, bias: Self::Bias) -> Self::V;
    /// The sums, exact.
    fn finish_bytes(self, sums: Self::ByteSums) -> Self::V;
}

impl Bytes for Portable {
    type V = [f32; LANES];
    type Sums = [i32; LANES];
    type ByteSums = [i32; LANES];
    type Bias = ();
    const MANY_SUMS: bool = false;

    #[inline(always)]
    fn store_codes(self, v: [Self::V; 4], to: &mut Codes) {
        for (i, quad) in to.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            *quad = from_fn(|j| v[j][i].to_bits() as u8);
        }
    }

    #[inline(always)]
    fn load_codes(self, from: &Codes) -> [Self::V; 4] {
        from_fn(|j| from_fn(|i| f32::from(from[4 * i + j].cast_signed())))
    }

    #[inline(always)]
    fn load_shifted(self, from: &[u8; LANES], bias: u32, shift: u32) -> Self::V {
        from.map(|byte| f32::from_bits((u32::from(byte) + bias) << shift))
    }

    #[inline(always)]
    fn unpack_nibbles(self, from: &Codes, added: &[[u8; 4]; 2]) -> [Codes; 2] {
        [
            from_fn(|i| (from[i] & 0xF).wrapping_add(added[0][i % 4])),
            from_fn(|i| (from[i] >> 4).wrapping_add(added[1][i % 4])),
        ]
    }

    #[inline(always)]
    fn store_signed(self, v: Self::V, to: &mut Factors) {
        /// Adding it rounds to an integer.
        const ROUND: f32 = 12_582_912.0;
        let quarters = to.0.as_chunks_mut::<{ Factors::QUARTER }>().0;
        for (quarter, v) in quarters.iter_mut().zip(v.as_chunks::<4>().0) {
            for (bytes, x) in quarter.as_chunks_mut::<2>().0.iter_mut().zip(v) {
                // The integer stands in the low bits.
                *bytes = ((x + ROUND).to_bits() as u16).to_le_bytes();
            }
        }
    }

    #[inline(always)]
    fn store_bytes(self, v: Self::V, to: &mut Factors) {
        self.store_signed(v, to);
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
            let at = Factors::QUARTER * quarter + 2 * j;
            i32::from(i16::from_le_bytes([factors.0[at], factors.0[at + 1]]))
        });
        from_fn(|i| {
            let codes = |j: usize| i32::from(codes[4 * i + j].cast_signed());
            let products = (0..4).map(|j| codes(j) * factors[j]);
            sums[i].wrapping_add(products.sum())
        })
    }

    #[inline(always)]
    fn no_bias(self) {}

    #[inline(always)]
    fn add_bias(self, (): (), _: &Codes) {}

    #[inline(always)]
    fn store_bias(self, (): (), _: &mut [f32; LANES]) {}

    #[inline(always)]
    fn load_bias(self, _: &[f32; LANES]) {}

    #[inline(always)]
    fn finish_signed(self, sums: Self::Sums, (): ()) -> Self::V {
        sums.map(|sum| sum as f32)
    }

    #[inline(always)]
    fn no_byte_sums(self) -> Self::ByteSums {
        self.no_sums()
    }

    #[inline(always)]
    unsafe fn dot4_bytes(
        self,
        sums: Self::ByteSums,
        codes: &Codes,
        factors: &Factors,
        quarter: usize,
    ) -> Self::ByteSums {
        // SAFETY: the caller's promise.
        unsafe { self.dot4(sums, codes, factors, quarter) }
    }

    #[inline(always)]
    fn finish_bytes(self, sums: Self::ByteSums) -> Self::V {
        sums.map(|sum| sum as f32)
    }
}
