//! Dividing a call's work into tasks. No way of dividing changes a result, so this is about speed alone.

use super::task::worker_lines;
use super::{AttentionSequence, AttentionShape, Line, SPLIT_TOKENS};
use crate::kv::KvLayout;
use crate::ops::lanes::LANES;
use std::ops::Range;

#[cfg(test)]
mod tests;

/// Query rows (rows × query heads) that a task takes through the context together, at most, but for what one row and
/// one KV head need.
pub(super) const TASK_QUERIES: usize = 64;
/// Tasks for each thread, about, so that none waits long for the last.
const TASKS_PER_THREAD: usize = 8;

/// Cost (see [`Tile::cost`]) below which a part of the work is not worth a task: a few microseconds.
const LEAST_COST: usize = 1 << 19;

/// A part of the work: some rows of a sequence, some KV heads, some of the context.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub(super) sequence: usize,
    /// Rows of the sequence.
    pub(super) rows: Range<usize>,
    /// The first of these rows in `q` and `out`.
    pub(super) first_row: usize,
    pub(super) kv_heads: Range<usize>,
    /// Splits of the context (see [`SPLIT_TOKENS`]).
    pub(super) splits: Range<usize>,
    /// Where the split states go in the partial lines, if the task does not see all of the rows' context.
    pub(super) partial: Option<Partial>,
}

/// Split states of some rows: `[split][row][head]` of records.
#[derive(Clone, Debug)]
pub(super) struct Partial {
    /// The first record's first line.
    pub(super) first_line: usize,
    /// The split of the first record.
    pub(super) first_split: usize,
}

/// Rows and heads whose split states have to be merged.
#[derive(Clone, Debug)]
pub(super) struct MergeTask {
    /// The tile's first row in `out`.
    pub(super) first_row: usize,
    /// Which of the tile's `[row][head]`.
    pub(super) rows_and_heads: Range<usize>,
    pub(super) splits: usize,
    /// The first split's first line.
    pub(super) first_line: usize,
    /// Records of a split: all of the tile's rows and heads.
    pub(super) split_records: usize,
}

/// A call's tasks.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) tasks: Vec<Task>,
    pub(super) merges: Vec<MergeTask>,
    pub(super) partial_lines: usize,
    pub(super) lines_per_worker: usize,
}

/// The first position that a row at `position` sees.
pub(super) fn first_seen(window: Option<usize>, position: usize) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window.max(1)))
}

/// Lines of a head's values.
pub(super) fn head_lines(head_dim: usize) -> usize {
    head_dim.div_ceil(LANES)
}

/// Lines of a split state in the partial lines: the values, then maximum and sum.
pub(super) fn record_lines(head_dim: usize) -> usize {
    head_lines(head_dim) + 1
}

fn task_queries(layout: &KvLayout, heads: usize) -> usize {
    TASK_QUERIES.max(heads / layout.kv_heads())
}

pub(super) fn bytes_needed(
    layout: &KvLayout,
    heads: usize,
    rows: usize,
    max_context: usize,
    threads: usize,
) -> usize {
    let group = (heads / layout.kv_heads()).max(1);
    let worker = worker_lines(layout.head_dim(), task_queries(layout, heads));
    let splits = max_context.div_ceil(SPLIT_TOKENS);
    // A tile that is divided along its context costs more than one share for each of its divisions by heads, and a
    // division by heads has at most `TASK_QUERIES` records of a split: see `Plan::divide`.
    let shares = TASKS_PER_THREAD.saturating_mul(threads);
    let divided = shares.saturating_mul(TASK_QUERIES.max(group));
    let records = divided
        .min(rows.saturating_mul(heads))
        .saturating_mul(splits);
    let partial = records.saturating_mul(record_lines(layout.head_dim()));
    let lines = threads.saturating_mul(worker).saturating_add(partial);
    let tasks = rows
        .saturating_add(2 * TASKS_PER_THREAD * threads)
        .saturating_mul(layout.kv_heads());
    lines
        .saturating_mul(size_of::<Line>())
        .saturating_add(tasks.saturating_mul(2 * (size_of::<Task>() + size_of::<MergeTask>())))
}

impl Plan {
    pub(super) fn bytes(&self) -> usize {
        self.tasks.capacity() * size_of::<Task>() + self.merges.capacity() * size_of::<MergeTask>()
    }

    /// Plans a call for so many threads.
    pub(super) fn make(
        &mut self,
        layout: &KvLayout,
        shape: &AttentionShape<'_>,
        sequences: &[AttentionSequence<'_>],
        threads: usize,
    ) {
        self.tasks.clear();
        self.merges.clear();
        self.partial_lines = 0;
        let queries = task_queries(layout, shape.heads);
        self.lines_per_worker = worker_lines(layout.head_dim(), queries);
        let group = shape.heads / layout.kv_heads();
        let tile_rows = (TASK_QUERIES / group).max(1);
        let tiles = || {
            let mut first_row = 0;
            sequences
                .iter()
                .enumerate()
                .flat_map(move |(index, sequence)| {
                    let start = first_row;
                    first_row += sequence.rows;
                    (0..sequence.rows).step_by(tile_rows).map(move |row| {
                        let rows = row..(row + tile_rows).min(sequence.rows);
                        Tile {
                            sequence: index,
                            first_row: start + row,
                            rows,
                            first_position: sequence.first_position,
                        }
                    })
                })
        };
        let total: usize = tiles().map(|tile| tile.cost(layout, shape)).sum();
        let share = total.div_ceil(TASKS_PER_THREAD * threads).max(LEAST_COST);
        for tile in tiles() {
            self.divide(layout, shape, &tile, share, threads);
        }
        // Later rows see more: begin with the longest tasks, so that the last ones are short.
        self.tasks.reverse();
    }

    /// Adds a tile's tasks. Those of a tile with more than `share` of the cost take a part of the context each.
    fn divide(
        &mut self,
        layout: &KvLayout,
        shape: &AttentionShape<'_>,
        tile: &Tile,
        share: usize,
        threads: usize,
    ) {
        let group = shape.heads / layout.kv_heads();
        let most_heads = (TASK_QUERIES / (group * tile.rows.len())).clamp(1, layout.kv_heads());
        let splits = tile.splits(shape.window);
        let parts = tile.cost(layout, shape).div_ceil(share).max(1);
        // Two divisions make parts: by heads, which costs nothing, and by context, which costs a merge.
        let by_heads = layout.kv_heads().div_ceil(most_heads);
        let by_context = if threads > 1 {
            parts.div_ceil(by_heads).min(splits.len())
        } else {
            1
        };
        let by_heads = by_heads
            .max(parts.div_ceil(by_context))
            .min(layout.kv_heads());
        let first_line = self.partial_lines;
        if by_context > 1 {
            let split_records = tile.rows.len() * shape.heads;
            for part in 0..threads.min(split_records) {
                self.merges.push(MergeTask {
                    first_row: tile.first_row,
                    rows_and_heads: nth_part(0..split_records, part, threads.min(split_records)),
                    splits: splits.len(),
                    first_line,
                    split_records,
                });
            }
            let records = splits.len() * split_records;
            self.partial_lines += records * record_lines(layout.head_dim());
        }
        for part in 0..by_context {
            for heads in 0..by_heads {
                self.tasks.push(Task {
                    sequence: tile.sequence,
                    rows: tile.rows.clone(),
                    first_row: tile.first_row,
                    kv_heads: nth_part(0..layout.kv_heads(), heads, by_heads),
                    splits: nth_part(splits.clone(), part, by_context),
                    partial: (by_context > 1).then_some(Partial {
                        first_line,
                        first_split: splits.start,
                    }),
                });
            }
        }
    }
}

/// Part `i` of `n` nearly equal parts of a range.
fn nth_part(range: Range<usize>, i: usize, n: usize) -> Range<usize> {
    range.start + range.len() * i / n..range.start + range.len() * (i + 1) / n
}

/// Rows of a sequence that go through the context together.
struct Tile {
    sequence: usize,
    rows: Range<usize>,
    first_row: usize,
    first_position: usize,
}

impl Tile {
    /// Positions seen by any of the rows.
    fn seen(&self, window: Option<usize>) -> Range<usize> {
        first_seen(window, self.first_position + self.rows.start)
            ..self.first_position + self.rows.end
    }

    fn splits(&self, window: Option<usize>) -> Range<usize> {
        let seen = self.seen(window);
        seen.start / SPLIT_TOKENS..seen.end.div_ceil(SPLIT_TOKENS)
    }

    /// Time it takes, in multiplications: reading the context is as much work as a few query rows.
    fn cost(&self, layout: &KvLayout, shape: &AttentionShape<'_>) -> usize {
        let queries = self.rows.len() * shape.heads + 4 * layout.kv_heads();
        self.seen(shape.window)
            .len()
            .saturating_mul(queries * 2 * layout.head_dim())
    }
}
