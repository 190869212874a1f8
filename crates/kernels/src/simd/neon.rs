//! The vectors in NEON with the dot-product instructions: four registers for 16 lanes.
//!
//! On another machine the tests run under qemu:
//!
//! ```sh
//! rustup target add aarch64-unknown-linux-musl
//! CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=rust-lld \
//! CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUNNER=qemu-aarch64-static \
//! cargo test -p neap-kernels --lib --target aarch64-unknown-linux-musl
//! ```

// Everything here is called under the contract of `Simd`: the machine has the features, and the
// pointers are good for the stated lengths. That is what `SAFETY: see Simd` refers to.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{LANES, QuantizedGroup, Simd};
use crate::matmul::activation::{exponent, inverse_of, magic_of};

/// NEON with `sdot`.
#[derive(Clone, Copy)]
pub(crate) struct Neon;

/// `sdot`: each lane's four products of signed bytes. Written out because the intrinsic is not
/// stable yet.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
unsafe fn sdot(sums: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
    let mut out = sums;
    // SAFETY: see Simd: the machine has `dotprod`; the instruction touches registers only.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {out:v}.4s, {codes:v}.16b, {x:v}.16b",
            out = inout(vreg) out,
            codes = in(vreg) codes,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    out
}

/// Half precision to single. Written out because the type is not stable yet.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
unsafe fn widen_f16(bits: uint16x4_t) -> float32x4_t {
    let out: float32x4_t;
    // SAFETY: the conversion is part of every AArch64; it touches registers only.
    unsafe {
        asm!(
            "fcvtl {out:v}.4s, {bits:v}.4h",
            out = lateout(vreg) out,
            bits = in(vreg) bits,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    out
}

/// Applies an operation to each of the four registers.
macro_rules! each {
    ($i:ident => $body:expr) => {{
        let each = |$i: usize| $body;
        [each(0), each(1), each(2), each(3)]
    }};
}

impl Simd for Neon {
    const TILE: usize = 3;
    const FEW_TILE: usize = 3;
    const EXPANDS: bool = true;
    const WIDE_IS_SIGNED: bool = true;
    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    type B = [uint8x16_t; 4];

    #[inline(always)]
    unsafe fn load_b(from: *const u8) -> Self::B {
        // SAFETY: see Simd.
        unsafe { each!(i => vld1q_u8(from.add(i * 16))) }
    }

    #[inline(always)]
    unsafe fn store_b(to: *mut u8, bytes: Self::B) {
        for (i, bytes) in bytes.into_iter().enumerate() {
            // SAFETY: see Simd.
            unsafe { vst1q_u8(to.add(i * 16), bytes) }
        }
    }

    #[inline(always)]
    unsafe fn bits<const MASK: u8>(bytes: Self::B, shift: u32) -> Self::B {
        // SAFETY: see Simd. A negative count shifts right.
        unsafe {
            let count = vdupq_n_s8(-(shift as i8));
            let mask = vdupq_n_u8(MASK);
            each!(i => vandq_u8(vshlq_u8(bytes[i], count), mask))
        }
    }

    #[inline(always)]
    unsafe fn lookup(indices: Self::B, table: &[u8; 16]) -> Self::B {
        // SAFETY: see Simd.
        unsafe {
            let table = vld1q_u8(table.as_ptr());
            each!(i => vqtbl1q_u8(table, indices[i]))
        }
    }

    #[inline(always)]
    unsafe fn join_bits<const MASK: u8, const AT: i32>(
        low: Self::B,
        high: Self::B,
        shift: u32,
    ) -> Self::B {
        // SAFETY: see Simd. A negative count shifts right.
        unsafe {
            let count = vdupq_n_s8(AT as i8 - shift as i8);
            let mask = vdupq_n_u8(MASK << AT);
            each!(i => vorrq_u8(low[i], vandq_u8(vshlq_u8(high[i], count), mask)))
        }
    }

    #[inline(always)]
    unsafe fn splat_i(value: i32) -> Self::I {
        // SAFETY: see Simd.
        unsafe { [vdupq_n_s32(value); 4] }
    }

    #[inline(always)]
    unsafe fn dot(sums: Self::I, codes: Self::B, x: *const i8) -> Self::I {
        // SAFETY: see Simd. Codes to 127 are the same signed and unsigned.
        unsafe {
            let x = vreinterpretq_s8_s32(vdupq_n_s32(x.cast::<i32>().read_unaligned()));
            each!(i => sdot(sums[i], vreinterpretq_s8_u8(codes[i]), x))
        }
    }

    #[inline(always)]
    unsafe fn dot_wide(sums: Self::I, codes: Self::B, x: *const i8) -> Self::I {
        // SAFETY: see Simd.
        unsafe {
            let flip = vdupq_n_u8(0x80);
            let signed = each!(i => veorq_u8(codes[i], flip));
            let x = vreinterpretq_s8_s32(vdupq_n_s32(x.cast::<i32>().read_unaligned()));
            each!(i => sdot(sums[i], vreinterpretq_s8_u8(signed[i]), x))
        }
    }

    #[inline(always)]
    unsafe fn bits_to_f(bits: Self::I) -> Self::F {
        // SAFETY: see Simd.
        unsafe { each!(i => vreinterpretq_f32_s32(bits[i])) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::F {
        // SAFETY: see Simd.
        unsafe { [vdupq_n_f32(value); 4] }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        // SAFETY: see Simd.
        unsafe { each!(i => vld1q_f32(from.add(i * 4))) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, values: Self::F) {
        for (i, values) in values.into_iter().enumerate() {
            // SAFETY: see Simd.
            unsafe { vst1q_f32(to.add(i * 4), values) }
        }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self::F {
        // SAFETY: see Simd.
        unsafe { each!(i => widen_f16(vreinterpret_u16_u8(vld1_u8(from.add(i * 8))))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self::F {
        // SAFETY: see Simd.
        unsafe {
            each!(i => {
                let bits = vreinterpret_u16_u8(vld1_u8(from.add(i * 8)));
                vreinterpretq_f32_u32(vshll_n_u16::<16>(bits))
            })
        }
    }

    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Self::F {
        // SAFETY: see Simd.
        unsafe { numbers(vld1q_u8(from)) }
    }

    #[inline(always)]
    unsafe fn load_u4(from: *const u8, shift: u32) -> Self::F {
        // SAFETY: see Simd. A negative count shifts right.
        unsafe {
            let moved = vshlq_u8(vld1q_u8(from), vdupq_n_s8(-(shift as i8)));
            numbers(vandq_u8(moved, vdupq_n_u8(0xF)))
        }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Self::F {
        // SAFETY: see Simd.
        unsafe {
            let bytes = vreinterpretq_s8_u8(vld1q_u8(from));
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            [
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
                vcvtq_f32_s32(vmovl_high_s16(low)),
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
                vcvtq_f32_s32(vmovl_high_s16(high)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see Simd.
        unsafe { each!(i => vsubq_f32(a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see Simd.
        unsafe { each!(i => vmulq_f32(a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: see Simd.
        unsafe { each!(i => vfmaq_f32(c[i], a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn neg_mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: see Simd.
        unsafe { each!(i => vfmsq_f32(c[i], a[i], b[i])) }
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

/// 16 unsigned bytes as numbers.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
unsafe fn numbers(bytes: uint8x16_t) -> [float32x4_t; 4] {
    // SAFETY: see Simd.
    unsafe {
        let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
        [
            vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))),
            vcvtq_f32_u32(vmovl_high_u16(low)),
            vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))),
            vcvtq_f32_u32(vmovl_high_u16(high)),
        ]
    }
}

/// # Safety
/// See [`Simd::quantize`].
#[inline(always)]
unsafe fn quantize(x: *const f32, codes: *mut i8) -> QuantizedGroup {
    // SAFETY: see Simd.
    unsafe {
        let mut magnitude = vdupq_n_u32(0);
        for i in 0..8 {
            let bits = vreinterpretq_u32_f32(vld1q_f32(x.add(i * 4)));
            magnitude = vmaxq_u32(magnitude, vandq_u32(bits, vdupq_n_u32(0x7FFF_FFFF)));
        }
        let Some(exponent) = exponent(vmaxvq_u32(magnitude)) else {
            vst1q_s8(codes, vdupq_n_s8(0));
            vst1q_s8(codes.add(16), vdupq_n_s8(0));
            return QuantizedGroup {
                magic: f32::NAN,
                sums: [0; 2],
            };
        };
        let inverse = inverse_of(exponent);
        let mut sums = [0; 2];
        for (half, sum) in sums.iter_mut().enumerate() {
            let q = each!(i => {
                let values = vld1q_f32(x.add(half * 16 + i * 4));
                vqmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(values, inverse)))
            });
            let low = vqmovn_s16(vcombine_s16(q[0], q[1]));
            let high = vqmovn_s16(vcombine_s16(q[2], q[3]));
            let bytes = vcombine_s8(low, high);
            vst1q_s8(codes.add(half * 16), bytes);
            *sum = i32::from(vaddlvq_s8(bytes));
        }
        QuantizedGroup {
            magic: magic_of(exponent),
            sums,
        }
    }
}

/// # Safety
/// See [`Simd::transpose`].
#[inline(always)]
unsafe fn transpose(from: &[*const u8; LANES], to: *mut u8, flip: u8) {
    // SAFETY: see Simd.
    unsafe {
        let flip = vdupq_n_u32(u32::from_ne_bytes([flip; 4]));
        for quarter in 0..4 {
            let [a, b, c, d] = each!(i => {
                veorq_u32(vreinterpretq_u32_u8(vld1q_u8(from[quarter * 4 + i])), flip)
            });
            let (ab_even, ab_odd) = (vtrn1q_u32(a, b), vtrn2q_u32(a, b));
            let (cd_even, cd_odd) = (vtrn1q_u32(c, d), vtrn2q_u32(c, d));
            let pair = |x, y| (vreinterpretq_u64_u32(x), vreinterpretq_u64_u32(y));
            let ((e, f), (g, h)) = (pair(ab_even, cd_even), pair(ab_odd, cd_odd));
            let pieces = [
                vtrn1q_u64(e, f),
                vtrn1q_u64(g, h),
                vtrn2q_u64(e, f),
                vtrn2q_u64(g, h),
            ];
            for (i, piece) in pieces.into_iter().enumerate() {
                vst1q_u8(to.add(i * 64 + quarter * 16), vreinterpretq_u8_u64(piece));
            }
        }
    }
}
