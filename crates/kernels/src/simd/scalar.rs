//! The vectors in portable Rust: the truth that the others are tested against.
//!
//! Nothing is inlined: kernels unrolled over arrays of bytes take a compiler minutes.

use super::{LANES, QuantizedGroup, Simd};
use crate::format::{bf16_to_f32, f16_to_f32};
use crate::matmul::activation::{GROUP_LEN, quantize_group};

/// Portable Rust.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

#[inline(always)]
fn map2<T: Copy, U: Copy, V>(a: [T; 16], b: [U; 16], f: impl Fn(T, U) -> V) -> [V; 16] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// Reads 16 values of `SIZE` bytes.
///
/// # Safety
/// `16 * SIZE` bytes at `from` can be read.
#[inline(always)]
unsafe fn read<const SIZE: usize>(from: *const u8) -> [[u8; SIZE]; LANES] {
    // SAFETY: the caller's promise; arrays of bytes have no alignment.
    unsafe { from.cast::<[[u8; SIZE]; LANES]>().read() }
}

impl Simd for Scalar {
    const TILE: usize = 3;
    const FEW_TILE: usize = 3;
    const EXPANDS: bool = true;
    const WIDE_IS_SIGNED: bool = true;
    type F = [f32; 16];
    type I = [i32; 16];
    type B = [u8; 64];

    #[inline(never)]
    unsafe fn load_b(from: *const u8) -> [u8; 64] {
        // SAFETY: 64 bytes can be read there.
        unsafe { from.cast::<[u8; 64]>().read() }
    }

    #[inline(never)]
    unsafe fn store_b(to: *mut u8, bytes: [u8; 64]) {
        // SAFETY: 64 bytes can be written there.
        unsafe { to.cast::<[u8; 64]>().write(bytes) }
    }

    #[inline(never)]
    unsafe fn bits<const MASK: u8>(bytes: [u8; 64], shift: u32) -> [u8; 64] {
        bytes.map(|b| b >> shift & MASK)
    }

    #[inline(never)]
    unsafe fn join_bits<const MASK: u8, const AT: i32>(
        low: [u8; 64],
        high: [u8; 64],
        shift: u32,
    ) -> [u8; 64] {
        std::array::from_fn(|i| low[i] | (high[i] >> shift & MASK) << AT)
    }

    #[inline(never)]
    unsafe fn lookup(indices: [u8; 64], table: &[u8; 16]) -> [u8; 64] {
        indices.map(|i| table[usize::from(i & 0xF)])
    }

    #[inline(never)]
    unsafe fn splat_i(value: i32) -> [i32; 16] {
        [value; 16]
    }

    #[inline(never)]
    unsafe fn dot(sums: [i32; 16], codes: [u8; 64], x: *const i8) -> [i32; 16] {
        // SAFETY: four bytes can be read there.
        let x = unsafe { x.cast::<[i8; 4]>().read() };
        std::array::from_fn(|lane| {
            let products = (0..4).map(|i| i32::from(codes[lane * 4 + i]) * i32::from(x[i]));
            sums[lane].wrapping_add(products.sum::<i32>())
        })
    }

    #[inline(never)]
    unsafe fn dot_wide(sums: [i32; 16], codes: [u8; 64], x: *const i8) -> [i32; 16] {
        // SAFETY: four bytes can be read there.
        let x = unsafe { x.cast::<[i8; 4]>().read() };
        std::array::from_fn(|lane| {
            let code = |i: usize| i32::from((codes[lane * 4 + i] ^ 0x80) as i8);
            let products = (0..4).map(|i| code(i) * i32::from(x[i]));
            sums[lane].wrapping_add(products.sum::<i32>())
        })
    }

    #[inline(never)]
    unsafe fn bits_to_f(bits: [i32; 16]) -> [f32; 16] {
        bits.map(|b| f32::from_bits(b as u32))
    }

    #[inline(never)]
    unsafe fn splat(value: f32) -> [f32; 16] {
        [value; 16]
    }

    #[inline(never)]
    unsafe fn load(from: *const f32) -> [f32; 16] {
        // SAFETY: 16 values can be read there.
        unsafe { read::<4>(from.cast()) }.map(f32::from_ne_bytes)
    }

    #[inline(never)]
    unsafe fn store(to: *mut f32, values: [f32; 16]) {
        // SAFETY: 16 values can be written there.
        unsafe { to.cast::<[f32; 16]>().write_unaligned(values) }
    }

    #[inline(never)]
    unsafe fn load_f16(from: *const u8) -> [f32; 16] {
        // SAFETY: 16 values of two bytes can be read there.
        unsafe { read::<2>(from) }.map(|b| f16_to_f32(u16::from_le_bytes(b)))
    }

    #[inline(never)]
    unsafe fn load_bf16(from: *const u8) -> [f32; 16] {
        // SAFETY: 16 values of two bytes can be read there.
        unsafe { read::<2>(from) }.map(|b| bf16_to_f32(u16::from_le_bytes(b)))
    }

    #[inline(never)]
    unsafe fn load_u8(from: *const u8) -> [f32; 16] {
        // SAFETY: 16 bytes can be read there.
        unsafe { read::<1>(from) }.map(|[b]| f32::from(b))
    }

    #[inline(never)]
    unsafe fn load_i8(from: *const u8) -> [f32; 16] {
        // SAFETY: 16 bytes can be read there.
        unsafe { read::<1>(from) }.map(|[b]| f32::from(b as i8))
    }

    #[inline(never)]
    unsafe fn load_u4(from: *const u8, shift: u32) -> [f32; 16] {
        // SAFETY: 16 bytes can be read there.
        unsafe { read::<1>(from) }.map(|[b]| f32::from(b >> shift & 0xF))
    }

    #[inline(never)]
    unsafe fn sub(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        map2(a, b, |a, b| a - b)
    }

    #[inline(never)]
    unsafe fn mul(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        map2(a, b, |a, b| a * b)
    }

    #[inline(never)]
    unsafe fn mul_add(a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(never)]
    unsafe fn neg_mul_add(a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|i| (-a[i]).mul_add(b[i], c[i]))
    }

    #[inline(never)]
    unsafe fn quantize(x: *const f32, codes: *mut i8) -> QuantizedGroup {
        // SAFETY: 32 values can be read there.
        let group = quantize_group(unsafe { x.cast::<[f32; GROUP_LEN]>().read_unaligned() });
        // SAFETY: 32 bytes can be written there.
        unsafe { codes.cast::<[i8; GROUP_LEN]>().write(group.codes) };
        let sum = |codes: &[i8]| codes.iter().map(|c| i32::from(*c)).sum();
        QuantizedGroup {
            magic: group.magic,
            sums: [sum(&group.codes[..16]), sum(&group.codes[16..])],
        }
    }

    #[inline(never)]
    unsafe fn transpose(from: &[*const u8; LANES], to: *mut u8, flip: u8) {
        for (lane, from) in from.iter().enumerate() {
            for piece in 0..4 {
                // SAFETY: 16 bytes can be read at each place and 256 be written at `to`.
                unsafe {
                    let bytes = from.add(piece * 4).cast::<[u8; 4]>().read();
                    let bytes = bytes.map(|b| b ^ flip);
                    to.add(piece * 64 + lane * 4).cast::<[u8; 4]>().write(bytes);
                }
            }
        }
    }
}
