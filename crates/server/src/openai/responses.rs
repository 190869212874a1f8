//! `/v1/responses`, for text and function calls.

mod body;
mod input;
mod store;
mod stream;

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use neap_model::chat::ChatMessage;
use serde_json::{Value, json};

use super::answer::Shape;
use super::chat::Wishes;
use super::format::Format;
use super::params::{Params, refuse_unsupported};
use super::tools::Tools;
use super::{Caller, Generation, blocking, gather, stream as events};
use crate::app::{App, ServedModel};
use crate::auth::Peer;
use crate::error::{ApiError, json_response};
use crate::fields::Fields;
use body::Head;
pub use store::Store;
pub use stream::Told;

/// What this server does not do, though it would change the answer.
const UNSUPPORTED: [&str; 3] = ["background", "conversation", "prompt"];

/// A call as it was read.
pub struct Asked {
    pub generation: Generation,
    pub head: Head,
    /// The conversation before the answer, without instructions: what the next call goes on from.
    messages: Vec<ChatMessage>,
}

/// `POST /v1/responses`.
pub async fn handle(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let caller = Caller::of(&app, request.headers())?;
    let peer = request.extensions().get::<Peer>().cloned();
    let body = app.read_json(request).await?;
    let model = app.serving.lease().await;
    let (shared, reader) = (Arc::clone(&app), model.clone());
    let asked = blocking(move || read((&reader, &shared.responses), &body, caller)).await?;
    let received = asked.generation.submit(&app).await?;
    let tenant = asked.generation.caller.tenant.clone();
    if asked.generation.params.stream {
        let frames = Told::new((Arc::clone(&app.responses), model), tenant, asked);
        return Ok(events::respond(&app, frames, received, peer));
    }
    let mut answer = gather(&asked.generation, received).await?;
    let choice = answer.choices.swap_remove(0);
    let body = asked.head.finished(&choice);
    if asked.head.is_stored {
        app.responses
            .keep(&tenant, body.clone(), asked.messages, &choice);
    }
    Ok(json_response(StatusCode::OK, &body))
}

/// What a body asks of a model, going on from responses that are kept.
///
/// # Errors
/// What is wrong with it, by name.
pub fn read(
    (model, kept): (&ServedModel, &Store),
    body: &Value,
    caller: Caller,
) -> Result<Asked, ApiError> {
    let fields = Fields::of(body)?;
    let mut params = Params::read(&fields, model)?;
    params.n = 1;
    params.max_tokens = fields
        .integer("max_output_tokens", 1..=u64::from(u32::MAX))?
        .map(|n| n as usize);
    refuse_unsupported(&fields, &UNSUPPORTED)?;
    let is_stored = fields.value("store").is_none() || fields.flag("store")?;
    let mut messages = match fields.string("previous_response_id")? {
        Some(id) => kept.conversation(&caller.tenant, id)?,
        None => Vec::new(),
    };
    messages.extend(input::read(&fields)?);
    let format = match fields.object("text", "text.")? {
        Some(text) => Format::read(&text, "format")?,
        None => Format::Text,
    };
    let wishes = Wishes::read(model, &fields, &format, "text.format")?;
    let mut told = messages.clone();
    if let Some(instructions) = fields.string("instructions")? {
        told.insert(0, ChatMessage::new("system", instructions));
    }
    let prompt = wishes.prompt(model, told).map_err(|mut why| {
        why.param = why.param.map(|param| param.replace("messages", "input"));
        why
    })?;
    let head = Head::new(&fields, &params.model.id, is_stored);
    Ok(Asked {
        generation: Generation {
            shape: Shape::Response,
            params,
            prompts: vec![prompt],
            top_logprobs: None,
            echo: Vec::new(),
            caller,
            calls: wishes.tools.as_ref().map(Tools::style),
            grammar: wishes.grammar,
        },
        head,
        messages,
    })
}

/// `GET /v1/responses/ID`.
pub async fn show(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let tenant = app.keys().tenant(&headers)?;
    let body = app.responses.body(&tenant, &id)?;
    Ok(json_response(StatusCode::OK, &body))
}

/// `DELETE /v1/responses/ID`.
pub async fn delete(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let tenant = app.keys().tenant(&headers)?;
    app.responses.delete(&tenant, &id)?;
    let body = json!({"id": id, "object": "response.deleted", "deleted": true});
    Ok(json_response(StatusCode::OK, &body))
}
