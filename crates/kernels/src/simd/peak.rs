//! The most that an instruction set can do, for comparison.

use std::hint::black_box;

use super::{LANES, Simd};

/// Independent sums: more than latency times throughput of any machine, and few enough to stay in
/// registers.
const CHAINS: usize = 6;

/// Makes `rounds * CHAINS` vector operations of [`Simd::dot`]; returns the multiplications and
/// additions.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
pub(super) unsafe fn dots<S: Simd>(rounds: u64) -> u64 {
    let (bytes, x) = (black_box([1u8; 64]), black_box([1i8; 4]));
    // SAFETY: the caller's promise; 64 and 4 bytes can be read.
    unsafe {
        let codes = S::load_b(bytes.as_ptr());
        let mut sums = [[S::splat_i(0); CHAINS]; 2];
        for _ in 0..rounds {
            for sums in &mut sums {
                for sum in sums {
                    *sum = S::dot(*sum, codes, x.as_ptr());
                }
            }
        }
        for sums in &sums {
            for sum in sums {
                keep::<S>(S::bits_to_f(*sum));
            }
        }
    }
    rounds * 2 * CHAINS as u64 * 2 * 4 * LANES as u64
}

/// The same of [`Simd::mul_add`].
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
pub(super) unsafe fn multiply_adds<S: Simd>(rounds: u64) -> u64 {
    let (a, b) = black_box((0.999f32, 0.001f32));
    // SAFETY: the caller's promise.
    unsafe {
        let (a, b) = (S::splat(a), S::splat(b));
        let mut sums = [[b; CHAINS]; 2];
        for _ in 0..rounds {
            for sums in &mut sums {
                for sum in sums {
                    *sum = S::mul_add(*sum, a, b);
                }
            }
        }
        for sums in &sums {
            for sum in sums {
                keep::<S>(*sum);
            }
        }
    }
    rounds * 2 * CHAINS as u64 * 2 * LANES as u64
}

/// Keeps the compiler from leaving a value out.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
unsafe fn keep<S: Simd>(value: S::F) {
    let mut out = [0f32; LANES];
    // SAFETY: there is room for 16 values.
    unsafe { S::store(out.as_mut_ptr(), value) };
    black_box(out);
}
