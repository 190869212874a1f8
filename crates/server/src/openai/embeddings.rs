//! `/v1/embeddings`, and `/v1/rerank` and `/v1/score` by the cosine of a query and documents, or by a cross-encoder.

use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use neap_model::embed::{EmbedError, Embedder};
use neap_model::tokenizer::{EncodeOptions, Tokenizer};
use serde_json::{Value, json};

use super::blocking;
use super::judging::ClassifierModel;
use super::models::unknown;
use crate::app::App;
use crate::error::{ApiError, json_response};
use crate::fields::{Fields, token_ids};

/// Texts of one call at most, as OpenAI has it.
const MAX_TEXTS: usize = 2048;

/// The model that makes vectors, beside the one that writes.
pub struct EmbeddingModel {
    /// Its name in the API.
    pub id: String,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// One text at a time goes through it.
    pub embedder: Mutex<Embedder>,
}

/// Texts that are computed before other calls have their turn.
const AT_ONCE: usize = 32;

/// What to tell of texts that could not be read, which came in `field`.
pub(super) fn refusal(field: &str, why: EmbedError) -> ApiError {
    match why {
        EmbedError::Dimensions { .. } => ApiError::field("dimensions", why.to_string()),
        EmbedError::OverBudget(_) => ApiError::unavailable(why.to_string()),
        EmbedError::Step(neap_model::decoder::StepError::Worker(_)) => {
            ApiError::internal("a worker failed")
        }
        _ => ApiError::field(field, why.to_string()),
    }
}

/// A text and its vector.
struct Embedded {
    vector: Vec<f32>,
    tokens: usize,
}

impl EmbeddingModel {
    /// The vectors of texts: some at a time are computed together, then other calls have their turn.
    fn embed(
        &self,
        field: &str,
        texts: &[Vec<u32>],
        dimensions: Option<usize>,
    ) -> Result<Vec<Embedded>, ApiError> {
        let mut all = Vec::with_capacity(texts.len());
        for some in texts.chunks(AT_ONCE) {
            let tokens: Vec<&[u32]> = some.iter().map(Vec::as_slice).collect();
            let mut embedder = self.embedder.lock().unwrap_or_else(PoisonError::into_inner);
            let vectors = embedder
                .embed_all(&tokens, dimensions)
                .map_err(|why| refusal(field, why))?;
            let embedded = vectors
                .into_iter()
                .zip(some)
                .map(|(vector, text)| Embedded {
                    vector,
                    tokens: text.len(),
                });
            all.extend(embedded);
        }
        Ok(all)
    }

    fn encode(&self, field: &str, text: &str) -> Result<Vec<u32>, ApiError> {
        self.tokenizer
            .encode(text, EncodeOptions::default())
            .map_err(|why| ApiError::field(field, why.to_string()))
    }

    fn texts(&self, field: &str, texts: &[&str]) -> Result<Vec<Embedded>, ApiError> {
        let encoded = texts.iter().map(|text| self.encode(field, text));
        let encoded: Vec<Vec<u32>> = encoded.collect::<Result<_, _>>()?;
        self.embed(field, &encoded, None)
    }
}

/// The embedding model, if the server has one and `model` names it.
fn model<'a>(app: &'a App, fields: &Fields<'_>) -> Result<&'a EmbeddingModel, ApiError> {
    let served = app.embedding.as_ref().ok_or_else(|| {
        ApiError::not_found(
            "no embedding model is served here: start neap serve with --embedding-model",
        )
    })?;
    match fields.string("model")? {
        Some(id) if id != served.id => Err(unknown(id, &served.id)),
        _ => Ok(served),
    }
}

/// What judges pairs.
enum Judge<'a> {
    /// By the cosine of vectors.
    Vectors(&'a EmbeddingModel),
    /// By reading both together.
    Pairs(&'a ClassifierModel),
}

impl<'a> Judge<'a> {
    /// The model that `model` names; left out, a cross-encoder goes before vectors.
    fn choose(app: &'a App, fields: &Fields<'_>) -> Result<Self, ApiError> {
        let cross = app.classifier.as_ref();
        let cross = cross.filter(|classifier| classifier.labels.len() == 1);
        let asked = fields.string("model")?;
        match cross {
            Some(cross) if asked.is_none_or(|id| id == cross.id) => Ok(Self::Pairs(cross)),
            _ => model(app, fields).map(Self::Vectors),
        }
    }

    fn id(&self) -> &str {
        match self {
            Self::Vectors(model) => &model.id,
            Self::Pairs(model) => &model.id,
        }
    }

    /// The score of each of `second` with its own of `first`, or with the only one; and the tokens of all.
    fn scores(
        &self,
        first: (&str, &[&str]),
        second: (&str, &[&str]),
    ) -> Result<(Vec<f64>, usize), ApiError> {
        let partner = |index: usize| if first.1.len() == 1 { 0 } else { index };
        match self {
            Self::Pairs(model) => {
                let pairs = second.1.iter().enumerate();
                let pairs: Vec<_> = pairs.map(|(i, b)| (first.1[partner(i)], *b)).collect();
                model.scores(second.0, &pairs)
            }
            Self::Vectors(model) => {
                let (a, b) = (
                    model.texts(first.0, first.1)?,
                    model.texts(second.0, second.1)?,
                );
                let tokens = a.iter().chain(&b).map(|embedded| embedded.tokens).sum();
                let pairs = b.iter().enumerate();
                let scores = pairs.map(|(i, b)| dot(&a[partner(i)].vector, &b.vector));
                Ok((scores.collect(), tokens))
            }
        }
    }
}

/// Runs `work` on a thread that may compute for a while, and answers with what it gives.
async fn answer(
    app: Arc<App>,
    request: Request,
    work: fn(&App, &Fields<'_>) -> Result<Value, ApiError>,
) -> Result<Response, ApiError> {
    app.keys().tenant(request.headers())?;
    let body = app.read_json(request).await?;
    let answer = blocking(move || work(&app, &Fields::of(&body)?)).await?;
    Ok(json_response(StatusCode::OK, &answer))
}

/// `POST /v1/embeddings`.
pub async fn embeddings(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(app, request, |app, fields| {
        let model = model(app, fields)?;
        let as_base64 = match fields.string("encoding_format")? {
            None | Some("float") => false,
            Some("base64") => true,
            Some(_) => return Err(fields.wrong("encoding_format", "float or base64")),
        };
        let dimensions = fields.integer("dimensions", 1..=1 << 20)?;
        let dimensions = dimensions.map(|n| n as usize);
        let (mut data, mut tokens) = (Vec::new(), 0);
        let embedded = model.embed("input", &inputs(model, fields)?, dimensions)?;
        for (index, embedded) in embedded.into_iter().enumerate() {
            tokens += embedded.tokens;
            let embedding = match as_base64 {
                true => Value::from(base64(&embedded.vector)),
                false => Value::from(embedded.vector),
            };
            data.push(json!({"object": "embedding", "index": index, "embedding": embedding}));
        }
        Ok(json!({
            "object": "list",
            "data": data,
            "model": model.id,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }))
    })
    .await
}

/// A string, a list of strings, a list of tokens or a list of lists of tokens.
fn inputs(model: &EmbeddingModel, fields: &Fields<'_>) -> Result<Vec<Vec<u32>>, ApiError> {
    let must = format!("a string, a list of tokens, or a list of 1 to {MAX_TEXTS} of these");
    let wrong = || fields.wrong("input", &must);
    let one = |value: &Value| match value {
        Value::String(text) => model.encode("input", text),
        Value::Array(ids) => token_ids(ids).ok_or_else(wrong),
        _ => Err(wrong()),
    };
    match fields.value("input") {
        Some(Value::Array(list)) if !list.iter().any(Value::is_u64) => {
            if !(1..=MAX_TEXTS).contains(&list.len()) {
                return Err(wrong());
            }
            list.iter().map(one).collect()
        }
        Some(value) => Ok(vec![one(value)?]),
        None => Err(wrong()),
    }
}

/// `POST /v1/rerank` with `query`, `documents` and perhaps `top_n` and `return_documents`, as Jina and Cohere have it:
/// the documents by the cosine of their vectors with the query's, or by what a cross-encoder says.
pub async fn rerank(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    answer(app, request, |app, fields| {
        let judge = Judge::choose(app, fields)?;
        let must = "a string";
        let query = fields.string("query")?;
        let query = query.ok_or_else(|| fields.wrong("query", must))?;
        let documents = texts(fields, "documents")?;
        let top = fields.integer("top_n", 1..=u64::MAX)?.map(|n| n as usize);
        let with_documents = fields.flag("return_documents")?;
        let (scores, tokens) = judge.scores(("query", &[query]), ("documents", &documents))?;
        let mut scored: Vec<(f64, usize)> = scores.into_iter().zip(0..).collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        scored.truncate(top.unwrap_or(usize::MAX));
        let results = scored.into_iter().map(|(score, index)| {
            let mut result = json!({"index": index, "relevance_score": score});
            if with_documents {
                result["document"] = json!({"text": documents[index]});
            }
            result
        });
        Ok(json!({
            "model": judge.id(),
            "results": results.collect::<Vec<_>>(),
            "usage": {"total_tokens": tokens},
        }))
    })
    .await
}

/// `POST /v1/score` with `text_1` and `text_2`, each a string or a list, as vLLM has it: scores of pairs.
pub async fn score(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    answer(app, request, |app, fields| {
        let judge = Judge::choose(app, fields)?;
        let (first, second) = (texts(fields, "text_1")?, texts(fields, "text_2")?);
        if first.len() != 1 && first.len() != second.len() {
            let must = "one text, or as many as `text_2`";
            return Err(fields.wrong("text_1", must));
        }
        let (scores, tokens) = judge.scores(("text_1", &first), ("text_2", &second))?;
        let pairs = scores.iter().enumerate();
        let pairs = pairs.map(|(i, score)| json!({"index": i, "object": "score", "score": score}));
        Ok(json!({
            "object": "list",
            "model": judge.id(),
            "data": pairs.collect::<Vec<_>>(),
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }))
    })
    .await
}

/// One text or several.
fn texts<'a>(fields: &Fields<'a>, name: &str) -> Result<Vec<&'a str>, ApiError> {
    let must = format!("a string, or a list of 1 to {MAX_TEXTS} strings");
    let wrong = || fields.wrong(name, &must);
    match fields.value(name) {
        Some(Value::String(text)) => Ok(vec![text]),
        Some(Value::Array(list)) if (1..=MAX_TEXTS).contains(&list.len()) => list
            .iter()
            .map(|text| text.as_str().ok_or_else(wrong))
            .collect(),
        _ => Err(wrong()),
    }
}

/// Vectors have length 1, so this is the cosine.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
    products.sum()
}

/// Numbers as little-endian bytes in base 64 (RFC 4648), as OpenAI's clients ask for them.
fn base64(values: &[f32]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            match i <= group.len() {
                true => out.push(char::from(DIGITS[(bits >> (18 - 6 * i) & 63) as usize])),
                false => out.push('='),
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        // 1.0 is 00 00 80 3f.
        assert_eq!(base64(&[1.0]), "AACAPw==");
        assert_eq!(base64(&[1.0, -2.0, 0.5]), "AACAPwAAAMAAAAA/");
        assert_eq!(base64(&[1.0, 1.0]), "AACAPwAAgD8=");
        assert_eq!(base64(&[]), "");
    }
}
