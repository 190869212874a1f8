use super::*;
use crate::{Isa, ThreadPool};
use proptest::prelude::*;

fn numbers(n: usize, mut state: u32) -> Vec<f32> {
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 22) as f32 - 2.0
    };
    std::iter::repeat_with(next).take(n).collect()
}

fn definition(x: &[f32], weight: &[f32], eps: f32) -> Vec<f64> {
    let row = |x: &[f32]| {
        let sum: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let factor = 1.0 / (sum / x.len() as f64 + f64::from(eps)).sqrt();
        let scale = |(x, w): (&f32, &f32)| f64::from(*x) * factor * f64::from(*w);
        x.iter().zip(weight).map(scale).collect::<Vec<_>>()
    };
    x.chunks_exact(weight.len()).flat_map(row).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Within 1e-6 of the largest result, which is at most a few.
    #[test]
    fn every_way_is_the_same_norm(rows in 0..6_usize, cols in 1..300_usize, seed: u32) {
        check(rows, cols, seed);
    }
}

#[test]
fn many_rows_are_shared() {
    check(70, 1000, 4);
}

fn check(rows: usize, cols: usize, seed: u32) {
    let (x, weight, delta) = (
        numbers(rows * cols, seed),
        numbers(cols, seed ^ 1),
        numbers(rows * cols, seed ^ 2),
    );
    let sums: Vec<f32> = x.iter().zip(&delta).map(|(a, b)| a + b).collect();
    let mut first: Option<(Vec<f32>, Vec<f32>)> = None;
    for isa in Isa::available() {
        for threads in [1, 3] {
            let pool = ThreadPool::new(threads);
            let ctx = Context { isa, pool: &pool };
            let mut out = vec![f32::NAN; x.len()];
            rms_norm(ctx, &x, &weight, 1e-5, &mut out).unwrap();
            for (out, expected) in out.iter().zip(definition(&x, &weight, 1e-5)) {
                assert!(
                    (f64::from(*out) - expected).abs() < 1e-5,
                    "{out} for {expected}"
                );
            }
            let mut in_place = x.clone();
            rms_norm_in_place(ctx, &mut in_place, &weight, 1e-5).unwrap();
            assert_eq!(in_place, out);
            let (mut residual, mut fused) = (x.clone(), vec![f32::NAN; x.len()]);
            add_rms_norm(ctx, &mut residual, &delta, &weight, 1e-5, &mut fused).unwrap();
            assert_eq!(residual, sums);
            let mut apart = vec![f32::NAN; x.len()];
            rms_norm(ctx, &sums, &weight, 1e-5, &mut apart).unwrap();
            assert_eq!(fused, apart);
            let all = (out, fused);
            assert_eq!(
                *first.get_or_insert_with(|| all.clone()),
                all,
                "{isa}, {threads} threads"
            );
        }
    }
}

#[test]
#[should_panic(expected = "whole rows")]
fn part_of_a_row_is_refused() {
    let pool = ThreadPool::new(1);
    let ctx = Context {
        isa: Isa::Scalar,
        pool: &pool,
    };
    let _ = rms_norm_in_place(ctx, &mut [0.0; 5], &[1.0; 2], 0.0);
}

/// Within 2e-5 of the definition in f64, the same bits everywhere.
#[test]
fn layer_norm_is_its_definition() {
    for (rows, cols) in [(1, 1), (3, 37), (5, 64), (70, 300)] {
        let (x, weight, bias) = (numbers(rows * cols, 3), numbers(cols, 4), numbers(cols, 5));
        let mut first: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            for threads in [1, 3] {
                let pool = ThreadPool::new(threads);
                let ctx = Context { isa, pool: &pool };
                let mut out = vec![f32::NAN; x.len()];
                layer_norm(ctx, &x, &weight, Some(&bias), 1e-5, &mut out).unwrap();
                for (x, out) in x.chunks_exact(cols).zip(out.chunks_exact(cols)) {
                    let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / cols as f64;
                    let square = |&x: &f32| (f64::from(x) - mean).powi(2);
                    let variance = x.iter().map(square).sum::<f64>() / cols as f64;
                    for i in 0..cols {
                        let normal = (f64::from(x[i]) - mean) / (variance + 1e-5).sqrt();
                        let expected = normal * f64::from(weight[i]) + f64::from(bias[i]);
                        assert!(
                            (f64::from(out[i]) - expected).abs() < 2e-5,
                            "{rows} {cols} {isa}"
                        );
                    }
                }
                let first = first.get_or_insert_with(|| out.clone());
                assert_eq!(*first, out, "{isa}");
            }
        }
    }
}
