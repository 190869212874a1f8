//! Counters and histograms, and their text for Prometheus.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use neap_memory::remote::RemoteStats;
use neap_memory::{Budget, ChargeKind, Level};

use crate::report::Report;

/// A number that only grows.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The sum so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of a histogram's buckets, in seconds.
const BOUNDS_S: [f64; 15] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0,
];

/// How often a time fell between two bounds.
#[derive(Default)]
pub struct Histogram {
    /// One for each bound, and one for what is above all.
    buckets: [AtomicU64; BOUNDS_S.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Counts one time.
    pub fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = BOUNDS_S.partition_point(|&bound| bound < seconds);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    fn write(&self, out: &mut Text, names: &[&str], help: &str) {
        let counts: Vec<u64> = self
            .buckets
            .iter()
            .map(|b| b.load(Ordering::Relaxed))
            .collect();
        let sum_s = self.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        for name in names {
            out.head(name, "histogram", help);
            let mut below = 0;
            for (count, bound) in counts.iter().zip(BOUNDS_S) {
                below += count;
                out.line(format_args!("{name}_bucket{{le=\"{bound}\"}} {below}"));
            }
            below += counts[BOUNDS_S.len()];
            out.line(format_args!("{name}_bucket{{le=\"+Inf\"}} {below}"));
            out.line(format_args!("{name}_sum {sum_s}"));
            out.line(format_args!("{name}_count {below}"));
        }
    }
}

/// Everything that is counted.
#[derive(Default)]
pub struct Metrics {
    /// Prompt tokens of finished requests.
    pub prompt_tokens: Counter,
    /// Of these, found in the prefix cache.
    pub cached_tokens: Counter,
    /// Tokens produced.
    pub generation_tokens: Counter,
    /// Tokens computed again after a preemption.
    pub recomputed_tokens: Counter,
    /// Requests that the model or a stop string ended.
    pub stopped: Counter,
    /// Requests that reached their token limit or the context's end.
    pub at_length: Counter,
    /// Requests whose client left.
    pub cancelled: Counter,
    /// Requests whose deadline passed.
    pub late: Counter,
    /// Requests that failed.
    pub failed: Counter,
    /// Calls that were not taken in.
    pub refused: Counter,
    /// From arrival to the first token.
    pub first_token: Histogram,
    /// From each token to the next.
    pub between_tokens: Histogram,
    /// From arrival to the end.
    pub whole_request: Histogram,
}

struct Text(String);

impl Text {
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{line}");
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    /// The same figure under each of `names`.
    fn figure(&mut self, names: &[&str], kind: &str, help: &str, value: impl std::fmt::Display) {
        for name in names {
            self.head(name, kind, help);
            self.line(format_args!("{name} {value}"));
        }
    }

    fn gauge(&mut self, names: &[&str], help: &str, value: impl std::fmt::Display) {
        self.figure(names, "gauge", help, value);
    }

    fn counter(&mut self, names: &[&str], help: &str, value: impl std::fmt::Display) {
        self.figure(names, "counter", help, value);
    }

    fn labelled<'a>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'a str, u64)>,
    ) {
        self.head(name, kind, help);
        for (of, value) in values {
            self.line(format_args!("{name}{{{label}=\"{of}\"}} {value}"));
        }
    }
}

/// Prometheus' text format, 0.0.4. Names that begin with `vllm:` mean what they mean there.
pub fn render(metrics: &Metrics, report: &Report, budget: &Budget) -> String {
    let mut out = Text(String::with_capacity(8192));
    requests(&mut out, metrics, report);
    tokens(&mut out, metrics, report);
    times(&mut out, metrics);
    memory(&mut out, report, budget);
    out.0
}

fn requests(out: &mut Text, metrics: &Metrics, report: &Report) {
    out.gauge(
        &["neap_requests_running", "vllm:num_requests_running"],
        "Requests that hold blocks.",
        report.running,
    );
    out.gauge(
        &["neap_requests_waiting", "vllm:num_requests_waiting"],
        "Requests that wait for room.",
        report.waiting,
    );
    let finished = [
        ("stop", metrics.stopped.get()),
        ("length", metrics.at_length.get()),
        ("abort", metrics.cancelled.get()),
        ("timeout", metrics.late.get()),
        ("error", metrics.failed.get()),
    ];
    let (name, help) = (
        "neap_requests_finished_total",
        "Requests by how they ended.",
    );
    out.labelled(name, "counter", help, "finished_reason", finished);
    let name = "vllm:request_success_total";
    let done = finished
        .into_iter()
        .filter(|(reason, _)| !matches!(*reason, "error" | "timeout"));
    out.labelled(name, "counter", help, "finished_reason", done);
    out.counter(
        &["neap_calls_refused_total"],
        "Calls that were not taken in.",
        metrics.refused.get(),
    );
    out.counter(
        &["neap_preemptions_total", "vllm:num_preemptions_total"],
        "Sequences that gave their blocks up for others.",
        report.preemptions,
    );
    out.counter(&["neap_steps_total"], "Steps computed.", report.steps);
    out.counter(
        &["neap_step_seconds_total"],
        "Time that steps took.",
        report.stepping.as_secs_f64(),
    );
    out.counter(
        &["neap_governor_seconds_total"],
        "Time that the governor took to decide, most of it within steps.",
        report.cache.weighing.as_secs_f64(),
    );
}

fn tokens(out: &mut Text, metrics: &Metrics, report: &Report) {
    out.counter(
        &["neap_prompt_tokens_total", "vllm:prompt_tokens_total"],
        "Prompt tokens of finished requests.",
        metrics.prompt_tokens.get(),
    );
    out.counter(
        &["neap_cached_prompt_tokens_total"],
        "Prompt tokens of finished requests that were found in the prefix cache.",
        metrics.cached_tokens.get(),
    );
    out.counter(
        &[
            "neap_generation_tokens_total",
            "vllm:generation_tokens_total",
        ],
        "Tokens produced.",
        metrics.generation_tokens.get(),
    );
    out.counter(
        &["neap_recomputed_tokens_total"],
        "Tokens computed again after a preemption.",
        metrics.recomputed_tokens.get(),
    );
    let cache = &report.cache;
    let hits = cache.hot_hit_tokens
        + cache.lossy_hit_tokens
        + cache.packed_hit_tokens
        + cache.disk_hit_tokens;
    out.counter(
        &[
            "neap_prefix_cache_queries_total",
            "vllm:prefix_cache_queries_total",
        ],
        "Tokens looked up in the prefix cache.",
        cache.asked_tokens,
    );
    out.counter(
        &[
            "neap_prefix_cache_hits_total",
            "vllm:prefix_cache_hits_total",
        ],
        "Tokens found in the prefix cache.",
        hits,
    );
    let by_level = [
        ("hot", cache.hot_hit_tokens),
        ("lossy", cache.lossy_hit_tokens),
        ("packed", cache.packed_hit_tokens),
        ("disk", cache.disk_hit_tokens),
    ];
    let (name, help) = (
        "neap_prefix_cache_hit_tokens_total",
        "Tokens found, by level.",
    );
    out.labelled(name, "counter", help, "level", by_level);
    levels_used(out, report);
    if let Some(remote) = &report.remote {
        remote_store(out, &remote.stats, cache.remote_tokens);
    }
}

/// What the store that processes share was asked, and how it answered.
fn remote_store(out: &mut Text, stats: &RemoteStats, tokens: u64) {
    let blocks = [
        ("read", stats.hits),
        ("not_there", stats.misses),
        ("written", stats.written_blocks),
        ("already_there", stats.already_there),
        ("damaged", stats.damaged),
        ("failed", stats.failed),
        ("timed_out", stats.timed_out),
        ("skipped", stats.skipped),
        ("dropped", stats.dropped_writes),
    ];
    let (name, help) = (
        "neap_remote_calls_total",
        "Blocks asked of the remote store or offered to it, by what came of it.",
    );
    out.labelled(name, "counter", help, "outcome", blocks);
    let bytes = [("read", stats.read_bytes), ("written", stats.written_bytes)];
    let (name, help) = (
        "neap_remote_bytes_total",
        "Bytes moved from and to the remote store.",
    );
    out.labelled(name, "counter", help, "direction", bytes);
    out.counter(
        &["neap_remote_tokens_total"],
        "Tokens that need not be computed since the remote store had them; they count as found hot besides.",
        tokens,
    );
    out.gauge(
        &["neap_remote_left_alone"],
        "1 while the remote store is left alone after failures.",
        u8::from(stats.is_left_alone),
    );
}

/// What was attended to where, and what became of blocks.
fn levels_used(out: &mut Text, report: &Report) {
    let cache = &report.cache;
    let attended = [
        ("hot", report.attended.hot),
        ("int8", report.attended.int8),
        ("int4", report.attended.int4),
    ];
    let (name, help) = (
        "neap_attended_tokens_total",
        "Pairs of a new token and one that it attended to, by the level of the latter.",
    );
    out.labelled(name, "counter", help, "level", attended);
    let moved = [
        ("int8", cache.int8_blocks),
        ("int4", cache.int4_blocks),
        ("trimmed", cache.trimmed_blocks),
        ("promoted", cache.promoted_blocks),
        ("packed", cache.packed_blocks),
        ("spilled", cache.spilled_blocks),
        ("dropped", cache.dropped_blocks),
        ("failed", cache.failed_blocks),
    ];
    let (name, help) = (
        "neap_cache_blocks_moved_total",
        "Cached blocks by what became of them.",
    );
    out.labelled(name, "counter", help, "move", moved);
}

fn times(out: &mut Text, metrics: &Metrics) {
    metrics.first_token.write(
        out,
        &[
            "neap_time_to_first_token_seconds",
            "vllm:time_to_first_token_seconds",
        ],
        "From arrival to the first token.",
    );
    metrics.between_tokens.write(
        out,
        &[
            "neap_inter_token_latency_seconds",
            "vllm:inter_token_latency_seconds",
        ],
        "From each token to the next.",
    );
    metrics.whole_request.write(
        out,
        &[
            "neap_request_latency_seconds",
            "vllm:e2e_request_latency_seconds",
        ],
        "From arrival to the end.",
    );
}

fn memory(out: &mut Text, report: &Report, budget: &Budget) {
    let ledger = budget.snapshot();
    out.gauge(&["neap_budget_bytes"], "The memory budget.", ledger.limit);
    let kinds = ChargeKind::ALL.iter();
    let charged = kinds.map(|&kind| (kind.name(), ledger.of_kind(kind)));
    let (name, help) = (
        "neap_charged_bytes",
        "Bytes charged to the budget, by kind.",
    );
    out.labelled(name, "gauge", help, "kind", charged);
    out.gauge(
        &["neap_kv_cache_usage_ratio", "vllm:kv_cache_usage_perc"],
        "Part of the room for keys and values that running sequences hold (0 to 1).",
        kv_usage(report, budget),
    );
    let by_level = || Level::ALL.iter().zip(&report.levels);
    let blocks = by_level().map(|(level, census)| (level.name(), census.blocks));
    let (name, help) = ("neap_level_blocks", "Cached blocks, by level.");
    out.labelled(name, "gauge", help, "level", blocks);
    let bytes = by_level().map(|(level, census)| (level.name(), census.charged_bytes));
    let (name, help) = (
        "neap_level_bytes",
        "Bytes of RAM that cached blocks are charged, by level.",
    );
    out.labelled(name, "gauge", help, "level", bytes);
    out.gauge(
        &["neap_cached_blocks"],
        "Blocks that the prefix cache knows.",
        report.cached_blocks,
    );
    if let Some(rss) = neap_memory::resident::rss_bytes() {
        out.gauge(
            &["neap_resident_bytes", "process_resident_memory_bytes"],
            "Resident memory of the process.",
            rss,
        );
    }
}

/// What running sequences hold, as a part of what the budget leaves to keys and values.
pub fn kv_usage(report: &Report, budget: &Budget) -> f64 {
    let ledger = budget.snapshot();
    let kv = ledger.of_kind(ChargeKind::Kv);
    let room = ledger.limit.saturating_sub(ledger.charged - kv);
    if room == 0 {
        return 1.0;
    }
    (kv.saturating_sub(report.freeable_bytes) as f64 / room as f64).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_count_up() {
        let histogram = Histogram::default();
        for ms in [1, 3, 600_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        let mut out = Text(String::new());
        histogram.write(&mut out, &["t"], "Times.");
        for line in [
            "t_bucket{le=\"0.001\"} 1",
            "t_bucket{le=\"0.005\"} 2",
            "t_bucket{le=\"120\"} 2",
            "t_bucket{le=\"+Inf\"} 3",
            "t_count 3",
            "t_sum 600.004",
        ] {
            assert!(out.0.lines().any(|l| l == line), "{line} in {}", out.0);
        }
    }
}
