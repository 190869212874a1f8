//! The generic kernels compiled for each instruction set, and the choice among them.

use super::{LANES, Simd, peak};
use crate::Isa;
use crate::matmul::activation::Activations;
use crate::matmul::block::{self, Block, Product};
use crate::matmul::strip::{self, Strip};

/// The kernels of an instruction set, compiled with its features switched on.
///
/// # Safety
/// See [`Simd`] and the method of [`Block`] or [`Activations`] that each calls.
pub(crate) trait Shells: Simd {
    /// [`block::product`].
    unsafe fn product<B: Block, const R: usize, const W: usize>(args: &Product);
    /// [`Block::expand`].
    unsafe fn expand<B: Block>(from: *const u8, len: usize, to: *mut u8);
    /// [`Block::pack`].
    unsafe fn pack<B: Block>(rows: &[*const u8; LANES], len: usize, to: *mut u8);
    /// [`Activations::write_tile`].
    unsafe fn write_tile(to: &Activations, x: *const f32, row: usize, width: usize);
    /// [`peak::dots`].
    unsafe fn dot_peak(rounds: u64) -> u64;
    /// [`peak::multiply_adds`].
    unsafe fn multiply_add_peak(rounds: u64) -> u64;
}

macro_rules! shells {
    ($isa:ty $(, $features:literal)?) => {
        impl Shells for $isa {
            unsafe fn product<B: Block, const R: usize, const W: usize>(args: &Product) {
                $(#[target_feature(enable = $features)])?
                unsafe fn shell<B: Block, const R: usize, const W: usize>(args: &Product) {
                    // SAFETY: the caller's promise.
                    unsafe { block::product::<$isa, B, R, W>(args) }
                }
                // SAFETY: the caller's promise.
                unsafe { shell::<B, R, W>(args) }
            }

            unsafe fn expand<B: Block>(from: *const u8, len: usize, to: *mut u8) {
                $(#[target_feature(enable = $features)])?
                unsafe fn shell<B: Block>(from: *const u8, len: usize, to: *mut u8) {
                    // SAFETY: the caller's promise.
                    unsafe { B::expand::<$isa>(from, len, to) }
                }
                // SAFETY: the caller's promise.
                unsafe { shell::<B>(from, len, to) }
            }

            unsafe fn pack<B: Block>(rows: &[*const u8; LANES], len: usize, to: *mut u8) {
                $(#[target_feature(enable = $features)])?
                unsafe fn shell<B: Block>(rows: &[*const u8; LANES], len: usize, to: *mut u8) {
                    // SAFETY: the caller's promise.
                    unsafe { B::pack::<$isa>(rows, len, to) }
                }
                // SAFETY: the caller's promise.
                unsafe { shell::<B>(rows, len, to) }
            }

            unsafe fn write_tile(to: &Activations, x: *const f32, row: usize, width: usize) {
                $(#[target_feature(enable = $features)])?
                unsafe fn shell(to: &Activations, x: *const f32, row: usize, width: usize) {
                    // SAFETY: the caller's promise.
                    unsafe { to.write_tile::<$isa>(x, row, width) }
                }
                // SAFETY: the caller's promise.
                unsafe { shell(to, x, row, width) }
            }

            unsafe fn dot_peak(rounds: u64) -> u64 {
                $(#[target_feature(enable = $features)])?
                unsafe fn shell(rounds: u64) -> u64 {
                    // SAFETY: the caller's promise.
                    unsafe { peak::dots::<$isa>(rounds) }
                }
                // SAFETY: the caller's promise.
                unsafe { shell(rounds) }
            }

            unsafe fn multiply_add_peak(rounds: u64) -> u64 {
                $(#[target_feature(enable = $features)])?
                unsafe fn shell(rounds: u64) -> u64 {
                    // SAFETY: the caller's promise.
                    unsafe { peak::multiply_adds::<$isa>(rounds) }
                }
                // SAFETY: the caller's promise.
                unsafe { shell(rounds) }
            }
        }
    };
}

shells!(super::scalar::Scalar);
#[cfg(target_arch = "x86_64")]
shells!(super::avx2::Avx2, "avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
shells!(super::avx2::AvxVnni, "avx2,fma,f16c,avxvnni");
#[cfg(target_arch = "x86_64")]
shells!(
    super::avx512::Avx512,
    "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"
);
#[cfg(target_arch = "x86_64")]
shells!(
    super::avx512::Avx512Vnni,
    "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
);
#[cfg(target_arch = "aarch64")]
shells!(super::neon::Neon, "neon,dotprod");

/// The entry points of an instruction set.
pub(crate) struct Kernels {
    /// Rows of activations in a full tile where there are many.
    pub tile: usize,
    /// Rows of activations in a full tile where there are few.
    pub few_tile: usize,
    /// Whether wide codes are taken as signed numbers.
    pub wide_is_signed: bool,
    /// [`Activations::write_tile`].
    pub write_tile: unsafe fn(&Activations, *const f32, usize, usize),
    /// [`strip::run`].
    pub run_strip: unsafe fn(&Strip<'_>),
    /// [`strip::pack_group`].
    pub pack_group: unsafe fn(&crate::matrix::MatrixRef<'_>, usize, &mut [u8]),
    /// [`peak::dots`].
    pub dot_peak: unsafe fn(u64) -> u64,
    /// [`peak::multiply_adds`].
    pub multiply_add_peak: unsafe fn(u64) -> u64,
}

impl Kernels {
    const fn of<S: Shells>() -> Kernels {
        Kernels {
            tile: S::TILE,
            few_tile: S::FEW_TILE,
            wide_is_signed: S::WIDE_IS_SIGNED,
            write_tile: S::write_tile,
            run_strip: strip::run::<S>,
            pack_group: strip::pack_group::<S>,
            dot_peak: S::dot_peak,
            multiply_add_peak: S::multiply_add_peak,
        }
    }
}

/// The entry points of an instruction set. Calling them is allowed: this machine has it.
///
/// # Panics
/// If this machine does not have the instruction set.
pub(crate) fn kernels(isa: Isa) -> &'static Kernels {
    assert!(isa.is_available(), "{isa} is not available on this machine");
    match isa {
        Isa::Scalar => const { &Kernels::of::<super::scalar::Scalar>() },
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => const { &Kernels::of::<super::avx2::Avx2>() },
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni => const { &Kernels::of::<super::avx2::AvxVnni>() },
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => const { &Kernels::of::<super::avx512::Avx512>() },
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => const { &Kernels::of::<super::avx512::Avx512Vnni>() },
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => const { &Kernels::of::<super::neon::Neon>() },
        #[allow(unreachable_patterns)] // which arms exist depends on the architecture
        _ => unreachable!("an instruction set of another architecture is not available"),
    }
}
