//! Block-table operations per second on one core.
//!
//! `cargo run --release -p neap-memory --example table_ops`
//!
//! One operation is one call on a table: `reserve(1)`, `advance(1)`, `block(i)`, `fork`, `truncate`. The
//! mix is that of decoding: every token reserves, advances and looks up; now and then a sequence is
//! forked, cut, or ends. Blocks are really allocated and freed, and the first byte of each is written.

use std::hint::black_box;
use std::time::Instant;

use neap_memory::{BlockTable, Budget, KvPool};

const SEQUENCES: usize = 32;
const TOKENS: usize = 1024;
const BLOCK_BYTES: usize = 512 << 10;

fn decode_mix(pool: &KvPool, writes: bool) -> u64 {
    let mut operations = 0;
    let mut tables: Vec<BlockTable> = (0..SEQUENCES).map(|_| BlockTable::new(pool)).collect();
    for token in 0..TOKENS {
        for table in &mut tables {
            table.reserve(1).expect("the budget is large");
            if writes && token % pool.block_tokens() == 0 {
                table.block_mut(token / pool.block_tokens())[0] = 1;
            }
            table.advance(1);
            black_box(table.block(token / pool.block_tokens()));
            operations += 3;
        }
        if token % 64 == 40 {
            let table = &mut tables[token / 64 % SEQUENCES];
            let mut fork = table.fork();
            fork.truncate(token / 2);
            operations += 2;
        }
    }
    operations
}

fn fill_blocks(pool: &KvPool) -> u64 {
    for _ in 0..200 {
        let mut block = pool.allocate().expect("the budget is large");
        block.bytes_mut().expect("it is not shared").fill(1);
    }
    200
}

fn best_of(runs: usize, mut run: impl FnMut() -> u64) -> f64 {
    (0..runs)
        .map(|_| {
            let start = Instant::now();
            let operations = run();
            operations as f64 / start.elapsed().as_secs_f64()
        })
        .fold(0.0, f64::max)
}

fn main() {
    let budget = Budget::new(64 << 30);
    let pool = KvPool::new(&budget, BLOCK_BYTES, 32);
    for (name, writes) in [
        ("tables alone", false),
        ("tables, pages touched and given back", true),
    ] {
        let rate = best_of(10, || decode_mix(&pool, writes));
        println!("{name}: {:.1} M operations/s", rate / 1e6);
    }
    let mut held = Vec::new();
    let rate = best_of(10, || {
        for _ in 0..1000 {
            held.push(pool.allocate().expect("the budget is large"));
        }
        held.clear();
        2000
    });
    println!(
        "allocate and free of untouched blocks: {:.1} M/s",
        rate / 1e6
    );
    let rate = best_of(10, || fill_blocks(&pool));
    println!(
        "allocate, fill and free of blocks of {} KiB: {:.0}/s",
        BLOCK_BYTES >> 10,
        rate
    );
    pool.set_reuse_bytes(4 << 20);
    let rate = best_of(10, || fill_blocks(&pool));
    println!("the same, 4 MiB of freed blocks kept: {rate:.0}/s");
    print_default_budget();
}

fn print_default_budget() {
    let budget = neap_memory::default_budget();
    println!("default budget of this machine: {budget:?}");
}
