//! From readings of the outside world to the budget: a pure function, with reasons.
//!
//! Shrinking is quick, growing is slow, and between the two lies a band in which nothing happens:
//!
//! ```text
//! 0 …………… capacity − band ……………… capacity ……………………→ bytes
//! [ grow, when calm, by steps )[ leave alone )[ shrink at once
//! ```
//!
//! `capacity` is what the tightest of container, system and operator leaves, less a margin. A target that
//! was shrunk lands in the middle of the band, so that noise of half a band moves nothing.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::fmt;

use super::{Bound, Snapshot, margin_bytes};

#[cfg(test)]
mod tests;

/// Thresholds and rates. [`Config::default`] is what Neap runs with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// What is left to everyone else; `None`: [`margin_bytes`] of the effective total, at most an eighth of it.
    pub margin: Option<u64>,
    /// The budget never goes below this, whatever the pressure; nor below a quarter of what the operator allows, if that
    /// is less.
    pub floor: u64,
    /// Width of the band, in per mille of the effective total.
    pub band_permille: u64,
    /// Per cent of time stalled (some task) that counts as pressure.
    pub stall_percent: f32,
    /// Stall or a limit event takes this much off the target, in per mille.
    pub stall_step_permille: u64,
    /// Growth per step, in per mille of the target (at least a quarter of the band).
    pub grow_step_permille: u64,
    /// Least time between shrinks for stall: the averages need time to follow.
    pub stall_interval_ms: u64,
    /// Least time between growth steps.
    pub grow_interval_ms: u64,
    /// Time without any shrink before growth begins.
    pub calm_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            margin: None,
            floor: 64 << 20,
            band_permille: 30,
            stall_percent: 10.0,
            stall_step_permille: 100,
            grow_step_permille: 125,
            stall_interval_ms: 2_000,
            grow_interval_ms: 1_000,
            calm_ms: 10_000,
        }
    }
}

/// Why the target is what it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reason {
    /// Nothing calls for a change.
    Steady,
    /// The operator set another limit.
    Operator,
    /// Less is left than is held: who leaves less.
    Capacity(Bound),
    /// Tasks wait for memory: per cent of time.
    Stall {
        /// Per cent of the time since the last reading, or of the last ten seconds.
        percent: f32,
    },
    /// The container went over `memory.high` or hit `memory.max`: times since the last reading.
    LimitEvents {
        /// How often.
        count: u64,
    },
    /// There is room and it has been calm.
    Room,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Steady => f.write_str("steady"),
            Self::Operator => f.write_str("set by the operator"),
            Self::Capacity(bound) => write!(f, "the system leaves less ({bound:?})"),
            Self::Stall { percent } => {
                write!(f, "tasks wait for memory {percent:.1} % of the time")
            }
            Self::LimitEvents { count } => {
                write!(f, "the container reached its memory limit {count} times")
            }
            Self::Room => f.write_str("there is room again"),
        }
    }
}

/// A target and its reason.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// The budget to set, in bytes.
    pub target: u64,
    /// Why.
    pub reason: Reason,
    /// What the outside leaves, less the margin; `u64::MAX` where nothing is known.
    pub capacity: u64,
}

/// What we hold and what we were told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Bytes charged that are anonymous memory (not mapped files, which count as reclaimable).
    pub anonymous: u64,
    /// The most that the operator allows.
    pub operator_limit: u64,
}

/// The memory of the decision: what earlier readings said. Feed it readings in order of time.
#[derive(Clone, Debug)]
pub struct Governed {
    config: Config,
    target: u64,
    operator_limit: u64,
    last_shrink_ms: Option<u64>,
    last_stall_shrink_ms: Option<u64>,
    last_grow_ms: Option<u64>,
    last_totals: Option<(u64, u64)>,
    last_events: Option<u64>,
    /// Readings of the capacity within the calm time, each lower than all after it: the front is the
    /// lowest. Growth goes no higher than it, so that what comes and goes is not chased.
    lows: VecDeque<(u64, u64)>,
}

impl Governed {
    /// Starts with a budget of `target`, all of it allowed by the operator.
    #[must_use]
    pub fn new(config: Config, target: u64) -> Self {
        Self {
            config,
            target,
            operator_limit: target,
            last_shrink_ms: None,
            last_stall_shrink_ms: None,
            last_grow_ms: None,
            last_totals: None,
            last_events: None,
            lows: VecDeque::new(),
        }
    }

    /// The target now.
    #[must_use]
    pub fn target(&self) -> u64 {
        self.target
    }

    /// Takes in a reading made at `now_ms` (any monotonic clock) and says what the budget shall be.
    pub fn decide(&mut self, snapshot: &Snapshot, own: Own, now_ms: u64) -> Decision {
        let stall = self.stall_percent(snapshot, now_ms);
        let events = self.new_limit_events(snapshot);
        let (capacity, bound, band) = self.capacity(snapshot, own);
        let quiet_capacity = self.lowest_of_late(capacity, now_ms);
        let (target, reason) = self
            .operator_change(own, capacity)
            .or_else(|| self.shrink_to_capacity(capacity, bound, band))
            .or_else(|| self.shrink_for_stall(stall, events, now_ms))
            .or_else(|| self.grow(own, quiet_capacity, band, now_ms))
            .unwrap_or((self.target, Reason::Steady));
        let floor = self.config.floor.min(own.operator_limit / 4);
        let target = target.clamp(floor, own.operator_limit.max(floor));
        if target < self.target {
            self.last_shrink_ms = Some(now_ms);
        }
        let reason = if target == self.target && reason != Reason::Operator {
            Reason::Steady
        } else {
            reason
        };
        self.target = target;
        Decision {
            target,
            reason,
            capacity,
        }
    }

    fn capacity(&self, snapshot: &Snapshot, own: Own) -> (u64, Bound, u64) {
        let total = snapshot.effective_total().unwrap_or(own.operator_limit);
        let band = total / 1000 * self.config.band_permille;
        // What the process takes beside its charges is counted already, so that little is left to small containers.
        let margin = self
            .config
            .margin
            .unwrap_or_else(|| margin_bytes(total).min(total / 8));
        match snapshot.capacity(own.anonymous) {
            Some((bytes, bound)) => (bytes.saturating_sub(margin), bound, band),
            None => (u64::MAX, Bound::Unknown, band),
        }
    }

    /// The lowest capacity of the calm time up to now.
    fn lowest_of_late(&mut self, capacity: u64, now_ms: u64) -> u64 {
        while self.lows.back().is_some_and(|low| low.1 >= capacity) {
            self.lows.pop_back();
        }
        self.lows.push_back((now_ms, capacity));
        let begin_ms = now_ms.saturating_sub(self.config.calm_ms);
        while self.lows.front().is_some_and(|low| low.0 < begin_ms) {
            self.lows.pop_front();
        }
        self.lows.front().map_or(capacity, |low| low.1)
    }

    fn operator_change(&mut self, own: Own, capacity: u64) -> Option<(u64, Reason)> {
        if own.operator_limit == self.operator_limit {
            return None;
        }
        self.operator_limit = own.operator_limit;
        // An order is followed at once, as far as the outside allows.
        Some((own.operator_limit.min(capacity), Reason::Operator))
    }

    fn shrink_to_capacity(&self, capacity: u64, bound: Bound, band: u64) -> Option<(u64, Reason)> {
        (self.target > capacity)
            .then(|| (capacity.saturating_sub(band / 2), Reason::Capacity(bound)))
    }

    fn shrink_for_stall(&mut self, stall: f32, events: u64, now_ms: u64) -> Option<(u64, Reason)> {
        let reason = if events > 0 {
            Reason::LimitEvents { count: events }
        } else if stall >= self.config.stall_percent {
            Reason::Stall { percent: stall }
        } else {
            return None;
        };
        // Pressure is no calm, even while the interval keeps us from shrinking again.
        self.last_shrink_ms = Some(now_ms);
        if !elapsed(
            self.last_stall_shrink_ms,
            now_ms,
            self.config.stall_interval_ms,
        ) {
            return None;
        }
        self.last_stall_shrink_ms = Some(now_ms);
        let step = self.target / 1000 * self.config.stall_step_permille;
        Some((self.target - step, reason))
    }

    fn grow(&mut self, own: Own, capacity: u64, band: u64, now_ms: u64) -> Option<(u64, Reason)> {
        let room_end = capacity.saturating_sub(band).min(own.operator_limit);
        if self.target >= room_end
            || !elapsed(self.last_shrink_ms, now_ms, self.config.calm_ms)
            || !elapsed(self.last_grow_ms, now_ms, self.config.grow_interval_ms)
        {
            return None;
        }
        self.last_grow_ms = Some(now_ms);
        let step = (self.target / 1000 * self.config.grow_step_permille).max(band / 4);
        // To the middle of the band, where a shrink would have put it.
        let end = capacity.saturating_sub(band / 2).min(own.operator_limit);
        Some((self.target.saturating_add(step).min(end), Reason::Room))
    }

    /// Per cent of the time since the last reading in which a task stalled.
    fn stall_percent(&mut self, snapshot: &Snapshot, now_ms: u64) -> f32 {
        let Some(psi) = snapshot.psi else {
            return 0.0;
        };
        let before = self.last_totals.replace((now_ms, psi.some_total_us));
        match before {
            Some((then_ms, total_us)) if now_ms > then_ms => {
                let stalled_us = psi.some_total_us.saturating_sub(total_us);
                stalled_us as f32 / ((now_ms - then_ms) as f32 * 10.0)
            }
            _ => psi.some_avg10,
        }
    }

    fn new_limit_events(&mut self, snapshot: &Snapshot) -> u64 {
        let sum = snapshot
            .cgroups
            .iter()
            .map(|g| g.high_events.saturating_add(g.max_events))
            .fold(0, u64::saturating_add);
        let before = self.last_events.replace(sum);
        // Counters from before our time are not about us.
        before.map_or(0, |before| sum.saturating_sub(before))
    }
}

fn elapsed(since_ms: Option<u64>, now_ms: u64, least_ms: u64) -> bool {
    since_ms.is_none_or(|since| now_ms.saturating_sub(since) >= least_ms)
}
