//! Policies that know part of the future: how much of the offline bound could be known at all?
//!
//! - [`hindsight`]: the cost model with its statistics of the whole trace from the start. It knows what an
//!   online policy with these classes could know at best, and no single block's future.
//! - [`Whether`]: knows of each block whether it is used again, but not when. What it lacks to the bound is
//!   the order of the returns.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use neap_memory::policy::{CostModel, Facts, Id, Policy};

use crate::replay::{Replay, Sizes};
use crate::trace::Request;

/// The cost model as the whole trace has taught it; it learns no more.
#[must_use]
pub fn hindsight(trace: &[Request], next_uses: &[Vec<u64>]) -> CostModel {
    let model = Rc::new(RefCell::new(CostModel::default()));
    // Room for all, on both levels: the one model stands for both, and nothing is evicted.
    let room = Sizes {
        ram_blocks: usize::MAX,
        disk_blocks: usize::MAX,
    };
    Replay::new(room, || Box::new(Shared(Rc::clone(&model)))).run(trace, next_uses);
    let now = trace.last().map_or(0, |request| request.at_ms);
    let taught = model.borrow().clone();
    taught.into_hindsight(now)
}

/// One model behind several handles.
struct Shared(Rc<RefCell<CostModel>>);

impl Policy for Shared {
    fn name(&self) -> &'static str {
        "shared"
    }

    fn insert(&mut self, id: Id, facts: &Facts) {
        self.0.borrow_mut().insert(id, facts);
    }

    fn touch(&mut self, id: Id, facts: &Facts) {
        self.0.borrow_mut().touch(id, facts);
    }

    fn remove(&mut self, id: Id, was_evicted: bool) {
        self.0.borrow_mut().remove(id, was_evicted);
    }

    fn candidate(&mut self, now: u64) -> Option<Id> {
        self.0.borrow_mut().candidate(now)
    }

    fn defer(&mut self, id: Id) {
        self.0.borrow_mut().defer(id);
    }

    fn remembers(&self, id: Id) -> bool {
        self.0.borrow().remembers(id)
    }

    fn len(&self) -> usize {
        self.0.borrow().len()
    }
}

/// See the [module's description](self).
#[derive(Clone, Debug, Default)]
pub struct Whether {
    /// Never used again; what is deferred leaves it.
    dead: BTreeSet<Id>,
    others: CostModel,
}

impl Whether {
    fn note(&mut self, id: Id, facts: &Facts) {
        if facts.next_use == u64::MAX {
            self.dead.insert(id);
        } else {
            self.dead.remove(&id);
        }
    }
}

impl Policy for Whether {
    fn name(&self) -> &'static str {
        "whether"
    }

    fn insert(&mut self, id: Id, facts: &Facts) {
        self.note(id, facts);
        self.others.insert(id, facts);
    }

    fn touch(&mut self, id: Id, facts: &Facts) {
        self.note(id, facts);
        self.others.touch(id, facts);
    }

    fn remove(&mut self, id: Id, was_evicted: bool) {
        self.dead.remove(&id);
        self.others.remove(id, was_evicted);
    }

    fn candidate(&mut self, now: u64) -> Option<Id> {
        let offered = self.others.candidate(now);
        self.dead.first().copied().or(offered)
    }

    fn defer(&mut self, id: Id) {
        if !self.dead.remove(&id) {
            self.others.defer(id);
        }
    }

    fn remembers(&self, id: Id) -> bool {
        self.others.remembers(id)
    }

    fn len(&self) -> usize {
        self.others.len()
    }
}
