//! What ways back cost on this machine, measured as it runs.
#![forbid(unsafe_code)]

use crate::level::Level;

/// Weight of the newest observation.
const ALPHA: f64 = 0.1;

/// A cost in proportion to bytes or tokens: a moving average of what was observed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinearCost {
    /// Microseconds per unit (byte or token).
    pub per_unit_us: f64,
    /// Observations so far.
    pub observations: u64,
}

impl LinearCost {
    /// Starts from a guess that the first observation replaces.
    #[must_use]
    pub fn guess(per_unit_us: f64) -> Self {
        Self {
            per_unit_us,
            observations: 0,
        }
    }

    /// Takes in that `units` took `us` microseconds. Zero units, and times that are no number, say nothing.
    pub fn observe(&mut self, units: u64, us: f64) {
        if units == 0 || !us.is_finite() || us < 0.0 {
            return;
        }
        let seen = us / units as f64;
        let alpha = if self.observations == 0 { 1.0 } else { ALPHA };
        self.per_unit_us += alpha * (seen - self.per_unit_us);
        self.observations += 1;
    }

    /// What `units` are expected to take.
    #[must_use]
    pub fn of(&self, units: u64) -> f64 {
        self.per_unit_us * units as f64
    }
}

/// The cost of computing tokens: one part for each token, and one for each earlier token that it attends to.
///
/// Fitted to what was observed by least squares, of which older observations count less and less.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PrefillCost {
    /// Microseconds for each token.
    pub per_token_us: f64,
    /// Microseconds for each pair of a token and one that it attends to.
    pub per_pair_us: f64,
    /// Observations so far.
    pub observations: u64,
    sums: Sums,
}

/// Of the observations, as depth (pairs per token) and rate (microseconds per token), weighted by tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    weight: f64,
    depth: f64,
    rate: f64,
    depth_depth: f64,
    depth_rate: f64,
}

impl PrefillCost {
    /// Starts from a guess that the first observation replaces.
    #[must_use]
    pub fn guess(per_token_us: f64) -> Self {
        Self {
            per_token_us,
            per_pair_us: 0.0,
            observations: 0,
            sums: Sums::default(),
        }
    }

    /// Takes in that `tokens` tokens, which attended to `pairs` tokens together, took `us` microseconds. Zero
    /// tokens, and times that are no number, say nothing.
    pub fn observe(&mut self, tokens: u64, pairs: u64, us: f64) {
        if tokens == 0 || !us.is_finite() || us < 0.0 {
            return;
        }
        let weight = tokens as f64;
        let (depth, rate) = (pairs as f64 / weight, us / weight);
        let sums = &mut self.sums;
        let add = |sum: &mut f64, value: f64| *sum = *sum * (1.0 - ALPHA) + weight * value;
        add(&mut sums.weight, 1.0);
        add(&mut sums.depth, depth);
        add(&mut sums.rate, rate);
        add(&mut sums.depth_depth, depth * depth);
        add(&mut sums.depth_rate, depth * rate);
        self.observations += 1;
        self.fit();
    }

    /// The line through the observations; a slope that they do not tell, being all of one depth, stays as it was.
    fn fit(&mut self) {
        let sums = &self.sums;
        let (depth, rate) = (sums.depth / sums.weight, sums.rate / sums.weight);
        let variance = sums.depth_depth / sums.weight - depth * depth;
        if variance > 0.01 * depth * depth {
            let covariance = sums.depth_rate / sums.weight - depth * rate;
            self.per_pair_us = (covariance / variance).max(0.0);
        }
        if self.per_pair_us * depth > rate {
            // Steeper than from nothing at all: the tokens themselves would cost less than nothing.
            self.per_pair_us = rate / depth;
        }
        self.per_token_us = rate - self.per_pair_us * depth;
    }

    /// What the `tokens` tokens after the first `before` are expected to take.
    #[must_use]
    pub fn of(&self, before: u64, tokens: u64) -> f64 {
        let (before, tokens) = (before as f64, tokens as f64);
        let pairs = tokens * (before + (tokens + 1.0) / 2.0);
        self.per_token_us * tokens + self.per_pair_us * pairs
    }
}

/// What the way back of a block depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stay {
    /// Tokens before it in its sequence.
    pub before: u64,
    /// Tokens it holds.
    pub tokens: u64,
    /// Bytes it takes when hot.
    pub hot_bytes: u64,
    /// Bytes it takes where it is.
    pub stored_bytes: u64,
}

/// The costs of one machine and model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CostMeter {
    /// Prefill.
    pub recompute: PrefillCost,
    /// Reads from disk with check and decoding, per stored byte.
    pub disk_read: LinearCost,
    /// Writes to disk, per stored byte.
    pub disk_write: LinearCost,
    /// Decoding a packed block, per byte of the hot block.
    pub unpack: LinearCost,
    /// Encoding into a packed block, per byte of the hot block.
    pub pack: LinearCost,
    /// Encoding into an int8 or int4 block, per byte of the hot block.
    pub quantize: LinearCost,
    /// Reads from the remote store, per byte.
    pub remote_read: LinearCost,
}

impl Default for CostMeter {
    /// Guesses for a small machine: 200 tokens/s, 500 MB/s of disk, 1 GB/s of codec, 50 MB/s of network.
    fn default() -> Self {
        Self {
            recompute: PrefillCost::guess(5_000.0),
            disk_read: LinearCost::guess(0.002),
            disk_write: LinearCost::guess(0.002),
            unpack: LinearCost::guess(0.001),
            pack: LinearCost::guess(0.002),
            quantize: LinearCost::guess(0.001),
            remote_read: LinearCost::guess(0.02),
        }
    }
}

impl CostMeter {
    /// Microseconds until a block at `level`, or held nowhere, can be attended to. Never more than computing it
    /// anew.
    #[must_use]
    pub fn way_back_us(&self, level: Option<Level>, stay: &Stay) -> f64 {
        let recompute = self.recompute.of(stay.before, stay.tokens);
        let load = match level {
            None => recompute,
            Some(Level::Hot | Level::Int8 | Level::Int4) => 0.0,
            Some(Level::Packed) => self.unpack.of(stay.hot_bytes),
            Some(Level::Disk) => self.disk_read.of(stay.stored_bytes),
            Some(Level::Remote) => self.remote_read.of(stay.stored_bytes),
        };
        load.min(recompute)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_observation_replaces_the_guess_and_later_ones_move_it() {
        let mut cost = LinearCost::guess(100.0);
        cost.observe(10, 20.0);
        assert_eq!(cost.per_unit_us, 2.0);
        for _ in 0..200 {
            cost.observe(10, 40.0);
        }
        assert!((cost.per_unit_us - 4.0).abs() < 1e-6);
        cost.observe(0, 1.0);
        cost.observe(1, f64::NAN);
        assert!((cost.per_unit_us - 4.0).abs() < 1e-6);
    }

    #[test]
    fn prefill_is_told_apart_by_depth() {
        let mut cost = PrefillCost::guess(5000.0);
        // 100 µs a token and 0.5 µs a pair.
        let took = |before: u64, tokens: u64| {
            let pairs = tokens * before + tokens * (tokens + 1) / 2;
            (pairs, 100.0 * tokens as f64 + 0.5 * pairs as f64)
        };
        let (pairs, us) = took(0, 512);
        cost.observe(512, pairs, us);
        assert!((cost.of(0, 512) - us).abs() < 1e-6 * us, "at its own depth");
        assert_eq!(cost.per_pair_us, 0.0, "of one depth, no slope");
        for step in 1..20 {
            let (pairs, us) = took(step * 512, 512);
            cost.observe(512, pairs, us);
        }
        assert!((cost.per_token_us - 100.0).abs() < 1e-3, "{cost:?}");
        assert!((cost.per_pair_us - 0.5).abs() < 1e-6, "{cost:?}");
        let (_, us) = took(20_000, 32);
        assert!((cost.of(20_000, 32) - us).abs() < 1e-3 * us);
    }

    #[test]
    fn no_observation_makes_a_part_negative() {
        let mut cost = PrefillCost::guess(5000.0);
        // Deeper and cheaper, then so steep that tokens would cost less than nothing.
        for (depth, us) in [(100, 900.0), (1000, 100.0), (1000, 5000.0), (10, 0.0)] {
            cost.observe(100, 100 * depth, us);
            assert!(
                cost.per_token_us >= -1e-9 && cost.per_pair_us >= 0.0,
                "{cost:?}"
            );
        }
        cost.observe(0, 0, 1.0);
        cost.observe(1, 1, f64::NAN);
        assert_eq!(cost.observations, 4);
    }

    #[test]
    fn a_disk_slower_than_computing_is_not_waited_for() {
        let mut meter = CostMeter::default();
        let stay = Stay {
            before: 0,
            tokens: 32,
            hot_bytes: 1 << 20,
            stored_bytes: 1 << 20,
        };
        let fast = meter.way_back_us(Some(Level::Disk), &stay);
        meter.disk_read.observe(1, 10.0);
        let slow = meter.way_back_us(Some(Level::Disk), &stay);
        assert!(fast < slow && slow == meter.recompute.of(0, 32));
    }
}
