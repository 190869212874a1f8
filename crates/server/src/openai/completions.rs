//! `/v1/completions`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use neap_model::tokenizer::{DetokenizeOptions, EncodeOptions, Tokenizer};
use serde_json::Value;

use super::answer::Shape;
use super::format::Format;
use super::params::{Params, refuse_unsupported};
use super::{Caller, Generation, blocking, compile, respond};
use crate::app::{App, ServedModel};
use crate::auth::Peer;
use crate::error::ApiError;
use crate::fields::{Fields, token_ids};

/// Tokens of an answer if the client does not say, as OpenAI has it.
const DEFAULT_MAX_TOKENS: usize = 16;
/// Prompts of one call at most.
const MAX_PROMPTS: usize = 64;
/// Most likely tokens that can be asked for at most.
const MAX_LOGPROBS: u64 = 20;

/// `POST /v1/completions`.
pub async fn handle(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let caller = Caller::of(&app, request.headers())?;
    let peer = request.extensions().get::<Peer>().cloned();
    let body = app.read_json(request).await?;
    let model = app.serving.lease().await;
    let reader = model.clone();
    let generation = blocking(move || read(&reader, &body, caller)).await?;
    respond((app, model), generation, peer).await
}

/// What a body asks for.
///
/// # Errors
/// What is wrong with it, by name.
pub fn read(model: &ServedModel, body: &Value, caller: Caller) -> Result<Generation, ApiError> {
    let fields = Fields::of(body)?;
    let mut params = Params::read(&fields, model)?;
    params.max_tokens.get_or_insert(DEFAULT_MAX_TOKENS);
    refuse_unsupported(&fields, &["tools", "functions"])?;
    let format = Format::read(&fields, "response_format")?;
    let grammar = format
        .grammar()
        .map(|lark| compile(model, &lark, "response_format"))
        .transpose()?;
    if fields.string("suffix")?.is_some_and(|s| !s.is_empty()) {
        return Err(fields.wrong("suffix", "left out: it is not supported"));
    }
    let best_of = fields.integer("best_of", 1..=u64::MAX)?;
    if best_of.is_some_and(|b| b != params.n as u64) {
        return Err(fields.wrong("best_of", "left out or equal to `n`"));
    }
    let prompts = prompts(&fields, &model.tokenizer)?;
    let echo = if fields.flag("echo")? {
        let options = DetokenizeOptions::default();
        let texts = prompts.iter();
        let decode = |p: &Vec<u32>| model.tokenizer.decode(p, options);
        texts.map(decode).collect()
    } else {
        Vec::new()
    };
    Ok(Generation {
        shape: Shape::Completion,
        params,
        prompts,
        top_logprobs: fields
            .integer("logprobs", 0..=MAX_LOGPROBS)?
            .map(|top| top as usize),
        echo,
        caller,
        grammar,
        calls: None,
    })
}

/// A string, a list of strings, a list of tokens or a list of lists of tokens.
fn prompts(fields: &Fields<'_>, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>, ApiError> {
    let must = format!("a string, a list of tokens, or a list of 1 to {MAX_PROMPTS} of these");
    let wrong = || fields.wrong("prompt", &must);
    match fields.value("prompt") {
        Some(Value::Array(list)) if !list.iter().any(Value::is_u64) => {
            if !(1..=MAX_PROMPTS).contains(&list.len()) {
                return Err(wrong());
            }
            let prompts = list.iter();
            prompts
                .map(|p| prompt(p, tokenizer)?.ok_or_else(wrong))
                .collect()
        }
        Some(value) => Ok(vec![prompt(value, tokenizer)?.ok_or_else(wrong)?]),
        None => Err(wrong()),
    }
}

fn prompt(value: &Value, tokenizer: &Tokenizer) -> Result<Option<Vec<u32>>, ApiError> {
    match value {
        Value::String(text) => tokenizer
            .encode(text, EncodeOptions::default())
            .map(Some)
            .map_err(|why| ApiError::field("prompt", why.to_string())),
        Value::Array(ids) => Ok(token_ids(ids)),
        _ => Ok(None),
    }
}
