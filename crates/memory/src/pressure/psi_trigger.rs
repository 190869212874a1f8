//! Pressure triggers: the kernel wakes us when tasks stall for memory, instead of our asking.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

/// Window of the trigger. Without privileges the kernel takes multiples of two seconds only.
pub const WINDOW_US: u64 = 2_000_000;

/// An armed trigger on one `memory.pressure` file; disarmed when dropped.
#[derive(Debug)]
pub struct PsiTrigger {
    file: File,
}

impl PsiTrigger {
    /// Arms a trigger for `stall_us` microseconds of stall (of at least one task) within [`WINDOW_US`].
    ///
    /// # Errors
    /// Where the file is missing or not writable, or the kernel knows no triggers: sample instead.
    pub fn arm(path: &Path, stall_us: u64) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        // The kernel wants the whole request, with its NUL, in one write.
        file.write_all(format!("some {stall_us} {WINDOW_US}\0").as_bytes())?;
        Ok(Self { file })
    }

    /// Waits for the trigger at most `timeout`; whether it fired.
    ///
    /// # Errors
    /// When the cgroup is gone or the wait fails.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let mut entry = libc::pollfd {
            fd: self.file.as_raw_fd(),
            events: libc::POLLPRI,
            revents: 0,
        };
        let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one entry, alive through the call, with an open descriptor.
        let ready = unsafe { libc::poll(&mut entry, 1, timeout_ms) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::Interrupted => Ok(false),
                _ => Err(error),
            };
        }
        if entry.revents & libc::POLLERR != 0 {
            return Err(io::Error::other("the pressure file is gone"));
        }
        Ok(entry.revents & libc::POLLPRI != 0)
    }
}
