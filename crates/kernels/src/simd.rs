//! Vectors of 16 lanes, over which the kernels are written once.
//!
//! A type that implements [`Simd`] stands for an instruction set. Its operations have one result
//! each, bit for bit, on every instruction set: integer sums are exact, multiply-adds are fused,
//! conversions are exact or round to nearest even. [`Shells`] then compiles the generic kernels
//! with the instruction set's features switched on; it is the only door to them.

mod peak;
mod scalar;
mod shells;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

pub(crate) use shells::{Kernels, Shells, kernels};

/// Rows of weights in a panel, and lanes in a vector: every lane holds one output.
pub(crate) const LANES: usize = 16;

/// Operations on 16 lanes of 32 bits.
///
/// # Safety
/// Every method may be called only on a machine that has the instruction set, and reads or writes
/// through its pointers exactly what its line says, without need of alignment.
pub(crate) trait Simd: Copy + 'static {
    /// Rows of activations in a full register tile where there are many: 6, on two panels, or 3.
    const TILE: usize;
    /// Rows of activations in a full register tile where there are few: 8, on one panel, or 3.
    const FEW_TILE: usize;
    /// Whether it pays with many rows to unpack even simple codes once into memory, rather than in
    /// registers for every tile: so it is where tiles are small.
    const EXPANDS: bool;
    /// Whether [`Simd::dot_wide`] takes codes as signed numbers (xor 0x80) rather than as they are.
    const WIDE_IS_SIGNED: bool;

    /// 16 f32.
    type F: Copy;
    /// 16 i32.
    type I: Copy;
    /// 64 bytes: 4 for each lane.
    type B: Copy;

    /// Reads 64 bytes.
    unsafe fn load_b(from: *const u8) -> Self::B;
    /// Writes 64 bytes.
    unsafe fn store_b(to: *mut u8, bytes: Self::B);
    /// `byte >> shift & MASK` for each byte; the mask's bits are within a byte so shifted.
    unsafe fn bits<const MASK: u8>(bytes: Self::B, shift: u32) -> Self::B;
    /// `low | (high >> shift & MASK) << AT` for each byte; `MASK` is 1 or 3, `shift` at most 7.
    unsafe fn join_bits<const MASK: u8, const AT: i32>(
        low: Self::B,
        high: Self::B,
        shift: u32,
    ) -> Self::B;
    /// `table[index]` for each byte; indices are at most 15.
    unsafe fn lookup(indices: Self::B, table: &[u8; 16]) -> Self::B;

    /// The same number in every lane.
    unsafe fn splat_i(value: i32) -> Self::I;
    /// Adds to each lane the dot product of its four codes, each at most 127, with the four signed
    /// bytes at `x`.
    unsafe fn dot(sums: Self::I, codes: Self::B, x: *const i8) -> Self::I;
    /// As [`Simd::dot`] with codes to 255, taken as [`Simd::WIDE_IS_SIGNED`] says.
    unsafe fn dot_wide(sums: Self::I, codes: Self::B, x: *const i8) -> Self::I;
    /// The lanes' bits as f32.
    unsafe fn bits_to_f(bits: Self::I) -> Self::F;

    /// The same number in every lane.
    unsafe fn splat(value: f32) -> Self::F;
    /// Reads 16 f32.
    unsafe fn load(from: *const f32) -> Self::F;
    /// Writes 16 f32.
    unsafe fn store(to: *mut f32, values: Self::F);
    /// Reads 16 half-precision numbers.
    unsafe fn load_f16(from: *const u8) -> Self::F;
    /// Reads 16 bfloat16 numbers.
    unsafe fn load_bf16(from: *const u8) -> Self::F;
    /// Reads 16 unsigned bytes as numbers.
    unsafe fn load_u8(from: *const u8) -> Self::F;
    /// Reads 16 signed bytes as numbers.
    unsafe fn load_i8(from: *const u8) -> Self::F;
    /// Reads 16 bytes; `byte >> shift & 0xF` as numbers, `shift` being 0 or 4.
    unsafe fn load_u4(from: *const u8, shift: u32) -> Self::F;
    /// `a - b`.
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `c - a * b`, rounded once.
    unsafe fn neg_mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F;

    /// Quantizes the 32 values at `x` into 32 bytes at `codes`, as
    /// [`quantize_group`](crate::matmul::activation::quantize_group) does.
    unsafe fn quantize(x: *const f32, codes: *mut i8) -> QuantizedGroup;
    /// Reads 16 bytes from each of 16 places and writes the four-byte pieces transposed: 64 bytes
    /// with everyone's first piece, then 64 with the second, and so on: 256 bytes at `to`, each
    /// xor `flip`.
    unsafe fn transpose(from: &[*const u8; LANES], to: *mut u8, flip: u8);
}

/// What a group of activations has beside its codes.
#[derive(Clone, Copy)]
pub(crate) struct QuantizedGroup {
    /// 1.5 * 2^(23 + exponent), or NaN.
    pub magic: f32,
    /// Sum of codes 0 to 15 and of codes 16 to 31.
    pub sums: [i32; 2],
}

/// Asks for the cache line at `at` to be brought into the second-level cache; any address is
/// allowed.
#[inline(always)]
pub(crate) fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64, and prefetching reads nothing that a program could see.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(at.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: prefetching is part of AArch64 and reads nothing that a program could see.
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{at}]", at = in(reg) at, options(nostack, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = at;
}
