//! Qualities of keys and values, on a fake decoder that sees what is lost: a request whose blocks never sank gives
//! what it gives alone, and one that reads a single lossy block does not.

mod support;

use neap_engine::{AdmissionError, AttendedTokens, Engine, EngineConfig, FinishReason, Request};
use neap_memory::cache::CacheOptions;
use neap_memory::codec::fake;
use neap_memory::{Budget, KvQuality, Level};
use proptest::prelude::*;
use support::{
    BLOCK_BYTES, FakeDecoder, Results, engine_within, expected, give_bytes, kv_bytes, run,
};

fn engine(blocks: usize, config: EngineConfig) -> Engine<FakeDecoder> {
    let options = CacheOptions {
        quantized: fake::levels(),
        ..CacheOptions::new(config.fingerprint)
    };
    engine_within(
        &Budget::new(1 << 30),
        FakeDecoder::new(),
        blocks,
        options,
        config,
    )
}

fn config(quality: KvQuality, batch_tokens: usize) -> EngineConfig {
    EngineConfig {
        batch_tokens,
        max_running: 8,
        quality,
        ..EngineConfig::default()
    }
}

fn request(prompt: &[u32], n: usize, quality: Option<KvQuality>) -> Request {
    Request {
        quality,
        ..support::request(prompt, n)
    }
}

fn prompt(seed: usize, len: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * seed + seed) % 97) as u32).collect()
}

#[test]
fn a_level_that_is_asked_for_shows_in_what_is_attended_to() {
    let config = EngineConfig {
        level: Level::Int8,
        ..config(KvQuality::Small, 16)
    };
    let mut engine = engine(200, config);
    let prompt = prompt(3, 200);
    let lossy = engine.submit(request(&prompt, 20, None)).unwrap();
    let results = run(&mut engine);
    assert_ne!(results.tokens[&lossy], expected(&prompt, 20));
    let attended = engine.attended();
    assert!(attended.int8 > 0 && attended.int4 == 0, "{attended:?}");
    // Every pair of a token and one that is not behind it, the last token being never computed.
    assert_eq!(attended.hot + attended.int8, 219 * 220 / 2);
    // A request may ask for more than the engine's quality, and has its own blocks.
    let exact = engine
        .submit(request(&prompt, 20, Some(KvQuality::Exact)))
        .unwrap();
    assert_eq!(run(&mut engine).tokens[&exact], expected(&prompt, 20));
}

#[test]
fn a_request_gets_no_less_than_the_engines_quality() {
    let config = EngineConfig {
        level: Level::Int4,
        ..config(KvQuality::Exact, 16)
    };
    let mut engine = engine(200, config);
    let asked = Some(KvQuality::Small);
    let id = engine.submit(request(&prompt(3, 200), 20, asked)).unwrap();
    assert_eq!(run(&mut engine).tokens[&id], expected(&prompt(3, 200), 20));
    let AttendedTokens { int8, int4, .. } = engine.attended();
    assert_eq!((int8, int4), (0, 0));
}

#[test]
fn what_fits_only_when_it_sinks_is_taken_in_and_finishes() {
    // 231 tokens in 58 blocks: 38 of them hot, with 16 tokens a step.
    let bytes = 38 * BLOCK_BYTES + 20 * BLOCK_BYTES / 4;
    for quality in [KvQuality::Small, KvQuality::Exact] {
        let mut engine = engine(1, config(quality, 16));
        give_bytes(&engine, bytes);
        let submitted = engine.submit(request(&prompt(5, 190), 42, None));
        match (quality, submitted) {
            (KvQuality::Exact, Err(AdmissionError::DoesNotFit { .. })) => {}
            (KvQuality::Small, Ok(id)) => {
                let results = run(&mut engine);
                assert_eq!(results.finished[&id].0, FinishReason::Length);
                assert!(engine.attended().int4 > 0 && engine.preemptions() == 0);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn running_sequences_sink_before_one_is_preempted() {
    let mut engine = engine(130, config(KvQuality::High, 64));
    for seed in 1..3 {
        engine
            .submit(request(&prompt(seed, 200), 39, None))
            .unwrap();
    }
    for _ in 0..8 {
        engine.step(0);
    }
    assert_eq!(engine.load(), (2, 0));
    give_bytes(&engine, 97 * BLOCK_BYTES);
    engine.step(0);
    assert!(engine.budget().excess() == 0 && engine.cache_stats().int8_blocks > 0);
    run(&mut engine);
    assert_eq!(engine.preemptions(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn nothing_fails_and_exact_requests_lose_nothing(
        prompts in proptest::collection::vec((1_usize..200, 1_usize..39, 0_usize..4), 1..8),
        allowed in 0_usize..4,
        level in 0_usize..3,
        batch_tokens in 4_usize..80,
        limits in proptest::collection::vec(61_usize..120, 1..6),
        period in 1_usize..15,
    ) {
        let config = EngineConfig {
            level: [Level::Hot, Level::Int8, Level::Int4][level],
            ..config(KvQuality::ALL[allowed], batch_tokens)
        };
        let mut engine = engine(61, config);
        let mut ids = Vec::new();
        for (seed, &(len, n, quality)) in prompts.iter().enumerate() {
            let (prompt, quality) = (prompt(seed / 2 + 1, len), KvQuality::ALL[quality]);
            let id = engine.submit(request(&prompt, n, Some(quality))).unwrap();
            ids.push((id, prompt, n, quality));
        }
        let mut results = Results::default();
        let mut steps = 0;
        while !engine.is_idle() {
            if steps % period == 0 {
                give_bytes(&engine, limits[steps / period % limits.len()] * BLOCK_BYTES);
            }
            results.take(engine.step(steps as u64 * 10_000));
            steps += 1;
            prop_assert!(steps < 5000);
            prop_assert_eq!(engine.check_conservation(), Ok(()));
        }
        for (id, prompt, n, quality) in &ids {
            prop_assert_eq!(&results.finished[id].0, &FinishReason::Length);
            prop_assert_eq!(results.tokens[id].len(), *n);
            if (*quality).min(KvQuality::ALL[allowed]) == KvQuality::Exact {
                prop_assert_eq!(&results.tokens[id], &expected(prompt, *n));
            }
        }
        engine.clear_cache();
        prop_assert_eq!(kv_bytes(&engine), 0);
    }
}
