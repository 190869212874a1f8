use super::*;
use proptest::prelude::*;

fn sampler(change: impl FnOnce(&mut SamplingParams)) -> Sampler {
    let mut params = SamplingParams {
        temperature: 1.0,
        ..SamplingParams::default()
    };
    change(&mut params);
    params.validate(1 << 20).expect("valid parameters");
    Sampler::new(params)
}

/// How often each token is drawn in `n` draws.
fn histogram(sampler: &mut Sampler, logits: &[f32], n: usize) -> Vec<usize> {
    let mut counts = vec![0; logits.len()];
    for _ in 0..n {
        let mut copy = logits.to_vec();
        counts[sampler.sample(&mut copy, &[]) as usize] += 1;
    }
    counts
}

#[test]
fn greedy_takes_the_first_of_equals_and_skips_nan() {
    let mut greedy = Sampler::new(SamplingParams::default());
    assert_eq!(greedy.sample(&mut [f32::NAN, 1.0, 3.0, 3.0], &[]), 2);
    assert_eq!(greedy.sample(&mut [f32::NAN, f32::NAN], &[]), 0);
}

#[test]
fn draws_follow_the_distribution() {
    let probabilities = [0.5_f32, 0.3, 0.15, 0.05];
    let logits: Vec<f32> = probabilities.iter().map(|p| p.ln()).collect();
    let n = 40_000;
    let counts = histogram(&mut sampler(|p| p.seed = 7), &logits, n);
    for (&count, &p) in counts.iter().zip(&probabilities) {
        let expected = f64::from(p) * n as f64;
        // Six standard deviations: a false alarm is out of the question with a fixed seed.
        let bound = 6.0 * (expected * (1.0 - f64::from(p))).sqrt();
        assert!((count as f64 - expected).abs() < bound, "{counts:?}");
    }
}

#[test]
fn temperature_sharpens() {
    let logits = [1.0, 0.0];
    let sharp = histogram(&mut sampler(|p| p.temperature = 0.1), &logits, 2000);
    assert!(sharp[0] > 1990, "{sharp:?}");
}

#[test]
fn top_k_top_p_and_min_p_cut_the_tail() {
    let logits: Vec<f32> = [0.5_f32, 0.3, 0.15, 0.05].iter().map(|p| p.ln()).collect();
    let support = |s: &mut Sampler| -> Vec<bool> {
        histogram(s, &logits, 3000).iter().map(|&c| c > 0).collect()
    };
    assert_eq!(
        support(&mut sampler(|p| p.top_k = 2)),
        [true, true, false, false]
    );
    assert_eq!(
        support(&mut sampler(|p| p.top_p = 0.9)),
        [true, true, true, false]
    );
    assert_eq!(
        support(&mut sampler(|p| p.top_p = 0.4)),
        [true, false, false, false]
    );
    assert_eq!(
        support(&mut sampler(|p| p.min_p = 0.4)),
        [true, true, false, false]
    );
    assert_eq!(support(&mut sampler(|_| ())), [true; 4]);
}

#[test]
fn top_p_over_a_large_vocabulary_sorts_only_what_it_needs() {
    let mut logits = vec![0.0; 150_000];
    logits[77_777] = 20.0;
    let counts = histogram(&mut sampler(|p| p.top_p = 0.5), &logits, 20);
    assert_eq!(counts[77_777], 20);
}

#[test]
fn penalties_push_down_what_was_seen() {
    let mut s = sampler(|p| {
        p.temperature = 0.0;
        p.repetition_penalty = 2.0;
        p.penalty_window_tokens = 2;
    });
    assert_eq!(s.sample(&mut [4.0, 3.0], &[0]), 1);
    assert_eq!(
        s.sample(&mut [-1.0, -1.5], &[0, 1, 1]),
        0,
        "token 0 left the window"
    );
    let mut s = sampler(|p| {
        p.temperature = 0.0;
        p.frequency_penalty = 0.6;
    });
    let picks: Vec<u32> = (0..3).map(|_| s.sample(&mut [2.0, 1.0], &[])).collect();
    assert_eq!(picks, [0, 0, 1]);
    let mut s = sampler(|p| {
        p.temperature = 0.0;
        p.presence_penalty = 1.5;
    });
    let picks: Vec<u32> = (0..3).map(|_| s.sample(&mut [2.0, 1.0], &[])).collect();
    assert_eq!(picks, [0, 1, 0]);
}

#[test]
fn bias_bans_and_forces() {
    let mut s = sampler(|p| p.logit_bias = vec![(0, f32::NEG_INFINITY), (2, 100.0)]);
    assert_eq!(histogram(&mut s, &[9.0, 1.0, 0.0], 100), [0, 0, 100]);
}

#[test]
fn equal_seeds_give_equal_draws_and_others_do_not() {
    let logits = vec![0.0; 1000];
    let draw = |seed| {
        let mut s = sampler(|p| p.seed = seed);
        (0..20)
            .map(|_| s.sample(&mut logits.clone(), &[]))
            .collect::<Vec<_>>()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}

#[test]
fn refuses_parameters_out_of_range() {
    let bad = |change: fn(&mut SamplingParams)| {
        let mut params = SamplingParams::default();
        change(&mut params);
        params.validate(10).unwrap_err().to_string()
    };
    assert!(bad(|p| p.temperature = f32::NAN).contains("temperature"));
    assert!(bad(|p| p.top_p = 0.0).contains("top_p"));
    assert!(bad(|p| p.min_p = 1.5).contains("min_p"));
    assert!(bad(|p| p.repetition_penalty = 0.0).contains("repetition_penalty"));
    assert!(bad(|p| p.logit_bias = vec![(10, 0.0)]).contains("logit_bias"));
    assert!(bad(|p| p.logit_bias = vec![(1, f32::NAN)]).contains("logit_bias"));
}

#[test]
fn logprobs_sum_to_one_and_name_the_chosen_token_first() {
    let found = logprobs(&[0.0, 2.0, 1.0], 0, 3);
    assert_eq!(found.iter().map(|t| t.id).collect::<Vec<_>>(), [0, 1, 2, 0]);
    let total: f32 = found[1..].iter().map(|t| t.logprob.exp()).sum();
    assert!((total - 1.0).abs() < 1e-5);
}

proptest! {
    #[test]
    fn never_draws_outside_top_k(
        logits in proptest::collection::vec(-10.0_f32..10.0, 1..200),
        k in 1_usize..10,
        top_p in 0.1_f32..1.0,
        seed in any::<u64>(),
    ) {
        let mut s = sampler(|p| { p.top_k = k; p.top_p = top_p; p.seed = seed; });
        let id = s.sample(&mut logits.clone(), &[]) as usize;
        let larger = logits.iter().filter(|&&l| l > logits[id]).count();
        prop_assert!(larger < k);
    }
}
