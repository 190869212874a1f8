//! What a call of the governor costs, against the number of cached blocks.
//!
//! `cargo run --release -p neap-memory --example governor_cost`
//!
//! Conversations of 40 blocks fill the cache; then room for one block is asked for, over and over, as decoding
//! sequences do: one block for every 32 tokens of each. Printed are the calls, the time of one, and what that
//! is for each decoded token of 32 sequences.

use std::time::Instant;

use neap_memory::governor::Occasion;
use neap_memory::{BlockTable, Budget, CacheOptions, Fingerprint, KvCache, KvPool, Namespace};

const BLOCK_BYTES: usize = 4096;
const BLOCK_TOKENS: usize = 32;
const TALK_BLOCKS: usize = 40;
const ROOM_ASKED: usize = 400;

fn main() {
    println!(
        "{:>8} {:>6} {:>12} {:>14}",
        "blocks", "calls", "us a call", "us a token"
    );
    for blocks in [1_000, 5_000, 10_000, 20_000, 100_000] {
        measure(blocks);
    }
}

fn measure(blocks: usize) {
    let budget = Budget::new(1 << 32);
    let pool = KvPool::new(&budget, BLOCK_BYTES, BLOCK_TOKENS);
    let fingerprint = Fingerprint::of_parts(&[("model", b"none")]);
    let tenant = Namespace::new(&[0; 32], "", &fingerprint);
    let mut cache = KvCache::new(&pool, CacheOptions::new(fingerprint)).expect("room");
    for talk in 0..blocks / TALK_BLOCKS {
        let tokens: Vec<u32> = (0..TALK_BLOCKS * BLOCK_TOKENS)
            .map(|t| (talk * 100_000 + t) as u32)
            .collect();
        let mut table = BlockTable::new(&pool);
        table.reserve(tokens.len()).expect("room");
        table.advance(tokens.len());
        cache.insert(&tenant, &tokens, &mut table, talk as u64 * 1000);
    }
    let now_ms = 1_000_000_000;
    budget.set_limit(budget.charged());
    let (mut calls, mut held) = (0, Vec::new());
    let start = Instant::now();
    while held.len() < ROOM_ASKED {
        match pool.allocate() {
            Ok(block) => held.push(block),
            Err(_) => {
                calls += 1;
                let freed = cache.free(BLOCK_BYTES as u64, Occasion::Admission, now_ms);
                assert!(freed > 0, "something can go");
            }
        }
    }
    let us = start.elapsed().as_secs_f64() * 1e6;
    println!(
        "{blocks:8} {calls:6} {:12.1} {:14.2}",
        us / f64::from(calls),
        us / (ROOM_ASKED * BLOCK_TOKENS) as f64
    );
}
