use super::*;
use crate::{Isa, ThreadPool};
use proptest::prelude::*;

fn params(dims: usize, head_dim: usize, layout: RopeLayout, scaling: RopeScaling) -> RopeParams {
    RopeParams {
        base: 10_000.0,
        dims,
        head_dim,
        layout,
        scaling,
    }
}

fn frequencies(params: &RopeParams) -> Vec<f64> {
    RopeTable::new(params).unwrap().frequencies
}

fn assert_close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (found / expected - 1.0).abs() < 1e-9,
            "{found} for {expected}"
        );
    }
}

fn numbers(n: usize, mut state: u32) -> Vec<f32> {
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(n).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn every_instruction_set_turns_by_the_angle(
        (half, beyond, heads, rows) in (0..70_usize, 0..20_usize, 1..4_usize, 0..5_usize),
        interleaved: bool,
        start in 0..200_000_usize,
    ) {
        check(2 * half, 2 * half + beyond, heads, rows, interleaved, start);
    }
}

#[test]
fn many_rows_are_shared() {
    check(64, 64, 8, 100, true, 7);
    check(64, 64, 8, 100, false, 7);
}

fn check(dims: usize, head_dim: usize, heads: usize, rows: usize, interleaved: bool, start: usize) {
    let layout = if interleaved {
        RopeLayout::Interleaved
    } else {
        RopeLayout::Halves
    };
    let head_dim = head_dim.max(1);
    let table = RopeTable::new(&params(dims, head_dim, layout, RopeScaling::None)).unwrap();
    let positions: Vec<usize> = (start..start + rows).collect();
    let mut cos_sin = vec![f32::NAN; rows * table.row_len()];
    table.fill(&positions, &mut cos_sin);
    let before = numbers(rows * heads * head_dim, 9);
    let mut expected: Vec<f64> = before.iter().map(|&x| f64::from(x)).collect();
    for (i, head) in expected.chunks_exact_mut(head_dim).enumerate() {
        for pair in 0..dims / 2 {
            let angle =
                positions[i / heads] as f64 * 10_000_f64.powf(-2.0 * pair as f64 / dims as f64);
            let (a, b) = match layout {
                RopeLayout::Interleaved => (2 * pair, 2 * pair + 1),
                RopeLayout::Halves => (pair, pair + dims / 2),
            };
            let (x, y) = (head[a], head[b]);
            head[a] = x * angle.cos() - y * angle.sin();
            head[b] = x * angle.sin() + y * angle.cos();
        }
    }
    let mut first: Option<Vec<f32>> = None;
    for isa in Isa::available() {
        for threads in [1, 2] {
            let pool = ThreadPool::new(threads);
            let mut x = before.clone();
            apply(
                Context { isa, pool: &pool },
                &table,
                &cos_sin,
                heads,
                &mut x,
            )
            .unwrap();
            for (x, expected) in x.iter().zip(&expected) {
                assert!(
                    (f64::from(*x) - expected).abs() < 3e-7,
                    "{isa}: {x} for {expected}"
                );
            }
            assert_eq!(*first.get_or_insert_with(|| x.clone()), x, "{isa}");
        }
    }
}

#[test]
fn linear_scaling_divides() {
    let plain = frequencies(&params(8, 8, RopeLayout::Halves, RopeScaling::None));
    assert_close(&plain, &[1.0, 0.1, 0.01, 0.001]);
    let linear = RopeScaling::Linear { factor: 4.0 };
    let scaled = frequencies(&params(8, 8, RopeLayout::Halves, linear));
    assert_close(&scaled, &[0.25, 0.025, 0.0025, 0.000_25]);
}

#[test]
fn llama_3_scaling_blends() {
    // Turns in 8192 tokens: 1303.8 (kept), 130.4 (kept), 13.04 (kept), 1.3038: between 1 and 4, 10.13 % kept.
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 8192,
    };
    let scaled = frequencies(&params(8, 8, RopeLayout::Halves, scaling));
    let kept = (8192.0 * 0.001 / TAU - 1.0) / 3.0;
    assert_close(
        &scaled,
        &[1.0, 0.1, 0.01, 0.001 * (kept + (1.0 - kept) / 8.0)],
    );
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 512,
    };
    let scaled = frequencies(&params(8, 8, RopeLayout::Halves, scaling));
    assert!(
        (scaled[3] - 0.001 / 8.0).abs() < 1e-12,
        "few turns: divided"
    );
}

#[test]
fn yarn_ramps() {
    let yarn = |attention_factor| RopeScaling::Yarn {
        factor: 4.0,
        original_context: 4096,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor,
    };
    let params =
        |attention_factor| self::params(64, 64, RopeLayout::Halves, yarn(attention_factor));
    let table = RopeTable::new(&params(None)).unwrap();
    // Pairs with 32 and with 1 turns: 64 ln(4096 / (32 τ)) / (2 ln 10000) = 10.47, and 22.51: so from 10 to 23.
    for (i, f) in table.frequencies.iter().enumerate() {
        let plain = 10_000_f64.powf(-2.0 * i as f64 / 64.0);
        let divided = ((i as f64 - 10.0) / 13.0).clamp(0.0, 1.0);
        let expected = plain * (1.0 - divided) + plain / 4.0 * divided;
        assert!((f / expected - 1.0).abs() < 1e-12, "pair {i}");
    }
    assert!((table.magnitude - (0.1 * 4_f64.ln() + 1.0)).abs() < 1e-12);
    assert!((RopeTable::new(&params(Some(1.25))).unwrap().magnitude - 1.25).abs() < 1e-12);
}

#[test]
fn factors_divide_and_long_rope_chooses() {
    let factors = vec![1.0, 2.0, 4.0, 8.0];
    let scaling = RopeScaling::Factors {
        factors: factors.clone(),
        attention_factor: 1.0,
    };
    let scaled = frequencies(&params(8, 8, RopeLayout::Halves, scaling));
    assert_close(&scaled, &[1.0, 0.05, 0.0025, 0.000_125]);
    let long_rope = |context| RopeScaling::LongRope {
        short_factors: vec![1.0; 4],
        long_factors: factors.clone(),
        original_context: 4096,
        context,
        attention_factor: None,
    };
    let short = RopeTable::new(&params(8, 8, RopeLayout::Halves, long_rope(4096))).unwrap();
    assert_close(&short.frequencies, &[1.0, 0.1, 0.01, 0.001]);
    assert!((short.magnitude - 1.0).abs() < 1e-12);
    let long = RopeTable::new(&params(8, 8, RopeLayout::Halves, long_rope(131_072))).unwrap();
    assert_close(&long.frequencies, &scaled);
    // sqrt(1 + ln 32 / ln 4096) = sqrt(1 + 5 / 12)
    assert!((long.magnitude - (17.0_f64 / 12.0).sqrt()).abs() < 1e-12);
}

#[test]
fn magnitude_scales_cosines_and_sines() {
    let scaling = RopeScaling::Factors {
        factors: vec![1.0],
        attention_factor: 2.0,
    };
    let table = RopeTable::new(&params(2, 2, RopeLayout::Interleaved, scaling)).unwrap();
    let mut row = [0.0; 4];
    table.fill(&[0], &mut row);
    assert_eq!(row, [2.0, 2.0, -0.0, 0.0]);
}

#[test]
fn bad_parameters_are_refused() {
    let halves = RopeLayout::Halves;
    let refused = |params: RopeParams| RopeTable::new(&params).unwrap_err();
    assert_eq!(
        refused(params(7, 8, halves, RopeScaling::None)),
        RopeError::Dims {
            dims: 7,
            head_dim: 8
        }
    );
    assert_eq!(
        refused(params(10, 8, halves, RopeScaling::None)),
        RopeError::Dims {
            dims: 10,
            head_dim: 8
        }
    );
    let mut zero_base = params(8, 8, halves, RopeScaling::None);
    zero_base.base = 0.0;
    assert_eq!(
        refused(zero_base),
        RopeError::NotPositive {
            name: "base",
            value: 0.0
        }
    );
    for factor in [0.0, -1.0, f64::INFINITY, f64::NAN] {
        let error = refused(params(8, 8, halves, RopeScaling::Linear { factor }));
        assert!(error.to_string().contains("factor"), "{error}");
    }
    let few = RopeScaling::Factors {
        factors: vec![1.0; 3],
        attention_factor: 1.0,
    };
    assert_eq!(
        refused(params(8, 8, halves, few)),
        RopeError::FactorCount {
            found: 3,
            expected: 4
        }
    );
    let zero = RopeScaling::Factors {
        factors: vec![0.0; 4],
        attention_factor: 1.0,
    };
    assert!(matches!(
        refused(params(8, 8, halves, zero)),
        RopeError::NotPositive { .. }
    ));
    let crossed = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 4.0,
        high_freq_factor: 1.0,
        original_context: 8192,
    };
    assert_eq!(
        refused(params(8, 8, halves, crossed)),
        RopeError::Bounds {
            low: 4.0,
            high: 1.0
        }
    );
}
