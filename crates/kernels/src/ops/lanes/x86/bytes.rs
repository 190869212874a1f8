//! Bytes in one AVX-512 register, or in two of AVX2.
//!
//! With VNNI a factor is two unsigned bytes, multiplied apart by `vpdpbusd`: a signed one has 2^15 added, and so many
//! times the codes' sum is taken away again at the end. Without, it is 16 bits, multiplied by `vpmaddwd` with codes widened
//! to 16 bits, which leaves two sums for each lane.

use super::{Avx2, Avx512};
use crate::ops::lanes::LANES;
use crate::ops::lanes::bytes::{Bytes, Codes, Factors};
use std::arch::x86_64::*;

/// Sums of products: of the low and of the high bytes of the factors (VNNI), or of eight lanes in pairs each.
type Sums512 = [__m512i; 2];

impl<const VNNI: bool> Bytes for Avx512<VNNI> {
    type V = __m512;
    type Sums = Sums512;
    type ByteSums = Sums512;
    /// The codes' sum.
    type Bias = __m512i;
    const MANY_SUMS: bool = true;

    #[inline(always)]
    fn store_codes(self, v: [__m512; 4], to: &mut Codes) {
        proven! {
            let byte = _mm512_set1_epi32(0xFF);
            let low = |i: usize| _mm512_and_si512(_mm512_castps_si512(v[i]), byte);
            let high = _mm512_slli_epi32::<24>(_mm512_castps_si512(v[3]));
            let first = _mm512_or_si512(low(0), _mm512_slli_epi32::<8>(low(1)));
            let second = _mm512_or_si512(_mm512_slli_epi32::<16>(low(2)), high);
            _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_or_si512(first, second));
        }
    }

    #[inline(always)]
    fn load_codes(self, from: &Codes) -> [__m512; 4] {
        proven! {
            let codes = _mm512_loadu_si512(from.as_ptr().cast());
            let top = |codes| _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(codes));
            [
                top(_mm512_slli_epi32::<24>(codes)),
                top(_mm512_slli_epi32::<16>(codes)),
                top(_mm512_slli_epi32::<8>(codes)),
                top(codes),
            ]
        }
    }

    #[inline(always)]
    fn load_shifted(self, from: &[u8; LANES], bias: u32, shift: u32) -> __m512 {
        proven! {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            let biased = _mm512_add_epi32(bytes, _mm512_set1_epi32(bias as i32));
            _mm512_castsi512_ps(_mm512_sll_epi32(biased, _mm_cvtsi32_si128(shift as i32)))
        }
    }

    #[inline(always)]
    fn unpack_nibbles(self, from: &Codes, added: &[[u8; 4]; 2]) -> [Codes; 2] {
        proven! {
            let codes = _mm512_loadu_si512(from.as_ptr().cast());
            let nibble = _mm512_set1_epi8(0xF);
            let low = _mm512_and_si512(codes, nibble);
            let high = _mm512_and_si512(_mm512_srli_epi32::<4>(codes), nibble);
            let all = |added: [u8; 4]| _mm512_set1_epi32(i32::from_le_bytes(added));
            let mut to = [[0; 4 * LANES]; 2];
            _mm512_storeu_si512(to[0].as_mut_ptr().cast(), _mm512_add_epi8(low, all(added[0])));
            _mm512_storeu_si512(to[1].as_mut_ptr().cast(), _mm512_add_epi8(high, all(added[1])));
            to
        }
    }

    #[inline(always)]
    fn store_signed(self, v: __m512, to: &mut Factors) {
        proven! {
            let integers = _mm512_cvtps_epi32(v);
            if VNNI {
                store_planes(_mm512_add_epi32(integers, _mm512_set1_epi32(1 << 15)), to);
            } else {
                let words = _mm512_packs_epi32(integers, integers);
                _mm512_storeu_si512(to.0.as_mut_ptr().cast(), words);
            }
        }
    }

    #[inline(always)]
    fn store_bytes(self, v: __m512, to: &mut Factors) {
        if VNNI {
            proven!(store_planes(_mm512_cvtps_epi32(v), to));
        } else {
            self.store_signed(v, to);
        }
    }

    #[inline(always)]
    fn no_sums(self) -> Sums512 {
        proven!([_mm512_setzero_si512(); 2])
    }

    #[inline(always)]
    unsafe fn dot4(
        self,
        sums: Sums512,
        codes: &Codes,
        factors: &Factors,
        quarter: usize,
    ) -> Sums512 {
        // SAFETY: `self` proves the instructions (VNNI's if `VNNI`); a quarter below four lies inside the factors, and
        // the vectors inside the codes.
        unsafe {
            let factors = factors.0.as_ptr().add(Factors::QUARTER * quarter);
            if VNNI {
                let codes = _mm512_loadu_si512(codes.as_ptr().cast());
                let plane = |i: usize| {
                    let bytes = factors.cast::<i32>().add(i).read_unaligned();
                    _mm512_dpbusd_epi32(sums[i], _mm512_set1_epi32(bytes), codes)
                };
                [plane(0), plane(1)]
            } else {
                let factors = _mm512_set1_epi64(factors.cast::<i64>().read_unaligned());
                let half = |i: usize| {
                    let codes = codes.as_ptr().cast::<__m256i>().add(i);
                    let wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256(codes));
                    _mm512_add_epi32(sums[i], _mm512_madd_epi16(wide, factors))
                };
                [half(0), half(1)]
            }
        }
    }

    #[inline(always)]
    fn no_bias(self) -> __m512i {
        proven!(_mm512_setzero_si512())
    }

    #[inline(always)]
    fn add_bias(self, bias: __m512i, codes: &Codes) -> __m512i {
        if VNNI {
            proven! {
                let codes = _mm512_loadu_si512(codes.as_ptr().cast());
                _mm512_dpbusd_epi32(bias, _mm512_set1_epi8(1), codes)
            }
        } else {
            bias
        }
    }

    #[inline(always)]
    fn store_bias(self, bias: __m512i, to: &mut [f32; LANES]) {
        if VNNI {
            proven!(_mm512_storeu_ps(to.as_mut_ptr(), _mm512_castsi512_ps(bias)));
        }
    }

    #[inline(always)]
    fn load_bias(self, from: &[f32; LANES]) -> __m512i {
        proven!(_mm512_castps_si512(_mm512_loadu_ps(from.as_ptr())))
    }

    #[inline(always)]
    fn finish_signed(self, sums: Sums512, bias: __m512i) -> __m512 {
        if VNNI {
            proven! {
                let total = _mm512_add_epi32(sums[0], _mm512_slli_epi32::<8>(sums[1]));
                _mm512_cvtepi32_ps(_mm512_sub_epi32(total, _mm512_slli_epi32::<15>(bias)))
            }
        } else {
            proven!(_mm512_cvtepi32_ps(sum_pairs(sums)))
        }
    }

    #[inline(always)]
    fn no_byte_sums(self) -> Sums512 {
        self.no_sums()
    }

    #[inline(always)]
    unsafe fn dot4_bytes(
        self,
        sums: Sums512,
        codes: &Codes,
        factors: &Factors,
        quarter: usize,
    ) -> Sums512 {
        // SAFETY: the caller's promise; as in `dot4`. With VNNI only the first sum is used.
        unsafe {
            if VNNI {
                let codes = _mm512_loadu_si512(codes.as_ptr().cast());
                let factors = factors.0.as_ptr().add(Factors::QUARTER * quarter);
                let bytes = _mm512_set1_epi32(factors.cast::<i32>().read_unaligned());
                [_mm512_dpbusd_epi32(sums[0], bytes, codes), sums[1]]
            } else {
                self.dot4(sums, codes, factors, quarter)
            }
        }
    }

    #[inline(always)]
    fn finish_bytes(self, sums: Sums512) -> __m512 {
        if VNNI {
            proven!(_mm512_cvtepi32_ps(sums[0]))
        } else {
            proven!(_mm512_cvtepi32_ps(sum_pairs(sums)))
        }
    }
}

/// Sums of the pairs of both, in order.
///
/// # Safety
/// The machine has AVX-512 F.
#[inline(always)]
unsafe fn sum_pairs(sums: Sums512) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
        _mm512_add_epi32(
            _mm512_permutex2var_epi32(sums[0], even, sums[1]),
            _mm512_permutex2var_epi32(sums[0], odd, sums[1]),
        )
    }
}

/// Stores numbers of 16 bits as their low bytes and their high bytes, quad after quad.
///
/// # Safety
/// The machine has AVX-512 F and BW.
#[inline(always)]
unsafe fn store_planes(integers: __m512i, to: &mut Factors) {
    // SAFETY: the caller's promise; the factors have 64 bytes.
    unsafe {
        // Of each 128 bits: bytes 0, 4, 8, 12, then 1, 5, 9, 13; what follows is not used.
        let order = _mm512_set4_epi32(0x0D09_0501, 0x0C08_0400, 0x0D09_0501, 0x0C08_0400);
        let planes = _mm512_shuffle_epi8(integers, order);
        _mm512_storeu_si512(to.0.as_mut_ptr().cast(), planes);
    }
}

impl Bytes for Avx2 {
    type V = [__m256; 2];
    /// Four lanes in pairs each.
    type Sums = [__m256i; 4];
    type ByteSums = [__m256i; 4];
    type Bias = ();
    const MANY_SUMS: bool = false;

    #[inline(always)]
    fn store_codes(self, v: [[__m256; 2]; 4], to: &mut Codes) {
        for half in 0..2 {
            proven! {
                let byte = _mm256_set1_epi32(0xFF);
                let low = |i: usize| _mm256_and_si256(_mm256_castps_si256(v[i][half]), byte);
                let high = _mm256_slli_epi32::<24>(_mm256_castps_si256(v[3][half]));
                let first = _mm256_or_si256(low(0), _mm256_slli_epi32::<8>(low(1)));
                let second = _mm256_or_si256(_mm256_slli_epi32::<16>(low(2)), high);
                let to = to.as_mut_ptr().cast::<__m256i>().add(half);
                _mm256_storeu_si256(to, _mm256_or_si256(first, second));
            }
        }
    }

    #[inline(always)]
    fn load_codes(self, from: &Codes) -> [[__m256; 2]; 4] {
        let mut to = proven!([[_mm256_setzero_ps(); 2]; 4]);
        for half in 0..2 {
            proven! {
                let codes = _mm256_loadu_si256(from.as_ptr().cast::<__m256i>().add(half));
                let top = |codes| _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(codes));
                to[0][half] = top(_mm256_slli_epi32::<24>(codes));
                to[1][half] = top(_mm256_slli_epi32::<16>(codes));
                to[2][half] = top(_mm256_slli_epi32::<8>(codes));
                to[3][half] = top(codes);
            }
        }
        to
    }

    #[inline(always)]
    fn load_shifted(self, from: &[u8; LANES], bias: u32, shift: u32) -> [__m256; 2] {
        let half = |i: usize| {
            proven! {
                let from = from.as_ptr().add(8 * i).cast();
                let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from));
                let biased = _mm256_add_epi32(bytes, _mm256_set1_epi32(bias as i32));
                let shift = _mm_cvtsi32_si128(shift as i32);
                _mm256_castsi256_ps(_mm256_sll_epi32(biased, shift))
            }
        };
        [half(0), half(1)]
    }

    #[inline(always)]
    fn unpack_nibbles(self, from: &Codes, added: &[[u8; 4]; 2]) -> [Codes; 2] {
        let mut to = [[0; 4 * LANES]; 2];
        for half in 0..2 {
            proven! {
                let codes = _mm256_loadu_si256(from.as_ptr().cast::<__m256i>().add(half));
                let nibble = _mm256_set1_epi8(0xF);
                let low = _mm256_and_si256(codes, nibble);
                let high = _mm256_and_si256(_mm256_srli_epi32::<4>(codes), nibble);
                let all = |added: [u8; 4]| _mm256_set1_epi32(i32::from_le_bytes(added));
                let to_low = to[0].as_mut_ptr().cast::<__m256i>().add(half);
                _mm256_storeu_si256(to_low, _mm256_add_epi8(low, all(added[0])));
                let to_high = to[1].as_mut_ptr().cast::<__m256i>().add(half);
                _mm256_storeu_si256(to_high, _mm256_add_epi8(high, all(added[1])));
            }
        }
        to
    }

    #[inline(always)]
    fn store_signed(self, v: [__m256; 2], to: &mut Factors) {
        for half in 0..2 {
            proven! {
                let integers = _mm256_cvtps_epi32(v[half]);
                let words = _mm256_packs_epi32(integers, integers);
                let to = to.0.as_mut_ptr().cast::<__m256i>().add(half);
                _mm256_storeu_si256(to, words);
            }
        }
    }

    #[inline(always)]
    fn store_bytes(self, v: [__m256; 2], to: &mut Factors) {
        self.store_signed(v, to);
    }

    #[inline(always)]
    fn no_sums(self) -> [__m256i; 4] {
        proven!([_mm256_setzero_si256(); 4])
    }

    #[inline(always)]
    unsafe fn dot4(
        self,
        sums: [__m256i; 4],
        codes: &Codes,
        factors: &Factors,
        quarter: usize,
    ) -> [__m256i; 4] {
        // SAFETY: `self` proves the instructions; a quarter below four lies inside the factors, and the vectors inside
        // the codes.
        unsafe {
            let factors = factors.0.as_ptr().add(Factors::QUARTER * quarter);
            let factors = _mm256_set1_epi64x(factors.cast::<i64>().read_unaligned());
            let fourth = |i: usize| {
                let codes = codes.as_ptr().cast::<__m128i>().add(i);
                let wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(codes));
                _mm256_add_epi32(sums[i], _mm256_madd_epi16(wide, factors))
            };
            [fourth(0), fourth(1), fourth(2), fourth(3)]
        }
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
    fn finish_signed(self, sums: [__m256i; 4], (): ()) -> [__m256; 2] {
        self.finish_bytes(sums)
    }

    #[inline(always)]
    fn no_byte_sums(self) -> [__m256i; 4] {
        self.no_sums()
    }

    #[inline(always)]
    unsafe fn dot4_bytes(
        self,
        sums: [__m256i; 4],
        codes: &Codes,
        factors: &Factors,
        quarter: usize,
    ) -> [__m256i; 4] {
        // SAFETY: the caller's promise.
        unsafe { self.dot4(sums, codes, factors, quarter) }
    }

    #[inline(always)]
    fn finish_bytes(self, sums: [__m256i; 4]) -> [__m256; 2] {
        let half = |i: usize| {
            proven! {
                // Sums of pairs of both, in 128-bit halves: lanes 0, 1, 4, 5, 2, 3, 6, 7.
                let mixed = _mm256_hadd_epi32(sums[2 * i], sums[2 * i + 1]);
                let total = _mm256_permute4x64_epi64::<0b11_01_10_00>(mixed);
                _mm256_cvtepi32_ps(total)
            }
        };
        [half(0), half(1)]
    }
}
