//! How much of the budget is used while requests wait: blocks sink as far as the next step needs, and requests are taken
//! in as soon as they fit, sunk.

mod support;

use neap_engine::{Engine, EngineConfig, FinishReason};
use neap_memory::cache::CacheOptions;
use neap_memory::codec::fake;
use neap_memory::{Budget, KvQuality};
use support::{BLOCK_BYTES, BLOCK_TOKENS, FakeDecoder, Results, engine_within, kv_bytes, request};

const CONVERSATIONS: usize = 16;
const PROMPT_TOKENS: usize = 800;
const NEW_TOKENS: usize = 16;
/// Room for half of the conversations as the model wrote them.
const ROOM_BLOCKS: usize = CONVERSATIONS / 2 * (PROMPT_TOKENS + NEW_TOKENS) / BLOCK_TOKENS + 8;
/// The share of the budget's room for blocks that may stay empty while requests wait, or while blocks have sunk.
const MOST_UNUSED: f64 = 1.0 / 16.0;

fn engine(quality: KvQuality) -> Engine<FakeDecoder> {
    let config = EngineConfig {
        batch_tokens: 64,
        max_running: 32,
        quality,
        ..EngineConfig::default()
    };
    let options = CacheOptions {
        quantized: fake::levels(),
        ..CacheOptions::new(config.fingerprint)
    };
    let mut decoder = FakeDecoder::new();
    decoder.context_tokens = 1024;
    engine_within(&Budget::new(1 << 30), decoder, ROOM_BLOCKS, options, config)
}

fn prompt(seed: usize) -> Vec<u32> {
    (0..PROMPT_TOKENS)
        .map(|i| ((i * (seed + 1) + seed) % 97) as u32)
        .collect()
}

/// What a run saw.
#[derive(Debug, Default)]
struct Seen {
    most_running: usize,
    /// The largest share of the room that was empty, since it was full for the first time.
    most_unused: f64,
    /// The same share when blocks began to sink.
    unused_at_first_sink: Option<f64>,
    steps: usize,
}

fn watch(engine: &mut Engine<FakeDecoder>, conversations: usize) -> Seen {
    let ids: Vec<_> = (0..conversations)
        .map(|seed| engine.submit(request(&prompt(seed), NEW_TOKENS)).unwrap())
        .collect();
    let (mut seen, mut results, mut was_full) = (Seen::default(), Results::default(), false);
    while !engine.is_idle() {
        results.take(engine.step(seen.steps as u64));
        seen.steps += 1;
        let unused = 1.0 - kv_bytes(engine) as f64 / (ROOM_BLOCKS * BLOCK_BYTES) as f64;
        let stats = engine.cache_stats();
        if stats.int8_blocks + stats.int4_blocks > 0 {
            seen.unused_at_first_sink.get_or_insert(unused);
        }
        let (running, waiting) = engine.load();
        seen.most_running = seen.most_running.max(running);
        was_full |= unused <= MOST_UNUSED;
        if was_full && running + waiting > 0 {
            seen.most_unused = seen.most_unused.max(unused);
        }
        if seen.steps % 16 == 0 {
            engine.check_conservation().unwrap();
        }
    }
    for id in ids {
        assert_eq!(results.finished[&id].0, FinishReason::Length);
    }
    assert!(was_full, "{seen:?}");
    seen
}

#[test]
fn all_run_together_where_the_quality_allows_it() {
    let mut engine = engine(KvQuality::Small);
    let seen = watch(&mut engine, CONVERSATIONS);
    assert_eq!(seen.most_running, CONVERSATIONS, "{seen:?}");
    assert_eq!(engine.preemptions(), 0);
    let unused_at_first_sink = seen.unused_at_first_sink.unwrap();
    assert!(unused_at_first_sink <= MOST_UNUSED, "{seen:?}");
    assert!(seen.most_unused <= MOST_UNUSED, "{seen:?}");
}

#[test]
fn the_room_is_used_while_requests_wait() {
    for quality in KvQuality::ALL {
        let mut engine = engine(quality);
        let seen = watch(&mut engine, 4 * CONVERSATIONS);
        assert!(
            seen.most_running >= CONVERSATIONS / 2,
            "{quality}: {seen:?}"
        );
        assert!(seen.most_unused <= MOST_UNUSED, "{quality}: {seen:?}");
        if quality == KvQuality::Exact {
            assert_eq!(seen.unused_at_first_sink, None);
        }
        assert_eq!(engine.preemptions(), 0, "{quality}");
    }
}
