//! A strip of the result: a few panels of weights times a run of rows of activations.
//!
//! With few rows memory is slower than arithmetic: a group of panels is gone through front to back,
//! codes are unpacked in registers as they are used, and the sums of its panels wait in scratch.
//! With many rows panels are taken by twos: where formats are light to unpack and registers allow
//! wide tiles still *directly*, a tile of rows meeting all columns before the next tile does; else
//! each superblock is *expanded* into scratch once and then meets every tile.

use super::activation::Activations;
use super::block::{Ahead, Block, Product, Tiles};
use super::float::{BF16, F16, F32, Floats};
use super::formats::{IQ4NL, IQ4XS, MXFP4, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use crate::format::WeightFormat;
use crate::matrix::layout::{GROUP_PANELS, SUPERBLOCK, panel_len, superblock_bytes};
use crate::matrix::{MatrixRef, PanelsRef, Weights};
use crate::simd::{LANES, Shells};

/// Most rows of activations in a strip.
pub(crate) const MAX_ROWS: usize = 512;
/// Most panels in a strip.
pub(crate) const MAX_PANELS: usize = 2;
/// Bytes of a packed superblock, at most (F32).
const PACKED_BYTES: usize = SUPERBLOCK * LANES * 4;
/// Bytes of an expanded superblock, at most (F32; codes with scales take less).
const EXPANDED_BYTES: usize = SUPERBLOCK * LANES * 4;
const SUMS_BYTES: usize = MAX_ROWS * MAX_PANELS * LANES * 4;
/// Most rows of a strip of few: the sums of a group of panels find room.
pub(crate) const MAX_FEW_ROWS: usize = SUMS_BYTES / (GROUP_PANELS * LANES * 4);
/// Bytes of scratch that a strip needs.
pub(crate) const SCRATCH_BYTES: usize = SUMS_BYTES + MAX_PANELS * (PACKED_BYTES + EXPANDED_BYTES);

/// Bytes of a row that stands in for those that the last panel lacks: a superblock of F32.
static NO_ROW: [u8; SUPERBLOCK * 4] = [0; SUPERBLOCK * 4];

/// What to compute, and where.
pub(crate) struct Strip<'a> {
    /// The weights.
    pub weights: Weights<'a>,
    /// Half-open range of panels, of any number.
    pub panels: (usize, usize),
    /// All rows of activations.
    pub x: Activations,
    /// First row of the strip.
    pub row: usize,
    /// Its tiles, which are tiles of the activations too.
    pub tiles: Tiles,
    /// Whether there are so few rows that memory is slower than arithmetic.
    pub few: bool,
    /// Row `row` of the result, which has as many columns as the weights have rows.
    pub out: *mut f32,
    /// [`SCRATCH_BYTES`] for nobody else's use.
    pub scratch: *mut u8,
}

/// The scratch, cut up.
#[derive(Clone, Copy)]
struct Scratch {
    sums: *mut f32,
    packed: *mut u8,
    expanded: *mut u8,
}

/// Calls `$call` with `$block` as the type of a format.
macro_rules! for_format {
    ($format:expr, $block:ident => $call:expr) => {
        match $format {
            WeightFormat::F32 => {
                type $block = Floats<F32>;
                $call
            }
            WeightFormat::F16 => {
                type $block = Floats<F16>;
                $call
            }
            WeightFormat::BF16 => {
                type $block = Floats<BF16>;
                $call
            }
            WeightFormat::Q4_0 => {
                type $block = Q4_0;
                $call
            }
            WeightFormat::Q4_1 => {
                type $block = Q4_1;
                $call
            }
            WeightFormat::Q5_0 => {
                type $block = Q5_0;
                $call
            }
            WeightFormat::Q5_1 => {
                type $block = Q5_1;
                $call
            }
            WeightFormat::Q8_0 => {
                type $block = Q8_0;
                $call
            }
            WeightFormat::Q2K => {
                type $block = Q2K;
                $call
            }
            WeightFormat::Q3K => {
                type $block = Q3K;
                $call
            }
            WeightFormat::Q4K => {
                type $block = Q4K;
                $call
            }
            WeightFormat::Q5K => {
                type $block = Q5K;
                $call
            }
            WeightFormat::Q6K => {
                type $block = Q6K;
                $call
            }
            WeightFormat::IQ4NL => {
                type $block = IQ4NL;
                $call
            }
            WeightFormat::IQ4XS => {
                type $block = IQ4XS;
                $call
            }
            WeightFormat::MXFP4 => {
                type $block = MXFP4;
                $call
            }
        }
    };
}

/// Computes a strip.
///
/// # Safety
/// The activations are written for `S` and the weights' format, `out` has the rows and nobody else
/// uses the panels' columns of them, `scratch` is as said, and the machine has the instruction set.
pub(crate) unsafe fn run<S: Shells>(strip: &Strip<'_>) {
    let format = strip.weights.format();
    // SAFETY: the caller's promise.
    unsafe {
        let scratch = Scratch {
            sums: strip.scratch.cast(),
            packed: strip.scratch.add(SUMS_BYTES),
            expanded: strip.scratch.add(SUMS_BYTES + MAX_PANELS * PACKED_BYTES),
        };
        for_format!(format, B => run_format::<S, B>(strip, scratch))
    }
}

/// # Safety
/// See [`run`].
unsafe fn run_format<S: Shells, B: Block>(strip: &Strip<'_>, scratch: Scratch) {
    // What no instruction set uses is not even compiled: all but `few` is constant.
    // SAFETY: the caller's promise.
    unsafe {
        if strip.few {
            if B::IS_FLOAT {
                run_few::<S, B, 2>(strip, scratch);
            } else {
                run_few::<S, B, 1>(strip, scratch);
            }
        } else if !(S::EXPANDS || B::HEAVY) {
            run_many::<S, B, 2, true>(strip, scratch);
        } else if B::IS_FLOAT || S::TILE > 4 {
            run_many::<S, B, 2, false>(strip, scratch);
        } else {
            run_many::<S, B, 1, false>(strip, scratch);
        }
    }
}

/// Few rows: a group of panels at a time, front to back.
///
/// # Safety
/// See [`run`].
unsafe fn run_few<S: Shells, B: Block, const R: usize>(strip: &Strip<'_>, scratch: Scratch) {
    let superblocks = strip.x.cols.div_ceil(SUPERBLOCK);
    let (mut first, end) = strip.panels;
    while first < end {
        let group = match strip.weights {
            Weights::Panels(panels) => Group::of::<B>(&panels, first),
            Weights::Rows(_) => Group::packed(scratch, first, R),
        };
        let last = end.min(group.end);
        let mut args = Product::new(strip, &group, (first, last), R, scratch);
        args.streams = matches!(strip.weights, Weights::Panels(_));
        for superblock in 0..superblocks {
            args.superblocks = (superblock, superblock + 1);
            args.weights = group.superblock(superblock);
            args.fresh = superblock == 0;
            // SAFETY: the caller's promise; the scratch has sums for a group of panels.
            unsafe {
                if let Weights::Rows(matrix) = strip.weights {
                    args.ahead = rows_ahead::<B>(&matrix, (first, last), superblock);
                    pack_superblocks::<S, B>(&matrix, (first, last), superblock, scratch);
                }
                multiply::<S, B, R, true>(strip, args);
            }
        }
        // SAFETY: the caller's promise.
        unsafe { write_out::<R>(strip, (first, last), scratch.sums) }
        first = last;
    }
}

/// Many rows: `R` panels at a time.
///
/// # Safety
/// See [`run`].
unsafe fn run_many<S: Shells, B: Block, const R: usize, const DIRECT: bool>(
    strip: &Strip<'_>,
    scratch: Scratch,
) {
    let superblocks = strip.x.cols.div_ceil(SUPERBLOCK);
    let (mut first, end) = strip.panels;
    while first < end {
        let group = match strip.weights {
            Weights::Panels(panels) => Group::of::<B>(&panels, first),
            Weights::Rows(_) => Group::packed(scratch, first, R),
        };
        let last = end.min(group.end).min(first + R);
        let mut args = Product::new(strip, &group, (first, last), R, scratch);
        // SAFETY: the caller's promise.
        unsafe {
            if DIRECT && let Weights::Panels(_) = strip.weights {
                args.superblocks = (0, superblocks);
                args.ahead = group.next_panels::<B>(last, R, superblocks);
                multiply::<S, B, R, false>(strip, args);
            } else {
                for superblock in 0..superblocks {
                    args.superblocks = (superblock, superblock + 1);
                    args.fresh = superblock == 0;
                    let weights = group.superblock(superblock);
                    args.ahead = group.next_superblock::<B>((first, last), superblock);
                    if let Weights::Rows(matrix) = strip.weights {
                        args.ahead = rows_ahead::<B>(&matrix, (first, last), superblock);
                        pack_superblocks::<S, B>(&matrix, (first, last), superblock, scratch);
                    }
                    if DIRECT {
                        args.weights = weights;
                        multiply::<S, B, R, false>(strip, args);
                    } else {
                        expand::<S, B>(weights, args, scratch);
                        let args = args.expanded(scratch);
                        multiply::<S, B::Expanded, R, false>(strip, args);
                    }
                }
            }
            write_out::<R>(strip, (first, last), scratch.sums);
        }
        first = last;
    }
}

/// Where the superblocks of some panels stand: those of a group, or packed ones in scratch.
#[derive(Clone, Copy)]
struct Group {
    /// First superblock of panel `begin`.
    at: *const u8,
    /// Numbers of the panels.
    begin: usize,
    end: usize,
    /// Bytes from panel to panel in a whole superblock, and in a shorter last one.
    panel_steps: (usize, usize),
    /// Bytes from superblock to superblock.
    superblock_step: usize,
}

impl Group {
    /// The group that has panel `panel`.
    fn of<B: Block>(panels: &PanelsRef<'_>, panel: usize) -> Group {
        let begin = panel / GROUP_PANELS * GROUP_PANELS;
        let end = panels.rows().div_ceil(LANES).min(begin + GROUP_PANELS);
        let whole = B::superblock_bytes(SUPERBLOCK);
        Group {
            at: panels.bytes()[begin * panels.panel_len()..].as_ptr(),
            begin,
            end,
            panel_steps: (whole, B::superblock_bytes(panels.cols() % SUPERBLOCK)),
            superblock_step: (end - begin) * whole,
        }
    }

    /// `count` panels of which one superblock at a time will be in scratch.
    fn packed(scratch: Scratch, begin: usize, count: usize) -> Group {
        Group {
            at: scratch.packed,
            begin,
            end: begin + count,
            panel_steps: (PACKED_BYTES, PACKED_BYTES),
            superblock_step: 0,
        }
    }

    /// Where a superblock of the group begins.
    fn superblock(&self, superblock: usize) -> *const u8 {
        self.at.wrapping_add(superblock * self.superblock_step)
    }

    /// The next superblock of some panels.
    fn next_superblock<B: Block>(&self, panels: (usize, usize), superblock: usize) -> Ahead {
        let skip = (panels.0 - self.begin) * self.panel_steps.0;
        Ahead {
            first: self.superblock(superblock + 1).wrapping_add(skip),
            runs: 1,
            bytes: (panels.1 - panels.0) * self.panel_steps.0,
            stride: 0,
        }
    }

    /// All superblocks of `count` panels from `first` on; beyond the group, where the next one has
    /// its first panels, this is a guess.
    fn next_panels<B: Block>(&self, first: usize, count: usize, superblocks: usize) -> Ahead {
        let in_group = first < self.end;
        let skip = if in_group {
            (first - self.begin) * self.panel_steps.0
        } else {
            superblocks * self.superblock_step
        };
        Ahead {
            first: self.at.wrapping_add(skip),
            runs: superblocks,
            bytes: count * self.panel_steps.0,
            stride: self.superblock_step,
        }
    }
}

impl Product {
    /// Panels `panels` of a group times all rows of a strip; what superblocks, is still to be said.
    fn new(
        strip: &Strip<'_>,
        group: &Group,
        panels: (usize, usize),
        together: usize,
        scratch: Scratch,
    ) -> Product {
        Product {
            weights: group.at,
            panels: panels.1 - panels.0,
            panel_steps: group.panel_steps,
            superblock_step: group.superblock_step,
            skip: panels.0 - group.begin,
            superblocks: (0, 0),
            x: strip.x,
            row: strip.row,
            tiles: 0,
            sums: scratch.sums,
            sums_step: strip.tiles.rows() * together * LANES,
            fresh: true,
            streams: false,
            ahead: Ahead::NONE,
        }
    }

    /// The same on what [`expand`] wrote.
    fn expanded(self, scratch: Scratch) -> Product {
        Product {
            weights: scratch.expanded,
            panel_steps: (EXPANDED_BYTES, EXPANDED_BYTES),
            skip: 0,
            ..self
        }
    }
}

/// The superblocks of rows that come after the next one: they are read in runs so short that the
/// hardware does not read ahead.
fn rows_ahead<B: Block>(
    matrix: &MatrixRef<'_>,
    panels: (usize, usize),
    superblock: usize,
) -> Ahead {
    let rows = (panels.0 * LANES, matrix.rows().min(panels.1 * LANES));
    let bytes = B::row_bytes(SUPERBLOCK);
    let first = matrix.row(rows.0).as_ptr();
    Ahead {
        first: first.wrapping_add((superblock + 2) * bytes),
        runs: rows.1 - rows.0,
        bytes,
        stride: matrix.row_bytes(),
    }
}

/// Columns of a superblock of `cols` columns.
fn superblock_len(cols: usize, superblock: usize) -> usize {
    SUPERBLOCK.min(cols - superblock * SUPERBLOCK)
}

/// Packs one superblock of up to [`MAX_PANELS`] panels into scratch.
///
/// # Safety
/// See [`run`]; the matrix has them.
unsafe fn pack_superblocks<S: Shells, B: Block>(
    matrix: &MatrixRef<'_>,
    panels: (usize, usize),
    superblock: usize,
    scratch: Scratch,
) {
    let len = superblock_len(matrix.cols(), superblock);
    for (i, panel) in (panels.0..panels.1).enumerate() {
        let rows = row_pointers::<B>(matrix, panel, superblock);
        // SAFETY: the rows have the superblock, and the scratch has room.
        unsafe { S::pack::<B>(&rows, len, scratch.packed.add(i * PACKED_BYTES)) }
    }
}

/// Where a superblock of each row of a panel begins; rows that the matrix lacks are zeros.
fn row_pointers<B: Block>(
    matrix: &MatrixRef<'_>,
    panel: usize,
    superblock: usize,
) -> [*const u8; LANES] {
    let skip = superblock * B::row_bytes(SUPERBLOCK);
    std::array::from_fn(|lane| match panel * LANES + lane {
        row if row < matrix.rows() => matrix.row(row)[skip..].as_ptr(),
        _ => NO_ROW.as_ptr(),
    })
}

/// Expands the one superblock of up to [`MAX_PANELS`] panels that `args` is about into scratch.
///
/// # Safety
/// See [`run`]; `weights` is the superblock.
unsafe fn expand<S: Shells, B: Block>(weights: *const u8, args: Product, scratch: Scratch) {
    let len = superblock_len(args.x.cols, args.superblocks.0);
    let whole = len == SUPERBLOCK;
    let step = if whole {
        args.panel_steps.0
    } else {
        args.panel_steps.1
    };
    for i in 0..args.panels {
        // SAFETY: the group has the panel, and the scratch has room.
        unsafe {
            let from = weights.add((args.skip + i) * step);
            S::expand::<B>(from, len, scratch.expanded.add(i * EXPANDED_BYTES));
        }
    }
}

/// Multiplies by all rows of the strip: full tiles first, then the others.
///
/// # Safety
/// See [`run`] and [`Product`], but for its tiles.
unsafe fn multiply<S: Shells, B: Block, const R: usize, const FEW: bool>(
    strip: &Strip<'_>,
    mut args: Product,
) {
    let mut width = strip.tiles.width;
    args.tiles = strip.tiles.full;
    for tail in strip.tiles.tails.into_iter().chain([0]) {
        let rows = args.tiles * width;
        if rows > 0 {
            // SAFETY: the caller's promise.
            unsafe { product_of_width::<S, B, R, FEW>(width, &args) }
            args.ahead = Ahead::NONE;
            args.streams = false;
        }
        args.sums = args.sums.wrapping_add(rows * R * LANES);
        args.row += rows;
        args.tiles = 1;
        width = tail;
    }
}

/// # Safety
/// See [`block::product`](super::block::product).
unsafe fn product_of_width<S: Shells, B: Block, const R: usize, const FEW: bool>(
    width: usize,
    args: &Product,
) {
    // What no instruction set uses is not even compiled: the conditions are constants.
    let wide = S::TILE > 4;
    // SAFETY: the caller's promise.
    unsafe {
        match width {
            0 => {}
            1 if FEW => S::product::<B, R, 1>(args),
            2 if FEW || !wide => S::product::<B, R, 2>(args),
            3 => S::product::<B, R, 3>(args),
            4 if wide => S::product::<B, R, 4>(args),
            5 if wide => S::product::<B, R, 5>(args),
            6 if wide => S::product::<B, R, 6>(args),
            7 if wide && FEW => S::product::<B, R, 7>(args),
            8 if wide && FEW => S::product::<B, R, 8>(args),
            _ => unreachable!("no tile has {width} rows"),
        }
    }
}

/// Copies the sums of panels `panels` to the result, as far as the matrix has rows.
///
/// # Safety
/// See [`run`]; `sums` is `[panels / R][rows][R][16]`.
unsafe fn write_out<const R: usize>(strip: &Strip<'_>, panels: (usize, usize), sums: *const f32) {
    let (all, rows) = (strip.weights.rows(), strip.tiles.rows());
    for (set, first) in (panels.0..panels.1).step_by(R).enumerate() {
        let columns = (first * LANES, all.min(panels.1.min(first + R) * LANES));
        for i in 0..rows {
            // SAFETY: both have the row.
            unsafe {
                let from = sums.add((set * rows + i) * R * LANES);
                let to = strip.out.add(i * all + columns.0);
                to.copy_from_nonoverlapping(from, columns.1 - columns.0);
            }
        }
    }
}

/// Packs a group of panels of a matrix into `out`, which is as long as they.
///
/// # Safety
/// The machine has the instruction set.
pub(crate) unsafe fn pack_group<S: Shells>(matrix: &MatrixRef<'_>, group: usize, out: &mut [u8]) {
    let format = matrix.format();
    let first = group * GROUP_PANELS;
    let panels = matrix.rows().div_ceil(LANES).min(first + GROUP_PANELS) - first;
    let panel_len = panel_len(format, matrix.cols()).unwrap_or(usize::MAX);
    assert_eq!(panel_len.checked_mul(panels), Some(out.len()));
    let mut rest = out;
    for superblock in 0..matrix.cols().div_ceil(SUPERBLOCK) {
        let len = superblock_len(matrix.cols(), superblock);
        for panel in first..first + panels {
            let (to, after) = rest.split_at_mut(superblock_bytes(format, len));
            rest = after;
            // SAFETY: the rows have the superblock and `to` has its length.
            unsafe {
                for_format!(format, B => {
                    let rows = row_pointers::<B>(matrix, panel, superblock);
                    S::pack::<B>(&rows, len, to.as_mut_ptr());
                })
            }
        }
    }
}
