//! The remote store and those who run, on a fake decoder that sees what it reads.

mod support;

use std::sync::Arc;

use neap_engine::{Engine, EngineConfig};
use neap_memory::cache::{CacheOptions, KvCache};
use neap_memory::disk::{Directory, DiskOptions, DiskStore};
use neap_memory::remote::fake::FakeRemote;
use neap_memory::remote::{RemoteLevel, RemoteOptions, RemoteStore};
use neap_memory::{Budget, Fingerprint, KvPool};
use support::{BLOCK_BYTES, BLOCK_TOKENS, FakeDecoder, Results, expected, request, run};

/// An engine over a shared store; with a disk level of its own it writes what it computes there.
fn engine_beside(store: &Arc<FakeRemote>, disk: Option<Arc<DiskStore>>) -> Engine<FakeDecoder> {
    let budget = Budget::new(1 << 30);
    let kv = KvPool::new(&budget, BLOCK_BYTES, BLOCK_TOKENS);
    let store = Arc::clone(store) as Arc<dyn RemoteStore>;
    let remote = RemoteLevel::start(store, &budget, RemoteOptions::new([1; 32])).unwrap();
    let options = CacheOptions {
        disk,
        remote: Some(Arc::new(remote)),
        ..CacheOptions::new(Fingerprint::of_parts(&[]))
    };
    let config = EngineConfig {
        batch_tokens: 64,
        max_running: 4,
        ..EngineConfig::default()
    };
    let mut cache = KvCache::new(&kv, options).unwrap();
    cache.costs_mut().recompute.per_token_us = 1e6;
    Engine::new(FakeDecoder::new(), None, cache, config)
}

#[test]
fn who_runs_does_not_wait_for_the_remote_store_that_another_is_read_from() {
    let folder = std::env::temp_dir().join(format!("neap-engine-remote-{}", std::process::id()));
    let storage = Directory::open(&folder).unwrap();
    let disk = DiskStore::open(Arc::new(storage), DiskOptions::with_limit(1 << 30)).unwrap();
    let store = Arc::new(FakeRemote::default());
    let known: Vec<u32> = (0..80).collect();
    let mut engine = engine_beside(&store, Some(Arc::new(disk)));
    engine.submit(request(&known, 1)).unwrap();
    run(&mut engine);
    engine.clear_cache();
    for _ in 0..1000 {
        std::thread::sleep(std::time::Duration::from_millis(5));
        if store.objects().len() == 20 {
            break;
        }
    }
    // The store does not answer: the other goes on to its end meanwhile.
    let mut engine = engine_beside(&store, None);
    let other = engine.submit(request(&[1, 2, 3], 40)).unwrap();
    let mut results = Results::default();
    results.take(engine.step(0));
    store.set_stuck(true);
    let again = engine.submit(request(&known, 20)).unwrap();
    let start = std::time::Instant::now();
    while engine.load() != (0, 1) {
        results.take(engine.step(0));
    }
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    assert_eq!(results.tokens[&other], expected(&[1, 2, 3], 40));
    assert!(
        !results.tokens.contains_key(&again),
        "it waits for its blocks"
    );
    // Alone, it waits a little in each step, and no longer.
    let start = std::time::Instant::now();
    (0..4).for_each(|_| results.take(engine.step(0)));
    assert!(start.elapsed().as_millis() >= 4, "{:?}", start.elapsed());
    store.set_stuck(false);
    while !engine.is_idle() {
        results.take(engine.step(0));
    }
    assert_eq!(results.tokens[&again], expected(&known, 20));
    assert_eq!(
        engine.cache_stats().remote_tokens,
        76,
        "full blocks before the last token"
    );
    assert_eq!(results.finished[&again].1.cached_tokens, 76);
    engine.check_conservation().unwrap();
    std::fs::remove_dir_all(folder).unwrap();
}
