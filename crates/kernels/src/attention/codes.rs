//! Attention to quantized tiles by exact sums of integers.
//!
//! A score is `Σ q · scale · number` over channels. The products `q · scale` of a row with a tile become factors, integers
//! of 16 bits in a unit that the largest `|q|` and the largest scale give, and are multiplied with the codes without any
//! rounding; so are the probabilities times the tokens' scales with the values' codes, in 8 bits. Integers add up to the
//! same bits in any order, on every instruction set. What is lost is half a unit: 2^-16 of the largest `|q|` times the
//! largest scale, and 1 / 510 of the block's largest probability times the largest scale.
#![expect(
    clippy::needless_range_loop,
    reason = "several arrays are walked together, and the loops are unrolled"
)]

use super::Line;
use super::micro::{QueryRows, ROWS, Rows, TOKEN_VECTORS, Tile, ValueRows};
use super::plan::head_lines;
use super::source::Source;
use crate::kv::quantized::{
    Parts, QUAD, SCALE_BIAS, SCALE_SHIFT, VALUE_GROUP, VECTOR_BYTES, added, get,
};
use crate::kv::{BLOCK_TOKENS, KvFormat, KvLayout};
use crate::ops::lanes::bytes::{Codes, Factors};
use crate::ops::lanes::{Kernel, LANES, Lanes};

/// Quads of a block's tokens.
const TOKEN_QUADS: usize = BLOCK_TOKENS / QUAD;
/// Quads of a line.
const LINE_QUADS: usize = LANES / QUAD;
/// Lines of a token's values that share a scale in four bits, and most groups of them.
const GROUP_LINES: usize = VALUE_GROUP / LANES;
const MOST_GROUPS: usize = KvLayout::MAX_HEAD_DIM / VALUE_GROUP;
/// Sizes are taken to be this at least, so that all numbers may be zero.
const LEAST: f32 = 1e-15;

/// The largest factors of a head's channels: their products with codes add up to less than 2^31.
fn largest_factor(head_dim: usize) -> f32 {
    if head_dim <= 512 {
        Factors::LARGEST
    } else {
        16_000.0
    }
}

/// Where the codes and scales of a tile, and the factors that go with them, are kept.
pub(super) struct CodeMemory<'a> {
    keys: &'a mut [Line],
    values: &'a mut [Line],
    rest: Rest<'a>,
}

/// What is not codes.
struct Rest<'a> {
    key_scales: &'a mut [Line],
    value_scales: &'a mut [Line],
    factors: &'a mut [Line],
}

impl<'a> CodeMemory<'a> {
    /// In the room of a tile's values as numbers, `[32][lines]`.
    pub(super) fn new(lines: usize, mut rest: &'a mut [Line]) -> Self {
        let mut take = |count: usize| {
            let (part, left) = std::mem::take(&mut rest).split_at_mut(count);
            rest = left;
            part
        };
        Self {
            keys: take(LINE_QUADS * TOKEN_VECTORS * lines),
            values: take(TOKEN_QUADS * lines),
            rest: Rest {
                key_scales: take(lines),
                value_scales: take(TOKEN_VECTORS * lines.div_ceil(GROUP_LINES)),
                factors: take(ROWS * lines.max(TOKEN_VECTORS)),
            },
        }
    }
}

fn as_codes(lines: &[Line]) -> &[Codes] {
    // SAFETY: a line is 64 bytes without padding, and bytes need no alignment.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len()) }
}

fn as_codes_mut(lines: &mut [Line]) -> &mut [Codes] {
    // SAFETY: a line is 64 bytes without padding any of which may be written, and bytes need no alignment.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len()) }
}

/// Takes query rows through quantized tiles, one after another.
pub(super) struct AttendCodes<'a, 'b> {
    pub(super) rows: &'a mut Rows<'b>,
    pub(super) head_dim: usize,
    pub(super) format: KvFormat,
    pub(super) tiles: &'a [Tile<'a>],
    pub(super) memory: CodeMemory<'a>,
    /// The tile to ask for during the last one.
    pub(super) next: *const u8,
}

impl Kernel for AttendCodes<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self, l: L) {
        self.rows.check(self.head_dim);
        // Few rows unpack nibbles where they multiply with them, if their sums leave registers for that.
        let packed = const { L::MANY_SUMS }
            && self.format == KvFormat::Int4
            && self.rows.per_head <= 2 * ROWS
            && self.head_dim.is_multiple_of(LANES);
        let mut i = 0;
        while i < self.tiles.len() {
            let tile = self.tiles[i];
            let next = if i + 1 < self.tiles.len() {
                self.tiles[i + 1].bytes.as_ptr()
            } else {
                self.next
            };
            let Tile {
                bytes,
                head,
                visible,
            } = tile;
            let (head_dim, rows) = (self.head_dim, &mut *self.rows);
            if packed {
                let source = PackedTile::new(l, head_dim, bytes, &mut self.memory.rest);
                // SAFETY: checked.
                unsafe { rows.attend(l, source, head, visible, next) };
            } else {
                let source = if self.format == KvFormat::Int4 {
                    unpack_int4(l, head_dim, bytes, &mut self.memory)
                } else {
                    unpack_int8(l, head_dim, bytes, &mut self.memory)
                };
                // SAFETY: checked.
                unsafe { rows.attend(l, source, head, visible, next) };
            }
            i += 1;
        }
    }
}

/// The codes of an int8 tile where they stand, if its rows are whole vectors, and its scales.
#[inline(always)]
fn unpack_int8<'a, L: Lanes>(
    l: L,
    head_dim: usize,
    tile: &'a [u8],
    memory: &'a mut CodeMemory<'_>,
) -> CodeTile<'a> {
    let parts = Parts::int8(head_dim);
    let value_scales = &mut memory.rest.value_scales[..TOKEN_VECTORS];
    for (scales, to) in [
        (&tile[parts.key_scales], &mut *memory.rest.key_scales),
        (&tile[parts.value_scales], value_scales),
    ] {
        for i in 0..to.len() {
            l.store(l.load_f16(&get(&scales[2 * LANES * i..])), &mut to[i].0);
        }
    }
    let (keys, values) = (tile[parts.keys].as_chunks().0, &tile[parts.values]);
    let form = (2 * VECTOR_BYTES, head_lines(head_dim));
    if head_dim.is_multiple_of(LANES) {
        let codes = (keys, values.as_chunks().0);
        return CodeTile::new(l, head_dim, form, codes, &mut memory.rest);
    }
    as_codes_mut(memory.keys)[..keys.len()].copy_from_slice(keys);
    let (lines, to) = (head_lines(head_dim), as_codes_mut(memory.values));
    for quad in 0..TOKEN_QUADS {
        let row = &values[quad * QUAD * head_dim..][..QUAD * head_dim];
        for i in 0..lines {
            to[quad * lines + i] = get(&row[i * VECTOR_BYTES..]);
        }
    }
    let codes = (as_codes(memory.keys), as_codes(memory.values));
    CodeTile::new(l, head_dim, form, codes, &mut memory.rest)
}

/// The codes of an int4 tile as those of an int8 one, and its scales.
#[inline(always)]
fn unpack_int4<'a, L: Lanes>(
    l: L,
    head_dim: usize,
    tile: &'a [u8],
    memory: &'a mut CodeMemory<'_>,
) -> CodeTile<'a> {
    let parts = Parts::int4(head_dim);
    unpack_keys(l, head_dim, tile, &parts, as_codes_mut(memory.keys));
    unpack_scales(l, &tile[parts.key_scales], memory.rest.key_scales);
    unpack_scales(l, &tile[parts.value_scales], memory.rest.value_scales);
    let (codes, offsets) = (&tile[parts.values], &tile[parts.value_offsets]);
    let (lines, to) = (head_lines(head_dim), as_codes_mut(memory.values));
    assert!(to.len() == TOKEN_QUADS * lines);
    for pair in 0..TOKEN_QUADS / 2 {
        let row = &codes[pair * QUAD * head_dim..][..QUAD * head_dim];
        for i in 0..lines {
            let group = i / GROUP_LINES * BLOCK_TOKENS;
            let added = added(&offsets[group + 2 * QUAD * pair..]);
            let [low, high] = l.unpack_nibbles(&get(&row[i * VECTOR_BYTES..]), &added);
            to[2 * pair * lines + i] = low;
            to[(2 * pair + 1) * lines + i] = high;
        }
    }
    let codes = (as_codes(memory.keys), as_codes(memory.values));
    CodeTile::new(
        l,
        head_dim,
        (VECTOR_BYTES, GROUP_LINES),
        codes,
        &mut memory.rest,
    )
}

/// Unpacks scales of eight bits.
#[inline(always)]
fn unpack_scales<L: Lanes>(l: L, scales: &[u8], to: &mut [Line]) {
    for i in 0..to.len() {
        let scales = l.load_shifted(&get(&scales[LANES * i..]), SCALE_BIAS, SCALE_SHIFT);
        l.store(scales, &mut to[i].0);
    }
}

/// Unpacks the keys' codes of an int4 tile.
#[inline(always)]
fn unpack_keys<L: Lanes>(l: L, head_dim: usize, tile: &[u8], parts: &Parts, to: &mut [Codes]) {
    let codes = tile[parts.keys.clone()].as_chunks::<VECTOR_BYTES>().0;
    let offsets = &tile[parts.key_offsets.clone()];
    let pairs = head_dim.div_ceil(2 * QUAD);
    assert!(codes.len() == pairs * TOKEN_VECTORS && to.len() >= 2 * codes.len());
    for pair in 0..pairs {
        let added = added(&offsets[2 * QUAD * pair..]);
        for v in 0..TOKEN_VECTORS {
            let [low, high] = l.unpack_nibbles(&codes[pair * TOKEN_VECTORS + v], &added);
            to[2 * pair * TOKEN_VECTORS + v] = low;
            to[(2 * pair + 1) * TOKEN_VECTORS + v] = high;
        }
    }
}

/// What the scales of a tile and the factors need, whatever form the codes have.
#[derive(Clone, Copy)]
struct Scales<'a> {
    /// `[lines]`.
    keys: &'a [Line],
    /// `[groups of lines][32 tokens]`.
    values: &'a [Line],
    /// Lines of a group of values.
    group_lines: usize,
    /// The largest scale of the keys, and of each group of values.
    key_size: f32,
    value_sizes: [f32; MOST_GROUPS],
    head_dim: usize,
    /// Room for the factors of [`ROWS`] rows, `[vector][ROWS]`.
    factors: *mut Factors,
}

#[inline(always)]
fn largest<L: Lanes>(l: L, scales: &[Line]) -> f32 {
    let mut most = l.splat(LEAST);
    for i in 0..scales.len() {
        most = l.max(l.load(&scales[i].0), most);
    }
    l.reduce_max(most)
}

/// A size that can be divided by; not a number stays so.
#[inline(always)]
fn at_least(size: f32) -> f32 {
    if size < LEAST { LEAST } else { size }
}

impl<'a> Scales<'a> {
    /// # Panics
    /// If something has not the length stated.
    #[inline(always)]
    fn new<L: Lanes>(l: L, head_dim: usize, group_lines: usize, rest: &'a mut Rest<'_>) -> Self {
        let lines = head_lines(head_dim);
        let groups = lines.div_ceil(group_lines);
        let Rest {
            key_scales,
            value_scales,
            factors,
            ..
        } = rest;
        let (keys, values) = (&**key_scales, &value_scales[..TOKEN_VECTORS * groups]);
        assert!(keys.len() == lines && factors.len() == ROWS * lines.max(TOKEN_VECTORS));
        let mut value_sizes = [0.0; MOST_GROUPS];
        for group in 0..groups {
            let scales = &values[TOKEN_VECTORS * group..][..TOKEN_VECTORS];
            value_sizes[group] = largest(l, scales);
        }
        Self {
            keys,
            values,
            group_lines,
            key_size: largest(l, keys),
            value_sizes,
            head_dim,
            factors: factors.as_mut_ptr().cast(),
        }
    }

    /// Stores the factors of `R` rows' queries, and returns their units.
    ///
    /// # Safety
    /// There are so many rows, [`ROWS`] at most, of as many vectors as there are scales.
    #[inline(always)]
    unsafe fn scale_queries<L: Lanes, const R: usize>(&self, l: L, rows: &QueryRows) -> [f32; R] {
        let largest = largest_factor(self.head_dim);
        let key_inverse = largest / self.key_size;
        let mut units = [0.0; R];
        for r in 0..R {
            // SAFETY: the caller's promise.
            unsafe {
                let size = at_least(*rows.sizes.add(r));
                let inverse = l.splat(key_inverse / size);
                units[r] = size * (self.key_size * (1.0 / largest));
                let query: *const [f32; LANES] = rows.numbers.add(r * rows.len).cast();
                for i in 0..self.keys.len() {
                    let number = l.mul(l.load(&*query.add(i)), l.load(&self.keys[i].0));
                    let to = &mut *self.factors.add(i * ROWS + r);
                    l.store_signed(l.mul(number, inverse), to);
                }
            }
        }
        units
    }

    /// The largest probabilities of `R` rows.
    ///
    /// # Safety
    /// There are so many rows.
    #[inline(always)]
    unsafe fn sizes<L: Lanes, const R: usize>(l: L, rows: &ValueRows<R>) -> [f32; R] {
        let mut sizes = [0.0; R];
        for r in 0..R {
            // SAFETY: the caller's promise.
            let [low, high] = unsafe { probabilities(l, rows, r) };
            sizes[r] = at_least(l.reduce_max(l.max(low, high)));
        }
        sizes
    }

    /// Stores the factors of `R` rows' probabilities for a group of values, and returns their units.
    ///
    /// # Safety
    /// There are so many rows, [`ROWS`] at most, and such a group.
    #[inline(always)]
    unsafe fn scale_probabilities<L: Lanes, const R: usize>(
        &self,
        l: L,
        rows: &ValueRows<R>,
        sizes: &[f32; R],
        group: usize,
    ) -> [f32; R] {
        let mut units = [0.0; R];
        let scales = &self.values[TOKEN_VECTORS * group..][..TOKEN_VECTORS];
        for r in 0..R {
            let size = sizes[r] * self.value_sizes[group];
            let inverse = l.splat(Factors::LARGEST_BYTE / size);
            units[r] = size * (1.0 / Factors::LARGEST_BYTE);
            // SAFETY: the caller's promise.
            unsafe {
                let p = probabilities(l, rows, r);
                for v in 0..TOKEN_VECTORS {
                    let number = l.mul(p[v], l.load(&scales[v].0));
                    let to = &mut *self.factors.add(v * ROWS + r);
                    l.store_bytes(l.mul(number, inverse), to);
                }
            }
        }
        units
    }

    /// The factors of a row in a vector.
    ///
    /// # Safety
    /// There are such, and they have been stored.
    #[inline(always)]
    unsafe fn factors(&self, vector: usize, row: usize) -> &Factors {
        // SAFETY: the caller's promise.
        unsafe { &*self.factors.add(vector * ROWS + row) }
    }
}

/// A row's probabilities.
///
/// # Safety
/// There is such a row.
#[inline(always)]
unsafe fn probabilities<L: Lanes, const R: usize>(
    l: L,
    rows: &ValueRows<R>,
    row: usize,
) -> [L::V; TOKEN_VECTORS] {
    // SAFETY: the caller's promise: a row has as many probabilities as a block has tokens.
    unsafe {
        let p: *const [f32; LANES] = rows.probabilities.add(row * BLOCK_TOKENS).cast();
        [l.load(&*p), l.load(&*p.add(1))]
    }
}

/// Asks for the next tile, evenly while quads are gone through: only so many requests may be under way.
#[derive(Clone, Copy)]
struct Prefetch {
    next: *const u8,
    /// Bytes for each quad: one vector or two, as the codes are stored.
    step: usize,
}

impl Prefetch {
    #[inline(always)]
    fn advance<L: Lanes>(&mut self, l: L) {
        self.next = self.next.wrapping_add(self.step);
        // The same line where a step is one.
        l.prefetch(self.next.wrapping_sub(self.step));
        l.prefetch(self.next.wrapping_sub(VECTOR_BYTES));
    }
}

/// Adds the sums of a row's vector to what it was.
///
/// # Safety
/// Such a line is there, and nothing else refers to it.
#[inline(always)]
unsafe fn add_sums<L: Lanes>(l: L, sums: L::ByteSums, unit: f32, to: *mut Line) {
    // SAFETY: the caller's promise.
    let to = unsafe { &mut (*to).0 };
    l.store(l.fma(l.finish_bytes(sums), l.splat(unit), l.load(to)), to);
}

/// A tile's codes of eight bits. Where the channels are not whole lines, the factors of what is beyond them are zero.
#[derive(Clone, Copy)]
struct CodeTile<'a> {
    /// `[lines][4 quads][32 tokens]`.
    keys: &'a [Codes],
    /// `[quads of tokens][lines]`.
    values: &'a [Codes],
    /// Of the keys' codes, `[32 tokens]`.
    bias: [Line; TOKEN_VECTORS],
    scales: Scales<'a>,
    /// See [`Prefetch`].
    step: usize,
}

impl<'a> CodeTile<'a> {
    /// # Panics
    /// If something has not the length stated.
    #[inline(always)]
    fn new<L: Lanes>(
        l: L,
        head_dim: usize,
        (step, group_lines): (usize, usize),
        (keys, values): (&'a [Codes], &'a [Codes]),
        rest: &'a mut Rest<'_>,
    ) -> Self {
        let lines = head_lines(head_dim);
        assert!(keys.len() == LINE_QUADS * TOKEN_VECTORS * lines);
        assert!(values.len() == TOKEN_QUADS * lines);
        let mut bias = [l.no_bias(); TOKEN_VECTORS];
        for quad in 0..LINE_QUADS * lines {
            for v in 0..TOKEN_VECTORS {
                bias[v] = l.add_bias(bias[v], &keys[quad * TOKEN_VECTORS + v]);
            }
        }
        let mut stored = [Line([0.0; LANES]); TOKEN_VECTORS];
        for v in 0..TOKEN_VECTORS {
            l.store_bias(bias[v], &mut stored[v].0);
        }
        Self {
            keys,
            values,
            bias: stored,
            scales: Scales::new(l, head_dim, group_lines, rest),
            step,
        }
    }

    /// Sums of products of the keys with the factors of `N` rows, from `first` on.
    ///
    /// # Safety
    /// `first + N` is at most [`ROWS`].
    #[inline(always)]
    unsafe fn key_sums<L: Lanes, const N: usize>(
        &self,
        l: L,
        first: usize,
        next: *const u8,
    ) -> [[L::Sums; TOKEN_VECTORS]; N] {
        let mut sums = [[l.no_sums(); TOKEN_VECTORS]; N];
        let step = self.step;
        let mut prefetch = Prefetch { next, step };
        for line in 0..self.scales.keys.len() {
            for quarter in 0..LINE_QUADS {
                prefetch.advance(l);
                let quad = line * LINE_QUADS + quarter;
                // SAFETY: there are factors of all lines for each row, and two vectors of codes for each quad.
                unsafe {
                    for r in 0..N {
                        let factors = self.scales.factors(line, first + r);
                        for v in 0..TOKEN_VECTORS {
                            let codes = self.keys.get_unchecked(quad * TOKEN_VECTORS + v);
                            sums[r][v] = l.dot4(sums[r][v], codes, factors, quarter);
                        }
                    }
                }
            }
        }
        sums
    }

    /// Adds products of `C` vectors of values, from `column` on, with the factors of `N` rows, from `first` on, to the
    /// rows' sums; returns `C`.
    ///
    /// # Safety
    /// `first + N` is at most `R`, `column + C` at most the lines, and [`ValueRows`] has what it says.
    #[inline(always)]
    unsafe fn add_columns<L: Lanes, const R: usize, const N: usize, const C: usize>(
        &self,
        l: L,
        (first, column): (usize, usize),
        units: &[f32; R],
        rows: &ValueRows<R>,
    ) -> usize {
        let mut sums = [[l.no_byte_sums(); C]; N];
        let step = self.step;
        let next = rows.next.wrapping_add(column / 2 * TOKEN_QUADS * step);
        let mut prefetch = Prefetch { next, step };
        // SAFETY: the caller's promises; there are vectors for every quad and line, and factors of all tokens for each row.
        unsafe {
            for quad in 0..TOKEN_QUADS {
                for _ in 0..C.div_ceil(2) {
                    prefetch.advance(l);
                }
                for r in 0..N {
                    let factors = self.scales.factors(quad / LINE_QUADS, first + r);
                    for c in 0..C {
                        let codes = self.values.get_unchecked(quad * rows.lines + column + c);
                        sums[r][c] = l.dot4_bytes(sums[r][c], codes, factors, quad % LINE_QUADS);
                    }
                }
            }
            for r in 0..N {
                for c in 0..C {
                    let to = rows.sums.add((first + r) * rows.lines + column + c);
                    add_sums(l, sums[r][c], units[first + r], to);
                }
            }
        }
        C
    }
}

impl Source for CodeTile<'_> {
    #[inline(always)]
    fn head_dim(&self) -> usize {
        self.scales.head_dim
    }

    #[inline(always)]
    fn key_bytes(&self) -> usize {
        self.keys.len() / TOKEN_VECTORS * self.step
    }

    #[inline(always)]
    unsafe fn scores<L: Lanes, const R: usize>(
        self,
        l: L,
        rows: &QueryRows,
        next: *const u8,
    ) -> [[L::V; TOKEN_VECTORS]; R] {
        let mut scores = [[l.splat(0.0); TOKEN_VECTORS]; R];
        // SAFETY: the caller's promise: `R` rows of as many vectors as there are scales; `R` is at most `ROWS`.
        unsafe {
            let units: [f32; R] = self.scales.scale_queries(l, rows);
            let bias = [l.load_bias(&self.bias[0].0), l.load_bias(&self.bias[1].0)];
            if const { L::MANY_SUMS } {
                let sums = self.key_sums::<L, R>(l, 0, next);
                for r in 0..R {
                    for v in 0..TOKEN_VECTORS {
                        let sum = l.finish_signed(sums[r][v], bias[v]);
                        scores[r][v] = l.mul(sum, l.splat(units[r]));
                    }
                }
            } else {
                for r in 0..R {
                    let [sums] = self.key_sums::<L, 1>(l, r, next);
                    for v in 0..TOKEN_VECTORS {
                        let sum = l.finish_signed(sums[v], bias[v]);
                        scores[r][v] = l.mul(sum, l.splat(units[r]));
                    }
                }
            }
        }
        scores
    }

    #[inline(always)]
    unsafe fn add_values<L: Lanes, const R: usize>(self, l: L, rows: &ValueRows<R>) {
        // SAFETY: the caller's promise: `R` rows of probabilities and of sums; columns stay below the lines.
        unsafe {
            let (sizes, mut column) = (Scales::sizes(l, rows), 0);
            while column < rows.lines {
                let group = column / self.scales.group_lines;
                let units = self.scales.scale_probabilities(l, rows, &sizes, group);
                let end = rows.lines.min((group + 1) * self.scales.group_lines);
                while column < end {
                    if const { L::MANY_SUMS } {
                        column += match end - column {
                            1 => self.add_columns::<L, R, R, 1>(l, (0, column), &units, rows),
                            2 | 3 => self.add_columns::<L, R, R, 2>(l, (0, column), &units, rows),
                            _ => self.add_columns::<L, R, R, 4>(l, (0, column), &units, rows),
                        };
                    } else {
                        for r in 0..R {
                            self.add_columns::<L, R, 1, 1>(l, (r, column), &units, rows);
                        }
                        column += 1;
                    }
                }
            }
        }
    }
}

/// An int4 tile as it stands in its block, of a head of whole lines: the same sums as those of its [`CodeTile`].
///
/// Its loops over columns, and what makes scores of sums, look like [`CodeTile`]'s. With one function for both, decoding with
/// AVX-512 took an eighth longer.
#[derive(Clone, Copy)]
struct PackedTile<'a> {
    /// `[lines][2 pairs of quads][32 tokens]`.
    keys: &'a [Codes],
    /// `[pairs of quads of tokens][lines]`.
    values: &'a [Codes],
    /// `[lines][2 pairs of quads]`.
    key_offsets: &'a [[u8; 2 * QUAD]],
    /// `[groups][pairs of quads of tokens]`.
    value_offsets: &'a [[u8; 2 * QUAD]],
    scales: Scales<'a>,
}

impl<'a> PackedTile<'a> {
    /// # Panics
    /// If the tile is not that of a head of whole vectors.
    #[inline(always)]
    fn new<L: Lanes>(l: L, head_dim: usize, tile: &'a [u8], rest: &'a mut Rest<'_>) -> Self {
        let parts = Parts::int4(head_dim);
        unpack_scales(l, &tile[parts.key_scales], rest.key_scales);
        unpack_scales(l, &tile[parts.value_scales], rest.value_scales);
        let lines = head_lines(head_dim);
        let tile = Self {
            keys: tile[parts.keys].as_chunks().0,
            values: tile[parts.values].as_chunks().0,
            key_offsets: tile[parts.key_offsets].as_chunks().0,
            value_offsets: tile[parts.value_offsets].as_chunks().0,
            scales: Scales::new(l, head_dim, GROUP_LINES, rest),
        };
        assert!(tile.keys.len() == 2 * TOKEN_VECTORS * lines);
        assert!(tile.values.len() == TOKEN_QUADS / 2 * lines);
        assert!(tile.key_offsets.len() == 2 * lines);
        assert!(tile.value_offsets.len() == lines.div_ceil(GROUP_LINES) * TOKEN_QUADS / 2);
        tile
    }

    /// [`CodeTile::add_columns`] for all rows.
    ///
    /// # Safety
    /// The same.
    #[inline(always)]
    unsafe fn add_columns<L: Lanes, const R: usize, const C: usize>(
        &self,
        l: L,
        column: usize,
        units: &[f32; R],
        rows: &ValueRows<R>,
    ) -> usize {
        let mut sums = [[l.no_byte_sums(); C]; R];
        let next = rows
            .next
            .wrapping_add(column / 2 * TOKEN_QUADS * VECTOR_BYTES);
        let mut prefetch = Prefetch {
            next,
            step: VECTOR_BYTES,
        };
        let first_pair = column / GROUP_LINES * TOKEN_QUADS / 2;
        // SAFETY: the caller's promises; there are vectors for every pair and line, and factors of all tokens for each row.
        unsafe {
            for pair in 0..TOKEN_QUADS / 2 {
                let added = added(self.value_offsets.get_unchecked(first_pair + pair));
                let (vector, quarter) = (2 * pair / LINE_QUADS, 2 * pair % LINE_QUADS);
                for c in 0..C {
                    prefetch.advance(l);
                    let codes = self.values.get_unchecked(pair * rows.lines + column + c);
                    let [low, high] = l.unpack_nibbles(codes, &added);
                    for r in 0..R {
                        let factors = self.scales.factors(vector, r);
                        sums[r][c] = l.dot4_bytes(sums[r][c], &low, factors, quarter);
                        sums[r][c] = l.dot4_bytes(sums[r][c], &high, factors, quarter + 1);
                    }
                }
            }
            for r in 0..R {
                for c in 0..C {
                    let to = rows.sums.add(r * rows.lines + column + c);
                    add_sums(l, sums[r][c], units[r], to);
                }
            }
        }
        C
    }
}

impl Source for PackedTile<'_> {
    #[inline(always)]
    fn head_dim(&self) -> usize {
        self.scales.head_dim
    }

    #[inline(always)]
    fn key_bytes(&self) -> usize {
        self.keys.len() * VECTOR_BYTES
    }

    #[inline(always)]
    unsafe fn scores<L: Lanes, const R: usize>(
        self,
        l: L,
        rows: &QueryRows,
        next: *const u8,
    ) -> [[L::V; TOKEN_VECTORS]; R] {
        let mut scores = [[l.splat(0.0); TOKEN_VECTORS]; R];
        let mut sums = [[l.no_sums(); TOKEN_VECTORS]; R];
        let mut bias = [l.no_bias(); TOKEN_VECTORS];
        let mut prefetch = Prefetch {
            next,
            step: VECTOR_BYTES,
        };
        // SAFETY: the caller's promise: `R` rows of as many vectors as there are scales; `R` is at most `ROWS`. For each
        // line there are two pairs of quads.
        unsafe {
            let units: [f32; R] = self.scales.scale_queries(l, rows);
            for line in 0..self.scales.keys.len() {
                for half in 0..2 {
                    let (pair, quarter) = (2 * line + half, 2 * half);
                    let added = added(self.key_offsets.get_unchecked(pair));
                    for v in 0..TOKEN_VECTORS {
                        prefetch.advance(l);
                        let codes = self.keys.get_unchecked(pair * TOKEN_VECTORS + v);
                        let [low, high] = l.unpack_nibbles(codes, &added);
                        bias[v] = l.add_bias(l.add_bias(bias[v], &low), &high);
                        for r in 0..R {
                            let factors = self.scales.factors(line, r);
                            sums[r][v] = l.dot4(sums[r][v], &low, factors, quarter);
                            sums[r][v] = l.dot4(sums[r][v], &high, factors, quarter + 1);
                        }
                    }
                }
            }
            for r in 0..R {
                for v in 0..TOKEN_VECTORS {
                    let sum = l.finish_signed(sums[r][v], bias[v]);
                    scores[r][v] = l.mul(sum, l.splat(units[r]));
                }
            }
        }
        scores
    }

    #[inline(always)]
    unsafe fn add_values<L: Lanes, const R: usize>(self, l: L, rows: &ValueRows<R>) {
        // SAFETY: the caller's promise: `R` rows of probabilities and of sums; columns stay below the lines.
        unsafe {
            let (sizes, mut column) = (Scales::sizes(l, rows), 0);
            while column < rows.lines {
                let group = column / GROUP_LINES;
                let units = self.scales.scale_probabilities(l, rows, &sizes, group);
                let end = rows.lines.min((group + 1) * GROUP_LINES);
                while column < end {
                    column += match end - column {
                        1 => self.add_columns::<L, R, 1>(l, column, &units, rows),
                        2 | 3 => self.add_columns::<L, R, 2>(l, column, &units, rows),
                        _ => self.add_columns::<L, R, 4>(l, column, &units, rows),
                    };
                }
            }
        }
    }
}
