//! Prints attention's speed as a share of the peaks measured beside it.
//!
//! `cargo run --release -p neap-kernels --example attention [threads] [format] [isa]`

use neap_kernels::attention::bench::{AttentionBench, BenchModel, fma_peak};
use neap_kernels::kv::KvFormat;
use neap_kernels::{Context, Isa, ThreadPool};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let threads = args.next().map_or(Ok(2), |threads| threads.parse())?;
    let format = args.next().unwrap_or_else(|| "f16".to_owned());
    let format = KvFormat::ALL
        .into_iter()
        .find(|known| known.name() == format)
        .ok_or("the formats are f16, bf16, int8 and int4")?;
    let isa = args.next().map_or(Ok(Isa::best()), |isa| isa.parse())?;
    let pool = ThreadPool::new(threads);
    let ctx = Context { isa, pool: &pool };
    let mut bench = AttentionBench::new(ctx, BenchModel::LLAMA_1B, format, 16_896)
        .ok_or("the model makes no block")?;
    println!("{isa}, {threads} threads, {format}");
    for (sequences, depth, rows, repeats) in [
        (1, 1023, 1, 20),
        (1, 4095, 1, 10),
        (1, 16383, 1, 5),
        (8, 1023, 1, 5),
        (32, 255, 1, 5),
        (1, 0, 512, 1),
        (1, 4096, 512, 1),
        (1, 16384, 512, 1),
    ] {
        let before = (bench.read_peak(ctx, 2)?, fma_peak(ctx, 20)?);
        let row = bench.run(ctx, sequences, depth, rows, repeats)?;
        let read = bench.read_peak(ctx, 2)?.max(before.0);
        let fma = fma_peak(ctx, 20)?.max(before.1);
        let (bytes, ops) = (row.bytes as f64 / row.seconds, row.ops as f64 / row.seconds);
        println!(
            "{:24} {:18} {:9.1} us {:6.1} GB/s = {:5.1} % of {:5.1} {:7.1} GFLOP/s = {:5.1} % of {:5.1}",
            row.name,
            row.shape,
            row.seconds * 1e6,
            bytes / 1e9,
            100.0 * bytes / read,
            read / 1e9,
            ops / 1e9,
            100.0 * ops / fma,
            fma / 1e9,
        );
    }
    Ok(())
}
