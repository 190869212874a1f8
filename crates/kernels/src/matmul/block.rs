//! What a kernel knows of a weight format.

use crate::matmul::activation::Activations;
use crate::matrix::layout::SUPERBLOCK;
use crate::simd::{LANES, Simd, prefetch};

/// A layout of superblocks, and what kernels do with one.
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

    /// Adds to `sums` the products of a superblock of `len` columns of `R` panels with a tile of
    /// `W` rows, whose part of the activations begins at `at` (see [`Activations::write_tile`]).
    /// `streams` says that the panels come from memory, and what follows them will be wanted too.
    unsafe fn add_superblock<S: Simd, const R: usize, const W: usize>(
        panels: &[*const u8; R],
        len: usize,
        x: &Activations,
        at: usize,
        streams: bool,
        sums: &mut [[S::F; R]; W],
    );
    /// Unpacks a superblock of `len` columns at `from` into whole bytes and f32 scales at `to`.
    unsafe fn expand<S: Simd>(from: *const u8, len: usize, to: *mut u8);
    /// Packs a superblock of `len` columns of 16 rows into `to`.
    unsafe fn pack<S: Simd>(rows: &[*const u8; LANES], len: usize, to: *mut u8);
}

/// What a product kernel is to do: for each `R` panels and each tile of `W` rows, add the products
/// of superblocks to sums.
#[derive(Clone, Copy)]
pub(crate) struct Product {
    /// Superblock `superblocks.0` of the first panel.
    pub weights: *const u8,
    /// Panels. Where they are no multiple of `R`, the last is taken more than once.
    pub panels: usize,
    /// Bytes from panel to panel, in a whole superblock and in a shorter last one.
    pub panel_steps: (usize, usize),
    /// Bytes from superblock to superblock, and from the whole to the shorter last one.
    pub superblock_step: usize,
    /// Panels before the first one that stand with it in each superblock.
    pub skip: usize,
    /// Half-open range of superblocks.
    pub superblocks: (usize, usize),
    /// Rows of activations.
    pub x: Activations,
    /// First row.
    pub row: usize,
    /// Tiles of `W` rows each.
    pub tiles: usize,
    /// `[panels / R][rows][R][16]`, from row `row` on.
    pub sums: *mut f32,
    /// Numbers from the sums of `R` panels to the next.
    pub sums_step: usize,
    /// Whether the sums start from zero rather than from what is there.
    pub fresh: bool,
    /// Whether the first tile finds the panels in memory, and what follows them is wanted too.
    pub streams: bool,
    /// What to ask of memory meanwhile, spread over the tiles.
    pub ahead: Ahead,
}

/// The product kernel, written once for every layout and instruction set.
///
/// # Safety
/// The pointers of `args` are good for what it says, and see [`Simd`].
#[inline(always)]
pub(crate) unsafe fn product<S: Simd, B: Block, const R: usize, const W: usize>(args: &Product) {
    for first in (0..args.panels).step_by(R) {
        for tile in 0..args.tiles {
            args.ahead.ask(tile, args.tiles);
            let streams = args.streams && tile == 0;
            // SAFETY: `sums` has all rows of all tiles.
            unsafe {
                let at = args
                    .sums
                    .add(first / R * args.sums_step + tile * W * R * LANES);
                let mut sums = load_sums::<S, R, W>(at, args.fresh);
                add_superblocks::<S, B, R, W>(args, first, tile, streams, &mut sums);
                store_sums::<S, R, W>(at, &sums);
            }
        }
    }
}

/// # Safety
/// See [`product`].
#[inline(always)]
unsafe fn add_superblocks<S: Simd, B: Block, const R: usize, const W: usize>(
    args: &Product,
    first: usize,
    tile: usize,
    streams: bool,
    sums: &mut [[S::F; R]; W],
) {
    let row = args.row + tile * W;
    for superblock in args.superblocks.0..args.superblocks.1 {
        let column = superblock * SUPERBLOCK;
        let len = SUPERBLOCK.min(args.x.cols - column);
        let whole = len == SUPERBLOCK;
        let step = if whole {
            args.panel_steps.0
        } else {
            args.panel_steps.1
        };
        let skip = (superblock - args.superblocks.0) * args.superblock_step;
        // SAFETY: all panels have the superblock, and the activations the rows.
        unsafe {
            let mut panels = [args.weights.add(skip); R];
            for (r, panel) in panels.iter_mut().enumerate() {
                let number = (first + r).min(args.panels - 1);
                *panel = panel.add((args.skip + number) * step);
            }
            let at = column * args.x.n + row * len;
            B::add_superblock::<S, R, W>(&panels, len, &args.x, at, streams, sums);
        }
    }
}

/// # Safety
/// `W * R * 16` values can be read at `from`, and see [`Simd`].
#[inline(always)]
unsafe fn load_sums<S: Simd, const R: usize, const W: usize>(
    from: *const f32,
    fresh: bool,
) -> [[S::F; R]; W] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[S::splat(0.0); R]; W];
        if !fresh {
            for (i, sums) in sums.iter_mut().enumerate() {
                for (r, sum) in sums.iter_mut().enumerate() {
                    *sum = S::load(from.add((i * R + r) * LANES));
                }
            }
        }
        sums
    }
}

/// # Safety
/// `W * R * 16` values can be written at `to`, and see [`Simd`].
#[inline(always)]
unsafe fn store_sums<S: Simd, const R: usize, const W: usize>(to: *mut f32, sums: &[[S::F; R]; W]) {
    for (i, sums) in sums.iter().enumerate() {
        for (r, sum) in sums.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { S::store(to.add((i * R + r) * LANES), *sum) }
        }
    }
}

/// Cache lines that will be needed soon: runs of `bytes` bytes, `stride` bytes apart.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    /// Where the first run begins. Runs may end where nothing is: asking does no harm.
    pub first: *const u8,
    /// Number of runs.
    pub runs: usize,
    /// Bytes of a run.
    pub bytes: usize,
    /// Bytes from run to run.
    pub stride: usize,
}

impl Ahead {
    /// Nothing.
    pub const NONE: Ahead = Ahead {
        first: std::ptr::null(),
        runs: 0,
        bytes: 0,
        stride: 0,
    };

    /// Asks for part `part` of `parts`.
    #[inline(always)]
    pub fn ask(&self, part: usize, parts: usize) {
        let lines = self.bytes.div_ceil(64);
        let all = self.runs * lines;
        for line in all * part / parts..all * (part + 1) / parts {
            let run = self.first.wrapping_add(line / lines * self.stride);
            prefetch(run.wrapping_add(line % lines * 64));
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
    /// By how much codes exceed the numbers that they stand for: 0, 8, 16 or [`WIDE_OFFSET`] in groups of 32, 0 or 32
    /// in groups of 16.
    const OFFSET: u8;
    /// Bytes of a group, where they come from memory and should be asked for ahead; else 0.
    const STREAMED: usize;

    /// Codes of columns `4j` to `4j + 3` of a group, for 16 rows.
    unsafe fn codes<S: Simd>(at: *const u8, len: usize, group: usize, j: usize) -> S::B;
    /// Scales of a group.
    unsafe fn scales<S: Simd>(at: *const u8, len: usize, group: usize) -> S::F;
    /// Minima of a group.
    #[inline(always)]
    unsafe fn mins<S: Simd>(at: *const u8, len: usize, group: usize) -> S::F {
        let _ = (at, len, group);
        // SAFETY: see Simd.
        unsafe { S::splat(0.0) }
    }
}

/// The offset of codes that exceed 127.
pub(crate) const WIDE_OFFSET: u8 = 128;
