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

/// The costs of one machine and model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CostMeter {
    /// Prefill, per token.
    pub recompute: LinearCost,
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
            recompute: LinearCost::guess(5_000.0),
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
    /// Microseconds until a block at `level` can be attended to: of `tokens`, `hot_bytes` when hot and
    /// `stored_bytes` where it is. Never more than computing it anew.
    #[must_use]
    pub fn way_back_us(
        &self,
        level: Option<Level>,
        tokens: u64,
        hot_bytes: u64,
        stored_bytes: u64,
    ) -> f64 {
        let recompute = self.recompute.of(tokens);
        let load = match level {
            None => recompute,
            Some(Level::Hot | Level::Int8 | Level::Int4) => 0.0,
            Some(Level::Packed) => self.unpack.of(hot_bytes),
            Some(Level::Disk) => self.disk_read.of(stored_bytes),
            Some(Level::Remote) => self.remote_read.of(stored_bytes),
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
    fn a_disk_slower_than_computing_is_not_waited_for() {
        let mut meter = CostMeter::default();
        let fast = meter.way_back_us(Some(Level::Disk), 32, 1 << 20, 1 << 20);
        meter.disk_read.observe(1, 10.0);
        let slow = meter.way_back_us(Some(Level::Disk), 32, 1 << 20, 1 << 20);
        assert!(fast < slow && slow == meter.recompute.of(32));
    }
}
