//! The governor: what to demote, spill or drop so that the budget holds at the least expected cost.
//!
//! [`plan`] is a pure function from a snapshot to a plan; carrying it out is the business of whoever holds
//! the blocks. For each candidate and each action it weighs
//!
//! ```text
//!   uses expected within the horizon × (way back afterwards − way back now)  +  work now  +  quality lost
//!   ─────────────────────────────────────────────────────────────────────────────────────────────────────
//!                                          bytes freed now
//! ```
//!
//! and takes the cheapest per byte until enough is freed. If that is not enough with one gentle action per
//! candidate, those that freed little are asked for all they have.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use crate::costs::{CostMeter, Stay};
use crate::level::Level;

#[cfg(test)]
mod tests;

/// A block that may be moved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The caller's name for it.
    pub id: u64,
    /// Where it is now: a level in RAM.
    pub level: Level,
    /// Bytes it is charged now.
    pub bytes: u64,
    /// Bytes it takes when hot.
    pub hot_bytes: u64,
    /// Bytes it is charged once trimmed, where that loses little; `bytes` where it may not be.
    pub trimmed_bytes: u64,
    /// Tokens it holds.
    pub tokens: u64,
    /// Tokens before it in its sequence.
    pub before: u64,
    /// Uses expected per second.
    pub uses_per_s: f64,
    /// Whether a good copy of it is on disk already.
    pub is_on_disk: bool,
    /// The lowest level that it may be attended to at, as its quality, age and place allow.
    pub lowest: Level,
    /// Whether a running sequence attends to it: then it stays attendable.
    pub is_in_use: bool,
    /// Whether it may be let go without a copy (an unpinned leaf).
    pub may_drop: bool,
}

/// A level in RAM that blocks may sink to, as the operator's quality policy allows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sink {
    /// The level.
    pub level: Level,
    /// The level that blocks are attended to at when they come back from there.
    pub comes_back_at: Level,
    /// Bytes there per byte of the hot block, as measured.
    pub ratio: f64,
    /// The price of the loss, in microseconds per token and use; 0 for lossless levels.
    pub quality_price_us: f64,
}

/// All that a plan depends on.
#[derive(Clone, Debug, Default)]
pub struct Situation {
    /// Bytes to free.
    pub bytes_to_free: u64,
    /// Blocks that may be moved.
    pub candidates: Vec<Candidate>,
    /// Levels they may sink to.
    pub sinks: Vec<Sink>,
    /// Bytes that the disk level still takes; 0 without one.
    pub disk_room: u64,
    /// Costs measured on this machine.
    pub costs: CostMeter,
    /// Seconds ahead for which uses are counted; at least 1.
    pub horizon_s: f64,
}

/// What to do with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Keep of it what is read beyond the window.
    Trim,
    /// Re-encode it at a lower level in RAM.
    Demote(Level),
    /// Write it to disk, then free it.
    Spill,
    /// Free it: a copy is on disk.
    DropCopied,
    /// Free it: it will be computed anew if it is needed.
    Drop,
}

/// One step of a plan, with the figures that decided it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The candidate.
    pub id: u64,
    /// What to do with it.
    pub action: Action,
    /// Bytes that frees.
    pub frees_bytes: u64,
    /// Expected cost, in microseconds.
    pub cost_us: f64,
}

/// What to do, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The steps, cheapest per byte first.
    pub steps: Vec<Step>,
    /// Bytes they free.
    pub frees_bytes: u64,
    /// Bytes that are missing still: sequences must be preempted for them.
    pub short_bytes: u64,
}

/// See the [module's description](self).
#[must_use]
pub fn plan(situation: &Situation) -> Plan {
    let mut options = Vec::with_capacity(2 * situation.candidates.len());
    for candidate in &situation.candidates {
        Weighing::new(candidate, situation).push_all(&mut options);
    }
    let mut chosen: BTreeMap<u64, Step> = BTreeMap::new();
    let mut disk_room = situation.disk_room;
    let mut freed = choose(
        cheapest_first(&options),
        situation.bytes_to_free,
        &mut disk_room,
        &mut chosen,
    );
    if freed < situation.bytes_to_free {
        // Second round: the thorough actions, in the same order, in place of the gentle ones.
        options.sort_by(|a, b| {
            b.frees_bytes
                .cmp(&a.frees_bytes)
                .then(per_byte(a).total_cmp(&per_byte(b)))
                .then(a.id.cmp(&b.id))
        });
        freed = choose(
            options.iter().copied(),
            situation.bytes_to_free,
            &mut disk_room,
            &mut chosen,
        );
    }
    let mut steps: Vec<Step> = chosen.into_values().collect();
    steps.sort_by(|a, b| per_byte(a).total_cmp(&per_byte(b)).then(a.id.cmp(&b.id)));
    Plan {
        steps,
        frees_bytes: freed,
        short_bytes: situation.bytes_to_free.saturating_sub(freed),
    }
}

/// The options from the cheapest per byte on. A heap, since most plans need few of many. Ids settle ties, so that one
/// situation has one plan.
fn cheapest_first(options: &[Step]) -> impl Iterator<Item = Step> + '_ {
    let rank = |(index, step): (usize, &Step)| {
        // Costs are not negative, and such numbers are in the order of their bits.
        let cost = per_byte(step).abs().to_bits();
        Reverse((cost, step.id, Reverse(step.frees_bytes), index))
    };
    let mut heap: BinaryHeap<_> = options.iter().enumerate().map(rank).collect();
    std::iter::from_fn(move || heap.pop().map(|Reverse((.., index))| options[index]))
}

fn per_byte(step: &Step) -> f64 {
    step.cost_us / step.frees_bytes.max(1) as f64
}

/// Takes options in order until enough is freed; one that frees more replaces an earlier one of its block.
/// Returns the bytes freed by all that is chosen.
fn choose(
    options: impl Iterator<Item = Step>,
    needed: u64,
    disk_room: &mut u64,
    chosen: &mut BTreeMap<u64, Step>,
) -> u64 {
    let mut freed: u64 = chosen.values().map(|step| step.frees_bytes).sum();
    let second_round = !chosen.is_empty();
    for step in options {
        if freed >= needed {
            break;
        }
        let before = chosen.get(&step.id).map_or(0, |old| old.frees_bytes);
        let replaces = before > 0 && (!second_round || before >= step.frees_bytes);
        if replaces || (step.action == Action::Spill && step.frees_bytes > *disk_room) {
            continue;
        }
        if step.action == Action::Spill {
            *disk_room -= step.frees_bytes;
        }
        freed += step.frees_bytes - before;
        chosen.insert(step.id, step);
    }
    freed
}

/// The lossy levels are for blocks whose quality allows them. Packing is for those that nothing attends to: with loss where
/// there is a way to and their quality allows it, else without, and then for hot ones only.
fn may_sink(candidate: &Candidate, sink: &Sink, packs_with_loss: bool) -> bool {
    if sink.level.is_lossy() {
        return sink.level > candidate.level && sink.level <= candidate.lowest;
    }
    sink.level == Level::Packed
        && candidate.level < Level::Packed
        && !candidate.is_in_use
        && sink.comes_back_at.is_lossy() == packs_with_loss
        && (packs_with_loss || candidate.level == Level::Hot)
}

/// Whether packing a block may lose as much as its quality allows.
fn packs_with_loss(candidate: &Candidate, situation: &Situation) -> bool {
    let with_loss = situation
        .sinks
        .iter()
        .find(|sink| sink.level == Level::Packed && sink.comes_back_at.is_lossy());
    with_loss.is_some_and(|sink| candidate.lowest >= sink.comes_back_at)
}

/// Share of a block's uses that are taken to branch off near its end, where nothing has yet: a judgement. Those compute
/// it, and what is before it, anew; all others find it as it was.
const BRANCHING_SHARE: f64 = 0.01;

/// One candidate on the scales.
struct Weighing<'s> {
    candidate: &'s Candidate,
    situation: &'s Situation,
    /// Uses within the horizon.
    uses: f64,
    /// The way back from where it is.
    now_us: f64,
}

impl<'s> Weighing<'s> {
    fn new(candidate: &'s Candidate, situation: &'s Situation) -> Self {
        let mut weighing = Self {
            candidate,
            situation,
            uses: (candidate.uses_per_s * situation.horizon_s.max(1.0)).max(0.0),
            now_us: 0.0,
        };
        weighing.now_us = weighing.way_back_us(Some(candidate.level), candidate.bytes);
        weighing
    }

    /// Adds every action that the candidate's state allows.
    fn push_all(&self, steps: &mut Vec<Step>) {
        let Candidate { bytes, .. } = *self.candidate;
        self.push_demotions(steps);
        if self.candidate.is_in_use {
            return;
        }
        if self.candidate.trimmed_bytes < bytes {
            steps.push(Step {
                id: self.candidate.id,
                action: Action::Trim,
                frees_bytes: bytes - self.candidate.trimmed_bytes,
                cost_us: self.uses * BRANCHING_SHARE * self.way_back_us(None, 0),
            });
        }
        let from_disk = self.way_back_us(Some(Level::Disk), bytes);
        if self.candidate.is_on_disk {
            steps.push(self.step((Action::DropCopied, bytes), from_disk, 0.0));
        } else if self.situation.disk_room >= bytes {
            let work = self.situation.costs.disk_write.of(bytes);
            steps.push(self.step((Action::Spill, bytes), from_disk, work));
        }
        if self.candidate.may_drop && !self.candidate.is_on_disk {
            let anew = self.way_back_us(None, 0);
            steps.push(self.step((Action::Drop, bytes), anew, 0.0));
        }
    }

    /// Adds every sink that the candidate may go to and takes less room at.
    fn push_demotions(&self, steps: &mut Vec<Step>) {
        let (candidate, costs) = (self.candidate, &self.situation.costs);
        let packs_with_loss = packs_with_loss(candidate, self.situation);
        for sink in &self.situation.sinks {
            if !may_sink(candidate, sink, packs_with_loss) {
                continue;
            }
            let bytes = (candidate.hot_bytes as f64 * sink.ratio).ceil() as u64;
            if bytes >= candidate.bytes {
                continue;
            }
            let work = if sink.level.is_lossy() {
                costs.quantize.of(candidate.hot_bytes)
            } else {
                costs.pack.of(candidate.hot_bytes)
            };
            let quality = sink.quality_price_us * candidate.tokens as f64;
            let way_back = self.way_back_us(Some(sink.level), bytes);
            let demotes = (Action::Demote(sink.level), candidate.bytes - bytes);
            steps.push(self.step(demotes, way_back + quality, work));
        }
    }

    /// From `level`, where it takes `stored_bytes`, or from nowhere.
    fn way_back_us(&self, level: Option<Level>, stored_bytes: u64) -> f64 {
        let stay = Stay {
            before: self.candidate.before,
            tokens: self.candidate.tokens,
            hot_bytes: self.candidate.hot_bytes,
            stored_bytes,
        };
        self.situation.costs.way_back_us(level, &stay)
    }

    fn step(&self, (action, frees_bytes): (Action, u64), way_back_us: f64, work_us: f64) -> Step {
        Step {
            id: self.candidate.id,
            action,
            frees_bytes,
            cost_us: self.uses * (way_back_us - self.now_us).max(0.0) + work_us,
        }
    }
}

/// Why a plan was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// A new request needs room.
    Admission,
    /// The soft mark is passed: work ahead of need.
    SoftMark,
    /// The limit was lowered.
    Shrink,
    /// Nothing has run for a while.
    Idle,
}

/// One entry of the decision log.
#[derive(Clone, Debug, PartialEq)]
pub struct LogEntry {
    /// The caller's clock, in milliseconds.
    pub at_ms: u64,
    /// Why a plan was asked for.
    pub occasion: Occasion,
    /// Bytes to free.
    pub bytes_to_free: u64,
    /// Candidates weighed.
    pub candidates: usize,
    /// The plan.
    pub plan: Plan,
}

/// Steps that a log keeps at most, over all its entries: 40 bytes each.
const LOGGED_STEPS: usize = 1 << 15;

/// The latest decisions, with their figures.
#[derive(Clone, Debug)]
pub struct DecisionLog {
    entries: VecDeque<LogEntry>,
    room: usize,
    steps: usize,
}

impl DecisionLog {
    /// Keeps the latest `room` entries; fewer where their plans are long.
    #[must_use]
    pub fn new(room: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            room: room.max(1),
            steps: 0,
        }
    }

    /// Makes a plan and notes it.
    pub fn plan(&mut self, at_ms: u64, occasion: Occasion, situation: &Situation) -> Plan {
        let plan = plan(situation);
        if occasion == Occasion::Idle && plan.steps.is_empty() {
            // All has sunk: no decision.
            return plan;
        }
        let trims = plan.steps.iter().filter(|step| step.action == Action::Trim);
        tracing::debug!(
            ?occasion,
            bytes_to_free = situation.bytes_to_free,
            candidates = situation.candidates.len(),
            frees_bytes = plan.frees_bytes,
            short_bytes = plan.short_bytes,
            blocks = plan.steps.len(),
            trims = trims.count(),
            "the governor decides"
        );
        self.steps += plan.steps.len();
        while self.entries.len() == self.room || self.steps > LOGGED_STEPS {
            let Some(oldest) = self.entries.pop_front() else {
                break;
            };
            self.steps -= oldest.plan.steps.len();
        }
        self.entries.push_back(LogEntry {
            at_ms,
            occasion,
            bytes_to_free: situation.bytes_to_free,
            candidates: situation.candidates.len(),
            plan: plan.clone(),
        });
        plan
    }

    /// The entries, oldest first.
    pub fn entries(&self) -> impl Iterator<Item = &LogEntry> {
        self.entries.iter()
    }
}
