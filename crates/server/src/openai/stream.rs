//! Answers as they come: server-sent events.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures_core::Stream;
use neap_engine::{Event, TokenLogprob, Usage};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Generation;
use super::answer::{Call, Head, Shape, finish_reason, logprobs_json, usage_json};
use super::calls::{CallReader, Piece};
use crate::app::App;
use crate::auth::Peer;
use crate::error::ApiError;
use crate::serving::Lease;
use crate::worker::Indexed;

/// Chunks that wait for the client at most; then its slowness is felt, and timed.
const CHUNKS_WAITING: usize = 64;

/// The client has left, or takes nothing.
struct Gone;

/// What one shape of answer says as its events come: pieces of the body, each a whole server-sent event.
pub trait Frames: Send + 'static {
    /// Before the first event.
    fn begin(&mut self, out: &mut Vec<String>);

    /// What an event of the request `index` says.
    ///
    /// # Errors
    /// The stream ends with [`Self::fail`].
    fn take(&mut self, index: usize, event: Event, out: &mut Vec<String>) -> Result<(), ApiError>;

    /// Every request has ended.
    fn is_complete(&self) -> bool;

    /// After the last event.
    fn end(&mut self, out: &mut Vec<String>);

    /// There is no status any more: the error is the stream's last word.
    fn fail(&mut self, why: &ApiError, out: &mut Vec<String>);
}

/// The response; its body is written by a task of its own.
pub fn respond(
    app: &App,
    mut frames: impl Frames,
    mut events: mpsc::Receiver<Indexed>,
    peer: Option<Peer>,
) -> Response {
    let (chunks, body) = mpsc::channel(CHUNKS_WAITING);
    let client = Client {
        chunks,
        timeout: app.live().slow_client,
        peer,
    };
    tokio::spawn(async move {
        // Either way the events are dropped here, and with them what is still running.
        let _ = pump(&mut frames, &mut events, &client).await;
    });
    let mut response = Response::new(Body::from_stream(Chunks(body)));
    let headers = response.headers_mut();
    let value = HeaderValue::from_static;
    headers.insert(header::CONTENT_TYPE, value("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, value("no-cache"));
    // Reverse proxies that gather answers let this one through.
    headers.insert("x-accel-buffering", value("no"));
    response
}

async fn pump(
    frames: &mut impl Frames,
    events: &mut mpsc::Receiver<Indexed>,
    client: &Client,
) -> Result<(), Gone> {
    let mut out = Vec::new();
    frames.begin(&mut out);
    while !frames.is_complete() {
        client.send(&mut out).await?;
        let next = tokio::select! {
            () = client.chunks.closed() => return Err(Gone),
            next = events.recv() => next,
        };
        let taken = match next {
            Some((index, event)) => frames.take(index, event, &mut out),
            None => Err(ApiError::unavailable("the engine has ended")),
        };
        if let Err(why) = taken {
            frames.fail(&why, &mut out);
            return client.send(&mut out).await;
        }
    }
    frames.end(&mut out);
    client.send(&mut out).await
}

/// A server-sent event without a name.
pub fn data(value: &Value) -> String {
    format!("data: {value}\n\n")
}

/// The chunks of chats and completions.
pub struct Chunked {
    model: Lease,
    head: Head,
    n: usize,
    include_usage: bool,
    wants_logprobs: bool,
    /// What stands before each choice's text.
    echo: Vec<String>,
    choices: Vec<Progress>,
}

/// How far one choice has come.
#[derive(Default)]
struct Progress {
    reader: Option<CallReader>,
    /// Calls begun.
    calls: usize,
    usage: Option<Usage>,
    /// Where its next token begins, in characters.
    offset: usize,
}

impl Chunked {
    /// For the answer to `generation`.
    pub fn new(model: Lease, head: Head, generation: &Generation) -> Self {
        let choices = generation.prompts.len() * generation.params.n;
        let progress = || Progress {
            reader: generation.calls.map(CallReader::new),
            ..Progress::default()
        };
        Self {
            model,
            head,
            n: generation.params.n,
            include_usage: generation.params.include_usage,
            wants_logprobs: generation.top_logprobs.is_some(),
            echo: generation.echo.clone(),
            choices: std::iter::repeat_with(progress).take(choices).collect(),
        }
    }

    /// The text of an event, as what it says.
    fn pieces(&mut self, index: usize, text: &str, is_last: bool) -> Vec<Piece> {
        let Some(reader) = &mut self.choices[index].reader else {
            return vec![Piece::Text(text.to_owned())];
        };
        let mut pieces = reader.push(text);
        if is_last {
            pieces.extend(reader.finish());
        }
        pieces
    }

    /// The delta that a piece of a chat makes.
    fn delta(&mut self, index: usize, piece: Piece) -> Value {
        let calls = &mut self.choices[index].calls;
        let call = |at: usize, more: Value| {
            let mut call = json!({"index": at});
            if let (Some(call), Value::Object(more)) = (call.as_object_mut(), more) {
                call.extend(more);
            }
            json!({"tool_calls": [call]})
        };
        match piece {
            Piece::Text(text) if text.is_empty() => json!({}),
            Piece::Text(text) => json!({"content": text}),
            Piece::Call(name) => {
                *calls += 1;
                call(*calls - 1, Call::new(name).to_json())
            }
            Piece::Arguments(more) => call(*calls - 1, json!({"function": {"arguments": more}})),
        }
    }

    fn piece(
        &mut self,
        index: usize,
        piece: Piece,
        tokens: &[Vec<TokenLogprob>],
        finish: Option<&str>,
    ) -> String {
        let logprobs = if self.wants_logprobs && !tokens.is_empty() {
            let tokenizer = &self.model.tokenizer;
            let offset = &mut self.choices[index].offset;
            logprobs_json(self.head.shape, tokens, offset, tokenizer)
        } else {
            Value::Null
        };
        let choice = match (self.head.shape, piece) {
            (Shape::Completion, Piece::Text(text)) => json!({
                "index": index, "text": text, "logprobs": logprobs, "finish_reason": finish,
            }),
            (_, piece) => json!({
                "index": index, "delta": self.delta(index, piece), "logprobs": logprobs, "finish_reason": finish,
            }),
        };
        self.body(choice)
    }

    fn body(&self, choice: Value) -> String {
        let mut body = self.head.body(true, vec![choice]);
        if self.include_usage {
            body.insert("usage".into(), Value::Null);
        }
        data(&body.into())
    }
}

impl Frames for Chunked {
    /// Roles, or the prompts that are echoed.
    fn begin(&mut self, out: &mut Vec<String>) {
        for index in 0..self.choices.len() {
            let choice = match (self.head.shape, self.echo.get(index / self.n)) {
                (Shape::Chat, _) => json!({
                    "index": index,
                    "delta": {"role": "assistant", "content": ""},
                    "logprobs": null,
                    "finish_reason": null,
                }),
                (Shape::Completion, Some(echo)) => {
                    json!({"index": index, "text": echo, "logprobs": null, "finish_reason": null})
                }
                (Shape::Completion, None) | (Shape::Response, _) => continue,
            };
            out.push(self.body(choice));
        }
    }

    fn take(&mut self, index: usize, event: Event, out: &mut Vec<String>) -> Result<(), ApiError> {
        match event {
            Event::Token { text, logprobs, .. } => {
                let mut pieces = self.pieces(index, &text, false).into_iter();
                let is_empty = |p: &Piece| matches!(p, Piece::Text(text) if text.is_empty());
                let first = pieces
                    .next()
                    .filter(|p| self.wants_logprobs || !is_empty(p));
                // A token's log probabilities come once, with or without certain text.
                let first =
                    first.or_else(|| self.wants_logprobs.then(|| Piece::Text(String::new())));
                let mut tokens = vec![logprobs];
                for piece in first.into_iter().chain(pieces) {
                    out.push(self.piece(index, piece, &std::mem::take(&mut tokens), None));
                }
            }
            Event::Finished {
                reason,
                text,
                usage,
                ..
            } => {
                let mut pieces = self.pieces(index, &text, true);
                let last = pieces.pop().unwrap_or_else(|| Piece::Text(String::new()));
                for piece in pieces {
                    out.push(self.piece(index, piece, &[], None));
                }
                let calls_before = self.choices[index].calls;
                let has_calls = calls_before > 0 || matches!(last, Piece::Call(_));
                let reason = finish_reason(reason, has_calls)?;
                self.choices[index].usage = Some(usage);
                out.push(self.piece(index, last, &[], Some(reason)));
            }
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.choices.iter().all(|c| c.usage.is_some())
    }

    fn end(&mut self, out: &mut Vec<String>) {
        if self.include_usage {
            let usages: Vec<Usage> = self.choices.iter().filter_map(|c| c.usage).collect();
            let mut body = self.head.body(true, Vec::new());
            body.insert("usage".into(), usage_json(&usages, self.n));
            out.push(data(&body.into()));
        }
        out.push("data: [DONE]\n\n".into());
    }

    fn fail(&mut self, why: &ApiError, out: &mut Vec<String>) {
        out.push(data(&why.to_json()));
    }
}

/// The way to the client.
struct Client {
    chunks: mpsc::Sender<Bytes>,
    timeout: std::time::Duration,
    peer: Option<Peer>,
}

impl Client {
    async fn send(&self, frames: &mut Vec<String>) -> Result<(), Gone> {
        for frame in frames.drain(..) {
            self.write(frame).await?;
        }
        Ok(())
    }

    async fn write(&self, text: String) -> Result<(), Gone> {
        let sending = self.chunks.send(Bytes::from(text));
        match tokio::time::timeout(self.timeout, sending).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Gone),
            Err(_) => {
                tracing::warn!("a client takes nothing: its stream is cut");
                if let Some(peer) = &self.peer {
                    peer.abort.notify_one();
                }
                Err(Gone)
            }
        }
    }
}

/// The receiving end as a body.
struct Chunks(mpsc::Receiver<Bytes>);

impl Stream for Chunks {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|chunk| chunk.map(Ok))
    }
}
