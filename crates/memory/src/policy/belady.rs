//! Belady's MIN (Belady: "A study of replacement algorithms for a virtual-storage computer", 1966).
//!
//! The block whose next use is farthest in the future goes. With blocks of one size and one cost no
//! policy saves more, and a block of a prefix tree is never used before its parent, so the bound holds
//! for trees too.
//!
//! *Not* for serving: it needs the future. It is the yardstick in trace replays, which know it.

use std::collections::{BTreeSet, HashMap};

use super::{Facts, Id, Policy};

/// See the [module's description](self).
#[derive(Clone, Debug, Default)]
pub struct Belady {
    /// (next use, order of arrival from the latest to the first, id): the last goes first.
    by_next_use: BTreeSet<(u64, u64, Id)>,
    keys: HashMap<Id, (u64, u64)>,
    arrivals: u64,
}

impl Belady {
    fn put(&mut self, id: Id, next_use: u64) {
        let arrival = match self.keys.get(&id) {
            Some(&(old, arrival)) => {
                self.by_next_use.remove(&(old, arrival, id));
                arrival
            }
            None => {
                self.arrivals += 1;
                self.arrivals
            }
        };
        self.keys.insert(id, (next_use, arrival));
        self.by_next_use.insert((next_use, arrival, id));
    }
}

impl Policy for Belady {
    fn name(&self) -> &'static str {
        "belady"
    }

    fn insert(&mut self, id: Id, facts: &Facts) {
        self.put(id, facts.next_use);
    }

    fn touch(&mut self, id: Id, facts: &Facts) {
        if self.keys.contains_key(&id) {
            self.put(id, facts.next_use);
        }
    }

    fn remove(&mut self, id: Id, _: bool) {
        if let Some((next_use, arrival)) = self.keys.remove(&id) {
            self.by_next_use.remove(&(next_use, arrival, id));
        }
    }

    fn candidate(&mut self, _: u64) -> Option<Id> {
        self.by_next_use.last().map(|&(_, _, id)| id)
    }

    fn defer(&mut self, id: Id) {
        if self.keys.contains_key(&id) {
            self.put(id, 0);
        }
    }

    fn len(&self) -> usize {
        self.keys.len()
    }
}
