//! Bytes in one AVX-512 register, or in two of AVX2.
//!
//! With VNNI a factor is two signed bytes, multiplied apart by `vpdpbusd`; without, it is 16 bits, multiplied by
//! `vpmaddwd` with codes widened to 16 bits, which leaves two sums for each lane.

use super::{Avx2, Avx512};
use crate::ops::lanes::LANES;
use crate::ops::lanes::bytes::{Bytes, Codes, Factors};
use std::arch::x86_64::*;

/// Sums of products: of the high and of the low bytes of the factors (VNNI), or of eight lanes in pairs each.
type Sums512 = [__m512i; 2];

impl<const VNNI: bool> Bytes for Avx512<VNNI> {
    type V = __m512;
    type Sums = Sums512;
    const MANY_SUMS: bool = true;

    #[inline(always)]
    fn store_bytes4(self, v: [__m512; 4], to: &mut Codes) {
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
    fn load_bytes4(self, from: &Codes) -> [__m512; 4] {
        proven! {
            let codes = _mm512_loadu_si512(from.as_ptr().cast());
            let byte = _mm512_set1_epi32(0xFF);
            [
                _mm512_cvtepi32_ps(_mm512_and_si512(codes, byte)),
                _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32::<8>(codes), byte)),
                _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32::<16>(codes), byte)),
                _mm512_cvtepi32_ps(_mm512_srli_epi32::<24>(codes)),
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
    fn unpack_nibbles(self, from: &Codes, added: [[u8; 4]; 2]) -> [Codes; 2] {
        proven! {
            let codes = _mm512_loadu_si512(from.as_ptr().cast());
            let nibble = _mm512_set1_epi8(0xF);
            let low = _mm512_and_si512(codes, nibble);
            let high = _mm512_and_si512(_mm512_srli_epi32::<4>(codes), nibble);
            let all = |added| _mm512_set1_epi32(i32::from_le_bytes(added));
            let mut to = [[0; 4 * LANES]; 2];
            _mm512_storeu_si512(to[0].as_mut_ptr().cast(), _mm512_add_epi8(low, all(added[0])));
            _mm512_storeu_si512(to[1].as_mut_ptr().cast(), _mm512_add_epi8(high, all(added[1])));
            to
        }
    }

    #[inline(always)]
    fn store_factors(self, v: __m512, to: &mut Factors) {
        proven! {
            let integers = _mm512_cvtps_epi32(v);
            if VNNI {
                // The low byte is signed, so the high one is that of the number rounded up by half of it.
                let high = _mm512_srai_epi32::<8>(_mm512_add_epi32(integers, _mm512_set1_epi32(128)));
                let to = to.0.as_mut_ptr().cast::<__m128i>();
                _mm_storeu_si128(to, _mm512_cvtepi32_epi8(high));
                _mm_storeu_si128(to.add(1), _mm512_cvtepi32_epi8(integers));
            } else {
                _mm256_storeu_si256(to.0.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(integers));
            }
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
            if VNNI {
                let codes = _mm512_loadu_si512(codes.as_ptr().cast());
                let bytes = factors.0.as_ptr().cast::<i32>().add(quarter);
                let high = _mm512_set1_epi32(bytes.read_unaligned());
                let low = _mm512_set1_epi32(bytes.add(4).read_unaligned());
                [
                    _mm512_dpbusd_epi32(sums[0], codes, high),
                    _mm512_dpbusd_epi32(sums[1], codes, low),
                ]
            } else {
                let factors = factors.0.as_ptr().cast::<i64>().add(quarter);
                let factors = _mm512_set1_epi64(factors.read_unaligned());
                let half = |i: usize| {
                    let codes = codes.as_ptr().cast::<__m256i>().add(i);
                    let wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256(codes));
                    _mm512_add_epi32(sums[i], _mm512_madd_epi16(wide, factors))
                };
                [half(0), half(1)]
            }
        }
    }

    #[inline(always)]
    fn finish_sums(self, sums: Sums512, less: i32) -> __m512 {
        proven! {
            let total = if VNNI {
                _mm512_add_epi32(_mm512_slli_epi32::<8>(sums[0]), sums[1])
            } else {
                let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
                let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
                _mm512_add_epi32(
                    _mm512_permutex2var_epi32(sums[0], even, sums[1]),
                    _mm512_permutex2var_epi32(sums[0], odd, sums[1]),
                )
            };
            _mm512_cvtepi32_ps(_mm512_sub_epi32(total, _mm512_set1_epi32(less)))
        }
    }
}

impl Bytes for Avx2 {
    type V = [__m256; 2];
    /// Four lanes in pairs each.
    type Sums = [__m256i; 4];
    const MANY_SUMS: bool = false;

    #[inline(always)]
    fn store_bytes4(self, v: [[__m256; 2]; 4], to: &mut Codes) {
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
    fn load_bytes4(self, from: &Codes) -> [[__m256; 2]; 4] {
        let mut to = proven!([[_mm256_setzero_ps(); 2]; 4]);
        for half in 0..2 {
            proven! {
                let codes = _mm256_loadu_si256(from.as_ptr().cast::<__m256i>().add(half));
                let byte = _mm256_set1_epi32(0xFF);
                to[0][half] = _mm256_cvtepi32_ps(_mm256_and_si256(codes, byte));
                let second = _mm256_srli_epi32::<8>(codes);
                to[1][half] = _mm256_cvtepi32_ps(_mm256_and_si256(second, byte));
                let third = _mm256_srli_epi32::<16>(codes);
                to[2][half] = _mm256_cvtepi32_ps(_mm256_and_si256(third, byte));
                to[3][half] = _mm256_cvtepi32_ps(_mm256_srli_epi32::<24>(codes));
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
    fn unpack_nibbles(self, from: &Codes, added: [[u8; 4]; 2]) -> [Codes; 2] {
        let mut to = [[0; 4 * LANES]; 2];
        for half in 0..2 {
            proven! {
                let codes = _mm256_loadu_si256(from.as_ptr().cast::<__m256i>().add(half));
                let nibble = _mm256_set1_epi8(0xF);
                let low = _mm256_and_si256(codes, nibble);
                let high = _mm256_and_si256(_mm256_srli_epi32::<4>(codes), nibble);
                let all = |added| _mm256_set1_epi32(i32::from_le_bytes(added));
                let to_low = to[0].as_mut_ptr().cast::<__m256i>().add(half);
                _mm256_storeu_si256(to_low, _mm256_add_epi8(low, all(added[0])));
                let to_high = to[1].as_mut_ptr().cast::<__m256i>().add(half);
                _mm256_storeu_si256(to_high, _mm256_add_epi8(high, all(added[1])));
            }
        }
        to
    }

    #[inline(always)]
    fn store_factors(self, v: [__m256; 2], to: &mut Factors) {
        proven! {
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1]));
            // The pack works in 128-bit halves: put their quarters in order.
            let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            _mm256_storeu_si256(to.0.as_mut_ptr().cast(), ordered);
        }
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
            let factors = factors.0.as_ptr().cast::<i64>().add(quarter);
            let factors = _mm256_set1_epi64x(factors.read_unaligned());
            let fourth = |i: usize| {
                let codes = codes.as_ptr().cast::<__m128i>().add(i);
                let wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(codes));
                _mm256_add_epi32(sums[i], _mm256_madd_epi16(wide, factors))
            };
            [fourth(0), fourth(1), fourth(2), fourth(3)]
        }
    }

    #[inline(always)]
    fn finish_sums(self, sums: [__m256i; 4], less: i32) -> [__m256; 2] {
        let half = |i: usize| {
            proven! {
                // Sums of pairs of both, in 128-bit halves: lanes 0, 1, 4, 5, 2, 3, 6, 7.
                let mixed = _mm256_hadd_epi32(sums[2 * i], sums[2 * i + 1]);
                let total = _mm256_permute4x64_epi64::<0b11_01_10_00>(mixed);
                _mm256_cvtepi32_ps(_mm256_sub_epi32(total, _mm256_set1_epi32(less)))
            }
        };
        [half(0), half(1)]
    }
}
