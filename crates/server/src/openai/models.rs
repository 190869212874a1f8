//! `/v1/models`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};

use crate::app::App;
use crate::error::{ApiError, json_response};

/// `GET /v1/models`.
pub async fn list(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Response, ApiError> {
    app.keys.tenant(&headers)?;
    let mut served = vec![describe(&app)];
    served.extend(app.embedding.as_ref().map(|model| {
        let created = app.model.created;
        json!({"id": model.id, "object": "model", "created": created, "owned_by": "neap"})
    }));
    let answer = json!({"object": "list", "data": served});
    Ok(json_response(StatusCode::OK, &answer))
}

/// `GET /v1/models/ID`.
pub async fn one(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    app.keys.tenant(&headers)?;
    if id != app.model.id {
        return Err(unknown(&id, &app.model.id));
    }
    Ok(json_response(StatusCode::OK, &describe(&app)))
}

/// 404 for a model that is not served.
pub fn unknown(id: &str, served: &str) -> ApiError {
    let mut error = ApiError::not_found(format!(
        "the model {id:?} is not served here; {served:?} is"
    ))
    .with_code("model_not_found");
    error.param = Some("model".into());
    error
}

fn describe(app: &App) -> Value {
    json!({
        "id": app.model.id,
        "object": "model",
        "created": app.model.created,
        "owned_by": "neap",
        "max_model_len": app.model.context_tokens,
    })
}
