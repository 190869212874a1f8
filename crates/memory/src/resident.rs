//! Resident memory, where the system tells: what a budget is checked against.
#![forbid(unsafe_code)]

/// Resident memory of this process now, in bytes.
#[must_use]
pub fn rss_bytes() -> Option<u64> {
    status("self", "VmRSS:")
}

/// The most that was ever resident of this process, in bytes.
#[must_use]
pub fn peak_rss_bytes() -> Option<u64> {
    status("self", "VmHWM:")
}

/// Resident memory of another process, in bytes; `None` too where there is no such process.
#[must_use]
pub fn rss_bytes_of(pid: u32) -> Option<u64> {
    status(&pid.to_string(), "VmRSS:")
}

fn status(process: &str, field: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    field_bytes(&status, field)
}

/// A field like `VmRSS:     1234 kB`.
fn field_bytes(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_kib() {
        let status = "Name:\tneap\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(field_bytes(status, "VmRSS:"), Some(1 << 20));
        assert_eq!(field_bytes(status, "VmHWM:"), Some(2 << 20));
        for bad in [
            "",
            "VmRSS:",
            "VmRSS:\tmany kB",
            "VmRSS:\t99999999999999999999 kB",
        ] {
            assert_eq!(field_bytes(bad, "VmRSS:"), None, "{bad:?}");
        }
    }

    #[cfg(all(target_os = "linux", not(miri)))]
    #[test]
    fn this_process_is_resident() {
        let now = rss_bytes().unwrap();
        assert!(now > 0 && peak_rss_bytes().unwrap() >= now / 2);
        assert!(rss_bytes_of(std::process::id()).unwrap() > 0);
        assert_eq!(rss_bytes_of(u32::MAX), None);
    }
}
