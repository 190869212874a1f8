use std::sync::Arc;

use super::*;
use crate::Budget;
use crate::cache::CacheOptions;
use crate::disk::fake::FakeStorage;
use crate::disk::{DiskOptions, DiskStore};
use crate::hash::Fingerprint;
use crate::pool::KvPool;
use crate::remote::fake::{FakeRemote, Lie};
use crate::remote::{RemoteLevel, RemoteOptions, RemoteStore};
use crate::table::BlockTable;

const BLOCK_TOKENS: usize = 4;
const BLOCK_BYTES: usize = 4096;

/// A cache of its own over a shared store.
struct Process {
    pool: KvPool,
    cache: KvCache,
    tenant: Namespace,
}

impl Process {
    fn start(store: &Arc<FakeRemote>, has_disk: bool) -> Self {
        let budget = Budget::new(60 * BLOCK_BYTES as u64);
        let pool = KvPool::new(&budget, BLOCK_BYTES, BLOCK_TOKENS);
        let options = RemoteOptions {
            readers: 0,
            ..RemoteOptions::new([1; 32])
        };
        let store = Arc::clone(store) as Arc<dyn RemoteStore>;
        let remote = RemoteLevel::start(store, &budget, options).unwrap();
        let disk = || {
            let options = DiskOptions::with_limit(1 << 20);
            DiskStore::open(Arc::new(FakeStorage::default()), options).unwrap()
        };
        let fingerprint = Fingerprint::of_parts(&[("model", b"fake")]);
        let options = CacheOptions {
            disk: has_disk.then(|| Arc::new(disk())),
            remote: Some(Arc::new(remote)),
            ..CacheOptions::new(fingerprint)
        };
        let mut cache = KvCache::new(&pool, options).unwrap();
        // Else a busy machine makes the store slower than computing, and it is not asked again for a while.
        cache.fix_costs();
        Self {
            cache,
            pool,
            tenant: Namespace::new(&[1; 32], "a", &fingerprint),
        }
    }

    /// Attaches what is known of `tokens`, checks it, computes the rest; how many were known.
    fn run(&mut self, tokens: &[u32], now_ms: u64) -> usize {
        let mut table = BlockTable::new(&self.pool);
        self.cache.adopt_remote(&self.tenant, tokens, now_ms);
        let cached = self.cache.attach(&self.tenant, tokens, &mut table, now_ms);
        table.reserve(tokens.len() - cached).unwrap();
        for (t, &token) in tokens.iter().enumerate() {
            let (block, at) = (t / BLOCK_TOKENS, t % BLOCK_TOKENS * 1024);
            if t < cached {
                assert_eq!(table.block(block)[at], token as u8);
            } else {
                table.block_mut(block)[at] = token as u8;
            }
        }
        table.advance(tokens.len() - cached);
        self.cache.insert(&self.tenant, tokens, &mut table, now_ms);
        self.cache.check_conservation().unwrap();
        cached
    }
}

fn talk() -> Vec<u32> {
    (1..35).collect()
}

#[test]
fn a_prefix_that_another_process_stored_is_not_computed_again() {
    let store = Arc::new(FakeRemote::default());
    let mut one = Process::start(&store, true);
    assert_eq!(one.run(&talk(), 1), 0);
    assert_eq!(one.cache.store(&one.tenant.clone(), &talk()), 34);
    // Without a disk of its own, and with one.
    for has_disk in [false, true] {
        let mut other = Process::start(&store, has_disk);
        assert_eq!(other.run(&talk(), 1), 32, "the full blocks");
        assert_eq!(other.cache.stats().remote_tokens, 32);
        let calls = store.calls();
        assert_eq!(other.run(&talk(), 2), 34, "all of them from RAM now");
        assert_eq!(store.calls(), calls);
    }
}

#[test]
fn what_was_let_go_of_in_the_middle_is_filled_again() {
    let store = Arc::new(FakeRemote::default());
    let mut one = Process::start(&store, true);
    one.run(&talk(), 1);
    one.cache.store(&one.tenant.clone(), &talk());
    let mut other = Process::start(&store, false);
    other.run(&talk(), 1);
    let path = other.cache.tree.peek(&other.tenant, &talk()).full;
    other.cache.hold(path[3], Held::Gone);
    other.cache.hold(path[5], Held::Gone);
    assert_eq!(other.run(&talk(), 2), 34);
}

#[test]
fn a_bad_store_costs_a_recomputation_and_no_more() {
    let store = Arc::new(FakeRemote::default());
    let mut one = Process::start(&store, true);
    one.run(&talk(), 1);
    one.cache.store(&one.tenant.clone(), &talk());
    for bad in 0..5 {
        let mut other = Process::start(&store, false);
        match bad {
            0 => store.fail(1),
            1 => store.time_out(1),
            2 => store.lie(Lie::Flip(777)),
            3 => store.lie(Lie::Swap),
            _ => store.lie(Lie::Deny),
        }
        assert_eq!(other.run(&talk(), 1), 0, "{bad}");
        assert_eq!(other.run(&talk(), 2), 34, "{bad}");
    }
}

#[test]
fn a_store_slower_than_computing_is_asked_once_a_minute() {
    let store = Arc::new(FakeRemote::default());
    let mut process = Process::start(&store, false);
    process.cache.costs_mut().remote_read.observe(1, 1e9);
    let asked = |process: &mut Process, first: u32, now_ms| {
        let calls = store.calls();
        process.run(&[first, 2, 3, 4, 5], now_ms);
        store.calls() - calls
    };
    assert_eq!(asked(&mut process, 10, 0), 1);
    assert_eq!(asked(&mut process, 20, TRY_AGAIN_MS - 1), 0);
    assert_eq!(asked(&mut process, 30, TRY_AGAIN_MS), 1);
    process.cache.costs_mut().remote_read.per_unit_us = 1e-3;
    assert_eq!(asked(&mut process, 40, TRY_AGAIN_MS + 1), 1);
}
