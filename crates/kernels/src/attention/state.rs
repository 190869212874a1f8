//! Running states of the online softmax, their merging, and the result.
#![expect(
    clippy::needless_range_loop,
    reason = "iterator adapters are not always inlined into functions with more instructions than they have"
)]

use super::Line;
use super::micro::exp2;
use super::plan::{MergeTask, head_lines, record_lines};
use super::{AttentionShape, KvLayout};
use crate::ops::SharedSlice;
use crate::ops::lanes::{Kernel, LANES, Lanes, store_part};
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// The reference before any token: so low that nothing before it counts, and finite so that differences are.
const NOTHING_SEEN: f32 = -1e30;

/// Running states of query rows. Scores are in units of log₂.
pub(super) struct State<'a> {
    /// Sums of values, `[query][head lines]`.
    pub(super) sums: &'a mut [Line],
    /// Sums of probabilities in sixteen lanes, `[query]`.
    pub(super) lane_sums: &'a mut [Line],
    /// The score that probabilities are relative to, in all lanes, `[query]`: the reference, or a little less.
    pub(super) references: &'a mut [Line],
}

impl State<'_> {
    /// Query rows.
    pub(super) fn len(&self) -> usize {
        self.references.len()
    }

    /// Before any token.
    pub(super) fn clear(&mut self) {
        self.sums.fill(Line([0.0; LANES]));
        self.lane_sums.fill(Line([0.0; LANES]));
        self.references.fill(Line([NOTHING_SEEN; LANES]));
    }
}

/// A row's state with its probabilities added up.
struct Record<'a> {
    reference: f32,
    sum: f32,
    sums: &'a [Line],
}

impl Record<'_> {
    /// Writes it to the partial lines.
    fn write(&self, to: &mut [Line]) {
        let lines = self.sums.len();
        to[..lines].copy_from_slice(self.sums);
        to[lines].0[..2].copy_from_slice(&[self.reference, self.sum]);
    }
}

/// Writes the states of a split for [`Merge`].
pub(super) struct WriteRecords<'a> {
    pub(super) state: &'a State<'a>,
    pub(super) lines: usize,
    pub(super) partials: &'a SharedSlice<'a, Line>,
    /// The first line of the record of each row's state.
    pub(super) place: &'a dyn Fn(usize) -> usize,
}

impl Kernel for WriteRecords<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        for query in 0..self.state.len() {
            let first = (self.place)(query);
            // SAFETY: each split, row and head has its own record, and one task that writes it.
            let to = unsafe { self.partials.part(first..first + self.lines + 1) };
            record(l, self.state, query, self.lines).write(to);
        }
    }
}

#[inline(always)]
fn record<'a, L: Lanes>(l: L, state: &'a State<'_>, query: usize, lines: usize) -> Record<'a> {
    Record {
        reference: state.references[query].0[0],
        sum: l.reduce_add(l.load(&state.lane_sums[query].0)),
        sums: &state.sums[query * lines..][..lines],
    }
}

/// Merges a split's states into the total, whose sums of probabilities stand in the first lane.
pub(super) struct Fold<'a, 'b> {
    pub(super) total: &'a mut State<'b>,
    pub(super) state: &'a State<'b>,
    pub(super) lines: usize,
}

impl Kernel for Fold<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let total = self.total;
        for query in 0..total.len() {
            let new = record(l, self.state, query, self.lines);
            let sums = &mut total.sums[query * self.lines..][..self.lines];
            let (reference, sum) = (
                &mut total.references[query].0[0],
                &mut total.lane_sums[query].0[0],
            );
            fold(l, reference, sum, sums, &new);
        }
    }
}

/// Merges a row's split state into its total: reference, sum of probabilities, sums of values.
#[inline(always)]
fn fold<L: Lanes>(l: L, reference: &mut f32, sum: &mut f32, sums: &mut [Line], new: &Record<'_>) {
    let highest = if *reference > new.reference {
        *reference
    } else {
        new.reference
    };
    let old_factor = exp2(l, *reference - highest);
    let new_factor = exp2(l, new.reference - highest);
    *reference = highest;
    *sum = new.sum.mul_add(new_factor, *sum * old_factor);
    for i in 0..sums.len() {
        let old = l.mul(l.load(&sums[i].0), l.splat(old_factor));
        l.store(
            l.fma(l.load(&new.sums[i].0), l.splat(new_factor), old),
            &mut sums[i].0,
        );
    }
}

/// Divides by the sum of probabilities, the sink's among them.
#[inline(always)]
fn finish<L: Lanes>(l: L, total: &Record<'_>, sink: Option<f32>, out: &mut [f32]) {
    let (mut factor, mut sum) = (1.0, total.sum);
    if let Some(sink) = sink {
        let sink = sink * LOG2_E;
        let highest = if total.reference > sink {
            total.reference
        } else {
            sink
        };
        factor = exp2(l, total.reference - highest);
        sum = sum.mul_add(factor, exp2(l, sink - highest));
    }
    let factor = l.splat(factor / sum);
    for i in 0..total.sums.len() {
        // Adding zero makes a negative zero positive: which of them a sum is depends on whether zeros were added.
        let result = l.fma(l.load(&total.sums[i].0), factor, l.splat(0.0));
        let out = &mut out[i * LANES..];
        match out.first_chunk_mut() {
            Some(out) => l.store(result, out),
            None => store_part(l, result, out),
        }
    }
}

/// Writes the results of total states.
pub(super) struct WriteOut<'a> {
    pub(super) total: &'a State<'a>,
    pub(super) lines: usize,
    pub(super) sinks: Option<&'a [f32]>,
    pub(super) out: &'a SharedSlice<'a, f32>,
    /// For each row's state its query head, and its place in the output.
    pub(super) place: &'a dyn Fn(usize) -> (usize, Range<usize>),
}

impl Kernel for WriteOut<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        for query in 0..self.total.len() {
            let (head, place) = (self.place)(query);
            let total = Record {
                reference: self.total.references[query].0[0],
                sum: self.total.lane_sums[query].0[0],
                sums: &self.total.sums[query * self.lines..][..self.lines],
            };
            // SAFETY: each row and head has its own place, and one task that writes it.
            let out = unsafe { self.out.part(place) };
            finish(l, &total, self.sinks.map(|sinks| sinks[head]), out);
        }
    }
}

/// Merges the split states of some heads of a tile's rows, and writes their results.
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
        for row_and_head in merge.rows_and_heads.clone() {
            let sums = &mut total[..lines];
            sums.fill(Line([0.0; LANES]));
            let (mut reference, mut sum) = (NOTHING_SEEN, 0.0);
            for split in 0..merge.splits {
                let number = split * merge.split_records + row_and_head;
                let from = &partials[merge.first_line + number * record..][..record];
                let [split_reference, split_sum, ..] = from[lines].0;
                let new = Record {
                    reference: split_reference,
                    sum: split_sum,
                    sums: &from[..lines],
                };
                fold(l, &mut reference, &mut sum, sums, &new);
            }
            let start = (merge.first_row * shape.heads + row_and_head) * head_dim;
            // SAFETY: each row and head has its own place, and one merge that writes it.
            let out = unsafe { out.part(start..start + head_dim) };
            let sink = shape.sinks.map(|sinks| sinks[row_and_head % shape.heads]);
            finish(
                l,
                &Record {
                    reference,
                    sum,
                    sums,
                },
                sink,
                out,
            );
        }
    }
}
