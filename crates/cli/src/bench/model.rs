//! `neap bench model`: prefill and decode speed of a model, with memory.
//!
//! Tokens are pseudo-random; a context of a given depth is made by filling KV blocks with
//! pseudo-random values instead of computing them. Neither changes the work that is measured.
//!
//! Decoding is limited by how fast weights, keys and values come from memory. On a shared machine that changes from
//! minute to minute, so it is measured between the runs: the same threads read the same weights, doing nothing else.

use std::time::Instant;

use neap_kernels::bench::read_peak;
use neap_kernels::kv::{self, KvFormat};
use neap_memory::resident::rss_bytes;
use neap_memory::{Block, BlockTable, KvPool};
use neap_model::decoder::{CpuDecoder, Decoder, LogitsWanted, SequenceChunk};
use serde::Serialize;

use crate::args::BenchModelArgs;
use crate::failure::Failure;
use crate::loading::{self, Parts};
use crate::sinker::Sinker;

#[derive(Serialize)]
struct Report {
    model: String,
    threads: usize,
    isa: String,
    repacked: bool,
    kv_level: &'static str,
    weights_bytes: u64,
    results: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    kind: &'static str,
    prompt: usize,
    generate: usize,
    depth: usize,
    batch: usize,
    median_tokens_per_s: f64,
    /// Slowest to fastest measurement, as a share of the median.
    spread: f64,
    kv_bytes: u64,
    charged_bytes: u64,
    rss_bytes: u64,
    #[serde(flatten)]
    reads: Option<Reads>,
}

/// What a step of decoding must read, against how fast that can be.
#[derive(Serialize)]
struct Reads {
    /// Weights, keys and values that the last step reads.
    step_bytes: u64,
    /// Bytes a second that the steps read.
    read_bytes_per_s: f64,
    /// Bytes a second that the same threads read from the weights between the runs, doing nothing else.
    limit_bytes_per_s: f64,
}

pub fn run(args: &BenchModelArgs) -> Result<(), Failure> {
    let max_batch = args.batch.iter().copied().max().unwrap_or(1).max(1);
    let parts = loading::load_parts(&args.model, max_batch)?;
    let sinker = Sinker::new(&parts, parts.level)?;
    let mut bench = Bench {
        args,
        parts,
        sinker,
        random: 1,
    };
    let mut rows = Vec::new();
    for &depth in &args.depth {
        for &prompt in &args.prompt {
            rows.extend(bench.measure("prefill", prompt, depth, 1)?);
        }
        if args.generate > 0 {
            for &batch in &args.batch {
                rows.extend(bench.measure("decode", args.generate, depth, batch.max(1))?);
            }
        }
    }
    if args.json {
        let report = bench.report(rows);
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    Ok(())
}

struct Bench<'a> {
    args: &'a BenchModelArgs,
    parts: Parts,
    sinker: Sinker,
    random: u64,
}

impl Bench<'_> {
    fn report(&self, results: Vec<Row>) -> Report {
        let model = self.parts.decoder.model();
        Report {
            model: self.parts.name.clone(),
            threads: self.parts.threads,
            isa: self.parts.isa.to_string(),
            repacked: model.is_repacked(),
            kv_level: self.parts.level.name(),
            weights_bytes: model.weights_bytes(),
            results,
        }
    }

    /// Measures one case; a case that does not fit the budget or the context is reported and left out.
    fn measure(
        &mut self,
        kind: &'static str,
        tokens: usize,
        depth: usize,
        batch: usize,
    ) -> Result<Option<Row>, Failure> {
        let needed = depth + tokens;
        if tokens == 0 || needed > self.parts.decoder.context_tokens() {
            eprintln!("{kind} of {tokens} tokens at depth {depth}: over the context; left out");
            return Ok(None);
        }
        let mut speeds = Vec::new();
        let mut limits = Vec::new();
        let mut memory = (0, 0, 0);
        // The first run warms caches and pages and is not counted.
        for repeat in 0..=self.args.repeat.max(1) {
            let tables = (0..batch)
                .map(|_| self.table(depth, needed))
                .collect::<Result<Vec<_>, _>>();
            let Ok(mut tables) = tables else {
                eprintln!(
                    "{kind} of {tokens} tokens at depth {depth}, {batch} sequences: over the budget; left out"
                );
                return Ok(None);
            };
            if kind == "decode" {
                limits.extend(self.read_limit()?);
            }
            let start = Instant::now();
            if kind == "prefill" {
                self.prefill(&mut tables[0], tokens)?
            } else {
                self.decode(&mut tables, tokens)?
            }
            let seconds = start.elapsed().as_secs_f64();
            if repeat > 0 {
                speeds.push((tokens * batch) as f64 / seconds);
            }
            let budget = &self.parts.budget;
            let kv_bytes = tables
                .iter()
                .flat_map(BlockTable::blocks)
                .map(Block::charged_bytes)
                .sum();
            memory = (kv_bytes, budget.charged(), rss_bytes().unwrap_or(0));
        }
        let median = middle(&mut speeds);
        let step_bytes = self.dense_bytes() + memory.0;
        let reads = (!limits.is_empty()).then(|| Reads {
            step_bytes,
            read_bytes_per_s: step_bytes as f64 * median / batch as f64,
            limit_bytes_per_s: middle(&mut limits),
        });
        let row = Row {
            kind,
            prompt: if kind == "prefill" { tokens } else { 0 },
            generate: if kind == "decode" { tokens } else { 0 },
            depth,
            batch,
            median_tokens_per_s: median,
            spread: (speeds[speeds.len() - 1] - speeds[0]) / median,
            kv_bytes: memory.0,
            charged_bytes: memory.1,
            rss_bytes: memory.2,
            reads,
        };
        self.print(&row, tokens);
        Ok(Some(row))
    }

    /// Bytes a second that the threads read from the weights; nothing where the caches may hold them, where they are
    /// streamed, or where which are read depends on the token.
    fn read_limit(&self) -> Result<Option<f64>, Failure> {
        const MORE_THAN_CACHES: u64 = 128 << 20;
        let model = self.parts.decoder.model();
        let dense = model.config().experts.is_none() && model.streamed_bytes() == 0;
        if !dense || self.dense_bytes() < MORE_THAN_CACHES {
            return Ok(None);
        }
        let context = self.parts.decoder.context();
        Ok(Some(read_peak(context, &model.dense_weights())?))
    }

    fn dense_bytes(&self) -> u64 {
        let weights = self.parts.decoder.model().dense_weights();
        weights.iter().map(|part| part.len() as u64).sum()
    }

    fn print(&self, row: &Row, tokens: usize) {
        let reads = row.reads.as_ref().map_or(String::new(), |reads| {
            format!(
                "  reads {:5.1} of {:5.1} GB/s",
                reads.read_bytes_per_s / 1e9,
                reads.limit_bytes_per_s / 1e9,
            )
        });
        let line = format!(
            "{:8} {tokens:6} tokens  depth {:6}  batch {:3}  {:9.2} tokens/s  ±{:4.1} %  KV {:>10}  RSS {:>10}{reads}",
            row.kind,
            row.depth,
            row.batch,
            row.median_tokens_per_s,
            row.spread * 50.0,
            crate::bytes::show(row.kv_bytes),
            crate::bytes::show(row.rss_bytes),
        );
        if self.args.json {
            eprintln!("{line}")
        } else {
            println!("{line}")
        }
    }

    fn random(&mut self) -> u64 {
        // xorshift64* (Vigna 2016).
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn tokens(&mut self, n: usize) -> Vec<u32> {
        let vocab = self.parts.decoder.vocab_size() as u64;
        (0..n).map(|_| (self.random() % vocab) as u32).collect()
    }

    /// A table that holds `depth` tokens and has room for `capacity`.
    fn table(&mut self, depth: usize, capacity: usize) -> Result<BlockTable, Failure> {
        let pool: &KvPool = &self.parts.kv;
        let mut table = BlockTable::new(pool);
        table.reserve(capacity)?;
        let layout = self.parts.decoder.model().kv_layout();
        let width = layout.width() * layout.block_tokens();
        let values: Vec<f32> = (0..2 * width)
            .map(|_| (self.random() >> 40) as f32 / (1 << 23) as f32 - 1.0)
            .collect();
        let (k, v) = values.split_at(width);
        for block in 0..depth.div_ceil(layout.block_tokens()) {
            for layer in 0..layout.layers() {
                kv::write_kv_run(
                    self.parts.isa,
                    &layout,
                    KvFormat::F16,
                    layer,
                    table.block_mut(block),
                    0,
                    k,
                    v,
                );
            }
        }
        table.advance(depth);
        self.sinker.sink(&mut table);
        Ok(table)
    }

    fn prefill(&mut self, table: &mut BlockTable, tokens: usize) -> Result<(), Failure> {
        let tokens = self.tokens(tokens);
        let decoder: &mut CpuDecoder = &mut self.parts.decoder;
        let step = decoder.limits().batch_tokens;
        let chunks = tokens.len().div_ceil(step);
        for (i, tokens) in tokens.chunks(step).enumerate() {
            let logits = if i + 1 == chunks {
                LogitsWanted::Last
            } else {
                LogitsWanted::None
            };
            decoder.forward(&mut [SequenceChunk {
                tokens,
                table,
                logits,
                adapter: None,
                second_segment: None,
            }])?;
            self.sinker.sink(table);
        }
        Ok(())
    }

    fn decode(&mut self, tables: &mut [BlockTable], steps: usize) -> Result<(), Failure> {
        for _ in 0..steps {
            let tokens = self.tokens(tables.len());
            let mut batch: Vec<SequenceChunk<'_>> = tables
                .iter_mut()
                .zip(&tokens)
                .map(|(table, token)| SequenceChunk {
                    tokens: std::slice::from_ref(token),
                    table,
                    logits: LogitsWanted::Last,
                    adapter: None,
                    second_segment: None,
                })
                .collect();
            self.parts.decoder.forward(&mut batch)?;
            for table in tables.iter_mut() {
                self.sinker.sink(table);
            }
        }
        Ok(())
    }
}

/// The median, or the higher of the two in the middle.
///
/// # Panics
/// If there is no number.
fn middle(numbers: &mut [f64]) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}
