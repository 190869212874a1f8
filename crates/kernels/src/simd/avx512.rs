//! The vectors in AVX-512, with and without VNNI: a lane is a lane.

// Everything here is called under the contract of `Simd`: the machine has the features, and the
// pointers are good for the stated lengths. That is what `SAFETY: see Simd` refers to.

use std::arch::x86_64::*;

use super::avx2::{horizontal_sums, load_nibbles, scale_of};
use super::{LANES, QuantizedGroup, Simd};

/// AVX-512 F, BW, DQ, VL.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// The same with VNNI.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Vnni;

/// Four bytes in every lane.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
unsafe fn splat_bytes(x: *const i8) -> __m512i {
    // SAFETY: see Simd.
    unsafe { _mm512_set1_epi32(x.cast::<i32>().read_unaligned()) }
}

/// `u8 * i8` without VNNI; the sums of pairs must fit 16 bits.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
unsafe fn dot_pairs(sums: __m512i, codes: __m512i, x: __m512i) -> __m512i {
    // SAFETY: see Simd.
    unsafe {
        let pairs = _mm512_maddubs_epi16(codes, x);
        _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
    }
}

macro_rules! avx512 {
    ($name:ident, wide_is_signed: $signed:literal, dot: $dot:item, dot_wide: $dot_wide:item) => {
        impl Simd for $name {
            const TILE: usize = 6;
            const FEW_TILE: usize = 8;
            const EXPANDS: bool = false;
            const WIDE_IS_SIGNED: bool = $signed;
            type F = __m512;
            type I = __m512i;
            type B = __m512i;

            $dot
            $dot_wide

            #[inline(always)]
            unsafe fn load_b(from: *const u8) -> __m512i {
                // SAFETY: see Simd.
                unsafe { _mm512_loadu_si512(from.cast()) }
            }

            #[inline(always)]
            unsafe fn store_b(to: *mut u8, bytes: __m512i) {
                // SAFETY: see Simd.
                unsafe { _mm512_storeu_si512(to.cast(), bytes) }
            }

            #[inline(always)]
            unsafe fn bits<const MASK: u8>(bytes: __m512i, shift: u32) -> __m512i {
                // SAFETY: see Simd. Bits from the neighbouring byte are masked off.
                unsafe {
                    let moved = _mm512_srl_epi16(bytes, _mm_cvtsi32_si128(shift as i32));
                    _mm512_and_si512(moved, _mm512_set1_epi8(MASK as i8))
                }
            }

            #[inline(always)]
            unsafe fn join_bits<const MASK: u8, const AT: i32>(
                low: __m512i,
                high: __m512i,
                shift: u32,
            ) -> __m512i {
                // SAFETY: see Simd. A rotation moves the bits up or down in one step; those that
                // come from another byte are masked off. 0xEA is `a & b | c`.
                unsafe {
                    let count = _mm512_set1_epi32(shift as i32 - AT);
                    let moved = _mm512_rorv_epi32(high, count);
                    let mask = _mm512_set1_epi8((MASK << AT) as i8);
                    _mm512_ternarylogic_epi32::<0xEA>(moved, mask, low)
                }
            }

            #[inline(always)]
            unsafe fn lookup(indices: __m512i, table: &[u8; 16]) -> __m512i {
                // SAFETY: see Simd; each quarter has the table.
                unsafe {
                    let table = _mm_loadu_si128(table.as_ptr().cast());
                    _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), indices)
                }
            }

            #[inline(always)]
            unsafe fn splat_i(value: i32) -> __m512i {
                // SAFETY: see Simd.
                unsafe { _mm512_set1_epi32(value) }
            }

            #[inline(always)]
            unsafe fn bits_to_f(bits: __m512i) -> __m512 {
                // SAFETY: see Simd.
                unsafe { _mm512_castsi512_ps(bits) }
            }

            #[inline(always)]
            unsafe fn splat(value: f32) -> __m512 {
                // SAFETY: see Simd.
                unsafe { _mm512_set1_ps(value) }
            }

            #[inline(always)]
            unsafe fn load(from: *const f32) -> __m512 {
                // SAFETY: see Simd.
                unsafe { _mm512_loadu_ps(from) }
            }

            #[inline(always)]
            unsafe fn store(to: *mut f32, values: __m512) {
                // SAFETY: see Simd.
                unsafe { _mm512_storeu_ps(to, values) }
            }

            #[inline(always)]
            unsafe fn load_f16(from: *const u8) -> __m512 {
                // SAFETY: see Simd.
                unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
            }

            #[inline(always)]
            unsafe fn load_bf16(from: *const u8) -> __m512 {
                // SAFETY: see Simd.
                unsafe {
                    let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
                }
            }

            #[inline(always)]
            unsafe fn load_u8(from: *const u8) -> __m512 {
                // SAFETY: see Simd.
                unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()))) }
            }

            #[inline(always)]
            unsafe fn load_i8(from: *const u8) -> __m512 {
                // SAFETY: see Simd.
                unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
            }

            #[inline(always)]
            unsafe fn load_u4(from: *const u8, shift: u32) -> __m512 {
                // SAFETY: see Simd.
                unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load_nibbles(from, shift))) }
            }

            #[inline(always)]
            unsafe fn sub(a: __m512, b: __m512) -> __m512 {
                // SAFETY: see Simd.
                unsafe { _mm512_sub_ps(a, b) }
            }

            #[inline(always)]
            unsafe fn mul(a: __m512, b: __m512) -> __m512 {
                // SAFETY: see Simd.
                unsafe { _mm512_mul_ps(a, b) }
            }

            #[inline(always)]
            unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
                // SAFETY: see Simd.
                unsafe { _mm512_fmadd_ps(a, b, c) }
            }

            #[inline(always)]
            unsafe fn neg_mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
                // SAFETY: see Simd.
                unsafe { _mm512_fnmadd_ps(a, b, c) }
            }

            #[inline(always)]
            unsafe fn quantize(x: *const f32, codes: *mut i8) -> QuantizedGroup {
                // SAFETY: see Simd.
                unsafe { quantize(x, codes) }
            }

            #[inline(always)]
            unsafe fn transpose(from: &[*const u8; LANES], to: *mut u8, flip: u8) {
                // SAFETY: see Simd.
                unsafe { transpose(from, to, flip) }
            }
        }
    };
}

avx512!(Avx512, wide_is_signed: true,
    dot:
    #[inline(always)]
    unsafe fn dot(sums: __m512i, codes: __m512i, x: *const i8) -> __m512i {
        // SAFETY: see Simd; 127 * 127 * 2 fits 16 bits.
        unsafe { dot_pairs(sums, codes, splat_bytes(x)) }
    },
    dot_wide:
    #[inline(always)]
    unsafe fn dot_wide(sums: __m512i, codes: __m512i, x: *const i8) -> __m512i {
        // SAFETY: see Simd. |w| * (x * sign w): 128 * 127 * 2 fits 16 bits.
        unsafe {
            let signed = _mm512_xor_si512(codes, _mm512_set1_epi8(-128));
            let negative = _mm512_movepi8_mask(signed);
            let x = splat_bytes(x);
            let x = _mm512_mask_sub_epi8(x, negative, _mm512_setzero_si512(), x);
            dot_pairs(sums, _mm512_abs_epi8(signed), x)
        }
    }
);

avx512!(Avx512Vnni, wide_is_signed: false,
    dot:
    #[inline(always)]
    unsafe fn dot(sums: __m512i, codes: __m512i, x: *const i8) -> __m512i {
        // SAFETY: see Simd.
        unsafe { _mm512_dpbusd_epi32(sums, codes, splat_bytes(x)) }
    },
    dot_wide:
    #[inline(always)]
    unsafe fn dot_wide(sums: __m512i, codes: __m512i, x: *const i8) -> __m512i {
        // SAFETY: see Simd.
        unsafe { _mm512_dpbusd_epi32(sums, codes, splat_bytes(x)) }
    }
);

/// # Safety
/// See [`Simd::quantize`].
#[inline(always)]
unsafe fn quantize(x: *const f32, codes: *mut i8) -> QuantizedGroup {
    // SAFETY: see Simd.
    unsafe {
        let (a, b) = (_mm512_loadu_ps(x), _mm512_loadu_ps(x.add(16)));
        let bits = _mm512_set1_epi32(0x7FFF_FFFF);
        let magnitude = _mm512_max_epi32(
            _mm512_and_si512(_mm512_castps_si512(a), bits),
            _mm512_and_si512(_mm512_castps_si512(b), bits),
        );
        let Some((inverse, magic)) = scale_of(_mm512_reduce_max_epi32(magnitude) as u32) else {
            _mm256_storeu_si256(codes.cast(), _mm256_setzero_si256());
            return QuantizedGroup {
                magic: f32::NAN,
                sums: [0; 2],
            };
        };
        let inverse = _mm512_set1_ps(inverse);
        let a = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)));
        let b = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(b, inverse)));
        _mm_storeu_si128(codes.cast(), a);
        _mm_storeu_si128(codes.add(16).cast(), b);
        QuantizedGroup {
            magic,
            sums: horizontal_sums(_mm256_set_m128i(b, a)),
        }
    }
}

/// # Safety
/// See [`Simd::transpose`].
#[inline(always)]
unsafe fn transpose(from: &[*const u8; LANES], to: *mut u8, flip: u8) {
    // SAFETY: see Simd.
    unsafe {
        // Quarter q of vector i holds place 4q + i, so that a 4 x 4 transposition within the
        // quarters leaves the places in order.
        let four = |i: usize| {
            let at = |q: usize| _mm_loadu_si128(from[4 * q + i].cast());
            let v = _mm512_castsi128_si512(at(0));
            let v = _mm512_inserti32x4::<1>(v, at(1));
            let v = _mm512_inserti32x4::<2>(v, at(2));
            _mm512_inserti32x4::<3>(v, at(3))
        };
        let (a, b, c, d) = (four(0), four(1), four(2), four(3));
        let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        let pieces = [
            _mm512_unpacklo_epi64(ab_low, cd_low),
            _mm512_unpackhi_epi64(ab_low, cd_low),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ];
        let flip = _mm512_set1_epi8(flip as i8);
        for (i, piece) in pieces.into_iter().enumerate() {
            _mm512_storeu_si512(to.add(i * 64).cast(), _mm512_xor_si512(piece, flip));
        }
    }
}
