//! What a kernel knows of a weight format.

use crate::matmul::activation::{Activations, Starts};
use crate::matmul::strip::MAX_PANELS;
use crate::simd::{LANES, Simd, prefetch};

/// A layout of superblocks, and the kernels for it.
///
/// # Safety
/// The methods read and write through raw pointers what their lines say, and see [`Simd`].
pub(crate) trait Block: 'static {
    /// What [`Block::expand`] writes.
    type Expanded: Block;
    /// Whether the layout is of floats. Then products always take two panels, so that there are
    /// chains of multiply-adds enough.
    const IS_FLOAT: bool;
    /// Whether unpacking is so much work that with many rows it pays to do it once, into memory.
    const HEAVY: bool;
    /// Bytes of a superblock of `len` columns.
    fn superblock_bytes(len: usize) -> usize;
    /// Bytes of `len` columns of a row as in the file.
    fn row_bytes(len: usize) -> usize;

    /// Multiplies `R` panels by tiles of `W` rows.
    unsafe fn product<S: Simd, const R: usize, const W: usize>(args: &Product<R>);
    /// Unpacks a superblock of `len` columns at `from` into whole bytes and f32 scales at `to`.
    unsafe fn expand<S: Simd>(from: *const u8, len: usize, to: *mut u8);
    /// Packs a superblock of `len` columns of 16 rows into `to`.
    unsafe fn pack<S: Simd>(rows: &[*const u8; LANES], len: usize, to: *mut u8);
}

/// What a product kernel is to do: for `tiles` tiles of `W` rows from `row` on, add the products
/// over superblocks `superblocks` (numbers within the whole row of weights) to `sums`.
pub(crate) struct Product<const R: usize> {
    /// Superblock `superblocks.0` of each panel; the following ones stand `step` bytes apart.
    pub panels: [*const u8; R],
    /// Bytes of a whole superblock.
    pub step: usize,
    /// Half-open range of superblocks.
    pub superblocks: (usize, usize),
    /// Rows of activations.
    pub x: Activations,
    /// First row.
    pub row: usize,
    /// Tiles of `W` rows each.
    pub tiles: usize,
    /// `[rows][R][16]`, from row `row` on.
    pub sums: *mut f32,
    /// Whether the sums start from zero rather than from what is there.
    pub fresh: bool,
    /// Whether the first tile finds the panels in memory, and those that follow will be wanted too.
    pub streams: bool,
    /// What to ask of memory meanwhile, spread over the tiles.
    pub ahead: Ahead,
}

/// Cache lines that will be needed soon.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    /// Where runs of lines begin.
    runs: [*const u8; MAX_PANELS * LANES],
    /// Number of runs.
    count: usize,
    /// Lines of a run.
    lines: usize,
}

impl Ahead {
    /// Nothing.
    pub const NONE: Ahead = Ahead {
        runs: [std::ptr::null(); MAX_PANELS * LANES],
        count: 0,
        lines: 0,
    };

    /// Runs of `bytes` bytes. More than there is room for are left out.
    pub fn new(runs: impl Iterator<Item = *const u8>, bytes: usize) -> Self {
        let mut ahead = Ahead {
            lines: bytes.div_ceil(64),
            ..Ahead::NONE
        };
        for (to, run) in ahead.runs.iter_mut().zip(runs) {
            *to = run;
            ahead.count += 1;
        }
        ahead
    }

    /// Asks for part `part` of `parts`.
    #[inline(always)]
    pub fn ask(&self, part: usize, parts: usize) {
        let all = self.count * self.lines;
        for line in all * part / parts..all * (part + 1) / parts {
            let run = self.runs[line / self.lines];
            prefetch(run.wrapping_add(line % self.lines * 64));
        }
    }
}

/// How the rows of activations of a chunk are cut into tiles: full ones, then up to two others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tiles {
    /// Rows in a full tile.
    pub width: usize,
    /// Full tiles.
    pub full: usize,
    /// Rows of the tiles after them, 0 if there are none.
    pub tails: [usize; 2],
}

impl Tiles {
    /// Cuts `n` rows. Narrow tiles waste time, so (if there is any full one) a rest of less than
    /// half a tile shares the rows of the last full tile.
    pub fn new(n: usize, width: usize) -> Self {
        let (full, rest) = (n / width, n % width);
        if full > 0 && rest > 0 && rest < width.div_ceil(2) {
            let both = width + rest;
            return Tiles {
                width,
                full: full - 1,
                tails: [both.div_ceil(2), both / 2],
            };
        }
        Tiles {
            width,
            full,
            tails: [rest, 0],
        }
    }

    /// First row and width of a tile; `None` past the last.
    pub fn tile(&self, index: usize) -> Option<(usize, usize)> {
        let after_full = self.full * self.width;
        match index.checked_sub(self.full) {
            None => Some((index * self.width, self.width)),
            Some(0) if self.tails[0] > 0 => Some((after_full, self.tails[0])),
            Some(1) if self.tails[1] > 0 => Some((after_full + self.tails[0], self.tails[1])),
            _ => None,
        }
    }

    /// First row and tiles of part `part` of those that the full tiles make, `size` in each; the
    /// last part, which is the first if there are no full tiles, has the others too.
    pub fn part(&self, part: usize, size: usize) -> (usize, Tiles) {
        let first = part * size;
        let last = first + size >= self.full;
        let tiles = Tiles {
            width: self.width,
            full: size.min(self.full - first),
            tails: if last { self.tails } else { [0; 2] },
        };
        (first * self.width, tiles)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.full * self.width + self.tails[0] + self.tails[1]
    }

    /// Number of tiles.
    pub fn count(&self) -> usize {
        self.full + self.tails.iter().filter(|t| **t > 0).count()
    }
}

/// A layout of quantized values: groups of codes with a scale, and perhaps a minimum.
///
/// Groups are numbered within a superblock. What depends on a group's number is computed when
/// running: unrolling over the groups of a superblock makes kernels of 16 KiB that are no faster.
///
/// # Safety
/// `at` is a superblock of `len` columns, which has the group; and see [`Simd`].
pub(crate) trait Quantized: 'static {
    /// Values in a group: 32 or 16.
    const GROUP: usize;
    /// Whether groups have minima.
    const HAS_MIN: bool;
    /// Whether codes exceed 127.
    const WIDE: bool;
    /// Bytes of a group, where they come from memory and should be asked for ahead; else 0.
    const STREAMED: usize;
    /// What integer sums start from, given whether wide codes are taken as signed.
    fn starts(wide_is_signed: bool) -> Starts;

    /// Codes of columns `4j` to `4j + 3` of a group, for 16 rows.
    unsafe fn codes<S: Simd>(at: *const u8, len: usize, group: usize, j: usize) -> S::B;
    /// Scales of a group.
    unsafe fn scales<S: Simd>(at: *const u8, len: usize, group: usize) -> S::F;
    /// Minima of a group.
    unsafe fn mins<S: Simd>(at: *const u8, len: usize, group: usize) -> S::F;
}
