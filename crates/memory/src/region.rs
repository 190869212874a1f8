//! Page-backed, zeroed memory straight from the system: the only place that maps and unmaps.
//!
//! On Unix a region is an anonymous private mapping: pages cost nothing until they are touched and go
//! back with `madvise(MADV_DONTNEED)`, after which they read as zero again. Elsewhere, and under Miri
//! (which models no `madvise`), a region is an ordinary zeroed allocation with page alignment.

use std::io;
use std::ptr::NonNull;

/// Bytes of one page of this system.
#[must_use]
pub fn page_bytes() -> usize {
    imp::page_bytes()
}

/// `bytes` rounded up to whole pages; `None` when that overflows.
#[must_use]
pub fn round_to_pages(bytes: usize) -> Option<usize> {
    bytes.checked_next_multiple_of(page_bytes())
}

/// One contiguous run of zeroed pages. Owns them: dropping unmaps.
pub(crate) struct Region {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a region is memory without thread affinity; all access to its contents goes through raw
// pointers whose users (Buffer, Block) enforce exclusive writes by borrows.
unsafe impl Send for Region {}
// SAFETY: as above; `&Region` offers only the base address.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `bytes` (a positive multiple of the page size), all zero.
    pub(crate) fn map(bytes: usize) -> io::Result<Self> {
        if bytes == 0 || !bytes.is_multiple_of(page_bytes()) || bytes > isize::MAX as usize {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self {
            base: imp::map(bytes)?,
            bytes,
        })
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Asks for huge pages where the system has them; a hint that may be ignored.
    pub(crate) fn advise_huge(&self) {
        imp::advise_huge(self.base, self.bytes);
    }

    /// Changes the length to `bytes` (a positive multiple of the page size), keeping the contents of the
    /// common part; what is new is zero. The base may move.
    pub(crate) fn resize(&mut self, bytes: usize) -> io::Result<()> {
        if bytes == 0 || !bytes.is_multiple_of(page_bytes()) || bytes > isize::MAX as usize {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: `&mut self` proves that no reference into the region is alive; base and length are
        // those of a live mapping made by `imp::map` or `imp::remap`.
        self.base = unsafe { imp::remap(self.base, self.bytes, bytes)? };
        self.bytes = bytes;
        Ok(())
    }
}

/// Gives the pages of `bytes` bytes from `base` on back to the system; they read as zero afterwards.
///
/// # Safety
/// Base and length are multiples of the page size, the range lies inside a live [`Region`], and no
/// reference into it is alive.
pub(crate) unsafe fn decommit(base: NonNull<u8>, bytes: usize) {
    // SAFETY: the caller's contract is the one of `imp::decommit`.
    unsafe { imp::decommit(base, bytes) }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: base and length are those of a live mapping, and whoever holds references into it
        // also holds the region.
        unsafe { imp::unmap(self.base, self.bytes) }
    }
}

#[cfg(all(unix, not(miri)))]
mod imp {
    use std::io;
    use std::ptr::NonNull;
    use std::sync::OnceLock;

    pub(super) fn page_bytes() -> usize {
        static PAGE: OnceLock<usize> = OnceLock::new();
        *PAGE.get_or_init(|| {
            // SAFETY: sysconf has no preconditions.
            let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
            usize::try_from(page)
                .ok()
                .filter(|p| p.is_power_of_two())
                .unwrap_or(4096)
        })
    }

    pub(super) fn map(bytes: usize) -> io::Result<NonNull<u8>> {
        // SAFETY: a fresh anonymous mapping at an address of the system's choice touches no memory of ours.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(base.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// # Safety
    /// `base` and `bytes` are those of a live mapping with no references into it.
    pub(super) unsafe fn unmap(base: NonNull<u8>, bytes: usize) {
        // SAFETY: by the contract above.
        let result = unsafe { libc::munmap(base.as_ptr().cast(), bytes) };
        debug_assert_eq!(result, 0, "munmap of a live mapping");
    }

    /// # Safety
    /// The page-aligned range lies in a live anonymous mapping with no references into the range.
    pub(super) unsafe fn decommit(base: NonNull<u8>, bytes: usize) {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            // SAFETY: by the contract above. On Linux the pages of a private anonymous mapping read
            // as zero after MADV_DONTNEED.
            let result = unsafe { libc::madvise(base.as_ptr().cast(), bytes, libc::MADV_DONTNEED) };
            if result == 0 {
                return;
            }
            // Locked pages refuse the advice: keep the promise of zeros by hand.
            // SAFETY: the range is writable memory that nobody refers to.
            unsafe { std::ptr::write_bytes(base.as_ptr(), 0, bytes) }
        }
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        {
            // Other systems do not promise zeros after MADV_DONTNEED; mapping fresh pages over the old
            // ones does.
            // SAFETY: MAP_FIXED replaces exactly the range that we own.
            let mapped = unsafe {
                libc::mmap(
                    base.as_ptr().cast(),
                    bytes,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                    -1,
                    0,
                )
            };
            if mapped == libc::MAP_FAILED {
                // SAFETY: a failed mmap left the old pages, writable and unreferenced.
                unsafe { std::ptr::write_bytes(base.as_ptr(), 0, bytes) }
            }
        }
    }

    pub(super) fn advise_huge(base: NonNull<u8>, bytes: usize) {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        // SAFETY: the range is a live mapping; the advice changes no contents, and failure is harmless.
        unsafe {
            libc::madvise(base.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE);
        }
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        let _ = (base, bytes);
    }

    /// # Safety
    /// `base` and `old` are those of a live mapping with no references into it.
    pub(super) unsafe fn remap(
        base: NonNull<u8>,
        old: usize,
        new: usize,
    ) -> io::Result<NonNull<u8>> {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            // SAFETY: by the contract above; on failure the old mapping is untouched.
            let moved =
                unsafe { libc::mremap(base.as_ptr().cast(), old, new, libc::MREMAP_MAYMOVE) };
            if moved == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            NonNull::new(moved.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
        }
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        {
            let fresh = map(new)?;
            // SAFETY: two distinct live mappings of at least min(old, new) bytes; then the old one,
            // which nobody refers to, is released.
            unsafe {
                std::ptr::copy_nonoverlapping(base.as_ptr(), fresh.as_ptr(), old.min(new));
                unmap(base, old);
            }
            Ok(fresh)
        }
    }
}

#[cfg(not(all(unix, not(miri))))]
mod imp {
    use std::alloc::{Layout, alloc_zeroed, dealloc};
    use std::io;
    use std::ptr::NonNull;

    const PAGE: usize = 4096;

    pub(super) fn page_bytes() -> usize {
        PAGE
    }

    fn layout(bytes: usize) -> io::Result<Layout> {
        Layout::from_size_align(bytes, PAGE).map_err(|_| io::ErrorKind::InvalidInput.into())
    }

    pub(super) fn map(bytes: usize) -> io::Result<NonNull<u8>> {
        // SAFETY: `Region` never asks for zero bytes.
        NonNull::new(unsafe { alloc_zeroed(layout(bytes)?) })
            .ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// # Safety
    /// `base` and `bytes` are those of a live allocation of `map` with no references into it.
    pub(super) unsafe fn unmap(base: NonNull<u8>, bytes: usize) {
        if let Ok(layout) = layout(bytes) {
            // SAFETY: the same layout as in `map`.
            unsafe { dealloc(base.as_ptr(), layout) }
        }
    }

    /// # Safety
    /// The range lies in a live allocation with no references into the range.
    pub(super) unsafe fn decommit(base: NonNull<u8>, bytes: usize) {
        // SAFETY: by the contract above.
        unsafe { std::ptr::write_bytes(base.as_ptr(), 0, bytes) }
    }

    pub(super) fn advise_huge(_: NonNull<u8>, _: usize) {}

    /// # Safety
    /// `base` and `old` are those of a live allocation with no references into it.
    pub(super) unsafe fn remap(
        base: NonNull<u8>,
        old: usize,
        new: usize,
    ) -> io::Result<NonNull<u8>> {
        let fresh = map(new)?;
        // SAFETY: two distinct live allocations of at least min(old, new) bytes; then the old one,
        // which nobody refers to, is released.
        unsafe {
            std::ptr::copy_nonoverlapping(base.as_ptr(), fresh.as_ptr(), old.min(new));
            unmap(base, old);
        }
        Ok(fresh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_zero_and_zero_again_after_decommit() {
        let page = page_bytes();
        let region = Region::map(4 * page).unwrap();
        let base = region.base().as_ptr();
        // SAFETY: offsets inside the region, and no other reference is alive.
        unsafe {
            assert_eq!(base.read(), 0);
            base.add(page).write(7);
            base.add(2 * page).write(9);
            decommit(region.base().add(page), page);
            assert_eq!(base.add(page).read(), 0);
            assert_eq!(base.add(2 * page).read(), 9);
        }
    }

    #[test]
    fn resize_keeps_the_common_part() {
        let page = page_bytes();
        let mut region = Region::map(page).unwrap();
        // SAFETY: inside the region.
        unsafe { region.base().as_ptr().add(page - 1).write(5) };
        region.resize(3 * page).unwrap();
        // SAFETY: inside the resized region.
        unsafe {
            assert_eq!(region.base().as_ptr().add(page - 1).read(), 5);
            assert_eq!(region.base().as_ptr().add(3 * page - 1).read(), 0);
        }
        region.resize(page).unwrap();
        assert_eq!(region.bytes(), page);
    }

    #[test]
    fn odd_lengths_are_refused() {
        assert!(Region::map(0).is_err());
        assert!(Region::map(1).is_err());
        assert!(round_to_pages(usize::MAX).is_none());
    }
}
