//! The cost model: expected cost of bringing a block back, per byte and time that keeping it takes.
//!
//! After LHD (Beckmann, Chen, Cidon: "LHD: Improving Cache Hit Rate by Maximizing Hit Density", NSDI
//! 2018), with the way back as the benefit: a block is worth
//!
//! ```text
//!   (uses expected per unit of time from its age on, in its class) × (cost of its way back) / bytes
//! ```
//!
//! Classes are (uses so far, new tokens of the sequence, first turn or later, partial or full); ages are
//! logarithmic. What happened to the blocks of a class at each age is counted as it happens and fades, so
//! the model follows the load; a class that was seen little is judged by its features (module `hazard`).
//! Blocks that were evicted are remembered for a while by id: their return tells how long they would have
//! had to be kept, which a cache that only sees its own hits never learns.
//!
//! *Not* before it has seen a few thousand uses: until then it is LRU within classes. *Not* where memory
//! for the remembered ids (as many as blocks are held) is dear.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use foldhash::HashMap;

use super::{Facts, Id, Policy, Queue};

mod hazard;

use hazard::{Exposure, densities, factors, hazards, pooled};

/// Classes by uses so far: 0, 1, 2, 3–4, 5–8, more.
const USE_CLASSES: usize = 6;
/// Classes by new tokens of the sequence: below 256, and six doublings, the last open.
const NEW_CLASSES: usize = 7;
/// Classes by turn: first, second, later.
const TURN_CLASSES: usize = 3;
const CLASSES: usize = USE_CLASSES * NEW_CLASSES * TURN_CLASSES * 2;
/// Four ages per doubling, over the whole of `u64`.
const AGES: usize = 256;
/// Events between two renewals of the table of densities; half of it and less at first, so that a level that sees little
/// learns too.
const RENEWAL_EVENTS: u32 = 2048;
const FIRST_RENEWAL_EVENTS: u32 = 128;
/// What remains of old counts at a renewal.
const FADE: f32 = 0.97;
/// Evicted blocks remembered at least; more where more are held.
const REMEMBERED: usize = 1 << 15;
/// Bytes that a block takes, held or remembered: in a table, and twice in a queue.
const KNOWN_BYTES: usize = 2 * size_of::<(Id, Entry)>() + 64;
#[derive(Clone, Copy, Debug)]
struct Entry {
    class: usize,
    uses: u32,
    last_use: u64,
    /// Age class at which it came in: on another level it was not seen, whatever happened to it.
    came_at: usize,
    worth_per_byte: f32,
}

/// Counts of one class: what ended a stay at each age.
#[derive(Clone, Debug)]
struct Counts {
    uses: Vec<f32>,
    ends: Vec<f32>,
    /// Of the stays that ended, those that began at each age, but for the youngest.
    late: Vec<f32>,
    /// Expected uses per unit of time from each age on.
    density: Vec<f32>,
}

/// See the [module's description](self).
#[derive(Clone, Debug)]
pub struct CostModel {
    entries: HashMap<Id, Entry>,
    /// Per class, in order of last use.
    queues: Vec<Queue>,
    counts: Vec<Counts>,
    /// Evicted blocks, in order of eviction.
    gone: HashMap<Id, Entry>,
    gone_order: Queue,
    events: u32,
    /// Events before the next renewal.
    renewal_events: u32,
    /// Evicted blocks remembered at least.
    remembered: usize,
    /// Learns no more.
    is_fixed: bool,
}

impl Default for CostModel {
    fn default() -> Self {
        let counts = Counts {
            uses: vec![0.0; AGES],
            ends: vec![0.0; AGES],
            late: vec![0.0; AGES],
            density: (0..AGES)
                .map(|age| 1.0 / (age_floor(age) as f32 + 1.0))
                .collect(),
        };
        Self {
            entries: HashMap::default(),
            queues: vec![Queue::default(); CLASSES],
            counts: vec![counts; CLASSES],
            gone: HashMap::default(),
            gone_order: Queue::default(),
            events: 0,
            renewal_events: FIRST_RENEWAL_EVENTS,
            remembered: REMEMBERED,
            is_fixed: false,
        }
    }
}

/// Age class of an age: four per doubling.
fn age_class(age: u64) -> usize {
    let age = age.max(1);
    let octave = age.ilog2();
    let quarter = if octave >= 2 {
        (age >> (octave - 2)) & 3
    } else {
        0
    };
    (octave as usize * 4 + quarter as usize).min(AGES - 1)
}

/// Least age of an age class.
fn age_floor(class: usize) -> u64 {
    let (octave, quarter) = (class / 4, class as u64 % 4);
    if octave >= 2 {
        (4 + quarter) << (octave - 2)
    } else {
        1 << octave
    }
}

fn age_width(age: usize) -> f32 {
    age_floor(age + 1).saturating_sub(age_floor(age)).max(1) as f32
}

fn bucket(count: u32) -> usize {
    match count {
        0..=2 => count as usize,
        3..=4 => 3,
        5..=8 => 4,
        _ => 5,
    }
}

/// The class of these features, each below its number of classes.
fn class_from([uses, new, turn, partial]: [usize; 4]) -> usize {
    ((uses * NEW_CLASSES + new) * TURN_CLASSES + turn) * 2 + partial
}

/// The features of a class.
fn features_of(class: usize) -> [usize; 4] {
    let (rest, partial) = (class / 2, class % 2);
    let (rest, turn) = (rest / TURN_CLASSES, rest % TURN_CLASSES);
    [rest / NEW_CLASSES, rest % NEW_CLASSES, turn, partial]
}

fn class_of(uses: u32, facts: &Facts) -> usize {
    let new = (facts.new_tokens / 128).max(1).ilog2() as usize;
    class_from([
        bucket(uses),
        new.min(NEW_CLASSES - 1),
        (facts.turn as usize).min(TURN_CLASSES - 1),
        usize::from(facts.is_partial),
    ])
}

impl CostModel {
    /// From now on it remembers blocks that are not held in so many bytes, or as many as it takes for those that are.
    pub fn remember_within(&mut self, bytes: usize, now: u64) {
        self.remembered = (bytes / KNOWN_BYTES).min(REMEMBERED);
        self.trim_gone(now);
    }

    /// Bytes that what it knows of blocks takes, roughly.
    #[must_use]
    pub fn bytes(&self) -> usize {
        (self.entries.len() + self.gone.len()) * KNOWN_BYTES
    }

    /// Counts a stay that ended, by a use or else, at `end`.
    fn count(&mut self, entry: &Entry, end: u64, by_use: bool) {
        let counts = &mut self.counts[entry.class];
        let age = age_class(end.saturating_sub(entry.last_use));
        if entry.came_at > 0 {
            counts.late[entry.came_at.min(age)] += 1.0;
        }
        let column = if by_use {
            &mut counts.uses
        } else {
            &mut counts.ends
        };
        column[age] += 1.0;
        self.events += 1;
    }

    /// Renews the table of densities when enough has happened since the last time.
    fn renew_if_due(&mut self, now: u64) {
        let known = self.entries.len() + self.gone.len();
        let due = if self.renewal_events < RENEWAL_EVENTS {
            self.renewal_events
        } else {
            RENEWAL_EVENTS.max(u32::try_from(known / 8).unwrap_or(u32::MAX))
        };
        if self.is_fixed || self.events < due {
            return;
        }
        self.events = 0;
        self.renewal_events = (2 * self.renewal_events).min(RENEWAL_EVENTS);
        let mut alive = vec![vec![0.0f32; AGES]; CLASSES];
        let mut late: Vec<Vec<f32>> = self.counts.iter().map(|c| c.late.clone()).collect();
        for entry in self.entries.values().chain(self.gone.values()) {
            let age = age_class(now.saturating_sub(entry.last_use));
            alive[entry.class][age] += 1.0;
            if entry.came_at > 0 {
                late[entry.class][entry.came_at.min(age)] += 1.0;
            }
        }
        let classes: Vec<Exposure> = self
            .counts
            .iter()
            .zip(alive.iter().zip(&late))
            .map(|(c, (alive, late))| Exposure::new((&c.uses, &c.ends), alive, late))
            .collect();
        let pooled = pooled(&classes);
        let factors = factors(&classes, &pooled);
        let oldest = hazard::oldest(&classes);
        for ((counts, class), factor) in self.counts.iter_mut().zip(&classes).zip(factors) {
            let hazards = hazards(class, &pooled, factor);
            densities(&hazards, oldest, &mut counts.density);
            for column in [&mut counts.uses, &mut counts.ends, &mut counts.late] {
                column.iter_mut().for_each(|value| *value *= FADE);
            }
        }
    }

    fn place(&mut self, id: Id, entry: Entry) {
        self.queues[entry.class].push_back(id);
        self.entries.insert(id, entry);
    }

    fn worth(&self, entry: &Entry, now: u64) -> f32 {
        let age = age_class(now.saturating_sub(entry.last_use));
        self.counts[entry.class].density[age] * entry.worth_per_byte
    }

    /// Uses expected per unit of time from now on; 0 for a block that is not held.
    #[must_use]
    pub fn expected_uses(&self, id: Id, now: u64) -> f32 {
        self.entries.get(&id).map_or(0.0, |entry| {
            let age = age_class(now.saturating_sub(entry.last_use));
            self.counts[entry.class].density[age]
        })
    }

    /// The `count` held blocks that are worth least, in order. Those that `may_go` turns down are [deferred](Policy::defer).
    ///
    /// As with [`candidate`](Policy::candidate), the blocks of a class come in the order of their last use.
    pub fn least(&mut self, count: usize, now: u64, may_go: impl Fn(Id) -> bool) -> Vec<Id> {
        self.renew_if_due(now);
        let next = |class: usize, from: u64| {
            let (place, id) = self.queues[class].at_or_behind(from)?;
            // Worths are not negative, and such numbers are in the order of their bits.
            let worth = self.worth(self.entries.get(&id)?, now).to_bits();
            Some(Reverse((worth, class, place, id)))
        };
        let mut heads: BinaryHeap<_> = (0..CLASSES).filter_map(|class| next(class, 0)).collect();
        let (mut least, mut deferred) = (Vec::new(), Vec::new());
        while least.len() < count
            && let Some(Reverse((_, class, place, id))) = heads.pop()
        {
            heads.extend(next(class, place + 1));
            match may_go(id) {
                true => least.push(id),
                false => deferred.push(id),
            }
        }
        deferred.into_iter().for_each(|id| self.defer(id));
        least
    }

    /// A block that was evicted is held again, and nobody used it: as if it had stayed. `false` if it is not remembered.
    pub fn take_back(&mut self, id: Id) -> bool {
        let Some(entry) = self.gone.remove(&id) else {
            return false;
        };
        self.gone_order.remove(id);
        self.place(id, entry);
        true
    }

    /// A model that holds no block, knows what this one has learned by `now`, and learns no more: what an
    /// online policy with these classes could know at best, for trace replays.
    #[must_use]
    pub fn into_hindsight(mut self, now: u64) -> Self {
        self.events = u32::MAX;
        self.renew_if_due(now);
        Self {
            counts: self.counts,
            is_fixed: true,
            ..Self::default()
        }
    }

    /// Forgets the oldest evicted blocks: they did not come back.
    fn trim_gone(&mut self, now: u64) {
        while self.gone_order.len() > (2 * self.entries.len()).max(self.remembered) {
            let Some(id) = self.gone_order.pop_front() else {
                return;
            };
            if let Some(entry) = self.gone.remove(&id) {
                self.count(&entry, now, false);
            }
        }
    }
}

impl Policy for CostModel {
    fn name(&self) -> &'static str {
        "cost"
    }

    fn insert(&mut self, id: Id, facts: &Facts) {
        if self.entries.contains_key(&id) {
            return self.touch(id, facts);
        }
        let last_use = facts.now.saturating_sub(facts.unused_for);
        let mut uses = facts.uses;
        if let Some(entry) = self.gone.remove(&id) {
            self.gone_order.remove(id);
            self.count(&entry, last_use, true);
            uses = uses.max(entry.uses.saturating_add(1));
        }
        let entry = Entry {
            class: class_of(uses, facts),
            uses,
            last_use,
            came_at: match facts.unused_for {
                0 => 0,
                age => age_class(age),
            },
            worth_per_byte: facts.way_back / facts.bytes.max(1) as f32,
        };
        self.place(id, entry);
    }

    fn touch(&mut self, id: Id, facts: &Facts) {
        let Some(mut entry) = self.entries.get(&id).copied() else {
            return;
        };
        self.count(&entry, facts.now, true);
        self.queues[entry.class].remove(id);
        entry.uses = entry.uses.saturating_add(1).max(facts.uses);
        entry.class = class_of(entry.uses, facts);
        (entry.last_use, entry.came_at) = (facts.now, 0);
        entry.worth_per_byte = facts.way_back / facts.bytes.max(1) as f32;
        self.place(id, entry);
    }

    fn remove(&mut self, id: Id, was_evicted: bool) {
        let Some(entry) = self.entries.remove(&id) else {
            return;
        };
        self.queues[entry.class].remove(id);
        if was_evicted {
            self.gone.insert(id, entry);
            self.gone_order.push_back(id);
            self.trim_gone(entry.last_use);
        }
    }

    fn candidate(&mut self, now: u64) -> Option<Id> {
        self.least(1, now, |_| true).pop()
    }

    fn defer(&mut self, id: Id) {
        if let Some(entry) = self.entries.get(&id).copied() {
            self.queues[entry.class].push_back(id);
        }
    }

    fn remembers(&self, id: Id) -> bool {
        self.entries.contains_key(&id) || self.gone.contains_key(&id)
    }

    fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_classes_are_in_order_and_invert() {
        let mut last = 0;
        for age in [
            1u64,
            2,
            3,
            4,
            5,
            6,
            7,
            8,
            9,
            15,
            16,
            1000,
            1 << 40,
            u64::MAX,
        ] {
            let class = age_class(age);
            assert!(class >= last && age_floor(class) <= age, "{age}");
            last = class;
        }
    }

    #[test]
    fn what_comes_from_another_level_is_as_old_as_it_was_there() {
        let mut policy = CostModel::default();
        let facts = |now, unused_for| Facts {
            unused_for,
            ..Facts::at(now)
        };
        policy.insert(1, &facts(1000, 0));
        let partial = Facts {
            is_partial: true,
            ..facts(1000, 900)
        };
        policy.insert(2, &partial);
        // Nothing is learned yet, so the one that was used longer ago is worth less.
        assert_eq!(policy.candidate(1000), Some(2));
        policy.touch(2, &facts(1100, 0));
        assert_eq!(policy.candidate(1200), Some(1));
    }

    #[test]
    fn it_learns_that_a_class_never_returns() {
        let mut policy = CostModel::default();
        let mut now = 0;
        // Full blocks return after 50 units; partial ones never do.
        for round in 0..4000u64 {
            now += 10;
            let partial = Facts {
                is_partial: true,
                ..Facts::at(now)
            };
            policy.insert(1_000_000 + round, &partial);
            policy.insert(round, &Facts::at(now));
            if round >= 5 {
                policy.touch(round - 5, &Facts::at(now));
            }
            while policy.len() > 40 {
                let id = policy.candidate(now).unwrap();
                policy.remove(id, true);
            }
        }
        let density = |uses, is_partial, age| {
            let facts = Facts {
                is_partial,
                ..Facts::at(0)
            };
            policy.counts[class_of(uses, &facts)].density[age_class(age)]
        };
        assert!(
            density(0, false, 10) > 20.0 * density(0, true, 10),
            "full ones return"
        );
        assert!(
            density(0, false, 10) > 20.0 * density(1, false, 10),
            "but only once"
        );
        assert!(
            density(0, false, 40) > 20.0 * density(0, false, 80),
            "and not after their time"
        );
    }
}
