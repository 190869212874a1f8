//! How fast tokens are computed, for the memory's cost model: it weighs loading and letting go against it.

use neap_memory::cache::{CacheStats, KvCache};

/// Steps are taken together until so much time has passed: the caller's clock counts milliseconds.
const LEAST_MS: u64 = 10;
/// Steps of fewer tokens are bound by reading the weights, and tell nothing of prompts.
const LEAST_TOKENS: u64 = 32;

/// Measures the steps that do nothing but compute.
#[derive(Debug, Default)]
pub(super) struct Speed {
    /// The last step, if the next one follows at once.
    running: Option<Step>,
    /// Steps taken together, and what they took.
    sum: Work,
    sum_ms: u64,
    moved_before: Moved,
}

#[derive(Clone, Copy, Debug, Default)]
struct Work {
    tokens: u64,
    pairs: u64,
}

#[derive(Debug)]
struct Step {
    began_ms: u64,
    work: Work,
}

/// Blocks that the cache moved between levels so far: what else a step spends time on.
type Moved = [u64; 8];

fn moved(stats: &CacheStats) -> Moved {
    [
        stats.packed_hit_tokens,
        stats.disk_hit_tokens,
        stats.remote_tokens,
        stats.promoted_blocks,
        stats.packed_blocks,
        stats.int8_blocks,
        stats.int4_blocks,
        stats.spilled_blocks,
    ]
}

impl Speed {
    /// A step begins now: the one before has ended, and `cache` learns what it cost.
    pub fn begin(&mut self, now_ms: u64, cache: &mut KvCache) {
        self.moved_before = moved(&cache.stats());
        let Some(step) = self.running.take() else {
            return;
        };
        self.sum.tokens += step.work.tokens;
        self.sum.pairs += step.work.pairs;
        self.sum_ms += now_ms.saturating_sub(step.began_ms);
        if self.sum_ms >= LEAST_MS {
            let us = self.sum_ms as f64 * 1000.0;
            cache.observe_prefill(self.sum.tokens, self.sum.pairs, us);
            (self.sum, self.sum_ms) = (Work::default(), 0);
        }
    }

    /// A step that began at `now_ms` computed `tokens` tokens, which attended to `pairs` tokens together, and the
    /// next follows at once.
    pub fn computed(&mut self, now_ms: u64, (tokens, pairs): (u64, u64), cache: &KvCache) {
        if tokens >= LEAST_TOKENS && self.moved_before == moved(&cache.stats()) {
            self.running = Some(Step {
                began_ms: now_ms,
                work: Work { tokens, pairs },
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use neap_memory::cache::CacheOptions;
    use neap_memory::{Budget, Fingerprint, KvPool};

    #[test]
    fn the_cost_model_learns_what_prompts_cost() {
        let pool = KvPool::new(&Budget::new(1 << 20), 4096, 32);
        let mut cache = KvCache::new(&pool, CacheOptions::new(Fingerprint::of_parts(&[]))).unwrap();
        let guess = cache.costs().recompute.of(0, 32);
        let mut speed = Speed::default();
        // Decoding, steps before an idle time, and single milliseconds say nothing.
        speed.computed(0, (4, 64), &cache);
        speed.begin(1000, &mut cache);
        speed.begin(2000, &mut cache);
        speed.computed(2000, (128, 128), &cache);
        speed.begin(2009, &mut cache);
        assert_eq!(cache.costs().recompute.of(0, 32), guess);
        // 128 tokens took 9 ms, 36 more take one.
        speed.computed(2009, (36, 36), &cache);
        speed.begin(2010, &mut cache);
        let measured = cache.costs().recompute.of(0, 32);
        assert!(
            (measured - 32.0 * 10_000.0 / 164.0).abs() < 1.0,
            "{measured}"
        );
    }
}
