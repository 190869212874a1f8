//! The engine on a fake decoder that sees what it reads: see `support`.

mod support;

use std::sync::Arc;

use neap_engine::{AdmissionError, Engine, EngineConfig, Event, FinishReason, Request, RequestId};
use neap_memory::cache::{CacheOptions, KvCache};
use neap_memory::disk::{Directory, DiskOptions, DiskStore};
use neap_memory::{Budget, ChargeKind, Fingerprint, KvPool};
use proptest::prelude::*;
use support::{
    BLOCK_BYTES, BLOCK_TOKENS, CONTEXT, FakeDecoder, PIECE_BYTES, Results, engine_of,
    engine_within, expected, give_blocks, kv_bytes, request, run,
};

fn engine(blocks: usize, config: EngineConfig) -> Engine<FakeDecoder> {
    engine_of(FakeDecoder::new(), blocks, config)
}

/// An engine with `pieces` of weights and room for so many blocks beside them.
fn engine_with_weights(pieces: u64, blocks: usize) -> Engine<FakeDecoder> {
    let budget = Budget::new(1 << 30);
    let decoder = FakeDecoder::with_weights(&budget, pieces);
    let config = config(16, 8);
    engine_within(
        &budget,
        decoder,
        blocks,
        CacheOptions::new(config.fingerprint),
        config,
    )
}

fn config(batch_tokens: usize, max_running: usize) -> EngineConfig {
    EngineConfig {
        batch_tokens,
        max_running,
        ..EngineConfig::default()
    }
}

#[test]
fn many_sequences_together_give_what_each_gives_alone() {
    let mut engine = engine(1000, config(16, 8));
    let prompts: Vec<Vec<u32>> = (1..12)
        .map(|i| (0..i * 3).map(|t| (t * i) as u32 % 97).collect())
        .collect();
    let ids: Vec<RequestId> = prompts
        .iter()
        .map(|p| engine.submit(request(p, 20)).unwrap())
        .collect();
    let results = run(&mut engine);
    for (prompt, id) in prompts.iter().zip(&ids) {
        assert_eq!(results.tokens[id], expected(prompt, 20));
        assert_eq!(results.finished[id].0, FinishReason::Length);
    }
}

#[test]
fn blocks_of_one_that_waits_are_brought_up_while_another_runs() {
    let folder = std::env::temp_dir().join(format!("neap-engine-promote-{}", std::process::id()));
    let storage = Directory::open(&folder).unwrap();
    let disk = DiskStore::open(Arc::new(storage), DiskOptions::with_limit(1 << 30)).unwrap();
    let budget = Budget::new(1 << 30);
    let kv = KvPool::new(&budget, BLOCK_BYTES, BLOCK_TOKENS);
    let options = CacheOptions {
        disk: Some(Arc::new(disk)),
        ..CacheOptions::new(Fingerprint::of_parts(&[]))
    };
    let cache = KvCache::new(&kv, options).unwrap();
    let mut engine = Engine::new(FakeDecoder::new(), None, cache, config(64, 4));
    let known: Vec<u32> = (0..80).collect();
    engine.submit(request(&known, 1)).unwrap();
    run(&mut engine);
    engine.clear_cache();
    let other = engine.submit(request(&[1, 2, 3], 100)).unwrap();
    let mut results = Results::default();
    (0..5).for_each(|_| results.take(engine.step(0)));
    let again = engine.submit(request(&known, 20)).unwrap();
    while !engine.is_idle() {
        results.take(engine.step(0));
    }
    assert_eq!(results.tokens[&again], expected(&known, 20));
    assert_eq!(results.tokens[&other], expected(&[1, 2, 3], 100));
    let stats = engine.cache_stats();
    assert_eq!(
        stats.promoted_blocks, 19,
        "all full blocks before the last token's"
    );
    assert_eq!(results.finished[&again].1.cached_tokens, 79);
    std::fs::remove_dir_all(folder).unwrap();
}

fn weight_bytes(engine: &Engine<FakeDecoder>) -> u64 {
    engine.budget().snapshot().of_kind(ChargeKind::Weights)
}

#[test]
fn weights_give_way_to_a_request_that_has_no_room_beside_them() {
    // Room for 12 tokens, and 100 are wanted.
    let mut engine = engine_with_weights(20, 3);
    let prompt: Vec<u32> = (0..60).collect();
    let id = engine.submit(request(&prompt, 40)).unwrap();
    let results = run(&mut engine);
    assert_eq!(results.tokens[&id], expected(&prompt, 40));
    assert_eq!(results.finished[&id].0, FinishReason::Length);
    assert!(weight_bytes(&engine) < 20 * PIECE_BYTES);
    assert!(
        weight_bytes(&engine) > PIECE_BYTES,
        "no more than was needed"
    );
    // More than all weights together would free is refused as before.
    let huge: Vec<u32> = (0..CONTEXT as u32 - 10).map(|i| i % 97).collect();
    assert!(matches!(
        engine.submit(request(&huge, 9)),
        Err(AdmissionError::DoesNotFit { .. })
    ));
}

#[test]
fn a_shrink_below_the_weights_fails_nothing_and_growth_brings_them_back() {
    let mut engine = engine_with_weights(20, 40);
    let prompts: Vec<Vec<u32>> = (0..4).map(|i| vec![i; 20]).collect();
    let ids: Vec<RequestId> = prompts
        .iter()
        .map(|p| engine.submit(request(p, 30)).unwrap())
        .collect();
    let mut results = Results::default();
    for _ in 0..10 {
        results.take(engine.step(0));
    }
    let roomy = engine.budget().limit();
    engine.budget().set_limit(roomy - 50 * BLOCK_BYTES as u64);
    for _ in 0..3 {
        results.take(engine.step(0));
    }
    assert_eq!(engine.budget().excess(), 0);
    assert!(weight_bytes(&engine) < 20 * PIECE_BYTES);
    let rest = run(&mut engine);
    for (id, tokens) in rest.tokens {
        results.tokens.entry(id).or_default().extend(tokens);
    }
    for (prompt, id) in prompts.iter().zip(&ids) {
        assert_eq!(results.tokens[id], expected(prompt, 30));
    }
    engine.budget().set_limit(2 * roomy);
    for now_ms in 0..60 {
        engine.rest(100 * now_ms);
    }
    assert_eq!(weight_bytes(&engine), 20 * PIECE_BYTES);
}

#[test]
fn a_tight_budget_preempts_and_loses_nothing() {
    let mut engine = engine(12, config(16, 8));
    let prompts: Vec<Vec<u32>> = (0..6).map(|i| vec![i; 5]).collect();
    let ids: Vec<RequestId> = prompts
        .iter()
        .map(|p| engine.submit(request(p, 30)).unwrap())
        .collect();
    let results = run(&mut engine);
    for (prompt, id) in prompts.iter().zip(&ids) {
        assert_eq!(results.tokens[id], expected(prompt, 30));
    }
    let recomputed: usize = results
        .finished
        .values()
        .map(|(_, usage)| usage.recomputed_tokens)
        .sum();
    assert!(recomputed > 0, "the test is meant to preempt");
}

#[test]
fn a_shrinking_budget_fails_nothing() {
    let mut engine = engine(40, config(16, 8));
    let prompts: Vec<Vec<u32>> = (0..4).map(|i| vec![i; 9]).collect();
    let ids: Vec<RequestId> = prompts
        .iter()
        .map(|p| engine.submit(request(p, 25)).unwrap())
        .collect();
    let mut results = Results::default();
    for _ in 0..10 {
        results.take(engine.step(0));
    }
    give_blocks(&engine, 10);
    for _ in 0..2 {
        results.take(engine.step(0));
    }
    assert!(engine.budget().charged() <= engine.budget().limit());
    let rest = run(&mut engine);
    for (prompt, id) in prompts.iter().zip(&ids) {
        let all: Vec<u32> = [&results.tokens, &rest.tokens]
            .iter()
            .filter_map(|t| t.get(id))
            .flatten()
            .copied()
            .collect();
        assert_eq!(all, expected(prompt, 25));
    }
}

#[test]
fn what_can_never_fit_is_refused_with_the_figures() {
    let mut engine = engine(4, EngineConfig::default());
    let refused = engine.submit(request(&[1; 10], 20)).unwrap_err();
    let AdmissionError::DoesNotFit {
        tokens,
        needed_bytes,
        free_bytes,
        fitting_tokens,
        ..
    } = refused
    else {
        panic!("{refused}");
    };
    assert_eq!(
        (tokens, needed_bytes, free_bytes),
        (29, 8 * 65_536, 4 * 65_536)
    );
    assert_eq!(fitting_tokens, 16);
}

#[test]
fn what_pressure_from_outside_leaves_no_room_for_waits_until_it_is_over() {
    let mut engine = engine(10, EngineConfig::default());
    let (prompt, mut results) = ([1; 10], Results::default());
    let first = engine.submit(request(&prompt, 20)).unwrap();
    (0..3).for_each(|_| results.take(engine.step(0)));
    let allowed = engine.budget().limit();
    // The room of two blocks.
    let little = allowed - 8 * BLOCK_BYTES as u64;
    engine.budget().set_limit_under_pressure(little, allowed);
    let second = engine.submit(request(&[2; 10], 20)).unwrap();
    for _ in 0..20 {
        results.take(engine.step(0));
    }
    assert!(results.finished.is_empty(), "{:?}", results.finished);
    assert!(engine.is_pressed());
    assert!(engine.budget().charged() <= little);
    engine.budget().set_limit(allowed);
    while !engine.is_idle() {
        results.take(engine.step(0));
    }
    assert_eq!(results.tokens[&first], expected(&prompt, 20));
    assert_eq!(results.tokens[&second], expected(&[2; 10], 20));
    // What the operator does not allow is refused, under pressure or not.
    engine.budget().set_limit_under_pressure(little, allowed);
    assert!(engine.submit(request(&[1; 10], 60)).is_err());
}

#[test]
fn an_open_end_stops_with_a_reason_when_the_budget_is_used_up() {
    let mut engine = engine(4, EngineConfig::default());
    let id = engine
        .submit(Request {
            max_new_tokens: None,
            ..request(&[1; 10], 0)
        })
        .unwrap();
    let results = run(&mut engine);
    assert!(
        matches!(results.finished[&id].0, FinishReason::OutOfBudget { .. }),
        "{:?}",
        results.finished[&id]
    );
    assert_eq!(
        results.tokens[&id],
        expected(&[1; 10], 7),
        "16 tokens are computed, one more is known"
    );
}

#[test]
fn the_context_ends_a_generation() {
    let mut engine = engine(1000, EngineConfig::default());
    let id = engine
        .submit(Request {
            max_new_tokens: None,
            ..request(&[3; 10], 0)
        })
        .unwrap();
    let results = run(&mut engine);
    assert_eq!(results.finished[&id].0, FinishReason::ContextFull);
    assert_eq!(results.tokens[&id].len(), CONTEXT - 10);
}

#[test]
fn refuses_what_makes_no_sense() {
    let mut engine = engine(100, EngineConfig::default());
    assert_eq!(
        engine.submit(request(&[], 1)),
        Err(AdmissionError::EmptyPrompt)
    );
    let unknown = engine.submit(request(&[1, 97], 1)).unwrap_err();
    assert!(
        unknown.to_string().contains("token 97 at position 1"),
        "{unknown}"
    );
    let long = engine.submit(request(&[1; CONTEXT], 1)).unwrap_err();
    assert!(matches!(
        long,
        AdmissionError::PromptTooLong {
            prompt_tokens: CONTEXT,
            context_tokens: CONTEXT
        }
    ));
}

#[test]
fn cancelling_frees_the_blocks_at_once() {
    let mut engine = engine(100, EngineConfig::default());
    let id = engine.submit(request(&[1; 10], 50)).unwrap();
    engine.step(0);
    assert!(kv_bytes(&engine) > 0);
    let event = engine.cancel(id).unwrap();
    assert!(matches!(
        event,
        Event::Finished {
            reason: FinishReason::Cancelled,
            ..
        }
    ));
    engine.clear_cache();
    assert_eq!(kv_bytes(&engine), 0);
    assert!(engine.cancel(id).is_none());
    assert!(engine.is_idle());
}

#[test]
fn a_failed_step_ends_its_requests_and_not_the_engine() {
    let mut decoder = FakeDecoder::new();
    decoder.fail_at = Some(66);
    let mut engine = engine_of(decoder, 100, EngineConfig::default());
    let bad = engine.submit(request(&[66], 5)).unwrap();
    let results = run(&mut engine);
    assert!(matches!(results.finished[&bad].0, FinishReason::Failed(_)));
    let good = engine.submit(request(&[1, 2], 5)).unwrap();
    assert_eq!(run(&mut engine).finished[&good].0, FinishReason::Length);
}

#[test]
fn a_known_prefix_is_not_computed_again() {
    let mut engine = engine(100, config(64, 8));
    let prompt: Vec<u32> = (0..50).collect();
    let first = engine.submit(request(&prompt, 10)).unwrap();
    let results = run(&mut engine);
    assert_eq!(results.finished[&first].1.cached_tokens, 0);
    // The second turn of the same conversation.
    let mut turn = prompt.clone();
    turn.extend(&results.tokens[&first]);
    turn.extend([7, 8, 9]);
    let second = engine.submit(request(&turn, 10)).unwrap();
    // Another that leaves the first prompt within a block.
    let mut other = prompt[..30].to_vec();
    other.extend([90, 91]);
    let third = engine.submit(request(&other, 10)).unwrap();
    let results = run(&mut engine);
    assert_eq!(
        results.finished[&second].1.cached_tokens, 59,
        "all but the last token, which was never computed"
    );
    assert_eq!(results.finished[&third].1.cached_tokens, 30);
    assert_eq!(results.tokens[&second], expected(&turn, 10));
    assert_eq!(results.tokens[&third], expected(&other, 10));
}

#[test]
fn a_burst_with_one_prefix_computes_it_once() {
    let mut engine = engine(100, config(64, 8));
    let prefix: Vec<u32> = (0..80).collect();
    let ids: Vec<RequestId> = (0..7)
        .map(|i| {
            let mut prompt = prefix.clone();
            prompt.push(i);
            engine.submit(request(&prompt, 5)).unwrap()
        })
        .collect();
    let results = run(&mut engine);
    let cached: Vec<usize> = ids
        .iter()
        .map(|id| results.finished[id].1.cached_tokens)
        .collect();
    assert_eq!(cached, [0, 80, 80, 80, 80, 80, 80]);
}

/// The requests in the order in which they end.
fn order_of_ends(engine: &mut Engine<FakeDecoder>, now_ms: u64) -> Vec<RequestId> {
    let mut order = Vec::new();
    while !engine.is_idle() {
        for event in engine.step(now_ms) {
            if let Event::Finished { request, .. } = event {
                order.push(request);
            }
        }
    }
    order
}

#[test]
fn who_waits_for_a_prefix_lets_others_pass() {
    let mut engine = engine(100, config(16, 2));
    let prefix: Vec<u32> = (0..80).collect();
    let ids: Vec<RequestId> = [(&prefix[..], 5), (&prefix[..79], 5), (&[90, 91], 2)]
        .iter()
        .map(|(prompt, n)| engine.submit(request(prompt, *n)).unwrap())
        .collect();
    assert_eq!(order_of_ends(&mut engine, 0), [ids[2], ids[0], ids[1]]);
}

#[test]
fn a_tenant_that_floods_does_not_keep_another_waiting() {
    let mut engine = engine(100, config(64, 1));
    let of = |tenant: &str, first: u32| Request {
        tenant: tenant.into(),
        ..request(&[first; 8], 4)
    };
    let flood: Vec<RequestId> = (0..6)
        .map(|i| engine.submit(of("flood", i)).unwrap())
        .collect();
    engine.step(0);
    let late = engine.submit(of("late", 9)).unwrap();
    let order = order_of_ends(&mut engine, 0);
    assert_eq!(order[..3], [flood[0], late, flood[1]]);
}

#[test]
fn waiting_raises_a_low_priority_above_newcomers() {
    let mut engine = engine(100, config(64, 1));
    let of = |priority: i32, first: u32| Request {
        priority,
        ..request(&[first; 4], 3)
    };
    let running = engine.submit(of(5, 1)).unwrap();
    engine.step(0);
    let low = engine.submit(of(-1, 2)).unwrap();
    engine.step(25_000);
    let high = engine.submit(of(1, 3)).unwrap();
    assert_eq!(order_of_ends(&mut engine, 25_000), [running, low, high]);
}

#[test]
fn a_deadline_ends_a_request_and_frees_its_blocks() {
    let mut engine = engine(100, config(64, 1));
    let of = |deadline_ms: u64| Request {
        deadline_ms: Some(deadline_ms),
        ..request(&[1; 8], 100)
    };
    engine.submit(of(50)).unwrap();
    engine.submit(of(40)).unwrap();
    engine.step(10);
    let mut reasons = Vec::new();
    for now_ms in [39, 40, 50] {
        for event in engine.step(now_ms) {
            if let Event::Finished { reason, .. } = event {
                reasons.push((now_ms, reason));
            }
        }
    }
    let late = FinishReason::DeadlineExceeded;
    assert_eq!(reasons, [(40, late.clone()), (50, late)]);
    assert!(engine.is_idle());
    engine.clear_cache();
    assert_eq!(kv_bytes(&engine), 0);
}

#[test]
fn tenants_do_not_share() {
    let mut engine = engine(100, config(64, 8));
    let prompt: Vec<u32> = (0..50).collect();
    engine
        .submit(Request {
            tenant: "a".into(),
            ..request(&prompt, 2)
        })
        .unwrap();
    run(&mut engine);
    let other = engine
        .submit(Request {
            tenant: "b".into(),
            ..request(&prompt, 2)
        })
        .unwrap();
    assert_eq!(run(&mut engine).finished[&other].1.cached_tokens, 0);
}

#[test]
fn a_higher_priority_runs_first() {
    let mut engine = engine(100, config(16, 1));
    let low = engine.submit(request(&[1; 4], 5)).unwrap();
    let high = engine
        .submit(Request {
            priority: 1,
            ..request(&[2; 4], 5)
        })
        .unwrap();
    assert_eq!(order_of_ends(&mut engine, 0), [high, low]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_workload_under_any_changing_budget_gives_the_same_tokens(
        prompts in proptest::collection::vec((1_usize..30, 1_usize..20, -1_i32..2), 1..10),
        batch_tokens in 1_usize..40,
        max_running in 1_usize..10,
        limits in proptest::collection::vec(13_usize..40, 1..6),
        period in 1_usize..15,
    ) {
        let mut engine = engine(13, config(batch_tokens, max_running));
        let mut ids = Vec::new();
        for &(len, n, priority) in &prompts {
            let prompt: Vec<u32> = (0..len).map(|i| (i * len + n) as u32 % 97).collect();
            let id = engine.submit(Request { priority, ..request(&prompt, n) }).unwrap();
            ids.push((id, prompt, n));
        }
        let mut results = Results::default();
        let mut steps = 0;
        while !engine.is_idle() {
            if steps % period == 0 {
                let blocks = limits[steps / period % limits.len()];
                give_blocks(&engine, blocks);
            }
            results.take(engine.step(0));
            steps += 1;
            prop_assert!(steps < 5000);
            prop_assert!(engine.budget().excess() == 0 || steps % period == 1 || period == 1);
        }
        prop_assert_eq!(engine.check_conservation(), Ok(()));
        engine.clear_cache();
        prop_assert_eq!(kv_bytes(&engine), 0);
        for (id, prompt, n) in &ids {
            prop_assert_eq!(&results.tokens[id], &expected(prompt, *n));
        }
    }
}
