//! Texts to tokens and back.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use neap_model::tokenizer::{DetokenizeOptions, EncodeOptions};
use serde_json::json;

use crate::app::App;
use crate::error::{ApiError, json_response};
use crate::fields::{Fields, token_ids};
use crate::openai::{blocking, chat};

/// `POST /tokenize` with `prompt` (also called `content`) or `messages`; `add_special_tokens` is true if left out.
pub async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    app.keys().tenant(request.headers())?;
    let body = app.read_json(request).await?;
    let model = app.serving.now();
    let shared = Arc::clone(&model);
    let tokens = blocking(move || {
        let fields = Fields::of(&body)?;
        let text = match fields.string("prompt")? {
            Some(text) => Some(text),
            None => fields.string("content")?,
        };
        let Some(text) = text else {
            let messages = chat::messages(&fields)
                .map_err(|_| fields.wrong("prompt", "a string, or `messages` a list"))?;
            return chat::prompt_tokens(&shared, &messages, Vec::new());
        };
        let options = EncodeOptions {
            add_bos: fields.value("add_special_tokens").is_none()
                || fields.flag("add_special_tokens")?,
            parse_special: true,
        };
        shared
            .tokenizer
            .encode(text, options)
            .map_err(|why| ApiError::field("prompt", why.to_string()))
    })
    .await?;
    let answer = json!({
        "count": tokens.len(),
        "max_model_len": model.context_tokens,
        "tokens": tokens,
    });
    Ok(json_response(StatusCode::OK, &answer))
}

/// `POST /detokenize` with `tokens`.
pub async fn detokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    app.keys().tenant(request.headers())?;
    let body = app.read_json(request).await?;
    let fields = Fields::of(&body)?;
    let model = app.serving.now();
    let must = "a list of token ids of the model's vocabulary";
    let tokens = fields
        .list("tokens")?
        .and_then(token_ids)
        .filter(|ids| {
            let size = model.tokenizer.vocab_size();
            ids.iter().all(|&id| (id as usize) < size)
        })
        .ok_or_else(|| fields.wrong("tokens", must))?;
    let options = DetokenizeOptions {
        skip_special: false,
        ..DetokenizeOptions::default()
    };
    let text = model.tokenizer.decode(&tokens, options);
    Ok(json_response(StatusCode::OK, &json!({"prompt": text})))
}
