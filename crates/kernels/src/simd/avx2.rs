//! The vectors in AVX2 with FMA and F16C, with and without AVX-VNNI: two registers for 16 lanes.

// Everything here is called under the contract of `Simd`: the machine has the features, and the
// pointers are good for the stated lengths. That is what `SAFETY: see Simd` refers to.

use std::arch::x86_64::*;

use super::{LANES, QuantizedGroup, Simd};
use crate::matmul::activation::{exponent, inverse_of, magic_of};

/// AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// The same with AVX-VNNI.
#[derive(Clone, Copy)]
pub(crate) struct AvxVnni;

/// Four bytes in every lane.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
unsafe fn splat_bytes(x: *const i8) -> __m256i {
    // SAFETY: see Simd.
    unsafe { _mm256_set1_epi32(x.cast::<i32>().read_unaligned()) }
}

/// `u8 * i8` without VNNI; the sums of pairs must fit 16 bits.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
unsafe fn dot_pairs(sums: __m256i, codes: __m256i, x: __m256i) -> __m256i {
    // SAFETY: see Simd.
    unsafe {
        let pairs = _mm256_maddubs_epi16(codes, x);
        _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

macro_rules! avx2 {
    ($name:ident, wide_is_signed: $signed:literal, dot: $dot:item, dot_wide: $dot_wide:item) => {
        impl Simd for $name {
            const TILE: usize = 3;
            const FEW_TILE: usize = 3;
            const EXPANDS: bool = true;
            const WIDE_IS_SIGNED: bool = $signed;
            type F = [__m256; 2];
            type I = [__m256i; 2];
            type B = [__m256i; 2];

            $dot
            $dot_wide

            #[inline(always)]
            unsafe fn load_b(from: *const u8) -> [__m256i; 2] {
                // SAFETY: see Simd.
                unsafe {
                    [
                        _mm256_loadu_si256(from.cast()),
                        _mm256_loadu_si256(from.add(32).cast()),
                    ]
                }
            }

            #[inline(always)]
            unsafe fn store_b(to: *mut u8, bytes: [__m256i; 2]) {
                // SAFETY: see Simd.
                unsafe {
                    _mm256_storeu_si256(to.cast(), bytes[0]);
                    _mm256_storeu_si256(to.add(32).cast(), bytes[1]);
                }
            }

            #[inline(always)]
            unsafe fn bits<const MASK: u8>(bytes: [__m256i; 2], shift: u32) -> [__m256i; 2] {
                // SAFETY: see Simd.
                unsafe { [bits::<MASK>(bytes[0], shift), bits::<MASK>(bytes[1], shift)] }
            }

            #[inline(always)]
            unsafe fn lookup(indices: [__m256i; 2], table: &[u8; 16]) -> [__m256i; 2] {
                // SAFETY: see Simd; each half has the table.
                unsafe {
                    let table = _mm_loadu_si128(table.as_ptr().cast());
                    let table = _mm256_broadcastsi128_si256(table);
                    [
                        _mm256_shuffle_epi8(table, indices[0]),
                        _mm256_shuffle_epi8(table, indices[1]),
                    ]
                }
            }

            #[inline(always)]
            unsafe fn join_bits<const MASK: u8, const AT: i32>(
                low: [__m256i; 2],
                high: [__m256i; 2],
                shift: u32,
            ) -> [__m256i; 2] {
                // SAFETY: see Simd.
                unsafe {
                    [
                        join_bits::<MASK, AT>(low[0], high[0], shift),
                        join_bits::<MASK, AT>(low[1], high[1], shift),
                    ]
                }
            }

            #[inline(always)]
            unsafe fn splat_i(value: i32) -> [__m256i; 2] {
                // SAFETY: see Simd.
                unsafe { [_mm256_set1_epi32(value); 2] }
            }

            #[inline(always)]
            unsafe fn bits_to_f(bits: [__m256i; 2]) -> [__m256; 2] {
                // SAFETY: see Simd.
                unsafe { [_mm256_castsi256_ps(bits[0]), _mm256_castsi256_ps(bits[1])] }
            }

            #[inline(always)]
            unsafe fn splat(value: f32) -> [__m256; 2] {
                // SAFETY: see Simd.
                unsafe { [_mm256_set1_ps(value); 2] }
            }

            #[inline(always)]
            unsafe fn load(from: *const f32) -> [__m256; 2] {
                // SAFETY: see Simd.
                unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
            }

            #[inline(always)]
            unsafe fn store(to: *mut f32, values: [__m256; 2]) {
                // SAFETY: see Simd.
                unsafe {
                    _mm256_storeu_ps(to, values[0]);
                    _mm256_storeu_ps(to.add(8), values[1]);
                }
            }

            #[inline(always)]
            unsafe fn load_f16(from: *const u8) -> [__m256; 2] {
                // SAFETY: see Simd.
                unsafe {
                    [
                        _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                        _mm256_cvtph_ps(_mm_loadu_si128(from.add(16).cast())),
                    ]
                }
            }

            #[inline(always)]
            unsafe fn load_bf16(from: *const u8) -> [__m256; 2] {
                // SAFETY: see Simd.
                unsafe {
                    let half = |at: *const u8| {
                        let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
                        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
                    };
                    [half(from), half(from.add(16))]
                }
            }

            #[inline(always)]
            unsafe fn load_u8(from: *const u8) -> [__m256; 2] {
                // SAFETY: see Simd.
                unsafe {
                    let half = |at: *const u8| {
                        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast())))
                    };
                    [half(from), half(from.add(8))]
                }
            }

            #[inline(always)]
            unsafe fn load_i8(from: *const u8) -> [__m256; 2] {
                // SAFETY: see Simd.
                unsafe {
                    let half = |at: *const u8| {
                        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast())))
                    };
                    [half(from), half(from.add(8))]
                }
            }

            #[inline(always)]
            unsafe fn load_u4(from: *const u8, shift: u32) -> [__m256; 2] {
                // SAFETY: see Simd.
                unsafe {
                    let low = load_nibbles(from, shift);
                    let half = |bytes| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
                    [half(low), half(_mm_unpackhi_epi64(low, low))]
                }
            }

            #[inline(always)]
            unsafe fn sub(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
                // SAFETY: see Simd.
                unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
            }

            #[inline(always)]
            unsafe fn mul(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
                // SAFETY: see Simd.
                unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
            }

            #[inline(always)]
            unsafe fn mul_add(a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
                // SAFETY: see Simd.
                unsafe {
                    [
                        _mm256_fmadd_ps(a[0], b[0], c[0]),
                        _mm256_fmadd_ps(a[1], b[1], c[1]),
                    ]
                }
            }

            #[inline(always)]
            unsafe fn neg_mul_add(a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
                // SAFETY: see Simd.
                unsafe {
                    [
                        _mm256_fnmadd_ps(a[0], b[0], c[0]),
                        _mm256_fnmadd_ps(a[1], b[1], c[1]),
                    ]
                }
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

avx2!(Avx2, wide_is_signed: true,
    dot:
    #[inline(always)]
    unsafe fn dot(sums: [__m256i; 2], codes: [__m256i; 2], x: *const i8) -> [__m256i; 2] {
        // SAFETY: see Simd; 127 * 127 * 2 fits 16 bits.
        unsafe {
            let x = splat_bytes(x);
            [dot_pairs(sums[0], codes[0], x), dot_pairs(sums[1], codes[1], x)]
        }
    },
    dot_wide:
    #[inline(always)]
    unsafe fn dot_wide(sums: [__m256i; 2], codes: [__m256i; 2], x: *const i8) -> [__m256i; 2] {
        // SAFETY: see Simd. |w| * (x * sign w): 128 * 127 * 2 fits 16 bits.
        unsafe {
            let x = splat_bytes(x);
            let half = |sums: __m256i, codes: __m256i| {
                let signed = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
                dot_pairs(sums, _mm256_abs_epi8(signed), _mm256_sign_epi8(x, signed))
            };
            [half(sums[0], codes[0]), half(sums[1], codes[1])]
        }
    }
);

avx2!(AvxVnni, wide_is_signed: false,
    dot:
    #[inline(always)]
    unsafe fn dot(sums: [__m256i; 2], codes: [__m256i; 2], x: *const i8) -> [__m256i; 2] {
        // SAFETY: see Simd.
        unsafe {
            let x = splat_bytes(x);
            [
                _mm256_dpbusd_avx_epi32(sums[0], codes[0], x),
                _mm256_dpbusd_avx_epi32(sums[1], codes[1], x),
            ]
        }
    },
    dot_wide:
    #[inline(always)]
    unsafe fn dot_wide(sums: [__m256i; 2], codes: [__m256i; 2], x: *const i8) -> [__m256i; 2] {
        // SAFETY: see Simd.
        unsafe { Self::dot(sums, codes, x) }
    }
);

/// # Safety
/// See [`Simd::bits`].
#[inline(always)]
unsafe fn bits<const MASK: u8>(bytes: __m256i, shift: u32) -> __m256i {
    // SAFETY: see Simd. Bits from the neighbouring byte are masked off.
    unsafe {
        let moved = _mm256_srl_epi16(bytes, _mm_cvtsi32_si128(shift as i32));
        _mm256_and_si256(moved, _mm256_set1_epi8(MASK as i8))
    }
}

/// `byte >> shift & 0xF` of 16 bytes; `shift` is 0 or 4.
///
/// # Safety
/// See [`Simd::load_u4`].
#[inline(always)]
pub(super) unsafe fn load_nibbles(from: *const u8, shift: u32) -> __m128i {
    // SAFETY: see Simd. Bits from the neighbouring byte are masked off.
    unsafe {
        let bytes = _mm_loadu_si128(from.cast());
        let moved = _mm_srl_epi16(bytes, _mm_cvtsi32_si128(shift as i32));
        _mm_and_si128(moved, _mm_set1_epi8(0xF))
    }
}

/// # Safety
/// See [`Simd::join_bits`].
#[inline(always)]
unsafe fn join_bits<const MASK: u8, const AT: i32>(
    low: __m256i,
    high: __m256i,
    shift: u32,
) -> __m256i {
    // SAFETY: see Simd.
    unsafe {
        let bits = bits::<MASK>(high, shift);
        _mm256_or_si256(low, _mm256_slli_epi16::<AT>(bits))
    }
}

/// `(2^-e, magic)` of a group whose largest magnitude has these bits.
#[inline(always)]
pub(super) fn scale_of(magnitude_bits: u32) -> Option<(f32, f32)> {
    let exponent = exponent(magnitude_bits)?;
    Some((inverse_of(exponent), magic_of(exponent)))
}

/// Sums of bytes 0 to 15 and of bytes 16 to 31.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
pub(super) unsafe fn horizontal_sums(codes: __m256i) -> [i32; 2] {
    // SAFETY: see Simd. The sums of absolute differences to zero are of unsigned bytes: 128 more
    // for each.
    unsafe {
        let unsigned = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
        let eights = _mm256_sad_epu8(unsigned, _mm256_setzero_si256());
        let sum = _mm256_add_epi64(eights, _mm256_unpackhi_epi64(eights, eights));
        let low = _mm256_castsi256_si128(sum);
        let high = _mm256_extracti128_si256::<1>(sum);
        [
            _mm_cvtsi128_si32(low) - 16 * 128,
            _mm_cvtsi128_si32(high) - 16 * 128,
        ]
    }
}

/// # Safety
/// See [`Simd::quantize`].
#[inline(always)]
unsafe fn quantize(x: *const f32, codes: *mut i8) -> QuantizedGroup {
    // SAFETY: see Simd.
    unsafe {
        let v: [__m256; 4] = std::array::from_fn(|i| _mm256_loadu_ps(x.add(i * 8)));
        let bits = _mm256_set1_epi32(0x7FFF_FFFF);
        let m = v.map(|v| _mm256_and_si256(_mm256_castps_si256(v), bits));
        let m = _mm256_max_epi32(_mm256_max_epi32(m[0], m[1]), _mm256_max_epi32(m[2], m[3]));
        let m = _mm_max_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256::<1>(m));
        let m = _mm_max_epi32(m, _mm_unpackhi_epi64(m, m));
        let m = _mm_max_epi32(m, _mm_shuffle_epi32::<1>(m));
        let Some((inverse, magic)) = scale_of(_mm_cvtsi128_si32(m) as u32) else {
            _mm256_storeu_si256(codes.cast(), _mm256_setzero_si256());
            return QuantizedGroup {
                magic: f32::NAN,
                sums: [0; 2],
            };
        };
        let inverse = _mm256_set1_ps(inverse);
        let q = v.map(|v| _mm256_cvtps_epi32(_mm256_mul_ps(v, inverse)));
        let bytes = _mm256_packs_epi16(
            _mm256_packs_epi32(q[0], q[1]),
            _mm256_packs_epi32(q[2], q[3]),
        );
        // The packs work on halves: put the quarters of eight back in order.
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let bytes = _mm256_permutevar8x32_epi32(bytes, order);
        _mm256_storeu_si256(codes.cast(), bytes);
        QuantizedGroup {
            magic,
            sums: horizontal_sums(bytes),
        }
    }
}

/// # Safety
/// See [`Simd::transpose`].
#[inline(always)]
unsafe fn transpose(from: &[*const u8; LANES], to: *mut u8, flip: u8) {
    // SAFETY: see Simd.
    unsafe {
        let flip = _mm256_set1_epi8(flip as i8);
        for half in 0..2 {
            // Half h of vector i holds place 4h + i, as in the 512-bit version.
            let two = |i: usize| {
                let at = |h: usize| _mm_loadu_si128(from[8 * half + 4 * h + i].cast());
                _mm256_set_m128i(at(1), at(0))
            };
            let (a, b, c, d) = (two(0), two(1), two(2), two(3));
            let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
            let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
            let pieces = [
                _mm256_unpacklo_epi64(ab_low, cd_low),
                _mm256_unpackhi_epi64(ab_low, cd_low),
                _mm256_unpacklo_epi64(ab_high, cd_high),
                _mm256_unpackhi_epi64(ab_high, cd_high),
            ];
            for (i, piece) in pieces.into_iter().enumerate() {
                let to = to.add(i * 64 + half * 32);
                _mm256_storeu_si256(to.cast(), _mm256_xor_si256(piece, flip));
            }
        }
    }
}
