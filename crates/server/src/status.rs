//! How the server is: for people, load balancers and Prometheus.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::app::App;
use crate::error::{ApiError, json_response};
use crate::metrics;

/// `GET /`: the page.
pub async fn page() -> Response {
    let policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                  connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, include_str!("page.html")).into_response()
}

/// `GET /health`: the engine's thread is alive.
pub async fn health(State(app): State<Arc<App>>) -> Response {
    if app.engine.shared.ended.load(Ordering::Relaxed) {
        return ApiError::unavailable("the engine has ended").into_response();
    }
    json_response(StatusCode::OK, &json!({"status": "ok"}))
}

/// `GET /ready`: new requests are taken in.
pub async fn ready(State(app): State<Arc<App>>) -> Response {
    let shared = &app.engine.shared;
    if shared.ended.load(Ordering::Relaxed) || shared.draining.load(Ordering::Relaxed) {
        return ApiError::unavailable("the server is shutting down").into_response();
    }
    json_response(StatusCode::OK, &json!({"status": "ready"}))
}

/// `GET /version`.
pub async fn version() -> Response {
    json_response(
        StatusCode::OK,
        &json!({"name": "neap", "version": env!("CARGO_PKG_VERSION")}),
    )
}

/// The API's description; its version is put in when it is asked for.
pub const OPENAPI: &str = include_str!("openapi.json");

/// `GET /openapi.json`.
pub async fn openapi() -> Response {
    let text = OPENAPI.replacen(
        "\"VERSION\"",
        concat!("\"", env!("CARGO_PKG_VERSION"), "\""),
        1,
    );
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// `GET /metrics`: Prometheus' text.
pub async fn metrics(State(app): State<Arc<App>>) -> Response {
    app.engine.refresh().await;
    let shared = &app.engine.shared;
    let text = metrics::render(&shared.metrics, &shared.report(), &app.budget);
    let mut response = text.into_response();
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
    );
    response
}
