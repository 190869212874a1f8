//! `neap eval kv`: what each level of keys and values costs in quality.
//!
//! Every window of the text is run side by side with exact keys and values and with those of each lossy
//! level (all blocks but the first and the newest 128 tokens', in steps of 64 tokens, so that later keys and
//! values come from lossy ones), and their distributions over the next token are compared. The recall tasks
//! are computed in the same short steps. "packed int4" attends to int4 blocks as they are after packing, which makes
//! them coarser.

mod coding;

use std::collections::BTreeMap;
use std::sync::Arc;

use indicatif::ProgressBar;
use neap_kernels::kv::KvFormat;
use neap_memory::{BlockCodec, BlockTable, Level};
use neap_model::decoder::Decoder;
use serde::Serialize;

use self::coding::attention_speedup;
use super::perplexity::{Lane, ROWS, Windows, losses_of, read_text};
use super::plot;
use super::recall::{self, Score};
use crate::args::{EvalKvArgs, KvLevel, ModelArgs};
use crate::failure::Failure;
use crate::loading::{self, Parts};
use crate::sinker::{PackedAndBack, Sinker};

static SHIPPED_TEXT: &str = include_str!("../../../../models/heldout.txt");
/// Tasks of the recall that run at once.
const PARALLEL: usize = 8;
/// Lossless, in RAM.
const PACKED: &str = "packed";
/// Four-bit values, packed.
const PACKED_INT4: &str = "packed int4";

#[derive(Serialize)]
struct Report {
    windows: usize,
    window_tokens: usize,
    scored_tokens: usize,
    /// Of a hot block.
    block_bytes: usize,
    levels: Vec<Row>,
}

/// One level. What is not measured of it is `None`: a lossless level gives the very values back.
#[derive(Default, Serialize)]
struct Row {
    level: &'static str,
    /// Of the level's blocks, all that they hold counted.
    bits_per_value: f64,
    /// Of the tables at the end of the windows, with the blocks that stay hot.
    bits_per_value_held: Option<f64>,
    /// GB of hot bytes encoded a second, by one thread.
    encode_gb_per_s: Option<f64>,
    /// GB of what it is decoded to a second: hot bytes, or int4 ones of "packed int4".
    decode_gb_per_s: Option<f64>,
    /// How many times as fast as f16 a token attends to a window of such blocks, by all threads.
    attention_speedup: Option<f64>,
    perplexity: Option<f64>,
    /// To that of exact keys and values, with the standard error of the paired difference.
    perplexity_ratio: Option<f64>,
    perplexity_ratio_error: Option<f64>,
    /// Mean Kullback–Leibler divergence from exact keys and values, in nats a token.
    kl_mean: Option<f64>,
    /// The share of tokens whose most likely successor is the same.
    top1_agreement: Option<f64>,
    recall: Option<Score>,
    recall_by_distance_tokens: BTreeMap<usize, Score>,
}

pub fn run(args: &EvalKvArgs) -> Result<(), Failure> {
    if args.model.kv_level != KvLevel::Auto || args.model.kv_quality.is_some() {
        return Err(Failure::new(
            "eval kv measures every level: leave out --kv-level and --kv-quality",
        ));
    }
    let mut report = compare(args)?;
    if !args.no_recall {
        let tasks = recall::shipped_tasks()?;
        for row in report.levels.iter_mut().filter(|row| row.level != PACKED) {
            let found = recall_of(&args.model, row.level, &tasks)?;
            row.recall = Some(found.all);
            row.recall_by_distance_tokens = found.by_distance_tokens;
        }
    }
    if let Some(path) = &args.plot {
        std::fs::write(path, plot(&report)).map_err(|why| {
            Failure::new(format!(
                "the plot {} can't be written: {why}",
                path.display()
            ))
        })?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(())
}

/// The recall with keys and values of one level.
fn recall_of(
    args: &ModelArgs,
    level: &str,
    tasks: &[recall::Task],
) -> Result<recall::Report, Failure> {
    let model = ModelArgs {
        kv_level: match level {
            "hot" => KvLevel::Auto,
            "int8" => KvLevel::Int8,
            _ => KvLevel::Int4,
        },
        chunk: args.chunk.min(ROWS as u32),
        ..args.clone()
    };
    recall::measure(&model, PARALLEL, tasks, |parts| {
        if level == PACKED_INT4
            && let Some(codec) = PackedAndBack::new(parts)
        {
            parts.quantized.int4 = Some(Arc::new(codec));
        }
    })
}

fn plot(report: &Report) -> String {
    let points = report.levels.iter().map(|row| plot::Point {
        name: row.level,
        bits_per_value: row.bits_per_value,
        kl: row.kl_mean.unwrap_or(0.0),
    });
    let title = format!("Keys and values, over {} tokens", report.scored_tokens);
    plot::svg(&title, &points.collect::<Vec<_>>())
}

/// A level that is run through the text.
struct Contestant {
    name: &'static str,
    lane: Lane,
    sums: Sums,
}

impl Contestant {
    fn new(
        parts: &Parts,
        name: &'static str,
        codec: Option<Arc<dyn BlockCodec>>,
    ) -> Result<Self, Failure> {
        Ok(Self {
            name,
            lane: Lane {
                table: BlockTable::new(&parts.kv),
                sinker: Sinker::by(parts, codec)?,
                adapter: None,
            },
            sums: Sums::default(),
        })
    }

    /// The exact one first.
    fn all(parts: &Parts) -> Result<Vec<Self>, Failure> {
        let mut all = vec![Self::new(parts, Level::Hot.name(), None)?];
        for codec in parts.quantized.iter() {
            all.push(Self::new(
                parts,
                codec.level().name(),
                Some(Arc::clone(codec)),
            )?);
        }
        if let Some(codec) = PackedAndBack::new(parts) {
            all.push(Self::new(parts, PACKED_INT4, Some(Arc::new(codec)))?);
        }
        Ok(all)
    }
}

/// Over all scored tokens.
#[derive(Default)]
struct Sums {
    losses: Vec<f64>,
    divergence: f64,
    agreed: usize,
    held_bits: f64,
}

/// Runs the text through every level.
fn compare(args: &EvalKvArgs) -> Result<Report, Failure> {
    let text = match &args.file {
        Some(path) => read_text(path)?,
        None => SHIPPED_TEXT.to_owned(),
    };
    let mut parts = loading::load_parts(&args.model, ROWS)?;
    let windows = Windows::of(&parts, &text, args.window)?;
    let count = windows.len().min(args.windows);
    let mut contestants = Contestant::all(&parts)?;
    let bar = ProgressBar::new(count as u64);
    let mut codings = Vec::new();
    for window in windows.iter().take(count) {
        run_window(&mut parts, &windows, &window, &mut contestants)?;
        if codings.is_empty() {
            codings = coding::measure(&parts, &contestants[0].lane.table)?;
            if let Some(folder) = &args.dump {
                coding::dump(&parts, &contestants[0].lane.table, folder)?;
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let exact = contestants[0].sums.losses.clone();
    let mut levels: Vec<Row> = contestants
        .iter()
        .map(|contestant| row(&parts, contestant, &exact, count))
        .collect();
    levels.insert(
        1,
        Row {
            level: PACKED,
            ..Row::default()
        },
    );
    for row in &mut levels {
        if let Some(coding) = codings.iter().find(|coding| coding.name == row.level) {
            row.bits_per_value = coding.bits_per_value;
            row.encode_gb_per_s = Some(coding.encode_gb_per_s);
            row.decode_gb_per_s = Some(coding.decode_gb_per_s);
        }
        row.attention_speedup = attention_speedup(&parts, row.level, windows.tokens_each)?;
    }
    Ok(Report {
        windows: count,
        window_tokens: windows.tokens_each,
        scored_tokens: exact.len(),
        block_bytes: parts.kv.block_bytes(),
        levels,
    })
}

/// One window, step by step through every level; the first is the exact one.
fn run_window(
    parts: &mut Parts,
    windows: &Windows,
    window: &[u32],
    contestants: &mut [Contestant],
) -> Result<(), Failure> {
    for contestant in contestants.iter_mut() {
        contestant.lane.table.clear();
    }
    let vocab = parts.decoder.vocab_size();
    let mut exact: Vec<f32> = Vec::new();
    for step in windows.steps(true) {
        for contestant in contestants.iter_mut() {
            let rows = contestant.lane.forward(parts, window, &step)?;
            if contestant.name == Level::Hot.name() {
                exact.clear();
                exact.extend_from_slice(rows);
            }
            let sums = &mut contestant.sums;
            sums.losses.extend(losses_of(rows, window, &step));
            for (exact, row) in exact.chunks_exact(vocab).zip(rows.chunks_exact(vocab)) {
                sums.divergence += divergence(exact, row);
                sums.agreed += usize::from(argmax(exact) == argmax(row));
            }
        }
    }
    let layout = parts.decoder.model().kv_layout();
    let values = values_of(parts) as f64;
    for contestant in contestants {
        let blocks = contestant.lane.table.blocks();
        let bits: usize = blocks
            .iter()
            .map(|block| 8 * layout.block_bytes(format_of(block.level())))
            .sum();
        contestant.sums.held_bits += bits as f64 / (values * blocks.len() as f64);
    }
    Ok(())
}

fn format_of(level: Level) -> KvFormat {
    match level {
        Level::Int8 => KvFormat::Int8,
        Level::Int4 => KvFormat::Int4,
        _ => KvFormat::F16,
    }
}

/// Values in a block.
fn values_of(parts: &Parts) -> usize {
    let layout = parts.decoder.model().kv_layout();
    2 * layout.layers() * layout.width() * layout.block_tokens()
}

/// The Kullback–Leibler divergence of the distribution of `logits` from that of `exact`, in nats.
fn divergence(exact: &[f32], logits: &[f32]) -> f64 {
    let log_sum = |logits: &[f32]| {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
        f64::from(max) + sum.ln()
    };
    let (p_sum, q_sum) = (log_sum(exact), log_sum(logits));
    let pairs = exact.iter().zip(logits);
    pairs
        .map(|(&p, &q)| {
            let (p, q) = (f64::from(p) - p_sum, f64::from(q) - q_sum);
            p.exp() * (p - q)
        })
        .sum()
}

fn argmax(logits: &[f32]) -> usize {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(i, _)| i)
}

fn row(parts: &Parts, contestant: &Contestant, exact: &[f64], windows: usize) -> Row {
    let layout = parts.decoder.model().kv_layout();
    let hot_bits = 8 * layout.block_bytes(KvFormat::F16);
    let sums = &contestant.sums;
    let n = exact.len() as f64;
    let pairs = sums.losses.iter().zip(exact);
    let differences: Vec<f64> = pairs.map(|(loss, exact)| loss - exact).collect();
    let mean = differences.iter().sum::<f64>() / n;
    let variance = differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    Row {
        level: contestant.name,
        bits_per_value: hot_bits as f64 / values_of(parts) as f64,
        bits_per_value_held: Some(sums.held_bits / windows as f64),
        perplexity: Some((sums.losses.iter().sum::<f64>() / n).exp()),
        perplexity_ratio: Some(mean.exp()),
        perplexity_ratio_error: Some(mean.exp() * (variance / n).sqrt()),
        kl_mean: Some(sums.divergence / n),
        top1_agreement: Some(sums.agreed as f64 / n),
        ..Row::default()
    }
}

fn print(report: &Report) {
    println!(
        "{} tokens scored, the second halves of {} windows of {}",
        report.scored_tokens, report.windows, report.window_tokens
    );
    let mut head = format!(
        "{:11} {:>6} {:>6} {:>8} {:>8} {:>6} {:>10} {:>18} {:>9} {:>8}",
        "level",
        "bits",
        "held",
        "enc GB/s",
        "dec GB/s",
        "att ×",
        "perplexity",
        "ratio",
        "KL",
        "top-1"
    );
    let distances: Vec<usize> = report
        .levels
        .iter()
        .flat_map(|row| row.recall_by_distance_tokens.keys().copied())
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect();
    for distance in &distances {
        head.push_str(&format!(" recall {distance}"));
    }
    println!("{head}");
    for row in &report.levels {
        println!("{}", line(row, &distances));
    }
}

fn line(row: &Row, distances: &[usize]) -> String {
    let number = |value: Option<f64>, width: usize, digits: usize| match value {
        Some(value) => format!("{value:width$.digits$}"),
        None => format!("{:>width$}", "-"),
    };
    let percent = |share: Option<f64>, width: usize, digits: usize| match share {
        Some(share) => format!("{:width$.digits$}%", 100.0 * share, width = width - 1),
        None => format!("{:>width$}", "-"),
    };
    let ratio = match (row.perplexity_ratio, row.perplexity_ratio_error) {
        (Some(ratio), Some(error)) => format!("{ratio:.5} ± {error:.5}"),
        _ => "1".to_owned(),
    };
    let kl = row.kl_mean.map_or("0".to_owned(), |kl| format!("{kl:.2e}"));
    let mut line = format!(
        "{:11} {:6.2} {} {} {} {} {} {ratio:>18} {kl:>9} {}",
        row.level,
        row.bits_per_value,
        number(row.bits_per_value_held, 6, 2),
        number(row.encode_gb_per_s, 8, 2),
        number(row.decode_gb_per_s, 8, 2),
        number(row.attention_speedup, 6, 2),
        number(row.perplexity, 10, 4),
        percent(row.top1_agreement, 8, 2),
    );
    for distance in distances {
        let score = row.recall_by_distance_tokens.get(distance);
        let width = "recall ".len() + distance.to_string().len();
        line.push(' ');
        line.push_str(&percent(score.map(|score| score.share), width, 1));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_diverges_from_others_only() {
        let exact = [1.0, 2.0, 3.0];
        assert!(divergence(&exact, &[2.0, 3.0, 4.0]).abs() < 1e-9, "shifted");
        // p = (1/2, 1/2), q = (1/4, 3/4): ln(2)/2 + ln(2/3)/2.
        let (p, q) = ([0.0, 0.0], [0.0, 3.0_f32.ln()]);
        let by_hand = 0.5 * 2.0_f64.ln() + 0.5 * (2.0_f64 / 3.0).ln();
        assert!((divergence(&p, &q) - by_hand).abs() < 1e-6);
        assert_eq!(argmax(&exact), 2);
    }
}
