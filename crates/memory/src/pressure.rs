//! Pressure: what the container, the system and the operator leave to the budget.
//!
//! [`files`] reads the outside world into a [`Snapshot`]; [`decide`] is a pure function from snapshots to
//! target budgets, each with its reason; [`watch`] runs the two in a thread. Any file may be missing:
//! what is not known does not bound.

pub mod decide;
pub mod files;
#[cfg(any(target_os = "linux", target_os = "android"))]
pub mod psi_trigger;
mod system;
pub mod watch;

pub use decide::{Config, Decision, Governed, Reason};
pub use files::SystemFiles;

/// Bytes of one cgroup level that bounds this process, v1 or v2.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupLevel {
    /// Where it was read.
    pub path: String,
    /// `memory.max` (v1: `memory.limit_in_bytes`); `None` means unlimited.
    pub max: Option<u64>,
    /// `memory.high` (v1: `memory.soft_limit_in_bytes` is another thing and not read).
    pub high: Option<u64>,
    /// `memory.current` (v1: `memory.usage_in_bytes`).
    pub current: u64,
    /// File pages that the kernel takes back without writing: `active_file + inactive_file` less dirty
    /// and under-writeback ones.
    pub reclaimable_file: u64,
    /// Times the group went over `high` since it was made.
    pub high_events: u64,
    /// Times it would have gone over `max`.
    pub max_events: u64,
    /// Processes of it that the kernel killed.
    pub oom_kills: u64,
}

impl CgroupLevel {
    /// The lower of `max` and `high`.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        match (self.max, self.high) {
            (Some(max), Some(high)) => Some(max.min(high)),
            (max, high) => max.or(high),
        }
    }

    /// Bytes in use that do not go away by themselves.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.current.saturating_sub(self.reclaimable_file)
    }
}

/// Pressure stall information: time in which tasks waited for memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Psi {
    /// Per cent of the last ten seconds in which at least one task stalled.
    pub some_avg10: f32,
    /// Per cent of the last ten seconds in which all tasks stalled.
    pub full_avg10: f32,
    /// Microseconds since start in which at least one task stalled.
    pub some_total_us: u64,
    /// Microseconds since start in which all tasks stalled.
    pub full_total_us: u64,
}

/// One reading of the outside world.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// RAM of the machine.
    pub total: Option<u64>,
    /// RAM that can be had without swapping.
    pub available: Option<u64>,
    /// Every cgroup level with a limit or counters, innermost first.
    pub cgroups: Vec<CgroupLevel>,
    /// Stalls, of the innermost cgroup that tells, else of the system.
    pub psi: Option<Psi>,
}

impl Snapshot {
    /// RAM of the machine or of the tightest container, whichever is less.
    #[must_use]
    pub fn effective_total(&self) -> Option<u64> {
        let limits = self.cgroups.iter().filter_map(CgroupLevel::limit);
        limits.chain(self.total).min()
    }

    /// Bytes that could still be had, beside `own` bytes that this process holds in anonymous memory:
    /// with the name of what bounds them. `None` if nothing is known.
    #[must_use]
    pub fn capacity(&self, own: u64) -> Option<(u64, Bound)> {
        let groups = self.cgroups.iter().filter_map(|group| {
            let others = group.held().saturating_sub(own);
            Some((group.limit()?.saturating_sub(others), Bound::Container))
        });
        let system = self
            .available
            .map(|a| (a.saturating_add(own), Bound::System));
        groups.chain(system).min_by_key(|(bytes, _)| *bytes)
    }
}

/// What bounds the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// A cgroup limit.
    Container,
    /// The memory of the machine.
    System,
    /// The operator's setting.
    Operator,
    /// Nothing is known of this system: a fixed default.
    Unknown,
}

/// The budget for `--memory` left unset, and where it comes from. All figures are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefaultBudget {
    /// The budget.
    pub bytes: u64,
    /// What the container and the system leave at this moment.
    pub available: u64,
    /// What of it is left alone: for the process itself and for everyone else.
    pub margin: u64,
    /// What bounds it.
    pub bound: Bound,
}

/// Smallest margin: the 64 MiB that the process itself may take beside its charges.
pub const MIN_MARGIN_BYTES: u64 = 64 << 20;
/// Largest margin.
pub const MAX_MARGIN_BYTES: u64 = 1 << 30;
/// The budget where nothing is known of the system.
pub const UNKNOWN_SYSTEM_BUDGET_BYTES: u64 = 2 << 30;

/// A tenth of what the machine or the container has in all, within 64 MiB and 1 GiB.
#[must_use]
pub fn margin_bytes(effective_total: u64) -> u64 {
    (effective_total / 10).clamp(MIN_MARGIN_BYTES, MAX_MARGIN_BYTES)
}

/// The budget when the operator sets none: what the container and the system leave now, less
/// [`margin_bytes`], but never less than half of what is left.
#[must_use]
pub fn default_budget() -> DefaultBudget {
    default_budget_from(&SystemFiles::real().read())
}

/// [`default_budget`] of a given reading.
#[must_use]
pub fn default_budget_from(snapshot: &Snapshot) -> DefaultBudget {
    let Some((available, bound)) = snapshot.capacity(0) else {
        return DefaultBudget {
            bytes: UNKNOWN_SYSTEM_BUDGET_BYTES,
            available: UNKNOWN_SYSTEM_BUDGET_BYTES,
            margin: 0,
            bound: Bound::Unknown,
        };
    };
    let total = snapshot.effective_total().unwrap_or(available);
    let margin = margin_bytes(total).min(available / 2);
    DefaultBudget {
        bytes: available - margin,
        available,
        margin,
        bound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(max: u64, current: u64, file: u64) -> CgroupLevel {
        CgroupLevel {
            max: Some(max),
            current,
            reclaimable_file: file,
            ..CgroupLevel::default()
        }
    }

    #[test]
    fn the_tightest_level_bounds() {
        let snapshot = Snapshot {
            total: Some(100 << 30),
            available: Some(50 << 30),
            cgroups: vec![
                group(8 << 30, 5 << 30, 1 << 30),
                group(20 << 30, 17 << 30, 0),
            ],
            psi: None,
        };
        assert_eq!(snapshot.capacity(0), Some((3 << 30, Bound::Container)));
        // What we hold ourselves is not taken by others.
        assert_eq!(
            snapshot.capacity(2 << 30),
            Some((5 << 30, Bound::Container))
        );
        assert_eq!(snapshot.effective_total(), Some(8 << 30));
        let budget = default_budget_from(&snapshot);
        assert_eq!(budget.margin, (8u64 << 30) / 10);
        assert_eq!(budget.bytes, (3 << 30) - budget.margin);
    }

    #[test]
    fn a_tight_system_keeps_half_of_what_is_left() {
        let snapshot = Snapshot {
            total: Some(24 << 30),
            available: Some(100 << 20),
            ..Snapshot::default()
        };
        let budget = default_budget_from(&snapshot);
        assert_eq!((budget.bytes, budget.bound), (50 << 20, Bound::System));
    }

    #[test]
    fn nothing_known_is_said_so() {
        let budget = default_budget_from(&Snapshot::default());
        assert_eq!(budget.bound, Bound::Unknown);
    }

    #[test]
    fn this_machine_has_a_budget() {
        let budget = default_budget();
        assert!(budget.bytes > 0 && budget.bytes <= budget.available);
    }
}
