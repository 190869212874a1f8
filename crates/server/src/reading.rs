//! What a body comes to, and what is answered to it, without a server: for fuzzing, and for whoever wants to know before
//! asking.

use std::sync::Arc;

use neap_engine::{Event, FinishReason, RequestId, TokenLogprob, Usage};
use neap_memory::Budget;
use serde_json::Value;

use crate::app::ServedModel;
use crate::error::ApiError;
use crate::openai::answer::{Answer, Head};
use crate::openai::responses::{self, Asked, Store, Told};
use crate::openai::stream::{Chunked, Frames};
use crate::openai::{Caller, Generation, chat, completions};
use crate::serving::Lease;

/// Tokens of all prompts that `body`, posted to `path`, would have `model` continue.
///
/// # Errors
/// The status and the message of the refusal.
pub fn prompt_tokens_of(
    model: &ServedModel,
    path: &str,
    body: &[u8],
) -> Result<usize, (u16, String)> {
    let generation = match read(model, path, body).map_err(refusal)? {
        Read::Chunked(generation) => *generation,
        Read::Response(asked) => asked.generation,
    };
    Ok(generation.prompts.iter().map(Vec::len).sum())
}

/// Both forms of one answer to `body`, posted to `path`, had the model said `tokens` for every choice: the events of
/// its stream, and the whole body.
///
/// # Errors
/// The status and the message of the refusal.
pub fn answers_of(
    model: &Arc<ServedModel>,
    path: &str,
    body: &[u8],
    tokens: &[&str],
) -> Result<(Vec<String>, Value), (u16, String)> {
    let lease = Lease::alone(Arc::clone(model));
    match read(model, path, body).map_err(refusal)? {
        Read::Chunked(generation) => {
            let events = events(&generation, tokens);
            let head = || Head::new(generation.shape, &model.id);
            let answer = gathered(&generation, &events).map_err(refusal)?;
            let whole = answer.to_json(&head(), &model.tokenizer);
            let frames = Chunked::new(lease, head(), &generation);
            Ok((streamed(frames, events), whole))
        }
        Read::Response(asked) => {
            let events = events(&asked.generation, tokens);
            let answer = gathered(&asked.generation, &events).map_err(refusal)?;
            let whole = asked.head.finished(&answer.choices[0]);
            let kept = Arc::new(Store::new(&Budget::new(1 << 20)));
            let frames = Told::new((kept, lease), String::new(), *asked);
            Ok((streamed(frames, events), whole))
        }
    }
}

enum Read {
    Chunked(Box<Generation>),
    Response(Box<Asked>),
}

fn refusal(why: ApiError) -> (u16, String) {
    (why.status.as_u16(), why.message)
}

fn read(model: &ServedModel, path: &str, body: &[u8]) -> Result<Read, ApiError> {
    let body: Value =
        serde_json::from_slice(body).map_err(|why| ApiError::invalid(why.to_string()))?;
    let caller = Caller::default();
    match path {
        "/v1/chat/completions" => chat::read(model, &body, caller)
            .map(Box::new)
            .map(Read::Chunked),
        "/v1/completions" => completions::read(model, &body, caller)
            .map(Box::new)
            .map(Read::Chunked),
        "/v1/responses" => {
            let kept = Store::new(&Budget::new(0));
            let asked = responses::read((model, &kept), &body, caller)?;
            Ok(Read::Response(Box::new(asked)))
        }
        _ => Err(ApiError::not_found("no such path")),
    }
}

/// What the engine would tell, with the index of the choice.
fn events(generation: &Generation, tokens: &[&str]) -> Vec<(usize, Event)> {
    let request = RequestId(0);
    let logprob = TokenLogprob {
        id: 0,
        logprob: -1.0,
    };
    let logprobs = generation.top_logprobs.map_or(0, |top| 1 + top);
    let mut events = Vec::new();
    for index in 0..generation.prompts.len() * generation.params.n {
        events.extend(tokens.iter().map(|text| {
            let event = Event::Token {
                request,
                id: 0,
                text: (*text).to_owned(),
                logprobs: vec![logprob; logprobs],
            };
            (index, event)
        }));
        let finished = Event::Finished {
            request,
            reason: FinishReason::EndOfText(0),
            text: String::new(),
            usage: Usage::default(),
        };
        events.push((index, finished));
    }
    events
}

fn gathered(generation: &Generation, events: &[(usize, Event)]) -> Result<Answer, ApiError> {
    let mut answer = Answer::new(generation);
    for (index, event) in events {
        answer.take(*index, event.clone())?;
    }
    Ok(answer)
}

fn streamed(mut frames: impl Frames, events: Vec<(usize, Event)>) -> Vec<String> {
    let mut out = Vec::new();
    frames.begin(&mut out);
    for (index, event) in events {
        if let Err(why) = frames.take(index, event, &mut out) {
            frames.fail(&why, &mut out);
            return out;
        }
    }
    frames.end(&mut out);
    out
}
