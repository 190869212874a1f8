//! The API that OpenAI's clients speak.

pub mod answer;
pub mod chat;
pub mod completions;
pub mod models;
pub mod params;
pub mod stream;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use axum::response::Response;
use neap_engine::Request;

use crate::app::App;
use crate::auth::Peer;
use crate::error::{ApiError, json_response};
use answer::{Answer, Shape};
use params::Params;
use stream::Streaming;

/// What both kinds of completion come down to: for each prompt the same number of choices.
pub struct Generation {
    pub shape: Shape,
    pub params: Params,
    pub prompts: Vec<Vec<u32>>,
    /// With each token the log probabilities of so many most likely ones.
    pub top_logprobs: Option<usize>,
    /// What stands before each choice's text, one for each prompt, or none.
    pub echo: Vec<String>,
    pub tenant: String,
}

impl Generation {
    /// One request for each choice of each prompt.
    fn requests(&self) -> Vec<Request> {
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
                    top_logprobs: self.top_logprobs,
                    tenant: self.tenant.clone(),
                    ..Request::default()
                });
            }
        }
        requests
    }
}

/// Runs a generation and answers, at once or as a stream.
pub async fn respond(
    app: Arc<App>,
    generation: Generation,
    peer: Option<Peer>,
) -> Result<Response, ApiError> {
    let submitted = app.engine.submit(generation.requests()).await;
    let mut events = submitted.map_err(|why| name_prompt(why, generation.shape))?;
    let head = answer::Head::new(generation.shape, &app.model.id);
    if generation.params.stream {
        let streaming = Streaming::new(Arc::clone(&app), head, &generation);
        return Ok(streaming.respond(events, peer));
    }
    let mut answer = Answer::new(&generation);
    while !answer.is_complete() {
        let Some((index, event)) = events.recv().await else {
            return Err(ApiError::unavailable("the engine has ended"));
        };
        answer.take(index, event)?;
    }
    let body = answer.to_json(&head, &app.model.tokenizer);
    Ok(json_response(StatusCode::OK, &body))
}

/// The engine knows a prompt; in a chat it was made of the messages.
fn name_prompt(mut why: ApiError, shape: Shape) -> ApiError {
    if shape == Shape::Chat && why.param.as_deref() == Some("prompt") {
        why.param = Some("messages".into());
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
