//! The admission filter: what was seen once only is not worth writing.
//!
//! Two generations of sets of ids, after the doorkeeper of TinyLFU (Einziger, Friedman, Manes 2017): an id
//! is admitted when it was seen before within the last one or two generations.

use std::collections::HashSet;

use crate::policy::Id;

/// See the [module's description](self).
#[derive(Clone, Debug)]
pub struct Admission {
    young: HashSet<Id>,
    old: HashSet<Id>,
    generation_len: usize,
}

impl Admission {
    /// Remembers between `generation_len` and twice as many ids (about 16 bytes each).
    #[must_use]
    pub fn new(generation_len: usize) -> Self {
        Self {
            young: HashSet::new(),
            old: HashSet::new(),
            generation_len: generation_len.max(1),
        }
    }

    /// Whether `id` was seen before; notes that it was seen now.
    pub fn admit(&mut self, id: Id) -> bool {
        let known = self.young.contains(&id) || self.old.contains(&id);
        if self.young.insert(id) && self.young.len() >= self.generation_len {
            self.old = std::mem::take(&mut self.young);
        }
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_sight_is_admitted_and_old_ids_are_forgotten() {
        let mut filter = Admission::new(10);
        assert!(!filter.admit(1));
        assert!(filter.admit(1));
        for id in 100..120 {
            assert!(!filter.admit(id));
        }
        assert!(!filter.admit(1), "two generations later");
        assert!(filter.young.len() + filter.old.len() <= 20);
    }
}
