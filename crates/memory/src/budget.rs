//! The budget: how many bytes Neap may hold, and the ledger of who holds them.
//!
//! Nothing of size is allocated without a [`Charge`]. A charge is an RAII value: while it lives the
//! bytes are counted, when it is dropped they are given back. The limit may be changed at any time; a
//! limit below what is charged starts a *shrink*: no new charge is granted until enough was given back.
//!
//! Lock order: the budget's lock is the innermost one. No code runs under it but its own arithmetic.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

#[cfg(test)]
mod tests;

/// What a charge pays for. The ledger keeps one sum per kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChargeKind {
    /// Model weights, mapped or repacked.
    Weights,
    /// Blocks of keys and values at any level held in RAM.
    Kv,
    /// Adapters (LoRA) loaded beside the weights.
    Adapters,
    /// Scratch of kernels and codecs.
    Scratch,
    /// Buffers of the disk and remote levels.
    Io,
    /// Names of cached blocks, in RAM and on disk, and what is known of them.
    Index,
}

impl ChargeKind {
    /// Every kind, in ledger order.
    pub const ALL: [Self; 6] = [
        Self::Weights,
        Self::Kv,
        Self::Adapters,
        Self::Scratch,
        Self::Io,
        Self::Index,
    ];

    /// Lower-case name, as it appears in messages and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Kv => "kv",
            Self::Adapters => "adapters",
            Self::Scratch => "scratch",
            Self::Io => "io",
            Self::Index => "index",
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Weights => 0,
            Self::Kv => 1,
            Self::Adapters => 2,
            Self::Scratch => 3,
            Self::Io => 4,
            Self::Index => 5,
        }
    }
}

impl fmt::Display for ChargeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who said no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedBy {
    /// The budget has not that many bytes left.
    Budget,
    /// The budget would have allowed it; the operating system did not map the memory.
    System,
}

/// A charge that does not fit. All figures are bytes at the moment of refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OverBudget {
    /// Bytes asked for.
    pub needed: u64,
    /// Bytes that were free.
    pub available: u64,
    /// The limit of the budget.
    pub limit: u64,
    /// What the bytes were for.
    pub kind: ChargeKind,
    /// The budget, or the system under it.
    pub refused_by: RefusedBy,
}

impl fmt::Display for OverBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.refused_by {
            RefusedBy::Budget => write!(
                f,
                "{} bytes for {} do not fit: {} bytes are free of a memory budget of {} bytes",
                self.needed, self.kind, self.available, self.limit
            ),
            RefusedBy::System => write!(
                f,
                "the system refused to map {} bytes for {} (the memory budget of {} bytes has {} free)",
                self.needed, self.kind, self.limit, self.available
            ),
        }
    }
}

impl std::error::Error for OverBudget {}

/// Where the charged bytes stand against the two marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fill {
    /// At or under the soft mark.
    Normal,
    /// Over the soft mark: time to demote and evict, ahead of need.
    AboveSoft,
    /// Over the limit: a shrink is under way and nothing more is granted.
    Over,
}

/// A consistent reading of the ledger. All figures are bytes, but for the count of refusals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetSnapshot {
    /// The hard mark: what may be charged at most.
    pub limit: u64,
    /// The soft mark: above it the governor works ahead of need.
    pub soft_limit: u64,
    /// Sum of all charges.
    pub charged: u64,
    /// Highest sum of charges seen since the budget was made.
    pub peak_charged: u64,
    /// Sums per kind, in the order of [`ChargeKind::ALL`].
    pub by_kind: [u64; ChargeKind::ALL.len()],
    /// Charges refused since the budget was made.
    pub refusals: u64,
    /// Where `charged` stands against the marks.
    pub fill: Fill,
}

impl BudgetSnapshot {
    /// Bytes charged for `kind`.
    #[must_use]
    pub fn of_kind(&self, kind: ChargeKind) -> u64 {
        self.by_kind[kind.index()]
    }
}

/// Per mille of the limit at which [`Fill::AboveSoft`] begins, unless set otherwise.
pub const DEFAULT_SOFT_PERMILLE: u16 = 900;

struct Ledger {
    limit: u64,
    allowed: u64,
    soft_permille: u16,
    charged: u64,
    peak_charged: u64,
    by_kind: [u64; ChargeKind::ALL.len()],
    refusals: u64,
}

impl Ledger {
    fn available(&self) -> u64 {
        self.limit.saturating_sub(self.charged)
    }

    fn soft_limit(&self) -> u64 {
        let scaled = u128::from(self.limit) * u128::from(self.soft_permille) / 1000;
        u64::try_from(scaled).unwrap_or(self.limit)
    }

    fn fill(&self) -> Fill {
        if self.charged > self.limit {
            Fill::Over
        } else if self.charged > self.soft_limit() {
            Fill::AboveSoft
        } else {
            Fill::Normal
        }
    }

    fn acquire(&mut self, kind: ChargeKind, bytes: u64) -> Result<(), OverBudget> {
        let available = self.available();
        if bytes > available {
            self.refusals += 1;
            return Err(OverBudget {
                needed: bytes,
                available,
                limit: self.limit,
                kind,
                refused_by: RefusedBy::Budget,
            });
        }
        self.charged += bytes;
        self.by_kind[kind.index()] += bytes;
        self.peak_charged = self.peak_charged.max(self.charged);
        Ok(())
    }

    fn release(&mut self, kind: ChargeKind, bytes: u64) {
        debug_assert!(self.charged >= bytes && self.by_kind[kind.index()] >= bytes);
        self.charged -= bytes;
        self.by_kind[kind.index()] -= bytes;
    }
}

/// A holder of charged bytes that nobody needs just now, such as a cache of freed blocks.
///
/// It is asked, with no lock of the budget held, before a charge is refused and when a shrink begins.
pub trait Reclaim: Send + Sync {
    /// Gives back about `bytes` of what is held (all of it, if less).
    fn reclaim(&self, bytes: u64);
}

struct Shared {
    ledger: Mutex<Ledger>,
    reclaimers: Mutex<Vec<Weak<dyn Reclaim>>>,
    /// Signalled when a release ends a shrink or the limit changes.
    within: Condvar,
}

/// A live limit on bytes, shared by everyone who clones it.
///
/// ```
/// use neap_memory::{Budget, ChargeKind};
/// let budget = Budget::new(1 << 20);
/// let mut charge = budget.try_charge(ChargeKind::Scratch, 600_000).unwrap();
/// assert!(budget.try_charge(ChargeKind::Kv, 600_000).is_err());
/// budget.set_limit(500_000);          // a shrink begins: nothing is torn away…
/// assert_eq!(budget.excess(), 100_000);
/// charge.resize(400_000).unwrap();    // …the holders give back
/// assert_eq!(budget.excess(), 0);
/// ```
#[derive(Clone)]
pub struct Budget {
    shared: Arc<Shared>,
}

impl Budget {
    /// A budget of `limit_bytes` with nothing charged.
    #[must_use]
    pub fn new(limit_bytes: u64) -> Self {
        let ledger = Ledger {
            limit: limit_bytes,
            allowed: limit_bytes,
            soft_permille: DEFAULT_SOFT_PERMILLE,
            charged: 0,
            peak_charged: 0,
            by_kind: [0; ChargeKind::ALL.len()],
            refusals: 0,
        };
        Self {
            shared: Arc::new(Shared {
                ledger: Mutex::new(ledger),
                reclaimers: Mutex::new(Vec::new()),
                within: Condvar::new(),
            }),
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // Every update of the ledger is complete before anything can panic, so a poisoned lock holds
        // sound figures.
        self.shared
            .ledger
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The limit in bytes (the hard mark).
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.ledger().limit
    }

    /// The limit that the operator allows: what [`limit`](Self::limit) is when nothing presses.
    #[must_use]
    pub fn allowed(&self) -> u64 {
        self.ledger().allowed
    }

    /// Sets the limit and returns how many bytes are now held above it (0 unless a shrink begins).
    pub fn set_limit(&self, limit_bytes: u64) -> u64 {
        self.set_limit_under_pressure(limit_bytes, limit_bytes)
    }

    /// Sets a limit that pressure from outside holds below what the operator allows, for a while.
    pub fn set_limit_under_pressure(&self, limit_bytes: u64, allowed_bytes: u64) -> u64 {
        let mut ledger = self.ledger();
        (ledger.limit, ledger.allowed) = (limit_bytes, allowed_bytes.max(limit_bytes));
        let excess = ledger.charged.saturating_sub(limit_bytes);
        drop(ledger);
        self.shared.within.notify_all();
        if excess > 0 {
            self.reclaim(excess);
        }
        self.excess()
    }

    /// Adds a holder to ask before refusing; it is forgotten when it is dropped.
    pub fn add_reclaimer(&self, holder: Weak<dyn Reclaim>) {
        let mut all = self
            .shared
            .reclaimers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.retain(|held| held.strong_count() > 0);
        all.push(holder);
    }

    fn reclaim(&self, bytes: u64) {
        let all = self
            .shared
            .reclaimers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for holder in all {
            if let Some(holder) = holder.upgrade() {
                holder.reclaim(bytes);
            }
        }
    }

    /// Acquires `bytes`; if they do not fit, once more after the reclaimers were asked.
    fn acquire(&self, kind: ChargeKind, bytes: u64) -> Result<(), OverBudget> {
        let mut ledger = self.ledger();
        let available = ledger.available();
        if bytes <= available {
            return ledger.acquire(kind, bytes);
        }
        drop(ledger);
        self.reclaim(bytes - available);
        self.ledger().acquire(kind, bytes)
    }

    /// Sets the soft mark, in per mille of the limit; more than 1000 counts as 1000.
    pub fn set_soft_permille(&self, permille: u16) {
        self.ledger().soft_permille = permille.min(1000);
    }

    /// The soft mark in bytes.
    #[must_use]
    pub fn soft_limit(&self) -> u64 {
        self.ledger().soft_limit()
    }

    /// Sum of all charges in bytes.
    #[must_use]
    pub fn charged(&self) -> u64 {
        self.ledger().charged
    }

    /// Bytes that a new charge may take: limit less charges, 0 while over the limit.
    #[must_use]
    pub fn available(&self) -> u64 {
        self.ledger().available()
    }

    /// Bytes held above the limit: what a shrink has still to give back.
    #[must_use]
    pub fn excess(&self) -> u64 {
        let ledger = self.ledger();
        ledger.charged.saturating_sub(ledger.limit)
    }

    /// Where the charges stand against the marks.
    #[must_use]
    pub fn fill(&self) -> Fill {
        self.ledger().fill()
    }

    /// Limit, marks, sums per kind and counters, read together.
    #[must_use]
    pub fn snapshot(&self) -> BudgetSnapshot {
        let ledger = self.ledger();
        BudgetSnapshot {
            limit: ledger.limit,
            soft_limit: ledger.soft_limit(),
            charged: ledger.charged,
            peak_charged: ledger.peak_charged,
            by_kind: ledger.by_kind,
            refusals: ledger.refusals,
            fill: ledger.fill(),
        }
    }

    /// Takes `bytes` from the budget for `kind`.
    ///
    /// # Errors
    /// [`OverBudget`] with the figures when the bytes do not fit; nothing is charged then.
    pub fn try_charge(&self, kind: ChargeKind, bytes: u64) -> Result<Charge, OverBudget> {
        self.acquire(kind, bytes)?;
        Ok(Charge {
            budget: self.clone(),
            kind,
            bytes,
        })
    }

    /// Waits until the charges are within the limit, at most `timeout`. Returns whether they are.
    #[must_use]
    pub fn wait_within(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut ledger = self.ledger();
        while ledger.charged > ledger.limit {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return false;
            };
            ledger = match self.shared.within.wait_timeout(ledger, left) {
                Ok((guard, _)) => guard,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        true
    }

    /// Checks that the ledger adds up: the kinds sum to the total and the peak is no less.
    ///
    /// # Errors
    /// A description of the first law that is broken.
    pub fn check_conservation(&self) -> Result<(), String> {
        let ledger = self.ledger();
        let sum: u64 = ledger.by_kind.iter().sum();
        if sum != ledger.charged {
            return Err(format!("kinds sum to {sum}, total is {}", ledger.charged));
        }
        if ledger.peak_charged < ledger.charged {
            return Err(format!(
                "peak {} is below the total {}",
                ledger.peak_charged, ledger.charged
            ));
        }
        Ok(())
    }

    /// The refusal to report when the budget agreed but the system did not.
    pub(crate) fn refused_by_system(&self, kind: ChargeKind, bytes: u64) -> OverBudget {
        let ledger = self.ledger();
        OverBudget {
            needed: bytes,
            available: ledger.available(),
            limit: ledger.limit,
            kind,
            refused_by: RefusedBy::System,
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    fn release(&self, kind: ChargeKind, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let mut ledger = self.ledger();
        let was_over = ledger.charged > ledger.limit;
        ledger.release(kind, bytes);
        let ends_shrink = was_over && ledger.charged <= ledger.limit;
        drop(ledger);
        if ends_shrink {
            self.shared.within.notify_all();
        }
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Budget").field(&self.snapshot()).finish()
    }
}

/// What a resize did, in bytes: `kept` of the old holding, and either `acquired` or `released`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resize {
    /// min(held, needed).
    pub kept: u64,
    /// needed − kept.
    pub acquired: u64,
    /// held − kept.
    pub released: u64,
}

/// Bytes taken from a [`Budget`]; dropping it gives them back.
#[derive(Debug)]
#[must_use = "dropping a charge gives its bytes back at once"]
pub struct Charge {
    budget: Budget,
    kind: ChargeKind,
    bytes: u64,
}

impl Charge {
    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What they are held for.
    #[must_use]
    pub fn kind(&self) -> ChargeKind {
        self.kind
    }

    /// The budget they are taken from.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Changes the holding from C bytes to the `needed` M bytes.
    ///
    /// What is *kept* is C' = max(0, C + M − max(C, M)) = min(C, M). Then M − C' bytes are acquired, or
    /// C − C' bytes given back. The kept bytes are never let go in between, so nobody else can take them
    /// and a resize that fails leaves the charge as it was.
    ///
    /// # Errors
    /// [`OverBudget`] when M − C' bytes are not free.
    pub fn resize(&mut self, needed: u64) -> Result<Resize, OverBudget> {
        let kept = self.bytes.min(needed);
        let acquired = needed - kept;
        let released = self.bytes - kept;
        if acquired > 0 {
            self.budget.acquire(self.kind, acquired)?;
        }
        self.budget.release(self.kind, released);
        self.bytes = needed;
        Ok(Resize {
            kept,
            acquired,
            released,
        })
    }

    /// Moves `bytes` out into a charge of their own, without going through the budget: the way to
    /// spend a reservation piece by piece. `None` (and no change) if fewer are held.
    #[must_use]
    pub fn split(&mut self, bytes: u64) -> Option<Self> {
        self.bytes = self.bytes.checked_sub(bytes)?;
        Some(Self {
            budget: self.budget.clone(),
            kind: self.kind,
            bytes,
        })
    }

    /// Takes over the bytes of `other`.
    ///
    /// # Errors
    /// Gives `other` back if it is of another kind or another budget.
    pub fn merge(&mut self, mut other: Self) -> Result<(), Self> {
        if self.kind != other.kind || !self.budget.is_same(&other.budget) {
            return Err(other);
        }
        self.bytes += std::mem::take(&mut other.bytes);
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.release(self.kind, self.bytes);
    }
}
