//! Total and available memory where there is no `/proc/meminfo`.

/// RAM of the machine, and what of it is free to take; `None` where the system does not say.
pub(super) fn total_and_available() -> (Option<u64>, Option<u64>) {
    imp::total_and_available()
}

#[cfg(target_os = "macos")]
mod imp {
    /// `hw.memsize` and `vm.page_free_count`: free pages only, so what is cached counts as taken. Too
    /// careful rather than too bold.
    pub(super) fn total_and_available() -> (Option<u64>, Option<u64>) {
        let total = sysctl_number(c"hw.memsize");
        let pages = sysctl_number(c"vm.page_free_count")
            .zip(sysctl_number(c"vm.page_purgeable_count"))
            .map(|(free, purgeable)| free + purgeable);
        let page = crate::region::page_bytes() as u64;
        (total, pages.map(|pages| pages.saturating_mul(page)))
    }

    /// A number of four or eight bytes.
    fn sysctl_number(name: &std::ffi::CStr) -> Option<u64> {
        let mut bytes = [0u8; 8];
        let mut len = bytes.len();
        // SAFETY: the name ends in NUL, and the kernel writes at most `len` bytes into the array.
        let result = unsafe {
            libc::sysctlbyname(
                name.as_ptr(),
                bytes.as_mut_ptr().cast(),
                &mut len,
                std::ptr::null_mut(),
                0,
            )
        };
        match (result, len) {
            (0, 4) => Some(u64::from(u32::from_ne_bytes(bytes[..4].try_into().ok()?))),
            (0, 8) => Some(u64::from_ne_bytes(bytes)),
            _ => None,
        }
    }
}

#[cfg(windows)]
mod imp {
    /// `MEMORYSTATUSEX` of the Windows API.
    #[repr(C)]
    struct MemoryStatus {
        length: u32,
        load_percent: u32,
        total_physical: u64,
        available_physical: u64,
        page_file: [u64; 2],
        virtual_space: [u64; 3],
    }

    #[link(name = "kernel32")]
    unsafe extern "system" {
        fn GlobalMemoryStatusEx(status: *mut MemoryStatus) -> i32;
    }

    pub(super) fn total_and_available() -> (Option<u64>, Option<u64>) {
        let mut status = MemoryStatus {
            length: size_of::<MemoryStatus>() as u32,
            load_percent: 0,
            total_physical: 0,
            available_physical: 0,
            page_file: [0; 2],
            virtual_space: [0; 3],
        };
        // SAFETY: the structure has the layout of MEMORYSTATUSEX and says its length.
        match unsafe { GlobalMemoryStatusEx(&mut status) } {
            0 => (None, None),
            _ => (Some(status.total_physical), Some(status.available_physical)),
        }
    }
}

#[cfg(not(any(target_os = "macos", windows)))]
mod imp {
    pub(super) fn total_and_available() -> (Option<u64>, Option<u64>) {
        (None, None)
    }
}
