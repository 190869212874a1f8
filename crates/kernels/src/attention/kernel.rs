//! A task: some query rows through some of the context; and the merging of split states.

use super::micro::{self, COLUMNS, Converted, Halves, ROWS, Source, TOKEN_VECTORS};
use super::plan::{MergeTask, Task, first_seen, head_lines, record_lines};
use super::{AttentionSequence, AttentionShape, Line, SPLIT_TOKENS};
use crate::kv::{BLOCK_TOKENS, KvBlock, KvFormat, KvLayout};
use crate::ops::SharedSlice;
use crate::ops::lanes::{Kernel, LANES, Lanes, load_part, store_part};
use crate::ops::math;
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// The running maximum before any token: so low that nothing before it counts, and finite so that differences are.
const NOTHING_SEEN: f32 = -1e30;
/// Up to this many query rows for a KV head, numbers are converted as they are read.
const DIRECT_QUERIES: usize = 8;

/// One task, to be run on some instruction set.
pub(super) struct RunTask<'a> {
    pub(super) layout: &'a KvLayout,
    pub(super) shape: &'a AttentionShape<'a>,
    pub(super) sequence: &'a AttentionSequence<'a>,
    pub(super) task: &'a Task,
    pub(super) q: &'a [f32],
    pub(super) out: &'a SharedSlice<'a, f32>,
    pub(super) lines: &'a mut [Line],
    pub(super) partials: &'a SharedSlice<'a, Line>,
}

/// A worker's memory, divided. Query rows are numbered `(kv head of the task, row of the task, head of the group)`.
struct Memory<'a> {
    /// Keys of a block, `[head_dim][32]`.
    keys: &'a mut [Line],
    /// Values of a block, `[32][head lines]`.
    values: &'a mut [Line],
    /// Scaled queries, `[query][head lines]`.
    queries: &'a mut [Line],
    /// The split's state, and that of all splits before.
    state: State<'a>,
    total: State<'a>,
    /// Probabilities of a block, `[query of a group of at most ROWS][32]`.
    probabilities: &'a mut [Line],
}

/// Running states of query rows.
struct State<'a> {
    /// Sums of values, `[query][head lines]`.
    sums: &'a mut [Line],
    /// Sums of probabilities in sixteen lanes, `[query]`.
    lane_sums: &'a mut [Line],
    /// Maximum score, `[query]`, the first number of a line.
    maxima: &'a mut [Line],
}

impl<'a> Memory<'a> {
    fn divide(lines: &'a mut [Line], head_dim: usize, queries: usize) -> Self {
        let head = head_lines(head_dim);
        let mut rest = lines;
        let mut take = |count: usize| {
            let (part, left) = std::mem::take(&mut rest).split_at_mut(count);
            rest = left;
            part
        };
        Self {
            keys: take(head_dim * TOKEN_VECTORS),
            values: take(BLOCK_TOKENS * head),
            queries: take(queries * head),
            state: State {
                sums: take(queries * head),
                lane_sums: take(queries),
                maxima: take(queries),
            },
            total: State {
                sums: take(queries * head),
                lane_sums: take(queries),
                maxima: take(queries),
            },
            probabilities: take(ROWS * TOKEN_VECTORS),
        }
    }
}

impl State<'_> {
    fn clear(&mut self) {
        self.sums.fill(Line([0.0; LANES]));
        self.lane_sums.fill(Line([0.0; LANES]));
        self.maxima.fill(Line([NOTHING_SEEN; LANES]));
    }
}

impl Kernel for RunTask<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self, l: L) {
        let lines = std::mem::take(&mut self.lines);
        let head_dim = self.layout.head_dim();
        let mut memory =
            Memory::divide(lines, head_dim, self.task.kv_heads.len() * self.per_head());
        self.load_queries(l, &mut memory);
        memory.total.clear();
        for split in self.task.splits.clone() {
            memory.state.clear();
            for block in self.blocks_of(split) {
                self.attend_block(l, &mut memory, block);
            }
            match &self.task.partial {
                Some(_) => self.write_partial(l, &memory.state, split),
                None => fold(l, &mut memory.total, &memory.state, head_lines(head_dim)),
            }
        }
        if self.task.partial.is_none() {
            self.write_out(l, &memory.total);
        }
    }
}

impl RunTask<'_> {
    /// Query heads of a KV head.
    #[inline(always)]
    fn group(&self) -> usize {
        self.shape.heads / self.layout.kv_heads()
    }

    /// Query rows of a KV head.
    #[inline(always)]
    fn per_head(&self) -> usize {
        self.task.rows.len() * self.group()
    }

    /// The position of a query row of a KV head.
    #[inline(always)]
    fn position(&self, query: usize) -> usize {
        self.sequence.first_position + self.task.rows.start + query / self.group()
    }

    /// Where in `q` and `out` a query row of a KV head stands.
    #[inline(always)]
    fn place(&self, kv_head: usize, query: usize) -> Range<usize> {
        let (row, head) = (
            query / self.group(),
            kv_head * self.group() + query % self.group(),
        );
        let head_dim = self.layout.head_dim();
        let start = ((self.task.first_row + row) * self.shape.heads + head) * head_dim;
        start..start + head_dim
    }

    /// Blocks of a split that any of the rows sees.
    #[inline(always)]
    fn blocks_of(&self, split: usize) -> Range<usize> {
        let first = first_seen(self.shape.window, self.position(0)).max(split * SPLIT_TOKENS);
        let end = (self.position(self.per_head() - 1) + 1).min((split + 1) * SPLIT_TOKENS);
        first / BLOCK_TOKENS..end.div_ceil(BLOCK_TOKENS)
    }

    /// Queries times the scale; scores are in units of log₂ unless a cap comes first.
    #[inline(always)]
    fn load_queries<L: Lanes>(&self, l: L, memory: &mut Memory<'_>) {
        let factor = if self.shape.softcap.is_some() {
            1.0
        } else {
            LOG2_E
        };
        let factor = l.splat(self.shape.scale * factor);
        let lines = head_lines(self.layout.head_dim());
        for (i, kv_head) in self.task.kv_heads.clone().enumerate() {
            for query in 0..self.per_head() {
                let from = &self.q[self.place(kv_head, query)];
                let to = &mut memory.queries[(i * self.per_head() + query) * lines..][..lines];
                for (to, from) in to.iter_mut().zip(from.chunks(LANES)) {
                    l.store(l.mul(load_part(l, from, 0.0), factor), &mut to.0);
                }
            }
        }
    }

    #[inline(always)]
    fn attend_block<L: Lanes>(&self, l: L, memory: &mut Memory<'_>, block: usize) {
        let KvBlock { format, bytes } = self.sequence.blocks[block];
        let head_dim = self.layout.head_dim();
        for (i, kv_head) in self.task.kv_heads.clone().enumerate() {
            let tile = &bytes[self.layout.tile_range(format, self.shape.layer, kv_head)];
            let (keys, values) = tile.split_at(tile.len() / 2);
            if self.per_head() <= DIRECT_QUERIES && head_dim.is_multiple_of(LANES) {
                let (keys, values) = (keys.as_ptr().cast(), values.as_ptr().cast());
                let lines = head_lines(head_dim);
                match format {
                    KvFormat::F16 => {
                        self.attend_tile(
                            l,
                            memory,
                            i,
                            block,
                            Halves::<false> {
                                keys,
                                values,
                                lines,
                            },
                        );
                    }
                    KvFormat::Bf16 => {
                        self.attend_tile(
                            l,
                            memory,
                            i,
                            block,
                            Halves::<true> {
                                keys,
                                values,
                                lines,
                            },
                        );
                    }
                }
            } else {
                match format {
                    KvFormat::F16 => convert::<L, false>(l, memory, keys, values, head_dim),
                    KvFormat::Bf16 => convert::<L, true>(l, memory, keys, values, head_dim),
                }
                let source = Converted {
                    keys: memory.keys.as_ptr().cast(),
                    values: memory.values.as_ptr().cast(),
                    lines: head_lines(head_dim),
                };
                self.attend_tile(l, memory, i, block, source);
            }
        }
    }

    /// Takes all query rows of a KV head, the `head`th of the task, through a block.
    #[inline(always)]
    fn attend_tile<L: Lanes, S: Source>(
        &self,
        l: L,
        memory: &mut Memory<'_>,
        head: usize,
        block: usize,
        source: S,
    ) {
        let first_token = block * BLOCK_TOKENS;
        let mut query = 0;
        while query < self.per_head() {
            let count = ROWS.min(self.per_head() - query);
            // Rows are in rising order, so these see as much as any.
            let last = self.position(query + count - 1);
            let first = first_seen(self.shape.window, self.position(query));
            if last >= first_token && first < first_token + BLOCK_TOKENS {
                match count {
                    1 => self.attend_rows::<L, S, 1>(l, memory, head, query, block, source),
                    2 => self.attend_rows::<L, S, 2>(l, memory, head, query, block, source),
                    3 => self.attend_rows::<L, S, 3>(l, memory, head, query, block, source),
                    _ => self.attend_rows::<L, S, ROWS>(l, memory, head, query, block, source),
                }
            }
            query += count;
        }
    }

    /// Takes `R` query rows through a block.
    #[inline(always)]
    fn attend_rows<L: Lanes, S: Source, const R: usize>(
        &self,
        l: L,
        memory: &mut Memory<'_>,
        head: usize,
        first_query: usize,
        block: usize,
        source: S,
    ) {
        let head_dim = self.layout.head_dim();
        let lines = head_lines(head_dim);
        let index = head * self.per_head() + first_query;
        let queries: [*const f32; R] = std::array::from_fn(|r| {
            memory.queries[(index + r) * lines..][..lines]
                .as_ptr()
                .cast()
        });
        // SAFETY: each query has `lines` lines, which are at least `head_dim` numbers; the source is the tile of a
        // layout with this `head_dim`.
        let mut scores = unsafe { micro::scores::<L, S, R>(l, source, queries, head_dim) };
        self.cap_and_mask(l, &mut scores, first_query, block);
        let mut factors = [1.0; R];
        let mut rescale = false;
        for r in 0..R {
            let maximum = &mut memory.state.maxima[index + r].0;
            let lane_sums = &mut memory.state.lane_sums[index + r].0;
            let highest = l.max(scores[r][0], scores[r][1]);
            let mut sum = l.load(lane_sums);
            if l.greater(highest, l.load(maximum)) != 0 {
                let new = l.reduce_max(highest);
                factors[r] = micro::exp2(l, maximum[0] - new);
                rescale = true;
                sum = l.mul(sum, l.splat(factors[r]));
                *maximum = [new; LANES];
            }
            let maximum = l.load(maximum);
            for (v, &score) in scores[r].iter().enumerate() {
                let p = math::exp2(l, l.sub(score, maximum));
                sum = l.add(sum, p);
                l.store(p, &mut memory.probabilities[r * TOKEN_VECTORS + v].0);
            }
            l.store(sum, lane_sums);
        }
        let probabilities: [*const f32; R] = std::array::from_fn(|r| {
            memory.probabilities[r * TOKEN_VECTORS..][..TOKEN_VECTORS]
                .as_ptr()
                .cast()
        });
        let sums: [*mut [f32; LANES]; R] = std::array::from_fn(|r| {
            memory.state.sums[(index + r) * lines..][..lines]
                .as_mut_ptr()
                .cast()
        });
        let factors = rescale.then_some(factors);
        let mut first = 0;
        while first < lines {
            let count = COLUMNS.min(lines - first);
            // SAFETY: each row of sums has `lines` lines, disjoint from the others, and each row of probabilities
            // BLOCK_TOKENS numbers; the source is the tile of a layout with as many lines.
            unsafe {
                match count {
                    1 => micro::add_values::<L, S, R, 1>(
                        l,
                        source,
                        probabilities,
                        sums,
                        factors,
                        first,
                    ),
                    2 => micro::add_values::<L, S, R, 2>(
                        l,
                        source,
                        probabilities,
                        sums,
                        factors,
                        first,
                    ),
                    3 => micro::add_values::<L, S, R, 3>(
                        l,
                        source,
                        probabilities,
                        sums,
                        factors,
                        first,
                    ),
                    _ => micro::add_values::<L, S, R, 4>(
                        l,
                        source,
                        probabilities,
                        sums,
                        factors,
                        first,
                    ),
                }
            }
            first += count;
        }
    }

    /// Applies the soft cap, and makes the scores of tokens that a row must not see negative infinity.
    #[inline(always)]
    fn cap_and_mask<L: Lanes, const R: usize>(
        &self,
        l: L,
        scores: &mut [[L::V; TOKEN_VECTORS]; R],
        first_query: usize,
        block: usize,
    ) {
        const LANE_NUMBERS: [f32; LANES] = [
            0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.,
        ];
        if let Some(cap) = self.shape.softcap {
            let (cap, factor) = (l.splat(cap), l.splat(cap * LOG2_E));
            for score in scores.iter_mut().flatten() {
                *score = l.mul(factor, math::tanh(l, l.div(*score, cap)));
            }
        }
        let first_token = block * BLOCK_TOKENS;
        for (r, scores) in scores.iter_mut().enumerate() {
            let position = self.position(first_query + r);
            // Tokens of the block that the row sees.
            let end = (position + 1).saturating_sub(first_token).min(BLOCK_TOKENS);
            let start = first_seen(self.shape.window, position)
                .saturating_sub(first_token)
                .min(BLOCK_TOKENS);
            if (start, end) == (0, BLOCK_TOKENS) {
                continue;
            }
            let (start, end) = (l.splat(start as f32), l.splat(end as f32));
            let hidden = l.splat(f32::NEG_INFINITY);
            for (v, score) in scores.iter_mut().enumerate() {
                let token = l.add(l.load(&LANE_NUMBERS), l.splat((v * LANES) as f32));
                *score = l.select_lt(token, end, *score, hidden);
                *score = l.select_lt(token, start, hidden, *score);
            }
        }
    }

    /// Writes a split's states for the merge.
    #[inline(always)]
    fn write_partial<L: Lanes>(&self, l: L, state: &State<'_>, split: usize) {
        let Some(partial) = &self.task.partial else {
            return;
        };
        let lines = head_lines(self.layout.head_dim());
        let record = record_lines(self.layout.head_dim());
        for (i, kv_head) in self.task.kv_heads.clone().enumerate() {
            for query in 0..self.per_head() {
                let index = i * self.per_head() + query;
                let (row, head) = (
                    query / self.group(),
                    kv_head * self.group() + query % self.group(),
                );
                let number = ((split - partial.first_split) * self.task.rows.len() + row)
                    * self.shape.heads
                    + head;
                let first = partial.first_line + number * record;
                // SAFETY: each split, row and head has its own record, and one task that writes it.
                let to = unsafe { self.partials.part(first..first + record) };
                to[..lines].copy_from_slice(&state.sums[index * lines..][..lines]);
                let sum = l.reduce_add(l.load(&state.lane_sums[index].0));
                to[lines].0[..2].copy_from_slice(&[state.maxima[index].0[0], sum]);
            }
        }
    }

    #[inline(always)]
    fn write_out<L: Lanes>(&self, l: L, total: &State<'_>) {
        let lines = head_lines(self.layout.head_dim());
        for (i, kv_head) in self.task.kv_heads.clone().enumerate() {
            for query in 0..self.per_head() {
                let index = i * self.per_head() + query;
                // SAFETY: each row and head has its own place, and one task that writes it.
                let out = unsafe { self.out.part(self.place(kv_head, query)) };
                let sink = self
                    .shape
                    .sinks
                    .map(|sinks| sinks[kv_head * self.group() + query % self.group()]);
                let (maximum, sum) = (total.maxima[index].0[0], total.lane_sums[index].0[0]);
                finish(
                    l,
                    &total.sums[index * lines..][..lines],
                    maximum,
                    sum,
                    sink,
                    out,
                );
            }
        }
    }
}

/// Converts a tile to `f32`.
#[inline(always)]
fn convert<L: Lanes, const BF16: bool>(
    l: L,
    memory: &mut Memory<'_>,
    keys: &[u8],
    values: &[u8],
    head_dim: usize,
) {
    let load = |from: &[u8; 2 * LANES]| {
        if BF16 {
            l.load_bf16(from)
        } else {
            l.load_f16(from)
        }
    };
    for (to, from) in memory.keys.iter_mut().zip(keys.as_chunks().0) {
        l.store(load(from), &mut to.0);
    }
    let lines = head_lines(head_dim);
    let tokens = values
        .chunks_exact(2 * head_dim)
        .zip(memory.values.chunks_exact_mut(lines));
    for (from, to) in tokens {
        let (whole, rest) = from.as_chunks();
        for (to, from) in to.iter_mut().zip(whole) {
            l.store(load(from), &mut to.0);
        }
        if !rest.is_empty() {
            let mut filled = [0; 2 * LANES];
            filled[..rest.len()].copy_from_slice(rest);
            l.store(load(&filled), &mut to[lines - 1].0);
        }
    }
}

/// Merges a split's states into the total, whose sums of probabilities stand in the first lane.
#[inline(always)]
fn fold<L: Lanes>(l: L, total: &mut State<'_>, state: &State<'_>, lines: usize) {
    for query in 0..total.maxima.len() {
        let sum = l.reduce_add(l.load(&state.lane_sums[query].0));
        let sums = &mut total.sums[query * lines..][..lines];
        let new = &state.sums[query * lines..][..lines];
        fold_one(
            l,
            &mut total.maxima[query].0[0],
            &mut total.lane_sums[query].0[0],
            sums,
            (state.maxima[query].0[0], sum, new),
        );
    }
}

/// Merges one row's split state (maximum, sum of probabilities, sums of values) into its total.
#[inline(always)]
fn fold_one<L: Lanes>(
    l: L,
    maximum: &mut f32,
    sum: &mut f32,
    sums: &mut [Line],
    new: (f32, f32, &[Line]),
) {
    let highest = if *maximum > new.0 { *maximum } else { new.0 };
    let (old_factor, new_factor) = (
        micro::exp2(l, *maximum - highest),
        micro::exp2(l, new.0 - highest),
    );
    *maximum = highest;
    *sum = new.1.mul_add(new_factor, *sum * old_factor);
    for (to, from) in sums.iter_mut().zip(new.2) {
        let old = l.mul(l.load(&to.0), l.splat(old_factor));
        l.store(l.fma(l.load(&from.0), l.splat(new_factor), old), &mut to.0);
    }
}

/// Divides by the sum of probabilities, the sink's among them.
#[inline(always)]
fn finish<L: Lanes>(
    l: L,
    sums: &[Line],
    maximum: f32,
    sum: f32,
    sink: Option<f32>,
    out: &mut [f32],
) {
    let (mut factor, mut sum) = (1.0, sum);
    if let Some(sink) = sink {
        let sink = sink * LOG2_E;
        let highest = if maximum > sink { maximum } else { sink };
        factor = micro::exp2(l, maximum - highest);
        sum = sum.mul_add(factor, micro::exp2(l, sink - highest));
    }
    let factor = l.splat(factor / sum);
    for (sums, out) in sums.iter().zip(out.chunks_mut(LANES)) {
        // Adding zero makes a negative zero positive: which of them a sum is depends on whether zeros were added.
        let v = l.fma(l.load(&sums.0), factor, l.splat(0.0));
        store_part(l, v, out);
    }
}

/// Merges the split states of a tile's rows.
pub(super) struct Merge<'a> {
    pub(super) layout: &'a KvLayout,
    pub(super) shape: &'a AttentionShape<'a>,
    pub(super) merge: &'a MergeTask,
    pub(super) partials: &'a [Line],
    pub(super) out: &'a SharedSlice<'a, f32>,
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self {
            layout,
            shape,
            merge,
            partials,
            out,
        } = self;
        let head_dim = layout.head_dim();
        let (lines, record) = (head_lines(head_dim), record_lines(head_dim));
        let mut total = [Line([0.0; LANES]); KvLayout::MAX_HEAD_DIM / LANES];
        for row_and_head in 0..merge.rows * shape.heads {
            let sums = &mut total[..lines];
            sums.fill(Line([0.0; LANES]));
            let (mut maximum, mut sum) = (NOTHING_SEEN, 0.0);
            for split in 0..merge.splits {
                let number = split * merge.rows * shape.heads + row_and_head;
                let from = &partials[merge.first_line + number * record..][..record];
                let [split_maximum, split_sum, ..] = from[lines].0;
                fold_one(
                    l,
                    &mut maximum,
                    &mut sum,
                    sums,
                    (split_maximum, split_sum, &from[..lines]),
                );
            }
            let start = (merge.first_row * shape.heads + row_and_head) * head_dim;
            // SAFETY: each row and head has its own place, and one merge that writes it.
            let out = unsafe { out.part(start..start + head_dim) };
            let sink = shape.sinks.map(|sinks| sinks[row_and_head % shape.heads]);
            finish(l, sums, maximum, sum, sink, out);
        }
    }
}
