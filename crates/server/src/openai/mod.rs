//! The API that OpenAI's clients speak.

pub mod answer;
pub mod calls;
pub mod chat;
pub mod classify;
pub mod completions;
pub mod embeddings;
pub mod format;
pub mod judging;
pub mod models;
pub mod params;
pub mod responses;
pub mod stream;
pub mod tools;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use neap_engine::{Grammar, GrammarError, Request};
use tokio::sync::mpsc::Receiver;

use crate::app::{App, ServedModel};
use crate::auth::Peer;
use crate::error::{ApiError, json_response};
use crate::serving::Lease;
use crate::traces::Parent;
use crate::worker::{Asking, Indexed, clock_ms};
use answer::{Answer, Shape};
use params::Params;
use stream::Chunked;
use tools::Style;

/// Who calls, and how long it waits.
#[derive(Default)]
pub struct Caller {
    pub tenant: String,
    /// From the `X-Request-Timeout` header.
    pub timeout: Option<Duration>,
    /// When it came, on the engine's clock.
    pub arrived_ms: u64,
    /// From the `traceparent` header.
    pub trace: Option<Parent>,
}

impl Caller {
    /// Reads a request's head.
    ///
    /// # Errors
    /// 401 without a key where one is needed, 400 for a header that is no time.
    pub fn of(app: &App, headers: &HeaderMap) -> Result<Self, ApiError> {
        let tenant = app.keys().tenant(headers)?;
        let timeout = match headers.get(TIMEOUT_HEADER) {
            None => None,
            Some(value) => {
                let seconds = value
                    .to_str()
                    .ok()
                    .and_then(|text| text.trim().parse().ok());
                let timeout = seconds.and_then(params::timeout_of);
                let wrong =
                    || ApiError::field(TIMEOUT_HEADER, "`X-Request-Timeout` must be seconds");
                Some(timeout.ok_or_else(wrong)?)
            }
        };
        Ok(Self {
            tenant,
            timeout,
            arrived_ms: clock_ms(),
            trace: Parent::of(headers),
        })
    }
}

/// A request's deadline, in seconds from its arrival.
const TIMEOUT_HEADER: &str = "x-request-timeout";

/// What every kind of completion comes down to: for each prompt the same number of choices.
pub struct Generation {
    pub shape: Shape,
    pub params: Params,
    pub prompts: Vec<Vec<u32>>,
    /// With each token the log probabilities of so many most likely ones.
    pub top_logprobs: Option<usize>,
    /// What stands before each choice's text, one for each prompt, or none.
    pub echo: Vec<String>,
    pub caller: Caller,
    /// What answers must follow.
    pub grammar: Option<Grammar>,
    /// How calls are written, if any may be made.
    pub calls: Option<Style>,
}

impl Generation {
    /// One request for each choice of each prompt.
    fn requests(&self) -> Vec<Request> {
        let timeout = match (self.params.timeout, self.caller.timeout) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let arrived_ms = self.caller.arrived_ms;
        let deadline_ms = timeout.map(|t| arrived_ms.saturating_add(t.as_millis() as u64));
        let mut requests = Vec::with_capacity(self.prompts.len() * self.params.n);
        for prompt in &self.prompts {
            for choice in 0..self.params.n {
                let mut sampling = self.params.sampling.clone();
                // Choices differ, and a seed still repeats them all.
                sampling.seed = sampling.seed.wrapping_add(choice as u64);
                requests.push(Request {
                    prompt: prompt.clone(),
                    max_new_tokens: self.params.max_tokens,
                    sampling,
                    stop_strings: self.params.stop.clone(),
                    ignore_stop_ids: self.params.ignore_eos,
                    show_special: self.calls.is_some(),
                    top_logprobs: self.top_logprobs,
                    tenant: self.caller.tenant.clone(),
                    adapter: self.params.model.adapter.clone(),
                    priority: self.params.priority,
                    quality: self.params.quality,
                    grammar: self.grammar.clone(),
                    deadline_ms,
                    ..Request::default()
                });
            }
        }
        requests
    }

    /// Hands the requests to the engine.
    ///
    /// # Errors
    /// What to tell the client.
    async fn submit(&self, app: &App) -> Result<Receiver<Indexed>, ApiError> {
        let asking = Asking {
            session: self.params.session.clone(),
            operation: match self.shape {
                Shape::Chat | Shape::Response => "chat",
                Shape::Completion => "text_completion",
            },
            trace: self.caller.trace,
        };
        let submitted = app.engine.submit(self.requests(), asking).await;
        submitted.map_err(|why| name_prompt(why, self.shape))
    }
}

/// A grammar for one request.
///
/// # Errors
/// 400, for the field that asked for it.
pub fn compile(model: &ServedModel, lark: &str, field: &str) -> Result<Grammar, ApiError> {
    let refuse = |why: GrammarError| {
        ApiError::field(field, format!("`{field}` can't be followed: {why}"))
            .with_code("unsupported_grammar")
    };
    model.grammars()?.compile(lark).map_err(refuse)
}

/// Runs a generation and answers, at once or as a stream.
pub async fn respond(
    (app, model): (Arc<App>, Lease),
    generation: Generation,
    peer: Option<Peer>,
) -> Result<Response, ApiError> {
    let events = generation.submit(&app).await?;
    let head = answer::Head::new(generation.shape, &generation.params.model.id);
    if generation.params.stream {
        let frames = Chunked::new(model, head, &generation);
        return Ok(stream::respond(&app, frames, events, peer));
    }
    let answer = gather(&generation, events).await?;
    let body = answer.to_json(&head, &model.tokenizer);
    Ok(json_response(StatusCode::OK, &body))
}

/// The whole answer.
async fn gather(
    generation: &Generation,
    mut events: Receiver<Indexed>,
) -> Result<Answer, ApiError> {
    let mut answer = Answer::new(generation);
    while !answer.is_complete() {
        let Some((index, event)) = events.recv().await else {
            return Err(ApiError::unavailable("the engine has ended"));
        };
        answer.take(index, event)?;
    }
    Ok(answer)
}

/// The engine knows a prompt; in a chat it was made of the messages.
fn name_prompt(mut why: ApiError, shape: Shape) -> ApiError {
    let made_of = match shape {
        Shape::Chat => "messages",
        Shape::Completion => "prompt",
        Shape::Response => "input",
    };
    if why.param.as_deref() == Some("prompt") {
        why.param = Some(made_of.into());
    }
    why
}

/// Runs something that computes for a while, such as encoding a long text.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(ApiError::internal("the request could not be read")))
}

/// Seconds since 1970.
pub fn now_s() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    since_1970.unwrap_or_default().as_secs()
}

/// 64 bits that differ from call to call: the standard library's hash keys come from the system's random numbers.
pub fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}
