//! Errors in the shape that OpenAI's clients know.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use neap_engine::AdmissionError;
use serde_json::{Value, json};

/// An answer that refuses.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// What is wrong and what to do.
    pub message: String,
    /// `invalid_request_error`, `authentication_error`, …
    pub kind: &'static str,
    /// The field of the request that is wrong.
    pub param: Option<String>,
    /// For programs, such as `context_length_exceeded`.
    pub code: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            kind,
            param: None,
            code: None,
        }
    }

    /// 400.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// 400, for one field.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        let mut error = Self::invalid(message);
        error.param = Some(param.into());
        error
    }

    /// The same error with a code.
    #[must_use]
    pub fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// 401: no key or a wrong one.
    pub fn unauthorized() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "authentication_error",
            "a valid API key is needed: send it as `Authorization: Bearer KEY`",
        )
        .with_code("invalid_api_key")
    }

    /// 403.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", message)
    }

    /// 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
    }

    /// 408: the request's own deadline has passed.
    pub fn too_late(message: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "timeout_error", message)
            .with_code("deadline_exceeded")
    }

    /// 409.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "invalid_request_error", message)
    }

    /// 413.
    pub fn too_large(limit: usize) -> Self {
        let message = format!("the body is larger than the {limit} bytes that are taken");
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "invalid_request_error",
            message,
        )
        .with_code("request_too_large")
    }

    /// 429: the queue is full.
    pub fn busy() -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limit_error",
            "too many requests are waiting already: try again later",
        )
        .with_code("queue_full")
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
    }

    /// 500.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// The body.
    pub fn to_json(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl From<AdmissionError> for ApiError {
    fn from(why: AdmissionError) -> Self {
        let message = why.to_string();
        match why {
            AdmissionError::PromptTooLong { .. } => {
                Self::field("prompt", message).with_code("context_length_exceeded")
            }
            AdmissionError::GrammarDoesNotFit { .. } => {
                Self::unavailable(message).with_code("out_of_memory_budget")
            }
            AdmissionError::DoesNotFit { .. } => {
                Self::field("max_tokens", message).with_code("context_length_exceeded")
            }
            AdmissionError::EmptyPrompt | AdmissionError::UnknownToken { .. } => {
                Self::field("prompt", message)
            }
            AdmissionError::UnknownAdapter { .. } => {
                let mut error = Self::not_found(message).with_code("model_not_found");
                error.param = Some("model".into());
                error
            }
            AdmissionError::Sampling(_) => {
                // The message begins with the parameter's name.
                let param = message.split(' ').next().unwrap_or_default().to_owned();
                Self::field(param, message)
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, &self.to_json());
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if matches!(
            self.status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        ) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// An answer of JSON.
pub fn json_response(status: StatusCode, value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grammar_without_room_is_the_servers_trouble_not_the_callers() {
        let error = ApiError::from(AdmissionError::GrammarDoesNotFit {
            needed_bytes: 3000,
            available_bytes: 20,
        });
        assert_eq!(error.status, StatusCode::SERVICE_UNAVAILABLE);
        let error = &error.to_json()["error"];
        assert_eq!(error["code"], "out_of_memory_budget");
        assert!(error["message"].as_str().unwrap().contains("3000 bytes"));
    }
}
