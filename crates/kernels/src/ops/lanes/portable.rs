//! Sixteen lanes in plain Rust: the reference, and what other architectures' compilers vectorize.

use super::{Kernel, LANES, Lanes};
use crate::format::{bf16_to_f32, f16_to_f32, f32_to_f16};
use std::array::from_fn;

/// Portable code; no instruction set to prove.
#[derive(Clone, Copy)]
pub(super) struct Portable;

type V = [f32; LANES];

#[inline(always)]
fn half_at(bytes: &[u8; 2 * LANES], lane: usize) -> u16 {
    u16::from_le_bytes([bytes[2 * lane], bytes[2 * lane + 1]])
}

#[inline(always)]
fn reduce(mut v: V, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            v[lane] = f(v[lane], v[lane + width]);
        }
        width /= 2;
    }
    v[0]
}

impl Lanes for Portable {
    // Where a fused multiply-add is a call, the compiler has no vectors to make of this.
    const MANY_REGISTERS: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> V {
        *from
    }

    #[inline(always)]
    fn store(self, v: V, to: &mut [f32; LANES]) {
        *to = v;
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 2 * LANES]) -> V {
        from_fn(|i| f16_to_f32(half_at(from, i)))
    }

    #[inline(always)]
    fn store_f16(self, v: V, to: &mut [u8; 2 * LANES]) {
        for (bytes, x) in to.as_chunks_mut::<2>().0.iter_mut().zip(v) {
            *bytes = f32_to_f16(x).to_le_bytes();
        }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 2 * LANES]) -> V {
        from_fn(|i| bf16_to_f32(half_at(from, i)))
    }

    #[inline(always)]
    fn prefetch(self, _: *const u8) {}

    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        from_fn(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn fnma(self, a: V, b: V, c: V) -> V {
        from_fn(|i| (-a[i]).mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn select_lt(self, a: V, b: V, x: V, y: V) -> V {
        from_fn(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }

    #[inline(always)]
    fn greater(self, a: V, b: V) -> u16 {
        (0..LANES).fold(0, |mask, i| mask | (u16::from(a[i] > b[i]) << i))
    }

    #[inline(always)]
    fn shift_to_exponent(self, a: V) -> V {
        from_fn(|i| f32::from_bits(a[i].to_bits() << 23))
    }

    #[inline(always)]
    fn abs(self, a: V) -> V {
        from_fn(|i| a[i].abs())
    }

    #[inline(always)]
    fn with_sign(self, a: V, b: V) -> V {
        from_fn(|i| a[i].copysign(b[i]))
    }

    #[inline(always)]
    fn swap_pairs(self, a: V) -> V {
        from_fn(|i| a[i ^ 1])
    }

    #[inline(always)]
    fn reduce_add(self, a: V) -> f32 {
        reduce(a, |x, y| x + y)
    }

    #[inline(always)]
    fn reduce_max(self, a: V) -> f32 {
        reduce(a, |x, y| if x > y { x } else { y })
    }
}
