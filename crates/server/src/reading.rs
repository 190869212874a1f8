//! What a body comes to, without a server: for fuzzing, and for whoever wants to know before asking.

use neap_memory::Budget;
use serde_json::Value;

use crate::app::ServedModel;
use crate::error::ApiError;
use crate::openai::responses::{self, Store};
use crate::openai::{Caller, Generation, chat, completions};

/// Tokens of all prompts that `body`, posted to `path`, would have `model` continue.
///
/// # Errors
/// The status and the message of the refusal.
pub fn prompt_tokens_of(
    model: &ServedModel,
    path: &str,
    body: &[u8],
) -> Result<usize, (u16, String)> {
    let refuse = |why: ApiError| (why.status.as_u16(), why.message);
    let body: Value = serde_json::from_slice(body).map_err(|why| (400, why.to_string()))?;
    let generation: Generation = match path {
        "/v1/chat/completions" => chat::read(model, &body, Caller::default()),
        "/v1/completions" => completions::read(model, &body, Caller::default()),
        "/v1/responses" => {
            let kept = Store::new(&Budget::new(0));
            responses::read((model, &kept), &body, Caller::default()).map(|asked| asked.generation)
        }
        _ => Err(ApiError::not_found("no such path")),
    }
    .map_err(refuse)?;
    Ok(generation.prompts.iter().map(Vec::len).sum())
}
