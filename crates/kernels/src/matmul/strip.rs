//! A strip of the result: a few panels of weights times a run of rows of activations.
//!
//! There are two ways. *Directly*: codes are unpacked in registers as they are used, and a tile of
//! rows meets all columns of a panel before the next tile does. *Expanded*: each superblock is
//! unpacked once into scratch that stays in the first-level cache and then meets every tile, while
//! the sums wait in scratch. With few rows all formats go directly, with many those that are heavy
//! to unpack do not, nor anything where registers allow only small tiles.

use super::activation::Activations;
use super::block::{Ahead, Block, Product, Tiles};
use super::float::{BF16, F16, F32, Floats};
use super::formats::{Q4_0, Q4K, Q5K, Q6K, Q8_0};
use crate::format::WeightFormat;
use crate::matrix::layout::{SUPERBLOCK, has_panels, panel_stride, superblock_bytes};
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

/// Calls `$call` with `$block` as the type of a format that has panels.
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
            WeightFormat::Q8_0 => {
                type $block = Q8_0;
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
            WeightFormat::Q4_1
            | WeightFormat::Q5_0
            | WeightFormat::Q5_1
            | WeightFormat::Q2K
            | WeightFormat::Q3K => unreachable!("formats without panels go by values"),
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
    let (first, last) = strip.panels;
    // SAFETY: the caller's promise.
    unsafe {
        let scratch = Scratch {
            sums: strip.scratch.cast(),
            packed: strip.scratch.add(SUMS_BYTES),
            expanded: strip.scratch.add(SUMS_BYTES + MAX_PANELS * PACKED_BYTES),
        };
        if !has_panels(format) {
            for panel in first..last {
                by_values::<S>(strip, panel, scratch);
            }
            return;
        }
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
                run_panels::<S, B, 2, true, true>(strip, scratch);
            } else {
                run_panels::<S, B, 1, true, true>(strip, scratch);
            }
        } else if !(S::EXPANDS || B::HEAVY) {
            run_panels::<S, B, 2, false, true>(strip, scratch);
        } else if B::IS_FLOAT || S::TILE > 4 {
            run_panels::<S, B, 2, false, false>(strip, scratch);
        } else {
            run_panels::<S, B, 1, false, false>(strip, scratch);
        }
    }
}

/// # Safety
/// See [`run`].
unsafe fn run_panels<S: Shells, B: Block, const R: usize, const FEW: bool, const DIRECT: bool>(
    strip: &Strip<'_>,
    scratch: Scratch,
) {
    let (first, last) = strip.panels;
    for first in (first..last).step_by(R) {
        // A panel that lacks its second is taken twice.
        let panels = std::array::from_fn(|r| (first + r).min(last - 1));
        // SAFETY: the caller's promise.
        unsafe {
            multiply_panels::<S, B, R, FEW, DIRECT>(strip, panels, scratch);
            write_out::<R>(strip, (first, last.min(first + R)), scratch.sums);
        }
    }
}

/// # Safety
/// See [`run`]; the matrix has the panels.
unsafe fn multiply_panels<
    S: Shells,
    B: Block,
    const R: usize,
    const FEW: bool,
    const DIRECT: bool,
>(
    strip: &Strip<'_>,
    numbers: [usize; R],
    scratch: Scratch,
) {
    let superblocks = strip.x.cols.div_ceil(SUPERBLOCK);
    let step = B::superblock_bytes(SUPERBLOCK);
    // SAFETY: the caller's promise; panels and superblocks are within the matrix.
    unsafe {
        match strip.weights {
            Weights::Panels(panels) if DIRECT => {
                let (at, range) = (panel_pointers(&panels, numbers), (0, superblocks));
                multiply::<S, B, R, FEW>(strip, at, step, range, None, scratch);
            }
            Weights::Panels(panels) => {
                let at = panel_pointers(&panels, numbers);
                for superblock in 0..superblocks {
                    let at = at.map(|panel| panel.wrapping_add(superblock * step));
                    let ahead = Ahead::new(at.iter().map(|panel| panel.wrapping_add(step)), step);
                    multiply_one::<S, B, R, FEW, DIRECT>(strip, at, superblock, ahead, scratch);
                }
            }
            Weights::Rows(matrix) => {
                for superblock in 0..superblocks {
                    let at = pack_superblocks::<S, B, R>(&matrix, numbers, superblock, scratch);
                    let ahead = rows_ahead::<B, R>(&matrix, numbers, superblock);
                    multiply_one::<S, B, R, FEW, DIRECT>(strip, at, superblock, ahead, scratch);
                }
            }
        }
    }
}

/// The superblocks of rows that come after the next one: they are read in runs so short that the
/// hardware does not read ahead.
fn rows_ahead<B: Block, const R: usize>(
    matrix: &MatrixRef<'_>,
    numbers: [usize; R],
    superblock: usize,
) -> Ahead {
    let bytes = B::row_bytes(SUPERBLOCK);
    let rows = numbers
        .iter()
        .flat_map(|panel| panel * LANES..(panel + 1) * LANES);
    let runs = rows.take_while(|row| *row < matrix.rows()).map(|row| {
        let row = matrix.row(row).as_ptr();
        row.wrapping_add((superblock + 2) * bytes)
    });
    Ahead::new(runs, bytes)
}

fn panel_pointers<const R: usize>(panels: &PanelsRef<'_>, numbers: [usize; R]) -> [*const u8; R] {
    numbers.map(|panel| panels.bytes()[panel * panels.stride()..].as_ptr())
}

/// Columns of a superblock of `cols` columns.
fn superblock_len(cols: usize, superblock: usize) -> usize {
    SUPERBLOCK.min(cols - superblock * SUPERBLOCK)
}

/// Packs one superblock of `R` panels into scratch.
///
/// # Safety
/// See [`run`]; the matrix has them.
unsafe fn pack_superblocks<S: Shells, B: Block, const R: usize>(
    matrix: &MatrixRef<'_>,
    numbers: [usize; R],
    superblock: usize,
    scratch: Scratch,
) -> [*const u8; R] {
    let len = superblock_len(matrix.cols(), superblock);
    std::array::from_fn(|r| {
        // SAFETY: the rows have the superblock, and the scratch has room for `R` packed ones.
        unsafe {
            let to = scratch.packed.add(r * PACKED_BYTES);
            let rows = row_pointers::<B>(matrix, numbers[r], superblock);
            S::pack::<B>(&rows, len, to);
            to.cast_const()
        }
    })
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

/// Multiplies one superblock, expanded first unless the kernel is direct.
///
/// # Safety
/// See [`run`]; `panels` are superblock `superblock` of `R` panels.
unsafe fn multiply_one<S: Shells, B: Block, const R: usize, const FEW: bool, const DIRECT: bool>(
    strip: &Strip<'_>,
    panels: [*const u8; R],
    superblock: usize,
    ahead: Ahead,
    scratch: Scratch,
) {
    let len = superblock_len(strip.x.cols, superblock);
    let (range, ahead) = ((superblock, superblock + 1), Some(ahead));
    // SAFETY: the scratch has room for `R` expanded superblocks.
    unsafe {
        if DIRECT {
            return multiply::<S, B, R, FEW>(strip, panels, 0, range, ahead, scratch);
        }
        let mut expanded = [std::ptr::null(); R];
        for (r, panel) in panels.into_iter().enumerate() {
            let to = scratch.expanded.add(r * EXPANDED_BYTES);
            S::expand::<B>(panel, len, to);
            expanded[r] = to.cast_const();
        }
        multiply::<S, B::Expanded, R, FEW>(strip, expanded, 0, range, ahead, scratch);
    }
}

/// Multiplies superblocks by all rows of the strip: full tiles first, then the others.
///
/// # Safety
/// See [`run`]; `panels` are the first superblock of `R` panels, the others follow `step` apart.
unsafe fn multiply<S: Shells, B: Block, const R: usize, const FEW: bool>(
    strip: &Strip<'_>,
    panels: [*const u8; R],
    step: usize,
    superblocks: (usize, usize),
    ahead: Option<Ahead>,
    scratch: Scratch,
) {
    let mut args = Product {
        panels,
        step,
        superblocks,
        x: strip.x,
        row: strip.row,
        tiles: strip.tiles.full,
        sums: scratch.sums,
        fresh: superblocks.0 == 0,
        streams: ahead.is_none(),
        ahead: ahead.unwrap_or(Ahead::NONE),
    };
    let mut width = strip.tiles.width;
    for tail in strip.tiles.tails.into_iter().chain([0]) {
        let rows = args.tiles * width;
        // SAFETY: the scratch has sums for all rows.
        unsafe {
            if rows > 0 {
                product_of_width::<S, B, R, FEW>(width, &args);
                args.ahead = Ahead::NONE;
                args.streams = false;
            }
            args.sums = args.sums.add(rows * R * LANES);
        }
        args.row += rows;
        args.tiles = 1;
        width = tail;
    }
}

/// # Safety
/// See [`Block::product`].
unsafe fn product_of_width<S: Shells, B: Block, const R: usize, const FEW: bool>(
    width: usize,
    args: &Product<R>,
) {
    // What no instruction set uses is not even compiled: the conditions are constants.
    let wide = S::TILE > 4;
    // SAFETY: the caller's promise.
    unsafe {
        match width {
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
/// See [`run`]; `sums` is `[rows][R][16]`.
unsafe fn write_out<const R: usize>(strip: &Strip<'_>, panels: (usize, usize), sums: *const f32) {
    let all = strip.weights.rows();
    let columns = (panels.0 * LANES, all.min(panels.1 * LANES));
    for i in 0..strip.tiles.rows() {
        // SAFETY: both have the row.
        unsafe {
            let from = sums.add(i * R * LANES);
            let to = strip.out.add(i * all + columns.0);
            to.copy_from_nonoverlapping(from, columns.1 - columns.0);
        }
    }
}

/// A panel of a format without a layout of its own: by the values of its rows.
///
/// # Safety
/// See [`run`]; the matrix has the panel.
unsafe fn by_values<S: Shells>(strip: &Strip<'_>, panel: usize, scratch: Scratch) {
    let matrix = strip.weights.as_rows();
    for superblock in 0..matrix.cols().div_ceil(SUPERBLOCK) {
        let len = superblock_len(matrix.cols(), superblock);
        // SAFETY: the scratch has room for 16 rows of values, packed and not, and sums.
        unsafe {
            let values = scratch.packed.cast::<f32>();
            values.write_bytes(0, LANES * len);
            let values = std::slice::from_raw_parts_mut(values, LANES * len);
            for (lane, out) in values.chunks_exact_mut(len).enumerate() {
                if panel * LANES + lane < matrix.rows() {
                    matrix.dequantize_part(panel * LANES + lane, superblock * SUPERBLOCK, out);
                }
            }
            let rows = std::array::from_fn(|lane| values[lane * len..].as_ptr().cast());
            S::pack::<Floats<F32>>(&rows, len, scratch.expanded);
            let (range, at) = (
                (superblock, superblock + 1),
                [scratch.expanded.cast_const(); 2],
            );
            if strip.few {
                multiply::<S, Floats<F32>, 2, true>(strip, at, 0, range, None, scratch);
            } else {
                multiply::<S, Floats<F32>, 2, false>(strip, at, 0, range, None, scratch);
            }
        }
    }
    // SAFETY: the caller's promise.
    unsafe { write_out::<2>(strip, (panel, panel + 1), scratch.sums) }
}

/// Packs one panel of a matrix into `out`, which is as long as a panel.
///
/// # Safety
/// The machine has the instruction set.
pub(crate) unsafe fn pack_panel<S: Shells>(matrix: &MatrixRef<'_>, panel: usize, out: &mut [u8]) {
    let format = matrix.format();
    assert_eq!(panel_stride(format, matrix.cols()), Some(out.len()));
    let mut rest = out;
    for superblock in 0..matrix.cols().div_ceil(SUPERBLOCK) {
        let len = superblock_len(matrix.cols(), superblock);
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
    rest.fill(0);
}
