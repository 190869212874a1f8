//! Prefixes on slow levels: loaded from their end while their beginning is computed, under faults and budgets that
//! change, on a fake decoder that sees what it reads.

mod support;

use std::sync::Arc;

use neap_engine::{Engine, EngineConfig, RequestId};
use neap_memory::cache::CacheOptions;
use neap_memory::costs::LinearCost;
use neap_memory::disk::fake::FakeStorage;
use neap_memory::disk::{DiskOptions, DiskStore};
use neap_memory::{Budget, Fingerprint};
use proptest::prelude::*;
use support::{
    BLOCK_TOKENS, FakeDecoder, Results, engine_within, expected, give_blocks, kv_bytes, request,
    run,
};

/// An engine over a disk with its files.
fn engine(blocks: usize, batch_tokens: usize) -> (Engine<FakeDecoder>, Arc<FakeStorage>) {
    let storage = Arc::new(FakeStorage::default());
    let disk = DiskStore::open(Arc::clone(&storage) as _, DiskOptions::with_limit(1 << 30));
    let options = CacheOptions {
        disk: Some(Arc::new(disk.unwrap())),
        ..CacheOptions::new(Fingerprint::of_parts(&[]))
    };
    let config = EngineConfig {
        batch_tokens,
        max_running: 4,
        ..EngineConfig::default()
    };
    let budget = Budget::new(1 << 30);
    let mut engine = engine_within(&budget, FakeDecoder::new(), blocks, options, config);
    engine.cache_mut().fix_costs();
    (engine, storage)
}

/// From now on a block takes `us_a_block` to be read, where computing one takes 20 ms.
fn slow_down(engine: &mut Engine<FakeDecoder>, storage: &FakeStorage, us_a_block: f64) {
    let stored_bytes: usize = storage.files().iter().map(|(_, bytes)| bytes.len()).sum();
    let blocks = engine.cache_stats().spilled_blocks as f64;
    let us_a_byte = us_a_block * blocks / stored_bytes as f64;
    engine.cache_mut().costs_mut().disk_read = LinearCost::guess(us_a_byte);
}

fn known() -> Vec<u32> {
    (0..40 * BLOCK_TOKENS as u32).map(|t| t * 5 % 97).collect()
}

/// `tokens` are on disk alone.
fn learn(engine: &mut Engine<FakeDecoder>, tokens: &[u32]) {
    engine.submit(request(tokens, 1)).unwrap();
    run(engine);
    engine.clear_cache();
    assert_eq!(kv_bytes(engine), 0);
}

#[test]
fn a_slow_disk_is_met_half_way() {
    let (mut engine, storage) = engine(200, 16);
    learn(&mut engine, &known());
    slow_down(&mut engine, &storage, 20_000.0);
    let id = engine.submit(request(&known(), 10)).unwrap();
    let results = run(&mut engine);
    assert_eq!(results.tokens[&id], expected(&known(), 10));
    let loaded = results.finished[&id].1.cached_tokens;
    assert!(
        loaded > 0 && loaded < known().len() - BLOCK_TOKENS,
        "{loaded}"
    );
    assert_eq!(engine.cache_stats().disk_hit_tokens, loaded as u64);
    assert_eq!(engine.preemptions(), 0);
    // It is whole in RAM now.
    let id = engine.submit(request(&known(), 10)).unwrap();
    assert_eq!(
        run(&mut engine).finished[&id].1.cached_tokens,
        known().len() - 1
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn nothing_fails_and_every_token_is_right(
        prompts in proptest::collection::vec((0_usize..3, 1_usize..160, 1_usize..20), 1..8),
        us_a_block in prop_oneof![Just(5_000.0), Just(20_000.0), Just(200_000.0)],
        batch_tokens in 1_usize..40,
        limits in proptest::collection::vec(50_usize..120, 1..6),
        period in 1_usize..15,
        damage in proptest::collection::vec(0_u64..1 << 40, 0..4),
        cancel in 0_usize..8,
    ) {
        let (mut engine, storage) = engine(120, batch_tokens);
        let talks: Vec<Vec<u32>> = (0..3).map(|t| known().iter().map(|x| (x + t) % 97).collect()).collect();
        for talk in &talks[..2] {
            learn(&mut engine, talk);
        }
        slow_down(&mut engine, &storage, us_a_block);
        for bit in damage {
            for (name, bytes) in storage.files().iter().filter(|(_, bytes)| !bytes.is_empty()) {
                storage.flip_bit(name, bit % (bytes.len() as u64 * 8));
            }
        }
        let mut ids: Vec<(RequestId, &[u32], usize)> = Vec::new();
        for &(talk, len, n) in &prompts {
            let prompt = &talks[talk][..len];
            ids.push((engine.submit(request(prompt, n)).unwrap(), prompt, n));
        }
        let mut results = Results::default();
        let mut steps = 0;
        while !engine.is_idle() {
            if steps % period == 0 {
                give_blocks(&engine, limits[steps / period % limits.len()]);
            }
            results.take(engine.step(0));
            prop_assert_eq!(engine.check_conservation(), Ok(()));
            if steps == 2 && let Some(&(id, ..)) = ids.get(cancel) {
                let was_running = engine.cancel(id).is_some();
                if was_running {
                    ids.remove(cancel);
                }
            }
            steps += 1;
            prop_assert!(steps < 5000);
            prop_assert!(engine.budget().excess() == 0 || steps % period == 1 || period == 1);
        }
        for (id, prompt, n) in &ids {
            prop_assert_eq!(&results.tokens[id], &expected(prompt, *n));
        }
        engine.clear_cache();
        prop_assert_eq!(kv_bytes(&engine), 0);
    }
}
