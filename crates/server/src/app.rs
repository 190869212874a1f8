//! What all handlers share, and which path leads to which.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::Method;
use axum::middleware::from_fn;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post, put};
use neap_engine::{GrammarError, Grammars};
use neap_memory::Budget;
use neap_memory::pressure::watch::Watch;
use neap_model::chat::ChatTemplate;
use neap_model::source::ModelSource;
use neap_model::tokenizer::Tokenizer;
use serde_json::Value;

use crate::adapters::{self, Names};
use crate::auth::Keys;
use crate::connection::Places;
use crate::error::ApiError;
use crate::live::{InForce, Live};
use crate::openai::embeddings::EmbeddingModel;
use crate::openai::judging::ClassifierModel;
use crate::openai::responses::Store;
use crate::reload::{self, Source};
use crate::serving::Serving;
use crate::worker::{Handle, Settings};
use crate::{memory, openai, sessions, status, tokens, unread};

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
    /// Its files, against which adapters are checked; without them none can be added.
    pub source: Option<Arc<ModelSource>>,
    pub(crate) adapters: Names,
    grammars: OnceLock<Result<Grammars, GrammarError>>,
}

impl ServedModel {
    /// A model by the name `id`, loaded now, with a context of `context_tokens`.
    #[must_use]
    pub fn new(
        id: impl Into<String>,
        context_tokens: usize,
        tokenizer: Tokenizer,
        template: ChatTemplate,
    ) -> Self {
        Self {
            id: id.into(),
            created: openai::now_s(),
            context_tokens,
            tokenizer,
            template,
            source: None,
            adapters: Names::default(),
            grammars: OnceLock::new(),
        }
    }

    /// Grammars for its vocabulary, laid out when first asked for: it takes a moment.
    pub(crate) fn grammars(&self) -> Result<&Grammars, ApiError> {
        let grammars = self
            .grammars
            .get_or_init(|| Grammars::new(&self.tokenizer, &openai::tools::AS_TEXT));
        grammars
            .as_ref()
            .map_err(|why| ApiError::invalid(format!("this model can follow no grammar: {why}")))
    }
}

/// What all handlers share.
pub struct App {
    pub serving: Serving,
    pub engine: Handle,
    pub in_force: InForce,
    pub budget: Budget,
    /// Responses that can be gone on from.
    pub responses: Arc<Store>,
    /// Sets the operator's limit where the pressure on the system is watched.
    pub pressure: Option<Watch>,
    /// Makes vectors, if the server has such a model.
    pub embedding: Option<EmbeddingModel>,
    /// Places for connections.
    pub places: Places,
    /// What the server can be told to read again.
    pub configuration: Option<Arc<dyn Source>>,
    /// Held while a change is made.
    pub reloading: tokio::sync::Mutex<()>,
    /// Classifies and judges pairs, if the server has such a model.
    pub classifier: Option<ClassifierModel>,
}

/// Time for a body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

impl App {
    /// The settings in force.
    pub fn live(&self) -> Arc<Live> {
        self.in_force.settings()
    }

    /// The keys in force.
    pub fn keys(&self) -> Arc<Keys> {
        self.in_force.keys()
    }

    /// Other settings from now on.
    pub async fn set_live(&self, live: Live) {
        self.engine.set(Settings::from(&live)).await;
        self.places.set(live.max_connections);
        self.in_force.set(live);
    }

    /// The whole body as JSON.
    pub async fn read_json(&self, request: Request) -> Result<Value, ApiError> {
        let limit = self.live().max_body_bytes;
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

/// A method, a path and what answers.
type Route = (&'static str, &'static str, MethodRouter<Arc<App>>);

/// All of them; `openapi.json` describes the same.
fn routes() -> Vec<Route> {
    vec![
        ("get", "/", get(status::page)),
        ("get", "/health", get(status::health)),
        ("get", "/ready", get(status::ready)),
        ("get", "/version", get(status::version)),
        ("get", "/metrics", get(status::metrics)),
        ("get", "/openapi.json", get(status::openapi)),
        ("post", "/admin/reload", post(reload::handle)),
        ("get", "/memory", get(memory::show)),
        ("put", "/memory/budget", put(memory::set_budget)),
        ("get", "/memory/sessions", get(sessions::list)),
        ("delete", "/memory/sessions/{id}", delete(sessions::delete)),
        ("post", "/memory/sessions/{id}/pin", post(sessions::pin)),
        ("post", "/v1/load_lora_adapter", post(adapters::load)),
        ("post", "/v1/unload_lora_adapter", post(adapters::unload)),
        ("get", "/memory/sessions/{id}/export", get(sessions::export)),
        ("post", "/memory/sessions/import", post(sessions::import)),
        ("post", "/tokenize", post(tokens::tokenize)),
        ("post", "/detokenize", post(tokens::detokenize)),
        ("get", "/v1/models", get(openai::models::list)),
        ("get", "/v1/models/{*id}", get(openai::models::one)),
        ("post", "/v1/completions", post(openai::completions::handle)),
        ("post", "/v1/chat/completions", post(openai::chat::handle)),
        ("post", "/v1/responses", post(openai::responses::handle)),
        ("get", "/v1/responses/{id}", get(openai::responses::show)),
        (
            "delete",
            "/v1/responses/{id}",
            delete(openai::responses::delete),
        ),
        (
            "post",
            "/v1/embeddings",
            post(openai::embeddings::embeddings),
        ),
        ("post", "/v1/classify", post(openai::classify::handle)),
        ("post", "/v1/rerank", post(openai::embeddings::rerank)),
        ("post", "/v1/score", post(openai::embeddings::score)),
    ]
}

/// All paths.
pub fn router(app: Arc<App>) -> Router {
    let router = Router::new();
    routes()
        .into_iter()
        .fold(router, |router, (_, path, answer)| {
            router.route(path, answer)
        })
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        // Bodies are read with a limit of our own, which answers in our own words.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn(unread::read))
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let described: Value = serde_json::from_str(status::OPENAPI).unwrap();
        let paths = described["paths"].as_object().unwrap();
        let described: BTreeSet<(String, String)> = paths
            .iter()
            .flat_map(|(path, methods)| {
                let methods = methods.as_object().unwrap().keys();
                methods.map(move |method| (method.clone(), path.clone()))
            })
            .collect();
        let routes = routes().into_iter();
        let routes: BTreeSet<(String, String)> = routes
            .map(|(method, path, _)| (method.to_owned(), path.replace("{*", "{")))
            .collect();
        assert_eq!(routes, described);
    }
}
