//! `/v1/models`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};

use crate::app::{App, ServedModel};
use crate::error::{ApiError, json_response};

/// `GET /v1/models`.
pub async fn list(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Response, ApiError> {
    app.keys().tenant(&headers)?;
    let model = app.serving.now();
    let mut served = vec![describe(&model)];
    let adapters = model.adapters.list();
    served.extend(
        adapters
            .iter()
            .map(|(name, created)| adapter(&model, name, *created)),
    );
    let beside = [
        app.embedding.as_ref().map(|other| &other.id),
        app.classifier.as_ref().map(|other| &other.id),
    ];
    served.extend(beside.into_iter().flatten().map(|id| {
        let created = model.created;
        json!({"id": id, "object": "model", "created": created, "owned_by": "neap"})
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
    app.keys().tenant(&headers)?;
    let model = app.serving.now();
    let described = match model.adapters.created(&id) {
        Some(created) => adapter(&model, &id, created),
        None if id == model.id => describe(&model),
        None => return Err(unknown(&id, &model.id)),
    };
    Ok(json_response(StatusCode::OK, &described))
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

fn adapter(model: &ServedModel, name: &str, created: u64) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "neap",
        "parent": model.id,
        "max_model_len": model.context_tokens,
    })
}

fn describe(model: &ServedModel) -> Value {
    json!({
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": "neap",
        "max_model_len": model.context_tokens,
    })
}
