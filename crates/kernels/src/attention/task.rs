//! A task: some query rows through some of the context.

use super::codes::{AttendCodes, CodeMemory};
use super::micro::{AttendConverted, AttendHalves, ROWS, Rows, TOKEN_VECTORS, Tile, Visible};
use super::plan::{Task, first_seen, head_lines, record_lines};
use super::source::{Convert, Converted};
use super::state::{Fold, State, WriteOut, WriteRecords};
use super::{AttentionSequence, AttentionShape, Line, SPLIT_TOKENS};
use crate::kv::{BLOCK_TOKENS, KvBlock, KvFormat, KvLayout};
use crate::ops::SharedSlice;
use crate::ops::lanes::{Driver, Kernel, LANES, Lanes, load_part};
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// Up to this many query rows of a KV head, numbers are converted as they are read.
const DIRECT_QUERIES: usize = 2 * ROWS;

/// Tiles that are read in one go, at most.
const TILES: usize = 32;

/// One task, to be run on some instruction set.
pub(super) struct RunTask<'a> {
    pub(super) layout: &'a KvLayout,
    pub(super) shape: &'a AttentionShape<'a>,
    pub(super) sequence: &'a AttentionSequence<'a>,
    pub(super) task: &'a Task,
    pub(super) q: &'a [f32],
    pub(super) out: &'a SharedSlice<'a, f32>,
    pub(super) partials: &'a SharedSlice<'a, Line>,
    pub(super) lines: &'a mut [Line],
}

/// A worker's memory, divided. Query rows are numbered `(kv head of the task, row of the task, head of the group)`.
struct Memory<'a> {
    /// Keys of a block, `[head_dim][32]`.
    keys: &'a mut [Line],
    /// Values of a block, `[32][head lines]`.
    values: &'a mut [Line],
    /// The queries with the split's state.
    rows: Rows<'a>,
    /// The state of all splits before.
    total: State<'a>,
}

/// Lines that a worker needs for so many query rows.
pub(super) fn worker_lines(head_dim: usize, queries: usize) -> usize {
    let lines = head_lines(head_dim);
    let tile = head_dim * TOKEN_VECTORS + BLOCK_TOKENS * lines;
    let rows = queries * (lines + 2 * (lines + 2)) + queries.div_ceil(LANES);
    tile + ROWS * TOKEN_VECTORS + rows
}

impl<'a> Memory<'a> {
    /// Divides a worker's lines and loads the queries.
    fn new<L: Lanes>(l: L, task: &RunTask<'_>, lines: &'a mut [Line]) -> Self {
        let head_dim = task.layout.head_dim();
        let (count, head) = (
            task.task.kv_heads.len() * task.per_head(),
            head_lines(head_dim),
        );
        let mut rest = lines;
        let mut take = |count: usize| {
            let (part, left) = std::mem::take(&mut rest).split_at_mut(count);
            rest = left;
            part
        };
        let keys = take(head_dim * TOKEN_VECTORS);
        let values = take(BLOCK_TOKENS * head);
        let probabilities = take(ROWS * TOKEN_VECTORS);
        let queries = take(count * head);
        let sizes = take(count.div_ceil(LANES));
        let mut state = || State {
            sums: take(count * head),
            lane_sums: take(count),
            references: take(count),
        };
        let (state, mut total) = (state(), state());
        total.clear();
        l.vectorize(LoadQueries {
            task,
            lines: head,
            to: queries,
            sizes,
        });
        let (per_head, softcap) = (task.per_head(), task.shape.softcap);
        let rows = Rows {
            queries,
            sizes,
            state,
            probabilities,
            per_head,
            softcap,
        };
        Self {
            keys,
            values,
            rows,
            total,
        }
    }
}

impl Driver for RunTask<'_> {
    fn run<L: Lanes>(mut self, l: L) {
        let lines = std::mem::take(&mut self.lines);
        let mut memory = Memory::new(l, &self, lines);
        let lines = head_lines(self.layout.head_dim());
        for split in self.task.splits.clone() {
            memory.rows.state.clear();
            self.attend_split(l, &mut memory, split);
            match self.task.partial {
                Some(_) => self.write_records(l, &memory.rows.state, split),
                None => {
                    let (total, state) = (&mut memory.total, &memory.rows.state);
                    l.vectorize(Fold {
                        total,
                        state,
                        lines,
                    });
                }
            }
        }
        if self.task.partial.is_none() {
            let place = |query: usize| (self.head(query), self.place(query));
            let (total, sinks, out) = (&memory.total, self.shape.sinks, self.out);
            l.vectorize(WriteOut {
                total,
                lines,
                sinks,
                out,
                place: &place,
            });
        }
    }
}

impl RunTask<'_> {
    /// Query heads of a KV head.
    fn group(&self) -> usize {
        self.shape.heads / self.layout.kv_heads()
    }

    /// Query rows of a KV head.
    fn per_head(&self) -> usize {
        self.task.rows.len() * self.group()
    }

    /// The query head of a query row.
    fn head(&self, query: usize) -> usize {
        let kv_head = self.task.kv_heads.start + query / self.per_head();
        kv_head * self.group() + query % self.group()
    }

    /// The row of the task of a query row.
    fn row(&self, query: usize) -> usize {
        query % self.per_head() / self.group()
    }

    /// Where in `q` and `out` a query row stands.
    fn place(&self, query: usize) -> Range<usize> {
        let head_dim = self.layout.head_dim();
        let row = self.task.first_row + self.row(query);
        let start = (row * self.shape.heads + self.head(query)) * head_dim;
        start..start + head_dim
    }

    /// The position of the task's first row.
    fn first_position(&self) -> usize {
        self.sequence.first_position + self.task.rows.start
    }

    /// Blocks of a split that any of the rows sees.
    fn blocks_of(&self, split: usize) -> Range<usize> {
        let first = first_seen(self.shape.window, self.first_position()).max(split * SPLIT_TOKENS);
        let end = self.first_position() + self.task.rows.len();
        let end = end.min((split + 1) * SPLIT_TOKENS);
        first / BLOCK_TOKENS..end.div_ceil(BLOCK_TOKENS)
    }

    /// The blocks of which every row sees all.
    fn whole_blocks(&self) -> Range<usize> {
        let first = self.first_position();
        let seen = first_seen(self.shape.window, first + self.task.rows.len() - 1);
        seen.div_ceil(BLOCK_TOKENS)..(first + 1) / BLOCK_TOKENS
    }

    /// What the rows see of a block.
    fn visible(&self, block: usize) -> Visible {
        Visible {
            first_token: block * BLOCK_TOKENS,
            first_position: self.first_position(),
            group: self.group(),
            window: self.shape.window,
        }
    }

    /// Takes the rows through the blocks of a split. Few rows read the blocks as they are, several tiles in one go.
    fn attend_split<L: Lanes>(&self, l: L, memory: &mut Memory<'_>, split: usize) {
        let direct =
            self.per_head() <= DIRECT_QUERIES && self.layout.head_dim().is_multiple_of(LANES);
        let at_once = if direct { TILES } else { 1 };
        let whole = self.whole_blocks();
        let mut format = KvFormat::F16;
        let mut batch = [Tile {
            bytes: &[],
            head: 0,
            visible: None,
        }; TILES];
        let mut count = 0;
        for block in self.blocks_of(split) {
            let KvBlock {
                format: block_format,
                bytes,
            } = self.sequence.blocks[block];
            let tile_bytes = self.layout.tile_bytes(block_format);
            let range = self.layout.layer_range(block_format, self.shape.layer);
            let heads = &bytes[range][self.task.kv_heads.start * tile_bytes..];
            let visible = if whole.contains(&block) {
                None
            } else {
                Some(self.visible(block))
            };
            for head in 0..self.task.kv_heads.len() {
                let bytes = &heads[head * tile_bytes..][..tile_bytes];
                if count > 0 && (block_format != format || count == at_once) {
                    self.attend_tiles(l, memory, format, &batch[..count], bytes.as_ptr());
                    count = 0;
                }
                format = block_format;
                batch[count] = Tile {
                    bytes,
                    head,
                    visible,
                };
                count += 1;
            }
        }
        // What comes after the split is another task's, or this one's soon enough.
        self.attend_tiles(l, memory, format, &batch[..count], batch[0].bytes.as_ptr());
    }

    fn attend_tiles<L: Lanes>(
        &self,
        l: L,
        memory: &mut Memory<'_>,
        format: KvFormat,
        tiles: &[Tile<'_>],
        next: *const u8,
    ) {
        match format {
            KvFormat::F16 => self.attend_halves::<L, false>(l, memory, tiles, next),
            KvFormat::Bf16 => self.attend_halves::<L, true>(l, memory, tiles, next),
            KvFormat::Int8 | KvFormat::Int4 => {
                self.attend_codes(l, memory, format, tiles, next);
            }
        }
    }

    fn attend_codes<L: Lanes>(
        &self,
        l: L,
        memory: &mut Memory<'_>,
        format: KvFormat,
        tiles: &[Tile<'_>],
        next: *const u8,
    ) {
        let head_dim = self.layout.head_dim();
        let Memory { values, rows, .. } = memory;
        l.vectorize(AttendCodes {
            rows,
            head_dim,
            format,
            tiles,
            memory: CodeMemory::new(head_lines(head_dim), values),
            next,
        });
    }

    fn attend_halves<L: Lanes, const BF16: bool>(
        &self,
        l: L,
        memory: &mut Memory<'_>,
        tiles: &[Tile<'_>],
        next: *const u8,
    ) {
        let head_dim = self.layout.head_dim();
        let Memory {
            keys, values, rows, ..
        } = memory;
        if self.per_head() <= DIRECT_QUERIES && head_dim.is_multiple_of(LANES) {
            l.vectorize(AttendHalves::<BF16> {
                rows,
                head_dim,
                tiles,
                next,
            });
            return;
        }
        for &Tile {
            bytes,
            head,
            visible,
        } in tiles
        {
            l.vectorize(Convert::<BF16> {
                tile: bytes,
                head_dim,
                keys,
                values,
            });
            let source = Converted::new(keys, values, head_dim);
            l.vectorize(AttendConverted {
                rows,
                source,
                head,
                visible,
                next,
            });
        }
    }

    /// Writes a split's states for the merge.
    fn write_records<L: Lanes>(&self, l: L, state: &State<'_>, split: usize) {
        let Some(partial) = &self.task.partial else {
            return;
        };
        let lines = head_lines(self.layout.head_dim());
        let first_row = (split - partial.first_split) * self.task.rows.len();
        let place = |query: usize| {
            let number = (first_row + self.row(query)) * self.shape.heads + self.head(query);
            partial.first_line + number * record_lines(self.layout.head_dim())
        };
        l.vectorize(WriteRecords {
            state,
            lines,
            partials: self.partials,
            place: &place,
        });
    }
}

/// Queries times the scale; scores are in units of log₂ unless a cap comes first.
struct LoadQueries<'a, 'b> {
    task: &'a RunTask<'b>,
    lines: usize,
    to: &'a mut [Line],
    /// See [`Rows::sizes`].
    sizes: &'a mut [Line],
}

impl Kernel for LoadQueries<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let RunTask { shape, q, .. } = self.task;
        let factor = if shape.softcap.is_some() { 1.0 } else { LOG2_E };
        let factor = l.splat(shape.scale * factor);
        let mut query = 0;
        while (query + 1) * self.lines <= self.to.len() {
            let from = &q[self.task.place(query)];
            let (mut size, mut zero) = (l.splat(0.0), l.splat(0.0));
            for i in 0..self.lines {
                let from = &from[i * LANES..];
                let v = match from.first_chunk() {
                    Some(from) => l.load(from),
                    None => load_part(l, from, 0.0),
                };
                let v = l.mul(v, factor);
                l.store(v, &mut self.to[query * self.lines + i].0);
                size = l.max(l.abs(v), size);
                zero = l.fma(v, l.splat(0.0), zero);
            }
            // Not a number if any number is none, or infinite.
            let size = l.reduce_max(size) + l.reduce_add(zero);
            self.sizes[query / LANES].0[query % LANES] = size;
            query += 1;
        }
    }
}
