//! Runs the memory core under load and faults, one run per seed.
//!
//! `cargo run --release -p neap-sim --example simulate -- FIRST_SEED COUNT [STEPS]`

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
    let mut failures = 0;
    for seed in first..first.saturating_add(count) {
        if let Err(error) = World::new(seed).and_then(|world| world.run(steps)) {
            println!("seed {seed}: {error}");
            failures += 1;
        }
    }
    println!("{count} seeds of {steps} steps, {failures} failed");
    std::process::exit(i32::from(failures > 0));
}
