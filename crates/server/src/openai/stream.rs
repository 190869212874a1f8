//! Answers as they come: server-sent events.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
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
use super::answer::{Head, Shape, finish_reason, logprobs_json, usage_json};
use crate::app::App;
use crate::auth::Peer;
use crate::error::ApiError;
use crate::worker::Indexed;

/// Chunks that wait for the client at most; then its slowness is felt, and timed.
const CHUNKS_WAITING: usize = 64;

/// A stream that is about to begin.
pub struct Streaming {
    app: Arc<App>,
    head: Head,
    n: usize,
    include_usage: bool,
    wants_logprobs: bool,
    /// What stands before each choice's text.
    echo: Vec<String>,
    usages: Vec<Option<Usage>>,
    /// Where each choice's next token begins, in characters.
    offsets: Vec<usize>,
}

/// The client has left, or takes nothing.
struct Gone;

impl Streaming {
    /// For the answer to `generation`.
    pub fn new(app: Arc<App>, head: Head, generation: &Generation) -> Self {
        let choices = generation.prompts.len() * generation.params.n;
        Self {
            app,
            head,
            n: generation.params.n,
            include_usage: generation.params.include_usage,
            wants_logprobs: generation.top_logprobs.is_some(),
            echo: generation.echo.clone(),
            usages: vec![None; choices],
            offsets: vec![0; choices],
        }
    }

    /// The response; its body is written by a task of its own.
    pub fn respond(self, events: mpsc::Receiver<Indexed>, peer: Option<Peer>) -> Response {
        let (chunks, body) = mpsc::channel(CHUNKS_WAITING);
        tokio::spawn(async move {
            let client = Client {
                chunks,
                timeout: self.app.slow_client,
                peer,
            };
            // Either way the events are dropped here, and with them what is still running.
            let _ = self.pump(events, &client).await;
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
        mut self,
        mut events: mpsc::Receiver<Indexed>,
        client: &Client,
    ) -> Result<(), Gone> {
        self.begin(client).await?;
        while self.usages.iter().any(Option::is_none) {
            let next = tokio::select! {
                () = client.chunks.closed() => return Err(Gone),
                next = events.recv() => next,
            };
            let Some((index, event)) = next else {
                let why = ApiError::unavailable("the engine has ended");
                return client.send(&why.to_json()).await;
            };
            match self.chunk(index, event) {
                Ok(None) => {}
                Ok(Some(chunk)) => client.send(&chunk).await?,
                // There is no status any more: the error is the stream's last word.
                Err(why) => return client.send(&why.to_json()).await,
            }
        }
        if self.include_usage {
            let usages: Vec<Usage> = self.usages.iter().flatten().copied().collect();
            let mut body = self.head.body(true, Vec::new());
            body.insert("usage".into(), usage_json(&usages, self.n));
            client.send(&body.into()).await?;
        }
        client.write("data: [DONE]\n\n".into()).await
    }

    /// Roles, or the prompts that are echoed.
    async fn begin(&self, client: &Client) -> Result<(), Gone> {
        for index in 0..self.usages.len() {
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
                (Shape::Completion, None) => continue,
            };
            client.send(&self.body(choice)).await?;
        }
        Ok(())
    }

    fn chunk(&mut self, index: usize, event: Event) -> Result<Option<Value>, ApiError> {
        match event {
            Event::Token { text, logprobs, .. } => {
                if text.is_empty() && !self.wants_logprobs {
                    return Ok(None);
                }
                Ok(Some(self.piece(index, &text, &[logprobs], None)))
            }
            Event::Finished {
                reason,
                text,
                usage,
                ..
            } => {
                let reason = finish_reason(reason)?;
                self.usages[index] = Some(usage);
                Ok(Some(self.piece(index, &text, &[], Some(reason))))
            }
        }
    }

    fn piece(
        &mut self,
        index: usize,
        text: &str,
        tokens: &[Vec<TokenLogprob>],
        finish: Option<&str>,
    ) -> Value {
        let logprobs = if self.wants_logprobs && !tokens.is_empty() {
            let tokenizer = &self.app.model.tokenizer;
            logprobs_json(self.head.shape, tokens, &mut self.offsets[index], tokenizer)
        } else {
            Value::Null
        };
        let choice = match self.head.shape {
            Shape::Chat => {
                let delta = if text.is_empty() {
                    json!({})
                } else {
                    json!({"content": text})
                };
                json!({
                    "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish,
                })
            }
            Shape::Completion => json!({
                "index": index, "text": text, "logprobs": logprobs, "finish_reason": finish,
            }),
        };
        self.body(choice)
    }

    fn body(&self, choice: Value) -> Value {
        let mut body = self.head.body(true, vec![choice]);
        if self.include_usage {
            body.insert("usage".into(), Value::Null);
        }
        body.into()
    }
}

/// The way to the client.
struct Client {
    chunks: mpsc::Sender<Bytes>,
    timeout: std::time::Duration,
    peer: Option<Peer>,
}

impl Client {
    async fn send(&self, value: &Value) -> Result<(), Gone> {
        self.write(format!("data: {value}\n\n")).await
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
