//! Charged, page-backed, zeroed, typed memory.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use crate::budget::{Budget, Charge, ChargeKind, OverBudget};
use crate::region::{Region, round_to_pages};

mod sealed {
    pub trait Sealed {}
}

/// Number types for which every bit pattern, all zeros among them, is a value.
pub trait Plain: sealed::Sealed + Copy + Send + Sync + 'static {}

macro_rules! plain {
    ($($t:ty)*) => {$(
        impl sealed::Sealed for $t {}
        impl Plain for $t {}
    )*};
}
plain!(u8 i8 u16 i16 u32 i32 u64 i64 usize f32 f64);

/// Bytes to which every buffer is aligned at least: one cache line, one 512-bit register.
pub const BUFFER_ALIGN_BYTES: usize = 64;

/// A typed slice of its own pages, paid for by a [`Charge`].
///
/// Contents start as zero. The charge is the length rounded up to whole pages: what the system really
/// gives. Dropping unmaps the pages and releases the charge.
///
/// ```
/// use neap_memory::{Budget, Buffer, ChargeKind};
/// let budget = Budget::new(1 << 20);
/// let mut scratch = Buffer::<f32>::zeroed(&budget, ChargeKind::Scratch, 1000).unwrap();
/// scratch[7] = 1.5;
/// assert_eq!(scratch.len(), 1000);
/// assert!(budget.charged() >= 4000);
/// ```
pub struct Buffer<T: Plain> {
    // Declared before the charge: pages are unmapped first, then the bytes are given back.
    region: Option<Region>,
    charge: Charge,
    len: usize,
    values: PhantomData<T>,
}

impl<T: Plain> Buffer<T> {
    /// `len` zeros charged to `budget` as `kind`.
    ///
    /// # Errors
    /// [`OverBudget`] when the budget or the system refuses, or the length overflows.
    pub fn zeroed(budget: &Budget, kind: ChargeKind, len: usize) -> Result<Self, OverBudget> {
        let bytes = Self::mapped_bytes(budget, kind, len)?;
        let charge = budget.try_charge(kind, bytes as u64)?;
        let region = match bytes {
            0 => None,
            _ => {
                Some(Region::map(bytes).map_err(|_| budget.refused_by_system(kind, bytes as u64))?)
            }
        };
        Ok(Self {
            region,
            charge,
            len,
            values: PhantomData,
        })
    }

    fn mapped_bytes(budget: &Budget, kind: ChargeKind, len: usize) -> Result<usize, OverBudget> {
        len.checked_mul(size_of::<T>())
            .and_then(round_to_pages)
            .ok_or_else(|| budget.refused_by_system(kind, u64::MAX))
    }

    /// Bytes charged for a buffer of `len` values, or `None` on overflow.
    #[must_use]
    pub fn charged_bytes_for(len: usize) -> Option<usize> {
        len.checked_mul(size_of::<T>()).and_then(round_to_pages)
    }

    /// Bytes charged: the length in whole pages.
    #[must_use]
    pub fn charged_bytes(&self) -> u64 {
        self.charge.bytes()
    }

    /// Gives the memory back to the system and keeps the bytes charged: they can be put to another use
    /// without going through the budget.
    pub fn into_charge(self) -> Charge {
        drop(self.region);
        self.charge
    }

    /// Changes the length. The common part keeps its values, what is new is zero.
    ///
    /// The charge follows the rule of [`Charge::resize`]: what is common is kept, never re-acquired.
    ///
    /// # Errors
    /// [`OverBudget`] when growing does not fit; the buffer is then unchanged.
    pub fn resize(&mut self, len: usize) -> Result<(), OverBudget> {
        let budget = self.charge.budget().clone();
        let kind = self.charge.kind();
        let old = self.region.as_ref().map_or(0, Region::bytes);
        let new = Self::mapped_bytes(&budget, kind, len)?;
        if len < self.len {
            // A later growth within the same page must find zeros.
            self.as_mut_slice()[len..].fill(zero());
        }
        if new > old {
            self.charge.resize(new as u64)?;
        }
        if let Err(()) = self.remap(old, new) {
            self.charge.resize(old as u64)?;
            return Err(budget.refused_by_system(kind, new as u64));
        }
        if new < old {
            self.charge.resize(new as u64)?;
        }
        self.len = len;
        Ok(())
    }

    fn remap(&mut self, old: usize, new: usize) -> Result<(), ()> {
        match (&mut self.region, new) {
            (_, new) if new == old => {}
            (region, 0) => *region = None,
            (Some(region), new) => region.resize(new).map_err(|_| ())?,
            (region @ None, new) => *region = Some(Region::map(new).map_err(|_| ())?),
        }
        Ok(())
    }

    /// Asks the system for huge pages; pays for buffers of many megabytes that are read in full.
    pub fn advise_huge(&self) {
        if let Some(region) = &self.region {
            region.advise_huge();
        }
    }

    /// The values.
    #[must_use]
    pub fn as_slice(&self) -> &[T] {
        match &self.region {
            None => &[],
            // SAFETY: the region is page-aligned and holds at least `len` values of T, whose every
            // bit pattern is valid; writes need `&mut self`.
            Some(region) => unsafe {
                std::slice::from_raw_parts(region.base().as_ptr().cast(), self.len)
            },
        }
    }

    /// The values, to write.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        match &mut self.region {
            None => &mut [],
            // SAFETY: as in `as_slice`, and `&mut self` makes the access exclusive.
            Some(region) => unsafe {
                std::slice::from_raw_parts_mut(region.base().as_ptr().cast(), self.len)
            },
        }
    }
}

fn zero<T: Plain>() -> T {
    // SAFETY: `Plain` is sealed to number types for which all zeros is a value.
    unsafe { std::mem::zeroed() }
}

impl<T: Plain> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.as_slice()
    }
}

impl<T: Plain> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.as_mut_slice()
    }
}

impl<T: Plain> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("len", &self.len)
            .field("charge", &self.charge)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::page_bytes;

    #[test]
    fn a_buffer_is_zeroed_aligned_and_charged_by_the_page() {
        let budget = Budget::new(1 << 20);
        let buffer = Buffer::<f32>::zeroed(&budget, ChargeKind::Scratch, 1001).unwrap();
        assert!(buffer.iter().all(|&v| v == 0.0));
        assert_eq!(buffer.as_ptr() as usize % BUFFER_ALIGN_BYTES, 0);
        assert_eq!(
            budget.charged(),
            4004u64.next_multiple_of(page_bytes() as u64)
        );
        drop(buffer);
        assert_eq!(budget.charged(), 0);
    }

    #[test]
    fn an_empty_buffer_costs_nothing() {
        let budget = Budget::new(0);
        let buffer = Buffer::<u64>::zeroed(&budget, ChargeKind::Io, 0).unwrap();
        assert!(buffer.is_empty());
        assert_eq!(buffer.charged_bytes(), 0);
    }

    #[test]
    fn a_length_that_overflows_is_refused() {
        let budget = Budget::new(u64::MAX);
        assert!(Buffer::<u64>::zeroed(&budget, ChargeKind::Io, usize::MAX).is_err());
        assert!(Buffer::<u64>::zeroed(&budget, ChargeKind::Io, usize::MAX / 8).is_err());
        assert_eq!(budget.charged(), 0);
    }

    #[test]
    fn resize_keeps_values_zeroes_the_rest_and_moves_the_charge() {
        let page = page_bytes();
        let budget = Budget::new(10 * page as u64);
        let mut buffer = Buffer::<u8>::zeroed(&budget, ChargeKind::Scratch, page).unwrap();
        buffer.fill(3);
        buffer.resize(2 * page + 1).unwrap();
        assert_eq!(budget.charged(), 3 * page as u64);
        assert!(buffer[..page].iter().all(|&v| v == 3));
        assert!(buffer[page..].iter().all(|&v| v == 0));
        buffer.resize(10).unwrap();
        buffer.resize(20).unwrap();
        assert_eq!(&buffer[8..12], [3, 3, 0, 0]);
        assert!(buffer.resize(11 * page).is_err());
        assert_eq!((buffer.len(), budget.charged()), (20, page as u64));
        buffer.resize(0).unwrap();
        assert_eq!(budget.charged(), 0);
        buffer.resize(1).unwrap();
        assert_eq!(*buffer, [0]);
    }
}
