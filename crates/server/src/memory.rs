//! The memory over HTTP: what it holds and why, and the budget that can be changed.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use neap_engine::{AdapterState, AttendedTokens};
use neap_memory::cache::Census;
use neap_memory::pressure::watch::Watch;
use neap_memory::{Budget, ChargeKind, Level};
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::auth::Peer;
use crate::error::{ApiError, json_response};
use crate::fields::{Fields, parse_size};
use crate::metrics;
use crate::report::{Remote, Report};

/// `GET /memory`.
pub async fn show(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let peer = request.extensions().get::<Peer>();
    app.keys().admin(request.headers(), peer)?;
    app.engine.refresh().await;
    Ok(json_response(StatusCode::OK, &describe(&app)))
}

/// `PUT /memory/budget` with `{"bytes": 1073741824}` or `{"bytes": "1GiB"}`.
pub async fn set_budget(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let peer = request.extensions().get::<Peer>();
    app.keys().admin(request.headers(), peer)?;
    let body = app.read_json(request).await?;
    let bytes = wanted_bytes(&body)?;
    let least = least_bytes(&app);
    if bytes < least {
        let message = format!(
            "`bytes` must be at least {least}: the layers in use, scratch and one block of keys and values"
        );
        return Err(ApiError::field("bytes", message));
    }
    set_limit(&app, bytes).await;
    app.engine.refresh().await;
    Ok(json_response(StatusCode::OK, &describe(&app)))
}

/// What the operator has set.
pub fn limit_set(app: &App) -> u64 {
    let watched = app.pressure.as_ref().map(Watch::operator_limit);
    watched.unwrap_or_else(|| app.budget.limit())
}

/// Sets the budget; the system may have less.
pub async fn set_limit(app: &App, bytes: u64) {
    match &app.pressure {
        Some(watch) => {
            watch.set_operator_limit(bytes);
            wait_for_limit(&app.budget, bytes).await;
        }
        None => {
            app.budget.set_limit(bytes);
        }
    }
}

fn wanted_bytes(body: &Value) -> Result<u64, ApiError> {
    let fields = Fields::of(body)?;
    let must = "a number of bytes, or a size such as \"512MiB\" or \"2GiB\"";
    let wrong = || fields.wrong("bytes", must);
    match fields.value("bytes").ok_or_else(wrong)? {
        Value::String(text) => parse_size(text).ok_or_else(wrong),
        number => number.as_u64().ok_or_else(wrong),
    }
}

/// What can't be given back, and one block to run at all.
pub fn least_bytes(app: &App) -> u64 {
    let ledger = app.budget.snapshot();
    let fixed = ledger.charged - ledger.of_kind(ChargeKind::Kv);
    let report = app.engine.shared.report();
    fixed.saturating_sub(report.releasable_weight_bytes) + report.block_bytes
}

/// The watch follows within one reading. It may set less, where the system has not so much.
async fn wait_for_limit(budget: &Budget, bytes: u64) {
    for _ in 0..50 {
        if budget.limit() == bytes {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Cached blocks by level.
fn levels(report: &Report) -> Vec<Value> {
    let levels = Level::ALL.iter().zip(&report.levels);
    let describe = |(level, census): (&Level, &Census)| {
        json!({
            "level": level.name(),
            "blocks": census.blocks,
            "in_use_blocks": census.in_use_blocks,
            "charged_bytes": census.charged_bytes,
        })
    };
    levels.map(describe).collect()
}

/// What was attended to, by level.
fn attended(report: &Report, tell: impl Fn(u64) -> Value) -> Value {
    let AttendedTokens { hot, int8, int4 } = report.attended;
    json!({"hot": tell(hot), "int8": tell(int8), "int4": tell(int4)})
}

fn adapters(report: &Report) -> Vec<Value> {
    let describe = |a: &AdapterState| {
        json!({
            "name": a.name, "path": a.path, "bytes": a.bytes, "is_loaded": a.is_loaded,
        })
    };
    report.adapters.iter().map(describe).collect()
}

/// What the store that processes share did.
fn remote(remote: &Remote, tokens: u64) -> Value {
    let stats = &remote.stats;
    json!({
        "store": remote.name,
        "is_left_alone": stats.is_left_alone,
        // These count as found hot besides.
        "tokens": tokens,
        "read_blocks": stats.hits,
        "read_bytes": stats.read_bytes,
        "missing_blocks": stats.misses,
        "written_blocks": stats.written_blocks,
        "written_bytes": stats.written_bytes,
        "already_there_blocks": stats.already_there,
        "damaged_blocks": stats.damaged,
        "failed_calls": stats.failed,
        "timed_out_calls": stats.timed_out,
        "skipped_calls": stats.skipped,
        "dropped_writes": stats.dropped_writes,
    })
}

/// What the prefix cache holds, and what it was asked.
fn cached(report: &Report) -> Value {
    let cache = &report.cache;
    json!({
        "blocks": report.cached_blocks,
        "levels": levels(report),
        "freeable_bytes": report.freeable_bytes,
        "asked_tokens": cache.asked_tokens,
        "hot_hit_tokens": cache.hot_hit_tokens,
        "lossy_hit_tokens": cache.lossy_hit_tokens,
        "packed_hit_tokens": cache.packed_hit_tokens,
        "disk_hit_tokens": cache.disk_hit_tokens,
        "int8_blocks": cache.int8_blocks,
        "int4_blocks": cache.int4_blocks,
        "promoted_blocks": cache.promoted_blocks,
        "trimmed_blocks": cache.trimmed_blocks,
        "packed_blocks": cache.packed_blocks,
        "spilled_blocks": cache.spilled_blocks,
        "dropped_blocks": cache.dropped_blocks,
        "failed_blocks": cache.failed_blocks,
    })
}

/// Everything that `/memory` tells.
fn describe(app: &App) -> Value {
    let ledger = app.budget.snapshot();
    let report = app.engine.shared.report();
    let kinds: Map<String, Value> = ChargeKind::ALL
        .iter()
        .map(|&kind| (kind.name().to_owned(), ledger.of_kind(kind).into()))
        .collect();
    let pairs = report.attended.pairs() as f64;
    let pool = report.pool.map(|p| {
        json!({
            "held_blocks": p.held_blocks,
            "held_bytes": p.held_bytes,
            "kept_bytes": p.kept_bytes,
            "mapped_bytes": p.mapped_bytes,
            "block_bytes": report.block_bytes,
            "block_tokens": report.block_tokens,
        })
    });
    let decisions: Vec<Value> = report.decisions.iter().map(|d| d.to_json()).collect();
    let requests: Vec<Value> = report.requests.iter().map(|r| json!({
        "id": r.id, "prompt_tokens": r.prompt_tokens, "new_tokens": r.new_tokens, "age_ms": r.age_ms,
    })).collect();
    json!({
        "model": app.serving.now().id,
        "budget": {
            "limit_bytes": ledger.limit,
            "soft_limit_bytes": ledger.soft_limit,
            "charged_bytes": ledger.charged,
            "peak_charged_bytes": ledger.peak_charged,
            "least_bytes": least_bytes(app),
            "releasable_weight_bytes": report.releasable_weight_bytes,
            "refusals": ledger.refusals,
            "by_kind": kinds,
        },
        "rss_bytes": neap_memory::resident::rss_bytes(),
        "kv_usage": metrics::kv_usage(&report, &app.budget),
        "cache": cached(&report),
        "attended_tokens": attended(&report, |tokens| json!(tokens)),
        // Null before there was any.
        "attended_share": attended(&report, |tokens| json!(tokens as f64 / pairs)),
        "pool": pool,
        "remote": report.remote.as_ref().map(|r| remote(r, report.cache.remote_tokens)),
        "adapters": adapters(&report),
        "engine": {
            "running": report.running,
            "waiting": report.waiting,
            "steps": report.steps,
            "step_seconds": report.stepping.as_secs_f64(),
            "governor_seconds": report.cache.weighing.as_secs_f64(),
            "preemptions": report.preemptions,
            "generation_tokens": app.engine.shared.metrics.generation_tokens.get(),
            "requests": requests,
        },
        "decisions": decisions,
        "limit_changes": limit_changes(app),
    })
}

/// Why the limit is what it is, latest first.
fn limit_changes(app: &App) -> Vec<Value> {
    let log = app.pressure.as_ref().map_or_else(Vec::new, |w| w.log());
    let entries = log.iter().rev().take(32).map(|entry| {
        json!({
            "since_start_ms": entry.at_ms,
            "before_bytes": entry.before,
            "after_bytes": entry.decision.target,
            "reason": entry.decision.reason.to_string(),
        })
    });
    entries.collect()
}
