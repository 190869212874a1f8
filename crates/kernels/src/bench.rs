//! Measuring the matrix products against the machine: how much of the read bandwidth decoding
//! reaches, and how much of the peak of its arithmetic prefill does.
//!
//! Peaks are measured beside each kernel, with the same threads and on the same bytes, since on a
//! shared machine they change from minute to minute. Times are the best of several calls.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::Context;
use crate::format::WeightFormat;
use crate::matmul::{MatmulJob, MatmulScratch, matmul};
use crate::matrix::{MatrixRef, PanelsRef, Weights, pack, panel_bytes};
use crate::pool::WorkerPanic;
use crate::simd::{kernels, prefetch};

/// What to measure.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// Formats of weights.
    pub formats: Vec<WeightFormat>,
    /// Shapes of weights: output features and input features.
    pub shapes: Vec<(usize, usize)>,
    /// Numbers of rows of activations.
    pub rows: Vec<usize>,
    /// Whether to measure mapped weights as well as packed ones.
    pub mapped: bool,
    /// Bytes of weights to go through, more than the caches hold.
    pub weight_bytes: usize,
    /// How long to repeat each measurement.
    pub time: Duration,
}

impl Default for BenchOptions {
    /// The feed-forward products of a model of a billion parameters, decoding alone and in company
    /// and reading a prompt.
    fn default() -> Self {
        BenchOptions {
            formats: vec![
                WeightFormat::Q4_0,
                WeightFormat::Q8_0,
                WeightFormat::Q4K,
                WeightFormat::Q5K,
                WeightFormat::Q6K,
                WeightFormat::F16,
                WeightFormat::BF16,
                WeightFormat::F32,
            ],
            shapes: vec![(8192, 2048), (2048, 8192)],
            rows: vec![1, 4, 8, 32, 512],
            mapped: false,
            weight_bytes: 256 << 20,
            time: Duration::from_millis(300),
        }
    }
}

/// One measured kernel.
#[derive(Clone, Debug)]
pub struct BenchRow {
    /// Format of the weights.
    pub format: WeightFormat,
    /// Whether the weights were packed into panels.
    pub packed: bool,
    /// Output features.
    pub outputs: usize,
    /// Input features.
    pub inputs: usize,
    /// Rows of activations.
    pub rows: usize,
    /// The shortest time of a product, in seconds.
    pub seconds: f64,
    /// Bytes of weights that a product must read.
    pub bytes: u64,
    /// Multiplications and additions of a product.
    pub ops: u64,
    /// Bytes a second that the same threads read from the same weights.
    pub peak_bytes_per_s: f64,
    /// Multiplications and additions a second that the same threads make on registers, of the kind
    /// that the format's kernel uses.
    pub peak_ops_per_s: f64,
}

impl BenchRow {
    /// Bytes a second.
    pub fn bytes_per_s(&self) -> f64 {
        self.bytes as f64 / self.seconds
    }

    /// Multiplications and additions a second.
    pub fn ops_per_s(&self) -> f64 {
        self.ops as f64 / self.seconds
    }

    /// Share of the read bandwidth.
    pub fn share_of_bytes(&self) -> f64 {
        self.bytes_per_s() / self.peak_bytes_per_s
    }

    /// Share of the arithmetic's peak.
    pub fn share_of_ops(&self) -> f64 {
        self.ops_per_s() / self.peak_ops_per_s
    }
}

/// Measures every format, shape and number of rows.
///
/// # Errors
/// If a worker panicked.
pub fn run(ctx: Context<'_>, options: &BenchOptions) -> Result<Vec<BenchRow>, WorkerPanic> {
    let mut rows = Vec::new();
    for &(outputs, inputs) in &options.shapes {
        for &format in &options.formats {
            let layouts: &[bool] = if options.mapped {
                &[true, false]
            } else {
                &[true]
            };
            for &packed in layouts {
                let Some(bench) =
                    MatmulBench::new(ctx, format, packed, (outputs, inputs), options)?
                else {
                    continue;
                };
                for &n in &options.rows {
                    rows.push(bench.run(ctx, n, options.time)?);
                }
            }
        }
    }
    Ok(rows)
}

/// Matrices to multiply with, in turn, so that each comes from memory.
struct MatmulBench {
    format: WeightFormat,
    packed: bool,
    outputs: usize,
    inputs: usize,
    /// Bytes of a matrix.
    matrix_bytes: usize,
    bytes: Vec<u8>,
    /// Where the first matrix begins, for alignment.
    skip: usize,
}

impl MatmulBench {
    fn new(
        ctx: Context<'_>,
        format: WeightFormat,
        packed: bool,
        (outputs, inputs): (usize, usize),
        options: &BenchOptions,
    ) -> Result<Option<Self>, WorkerPanic> {
        let Some(row) = format.row_bytes(inputs) else {
            return Ok(None);
        };
        let mut file = vec![0u8; row * outputs];
        let values: Vec<f32> = (0..inputs * 16).map(|i| (i as f32 * 0.7).sin()).collect();
        let mut rows = vec![0; row * 16];
        if format.quantize(&values, &mut rows).is_err() {
            return Ok(None);
        }
        for (i, out) in file.chunks_exact_mut(row).enumerate() {
            out.copy_from_slice(&rows[i % 16 * row..][..row]);
        }
        let matrix_bytes = if packed {
            panel_bytes(format, outputs, inputs)
        } else {
            file.len()
        };
        let count = options.weight_bytes.div_ceil(matrix_bytes.max(1)).max(1);
        let mut bytes = vec![0; count * matrix_bytes + 64];
        let skip = bytes.as_ptr().align_offset(64);
        let Ok(matrix) = MatrixRef::new(format, outputs, inputs, &file) else {
            return Ok(None);
        };
        for out in bytes[skip..].chunks_exact_mut(matrix_bytes) {
            if packed {
                pack(ctx, matrix, out)?;
            } else {
                out.copy_from_slice(&file);
            }
        }
        Ok(Some(MatmulBench {
            format,
            packed,
            outputs,
            inputs,
            matrix_bytes,
            bytes,
            skip,
        }))
    }

    fn matrices(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes[self.skip..].chunks_exact(self.matrix_bytes)
    }

    fn weights<'a>(&self, bytes: &'a [u8]) -> Option<Weights<'a>> {
        let (format, outputs, inputs) = (self.format, self.outputs, self.inputs);
        if self.packed {
            let panels = PanelsRef::new(format, outputs, inputs, bytes).ok()?;
            return Some(Weights::Panels(panels));
        }
        let matrix = MatrixRef::new(format, outputs, inputs, bytes).ok()?;
        Some(Weights::Rows(matrix))
    }

    /// Products with all matrices in turn, and the peaks, as often as there is time.
    fn run(&self, ctx: Context<'_>, n: usize, time: Duration) -> Result<BenchRow, WorkerPanic> {
        let x: Vec<f32> = (0..n * self.inputs)
            .map(|i| (i as f32 * 0.3).cos())
            .collect();
        let mut out = vec![0.0; n * self.outputs];
        let mut scratch = MatmulScratch::new();
        let (mut seconds, mut peak_bytes, mut peak_ops) = (f64::INFINITY, 0.0f64, 0.0f64);
        let begin = Instant::now();
        while begin.elapsed() < time || seconds.is_infinite() {
            peak_bytes = peak_bytes.max(self.read_peak(ctx)?);
            peak_ops = peak_ops.max(ops_peak(ctx, self.format)?);
            // A pass over everything when decoding; a product or two of a prompt take as long.
            let mut passes: Vec<f64> = Vec::new();
            for bytes in self.matrices() {
                let Some(weights) = self.weights(bytes) else {
                    continue;
                };
                let start = Instant::now();
                let out = out.as_mut_slice();
                let mut jobs = [MatmulJob { weights, out }];
                matmul(ctx, &mut jobs, &x, n, &mut scratch)?;
                passes.push(start.elapsed().as_secs_f64());
                if begin.elapsed() > 2 * time {
                    break;
                }
            }
            let mean = passes.iter().sum::<f64>() / passes.len() as f64;
            let least = passes.iter().copied().fold(f64::INFINITY, f64::min);
            // From memory the mean of the pass is what counts, for arithmetic the best product.
            seconds = seconds.min(if n < 64 { mean } else { least });
        }
        black_box(&out);
        Ok(BenchRow {
            format: self.format,
            packed: self.packed,
            outputs: self.outputs,
            inputs: self.inputs,
            rows: n,
            seconds,
            bytes: self.matrix_bytes as u64,
            ops: 2 * (n * self.outputs * self.inputs) as u64,
            peak_bytes_per_s: peak_bytes,
            peak_ops_per_s: peak_ops,
        })
    }

    /// Bytes a second that the threads read from the matrices.
    fn read_peak(&self, ctx: Context<'_>) -> Result<f64, WorkerPanic> {
        read_peak(ctx, &[&self.bytes[self.skip..]])
    }
}

/// Bytes a second that the threads read from `parts`, which together should be more than the caches hold.
///
/// Each thread reads a run of consecutive bytes: where two threads take pieces in turn, Zen 4 reads 22 GB/s with pieces
/// of 4 KiB, 31 with 32 KiB, 48 with 256 KiB and 55 with 2 MiB.
///
/// # Errors
/// If a worker panicked.
pub fn read_peak(ctx: Context<'_>, parts: &[&[u8]]) -> Result<f64, WorkerPanic> {
    let mut runs: Vec<&[u8]> = Vec::new();
    for part in parts.iter().filter(|part| !part.is_empty()) {
        runs.extend(part.chunks(part.len().div_ceil(ctx.pool.threads())));
    }
    let bytes: usize = parts.iter().map(|part| part.len()).sum();
    let start = Instant::now();
    ctx.pool.run(runs.len(), &|task, _| {
        black_box(sum(runs[task]));
    })?;
    Ok(bytes as f64 / start.elapsed().as_secs_f64())
}

/// Sums of a run's words, asking a page ahead.
fn sum(run: &[u8]) -> [u64; 16] {
    let mut sums = [0u64; 16];
    for lines in run.as_chunks::<128>().0 {
        for line in [0, 64] {
            prefetch(lines.as_ptr().wrapping_add(4096 + line));
        }
        for (sum, word) in sums.iter_mut().zip(lines.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    sums
}

/// Multiplications and additions a second that the threads make on registers, of the kind that
/// products with weights of this format are made of: 8-bit dot products, or fused multiply-adds.
///
/// # Errors
/// If a worker panicked.
pub fn ops_peak(ctx: Context<'_>, format: WeightFormat) -> Result<f64, WorkerPanic> {
    let kernels = kernels(ctx.isa);
    let peak = if crate::matmul::is_integer(format) {
        kernels.dot_peak
    } else {
        kernels.multiply_add_peak
    };
    let threads = ctx.pool.threads();
    let mut best = 0.0f64;
    for _ in 0..10 {
        let start = Instant::now();
        let ops = std::sync::atomic::AtomicU64::new(0);
        ctx.pool.run(threads, &|_, _| {
            // SAFETY: `kernels` gives only what this machine has.
            let done = unsafe { peak(4000) };
            ops.fetch_add(done, std::sync::atomic::Ordering::Relaxed);
        })?;
        let ops = ops.into_inner() as f64;
        best = best.max(ops / start.elapsed().as_secs_f64());
    }
    Ok(best)
}
