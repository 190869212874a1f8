//! `neap bench kernels`: each kernel against what the machine allows.
//!
//! Decoding is bound by the bytes that it must read, prefill by the operations that it must make; both
//! bounds are measured beside each kernel, with the same threads.

use std::time::Duration;

use neap_kernels::attention::bench::{AttentionBench, BenchModel, fma_peak};
use neap_kernels::bench::{self, BenchOptions};
use neap_kernels::format::WeightFormat;
use neap_kernels::kv::KvFormat;
use neap_kernels::{Context, Isa, ThreadPool, pool};
use serde::Serialize;

use crate::args::BenchKernelsArgs;
use crate::failure::Failure;

#[derive(Serialize)]
struct Report {
    isa: String,
    threads: usize,
    kernels: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    kernel: String,
    shape: String,
    microseconds: f64,
    /// Bytes that must be read from memory.
    bytes: u64,
    /// Multiplications and additions that must be made.
    ops: u64,
    gb_per_s: f64,
    gops_per_s: f64,
    /// Of the read bandwidth of the same threads.
    share_of_bandwidth: f64,
    /// Of the peak of the same arithmetic on registers.
    share_of_peak: f64,
}

pub fn run(args: &BenchKernelsArgs) -> Result<(), Failure> {
    let threads = args
        .threads
        .map_or_else(pool::available_threads, usize::from);
    let pool = ThreadPool::new(threads);
    let isa = args.isa.unwrap_or_else(Isa::best);
    let context = Context { isa, pool: &pool };
    if !args.json {
        println!(
            "{isa}, {} threads; the best of repeated calls",
            pool.threads()
        );
        println!(
            "kernel             shape                            µs      GB/s  share     Gop/s  share"
        );
    }
    let mut kernels = products(args, context)?;
    kernels.extend(attention(args, context)?);
    if args.json {
        let report = Report {
            isa: isa.to_string(),
            threads: pool.threads(),
            kernels,
        };
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    Ok(())
}

fn products(args: &BenchKernelsArgs, context: Context<'_>) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    let formats = if args.format.is_empty() {
        BenchOptions::default().formats
    } else {
        args.format.clone()
    };
    // Format by format, so that figures appear as they are measured.
    for format in formats {
        let options = BenchOptions {
            formats: vec![format],
            mapped: args.mapped,
            time: Duration::from_millis(args.time_ms),
            ..BenchOptions::default()
        };
        for measured in bench::run(context, &options)? {
            let layout = if measured.packed { "" } else { " mapped" };
            let row = Row {
                kernel: format!("product {}{layout}", measured.format.name()),
                shape: format!(
                    "{} x {} by {} rows",
                    measured.outputs, measured.inputs, measured.rows
                ),
                microseconds: measured.seconds * 1e6,
                bytes: measured.bytes,
                ops: measured.ops,
                gb_per_s: measured.bytes_per_s() / 1e9,
                gops_per_s: measured.ops_per_s() / 1e9,
                share_of_bandwidth: measured.share_of_bytes(),
                share_of_peak: measured.share_of_ops(),
            };
            print(args, &row);
            rows.push(row);
        }
    }
    Ok(rows)
}

/// Attention of a model of a billion parameters: one row of one sequence, then a prompt, at several
/// depths.
fn attention(args: &BenchKernelsArgs, context: Context<'_>) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    let Some(mut bench) = AttentionBench::new(context, BenchModel::LLAMA_1B, KvFormat::F16, 17_000)
    else {
        return Ok(rows);
    };
    let (peak_bytes_per_s, peak_ops_per_s) = (bench.read_peak(context, 3)?, fma_peak(context, 3)?);
    for (new_rows, depths) in [(1, &[1024, 4096, 16_384][..]), (512, &[0, 4096, 16_384])] {
        for &depth in depths {
            let measured = bench.run(context, 1, depth, new_rows, 2)?;
            let row = Row {
                kernel: measured.name,
                shape: measured.shape,
                microseconds: measured.seconds * 1e6,
                bytes: measured.bytes,
                ops: measured.ops,
                gb_per_s: measured.bytes as f64 / measured.seconds / 1e9,
                gops_per_s: measured.ops as f64 / measured.seconds / 1e9,
                share_of_bandwidth: measured.bytes as f64 / measured.seconds / peak_bytes_per_s,
                share_of_peak: measured.ops as f64 / measured.seconds / peak_ops_per_s,
            };
            print(args, &row);
            rows.push(row);
        }
    }
    Ok(rows)
}

fn print(args: &BenchKernelsArgs, row: &Row) {
    if args.json {
        return;
    }
    println!(
        "{:18} {:28} {:8.1} {:9.2} {:5.1}% {:9.1} {:5.1}%",
        row.kernel,
        row.shape,
        row.microseconds,
        row.gb_per_s,
        row.share_of_bandwidth * 100.0,
        row.gops_per_s,
        row.share_of_peak * 100.0,
    );
}

/// A weight format by its name in ggml.
pub fn parse_format(name: &str) -> Result<WeightFormat, String> {
    let known = || WeightFormat::ALL.map(WeightFormat::name).join(", ");
    WeightFormat::ALL
        .into_iter()
        .find(|format| format.name().eq_ignore_ascii_case(name))
        .ok_or_else(|| format!("there is no format {name}; there are {}", known()))
}
