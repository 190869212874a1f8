//! Traces of requests for an OpenTelemetry collector: OTLP over HTTP, as JSON.
//!
//! Each request is a span, with one below it until its first token and one from there on. A request that brings a
//! `traceparent` (W3C Trace Context) joins that trace. Spans wait in a bounded queue for a thread that sends them
//! together; a collector that is slow or away costs spans, never a request.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::http::HeaderMap;
use neap_engine::{FinishReason, Usage};
use serde_json::{Value, json};

use crate::openai::random;

/// Spans that wait to be sent at most.
const WAITING: usize = 1024;
/// Spans that are sent together at most, and how long the first of them waits for others.
const TOGETHER: usize = 128;
const PATIENCE: Duration = Duration::from_secs(2);

/// Sends a body to the collector's path for traces.
///
/// # Errors
/// Why it did not arrive.
pub type Send = Box<dyn FnMut(&str) -> Result<(), String> + std::marker::Send>;

/// Where a request stands in a trace that its client began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    trace_id: u128,
    span_id: u64,
    is_sampled: bool,
}

impl Parent {
    /// Reads the `traceparent` header: version, trace, span and flags in hexadecimal. One that is malformed is as if
    /// there was none.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get("traceparent")?.to_str().ok()?;
        let mut parts = text.trim().split('-');
        let (version, trace, span, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_hex = |text: &str, len: usize| {
            text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        let is_sound = is_hex(version, 2)
            && version != "ff"
            && is_hex(trace, 32)
            && is_hex(span, 16)
            && is_hex(flags, 2)
            // Later versions may have more parts.
            && (version != "00" || parts.next().is_none());
        if !is_sound {
            return None;
        }
        let (trace_id, span_id) = (
            u128::from_str_radix(trace, 16).ok()?,
            u64::from_str_radix(span, 16).ok()?,
        );
        let flags = u8::from_str_radix(flags, 16).ok()?;
        (trace_id != 0 && span_id != 0).then_some(Self {
            trace_id,
            span_id,
            is_sampled: flags & 1 == 1,
        })
    }
}

/// A request that has ended.
pub struct Ended<'a> {
    pub operation: &'static str,
    pub model: &'a str,
    pub parent: Option<Parent>,
    pub arrived: Instant,
    pub first_token: Option<Instant>,
    pub reason: &'a FinishReason,
    pub usage: &'a Usage,
}

/// The way to the thread that sends.
#[derive(Clone)]
pub struct Traces {
    spans: SyncSender<[Option<Value>; 3]>,
}

impl Traces {
    /// Begins.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub fn begin(send: Send) -> std::io::Result<Self> {
        let (spans, inbox) = sync_channel(WAITING);
        std::thread::Builder::new()
            .name("neap-traces".into())
            .spawn(move || deliver(&inbox, send))?;
        Ok(Self { spans })
    }

    /// Tells of a request, unless its client wants no trace of it.
    pub fn tell(&self, ended: &Ended<'_>) {
        if ended.parent.is_some_and(|parent| !parent.is_sampled) {
            return;
        }
        // One that finds no room is lost.
        let _ = self.spans.try_send(spans(ended, SystemTime::now()));
    }
}

/// Sends what comes, together as far as it comes together.
fn deliver(inbox: &Receiver<[Option<Value>; 3]>, mut send: Send) {
    let mut was_away = false;
    while let Ok(first) = inbox.recv() {
        let mut batch: Vec<Value> = first.into_iter().flatten().collect();
        let end = Instant::now() + PATIENCE;
        while batch.len() < TOGETHER {
            match inbox.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(more) => batch.extend(more.into_iter().flatten()),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        let sent = send(&body(batch).to_string());
        if let (Err(why), false) = (&sent, was_away) {
            tracing::warn!(why, "traces do not reach the collector");
        }
        was_away = sent.is_err();
    }
}

fn body(spans: Vec<Value>) -> Value {
    json!({"resourceSpans": [{
        "resource": {"attributes": [
            text("service.name", "neap"),
            text("service.version", env!("CARGO_PKG_VERSION")),
        ]},
        "scopeSpans": [{"scope": {"name": "neap"}, "spans": spans}],
    }]})
}

fn text(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

/// 64-bit integers are texts in protobuf's JSON.
fn count(key: &str, value: usize) -> Value {
    json!({"key": key, "value": {"intValue": value.to_string()}})
}

/// The spans of one request, of which `now` is the end.
fn spans(ended: &Ended<'_>, now: SystemTime) -> [Option<Value>; 3] {
    const SERVER: u32 = 2;
    const INTERNAL: u32 = 1;
    const ERROR: u32 = 2;
    let trace_id = ended.parent.map_or_else(
        || u128::from(random()) << 64 | u128::from(random()) | 1,
        |parent| parent.trace_id,
    );
    let end = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let nanos = |at: Instant| {
        let before = end.saturating_sub(at.elapsed());
        before.as_nanos().to_string()
    };
    let span = |(name, kind): (String, u32), parent: Option<u64>, start: String, end: String| {
        let mut span = json!({
            "traceId": format!("{trace_id:032x}"),
            "spanId": format!("{:016x}", random() | 1),
            "name": name,
            "kind": kind,
            "startTimeUnixNano": start,
            "endTimeUnixNano": end,
        });
        if let Some(parent) = parent {
            span["parentSpanId"] = format!("{parent:016x}").into();
        }
        span
    };
    let (start, end_nanos) = (nanos(ended.arrived), end.as_nanos().to_string());
    let name = (format!("{} {}", ended.operation, ended.model), SERVER);
    let upper = ended.parent.map(|parent| parent.span_id);
    let mut request = span(name, upper, start.clone(), end_nanos.clone());
    let reason = ended.reason.to_string();
    request["attributes"] = json!([
        text("gen_ai.operation.name", ended.operation),
        text("gen_ai.request.model", ended.model),
        count("gen_ai.usage.input_tokens", ended.usage.prompt_tokens),
        count("gen_ai.usage.output_tokens", ended.usage.new_tokens),
        count("neap.cached_tokens", ended.usage.cached_tokens),
        count("neap.recomputed_tokens", ended.usage.recomputed_tokens),
        text("neap.finish", &reason),
    ]);
    let has_failed = matches!(
        ended.reason,
        FinishReason::OutOfBudget { .. }
            | FinishReason::GrammarFailed(_)
            | FinishReason::DeadlineExceeded
            | FinishReason::Failed(_)
    );
    if has_failed {
        request["status"] = json!({"code": ERROR, "message": reason});
    }
    let this = request["spanId"]
        .as_str()
        .and_then(|id| u64::from_str_radix(id, 16).ok());
    let first = ended.first_token.map(nanos);
    let until = first.clone().unwrap_or_else(|| end_nanos.clone());
    let begun = span(("first token".to_owned(), INTERNAL), this, start, until);
    let rest = first.map(|first| span(("decode".to_owned(), INTERNAL), this, first, end_nanos));
    [Some(request), Some(begun), rest]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    fn parent(text: &'static str) -> Option<Parent> {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", text.parse().unwrap());
        Parent::of(&headers)
    }

    const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn reads_trace_parents() {
        let sampled = parent(SAMPLED).unwrap();
        assert_eq!(sampled.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!(sampled.span_id, 0xb7ad_6b71_6920_3331);
        assert!(sampled.is_sampled);
        let later = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-more";
        assert!(!parent(later).unwrap().is_sampled);
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(parent(bad), None, "{bad}");
        }
    }

    fn ended<'a>(parent: Option<Parent>, reason: &'a FinishReason, usage: &'a Usage) -> Ended<'a> {
        let arrived = Instant::now();
        Ended {
            operation: "chat",
            model: "tiny",
            parent,
            arrived,
            first_token: Some(arrived),
            reason,
            usage,
        }
    }

    #[test]
    fn spans_hang_together() {
        let usage = Usage {
            prompt_tokens: 7,
            ..Usage::default()
        };
        let ended = ended(parent(SAMPLED), &FinishReason::DeadlineExceeded, &usage);
        let [request, first, decode] = spans(&ended, SystemTime::now()).map(Option::unwrap);
        assert_eq!(request["parentSpanId"], "b7ad6b7169203331");
        assert_eq!(request["name"], "chat tiny");
        assert_eq!(request["status"]["code"], 2);
        for span in [&first, &decode] {
            assert_eq!(span["parentSpanId"], request["spanId"]);
            assert_eq!(span["traceId"], "0af7651916cd43dd8448eb211c80319c");
        }
        assert_eq!(first["endTimeUnixNano"], decode["startTimeUnixNano"]);
        let tokens = &request["attributes"][2];
        assert_eq!(tokens["value"]["intValue"], "7");
    }

    #[test]
    fn what_is_sampled_is_sent() {
        let (sent, bodies) = channel();
        let traces = Traces::begin(Box::new(move |body| {
            sent.send(body.to_owned()).map_err(|why| why.to_string())
        }))
        .unwrap();
        let usage = Usage::default();
        let unwanted = parent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00");
        traces.tell(&ended(unwanted, &FinishReason::Length, &usage));
        traces.tell(&ended(None, &FinishReason::Length, &usage));
        drop(traces);
        let body: Value = serde_json::from_str(&bodies.recv().unwrap()).unwrap();
        let spans = &body["resourceSpans"][0]["scopeSpans"][0]["spans"];
        assert_eq!(spans.as_array().unwrap().len(), 3);
        assert_eq!(spans[0].get("parentSpanId"), None);
        assert!(bodies.recv().is_err());
    }
}
