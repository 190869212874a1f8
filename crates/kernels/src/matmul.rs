//! Products of activations with weight matrices.
//!
//! `out[i][r] = Σ_k weights[r][k] * x[i][k]`. With float weights this is one chain of fused
//! multiply-adds in the order of `k`. With quantized weights the activations are quantized too
//! to 8 bits, with a power-of-two scale for each 32 columns (MXINT8); each group of 16 or 32 columns is an exact integer dot product, and the
//! groups are added by one chain of fused multiply-adds. Nothing in that order depends on the
//! other rows of `x`, on how work is divided, on the instruction set, or on how the weights are
//! laid out, so neither do the bits of the result.

pub(crate) mod activation;
pub(crate) mod block;
mod float;
mod formats;
mod integer;
#[cfg(test)]
mod reference;
pub(crate) mod strip;
#[cfg(test)]
mod tests;

use crate::Context;
use crate::format::WeightFormat;
use crate::matrix::Weights;
use crate::matrix::layout::GROUP_PANELS;
use crate::pool::WorkerPanic;
use crate::simd::{Kernels, LANES, kernels};
use activation::{Activations, Needs};
use block::Tiles;
use strip::{MAX_FEW_ROWS, MAX_PANELS, MAX_ROWS, SCRATCH_BYTES, Strip};

/// One product of a [`matmul`] call.
pub struct MatmulJob<'a> {
    /// The weights: `rows` output features, `cols` input features.
    pub weights: Weights<'a>,
    /// The result, `[n, rows]`, row-major.
    pub out: &'a mut [f32],
}

/// A cache line of working memory.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Working memory of [`matmul`], kept from call to call and grown as needed.
#[derive(Default)]
pub struct MatmulScratch {
    lines: Vec<Line>,
}

impl MatmulScratch {
    /// Nothing allocated yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes that products of up to `n` rows of up to `cols` activations need with a pool of
    /// `threads` threads, whatever the formats.
    ///
    /// With many rows they are taken up to 512 at a time, so this stops growing there.
    pub fn bytes_needed(n: usize, cols: usize, threads: usize) -> usize {
        let n = n.min(MAX_ROWS);
        let quantized = Activations::bytes_needed(Needs::QUANTIZED, n, cols);
        let values = Activations::bytes_needed(Needs::VALUES, n, cols);
        quantized.max(values) + threads.max(1) * SCRATCH_BYTES
    }

    /// Bytes that the same products need where all weights are quantized: little more than half.
    pub fn bytes_needed_quantized(n: usize, cols: usize, threads: usize) -> usize {
        Activations::bytes_needed(Needs::QUANTIZED, n.min(MAX_ROWS), cols)
            + threads.max(1) * SCRATCH_BYTES
    }

    /// Bytes held now.
    pub fn bytes(&self) -> usize {
        self.lines.capacity() * size_of::<Line>()
    }

    /// Allocates for products of up to `n` rows of up to `cols` activations, so that no later call
    /// within these bounds does.
    pub fn reserve(&mut self, n: usize, cols: usize, threads: usize) {
        self.at_least(Self::bytes_needed(n, cols, threads));
    }

    fn at_least(&mut self, bytes: usize) -> &mut [u8] {
        let lines = bytes.div_ceil(size_of::<Line>());
        if self.lines.len() < lines {
            let more = lines - self.lines.len();
            self.lines.reserve_exact(more);
            self.lines.resize(lines, Line([0; 64]));
        }
        let len = self.lines.len() * size_of::<Line>();
        // SAFETY: lines are plain bytes, initialized, without padding.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), len) }
    }
}

/// Multiplies `n` rows of activations with the weights of every job, in one parallel region.
///
/// `x` is `[n, cols]`, row-major, shared by the jobs. Activations that are NaN, infinite or beyond
/// 2^107 make the products of their row with quantized weights NaN.
///
/// # Errors
/// If a worker panicked; the outputs are then unspecified.
///
/// # Panics
/// If the jobs' `cols` differ, `x` is not `n * cols` long, or an `out` is not `n * rows` long; or
/// if this machine does not have the context's instruction set.
pub fn matmul(
    ctx: Context<'_>,
    jobs: &mut [MatmulJob<'_>],
    x: &[f32],
    n: usize,
    scratch: &mut MatmulScratch,
) -> Result<(), WorkerPanic> {
    let Some(cols) = jobs.first().map(|job| job.weights.cols()) else {
        return Ok(());
    };
    assert_eq!(x.len(), n * cols, "the length of x");
    for job in jobs.iter() {
        assert_eq!(job.weights.cols(), cols, "the jobs' columns");
        assert_eq!(job.out.len(), n * job.weights.rows(), "the length of out");
    }
    if cols == 0 {
        jobs.iter_mut().for_each(|job| job.out.fill(0.0));
        return Ok(());
    }
    let kernels = kernels(ctx.isa);
    for quantized in [true, false] {
        let needs = Needs::of(jobs, quantized, kernels.wide_is_signed);
        if needs == Needs::default() {
            continue;
        }
        for first in (0..n).step_by(MAX_ROWS) {
            let rows = MAX_ROWS.min(n - first);
            let x = &x[first * cols..][..rows * cols];
            let mut chunk = Chunk::new(ctx, kernels, needs, rows, cols, scratch);
            chunk.write_activations(x)?;
            chunk.multiply(jobs, first)?;
        }
    }
    Ok(())
}

/// Whether products with this format are made of integer dot products.
pub(crate) fn is_integer(format: WeightFormat) -> bool {
    !format.is_float()
}

impl Needs {
    /// All that integer products may need.
    const QUANTIZED: Needs = Needs {
        codes: true,
        sums: true,
        sums_of_16: true,
        offset8: true,
        offset16: true,
        offset128: true,
        offset32_by_16: true,
        values: false,
    };

    /// What products by values need.
    const VALUES: Needs = Needs {
        codes: false,
        sums: false,
        sums_of_16: false,
        offset8: false,
        offset16: false,
        offset128: false,
        offset32_by_16: false,
        values: true,
    };

    /// What the jobs need that are integer products, or those that are not.
    fn of(jobs: &[MatmulJob<'_>], quantized: bool, wide_is_signed: bool) -> Needs {
        let mut needs = Needs::default();
        for job in jobs {
            let format = job.weights.format();
            if is_integer(format) != quantized {
                continue;
            }
            needs.codes |= quantized;
            needs.values |= !quantized;
            match format {
                WeightFormat::F32 | WeightFormat::F16 | WeightFormat::BF16 => {}
                WeightFormat::Q4_0 => needs.offset8 = true,
                WeightFormat::Q5_0 | WeightFormat::MXFP4 => needs.offset16 = true,
                WeightFormat::Q8_0 | WeightFormat::IQ4NL | WeightFormat::IQ4XS => {
                    needs.offset128 |= !wide_is_signed;
                }
                WeightFormat::Q4_1 | WeightFormat::Q5_1 | WeightFormat::Q4K | WeightFormat::Q5K => {
                    needs.sums = true
                }
                WeightFormat::Q2K => needs.sums_of_16 = true,
                WeightFormat::Q3K | WeightFormat::Q6K => needs.offset32_by_16 = true,
            }
        }
        needs
    }

    /// Whether a job of this format is multiplied by what is there.
    fn serve(&self, format: WeightFormat) -> bool {
        is_integer(format) == self.codes
    }
}

/// Tiles up to which rows are few. On a machine with AVX-512 VNNI, 24 to 48 rows of Q4_0 are 4 to 9 % faster so;
/// from 64 on there is no difference.
const FEW_TILES: usize = 6;

/// Up to [`MAX_ROWS`] rows of activations on their way through the jobs of one kind.
struct Chunk<'a> {
    ctx: Context<'a>,
    kernels: &'static Kernels,
    x: Activations,
    tiles: Tiles,
    /// Whether there are so few rows that memory is slower than arithmetic.
    few: bool,
    /// [`SCRATCH_BYTES`] for each worker.
    workers: *mut u8,
}

/// Pointers that tasks share: each task uses its own part of what they point to.
#[derive(Clone, Copy)]
struct Shared<T>(T);

// SAFETY: the tasks of a region use parts that do not overlap; see where they are used.
unsafe impl<T> Sync for Shared<T> {}

/// A job whose weights the activations serve.
struct Served<'a> {
    weights: Weights<'a>,
    /// The chunk's first row of the result.
    out: *mut f32,
    panels: usize,
}

/// Panels `first..last` of the job with number `job`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    job: usize,
    first: usize,
    last: usize,
}

/// Cuts jobs of so many panels each into pieces for `threads` threads: large ones first, since
/// every beginning costs (memory is not read ahead yet, 20 % at 150 KB), then smaller ones so that
/// all threads end together. A piece is a multiple of `step` panels, and at least `least`.
fn cut(panels: &[usize], threads: usize, least: usize, step: usize) -> Vec<Piece> {
    let mut left: usize = panels.iter().sum();
    let mut pieces = Vec::with_capacity(panels.len() + 8 * threads);
    for (job, &panels) in panels.iter().enumerate() {
        let mut first = 0;
        while first < panels {
            let fair = left.div_ceil(2 * threads);
            let size = fair.max(least).next_multiple_of(step);
            let last = panels.min(first + size);
            pieces.push(Piece { job, first, last });
            left -= last - first;
            first = last;
        }
    }
    pieces
}

impl<'a> Chunk<'a> {
    fn new(
        ctx: Context<'a>,
        kernels: &'static Kernels,
        needs: Needs,
        rows: usize,
        cols: usize,
        scratch: &mut MatmulScratch,
    ) -> Self {
        let bytes = Activations::bytes_needed(needs, rows, cols);
        let memory = scratch.at_least(bytes + ctx.pool.threads() * SCRATCH_BYTES);
        let (activations, workers) = memory.split_at_mut(bytes);
        let few = rows <= MAX_FEW_ROWS.min(FEW_TILES * kernels.few_tile);
        Chunk {
            ctx,
            kernels,
            tiles: Tiles::new(rows, if few { kernels.few_tile } else { kernels.tile }),
            few,
            x: Activations::place(needs, rows, cols, activations),
            workers: workers.as_mut_ptr(),
        }
    }

    /// Writes the activations as the kernels read them.
    fn write_activations(&mut self, x: &[f32]) -> Result<(), WorkerPanic> {
        /// Values below which a region of their own is not worth opening.
        const SERIAL: usize = 16 << 10;
        /// Values in a task.
        const TASK: usize = 8 << 10;
        let (tiles, cols) = (self.tiles, self.x.cols);
        let shared = Shared(self.x);
        let write_tile = self.kernels.write_tile;
        let write = |first: usize, count: usize| {
            let to = &{ &shared }.0;
            for (row, width) in (first..first + count).map_while(|tile| tiles.tile(tile)) {
                // SAFETY: the arrays were placed; every tile is one task's; `kernels` gives only
                // what this machine has.
                unsafe { write_tile(to, x[row * cols..][..width * cols].as_ptr(), row, width) }
            }
        };
        if x.len() <= SERIAL {
            write(0, tiles.count());
            return Ok(());
        }
        let per_task = (TASK / (tiles.width * cols)).max(1);
        let tasks = tiles.count().div_ceil(per_task);
        self.ctx
            .pool
            .run(tasks, &|task, _| write(task * per_task, per_task))
    }

    /// Multiplies with the weights of all jobs that the activations serve; `first` is the number of
    /// the chunk's first row.
    fn multiply(&mut self, jobs: &mut [MatmulJob<'_>], first: usize) -> Result<(), WorkerPanic> {
        let served = self.served(jobs, first);
        let pieces = self.pieces(&served);
        let tiles_per_task = self.tiles_per_task(&served);
        let row_tasks = self.tiles.full.div_ceil(tiles_per_task).max(1);
        let shared = Shared((served.as_slice(), self.x, self.workers));
        let (run_strip, few, tiles) = (self.kernels.run_strip, self.few, self.tiles);
        self.ctx
            .pool
            .run(pieces.len() * row_tasks, &|task, worker| {
                let (served, x, workers) = { &shared }.0;
                let (row, tiles) = tiles.part(task / pieces.len(), tiles_per_task);
                let piece = pieces[task % pieces.len()];
                let job = &served[piece.job];
                let strip = Strip {
                    weights: job.weights,
                    panels: (piece.first, piece.last),
                    x,
                    row,
                    tiles,
                    few,
                    out: job.out.wrapping_add(row * job.weights.rows()),
                    scratch: workers.wrapping_add(worker * SCRATCH_BYTES),
                };
                // SAFETY: the activations are written for these kernels; every task has its own part
                // of `out` and every worker its own scratch; `kernels` gives only what this machine
                // has.
                unsafe { run_strip(&strip) }
            })
    }

    /// The jobs that the activations serve.
    fn served<'j>(&self, jobs: &'j mut [MatmulJob<'_>], first: usize) -> Vec<Served<'j>> {
        jobs.iter_mut()
            .filter(|job| self.x.needs.serve(job.weights.format()) && job.weights.rows() > 0)
            .map(|job| Served {
                weights: job.weights,
                out: job.out[first * job.weights.rows()..].as_mut_ptr(),
                panels: job.weights.rows().div_ceil(LANES),
            })
            .collect()
    }

    /// The pieces that tasks are made of.
    fn pieces(&self, served: &[Served<'_>]) -> Vec<Piece> {
        /// Multiplications that make a task worth claiming: a few µs.
        const TASK: usize = 2 << 20;
        let panels: Vec<usize> = served.iter().map(|job| job.panels).collect();
        let least = TASK / (LANES * self.x.cols * self.x.n.max(16));
        let threads = self.ctx.pool.threads();
        // Few rows go through whole groups front to back, if there are groups enough.
        let enough = panels.iter().sum::<usize>() >= 4 * threads * GROUP_PANELS;
        let step = if self.few && enough {
            GROUP_PANELS
        } else {
            MAX_PANELS
        };
        cut(&panels, threads, least.max(1), step)
    }

    /// Full tiles of activations in a task: all, unless there are too few panels to share out.
    fn tiles_per_task(&self, served: &[Served<'_>]) -> usize {
        /// Tiles below which unpacking would cost too much.
        const LEAST: usize = 8;
        let panels: usize = served.iter().map(|job| job.panels).sum();
        let parts = (4 * self.ctx.pool.threads()).div_ceil(panels.max(1));
        self.tiles.full.div_ceil(parts).max(LEAST)
    }
}
