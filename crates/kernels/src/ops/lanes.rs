//! Sixteen `f32` lanes on every instruction set.
//!
//! A kernel is written once over [`Lanes`] and runs through [`dispatch`]. The vectors have sixteen lanes whatever the
//! registers hold (AVX2 uses two, portable code an array), every operation rounds once per lane as IEEE 754 says, and
//! reductions add in one fixed tree: so all instruction sets give the same bits.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::Isa;
use crate::format::f32_to_bf16;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// Operations on vectors of sixteen lanes. A value of the implementing type is a proof that the instruction set is
/// there, which is why the methods are safe.
pub(crate) trait Lanes: Copy + Send + Sync {
    /// Sixteen lanes.
    type V: Copy;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, from: &[f32; LANES]) -> Self::V;
    fn store(self, v: Self::V, to: &mut [f32; LANES]);
    /// Sixteen half-precision numbers, little-endian.
    fn load_f16(self, from: &[u8; 2 * LANES]) -> Self::V;
    /// Rounds to nearest even; what is too large becomes infinite.
    fn store_f16(self, v: Self::V, to: &mut [u8; 2 * LANES]);
    /// Sixteen bfloat16 numbers, little-endian.
    fn load_bf16(self, from: &[u8; 2 * LANES]) -> Self::V;
    /// Rounds to nearest even.
    #[inline(always)]
    fn store_bf16(self, v: Self::V, to: &mut [u8; 2 * LANES]) {
        let mut wide = [0.0; LANES];
        self.store(v, &mut wide);
        for (bytes, x) in to.as_chunks_mut::<2>().0.iter_mut().zip(wide) {
            *bytes = f32_to_bf16(x).to_le_bytes();
        }
    }

    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `c - a * b`, rounded once.
    fn fnma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a > b ? a : b`, so `b` where either is not a number.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a < b ? a : b`, so `b` where either is not a number.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a < b ? x : y`.
    fn select_lt(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// Bit `i` is set if lane `i` of `a` is greater than that of `b`.
    fn greater(self, a: Self::V, b: Self::V) -> u16;
    /// Shifts the lanes' bits left by 23: a small integer in the low bits becomes the exponent.
    fn shift_to_exponent(self, a: Self::V) -> Self::V;
    fn abs(self, a: Self::V) -> Self::V;
    /// The magnitude of `a` with the sign of `b`.
    fn with_sign(self, a: Self::V, b: Self::V) -> Self::V;
    /// Lanes 1, 0, 3, 2, …
    fn swap_pairs(self, a: Self::V) -> Self::V;
    /// The sum: lane i + lane i+8, then i + i+4, i + i+2, i + i+1.
    fn reduce_add(self, a: Self::V) -> f32;
    /// The maximum, by the same tree.
    fn reduce_max(self, a: Self::V) -> f32;
}

/// Something to run on the instruction set chosen at run time.
pub(crate) trait Kernel {
    type Output;
    /// Implementations are `#[inline(always)]`, so that they are compiled for the instruction set of the shell.
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// Runs a kernel compiled for `isa`, or the portable one where this machine has not got it.
#[inline]
pub(crate) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if matches!(isa, Isa::Avx512 | Isa::Avx512Vnni) && isa.is_available() {
            // SAFETY: the instruction set is there.
            return unsafe { x86::run_avx512(kernel) };
        }
        if matches!(isa, Isa::Avx2 | Isa::AvxVnni) && isa.is_available() {
            // SAFETY: the instruction set is there.
            return unsafe { x86::run_avx2(kernel) };
        }
    }
    let _ = isa;
    kernel.run(portable::Portable)
}

/// Applies `f` to every lane vector of `x`; the last, partial one is filled up with zeros.
#[inline(always)]
pub(crate) fn for_each_vector<L: Lanes>(l: L, x: &[f32], mut f: impl FnMut(L::V)) {
    let (whole, rest) = x.as_chunks::<LANES>();
    for chunk in whole {
        f(l.load(chunk));
    }
    if !rest.is_empty() {
        f(load_part(l, rest, 0.0));
    }
}

/// Loads fewer than sixteen numbers, the other lanes being `fill`.
#[inline(always)]
pub(crate) fn load_part<L: Lanes>(l: L, from: &[f32], fill: f32) -> L::V {
    let mut all = [fill; LANES];
    all[..from.len()].copy_from_slice(from);
    l.load(&all)
}

/// Stores the first `to.len()` lanes.
#[inline(always)]
pub(crate) fn store_part<L: Lanes>(l: L, v: L::V, to: &mut [f32]) {
    let mut all = [0.0; LANES];
    l.store(v, &mut all);
    to.copy_from_slice(&all[..to.len()]);
}

/// Replaces every number of `x` by `f` of it.
#[inline(always)]
pub(crate) fn map<L: Lanes>(l: L, x: &mut [f32], mut f: impl FnMut(L::V) -> L::V) {
    let (whole, rest) = x.as_chunks_mut::<LANES>();
    for chunk in whole {
        let v = f(l.load(chunk));
        l.store(v, chunk);
    }
    if !rest.is_empty() {
        let v = f(load_part(l, rest, 0.0));
        store_part(l, v, rest);
    }
}

/// Replaces every number of `x` by `f` of it and its neighbour in `y`.
#[inline(always)]
pub(crate) fn map2<L: Lanes>(
    l: L,
    x: &mut [f32],
    y: &[f32],
    mut f: impl FnMut(L::V, L::V) -> L::V,
) {
    assert_eq!(x.len(), y.len(), "two slices of one length");
    let (whole, rest) = x.as_chunks_mut::<LANES>();
    let (y_whole, y_rest) = y.as_chunks::<LANES>();
    for (chunk, y) in whole.iter_mut().zip(y_whole) {
        let v = f(l.load(chunk), l.load(y));
        l.store(v, chunk);
    }
    if !rest.is_empty() {
        let v = f(load_part(l, rest, 0.0), load_part(l, y_rest, 0.0));
        store_part(l, v, rest);
    }
}
