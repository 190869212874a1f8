//! The product kernel on quantized weights, written once for every format and instruction set.

use super::activation::{Activations, GROUP_LEN, Starts};
use super::block::{Quantized, WIDE_OFFSET};
use crate::simd::{Simd, prefetch};

/// An array of what the expression gives for each panel. A loop rather than a closure: closures are
/// not sure to be compiled with the instruction set's features.
macro_rules! each {
    ($panels:expr, $panel:ident => $body:expr) => {{
        let $panel = $panels[0];
        let mut all = [$body; R];
        for r in 1..R {
            let $panel = $panels[r];
            all[r] = $body;
        }
        all
    }};
}
pub(super) use each;

/// Asks for weights ahead of their use, `bytes` at `at` being used now.
///
/// The hardware's own prefetching starts anew at every page of 4 KiB and stays close to the loads.
/// With one or two rows, when a core has little else to do, it is enough to ask for the beginning
/// of the next page; with more rows the loads come too slowly to train it, and everything is asked
/// for, two pages ahead. Measured on Zen 4: alone, in pairs of threads, for every format.
#[inline(always)]
fn ask_ahead<const W: usize>(at: *const u8, bytes: usize) {
    const PAGE: usize = 4096;
    let distance = if W <= 2 { PAGE } else { 2 * PAGE };
    for line in (0..bytes).step_by(64) {
        let line = at.wrapping_add(distance + line);
        if W > 2 || line.addr() % PAGE < PAGE / 4 {
            prefetch(line);
        }
    }
}

/// What a group's step reads of the activations of a tile.
#[derive(Clone, Copy)]
struct Tile {
    codes: *const i8,
    starts: *const i32,
    magic: *const f32,
    sums: *const f32,
}

/// What the sums of a format start from.
const fn starts<S: Simd, F: Quantized>() -> Starts {
    Starts::of(F::GROUP, F::OFFSET, S::WIDE_IS_SIGNED)
}

/// Codes that share a start: magic numbers are of 32 codes also where groups are of 16.
const fn starts_len<S: Simd, F: Quantized>() -> usize {
    match starts::<S, F>() {
        Starts::Magic => GROUP_LEN,
        _ => F::GROUP,
    }
}

/// See [`Block::add_superblock`](super::block::Block::add_superblock).
///
/// # Safety
/// As there.
#[inline(always)]
pub(crate) unsafe fn add_superblock<S: Simd, F: Quantized, const R: usize, const W: usize>(
    panels: &[*const u8; R],
    len: usize,
    x: &Activations,
    at: usize,
    streams: bool,
    sums: &mut [[S::F; R]; W],
) {
    let starts = x.starts(const { starts::<S, F>() });
    let sums_of_group = if F::GROUP == GROUP_LEN {
        x.sums
    } else {
        x.sums_of_16
    };
    // SAFETY: the activations have the tile.
    let x = unsafe {
        Tile {
            codes: x.codes.add(at),
            starts: starts.add(at / const { starts_len::<S, F>() }),
            magic: x.magic.add(at / GROUP_LEN),
            sums: sums_of_group.wrapping_add(at / F::GROUP),
        }
    };
    for group in 0..len / F::GROUP {
        if F::STREAMED > 0 && streams {
            for panel in panels {
                let at = panel.wrapping_add(group * F::STREAMED);
                ask_ahead::<W>(at, F::STREAMED);
            }
        }
        // SAFETY: every group is within the superblock.
        unsafe { add_group::<S, F, R, W>(panels, len, group, x, sums) }
    }
}

/// Adds one group: an exact integer sum for each output, then one multiply-add, and one more where
/// there are minima.
///
/// # Safety
/// See [`add_superblock`].
#[inline(always)]
unsafe fn add_group<S: Simd, F: Quantized, const R: usize, const W: usize>(
    panels: &[*const u8; R],
    len: usize,
    group: usize,
    x: Tile,
    sums: &mut [[S::F; R]; W],
) {
    // SAFETY: the superblock and the tile have the group.
    unsafe {
        let mut dots = [[S::splat_i(0); R]; W];
        for (i, dots) in dots.iter_mut().enumerate() {
            let start = group * F::GROUP / const { starts_len::<S, F>() };
            *dots = [S::splat_i(*x.starts.add(start * W + i)); R];
        }
        let x_codes = x.codes.add(group * F::GROUP * W);
        for j in 0..F::GROUP / 4 {
            let codes = each!(panels, panel => F::codes::<S>(panel, len, group, j));
            for (i, dots) in dots.iter_mut().enumerate() {
                let x = x_codes.add((j * W + i) * 4);
                for (dot, codes) in dots.iter_mut().zip(codes) {
                    *dot = if F::OFFSET == WIDE_OFFSET {
                        S::dot_wide(*dot, codes, x)
                    } else {
                        S::dot(*dot, codes, x)
                    };
                }
            }
        }
        let of_32 = group * F::GROUP / GROUP_LEN;
        let scales = each!(panels, panel => F::scales::<S>(panel, len, group));
        for (i, (sums, dots)) in sums.iter_mut().zip(dots).enumerate() {
            let magic = S::splat(*x.magic.add(of_32 * W + i));
            for (r, (sum, dot)) in sums.iter_mut().zip(dots).enumerate() {
                *sum = S::mul_add(S::sub(S::bits_to_f(dot), magic), scales[r], *sum);
            }
        }
        if F::HAS_MIN {
            let mins = each!(panels, panel => F::mins::<S>(panel, len, group));
            for (i, sums) in sums.iter_mut().enumerate() {
                let total = S::splat(*x.sums.add(group * W + i));
                for (sum, min) in sums.iter_mut().zip(mins) {
                    *sum = S::neg_mul_add(total, min, *sum);
                }
            }
        }
    }
}

/// Unpacks a superblock: the codes of each group in order, then the scales, then the minima.
///
/// # Safety
/// `from` is a superblock of `len` columns, `to` has room for it expanded, and see [`Simd`].
#[inline(always)]
pub(crate) unsafe fn expand<S: Simd, F: Quantized>(from: *const u8, len: usize, to: *mut u8) {
    for group in 0..len / F::GROUP {
        // SAFETY: every group is within the superblock.
        unsafe { expand_group::<S, F>(from, len, group, to) }
    }
}

/// # Safety
/// See [`expand`].
#[inline(always)]
unsafe fn expand_group<S: Simd, F: Quantized>(
    from: *const u8,
    len: usize,
    group: usize,
    to: *mut u8,
) {
    // SAFETY: the superblock has the group, before and after.
    unsafe {
        for j in 0..F::GROUP / 4 {
            let codes = F::codes::<S>(from, len, group, j);
            S::store_b(to.add((group * (F::GROUP / 4) + j) * 64), codes);
        }
        let scales = to.add(expanded_scales(len) + group * 64).cast();
        S::store(scales, F::scales::<S>(from, len, group));
        if F::HAS_MIN {
            let mins = to.add(expanded_mins::<F>(len) + group * 64).cast();
            S::store(mins, F::mins::<S>(from, len, group));
        }
    }
}

/// Where the scales of an expanded superblock stand.
pub(super) fn expanded_scales(len: usize) -> usize {
    len * 16
}

/// Where the minima of an expanded superblock stand.
pub(super) fn expanded_mins<F: Quantized>(len: usize) -> usize {
    expanded_scales(len) + len / F::GROUP * 64
}

/// Bytes of an expanded superblock.
pub(super) fn expanded_bytes<F: Quantized>(len: usize) -> usize {
    expanded_mins::<F>(len) + if F::HAS_MIN { len / F::GROUP * 64 } else { 0 }
}
