//! Elementary functions on sixteen lanes. The same operations in the same order on every instruction set, so the same
//! bits; errors are the largest found over all `f32` arguments of the stated range (see the tests).

use super::lanes::Lanes;

/// 1.5 · 2²³ + 127: adding it rounds to an integer and leaves that integer's biased exponent in the low bits.
const ROUND_AND_BIAS: f32 = 12_582_912.0 + 127.0;

/// Coefficients of r, r², … r⁶ in the minimax polynomial of 2^r on [-½, ½] with constant term 1 (relative error
/// 2.6e-9 in exact arithmetic; found by the Remez exchange).
const EXP2: [f32; 6] = [
    0.693_147_24,
    0.240_226_52,
    0.055_503_104,
    0.009_617_693,
    0.001_340_664_3,
    0.000_155_946_76,
];

/// `2^r · 2^n` where `biased` is an integer-valued `n` as [`ROUND_AND_BIAS`] leaves it.
#[inline(always)]
fn exp2_parts<L: Lanes>(l: L, r: L::V, biased: L::V) -> L::V {
    let mut p = l.splat(EXP2[5]);
    for c in EXP2.iter().rev().skip(1) {
        p = l.fma(p, r, l.splat(*c));
    }
    p = l.fma(p, r, l.splat(1.0));
    l.mul(p, l.shift_to_exponent(biased))
}

/// `2^x` for `x <= 127.5`, within 1.5 units in the last place; 0 below -126.5; not a number stays so.
#[inline(always)]
pub(crate) fn exp2<L: Lanes>(l: L, x: L::V) -> L::V {
    let x = l.max(l.splat(-127.0), x);
    let biased = l.add(x, l.splat(ROUND_AND_BIAS));
    let r = l.sub(x, l.sub(biased, l.splat(ROUND_AND_BIAS)));
    exp2_parts(l, r, biased)
}

/// `e^x` within 1.5 units in the last place; 0 below -87.68 (where the result would be subnormal), and never more than
/// 2^127.5 (from 88.37 on, where `f32` would soon overflow); not a number stays so.
#[inline(always)]
pub(crate) fn exp<L: Lanes>(l: L, x: L::V) -> L::V {
    // ln 2 as a sum of a number with trailing zeros, so that n · LN2_HIGH is exact, and a rest.
    const LN2_HIGH: f32 = 0.693_145_75;
    const LN2_LOW: f32 = 1.428_606_8e-6;
    let x = l.min(l.splat(88.37), l.max(l.splat(-87.99), x));
    let biased = l.fma(
        x,
        l.splat(std::f32::consts::LOG2_E),
        l.splat(ROUND_AND_BIAS),
    );
    let n = l.sub(biased, l.splat(ROUND_AND_BIAS));
    let r = l.fnma(n, l.splat(LN2_HIGH), x);
    let r = l.fnma(n, l.splat(LN2_LOW), r);
    // The polynomial is in powers of r / ln 2.
    exp2_parts(l, l.mul(r, l.splat(std::f32::consts::LOG2_E)), biased)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid<L: Lanes>(l: L, x: L::V) -> L::V {
    let one = l.splat(1.0);
    l.div(one, l.add(one, exp(l, l.sub(l.splat(0.0), x))))
}

/// `x · sigmoid(x)`.
#[inline(always)]
pub(crate) fn silu<L: Lanes>(l: L, x: L::V) -> L::V {
    l.div(x, l.add(l.splat(1.0), exp(l, l.sub(l.splat(0.0), x))))
}

/// The hyperbolic tangent, within 3 units in the last place: Cephes' `tanhf` (an odd polynomial below 0.625,
/// `1 - 2 / (e^2|x| + 1)` above).
#[inline(always)]
pub(crate) fn tanh<L: Lanes>(l: L, x: L::V) -> L::V {
    const SMALL: [f32; 5] = [
        -0.333_332_8,
        0.133_314_42,
        -0.053_739_715,
        0.020_639_09,
        -0.005_704_988_7,
    ];
    let size = l.abs(x);
    let one = l.splat(1.0);
    let e = exp(l, l.add(size, size));
    let large = l.sub(one, l.div(l.splat(2.0), l.add(e, one)));
    let square = l.mul(x, x);
    let mut p = l.splat(SMALL[4]);
    for c in SMALL.iter().rev().skip(1) {
        p = l.fma(p, square, l.splat(*c));
    }
    let small = l.fma(l.mul(p, square), x, x);
    l.select_lt(size, l.splat(0.625), small, l.with_sign(large, x))
}

/// GELU by its tanh form (Hendrycks and Gimpel 2016), as most models with "gelu_pytorch_tanh" use it.
#[inline(always)]
pub(crate) fn gelu_tanh<L: Lanes>(l: L, x: L::V) -> L::V {
    // sqrt(2 / π) and 0.044715 of it.
    let inner = l.mul(
        x,
        l.fma(l.mul(x, x), l.splat(0.035_677_407), l.splat(0.797_884_6)),
    );
    let half = l.mul(l.splat(0.5), x);
    l.fma(half, tanh(l, inner), half)
}

/// GELU by the error function, that by Abramowitz and Stegun 7.1.26 (absolute error of erf below 2e-7).
#[inline(always)]
pub(crate) fn gelu_erf<L: Lanes>(l: L, x: L::V) -> L::V {
    const C: [f32; 5] = [
        0.254_829_6,
        -0.284_496_74,
        1.421_413_7,
        -1.453_152,
        1.061_405_4,
    ];
    let one = l.splat(1.0);
    let z = l.mul(l.abs(x), l.splat(std::f32::consts::FRAC_1_SQRT_2));
    let t = l.div(one, l.fma(z, l.splat(0.327_591_1), one));
    let mut p = l.splat(C[4]);
    for c in C.iter().rev().skip(1) {
        p = l.fma(p, t, l.splat(*c));
    }
    let tail = l.mul(l.mul(p, t), exp(l, l.sub(l.splat(0.0), l.mul(z, z))));
    let erf = l.with_sign(l.sub(one, tail), x);
    let half = l.mul(l.splat(0.5), x);
    l.fma(half, erf, half)
}
