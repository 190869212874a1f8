//! Runs the memory core under load and faults, one run per seed, on all cores.
//!
//! `cargo run --release -p neap-sim --example simulate -- FIRST_SEED COUNT [STEPS]`

use std::sync::atomic::{AtomicU64, Ordering};

use neap_sim::world::World;

fn main() {
    let numbers: Vec<u64> = std::env::args()
        .skip(1)
        .filter_map(|a| a.parse().ok())
        .collect();
    let &[first, count, ..] = &numbers[..] else {
        eprintln!("usage: simulate FIRST_SEED COUNT [STEPS]");
        std::process::exit(2);
    };
    let steps = numbers.get(2).copied().unwrap_or(150);
    let (next, failures) = (AtomicU64::new(0), AtomicU64::new(0));
    let work = || {
        loop {
            let seed = first.saturating_add(next.fetch_add(1, Ordering::Relaxed));
            if seed >= first.saturating_add(count) {
                return;
            }
            if let Err(error) = World::new(seed).and_then(|world| world.run(steps)) {
                println!("seed {seed}: {error}");
                failures.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let failures = failures.into_inner();
    println!("{count} seeds of {steps} steps, {failures} failed");
    std::process::exit(i32::from(failures > 0));
}
