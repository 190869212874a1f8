//! Prints the matrix products' speed as a share of the peaks measured beside them.
//!
//! `cargo run --release -p neap-kernels --example matmul [threads] [formats] [rows] [isa] [mapped]`,
//! lists by commas, `all` for the default.

use neap_kernels::bench::{BenchOptions, run};
use neap_kernels::format::WeightFormat;
use neap_kernels::{Context, Isa, ThreadPool};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |i: usize| args.get(i).map(String::as_str).filter(|a| *a != "all");
    let threads = arg(0).map_or(Ok(2), str::parse)?;
    let mut options = BenchOptions::default();
    if let Some(names) = arg(1) {
        let named = |name: &str| WeightFormat::ALL.into_iter().find(|f| f.name() == name);
        options.formats = names.split(',').filter_map(named).collect();
    }
    if let Some(rows) = arg(2) {
        options.rows = rows.split(',').map(str::parse).collect::<Result<_, _>>()?;
    }
    let isa = arg(3).map_or(Ok(Isa::best()), str::parse)?;
    options.mapped = arg(4) == Some("mapped");
    let pool = ThreadPool::new(threads);
    let ctx = Context { isa, pool: &pool };
    println!("{isa}, {threads} threads");
    for row in run(ctx, &options)? {
        println!(
            "{:5} {} {:5} x {:5} n {:4} {:9.1} us {:6.2} GB/s = {:5.1} % of {:5.1}  {:7.1} GOPS = {:5.1} % of {:6.1}",
            row.format.name(),
            if row.packed { "packed" } else { "mapped" },
            row.outputs,
            row.inputs,
            row.rows,
            row.seconds * 1e6,
            row.bytes_per_s() / 1e9,
            row.share_of_bytes() * 100.0,
            row.peak_bytes_per_s / 1e9,
            row.ops_per_s() / 1e9,
            row.share_of_ops() * 100.0,
            row.peak_ops_per_s / 1e9,
        );
    }
    Ok(())
}
