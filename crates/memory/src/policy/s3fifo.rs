//! S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP 2023).
//!
//! New blocks enter a small queue (a tenth of all); those used at least twice there move to the main
//! queue, the others go and are remembered in a ghost list. A block that returns while remembered enters
//! the main queue at once. In the main queue a used block goes round again, at most three times.
//!
//! *Not* for caches of a few dozen blocks (a tenth of them is no filter), nor where the second use comes
//! long after the first, as with conversations and their thinking pauses: the small queue is too short.

use foldhash::HashMap;

use super::{Facts, Id, Policy, Queue};

/// Uses are counted up to this.
const MAX_USES: u8 = 3;

/// See the [module's description](self).
#[derive(Clone, Debug, Default)]
pub struct S3Fifo {
    small: Queue,
    main: Queue,
    ghost: Queue,
    uses: HashMap<Id, u8>,
}

impl S3Fifo {
    fn is_small_due(&self) -> bool {
        self.small.len() > 0 && (self.main.len() == 0 || self.small.len() * 10 > self.len())
    }
}

impl Policy for S3Fifo {
    fn name(&self) -> &'static str {
        "s3-fifo"
    }

    fn insert(&mut self, id: Id, facts: &Facts) {
        if self.uses.contains_key(&id) {
            return self.touch(id, facts);
        }
        self.uses.insert(id, 0);
        if self.ghost.remove(id) {
            self.main.push_back(id);
        } else {
            self.small.push_back(id);
        }
    }

    fn touch(&mut self, id: Id, _: &Facts) {
        if let Some(uses) = self.uses.get_mut(&id) {
            *uses = (*uses + 1).min(MAX_USES);
        }
    }

    fn remove(&mut self, id: Id, was_evicted: bool) {
        if self.uses.remove(&id).is_none() {
            return;
        }
        self.main.remove(id);
        if self.small.remove(id) && was_evicted {
            self.ghost.push_back(id);
        }
        while self.ghost.len() > self.len().max(1) {
            self.ghost.pop_front();
        }
    }

    fn candidate(&mut self, _: u64) -> Option<Id> {
        // Every pass moves a block on or lowers a count, so the loop ends.
        while self.len() > 0 {
            let is_small = self.is_small_due();
            let id = if is_small {
                self.small.front()?
            } else {
                self.main.front()?
            };
            let uses = self.uses.get_mut(&id)?;
            if is_small && *uses > 1 {
                *uses = 0;
                self.small.remove(id);
                self.main.push_back(id);
            } else if !is_small && *uses > 0 {
                *uses -= 1;
                self.main.push_back(id);
            } else {
                return Some(id);
            }
        }
        None
    }

    fn defer(&mut self, id: Id) {
        if self.uses.contains_key(&id) {
            self.small.remove(id);
            self.main.push_back(id);
        }
    }

    fn len(&self) -> usize {
        self.uses.len()
    }
}
