//! `neap bench kernels`: each kernel against what the machine allows.
//!
//! Decoding is bound by the bytes that it must read, prefill by the operations that it must make; both
//! bounds are measured beside each kernel, with the same threads.

use std::time::Duration;

use neap_kernels::attention::bench::{AttentionBench, BenchModel, BenchRow, fma_peak};
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
    /// Attention alone, of all layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    speed_against_f16: Option<f64>,
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
            "kernel                 shape                            µs      GB/s  share     Gop/s  share"
        );
    }
    let mut kernels = if args.attention {
        Vec::new()
    } else {
        products(args, context)?
    };
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
                tokens_per_s: None,
                speed_against_f16: None,
            };
            print(args, &row);
            rows.push(row);
        }
    }
    Ok(rows)
}

/// Tokens of context that attention's cache has room for.
const CONTEXT_TOKENS: usize = 17_000;
/// New tokens and the depths at which they attend.
const CASES: [(usize, &[usize]); 2] = [
    (1, &[1024, 4096, 16_384, CONTEXT_TOKENS - 1]),
    (512, &[0, 4096, 16_384]),
];

/// Attention of a model of a billion parameters: one row of one sequence, then a prompt, at several
/// depths and in each KV format; and converting blocks.
fn attention(args: &BenchKernelsArgs, context: Context<'_>) -> Result<Vec<Row>, Failure> {
    let mut rows: Vec<Row> = Vec::new();
    let peak_ops_per_s = fma_peak(context, 3)?;
    for format in [KvFormat::F16, KvFormat::Int8, KvFormat::Int4] {
        let model = BenchModel::LLAMA_1B;
        let Some(mut bench) = AttentionBench::new(context, model, format, CONTEXT_TOKENS) else {
            continue;
        };
        let peak_bytes_per_s = bench.read_peak(context, 3)?;
        let mut add = |measured: BenchRow, tokens: Option<usize>| {
            let mut row = Row::of(&measured, peak_bytes_per_s, peak_ops_per_s);
            row.tokens_per_s =
                tokens.map(|tokens| tokens as f64 / measured.seconds / model.layers as f64);
            // The same work on f16, which was measured first.
            let same = |of: &&Row| of.shape == row.shape && of.tokens_per_s.is_some();
            let f16 = rows.iter().find(same).filter(|_| tokens.is_some());
            row.speed_against_f16 = f16.map(|f16| f16.microseconds / row.microseconds);
            print(args, &row);
            rows.push(row);
        };
        for (new_rows, depths) in CASES {
            for &depth in depths {
                add(bench.run(context, 1, depth, new_rows, 2)?, Some(new_rows));
            }
        }
        if format == KvFormat::F16 {
            for to in [KvFormat::Int8, KvFormat::Int4] {
                add(bench.run_convert(context.isa, to, 3), None);
            }
        } else {
            add(bench.run_convert(context.isa, KvFormat::F16, 3), None);
        }
    }
    Ok(rows)
}

impl Row {
    fn of(measured: &BenchRow, peak_bytes_per_s: f64, peak_ops_per_s: f64) -> Self {
        let (bytes, ops) = (measured.bytes as f64, measured.ops as f64);
        Row {
            kernel: measured.name.clone(),
            shape: measured.shape.clone(),
            microseconds: measured.seconds * 1e6,
            bytes: measured.bytes,
            ops: measured.ops,
            gb_per_s: bytes / measured.seconds / 1e9,
            gops_per_s: ops / measured.seconds / 1e9,
            share_of_bandwidth: bytes / measured.seconds / peak_bytes_per_s,
            share_of_peak: ops / measured.seconds / peak_ops_per_s,
            tokens_per_s: None,
            speed_against_f16: None,
        }
    }
}

fn print(args: &BenchKernelsArgs, row: &Row) {
    if args.json {
        return;
    }
    let tokens = row
        .tokens_per_s
        .map_or(String::new(), |tokens| format!(" {tokens:9.1} tok/s"));
    let against = row
        .speed_against_f16
        .map_or(String::new(), |ratio| format!(" {ratio:5.2} x f16"));
    println!(
        "{:22} {:28} {:8.1} {:9.2} {:5.1}% {:9.1} {:5.1}%{tokens}{against}",
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
