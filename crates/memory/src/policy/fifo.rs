//! First in, first out.
//!
//! The oldest block goes, used or not. The yardstick that every other policy must beat.
//!
//! *Not* for prefixes: the system prompt that all requests share comes in first and goes first.

use super::{Facts, Id, Policy, Queue};

/// See the [module's description](self).
#[derive(Clone, Debug, Default)]
pub struct Fifo {
    queue: Queue,
}

impl Policy for Fifo {
    fn name(&self) -> &'static str {
        "fifo"
    }

    fn insert(&mut self, id: Id, _: &Facts) {
        if !self.queue.contains(id) {
            self.queue.push_back(id);
        }
    }

    fn touch(&mut self, _: Id, _: &Facts) {}

    fn remove(&mut self, id: Id, _: bool) {
        self.queue.remove(id);
    }

    fn candidate(&mut self, _: u64) -> Option<Id> {
        self.queue.front()
    }

    fn defer(&mut self, id: Id) {
        if self.queue.contains(id) {
            self.queue.push_back(id);
        }
    }

    fn len(&self) -> usize {
        self.queue.len()
    }
}
