//! What the cache finds of a request trace, and what deciding what goes takes.
//!
//! `cargo run --release -p neap-sim --example cache_trace -- TRACE.jsonl`
//!
//! The product's cache, without a disk, where `neap bench trace` replays policies alone. Printed are, at several sizes of
//! RAM, the share of blocks found, and the mean and the longest time of a call of the governor.

use std::path::Path;
use std::time::{Duration, Instant};

use neap_memory::governor::Occasion;
use neap_memory::{BlockTable, Budget, CacheOptions, Fingerprint, KvCache, KvPool, Namespace};
use neap_sim::replay::distinct_blocks;
use neap_sim::trace::{self, Request};

/// Beside which names are small, as they are in a server. Nobody writes them, so they take no memory.
const BLOCK_BYTES: usize = 64 << 10;

fn main() {
    let path = std::env::args().nth(1).expect("a trace");
    let requests = trace::read(Path::new(&path), false).expect("a trace");
    let blocks = distinct_blocks(&requests);
    println!(
        "{} requests, {blocks} blocks\n{:>8} {:>7} {:>8} {:>10} {:>10}",
        requests.len(),
        "blocks",
        "found",
        "calls",
        "mean us",
        "longest us"
    );
    for percent in [1, 2, 5, 10, 20] {
        replay_within(&requests, blocks * percent / 100);
    }
}

fn replay_within(requests: &[Request], blocks: usize) {
    // A block of the trace is one token here.
    let budget = Budget::new((blocks * BLOCK_BYTES) as u64 + (1 << 20));
    let pool = KvPool::new(&budget, BLOCK_BYTES, 1);
    let fingerprint = Fingerprint::of_parts(&[("model", b"none")]);
    let tenant = Namespace::new(&[0; 32], "", &fingerprint);
    let options = CacheOptions {
        may_pack: false,
        ..CacheOptions::new(fingerprint)
    };
    let mut cache = KvCache::new(&pool, options).expect("room");
    let (mut asked, mut found) = (0, 0);
    let (mut calls, mut all, mut longest) = (0, Duration::ZERO, Duration::ZERO);
    for Request {
        at_ms, blocks: ids, ..
    } in requests
    {
        let mut table = BlockTable::new(&pool);
        asked += ids.len();
        found += cache.attach(&tenant, ids, &mut table, *at_ms);
        while table.reserve(ids.len() - table.len_tokens()).is_err() {
            let missing = (ids.len() * BLOCK_BYTES) as u64 - budget.available().min(1 << 32);
            let start = Instant::now();
            cache.free(missing, Occasion::Admission, *at_ms);
            (calls, all) = (calls + 1, all + start.elapsed());
            longest = longest.max(start.elapsed());
        }
        table.advance(ids.len() - table.len_tokens());
        cache.insert(&tenant, ids, &mut table, *at_ms);
    }
    println!(
        "{blocks:8} {:6.2}% {calls:8} {:10.1} {:10.1}",
        100.0 * found as f64 / asked as f64,
        all.as_secs_f64() * 1e6 / f64::from(calls.max(1)),
        longest.as_secs_f64() * 1e6
    );
}
