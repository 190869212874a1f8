//! Blocks of keys and values, and the pool that hands them out.
//!
//! A [`Block`] is a counted claim on one contiguous, page-aligned run of bytes. Its life:
//!
//! | state | who holds it | what drop does |
//! |---|---|---|
//! | free | the arena; its pages are the system's | – |
//! | exclusive | one `Block`; may be written | pages to the system, slot to the arena, bytes to the budget |
//! | shared | several `Block`s; read only | one claim less; the last one as above |
//!
//! Lock order: pool, then budget. Pages go back before the bytes are given back to the budget, so that
//! what the process really holds never exceeds what is charged.

use std::collections::BTreeMap;
use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::arena::{Arena, SlotId};
use crate::budget::{Budget, Charge, ChargeKind, OverBudget};
use crate::level::Level;
use crate::region::{page_bytes, round_to_pages};

#[cfg(test)]
mod tests;

struct Shared {
    budget: Budget,
    block_bytes: usize,
    block_tokens: usize,
    /// One arena per slot size.
    arenas: Mutex<BTreeMap<usize, Arena>>,
}

impl Shared {
    fn arenas(&self) -> MutexGuard<'_, BTreeMap<usize, Arena>> {
        self.arenas.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands out zeroed blocks, each paid for from one budget. A cheap handle: clones share the pool.
///
/// ```
/// use neap_memory::{Budget, KvPool};
/// let budget = Budget::new(1 << 20);
/// let pool = KvPool::new(&budget, 65_536, 32);
/// let mut block = pool.allocate().unwrap();
/// block.bytes_mut().unwrap()[0] = 1;
/// let shared = block.clone();                 // the same bytes, counted
/// assert!(block.bytes_mut().is_none());       // shared blocks are read only
/// assert_eq!(budget.charged(), 65_536);
/// drop((block, shared));
/// assert_eq!(budget.charged(), 0);
/// ```
#[derive(Clone)]
pub struct KvPool {
    shared: Arc<Shared>,
}

/// Figures of a pool at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PoolStats {
    /// Blocks held by someone, shared ones counted once.
    pub held_blocks: usize,
    /// Bytes of their slots: what they are charged.
    pub held_bytes: u64,
    /// Address space mapped; pages that no block uses cost no memory.
    pub mapped_bytes: u64,
}

impl KvPool {
    /// A pool of blocks of `block_bytes`, each for `block_tokens` tokens, charged to `budget`.
    ///
    /// # Panics
    /// If either is zero, or `block_bytes` is beyond `isize::MAX` less a page.
    #[must_use]
    pub fn new(budget: &Budget, block_bytes: usize, block_tokens: usize) -> Self {
        assert!(
            block_bytes > 0 && block_tokens > 0,
            "a block holds something"
        );
        assert!(
            block_bytes < isize::MAX as usize - page_bytes(),
            "a block fits the address space"
        );
        Self {
            shared: Arc::new(Shared {
                budget: budget.clone(),
                block_bytes,
                block_tokens,
                arenas: Mutex::new(BTreeMap::new()),
            }),
        }
    }

    /// Bytes of a hot block.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        self.shared.block_bytes
    }

    /// Bytes that one hot block is charged: whole pages.
    #[must_use]
    pub fn charged_block_bytes(&self) -> u64 {
        self.shared.block_bytes.next_multiple_of(page_bytes()) as u64
    }

    /// Tokens of one block.
    #[must_use]
    pub fn block_tokens(&self) -> usize {
        self.shared.block_tokens
    }

    /// The budget that pays.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.shared.budget
    }

    /// A hot block of zeros.
    ///
    /// # Errors
    /// [`OverBudget`] when the budget, or the system, has no room for it.
    pub fn allocate(&self) -> Result<Block, OverBudget> {
        self.allocate_at(Level::Hot, self.shared.block_bytes)
    }

    /// A block of `bytes` zeros that is held as `level` says.
    ///
    /// # Errors
    /// [`OverBudget`] when the budget, or the system, has no room for it.
    ///
    /// # Panics
    /// If `bytes` is zero or `level` is not a level in RAM.
    pub fn allocate_at(&self, level: Level, bytes: usize) -> Result<Block, OverBudget> {
        assert!(bytes > 0 && level.is_in_ram(), "a block holds bytes in RAM");
        let budget = &self.shared.budget;
        let slot_bytes = round_to_pages(bytes)
            .ok_or_else(|| budget.refused_by_system(ChargeKind::Kv, u64::MAX))?;
        let charge = budget.try_charge(ChargeKind::Kv, slot_bytes as u64)?;
        let (slot, base) = self
            .shared
            .arenas()
            .entry(slot_bytes)
            .or_insert_with(|| Arena::new(slot_bytes))
            .take()
            .map_err(|_| budget.refused_by_system(ChargeKind::Kv, slot_bytes as u64))?;
        let inner = Inner {
            base,
            len_bytes: bytes,
            slot,
            level,
            is_dirty: false,
            charge,
            pool: Arc::clone(&self.shared),
        };
        Ok(Block {
            inner: Arc::new(inner),
        })
    }

    /// What is held at this moment.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        let mut stats = PoolStats::default();
        for arena in self.shared.arenas().values() {
            stats.held_blocks += arena.taken();
            stats.held_bytes += (arena.taken() * arena.slot_bytes()) as u64;
            stats.mapped_bytes += arena.mapped_bytes() as u64;
        }
        stats
    }

    /// Checks that no slot is lost or held twice, and that what is held is charged.
    ///
    /// # Errors
    /// A description of the first law that is broken.
    pub fn check_conservation(&self) -> Result<(), String> {
        let arenas = self.shared.arenas();
        let mut held = 0;
        for arena in arenas.values() {
            arena
                .check_conservation()
                .map_err(|e| format!("arena of {} bytes: {e}", arena.slot_bytes()))?;
            held += (arena.taken() * arena.slot_bytes()) as u64;
        }
        let charged = self.shared.budget.snapshot().of_kind(ChargeKind::Kv);
        if held > charged {
            return Err(format!("blocks hold {held} bytes, {charged} are charged"));
        }
        self.shared.budget.check_conservation()
    }
}

impl fmt::Debug for KvPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvPool")
            .field("block_bytes", &self.shared.block_bytes)
            .field("block_tokens", &self.shared.block_tokens)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

struct Inner {
    base: NonNull<u8>,
    len_bytes: usize,
    slot: SlotId,
    level: Level,
    /// Whether anyone could have written: untouched pages need not be given back.
    is_dirty: bool,
    /// Held for its drop: released after the slot was put back.
    charge: Charge,
    pool: Arc<Shared>,
}

// SAFETY: the bytes belong to this value alone until its drop, have no thread affinity, and are
// written only through `&mut Inner`.
unsafe impl Send for Inner {}
// SAFETY: as above; `&Inner` only reads.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        let slot_bytes = self.len_bytes.next_multiple_of(page_bytes());
        debug_assert_eq!(slot_bytes as u64, self.charge.bytes());
        if self.is_dirty {
            // SAFETY: the slot is ours until `put_back`, is made of whole pages of a mapped region,
            // and the last claim on it is being dropped, so no reference into it is alive.
            unsafe { crate::region::decommit(self.base, slot_bytes) };
        }
        let mut arenas = self.pool.arenas();
        if let Some(arena) = arenas.get_mut(&slot_bytes) {
            arena.put_back(self.slot);
        }
    }
}

/// A claim on the bytes of one block. Cloning shares them; the last claim gives them back.
#[derive(Clone)]
pub struct Block {
    inner: Arc<Inner>,
}

impl Block {
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `len_bytes` bytes of a slot that is ours; they are initialized (zeroed pages), and
        // written only by `bytes_mut`, which needs the only claim, mutably.
        unsafe { std::slice::from_raw_parts(self.inner.base.as_ptr(), self.inner.len_bytes) }
    }

    /// The bytes, to write, if this is the only claim.
    #[must_use]
    pub fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        let inner = Arc::get_mut(&mut self.inner)?;
        inner.is_dirty = true;
        // SAFETY: as in `bytes`; `&mut Inner` out of the Arc proves that there is no other claim.
        Some(unsafe { std::slice::from_raw_parts_mut(inner.base.as_ptr(), inner.len_bytes) })
    }

    /// How the bytes are to be read.
    #[must_use]
    pub fn level(&self) -> Level {
        self.inner.level
    }

    /// Bytes charged: the length in whole pages.
    #[must_use]
    pub fn charged_bytes(&self) -> u64 {
        self.inner.charge.bytes()
    }

    /// Whether somebody else claims the same bytes.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.claims() > 1
    }

    /// Number of claims on these bytes.
    #[must_use]
    pub fn claims(&self) -> usize {
        Arc::strong_count(&self.inner)
    }

    /// Whether both claim the same bytes.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// A block of its own with the same bytes.
    ///
    /// # Errors
    /// [`OverBudget`] when there is no room for a second one.
    pub fn to_copy(&self) -> Result<Self, OverBudget> {
        let pool = KvPool {
            shared: Arc::clone(&self.inner.pool),
        };
        let mut copy = pool.allocate_at(self.inner.level, self.inner.len_bytes)?;
        if let Some(bytes) = copy.bytes_mut() {
            bytes.copy_from_slice(self.bytes());
        }
        Ok(copy)
    }

    /// The pool it came from.
    #[must_use]
    pub fn pool(&self) -> KvPool {
        KvPool {
            shared: Arc::clone(&self.inner.pool),
        }
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block")
            .field("level", &self.inner.level)
            .field("len_bytes", &self.inner.len_bytes)
            .field("claims", &self.claims())
            .finish_non_exhaustive()
    }
}
