//! A circuit breaker (Nygard, "Release It!", 2007): after a few failures in a row nothing is asked of the
//! store for a while, then one attempt; each further failure doubles the while.

/// Failures in a row that open it.
pub const FAILURES: u32 = 3;
/// First while, in milliseconds.
pub const FIRST_PAUSE_MS: u64 = 1_000;
/// Longest while, in milliseconds.
pub const LONGEST_PAUSE_MS: u64 = 60_000;

/// See the [module's description](self). Times are of the caller's clock, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Breaker {
    failures: u32,
    pause_ms: u64,
    closed_again_ms: u64,
}

impl Breaker {
    /// Whether the store may be asked.
    #[must_use]
    pub fn allows(&self, now_ms: u64) -> bool {
        now_ms >= self.closed_again_ms
    }

    /// The store did what it was asked. Whether it had been left alone.
    pub fn succeeded(&mut self) -> bool {
        std::mem::take(self).is_open()
    }

    /// Whether the last attempt failed after so many others that the store is left alone at times.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.failures >= FAILURES
    }

    /// The store failed, lied, or took too long. The while for which it is left alone, if it is.
    pub fn failed(&mut self, now_ms: u64) -> Option<u64> {
        self.failures = self.failures.saturating_add(1);
        if !self.is_open() {
            return None;
        }
        self.pause_ms = (self.pause_ms * 2).clamp(FIRST_PAUSE_MS, LONGEST_PAUSE_MS);
        self.closed_again_ms = now_ms.saturating_add(self.pause_ms);
        Some(self.pause_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_failures_in_a_row_and_waits_longer_each_time() {
        let mut breaker = Breaker::default();
        for _ in 0..10 {
            assert_eq!((breaker.failed(0), breaker.failed(0)), (None, None));
            assert!(breaker.allows(0), "two are forgiven");
            assert!(!breaker.succeeded());
        }
        let mut now_ms = 0;
        assert_eq!(breaker.failed(now_ms), None);
        assert_eq!(breaker.failed(now_ms), None);
        assert_eq!(breaker.failed(now_ms), Some(1_000));
        for pause_ms in [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000] {
            assert!(!breaker.allows(now_ms + pause_ms - 1), "{pause_ms}");
            now_ms += pause_ms;
            assert!(breaker.allows(now_ms), "one attempt");
            assert!(breaker.failed(now_ms) >= Some(pause_ms));
        }
        assert!(breaker.succeeded());
        assert_eq!(breaker, Breaker::default());
    }
}
