use super::*;
use crate::ThreadPool;
use proptest::prelude::*;

elementwise!(Exp { x: x } | l | math::exp(l, x));
elementwise!(Exp2 { x: x } | l | math::exp2(l, x));
elementwise!(Tanh { x: x } | l | math::tanh(l, x));

/// Runs `f` on every instruction set, sees that all give the same bits, and returns them.
fn on_all(x: &[f32], f: impl Fn(Isa, &mut [f32])) -> Vec<f32> {
    let mut expected: Option<Vec<f32>> = None;
    for isa in Isa::available() {
        let mut y = x.to_vec();
        f(isa, &mut y);
        let expected = expected.get_or_insert_with(|| y.clone());
        for (i, (a, b)) in y.iter().zip(expected.iter()).enumerate() {
            let same = a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
            assert!(same, "{isa}: {a:e}, not {b:e} for {:e}", x[i]);
        }
    }
    expected.unwrap_or_default()
}

/// The largest error in units in the last place, among results that are not subnormal.
fn largest_error(x: &[f32], y: &[f32], f: impl Fn(f64) -> f64) -> f64 {
    let error = |(&x, &y): (&f32, &f32)| {
        let exact = f(f64::from(x));
        if exact.abs() < f64::from(f32::MIN_POSITIVE) {
            return 0.0;
        }
        let unit = 2_f64.powi(exact.abs().log2().floor() as i32 - 23);
        (f64::from(y) - exact).abs() / unit
    };
    x.iter().zip(y).map(error).fold(0.0, f64::max)
}

/// Numbers of a range, every `step`th that `f32` has.
fn every(from: f32, to: f32, step: usize) -> Vec<f32> {
    let magnitudes = |to: f32| (0..=to.to_bits()).step_by(step).map(f32::from_bits);
    let negative = magnitudes(-from.min(0.0)).map(|x| -x);
    let all = negative.chain(magnitudes(to.max(0.0)));
    all.filter(|x| (from..=to).contains(x)).collect()
}

const STEP: usize = 3571;

#[test]
fn exponentials_are_exact_to_their_bounds() {
    let x = every(-87.0, 88.3, STEP);
    let y = on_all(&x, |isa, x| dispatch(isa, Exp { x }));
    let error = largest_error(&x, &y, f64::exp);
    assert!(error < 1.5, "{error} units");
    let x = every(-126.4, 127.4, STEP);
    let y = on_all(&x, |isa, x| dispatch(isa, Exp2 { x }));
    let error = largest_error(&x, &y, f64::exp2);
    assert!(error < 1.5, "{error} units");
}

#[test]
fn exponentials_end_well() {
    let x = [
        f32::NEG_INFINITY,
        -1e30,
        -87.99,
        0.0,
        -0.0,
        1e30,
        f32::INFINITY,
        f32::NAN,
    ];
    let y = on_all(&x, |isa, x| dispatch(isa, Exp { x }));
    assert_eq!(y[..5], [0.0, 0.0, 0.0, 1.0, 1.0]);
    assert!(y[5] > 1e38 && y[5].is_finite() && y[6] == y[5] && y[7].is_nan());
    let y = on_all(&x, |isa, x| dispatch(isa, Exp2 { x }));
    assert_eq!(y[..2], [0.0, 0.0]);
    assert_eq!(y[3..5], [1.0, 1.0]);
    assert!(y[7].is_nan());
}

#[test]
fn tanh_is_exact_to_its_bound() {
    let x = every(-50.0, 50.0, STEP);
    let y = on_all(&x, |isa, x| dispatch(isa, Tanh { x }));
    let error = largest_error(&x, &y, f64::tanh);
    assert!(error < 3.0, "{error} units");
    let ends = on_all(&[f32::INFINITY, f32::NEG_INFINITY], |isa, x| {
        dispatch(isa, Tanh { x })
    });
    assert_eq!(ends, [1.0, -1.0]);
}

fn erf(x: f64) -> f64 {
    // The Taylor series, which converges everywhere and is exact enough up to 4; above, 1 - 1.5e-8 is close to it.
    if x.abs() > 4.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

type Op = fn(Context<'_>, &mut [f32]) -> Result<(), WorkerPanic>;
type Exact<'a> = &'a dyn Fn(f64) -> f64;

#[test]
fn activations_are_what_they_are_called() {
    let x = every(-20.0, 20.0, 50_021);
    let gelu_tanh_of = |x: f64| {
        0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
    };
    let cases: [(&str, Op, Exact<'_>); 6] = [
        ("silu", silu, &|x| x / (1.0 + (-x).exp())),
        ("sigmoid", sigmoid, &|x| 1.0 / (1.0 + (-x).exp())),
        ("gelu_tanh", gelu_tanh, &gelu_tanh_of),
        ("gelu_erf", gelu_erf, &|x| {
            0.5 * x * (1.0 + erf(x / 2_f64.sqrt()))
        }),
        ("scale", |ctx, x| scale(ctx, x, 0.7), &|x| {
            x * f64::from(0.7_f32)
        }),
        ("soft_cap", |ctx, x| soft_cap(ctx, x, 5.0), &|x| {
            5.0 * (x / 5.0).tanh()
        }),
    ];
    let pool = ThreadPool::new(3);
    for (name, op, f) in cases {
        let y = on_all(&x, |isa, x| op(Context { isa, pool: &pool }, x).unwrap());
        for (x, y) in x.iter().zip(&y) {
            let expected = f(f64::from(*x));
            let error = (f64::from(*y) - expected).abs();
            assert!(
                error < 1e-6 * expected.abs().max(1.0),
                "{name}({x}) = {y}, not {expected}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn binary_operations(x in prop::collection::vec(-9.0..9.0_f32, 0..200)) {
        let y: Vec<f32> = x.iter().rev().copied().collect();
        let pool = ThreadPool::new(2);
        let pairs = || x.iter().zip(&y);
        let sums = on_all(&x, |isa, x| add(Context { isa, pool: &pool }, x, &y).unwrap());
        prop_assert_eq!(sums, pairs().map(|(x, y)| x + y).collect::<Vec<_>>());
        let products = on_all(&x, |isa, x| mul(Context { isa, pool: &pool }, x, &y).unwrap());
        prop_assert_eq!(products, pairs().map(|(x, y)| x * y).collect::<Vec<_>>());
        let gated = on_all(&x, |isa, x| swiglu(Context { isa, pool: &pool }, x, &y).unwrap());
        for ((x, y), gated) in pairs().zip(gated) {
            let expected = f64::from(*x) / (1.0 + (-f64::from(*x)).exp()) * f64::from(*y);
            let error = (f64::from(gated) - expected).abs();
            prop_assert!(error < 1e-6 * expected.abs().max(1.0));
        }
        for (op, gelu) in [(geglu_tanh as GatedOp, gelu_tanh as Op), (geglu_erf, gelu_erf)] {
            let gated = on_all(&x, |isa, x| op(Context { isa, pool: &pool }, x, &y).unwrap());
            let mut apart = on_all(&x, |isa, x| gelu(Context { isa, pool: &pool }, x).unwrap());
            mul(Context { isa: Isa::Scalar, pool: &pool }, &mut apart, &y).unwrap();
            prop_assert_eq!(gated, apart);
        }
        let mut rows: Vec<f32> = x.iter().chain(&y).copied().collect();
        add_bias(Isa::best(), &mut rows, &y);
        let twice: Vec<f32> = y.iter().map(|y| y + y).collect();
        let expected = pairs().map(|(x, y)| x + y).chain(twice);
        prop_assert_eq!(rows, expected.collect::<Vec<_>>());
    }

    #[test]
    fn reductions(x in prop::collection::vec(-30.0..30.0_f32, 1..3000)) {
        let highest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exact: f64 = x.iter().map(|&x| f64::from(x - highest).exp()).sum();
        let exact_log = f64::from(highest) + exact.ln();
        for isa in Isa::available() {
            prop_assert_eq!(max(isa, &x), highest);
            prop_assert_eq!(argmax(isa, &x), x.iter().position(|&x| x == highest));
            prop_assert!((f64::from(log_sum_exp(isa, &x)) - exact_log).abs() < 1e-5);
        }
        let probabilities = on_all(&x, softmax);
        let total: f64 = probabilities.iter().map(|&p| f64::from(p)).sum();
        prop_assert!((total - 1.0).abs() < 1e-5);
        for (x, p) in x.iter().zip(&probabilities) {
            let expected = f64::from(x - highest).exp() / exact;
            prop_assert!((f64::from(*p) - expected).abs() < 1e-6);
        }
        let logarithms = on_all(&x, log_softmax);
        for (x, log) in x.iter().zip(&logarithms) {
            prop_assert!((f64::from(*log) - (f64::from(*x) - exact_log)).abs() < 2e-5);
        }
    }
}

type GatedOp = fn(Context<'_>, &mut [f32], &[f32]) -> Result<(), WorkerPanic>;

#[test]
fn reductions_pass_over_what_is_no_number() {
    for isa in Isa::available() {
        let mut x = vec![f32::NAN; 100];
        assert_eq!((max(isa, &x), argmax(isa, &x)), (f32::NEG_INFINITY, None));
        x[77] = -3.0;
        x[12] = f32::NEG_INFINITY;
        assert_eq!((max(isa, &x), argmax(isa, &x)), (-3.0, Some(77)));
        assert_eq!(argmax(isa, &[]), None);
        assert_eq!(argmax(isa, &[f32::NEG_INFINITY; 3]), Some(0));
        assert_eq!(log_sum_exp(isa, &[f32::NEG_INFINITY; 3]), f32::NEG_INFINITY);
    }
}

#[test]
fn long_slices_are_shared() {
    let x: Vec<f32> = (0..100_001)
        .map(|i| (i % 1000) as f32 / 100.0 - 5.0)
        .collect();
    let one = ThreadPool::new(1);
    let mut alone = x.clone();
    swiglu(
        Context {
            isa: Isa::Scalar,
            pool: &one,
        },
        &mut alone,
        &x,
    )
    .unwrap();
    let pool = ThreadPool::new(4);
    let shared = on_all(&x, |isa, y| {
        swiglu(Context { isa, pool: &pool }, y, &x).unwrap()
    });
    assert_eq!(shared, alone);
}

struct Halves<'a> {
    x: &'a [f32; LANES],
    f16: &'a mut [u8; 2 * LANES],
    bf16: &'a mut [u8; 2 * LANES],
    back: &'a mut [f32; 2 * LANES],
}

impl Kernel for Halves<'_> {
    type Output = ();
    fn run<L: Lanes>(self, l: L) {
        l.vectorize(Inner(self));
    }
}

struct Inner<'a>(Halves<'a>);

impl Kernel for Inner<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Halves { x, f16, bf16, back } = self.0;
        l.store_f16(l.load(x), f16);
        l.store_bf16(l.load(x), bf16);
        let (from_f16, from_bf16) = back.split_at_mut(LANES);
        l.store(l.load_f16(f16), from_f16.first_chunk_mut().unwrap());
        l.store(l.load_bf16(bf16), from_bf16.first_chunk_mut().unwrap());
    }
}

#[test]
fn sixteen_bit_numbers_are_the_nearest() {
    use crate::format::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
    // Every upper half of a number, with lower halves around the ties, and not-a-numbers.
    let lower = [0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF];
    let all = (0..=0xFFFF_u32).flat_map(|upper| lower.map(|lower| upper << 16 | lower));
    let all: Vec<f32> = all.map(f32::from_bits).collect();
    for isa in Isa::available() {
        for x in all.as_chunks::<LANES>().0 {
            let (mut f16, mut bf16) = ([0; 2 * LANES], [0; 2 * LANES]);
            let mut back = [0.0; 2 * LANES];
            dispatch(
                isa,
                Halves {
                    x,
                    f16: &mut f16,
                    bf16: &mut bf16,
                    back: &mut back,
                },
            );
            for i in 0..LANES {
                let at = |bytes: &[u8]| u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]);
                assert_eq!(at(&bf16), f32_to_bf16(x[i]), "{isa}: {:x}", x[i].to_bits());
                assert_eq!(
                    back[LANES + i].to_bits(),
                    bf16_to_f32(at(&bf16)).to_bits(),
                    "{isa}"
                );
                assert_eq!(at(&f16), f32_to_f16(x[i]), "{isa}: {:x}", x[i].to_bits());
                assert_eq!(back[i].to_bits(), f16_to_f32(at(&f16)).to_bits(), "{isa}");
            }
        }
    }
}
