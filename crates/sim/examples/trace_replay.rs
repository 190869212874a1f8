//! Replays a Mooncake trace against every policy at several sizes of RAM and disk.
//!
//! `cargo run --release -p neap-sim --example trace_replay -- TRACE.jsonl [BYTES_PER_TOKEN]`

use std::path::Path;
use std::time::Instant;

use neap_memory::policy::{Belady, CostModel, Fifo, Lru, Policy, S3Fifo, Sieve};
use neap_sim::replay::{Outcome, Replay, Sizes, distinct_blocks, next_uses};
use neap_sim::trace::{self, Request, TRACE_BLOCK_TOKENS};

type Make = fn() -> Box<dyn Policy>;

/// The bound comes first: the others are compared with it.
const POLICIES: [Make; 6] = [
    || Box::new(Belady::default()),
    || Box::new(CostModel::default()),
    || Box::new(S3Fifo::default()),
    || Box::new(Sieve::default()),
    || Box::new(Lru::default()),
    || Box::new(Fifo::default()),
];

/// (RAM, disk) in per cent of the distinct blocks of the trace.
const PERCENT: [(usize, usize); 8] = [
    (1, 0),
    (2, 0),
    (5, 0),
    (10, 0),
    (20, 0),
    (40, 0),
    (2, 10),
    (5, 20),
];

fn main() {
    let mut arguments = std::env::args().skip(1);
    let Some(path) = arguments.next() else {
        eprintln!("usage: trace_replay TRACE.jsonl [BYTES_PER_TOKEN]");
        std::process::exit(2);
    };
    let bytes_per_token = arguments
        .next()
        .and_then(|a| a.parse().ok())
        .unwrap_or(32_768u64);
    match trace::read(Path::new(&path)) {
        Ok(trace) => compare(&trace, bytes_per_token),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    }
}

fn compare(trace: &[Request], bytes_per_token: u64) {
    let distinct = distinct_blocks(trace);
    let next = next_uses(trace);
    let block_bytes = TRACE_BLOCK_TOKENS * bytes_per_token;
    println!(
        "{} requests, {distinct} distinct blocks of {TRACE_BLOCK_TOKENS} tokens, {bytes_per_token} bytes per token",
        trace.len()
    );
    println!(
        "| RAM GiB | disk GiB | policy | tokens saved % | of bound % | RAM hit % | disk hit % | down GiB | up GiB | s |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (ram, disk) in PERCENT {
        let sizes = Sizes {
            ram_blocks: distinct * ram / 100,
            disk_blocks: distinct * disk / 100,
        };
        let mut bound = None;
        for make in POLICIES {
            let start = Instant::now();
            let outcome = Replay::new(sizes, make).run(trace, &next);
            let bound = *bound.get_or_insert(outcome.saved_tokens());
            print_row(make().name(), sizes, &outcome, bound, block_bytes);
            println!(" {:.1} |", start.elapsed().as_secs_f64());
        }
    }
}

fn print_row(name: &str, sizes: Sizes, outcome: &Outcome, bound: u64, block_bytes: u64) {
    let gib = |blocks: u64| (blocks * block_bytes) as f64 / (1u64 << 30) as f64;
    let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole.max(1) as f64;
    print!(
        "| {:.0} | {:.0} | {name} | {:.2} | {:.1} | {:.2} | {:.2} | {:.0} | {:.0} |",
        gib(sizes.ram_blocks as u64),
        gib(sizes.disk_blocks as u64),
        percent(outcome.saved_tokens(), outcome.input_tokens),
        percent(outcome.saved_tokens(), bound),
        percent(outcome.ram_hit_tokens, outcome.input_tokens),
        percent(outcome.disk_hit_tokens, outcome.input_tokens),
        gib(outcome.demoted_blocks),
        gib(outcome.promoted_blocks),
    );
}
