//! Blocks of keys and values, and the pool that hands them out.
//!
//! A [`Block`] is a counted claim on one contiguous, page-aligned run of bytes. Its life:
//!
//! | state | who holds it | what drop does |
//! |---|---|---|
//! | free | the arena; its pages are the system's | – |
//! | kept | the pool, charged, for the next allocation (off unless asked for) | as the last claim's |
//! | exclusive | one `Block`; may be written | pages to the system, slot to the arena, bytes to the budget |
//! | shared | several `Block`s; read only | one claim less; the last one as above |
//!
//! Models whose layers attend in part to a [`Window`] of the newest tokens alone order a block so that those layers come
//! last. A block that is behind the window is [trimmed](KvPool::trim): it becomes its head, at whatever level it is.
//!
//! Lock order: pool, then budget. Pages go back before the bytes are given back to the budget, so that
//! what the process really holds never exceeds what is charged.

use std::collections::BTreeMap;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::arena::{Arena, SlotId};
use crate::budget::{Budget, Charge, ChargeKind, Fill, OverBudget, Reclaim};
use crate::level::Level;
use crate::region::{page_bytes, round_to_pages};

#[cfg(test)]
mod tests;

/// Levels of which a block takes bytes of RAM: the first of [`Level::ALL`].
pub const LEVELS_IN_RAM: usize = Level::Packed as usize + 1;

/// What of a block later tokens read only for a while: its tail, the keys and values of layers with a sliding window.
///
/// ```text
/// 0 ………………………………………………………… head_bytes …………………………………………………… block_bytes
/// [ read by every later token    )[ read by the next `tokens` tokens     )
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// A token attends to the tails of so many newest tokens, itself included.
    pub tokens: usize,
    /// Bytes of a hot block's head.
    pub head_bytes: usize,
}

impl Window {
    /// Whether no token from position `next` on reads the tail of a block that ends before token `end`.
    #[must_use]
    pub fn is_behind(&self, end: usize, next: usize) -> bool {
        end.saturating_add(self.tokens) <= next.saturating_add(1)
    }
}

struct Shared {
    budget: Budget,
    block_bytes: usize,
    block_tokens: usize,
    window: Option<Window>,
    /// Most bytes that `State::kept` may hold.
    reuse_bytes: AtomicU64,
    /// Bytes of the slots of held blocks, by [`Level`].
    level_bytes: [AtomicU64; LEVELS_IN_RAM],
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// One arena per slot size.
    arenas: BTreeMap<usize, Arena>,
    /// Freed blocks whose pages are still there.
    kept: Vec<Kept>,
    kept_bytes: u64,
}

/// A freed slot that still has its pages and its charge.
struct Kept {
    place: Place,
    charge: Charge,
}

/// The bytes of a slot, wherever they are.
#[derive(Clone, Copy)]
struct Place {
    base: NonNull<u8>,
    slot: SlotId,
    slot_bytes: usize,
}

// SAFETY: a `Place` is a plain address; whoever holds it for a taken slot is its only owner.
unsafe impl Send for Place {}
// SAFETY: as above; nothing is read or written through `&Place`.
unsafe impl Sync for Place {}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the slot back to the arena; its pages, if they were touched, to the system.
    fn release(&self, place: Place, is_dirty: bool, charge: Charge) {
        if is_dirty {
            // SAFETY: the slot is ours until `put_back`, is made of whole pages of a mapped region,
            // and the last claim on it is gone, so no reference into it is alive.
            unsafe { crate::region::decommit(place.base, place.slot_bytes) };
        }
        if let Some(arena) = self.state().arenas.get_mut(&place.slot_bytes) {
            arena.put_back(place.slot);
        }
        drop(charge);
    }

    /// Keeps a freed slot with its pages, if that is wanted now; else hands it back to be released.
    fn keep(&self, place: Place, charge: Charge) -> Option<Charge> {
        let most = self.reuse_bytes.load(Ordering::Relaxed);
        if most == 0 || self.budget.fill() != Fill::Normal {
            return Some(charge);
        }
        let mut state = self.state();
        if state.kept_bytes + charge.bytes() > most {
            return Some(charge);
        }
        state.kept_bytes += charge.bytes();
        state.kept.push(Kept { place, charge });
        None
    }

    /// A kept slot of this size, with its charge.
    fn take_kept(&self, slot_bytes: usize) -> Option<Kept> {
        if self.reuse_bytes.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut state = self.state();
        let index = state
            .kept
            .iter()
            .rposition(|kept| kept.place.slot_bytes == slot_bytes)?;
        let kept = state.kept.remove(index);
        state.kept_bytes -= kept.charge.bytes();
        Some(kept)
    }

    /// Takes a slot out of the arena, and charges it.
    fn take_fresh(&self, slot_bytes: usize) -> Result<(Place, Charge), OverBudget> {
        let charge = self.budget.try_charge(ChargeKind::Kv, slot_bytes as u64)?;
        Ok((self.take_slot(slot_bytes)?, charge))
    }

    /// Takes a slot that the caller has a charge for.
    fn take_slot(&self, slot_bytes: usize) -> Result<Place, OverBudget> {
        let mut state = self.state();
        let arena = state
            .arenas
            .entry(slot_bytes)
            .or_insert_with(|| Arena::new(slot_bytes));
        let (slot, base) = arena.take().map_err(|_| {
            self.budget
                .refused_by_system(ChargeKind::Kv, slot_bytes as u64)
        })?;
        Ok(Place {
            base,
            slot,
            slot_bytes,
        })
    }
}

impl Reclaim for Shared {
    fn reclaim(&self, bytes: u64) {
        let mut freed = 0;
        while freed < bytes {
            let mut state = self.state();
            let Some(kept) = state.kept.pop() else {
                return;
            };
            state.kept_bytes -= kept.charge.bytes();
            drop(state);
            freed += kept.charge.bytes();
            self.release(kept.place, true, kept.charge);
        }
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
    /// Bytes of freed blocks kept, and charged, for reuse.
    pub kept_bytes: u64,
    /// Address space mapped; pages that no block uses cost no memory.
    pub mapped_bytes: u64,
    /// `held_bytes` by [`Level`], in the order of [`Level::ALL`].
    pub level_bytes: [u64; LEVELS_IN_RAM],
}

impl KvPool {
    /// A pool of blocks of `block_bytes`, each for `block_tokens` tokens, charged to `budget`.
    ///
    /// # Panics
    /// If either is zero, or `block_bytes` is beyond `isize::MAX` less a page.
    #[must_use]
    pub fn new(budget: &Budget, block_bytes: usize, block_tokens: usize) -> Self {
        Self::with_window(budget, block_bytes, block_tokens, None)
    }

    /// Like [`new`](Self::new), for blocks of which a part is read within `window` only. A head that takes as many
    /// pages as the block makes no difference.
    ///
    /// # Panics
    /// As [`new`](Self::new), and if the head or the window is empty.
    #[must_use]
    pub fn with_window(
        budget: &Budget,
        block_bytes: usize,
        block_tokens: usize,
        window: Option<Window>,
    ) -> Self {
        assert!(
            block_bytes > 0 && block_tokens > 0,
            "a block holds something"
        );
        assert!(
            block_bytes < isize::MAX as usize - page_bytes(),
            "a block fits the address space"
        );
        assert!(
            window.is_none_or(|window| window.tokens > 0 && window.head_bytes > 0),
            "a window holds the token itself, and a head something"
        );
        let block_pages = block_bytes.div_ceil(page_bytes());
        let window = window.filter(|w| w.head_bytes.div_ceil(page_bytes()) < block_pages);
        Self {
            shared: Arc::new(Shared {
                budget: budget.clone(),
                block_bytes,
                block_tokens,
                window,
                reuse_bytes: AtomicU64::new(0),
                level_bytes: Default::default(),
                state: Mutex::new(State::default()),
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

    /// What of a block is read within a window only, if that makes a difference.
    #[must_use]
    pub fn window(&self) -> Option<Window> {
        self.shared.window
    }

    /// Bytes that a trimmed hot block is charged; those of a whole one where there is no window.
    #[must_use]
    pub fn charged_head_bytes(&self) -> u64 {
        let head = |window: Window| window.head_bytes.next_multiple_of(page_bytes()) as u64;
        self.window().map_or(self.charged_block_bytes(), head)
    }

    /// The longest part of the first `tokens` tokens that a sequence can go on from, where block by block
    /// `is_trimmed` says what is held: no block that the next token reads whole is trimmed.
    #[must_use]
    pub fn startable_tokens(&self, tokens: usize, is_trimmed: impl Fn(usize) -> bool) -> usize {
        let (Some(window), block_tokens) = (self.window(), self.block_tokens()) else {
            return tokens;
        };
        let mut startable = tokens;
        for block in (0..tokens.div_ceil(block_tokens)).rev() {
            if window.is_behind((block + 1) * block_tokens, startable) {
                break;
            }
            if is_trimmed(block) {
                startable = block * block_tokens;
            }
        }
        startable
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
        self.allocate_form((level, false), bytes)
    }

    /// Like [`allocate_at`](Self::allocate_at), trimmed or not.
    pub(crate) fn allocate_form(
        &self,
        (level, is_trimmed): (Level, bool),
        bytes: usize,
    ) -> Result<Block, OverBudget> {
        assert!(bytes > 0 && level.is_in_ram(), "a block holds bytes in RAM");
        let budget = &self.shared.budget;
        let slot_bytes = round_to_pages(bytes)
            .ok_or_else(|| budget.refused_by_system(ChargeKind::Kv, u64::MAX))?;
        let (place, charge, is_dirty) = match self.shared.take_kept(slot_bytes) {
            Some(kept) => {
                // SAFETY: the slot was freed by its last claim and taken off the list of kept ones, so
                // its `slot_bytes` writable bytes are ours alone.
                unsafe { std::ptr::write_bytes(kept.place.base.as_ptr(), 0, slot_bytes) };
                (kept.place, kept.charge, true)
            }
            None => {
                let (place, charge) = self.shared.take_fresh(slot_bytes)?;
                (place, charge, false)
            }
        };
        let mut inner = Inner::new(&self.shared, place, (level, bytes), Some(charge));
        (inner.is_dirty, inner.is_trimmed) = (is_dirty, is_trimmed);
        Ok(Block {
            inner: Arc::new(inner),
        })
    }

    /// Puts `bytes` at `level` in the place of `block`, out of the block's own charge: what is needed of it
    /// is kept, the rest given back (see [`Charge::resize`]). So a block can sink to a smaller form while
    /// the budget is over its limit and grants nothing.
    ///
    /// # Errors
    /// Gives the block back unchanged if it is shared, is not smaller afterwards, or the system has no
    /// room.
    pub fn replace(&self, block: Block, level: Level, bytes: &[u8]) -> Result<Block, Block> {
        let form = (level, block.is_trimmed());
        self.resettle(block, form, bytes.len(), |_, out| {
            out.copy_from_slice(bytes);
        })
    }

    /// Keeps the first `bytes` of `block`, its head at the level that it is at, out of its own charge. Like
    /// [`replace`](Self::replace).
    ///
    /// # Errors
    /// Gives the block back unchanged if it is shared, is trimmed or packed already, takes no fewer pages afterwards, or
    /// the system has no room.
    pub fn trim(&self, block: Block, bytes: usize) -> Result<Block, Block> {
        let is_less = bytes.div_ceil(page_bytes()) < block.bytes().len().div_ceil(page_bytes());
        if block.is_trimmed() || !block.level().is_attendable() || !is_less {
            return Err(block);
        }
        let form = (block.level(), true);
        self.resettle(block, form, bytes, |old, out| {
            out.copy_from_slice(&old[..bytes]);
        })
    }

    /// Moves a block into a slot for `bytes` bytes, which `write` fills from the old ones.
    fn resettle(
        &self,
        block: Block,
        (level, is_trimmed): (Level, bool),
        bytes: usize,
        write: impl FnOnce(&[u8], &mut [u8]),
    ) -> Result<Block, Block> {
        let slot_bytes = match round_to_pages(bytes) {
            Some(slot_bytes) if bytes > 0 && level.is_in_ram() => slot_bytes,
            _ => return Err(block),
        };
        if slot_bytes > block.inner.place.slot_bytes
            || !Arc::ptr_eq(&block.inner.pool, &self.shared)
        {
            return Err(block);
        }
        let mut old = match Arc::try_unwrap(block.inner) {
            Ok(inner) => inner,
            Err(inner) => return Err(Block { inner }),
        };
        let Ok(place) = self.shared.take_slot(slot_bytes) else {
            return Err(Block {
                inner: Arc::new(old),
            });
        };
        let charge = match &mut old.charge {
            Some(charge) => charge.split(slot_bytes as u64),
            None => None,
        };
        let mut inner = Inner::new(&self.shared, place, (level, bytes), charge);
        inner.is_trimmed = is_trimmed;
        let mut block = Block {
            inner: Arc::new(inner),
        };
        if let Some(out) = block.bytes_mut() {
            write(old.bytes(), out);
        }
        Ok(block)
    }

    /// Lets the pool keep up to `bytes` of freed blocks with their pages for the next allocations.
    ///
    /// Zeroing pages that are there costs a tenth of having the system take and give them again. They
    /// stay charged, are given back before any charge is refused and when a shrink begins, and none are
    /// kept above the soft mark. 0, the state at first, keeps none and gives back what was kept.
    pub fn set_reuse_bytes(&self, bytes: u64) {
        let before = self.shared.reuse_bytes.swap(bytes, Ordering::Relaxed);
        if before == 0 && bytes > 0 {
            let shared: Arc<dyn Reclaim> = self.shared.clone();
            self.shared.budget.add_reclaimer(Arc::downgrade(&shared));
        }
        let excess = self.shared.state().kept_bytes.saturating_sub(bytes);
        self.shared.reclaim(excess);
    }

    /// What is held at this moment.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        let mut stats = PoolStats::default();
        let state = self.shared.state();
        for arena in state.arenas.values() {
            stats.held_blocks += arena.taken();
            stats.held_bytes += (arena.taken() * arena.slot_bytes()) as u64;
            stats.mapped_bytes += arena.mapped_bytes() as u64;
        }
        stats.held_blocks -= state.kept.len();
        stats.held_bytes -= state.kept_bytes;
        stats.kept_bytes = state.kept_bytes;
        for (sum, bytes) in stats.level_bytes.iter_mut().zip(&self.shared.level_bytes) {
            *sum = bytes.load(Ordering::Relaxed);
        }
        stats
    }

    /// Checks that no slot is lost or held twice, and that what is held is charged.
    ///
    /// # Errors
    /// A description of the first law that is broken.
    pub fn check_conservation(&self) -> Result<(), String> {
        let state = self.shared.state();
        let mut held = 0;
        for arena in state.arenas.values() {
            arena
                .check_conservation()
                .map_err(|e| format!("arena of {} bytes: {e}", arena.slot_bytes()))?;
            held += (arena.taken() * arena.slot_bytes()) as u64;
        }
        let kept: u64 = state.kept.iter().map(|kept| kept.charge.bytes()).sum();
        if kept != state.kept_bytes {
            return Err(format!(
                "{kept} bytes are kept, {} are counted",
                state.kept_bytes
            ));
        }
        let by_level: u64 = self
            .shared
            .level_bytes
            .iter()
            .map(|bytes| bytes.load(Ordering::Relaxed))
            .sum();
        if by_level + kept != held {
            return Err(format!(
                "the levels hold {by_level} bytes and {kept} are kept, of {held}"
            ));
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
    place: Place,
    len_bytes: usize,
    level: Level,
    /// Whether the bytes are those of the head alone.
    is_trimmed: bool,
    /// Whether anyone could have written: untouched pages need not be given back.
    is_dirty: bool,
    /// `None` only while being dropped.
    charge: Option<Charge>,
    pool: Arc<Shared>,
}

impl Inner {
    /// A block of `len_bytes` at `level` in a slot that is the caller's.
    fn new(
        pool: &Arc<Shared>,
        place: Place,
        (level, len_bytes): (Level, usize),
        charge: Option<Charge>,
    ) -> Self {
        pool.level_bytes[level as usize].fetch_add(place.slot_bytes as u64, Ordering::Relaxed);
        Self {
            place,
            len_bytes,
            level,
            is_trimmed: false,
            is_dirty: false,
            charge,
            pool: Arc::clone(pool),
        }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `len_bytes` bytes of a slot that is ours; they are initialized (zeroed pages), and
        // written only by `Block::bytes_mut`, which needs the only claim, mutably.
        unsafe { std::slice::from_raw_parts(self.place.base.as_ptr(), self.len_bytes) }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.pool.level_bytes[self.level as usize]
            .fetch_sub(self.place.slot_bytes as u64, Ordering::Relaxed);
        let Some(mut charge) = self.charge.take() else {
            return;
        };
        // After a `replace` only a part of the charge is left here; such a slot is not kept for reuse.
        if self.is_dirty && charge.bytes() == self.place.slot_bytes as u64 {
            match self.pool.keep(self.place, charge) {
                Some(back) => charge = back,
                None => return,
            }
        }
        self.pool.release(self.place, self.is_dirty, charge);
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
        self.inner.bytes()
    }

    /// The bytes, to write, if this is the only claim.
    #[must_use]
    pub fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        let inner = Arc::get_mut(&mut self.inner)?;
        inner.is_dirty = true;
        // SAFETY: as in `Inner::bytes`; `&mut Inner` out of the Arc proves that there is no other claim.
        Some(unsafe { std::slice::from_raw_parts_mut(inner.place.base.as_ptr(), inner.len_bytes) })
    }

    /// How the bytes are to be read.
    #[must_use]
    pub fn level(&self) -> Level {
        self.inner.level
    }

    /// Whether it is its head alone, at its level: see [`Window`].
    #[must_use]
    pub fn is_trimmed(&self) -> bool {
        self.inner.is_trimmed
    }

    /// Whether it holds all that `other`, a block of the same tokens, holds.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        !self.is_trimmed() || other.is_trimmed()
    }

    /// Bytes of its hot form.
    #[must_use]
    pub fn hot_bytes(&self) -> usize {
        let pool = &self.inner.pool;
        match pool.window {
            Some(window) if self.is_trimmed() => window.head_bytes,
            _ => pool.block_bytes,
        }
    }

    /// Bytes charged: the length in whole pages.
    #[must_use]
    pub fn charged_bytes(&self) -> u64 {
        self.inner.place.slot_bytes as u64
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

    /// A number that no other block has while this one is held.
    #[must_use]
    pub(crate) fn key(&self) -> usize {
        Arc::as_ptr(&self.inner).addr()
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
        let form = (self.inner.level, self.inner.is_trimmed);
        let mut copy = pool.allocate_form(form, self.inner.len_bytes)?;
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
            .field("is_trimmed", &self.inner.is_trimmed)
            .field("claims", &self.claims())
            .finish_non_exhaustive()
    }
}
