//! Measuring attention against the machine: how much of the read bandwidth decoding reaches, and how much of the peak
//! of fused multiply-adds prefill does. The peaks are measured beside, with the same threads.

use super::{AttentionScratch, AttentionSequence, AttentionShape, Line, attention};
use crate::bench::read_peak;
use crate::kv::{BLOCK_TOKENS, KvBlock, KvFormat, KvLayout, convert_block, write_kv_run};
use crate::ops::lanes::{Kernel, LANES, Lanes, dispatch};
use crate::pool::WorkerPanic;
use crate::{Context, Isa};
use std::time::Instant;

/// One measured kernel.
#[derive(Clone, Debug)]
pub struct BenchRow {
    /// What ran.
    pub name: String,
    /// On what.
    pub shape: String,
    /// The shortest time of a call.
    pub seconds: f64,
    /// Bytes a call must read from memory.
    pub bytes: u64,
    /// Additions and multiplications a call must make.
    pub ops: u64,
}

/// The attention of a model.
#[derive(Clone, Copy, Debug)]
pub struct BenchModel {
    /// Query heads.
    pub heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Values in a head.
    pub head_dim: usize,
    /// Layers that the calls go through in turn, so that each reads from memory and not from a cache.
    pub layers: usize,
}

impl BenchModel {
    /// The shape of Llama 3.2 1B.
    pub const LLAMA_1B: Self = Self {
        heads: 32,
        kv_heads: 8,
        head_dim: 64,
        layers: 16,
    };
}

/// A cache of random keys and values, and what is needed to attend to it.
pub struct AttentionBench {
    model: BenchModel,
    layout: KvLayout,
    format: KvFormat,
    blocks: Vec<Line>,
    tokens: usize,
    scratch: AttentionScratch,
}

impl AttentionBench {
    /// Fills `tokens` tokens of cache; nothing for a model whose dimensions make no block.
    pub fn new(
        ctx: Context<'_>,
        model: BenchModel,
        format: KvFormat,
        tokens: usize,
    ) -> Option<Self> {
        let layout = KvLayout::new(model.layers, model.kv_heads, model.head_dim).ok()?;
        let lines_per_block = layout.block_bytes(format) / size_of::<Line>();
        let count = tokens.div_ceil(BLOCK_TOKENS);
        let mut blocks = vec![Line([0.0; LANES]); count * lines_per_block];
        let mut state = 1;
        let mut written = vec![0; layout.block_bytes(KvFormat::F16)];
        for block in blocks.chunks_exact_mut(lines_per_block) {
            for layer in 0..model.layers {
                let n = BLOCK_TOKENS * layout.width();
                let (k, v) = (random(&mut state, n), random(&mut state, n));
                write_kv_run(
                    ctx.isa,
                    &layout,
                    KvFormat::F16,
                    layer,
                    &mut written,
                    0,
                    &k,
                    &v,
                );
            }
            let from = KvBlock {
                format: KvFormat::F16,
                bytes: &written,
            };
            convert_block(ctx.isa, &layout, from, format, as_bytes_mut(block));
        }
        let scratch = AttentionScratch::new();
        Some(Self {
            model,
            layout,
            format,
            blocks,
            tokens: count * BLOCK_TOKENS,
            scratch,
        })
    }

    /// `rows` new tokens of each of `sequences` sequences, `depth` tokens being before them. Sequences that do not fit
    /// into the cache at once share blocks.
    ///
    /// # Errors
    /// If a worker panicked.
    pub fn run(
        &mut self,
        ctx: Context<'_>,
        sequences: usize,
        depth: usize,
        rows: usize,
        repeats: usize,
    ) -> Result<BenchRow, WorkerPanic> {
        let Self {
            model,
            layout,
            format,
            blocks,
            tokens,
            scratch,
        } = self;
        let lines_per_block = layout.block_bytes(*format) / size_of::<Line>();
        let views: Vec<KvBlock<'_>> = blocks
            .chunks_exact(lines_per_block)
            .map(|block| KvBlock {
                format: *format,
                bytes: as_bytes(block),
            })
            .collect();
        let per_sequence = (depth + rows).div_ceil(BLOCK_TOKENS);
        let places = (*tokens / BLOCK_TOKENS / per_sequence.max(1)).max(1);
        let width = model.heads * model.head_dim;
        let q = random(&mut 7, sequences * rows * width);
        let mut out = vec![0.0; q.len()];
        let mut seconds = f64::INFINITY;
        for repeat in 0..repeats * model.layers {
            let shape = AttentionShape {
                layer: repeat % model.layers,
                heads: model.heads,
                scale: 1.0 / (model.head_dim as f32).sqrt(),
                window: None,
                softcap: None,
                sinks: None,
            };
            let table = |i: usize| {
                let place = (repeat / model.layers * sequences + i) % places;
                let blocks = &views[place * per_sequence..][..per_sequence];
                AttentionSequence {
                    blocks,
                    rows,
                    first_position: depth,
                }
            };
            let sequences: Vec<_> = (0..sequences).map(table).collect();
            let start = Instant::now();
            attention(ctx, layout, &shape, &sequences, &q, &mut out, scratch)?;
            seconds = seconds.min(start.elapsed().as_secs_f64());
        }
        let name = if rows == 1 {
            "attention decode"
        } else {
            "attention prefill"
        };
        let seen: usize = (1..=rows).map(|row| depth + row).sum();
        Ok(BenchRow {
            name: format!("{name} {format}"),
            shape: format!("{sequences} x {rows} at {depth}"),
            seconds,
            bytes: (sequences * per_sequence * model.kv_heads * layout.tile_bytes(*format)) as u64,
            ops: (sequences * seen * width * 4) as u64,
        })
    }

    /// Converts the cache's first blocks to another format, on one thread. Counts the bytes before.
    pub fn run_convert(&self, isa: Isa, to: KvFormat, repeats: usize) -> BenchRow {
        /// More than the caches hold.
        const BYTES: usize = 64 << 20;
        let lines_per_block = self.layout.block_bytes(self.format) / size_of::<Line>();
        let count = (BYTES / size_of::<Line>() / lines_per_block).max(1);
        let mut out = vec![0; self.layout.block_bytes(to)];
        let (mut seconds, mut converted) = (f64::INFINITY, 1);
        for _ in 0..repeats {
            let start = Instant::now();
            converted = 0;
            for block in self.blocks.chunks_exact(lines_per_block).take(count) {
                let from = KvBlock {
                    format: self.format,
                    bytes: as_bytes(block),
                };
                convert_block(isa, &self.layout, from, to, &mut out);
                converted += 1;
            }
            seconds = seconds.min(start.elapsed().as_secs_f64() / converted as f64);
        }
        std::hint::black_box(&out);
        BenchRow {
            name: format!("convert {} to {to}", self.format),
            shape: format!("{converted} blocks, 1 thread"),
            seconds,
            bytes: self.layout.block_bytes(self.format) as u64,
            ops: 0,
        }
    }

    /// Reads the cache as fast as the threads can, in bytes a second: the best of `repeats`.
    ///
    /// # Errors
    /// If a worker panicked.
    pub fn read_peak(&self, ctx: Context<'_>, repeats: usize) -> Result<f64, WorkerPanic> {
        let mut best = 0.0_f64;
        for _ in 0..repeats {
            best = best.max(read_peak(ctx, &[as_bytes(&self.blocks)])?);
        }
        Ok(best)
    }
}

/// Fused multiply-adds on registers by all threads, in operations (two for each) a second: the best of `repeats`.
///
/// # Errors
/// If a worker panicked.
pub fn fma_peak(ctx: Context<'_>, repeats: usize) -> Result<f64, WorkerPanic> {
    let threads = ctx.pool.threads();
    let mut best = 0.0_f64;
    for _ in 0..repeats {
        let start = Instant::now();
        ctx.pool.run(threads, &|_, _| {
            std::hint::black_box(dispatch(ctx.isa, Spin));
        })?;
        let ops = (threads * Spin::ROUNDS * Spin::CHAINS * LANES * 2) as f64;
        best = best.max(ops / start.elapsed().as_secs_f64());
    }
    Ok(best)
}

struct Spin;

impl Spin {
    const ROUNDS: usize = 20_000;
    const CHAINS: usize = 12;
}

impl Kernel for Spin {
    type Output = f32;
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> f32 {
        let (a, b) = (
            l.splat(std::hint::black_box(0.5)),
            l.splat(std::hint::black_box(0.25)),
        );
        let mut sums = [l.splat(0.0); Self::CHAINS];
        for _ in 0..Self::ROUNDS {
            for sum in &mut sums {
                *sum = l.fma(*sum, a, b);
            }
        }
        sums.into_iter()
            .fold(0.0, |total, sum| total + l.reduce_add(sum))
    }
}

/// Uniform numbers between -1 and 1.
fn random(state: &mut u32, n: usize) -> Vec<f32> {
    let next = || {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (*state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(n).collect()
}

fn as_bytes(lines: &[Line]) -> &[u8] {
    // SAFETY: plain numbers without padding, read as bytes.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
}

fn as_bytes_mut(lines: &mut [Line]) -> &mut [u8] {
    // SAFETY: plain numbers without padding, any bytes of which are a number.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
}
