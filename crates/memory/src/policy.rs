//! Replacement policies: which of the held ids is worth least.
//!
//! A policy knows ids and [`Facts`], never bytes or trees. Its driver owns the blocks and decides what is
//! legal; see [`Policy::candidate`] for how the two meet. One file per policy, each with its source and
//! with when *not* to use it; one suite of contract tests runs over all.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use foldhash::HashMap;

pub mod belady;
pub mod cost;
pub mod fifo;
pub mod lru;
pub mod s3fifo;
pub mod sieve;

#[cfg(test)]
mod contract;

pub use belady::Belady;
pub use cost::CostModel;
pub use fifo::Fifo;
pub use lru::Lru;
pub use s3fifo::S3Fifo;
pub use sieve::Sieve;

/// Names a block to a policy. The same block has the same id when it comes back after an eviction, so
/// that a policy may learn from its return: [`BlockHash::short`](crate::BlockHash::short).
pub type Id = u64;

/// What is known of a block at the moment it is inserted or used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Facts {
    /// The driver's clock, in milliseconds or any other unit, never falling.
    pub now: u64,
    /// Bytes that evicting it frees.
    pub bytes: u64,
    /// What the cheapest way back costs (microseconds, or any other unit).
    pub way_back: f32,
    /// Whether it is the partial block at the end of a sequence.
    pub is_partial: bool,
    /// How many earlier prompts the sequence continues that uses it: 0 for a first turn.
    pub turn: u32,
    /// Tokens of the sequence that no block was remembered for: few in a conversation that goes on, many in
    /// a text that comes once.
    pub new_tokens: u64,
    /// Time since its last use, where it comes from another level; 0 if it is used now.
    pub unused_for: u64,
    /// Uses of the block so far that the driver knows of, as when it comes from another level, whose policy saw them;
    /// 0 if it does not count.
    pub uses: u32,
    /// When it is used next, for the offline bound only; `u64::MAX`: never, or unknown.
    pub next_use: u64,
}

impl Facts {
    /// Facts of one full block among equals.
    #[must_use]
    pub fn at(now: u64) -> Self {
        Self {
            now,
            bytes: 1,
            way_back: 1.0,
            is_partial: false,
            turn: 0,
            new_tokens: 0,
            unused_for: 0,
            uses: 0,
            next_use: u64::MAX,
        }
    }
}

/// A replacement policy.
///
/// To free something the driver asks for the [`candidate`](Self::candidate). If that block is pinned, it
/// says [`defer`](Self::defer) and asks again. If others depend on it (its children in the tree), it
/// evicts one of those instead: then the candidate is offered again until it goes itself. Whatever was
/// evicted, it says [`remove`](Self::remove).
///
/// Uses of a path are told from its end to its start, so that a parent is always the fresher one.
pub trait Policy {
    /// Its name in tables and messages.
    fn name(&self) -> &'static str;

    /// A block that is not held comes in. An id that is held already is used instead.
    fn insert(&mut self, id: Id, facts: &Facts);

    /// A held block is used. Others are ignored.
    fn touch(&mut self, id: Id, facts: &Facts);

    /// A held block goes: evicted for want of room, or for reasons of its own. Others are ignored.
    fn remove(&mut self, id: Id, was_evicted: bool);

    /// The held block that is worth least now. Asking twice without other calls between gives the same.
    fn candidate(&mut self, now: u64) -> Option<Id>;

    /// The candidate cannot go now: offer all others before it.
    fn defer(&mut self, id: Id);

    /// Whether the block is held, or was lately as far as the policy remembers.
    fn remembers(&self, _id: Id) -> bool {
        false
    }

    /// Number of blocks held.
    fn len(&self) -> usize;

    /// Whether none is held.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An ordered queue of distinct ids with removal from the middle: every step O(log n).
#[derive(Clone, Debug, Default)]
pub(crate) struct Queue {
    by_place: BTreeMap<u64, Id>,
    places: HashMap<Id, u64>,
    next_place: u64,
}

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn contains(&self, id: Id) -> bool {
        self.places.contains_key(&id)
    }

    /// Puts `id` at the back, wherever it was before.
    pub(crate) fn push_back(&mut self, id: Id) {
        let place = self.next_place;
        self.next_place += 1;
        if let Some(old) = self.places.insert(id, place) {
            self.by_place.remove(&old);
        }
        self.by_place.insert(place, id);
    }

    pub(crate) fn front(&self) -> Option<Id> {
        self.by_place.first_key_value().map(|(_, &id)| id)
    }

    /// Place and id of the first entry at or behind `place`.
    pub(crate) fn at_or_behind(&self, place: u64) -> Option<(u64, Id)> {
        self.by_place
            .range(place..)
            .next()
            .map(|(&place, &id)| (place, id))
    }

    pub(crate) fn place_of(&self, id: Id) -> Option<u64> {
        self.places.get(&id).copied()
    }

    pub(crate) fn pop_front(&mut self) -> Option<Id> {
        let (_, id) = self.by_place.pop_first()?;
        self.places.remove(&id);
        Some(id)
    }

    pub(crate) fn remove(&mut self, id: Id) -> bool {
        match self.places.remove(&id) {
            Some(place) => self.by_place.remove(&place).is_some(),
            None => false,
        }
    }
}
