//! SIEVE (Zhang, Yang, Yue, Vigfusson, Rashmi: "SIEVE is Simpler than LRU", NSDI 2024).
//!
//! One queue in order of arrival, one bit per block, one hand that walks from the oldest to the newest:
//! a block that was used since the hand's last visit is spared once, without moving; the first that was
//! not goes. New blocks behind the hand are sifted out quickly.
//!
//! *Not* for scans that repeat (loops a little larger than the cache): like LRU it then keeps nothing.

use std::collections::HashSet;

use super::{Facts, Id, Policy, Queue};

/// See the [module's description](self).
#[derive(Clone, Debug, Default)]
pub struct Sieve {
    queue: Queue,
    used: HashSet<Id>,
    /// Place in the queue from which the hand goes on.
    hand: u64,
}

impl Policy for Sieve {
    fn name(&self) -> &'static str {
        "sieve"
    }

    fn insert(&mut self, id: Id, facts: &Facts) {
        if self.queue.contains(id) {
            self.touch(id, facts);
        } else {
            self.queue.push_back(id);
        }
    }

    fn touch(&mut self, id: Id, _: &Facts) {
        if self.queue.contains(id) {
            self.used.insert(id);
        }
    }

    fn remove(&mut self, id: Id, _: bool) {
        self.queue.remove(id);
        self.used.remove(&id);
    }

    fn candidate(&mut self, _: u64) -> Option<Id> {
        // Two rounds at most: the first clears every bit.
        for _ in 0..=2 * self.queue.len() {
            let Some((place, id)) = self.queue.at_or_behind(self.hand) else {
                self.hand = 0;
                continue;
            };
            self.hand = place;
            if !self.used.remove(&id) {
                return Some(id);
            }
            self.hand = place + 1;
        }
        self.queue.front()
    }

    fn defer(&mut self, id: Id) {
        if let Some(place) = self.queue.place_of(id) {
            self.hand = place + 1;
        }
    }

    fn len(&self) -> usize {
        self.queue.len()
    }
}
