//! Sixteen `f32` lanes on every instruction set.
//!
//! A kernel is written once over [`Lanes`] and runs through [`dispatch`]. The vectors have sixteen lanes whatever the
//! registers hold (AVX2 uses two, portable code an array), every operation rounds once per lane as IEEE 754 says, and
//! reductions add in one fixed tree: so all instruction sets give the same bits.

pub(crate) mod bytes;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::Isa;
use crate::format::f32_to_bf16;
use bytes::Bytes;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// Operations on vectors of sixteen lanes. A value of the implementing type is a proof that the instruction set is
/// there, which is why the methods are safe.
pub(crate) trait Lanes: Bytes {
    /// Whether there are registers for several rows' sums at once. Without, code for many is only larger.
    const MANY_REGISTERS: bool = true;

    /// Runs a kernel as a function of its own, compiled for the instruction set.
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output;

    /// [`Lanes::vectorize`] for what is seldom run: it does not get in the way of the code around it.
    #[cold]
    #[inline(never)]
    fn vectorize_seldom<K: Kernel>(self, kernel: K) -> K::Output {
        self.vectorize(kernel)
    }

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

    /// Asks for a cache line that will be read soon to be brought near, but not into the innermost cache, from which it
    /// would drive what is in use; any address will do.
    fn prefetch(self, address: *const u8);

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

/// What calls kernels by [`Lanes::vectorize`] on the instruction set chosen at run time. It is compiled for the
/// build's instruction set itself, so it has no vectors of its own.
pub(crate) trait Driver {
    fn run<L: Lanes>(self, lanes: L);
}

/// Runs a kernel compiled for `isa`, or the portable one where this machine has not got it.
#[inline]
pub(crate) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match Level::of(isa) {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(proof) => proof.vectorize(kernel),
        // Only attention has a use for VNNI here.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni(proof) => proof.without_vnni().vectorize(kernel),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(proof) => proof.vectorize(kernel),
        Level::Portable => portable::Portable.vectorize(kernel),
    }
}

/// Runs a driver for `isa`, or the portable one where this machine has not got it.
#[inline]
pub(crate) fn drive<D: Driver>(isa: Isa, driver: D) {
    match Level::of(isa) {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(proof) => driver.run(proof),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni(proof) => driver.run(proof),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(proof) => driver.run(proof),
        Level::Portable => driver.run(portable::Portable),
    }
}

/// What sixteen lanes are made of.
enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512(x86::Avx512<false>),
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(x86::Avx512<true>),
    #[cfg(target_arch = "x86_64")]
    Avx2(x86::Avx2),
    Portable,
}

impl Level {
    #[inline]
    fn of(isa: Isa) -> Self {
        #[cfg(target_arch = "x86_64")]
        if isa.is_available() {
            match isa {
                Isa::Avx512 => {
                    // SAFETY: the instruction set is there.
                    let proof = unsafe { x86::Avx512::new() };
                    return Level::Avx512(proof);
                }
                Isa::Avx512Vnni => {
                    // SAFETY: the instruction set is there, VNNI included.
                    let proof = unsafe { x86::Avx512::new() };
                    return Level::Avx512Vnni(proof);
                }
                Isa::Avx2 | Isa::AvxVnni => {
                    // SAFETY: the instruction set is there.
                    let proof = unsafe { x86::Avx2::new() };
                    return Level::Avx2(proof);
                }
                Isa::Scalar | Isa::Neon => {}
            }
        }
        let _ = isa;
        Level::Portable
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

/// Defines a kernel that replaces every number of `x` by an expression of it, of its neighbours in other slices of the
/// same length, and of constants.
///
/// This is a macro, and its loop counts, because closures and iterators are not always inlined into functions that have
/// more instructions than they.
macro_rules! elementwise {
    ($vis:vis $name:ident { x: $x:ident $(, slice $y:ident)* $(, number $n:ident)* } |$l:ident| $body:expr) => {
        $vis struct $name<'a> {
            $vis $x: &'a mut [f32],
            $($vis $y: &'a [f32],)*
            $($vis $n: f32,)*
        }

        impl $crate::ops::lanes::Kernel for $name<'_> {
            type Output = ();

            #[inline(always)]
            fn run<L: $crate::ops::lanes::Lanes>(self, $l: L) {
                use $crate::ops::lanes::{LANES, load_part, store_part};
                $(assert_eq!(self.$x.len(), self.$y.len(), "slices of one length");)*
                $(let $n = $l.splat(self.$n);)*
                let (whole, rest) = self.$x.as_chunks_mut::<LANES>();
                $(let $y = self.$y.as_chunks::<LANES>();)*
                for i in 0..whole.len() {
                    let $x = $l.load(&whole[i]);
                    $(let $y = $l.load(&$y.0[i]);)*
                    let result = $body;
                    $l.store(result, &mut whole[i]);
                }
                if !rest.is_empty() {
                    let $x = load_part($l, rest, 0.0);
                    $(let $y = load_part($l, $y.1, 0.0);)*
                    let result = $body;
                    store_part($l, result, rest);
                }
            }
        }
    };
}
pub(crate) use elementwise;
