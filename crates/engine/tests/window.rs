//! Blocks behind a sliding window, on a fake decoder that sees what it reads there: see `support`.

mod support;

use neap_engine::{AdmissionError, Engine, EngineConfig, FinishReason};
use proptest::prelude::*;
use support::{
    BLOCK_BYTES, CONTEXT, FakeDecoder, HEAD_BYTES, Results, engine_of, expected, give_blocks,
    give_bytes, kv_bytes, request, run,
};

/// Tokens that the layers with a window see.
const WINDOW: usize = 10;

fn engine(blocks: usize) -> Engine<FakeDecoder> {
    let config = EngineConfig {
        batch_tokens: 16,
        max_running: 8,
        ..EngineConfig::default()
    };
    engine_of(FakeDecoder::with_window(WINDOW), blocks, config)
}

fn prompt(seed: u32, tokens: u32) -> Vec<u32> {
    (0..tokens)
        .map(|i| (i * i + seed * 13 + i / 7) % 97)
        .collect()
}

#[test]
fn a_long_sequence_runs_in_a_fraction_of_its_blocks() {
    // 58 blocks, of which 38 may be needed whole at a time.
    let mut engine = engine(45);
    let prompt = prompt(1, 200);
    let id = engine.submit(request(&prompt, 33)).unwrap();
    let results = run(&mut engine);
    assert_eq!(results.tokens[&id], expected(&prompt, 33));
    assert_eq!(results.finished[&id].0, FinishReason::Length);
    assert_eq!(results.finished[&id].1.recomputed_tokens, 0);
    assert!(engine.cache_stats().trimmed_blocks > 10);
    // Continued where it ended, it is found whole.
    let again = [&prompt[..], &results.tokens[&id]].concat();
    let next = engine.submit(request(&again[..232], 2)).unwrap();
    let results = run(&mut engine);
    assert_eq!(results.tokens[&next], expected(&again[..232], 2));
    assert_eq!(results.finished[&next].1.cached_tokens, 231);
    // One that branches off where it was trimmed is computed anew, and right.
    let branch = engine.submit(request(&again[..60], 20)).unwrap();
    let results = run(&mut engine);
    assert_eq!(results.tokens[&branch], expected(&again[..60], 20));
    assert_eq!(results.finished[&branch].1.cached_tokens, 0);
}

#[test]
fn nothing_is_trimmed_while_there_is_room() {
    let mut engine = engine(500);
    let prompt = prompt(2, 200);
    engine.submit(request(&prompt, 20)).unwrap();
    run(&mut engine);
    assert_eq!(engine.cache_stats().trimmed_blocks, 0);
    let branch = engine.submit(request(&prompt[..90], 5)).unwrap();
    assert_eq!(run(&mut engine).finished[&branch].1.cached_tokens, 89);
}

#[test]
fn admission_counts_what_is_left_of_trimmed_blocks() {
    let prompt = prompt(3, CONTEXT as u32 - 21);
    // 128 recent tokens stay hot, and a step's: 38 of 60 blocks. The others are an eighth.
    let needed = 38 * BLOCK_BYTES + 22 * HEAD_BYTES;
    let mut engine = engine(500);
    give_bytes(&engine, needed);
    let id = engine.submit(request(&prompt, 21)).unwrap();
    let results = run(&mut engine);
    assert_eq!(results.finished[&id].0, FinishReason::Length);
    engine.clear_cache();
    give_bytes(&engine, needed - 1);
    let refused = engine.submit(request(&prompt, 21)).unwrap_err();
    let AdmissionError::DoesNotFit {
        needed_bytes,
        fitting_tokens,
        ..
    } = refused
    else {
        panic!("{refused}");
    };
    assert_eq!((needed_bytes, fitting_tokens), (needed as u64, 59 * 4));
}

#[test]
fn a_shrink_trims_before_it_preempts() {
    let mut engine = engine(200);
    let prompts: Vec<Vec<u32>> = (0..2).map(|i| prompt(i + 4, 180)).collect();
    let ids: Vec<_> = prompts
        .iter()
        .map(|p| engine.submit(request(p, 40)).unwrap())
        .collect();
    let mut results = Results::default();
    while results.tokens.len() < 2 {
        results.take(engine.step(0));
    }
    assert_eq!(engine.cache_stats().trimmed_blocks, 0);
    let held = kv_bytes(&engine);
    give_blocks(&engine, 75);
    for _ in 0..3 {
        results.take(engine.step(0));
    }
    assert!(engine.budget().excess() == 0 && kv_bytes(&engine) < held * 9 / 10);
    assert!(engine.cache_stats().trimmed_blocks > 5);
    while !engine.is_idle() {
        results.take(engine.step(0));
    }
    assert_eq!(engine.preemptions(), 0);
    for (prompt, id) in prompts.iter().zip(&ids) {
        assert_eq!(results.tokens[id], expected(prompt, 40));
    }
}

#[test]
fn sequences_are_taken_in_as_soon_as_they_fit_trimmed() {
    // 50 blocks each, and what they go on with.
    let mut engine = engine(90);
    let prompts: Vec<Vec<u32>> = (0..2).map(|i| prompt(i + 8, 200)).collect();
    let ids: Vec<_> = prompts
        .iter()
        .map(|p| engine.submit(request(p, 30)).unwrap())
        .collect();
    let mut results = Results::default();
    results.take(engine.step(0));
    assert_eq!(engine.load(), (2, 0));
    while !engine.is_idle() {
        results.take(engine.step(0));
    }
    assert_eq!(engine.preemptions(), 0);
    for (prompt, id) in prompts.iter().zip(&ids) {
        assert_eq!(results.tokens[id], expected(prompt, 30));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() })]

    #[test]
    fn whatever_is_trimmed_the_tokens_are_the_same(
        requests in prop::collection::vec((0_usize..3, 1_usize..200, 1_usize..30), 1..10),
        budgets in prop::collection::vec(60_usize..140, 1..10),
    ) {
        // Prefixes of three conversations, so that requests branch off from each other.
        let mut engine = engine(140);
        let talks: Vec<Vec<u32>> = (0..3).map(|seed| prompt(seed, 200)).collect();
        let mut budgets = budgets.iter().cycle();
        let mut results = Results::default();
        let mut asked = Vec::new();
        for (talk, tokens, new) in requests {
            let prompt = &talks[talk][..tokens];
            give_blocks(&engine, *budgets.next().unwrap());
            if let Ok(id) = engine.submit(request(prompt, new)) {
                asked.push((id, expected(prompt, new)));
            }
            for _ in 0..7 {
                results.take(engine.step(0));
                engine.check_conservation().unwrap();
            }
        }
        for _ in 0..5000 {
            results.take(engine.step(0));
            engine.check_conservation().unwrap();
            if engine.is_idle() {
                break;
            }
        }
        for (id, tokens) in asked {
            prop_assert_eq!(&results.finished[&id].0, &FinishReason::Length);
            prop_assert_eq!(&results.tokens[&id], &tokens);
        }
    }
}
