//! The engine's figures, as they are published for readers on other threads.

use std::time::Duration;

use neap_engine::{AdapterState, AttendedTokens, Engine};
use neap_memory::cache::{CacheStats, Census};
use neap_memory::governor::{Action, LogEntry, Occasion};
use neap_memory::remote::RemoteStats;
use neap_memory::{Level, PoolStats};
use neap_model::decoder::Decoder;
use serde_json::{Value, json};

/// Decisions that are shown at most, the latest.
const DECISIONS_SHOWN: usize = 32;

/// What the engine was like a moment ago.
#[derive(Clone, Default)]
pub struct Report {
    /// Sequences that hold blocks.
    pub running: usize,
    /// Sequences that wait for room.
    pub waiting: usize,
    /// Steps computed.
    pub steps: u64,
    /// Time that they took.
    pub stepping: Duration,
    /// Counters of the prefix cache.
    pub cache: CacheStats,
    /// Cached blocks by level, in the order of `Level::ALL`.
    pub levels: [Census; Level::ALL.len()],
    /// Blocks in the prefix cache.
    pub cached_blocks: usize,
    /// Bytes that the cache could give up.
    pub freeable_bytes: u64,
    /// Bytes of weights that could be read from the model's file at each use instead.
    pub releasable_weight_bytes: u64,
    /// Adapters that requests can choose.
    pub adapters: Vec<AdapterState>,
    /// What was attended to, by level.
    pub attended: AttendedTokens,
    /// The pool.
    pub pool: Option<PoolStats>,
    /// Sequences that gave their blocks up for others so far.
    pub preemptions: u64,
    /// Bytes that one block is charged.
    pub block_bytes: u64,
    /// Tokens in a block.
    pub block_tokens: usize,
    /// The store that processes share, if there is one.
    pub remote: Option<Remote>,
    /// The governor's last decisions, latest first.
    pub decisions: Vec<Decision>,
    /// Requests in the engine.
    pub requests: Vec<RunningRequest>,
}

/// The remote level: where it is, and what it did.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Where the store is.
    pub name: String,
    /// What it did so far.
    pub stats: RemoteStats,
}

/// A request in the engine.
#[derive(Clone, Debug)]
pub struct RunningRequest {
    /// The engine's name for it.
    pub id: u64,
    /// Length of its prompt.
    pub prompt_tokens: usize,
    /// Tokens produced so far.
    pub new_tokens: usize,
    /// Milliseconds since it came.
    pub age_ms: u64,
}

/// One decision of the governor, summed up.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    at_ms: u64,
    occasion: Occasion,
    bytes_to_free: u64,
    candidates: usize,
    frees_bytes: u64,
    short_bytes: u64,
    /// Sunk to int8 or int4.
    quantized: usize,
    /// Left with what layers without a sliding window keep.
    trimmed: usize,
    packed: usize,
    spilled: usize,
    /// Copies in RAM of what is on disk.
    released: usize,
    dropped: usize,
    cost_us: f64,
}

impl Report {
    /// Reads the engine.
    pub fn of<D: Decoder>(engine: &Engine<D>, mut requests: Vec<RunningRequest>) -> Self {
        let (running, waiting) = engine.load();
        let cache = engine.cache();
        let mut decisions: Vec<Decision> = cache.log().entries().map(Decision::of).collect();
        decisions.reverse();
        decisions.truncate(DECISIONS_SHOWN);
        requests.sort_by_key(|r| r.id);
        Self {
            running,
            waiting,
            steps: engine.steps(),
            stepping: Duration::ZERO,
            cache: cache.stats(),
            levels: cache.census(),
            cached_blocks: cache.len_blocks(),
            freeable_bytes: cache.freeable_bytes(),
            releasable_weight_bytes: engine.decoder().releasable_weight_bytes(),
            adapters: engine.adapters(),
            attended: engine.attended(),
            pool: Some(engine.kv().stats()),
            preemptions: engine.preemptions(),
            block_bytes: engine.kv().charged_block_bytes(),
            block_tokens: engine.kv().block_tokens(),
            remote: cache.remote().map(|level| Remote {
                name: level.name(),
                stats: level.stats(),
            }),
            decisions,
            requests,
        }
    }
}

impl Decision {
    fn of(entry: &LogEntry) -> Self {
        let count = |wanted: fn(Action) -> bool| {
            let steps = entry.plan.steps.iter();
            steps.filter(|s| wanted(s.action)).count()
        };
        Self {
            at_ms: entry.at_ms,
            occasion: entry.occasion,
            bytes_to_free: entry.bytes_to_free,
            candidates: entry.candidates,
            frees_bytes: entry.plan.frees_bytes,
            short_bytes: entry.plan.short_bytes,
            quantized: count(|a| matches!(a, Action::Demote(Level::Int8 | Level::Int4))),
            trimmed: count(|a| matches!(a, Action::Trim)),
            packed: count(|a| matches!(a, Action::Demote(Level::Packed))),
            spilled: count(|a| matches!(a, Action::Spill)),
            released: count(|a| matches!(a, Action::DropCopied)),
            dropped: count(|a| matches!(a, Action::Drop)),
            cost_us: entry.plan.steps.iter().map(|s| s.cost_us).sum(),
        }
    }

    /// For `/memory`.
    pub fn to_json(&self) -> Value {
        let reason = match self.occasion {
            Occasion::Admission => "a request needs room",
            Occasion::SoftMark => "the soft mark is passed: room is made ahead of need",
            Occasion::Shrink => "the budget was lowered",
            Occasion::Idle => "nothing has run for a while: memory is given back",
        };
        json!({
            "at_ms": self.at_ms,
            "reason": reason,
            "bytes_to_free": self.bytes_to_free,
            "candidates": self.candidates,
            "frees_bytes": self.frees_bytes,
            "short_bytes": self.short_bytes,
            "quantized_blocks": self.quantized,
            "trimmed_blocks": self.trimmed,
            "packed_blocks": self.packed,
            "spilled_blocks": self.spilled,
            "released_blocks": self.released,
            "dropped_blocks": self.dropped,
            "expected_cost_us": self.cost_us,
        })
    }
}
