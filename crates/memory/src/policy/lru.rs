//! Least recently used.
//!
//! The block whose last use is longest ago goes. What most engines do.
//!
//! *Not* under scans: a burst of prompts that never return (a batch job, a crawl) pushes out everything
//! that does.

use super::{Facts, Id, Policy, Queue};

/// See the [module's description](self).
#[derive(Clone, Debug, Default)]
pub struct Lru {
    queue: Queue,
}

impl Policy for Lru {
    fn name(&self) -> &'static str {
        "lru"
    }

    fn insert(&mut self, id: Id, _: &Facts) {
        self.queue.push_back(id);
    }

    fn touch(&mut self, id: Id, _: &Facts) {
        if self.queue.contains(id) {
            self.queue.push_back(id);
        }
    }

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
