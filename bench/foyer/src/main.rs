//! Replays a request trace in Mooncake's form against foyer's cache in RAM with each of its eviction algorithms, as
//! `neap bench trace` does against Neap's policies, and prints the results as JSON.
//!
//! `neap-bench-foyer TRACE SHARE...`: shares of the trace's distinct blocks. A block counts as found if all blocks
//! before it are: blocks are used, and missing ones inserted, from the end of a prompt to its start. Foyer knows no
//! prefixes, so it may keep a block whose beginning it let go of.

use std::collections::HashSet;
use std::fs::File;
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::io::{BufRead, BufReader};
use std::time::Instant;

use foyer_memory::{
    Cache, CacheBuilder, CacheProperties, EvictionConfig, FifoConfig, LfuConfig, LruConfig,
    S3FifoConfig, SieveConfig,
};
use serde::{Deserialize, Serialize};

const BLOCK_TOKENS: u64 = 512;

#[derive(Deserialize)]
struct Request {
    input_length: u64,
    hash_ids: Vec<u64>,
}

#[derive(Serialize)]
struct Row {
    policy: &'static str,
    ram_blocks: usize,
    saved_share: f64,
    seconds: f64,
}

/// Foyer's default has random keys: with fixed ones every run is the same.
type Hasher = BuildHasherDefault<DefaultHasher>;
type Blocks = Cache<u64, (), Hasher, CacheProperties>;

fn algorithms() -> [(&'static str, EvictionConfig); 5] {
    [
        ("foyer s3-fifo", S3FifoConfig::default().into()),
        ("foyer lfu", LfuConfig::default().into()),
        ("foyer lru", LruConfig::default().into()),
        ("foyer sieve", SieveConfig.into()),
        ("foyer fifo", FifoConfig::default().into()),
    ]
}

/// Tokens found.
fn replay(trace: &[Request], cache: &Blocks) -> u64 {
    let mut saved = 0;
    for request in trace {
        let found = request.hash_ids.iter().take_while(|id| cache.contains(*id));
        let found = found.count();
        saved += (found as u64 * BLOCK_TOKENS).min(request.input_length);
        for (index, &id) in request.hash_ids.iter().enumerate().rev() {
            if index >= found && !cache.contains(&id) {
                cache.insert(id, ());
            } else {
                drop(cache.get(&id));
            }
        }
    }
    saved
}

fn read(path: &str) -> Result<Vec<Request>, Box<dyn std::error::Error>> {
    let lines = BufReader::new(File::open(path)?).lines();
    lines
        .map(|line| Ok(serde_json::from_str(&line?)?))
        .collect()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let trace = read(
        &args
            .next()
            .ok_or("usage: neap-bench-foyer TRACE SHARE...")?,
    )?;
    let blocks: HashSet<u64> = trace.iter().flat_map(|r| &r.hash_ids).copied().collect();
    let input_tokens: u64 = trace.iter().map(|r| r.input_length).sum();
    let mut rows = Vec::new();
    for share in args {
        let ram_blocks = (blocks.len() as f64 * share.parse::<f64>()?) as usize;
        for (policy, config) in algorithms() {
            let start = Instant::now();
            let cache: Blocks = CacheBuilder::new(ram_blocks)
                .with_shards(1)
                .with_eviction_config(config)
                .with_hash_builder(Hasher::default())
                .build();
            let saved = replay(&trace, &cache);
            rows.push(Row {
                policy,
                ram_blocks,
                saved_share: saved as f64 / input_tokens.max(1) as f64,
                seconds: start.elapsed().as_secs_f64(),
            });
        }
    }
    println!("{}", serde_json::to_string(&rows)?);
    Ok(())
}
