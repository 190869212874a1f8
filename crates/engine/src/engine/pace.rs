//! How many tokens a step may have, so that it ends in time.
//!
//! A step cannot be interrupted: while it runs, sequences that decode get no token, a new request is not seen, and a
//! shrinking budget waits. Steps of a few hundred milliseconds lose little against longer ones.

/// Fewer tokens than these are not worth a step of their own, and tell little about speed.
const LEAST_TOKENS: usize = 32;

/// Measures steps, and limits the next by what it saw.
#[derive(Debug)]
pub(super) struct Pace {
    target_ms: Option<u64>,
    ms_per_token: Option<f64>,
    /// When the last step began and how many tokens it computed, if the next one follows at once.
    running: Option<(u64, usize)>,
}

impl Pace {
    /// Steps that take about `target_ms` at most, or as long as they may.
    pub fn new(target_ms: Option<u64>) -> Self {
        Self {
            target_ms,
            ms_per_token: None,
            running: None,
        }
    }

    /// Another limit from now on; what was measured still holds.
    pub fn set_target(&mut self, target_ms: Option<u64>) {
        self.target_ms = target_ms;
    }

    /// A step begins now: the one before has ended.
    pub fn begin(&mut self, now_ms: u64) {
        let Some((began_ms, tokens)) = self.running.take() else {
            return;
        };
        if tokens >= LEAST_TOKENS {
            let measured = now_ms.saturating_sub(began_ms) as f64 / tokens as f64;
            // Slower is believed at once, faster by and by.
            let old = self.ms_per_token.unwrap_or(measured);
            self.ms_per_token = Some(measured.max(old + 0.25 * (measured - old)));
        }
    }

    /// A step that began at `now_ms` computed `tokens`, and the next follows at once.
    pub fn computed(&mut self, now_ms: u64, tokens: usize) {
        self.running = Some((now_ms, tokens));
    }

    /// Tokens for the next step, `most` at most.
    pub fn limit(&self, most: usize) -> usize {
        match (self.target_ms, self.ms_per_token) {
            (Some(target), Some(ms_per_token)) if ms_per_token > 0.0 => {
                // Whole blocks keep kernels busy.
                let tokens = (target as f64 / ms_per_token) as usize / LEAST_TOKENS * LEAST_TOKENS;
                tokens.clamp(LEAST_TOKENS.min(most), most)
            }
            _ => most,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_limited_by_what_the_last_ones_took() {
        let mut pace = Pace::new(Some(400));
        assert_eq!(pace.limit(512), 512, "nothing is known yet");
        pace.begin(1000);
        pace.computed(1000, 512);
        pace.begin(2024);
        assert_eq!(pace.limit(512), 192, "2 ms a token");
        // An idle time is no step.
        pace.begin(90_000);
        assert_eq!(pace.limit(512), 192);
        // Few tokens say nothing.
        pace.computed(90_000, 3);
        pace.begin(95_000);
        assert_eq!(pace.limit(512), 192);
        // Slower at once, faster by and by, within bounds.
        pace.computed(100_000, 100);
        pace.begin(104_000);
        assert_eq!(pace.limit(512), 32);
        for _ in 0..40 {
            pace.computed(200_000, 100);
            pace.begin(200_010);
        }
        assert_eq!(pace.limit(512), 512);
        assert_eq!(pace.limit(8), 8);
        pace.set_target(None);
        assert_eq!(pace.limit(9000), 9000);
        pace.set_target(Some(1));
        assert_eq!(pace.limit(512), 32, "what was measured still holds");
    }

    #[test]
    fn without_a_target_there_is_no_limit() {
        let mut pace = Pace::new(None);
        pace.computed(0, 100);
        pace.begin(1_000_000);
        assert_eq!(pace.limit(512), 512);
    }
}
