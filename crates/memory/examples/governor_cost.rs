//! What a call of the governor costs, against the number of cached blocks.
//!
//! `cargo run --release -p neap-memory --example governor_cost`
//!
//! Conversations of 40 blocks fill the cache; then room for one block is asked for, over and over, as decoding
//! sequences do: one block for every 32 tokens of each. Printed are the calls, the time of one, and what that
//! is for each decoded token of 32 sequences.
//!
//! `… --example governor_cost -- TRACE.jsonl` replays a request trace of Mooncake's form instead, of which each line
//! names the blocks of a prompt in `hash_ids`, at several sizes of RAM and without a disk. Printed are the share of
//! blocks found, and the mean and the longest time of a call: what samples of a large tree lose, and what they save.

use std::time::{Duration, Instant};

use neap_memory::governor::Occasion;
use neap_memory::{BlockTable, Budget, CacheOptions, Fingerprint, KvCache, KvPool, Namespace};

const BLOCK_BYTES: usize = 4096;
const BLOCK_TOKENS: usize = 32;
/// Beside which names are small, as they are in a server. Nobody writes them, so they take no memory.
const REPLAYED_BLOCK_BYTES: usize = 64 << 10;
const TALK_BLOCKS: usize = 40;
const ROOM_ASKED: usize = 400;

fn main() {
    if let Some(path) = std::env::args().nth(1) {
        return replay(&std::fs::read_to_string(path).expect("a trace"));
    }
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

/// Time in milliseconds, and the blocks of the prompt.
fn request(line: &str) -> Option<(u64, Vec<u32>)> {
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let (_, rest) = line.split_once("\"timestamp\":")?;
    let at_ms = number(rest.split(',').next()?)?;
    let (_, rest) = line.split_once("\"hash_ids\": [")?;
    let blocks = rest.split(']').next()?.split(',');
    let ids = blocks.filter_map(|id| id.trim().parse().ok()).collect();
    Some((at_ms, ids))
}

fn replay(trace: &str) {
    let requests: Vec<(u64, Vec<u32>)> = trace.lines().filter_map(request).collect();
    let blocks = requests.iter().flat_map(|(_, ids)| ids).max().expect("ids") + 1;
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
        replay_within(&requests, blocks as usize * percent / 100);
    }
}

fn replay_within(requests: &[(u64, Vec<u32>)], blocks: usize) {
    // A block of the trace is one token here.
    let budget = Budget::new((blocks * REPLAYED_BLOCK_BYTES) as u64 + (1 << 20));
    let pool = KvPool::new(&budget, REPLAYED_BLOCK_BYTES, 1);
    let fingerprint = Fingerprint::of_parts(&[("model", b"none")]);
    let tenant = Namespace::new(&[0; 32], "", &fingerprint);
    let options = CacheOptions {
        may_pack: false,
        ..CacheOptions::new(fingerprint)
    };
    let mut cache = KvCache::new(&pool, options).expect("room");
    let (mut asked, mut found) = (0, 0);
    let (mut calls, mut all, mut longest) = (0, Duration::ZERO, Duration::ZERO);
    for (at_ms, ids) in requests {
        let mut table = BlockTable::new(&pool);
        asked += ids.len();
        found += cache.attach(&tenant, ids, &mut table, *at_ms);
        while table.reserve(ids.len() - table.len_tokens()).is_err() {
            let missing =
                (ids.len() * REPLAYED_BLOCK_BYTES) as u64 - budget.available().min(1 << 32);
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
