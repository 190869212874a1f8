//! Sixteen lanes in one AVX-512 register, or in two of AVX2.

use super::{Kernel, LANES, Lanes};
use std::arch::x86_64::*;

/// Proof of AVX-512 F, BW, DQ and VL (with AVX2, FMA and F16C), and of AVX-512 VNNI if `VNNI`.
#[derive(Clone, Copy)]
pub(super) struct Avx512<const VNNI: bool>(());

/// Proof of AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl<const VNNI: bool> Avx512<VNNI> {
    /// # Safety
    /// The machine has AVX-512 F, BW, DQ and VL, AVX2, FMA and F16C, and AVX-512 VNNI if `VNNI`.
    pub(super) unsafe fn new() -> Self {
        Self(())
    }

    pub(super) fn without_vnni(self) -> Avx512<false> {
        Avx512(())
    }
}

impl Avx2 {
    /// # Safety
    /// The machine has AVX2, FMA and F16C.
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

/// # Safety
/// The machine has AVX-512 F, BW, DQ and VL, AVX2, FMA and F16C.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
#[inline(never)]
unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512::<false>(()))
}

/// # Safety
/// The machine has AVX-512 F, BW, DQ, VL and VNNI, AVX2, FMA and F16C.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline(never)]
unsafe fn run_avx512_vnni<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512::<true>(()))
}

/// # Safety
/// The machine has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

/// Evaluates intrinsics inside a method of a proof type.
macro_rules! proven {
    ($($body:tt)*) => {
        // SAFETY: `self` proves that the instruction set is there, and loads and stores go through references to arrays
        // of the width that they touch.
        unsafe { $($body)* }
    };
}

mod bytes;

impl<const VNNI: bool> Lanes for Avx512<VNNI> {
    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        if VNNI {
            proven!(run_avx512_vnni(kernel))
        } else {
            proven!(run_avx512(kernel))
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        proven!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        proven!(_mm512_loadu_ps(from.as_ptr()))
    }

    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32; LANES]) {
        proven!(_mm512_storeu_ps(to.as_mut_ptr(), v));
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 2 * LANES]) -> __m512 {
        proven!(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())))
    }

    #[inline(always)]
    fn store_f16(self, v: __m512, to: &mut [u8; 2 * LANES]) {
        proven! {
            let halves = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(v);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), halves);
        }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 2 * LANES]) -> __m512 {
        proven! {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    fn store_bf16(self, v: __m512, to: &mut [u8; 2 * LANES]) {
        proven! {
            let bits = _mm512_castps_si512(v);
            let high = _mm512_srli_epi32::<16>(bits);
            let odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
            let bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
            let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, bias));
            let quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let halves = _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(nan, rounded, quiet));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), halves);
        }
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        proven!(_mm_prefetch::<_MM_HINT_T1>(address.cast()));
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        proven!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn fnma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        proven!(_mm512_fnmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn select_lt(self, a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        proven!(_mm512_mask_blend_ps(
            _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b),
            y,
            x
        ))
    }

    #[inline(always)]
    fn greater(self, a: __m512, b: __m512) -> u16 {
        proven!(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b))
    }

    #[inline(always)]
    fn shift_to_exponent(self, a: __m512) -> __m512 {
        proven!(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(
            _mm512_castps_si512(a)
        )))
    }

    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        proven!(_mm512_abs_ps(a))
    }

    #[inline(always)]
    fn with_sign(self, a: __m512, b: __m512) -> __m512 {
        proven! {
            let sign = _mm512_set1_ps(-0.0);
            _mm512_or_ps(_mm512_andnot_ps(sign, a), _mm512_and_ps(sign, b))
        }
    }

    #[inline(always)]
    fn swap_pairs(self, a: __m512) -> __m512 {
        proven!(_mm512_permute_ps::<0b10_11_00_01>(a))
    }

    #[inline(always)]
    fn reduce_add(self, a: __m512) -> f32 {
        let halves = proven!([_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a)]);
        Avx2(()).reduce_add(halves)
    }

    #[inline(always)]
    fn reduce_max(self, a: __m512) -> f32 {
        let halves = proven!([_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a)]);
        Avx2(()).reduce_max(halves)
    }
}

/// The bits of the nearest bfloat16 numbers, in 32 bits each.
#[inline]
#[target_feature(enable = "avx2")]
fn round_to_bf16(v: __m256) -> __m256i {
    let bits = _mm256_castps_si256(v);
    let high = _mm256_srli_epi32::<16>(bits);
    let odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    let bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF));
    let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, bias));
    let quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
    _mm256_blendv_epi8(rounded, quiet, nan)
}

/// A method of [`Avx2`] that does the same in both registers.
macro_rules! twice {
    ($name:ident($($arg:ident),+) $body:expr) => {
        #[inline(always)]
        fn $name(self, $($arg: [__m256; 2]),+) -> [__m256; 2] {
            let half = |i: usize| {
                $(let $arg = $arg[i];)+
                proven!($body)
            };
            [half(0), half(1)]
        }
    };
}

impl Lanes for Avx2 {
    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        proven!(run_avx2(kernel))
    }

    twice!(add(a, b) _mm256_add_ps(a, b));
    twice!(sub(a, b) _mm256_sub_ps(a, b));
    twice!(mul(a, b) _mm256_mul_ps(a, b));
    twice!(div(a, b) _mm256_div_ps(a, b));
    twice!(fma(a, b, c) _mm256_fmadd_ps(a, b, c));
    twice!(fnma(a, b, c) _mm256_fnmadd_ps(a, b, c));
    twice!(max(a, b) _mm256_max_ps(a, b));
    twice!(min(a, b) _mm256_min_ps(a, b));
    twice!(select_lt(a, b, x, y) _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)));
    twice!(shift_to_exponent(a) _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(a))));
    twice!(abs(a) _mm256_andnot_ps(_mm256_set1_ps(-0.0), a));
    twice!(with_sign(a, b) _mm256_blendv_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0), a),
        _mm256_or_ps(_mm256_set1_ps(-0.0), a), b));
    twice!(swap_pairs(a) _mm256_permute_ps::<0b10_11_00_01>(a));

    #[inline(always)]
    fn splat(self, x: f32) -> [__m256; 2] {
        proven!([_mm256_set1_ps(x); 2])
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> [__m256; 2] {
        let p = from.as_ptr();
        proven!([_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))])
    }

    #[inline(always)]
    fn store(self, v: [__m256; 2], to: &mut [f32; LANES]) {
        let p = to.as_mut_ptr();
        proven! {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 2 * LANES]) -> [__m256; 2] {
        let p = from.as_ptr().cast::<__m128i>();
        proven!([
            _mm256_cvtph_ps(_mm_loadu_si128(p)),
            _mm256_cvtph_ps(_mm_loadu_si128(p.add(1)))
        ])
    }

    #[inline(always)]
    fn store_f16(self, v: [__m256; 2], to: &mut [u8; 2 * LANES]) {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;
        let p = to.as_mut_ptr().cast::<__m128i>();
        proven! {
            _mm_storeu_si128(p, _mm256_cvtps_ph::<NEAREST>(v[0]));
            _mm_storeu_si128(p.add(1), _mm256_cvtps_ph::<NEAREST>(v[1]));
        }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 2 * LANES]) -> [__m256; 2] {
        let p = from.as_ptr().cast::<__m128i>();
        let widen = |i: usize| {
            proven! {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(i)));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            }
        };
        [widen(0), widen(1)]
    }

    #[inline(always)]
    fn store_bf16(self, v: [__m256; 2], to: &mut [u8; 2 * LANES]) {
        proven! {
            let halves = _mm256_packus_epi32(round_to_bf16(v[0]), round_to_bf16(v[1]));
            // The pack works in 128-bit halves: put their quarters in order.
            let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(halves);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), ordered);
        }
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        proven!(_mm_prefetch::<_MM_HINT_T1>(address.cast()));
    }

    #[inline(always)]
    fn greater(self, a: [__m256; 2], b: [__m256; 2]) -> u16 {
        let mask = |i: usize| proven!(_mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a[i], b[i])));
        // Each mask has 8 bits.
        (mask(0) | (mask(1) << 8)) as u16
    }

    #[inline(always)]
    fn reduce_add(self, a: [__m256; 2]) -> f32 {
        proven! {
            let eight = _mm256_add_ps(a[0], a[1]);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn reduce_max(self, a: [__m256; 2]) -> f32 {
        proven! {
            let eight = _mm256_max_ps(a[0], a[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
}
