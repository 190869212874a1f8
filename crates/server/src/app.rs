//! What all handlers share, and which path leads to which.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::Method;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use neap_memory::Budget;
use neap_memory::pressure::watch::Watch;
use neap_model::chat::ChatTemplate;
use neap_model::tokenizer::Tokenizer;
use serde_json::Value;

use crate::auth::Keys;
use crate::error::ApiError;
use crate::worker::Handle;
use crate::{memory, openai, status, tokens};

/// The model that is served.
pub struct ServedModel {
    /// Its name in the API.
    pub id: String,
    /// Seconds since 1970 at which it was loaded.
    pub created: u64,
    /// Tokens of context.
    pub context_tokens: usize,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template.
    pub template: ChatTemplate,
}

/// What all handlers share.
pub struct App {
    pub model: ServedModel,
    pub engine: Handle,
    pub keys: Keys,
    pub budget: Budget,
    /// Sets the operator's limit where the pressure on the system is watched.
    pub pressure: Option<Watch>,
    pub max_body_bytes: usize,
    pub slow_client: Duration,
}

/// Time for a body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

impl App {
    /// The whole body as JSON.
    pub async fn read_json(&self, request: Request) -> Result<Value, ApiError> {
        let limit = self.max_body_bytes;
        let announced = request.headers().get(axum::http::header::CONTENT_LENGTH);
        let announced = announced.and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|bytes| bytes > limit as u64) {
            return Err(ApiError::too_large(limit));
        }
        let reading = axum::body::to_bytes(request.into_body(), limit);
        let bytes = match tokio::time::timeout(BODY_TIMEOUT, reading).await {
            Ok(Ok(bytes)) => bytes,
            // Too large, or cut off: then nobody reads the answer.
            Ok(Err(_)) => return Err(ApiError::too_large(limit)),
            Err(_) => return Err(ApiError::invalid("the body took too long to arrive")),
        };
        serde_json::from_slice(&bytes)
            .map_err(|why| ApiError::invalid(format!("the body is not valid JSON: {why}")))
    }
}

/// All paths.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(status::page))
        .route("/health", get(status::health))
        .route("/ready", get(status::ready))
        .route("/version", get(status::version))
        .route("/metrics", get(status::metrics))
        .route("/memory", get(memory::show))
        .route("/memory/budget", put(memory::set_budget))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/v1/models", get(openai::models::list))
        .route("/v1/models/{*id}", get(openai::models::one))
        .route("/v1/completions", post(openai::completions::handle))
        .route("/v1/chat/completions", post(openai::chat::handle))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        // Bodies are read with a limit of our own, which answers in our own words.
        .layer(DefaultBodyLimit::disable())
        .with_state(app)
}

async fn unknown_path(request: Request) -> Response {
    let path = request.uri().path();
    ApiError::not_found(format!("there is no {path:?} here"))
        .with_code("unknown_url")
        .into_response()
}

async fn unknown_method(method: Method, request: Request) -> Response {
    let path = request.uri().path();
    let mut error = ApiError::invalid(format!("{path} does not answer to {method}"));
    error.status = axum::http::StatusCode::METHOD_NOT_ALLOWED;
    error.into_response()
}
