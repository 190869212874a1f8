//! The inner loops: the query rows of a KV head through one block.
//!
//! Vectors never pass through a closure here: one that is not inlined would be compiled without the instruction set.
#![expect(
    clippy::needless_range_loop,
    reason = "several arrays are walked together, and the loops are unrolled"
)]

use super::Line;
use super::plan::{first_seen, head_lines};
use super::source::{Converted, Halves, Numbers, Source};
use super::state::State;
use crate::kv::BLOCK_TOKENS;
use crate::ops::lanes::{Kernel, LANES, Lanes};
use crate::ops::math;
use std::f32::consts::LOG2_E;

/// Vectors of a block's tokens.
pub(super) const TOKEN_VECTORS: usize = BLOCK_TOKENS / LANES;
const _: () = assert!(
    TOKEN_VECTORS == 2,
    "scores are computed two vectors at a time"
);
/// Query rows that go through an inner loop together, at most: with two vectors of scores or four of values each, their
/// sums fill half of 32 registers.
pub(super) const ROWS: usize = 4;
/// How far, in units of log₂, scores may exceed what probabilities are relative to before it is raised (as
/// FlashAttention 4 does): raising is rare after a row's first block, and sums of powers up to 2⁸ lose no precision.
const SLACK: f32 = 8.0;
/// Vectors of a head's dimensions that go through an inner loop together, at most.
const COLUMNS: usize = 4;

/// Which tokens of a block the rows see.
#[derive(Clone, Copy)]
pub(super) struct Visible {
    /// The position of the block's first token.
    pub(super) first_token: usize,
    /// The position of the first query row.
    pub(super) first_position: usize,
    /// Query rows of one position.
    pub(super) group: usize,
    pub(super) window: Option<usize>,
}

impl Visible {
    /// The first token of the block that a row sees, and the one after the last.
    #[inline(always)]
    fn range(&self, query: usize) -> (usize, usize) {
        let position = self.first_position + query / self.group;
        let first = first_seen(self.window, position).saturating_sub(self.first_token);
        let end = (position + 1).saturating_sub(self.first_token);
        (first.min(BLOCK_TOKENS), end.min(BLOCK_TOKENS))
    }

    /// Whether any of some rows sees any token of the block. Rows are in rising order.
    #[inline(always)]
    fn any(&self, first_query: usize, count: usize) -> bool {
        self.range(first_query + count - 1).1 > 0 && self.range(first_query).0 < BLOCK_TOKENS
    }
}

/// The query rows of a task, and their states.
pub(super) struct Rows<'a> {
    /// Scaled queries, `[query][head lines]`.
    pub(super) queries: &'a [Line],
    /// The largest magnitude of each, in consecutive lanes.
    pub(super) sizes: &'a [Line],
    pub(super) state: State<'a>,
    /// Room for the probabilities of [`ROWS`] rows.
    pub(super) probabilities: &'a mut [Line],
    /// Query rows of a KV head.
    pub(super) per_head: usize,
    pub(super) softcap: Option<f32>,
}

/// Takes the query rows of one KV head through one block.
pub(super) struct AttendConverted<'a, 'b> {
    pub(super) rows: &'a mut Rows<'b>,
    pub(super) source: Converted<'a>,
    /// The KV head, counted from the task's first.
    pub(super) head: usize,
    /// Which tokens the rows see; nothing if all of them see all.
    pub(super) visible: Option<Visible>,
    /// The tile to ask for meanwhile.
    pub(super) next: *const u8,
}

impl Kernel for AttendConverted<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        self.rows.check(self.source.dims());
        // SAFETY: checked.
        unsafe {
            self.rows
                .attend(l, self.source, self.head, self.visible, self.next)
        };
    }
}

/// A tile for [`AttendHalves`].
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    pub(super) bytes: &'a [u8],
    /// The KV head, counted from the task's first.
    pub(super) head: usize,
    /// Which tokens the rows see; nothing if all of them see all.
    pub(super) visible: Option<Visible>,
}

/// Takes few query rows through tiles of 16-bit numbers, one after another.
pub(super) struct AttendHalves<'a, 'b, const BF16: bool> {
    pub(super) rows: &'a mut Rows<'b>,
    pub(super) head_dim: usize,
    pub(super) tiles: &'a [Tile<'a>],
    /// The tile to ask for during the last one.
    pub(super) next: *const u8,
}

impl<const BF16: bool> Kernel for AttendHalves<'_, '_, BF16> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        self.rows.check(self.head_dim);
        let mut i = 0;
        while i < self.tiles.len() {
            let tile = self.tiles[i];
            let next = if i + 1 < self.tiles.len() {
                self.tiles[i + 1].bytes.as_ptr()
            } else {
                self.next
            };
            let source = Halves::<BF16>::new(tile.bytes, self.head_dim);
            // SAFETY: checked.
            unsafe { self.rows.attend(l, source, tile.head, tile.visible, next) };
            i += 1;
        }
    }
}

impl Rows<'_> {
    #[inline(always)]
    pub(super) fn check(&self, head_dim: usize) {
        let (count, lines) = (self.state.len(), head_lines(head_dim));
        assert!(self.queries.len() == count * lines && self.sizes.len() * LANES >= count);
        assert!(
            self.state.sums.len() == count * lines
                && self.state.lane_sums.len() == count
                && self.state.references.len() == count
        );
        assert!(self.probabilities.len() >= ROWS * TOKEN_VECTORS);
    }

    /// Takes the rows of a KV head through a block.
    ///
    /// # Safety
    /// [`Rows::check`] passes for the source's dimensions.
    #[inline(always)]
    pub(super) unsafe fn attend<L: Lanes, S: Source>(
        &mut self,
        l: L,
        source: S,
        head: usize,
        visible: Option<Visible>,
        next: *const u8,
    ) {
        let first = head * self.per_head;
        assert!(first + self.per_head <= self.state.len());
        let mut query = 0;
        while query < self.per_head {
            let rows = if L::MANY_REGISTERS { ROWS } else { 1 };
            let rows = rows.min(self.per_head - query);
            // Only the first rows' loop asks for the next tile; for the others the request is for what is there.
            let next = if query == 0 {
                next
            } else {
                self.queries.as_ptr().cast()
            };
            let hidden = match visible {
                Some(visible) => !visible.any(query, rows),
                None => false,
            };
            if !hidden {
                // SAFETY: `first + query + rows` is at most the number of queries, for all of which there are lines.
                unsafe {
                    if const { !L::MANY_REGISTERS } {
                        self.attend_rows::<L, S, 1>(l, source, first, query, visible, next);
                    } else {
                        match rows {
                            1 => {
                                self.attend_rows::<L, S, 1>(l, source, first, query, visible, next)
                            }
                            2 => {
                                self.attend_rows::<L, S, 2>(l, source, first, query, visible, next)
                            }
                            3 => {
                                self.attend_rows::<L, S, 3>(l, source, first, query, visible, next)
                            }
                            _ => self
                                .attend_rows::<L, S, ROWS>(l, source, first, query, visible, next),
                        }
                    }
                }
            }
            query += rows;
        }
    }

    /// Takes `R` query rows, from the `query`th of the KV head on whose rows begin with `first`, through a block.
    ///
    /// # Safety
    /// There are `first + query + R` queries and states at least, and room for `R` rows of probabilities.
    #[inline(always)]
    unsafe fn attend_rows<L: Lanes, S: Source, const R: usize>(
        &mut self,
        l: L,
        source: S,
        first: usize,
        query: usize,
        visible: Option<Visible>,
        next: *const u8,
    ) {
        let lines = head_lines(source.head_dim());
        // SAFETY: the caller's promises: all offsets are within the rows of the states.
        unsafe {
            let queries = self.query_rows(first + query, lines);
            let mut scores = source.scores::<L, R>(l, &queries, next);
            if let Some(cap) = self.softcap {
                self.cap(l, &mut scores, cap);
            }
            if let Some(visible) = visible {
                for r in 0..R {
                    hide(l, &mut scores[r], visible.range(query + r));
                }
            }
            let rows = first + query..first + query + R;
            let slack = l.splat(SLACK);
            let mut higher = 0;
            for r in 0..R {
                let reference = l.load(&self.state.references.get_unchecked(rows.start + r).0);
                let highest = l.max(scores[r][0], scores[r][1]);
                higher |= l.greater(highest, l.add(reference, slack));
            }
            if higher != 0 {
                for r in 0..R {
                    l.store(scores[r][0], &mut self.probabilities[2 * r].0);
                    l.store(scores[r][1], &mut self.probabilities[2 * r + 1].0);
                }
                l.vectorize_seldom(RaiseReferences {
                    scores: &self.probabilities[..2 * R],
                    references: &mut self.state.references[rows.clone()],
                    lane_sums: &mut self.state.lane_sums[rows.clone()],
                    sums: &mut self.state.sums[rows.start * lines..rows.end * lines],
                });
            }
            let references = self.state.references.as_ptr().add(rows.start);
            let lane_sums = self.state.lane_sums.as_mut_ptr().add(rows.start);
            let sums = self.state.sums.as_mut_ptr().add(rows.start * lines);
            let probabilities = self.probabilities.as_mut_ptr();
            // All exponentials first, then what is done with them: they are independent and hide each other's latency.
            for r in 0..R {
                let reference = l.load(&(*references.add(r)).0);
                scores[r][0] = math::exp2(l, l.sub(scores[r][0], reference));
                scores[r][1] = math::exp2(l, l.sub(scores[r][1], reference));
            }
            for r in 0..R {
                let sum = l.add(l.load(&(*lane_sums.add(r)).0), scores[r][0]);
                l.store(l.add(sum, scores[r][1]), &mut (*lane_sums.add(r)).0);
                l.store(scores[r][0], &mut (*probabilities.add(2 * r)).0);
                l.store(scores[r][1], &mut (*probabilities.add(2 * r + 1)).0);
            }
            let rows = ValueRows {
                probabilities: probabilities.cast(),
                sums,
                lines,
                next: next.wrapping_add(source.key_bytes()),
            };
            source.add_values::<L, R>(l, &rows);
        }
    }

    /// The query rows from one on.
    ///
    /// # Safety
    /// There is such a row, of so many lines.
    #[inline(always)]
    unsafe fn query_rows(&self, first: usize, lines: usize) -> QueryRows {
        // SAFETY: the caller's promise.
        unsafe {
            QueryRows {
                numbers: self.queries.as_ptr().add(first * lines).cast(),
                len: lines * LANES,
                sizes: self.sizes.as_ptr().cast::<f32>().add(first),
            }
        }
    }

    /// Applies the soft cap: through memory, so that the usual path keeps its scores in registers.
    #[inline(always)]
    fn cap<L: Lanes, const R: usize>(
        &mut self,
        l: L,
        scores: &mut [[L::V; TOKEN_VECTORS]; R],
        cap: f32,
    ) {
        for r in 0..R {
            l.store(scores[r][0], &mut self.probabilities[2 * r].0);
            l.store(scores[r][1], &mut self.probabilities[2 * r + 1].0);
        }
        l.vectorize_seldom(Cap {
            scores: &mut self.probabilities[..2 * R],
            cap,
        });
        for r in 0..R {
            scores[r][0] = l.load(&self.probabilities[2 * r].0);
            scores[r][1] = l.load(&self.probabilities[2 * r + 1].0);
        }
    }
}

/// The soft cap, after which scores are in units of log₂.
struct Cap<'a> {
    scores: &'a mut [Line],
    cap: f32,
}

impl Kernel for Cap<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (cap, factor) = (l.splat(self.cap), l.splat(self.cap * LOG2_E));
        for score in self.scores {
            let capped = math::tanh(l, l.div(l.load(&score.0), cap));
            l.store(l.mul(factor, capped), &mut score.0);
        }
    }
}

/// Consecutive query rows.
pub(super) struct QueryRows {
    /// Scaled queries, in whole lines.
    pub(super) numbers: *const f32,
    /// Numbers from one row to the next.
    pub(super) len: usize,
    /// The largest magnitude of each row.
    pub(super) sizes: *const f32,
}

/// Scores of `R` query rows with the block's tokens. Meanwhile asks for the keys of the tile at `next`.
///
/// # Safety
/// There are `R` rows of as many numbers as the source has dimensions.
#[inline(always)]
pub(super) unsafe fn scores<L: Lanes, S: Numbers, const R: usize>(
    l: L,
    source: S,
    queries: &QueryRows,
    next: *const u8,
) -> [[L::V; TOKEN_VECTORS]; R] {
    let mut sums = [[l.splat(0.0); TOKEN_VECTORS]; R];
    for dim in 0..source.dims() {
        l.prefetch(next.wrapping_add(dim * BLOCK_TOKENS * 2));
        // SAFETY: the caller's promise; `dim` is one of the source's dimensions.
        unsafe {
            let keys = [source.keys(l, dim, 0), source.keys(l, dim, 1)];
            for r in 0..R {
                let q = l.splat(*queries.numbers.add(r * queries.len + dim));
                sums[r][0] = l.fma(q, keys[0], sums[r][0]);
                sums[r][1] = l.fma(q, keys[1], sums[r][1]);
            }
        }
    }
    sums
}

/// Makes the scores of tokens outside a range negative infinity.
#[inline(always)]
fn hide<L: Lanes>(l: L, scores: &mut [L::V; TOKEN_VECTORS], (start, end): (usize, usize)) {
    const LANE_NUMBERS: [f32; LANES] = [
        0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.,
    ];
    let (start, end) = (l.splat(start as f32), l.splat(end as f32));
    let hidden = l.splat(f32::NEG_INFINITY);
    for v in 0..TOKEN_VECTORS {
        let token = l.add(l.load(&LANE_NUMBERS), l.splat((v * LANES) as f32));
        scores[v] = l.select_lt(token, end, scores[v], hidden);
        scores[v] = l.select_lt(token, start, hidden, scores[v]);
    }
}

/// Raises the references of rows to the maxima of their new scores where those exceed them by more than [`SLACK`], and
/// multiplies what was summed before.
struct RaiseReferences<'a> {
    /// `[row][vector]`.
    scores: &'a [Line],
    references: &'a mut [Line],
    lane_sums: &'a mut [Line],
    /// `[row][line]`.
    sums: &'a mut [Line],
}

impl Kernel for RaiseReferences<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let rows = self.references.len();
        let lines = self.sums.len() / rows;
        for r in 0..rows {
            let scores = (
                l.load(&self.scores[2 * r].0),
                l.load(&self.scores[2 * r + 1].0),
            );
            let (old, new) = (
                self.references[r].0[0],
                l.reduce_max(l.max(scores.0, scores.1)),
            );
            if new > old + SLACK {
                self.references[r].0 = [new; LANES];
                let factor = l.splat(exp2(l, old - new));
                let sum = &mut self.lane_sums[r].0;
                l.store(l.mul(l.load(sum), factor), sum);
                for i in 0..lines {
                    let sum = &mut self.sums[r * lines + i].0;
                    l.store(l.mul(l.load(sum), factor), sum);
                }
            }
        }
    }
}

/// What [`add_values`] adds to.
pub(super) struct ValueRows<const R: usize> {
    /// For each row [`BLOCK_TOKENS`] probabilities.
    pub(super) probabilities: *const f32,
    /// For each row its sums, as many lines as the head has.
    pub(super) sums: *mut Line,
    pub(super) lines: usize,
    /// The values of the tile to ask for meanwhile.
    pub(super) next: *const u8,
}

/// Adds the tokens' values times their probabilities to `C` vectors, from `first` on, of `R` rows; returns `C`.
///
/// # Safety
/// The pointers are to `R` rows as [`ValueRows`] says, to which nothing else refers; `first + C` is at most the number of lines of the
/// source's head.
#[inline(always)]
unsafe fn add_values<L: Lanes, S: Numbers, const R: usize, const C: usize>(
    l: L,
    source: S,
    rows: &ValueRows<R>,
    first: usize,
) -> usize {
    // SAFETY: the caller's promises.
    unsafe {
        let mut sums = [[l.splat(0.0); C]; R];
        for r in 0..R {
            for c in 0..C {
                sums[r][c] = l.load(&(*rows.sums.add(r * rows.lines + first + c)).0);
            }
        }
        let mut next = rows.next.wrapping_add(first * LANES * 2);
        for token in 0..BLOCK_TOKENS {
            l.prefetch(next);
            if C > 2 {
                l.prefetch(next.wrapping_add(64));
            }
            next = next.wrapping_add(source.dims() * 2);
            let mut values = [l.splat(0.0); C];
            for c in 0..C {
                values[c] = source.values(l, token, first + c);
            }
            for r in 0..R {
                let p = l.splat(*rows.probabilities.add(r * BLOCK_TOKENS + token));
                for c in 0..C {
                    sums[r][c] = l.fma(p, values[c], sums[r][c]);
                }
            }
        }
        for r in 0..R {
            for c in 0..C {
                l.store(
                    sums[r][c],
                    &mut (*rows.sums.add(r * rows.lines + first + c)).0,
                );
            }
        }
    }
    C
}

/// `2^x` of one number by the vector function.
#[inline(always)]
pub(super) fn exp2<L: Lanes>(l: L, x: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    l.store(math::exp2(l, l.splat(x)), &mut lanes);
    lanes[0]
}

/// Adds a block's values to the sums of `R` rows, as many columns at a time as the registers hold.
///
/// # Safety
/// As [`add_values`], for every column.
#[inline(always)]
pub(super) unsafe fn add_all_values<L: Lanes, S: Numbers, const R: usize>(
    l: L,
    source: S,
    rows: &ValueRows<R>,
) {
    let mut column = 0;
    while column < rows.lines {
        // SAFETY: the caller's promise; the columns stay below `lines`.
        column += unsafe {
            if const { !L::MANY_REGISTERS } {
                add_values::<L, S, R, 1>(l, source, rows, column)
            } else {
                match rows.lines - column {
                    1 => add_values::<L, S, R, 1>(l, source, rows, column),
                    2 | 3 => add_values::<L, S, R, 2>(l, source, rows, column),
                    _ => add_values::<L, S, R, COLUMNS>(l, source, rows, column),
                }
            }
        };
    }
}
