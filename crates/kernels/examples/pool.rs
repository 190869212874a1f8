//! Compares the pool with rayon: the time of regions of equal tasks, one after another.
//!
//! `cargo run --release -p neap-kernels --example pool [threads]`

use neap_kernels::ThreadPool;
use std::hint::black_box;
use std::time::Instant;

/// About `n` nanoseconds of work that no compiler removes.
fn work(n: u64) {
    let mut x = black_box(1_u64);
    for _ in 0..n {
        x = x
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(black_box(1));
    }
    black_box(x);
}

/// The 10th, 50th and 90th percentile of a region's time, in microseconds.
fn percentiles(regions: usize, gap: u64, mut region: impl FnMut()) -> [f64; 3] {
    let mut times: Vec<f64> = (0..regions)
        .map(|_| {
            work(gap);
            let start = Instant::now();
            region();
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    [10, 50, 90].map(|percent| times[regions * percent / 100])
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args()
        .nth(1)
        .map_or(Ok(2), |threads| threads.parse())?;
    let ours = ThreadPool::new(threads);
    let theirs = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()?;
    println!("{threads} threads; microseconds a region: 10th, 50th and 90th percentile");
    println!(
        "{:>6} {:>8} {:>8}   neap / rayon",
        "tasks", "ns each", "ns gap"
    );
    for (tasks, each, gap) in [
        (threads, 0, 1_000),
        (threads, 10_000, 1_000),
        (16, 1_000, 1_000),
        (64, 1_000, 5_000),
        (16, 10_000, 5_000),
        (16, 10_000, 300_000),
    ] {
        let regions = 300;
        let neap = percentiles(regions, gap, || {
            if let Err(panic) = ours.run(tasks, &|_, _| work(each)) {
                eprintln!("{panic}");
            }
        });
        // From a thread inside rayon's pool, as an engine would, so that no region has to be handed over.
        let rayon = theirs.install(|| {
            percentiles(regions, gap, || {
                rayon::scope(|scope| (0..tasks).for_each(|_| scope.spawn(|_| work(each))));
            })
        });
        let row = |times: [f64; 3]| times.map(|t| format!("{t:9.2}")).concat();
        println!(
            "{tasks:>6} {each:>8} {gap:>8}   {} / {}",
            row(neap),
            row(rayon)
        );
    }
    Ok(())
}
