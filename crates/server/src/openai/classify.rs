//! `/v1/classify`: texts into classes, without training by the probability that the model gives each label after a prompt,
//! or by a classifier.
//!
//! The labels of a text are continuations of one prompt, which is computed once; what several prompts begin with, such as
//! instructions and examples, is computed once for all of them, as for every request.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use neap_engine::{Event, FinishReason, Request as EngineRequest};
use neap_model::tokenizer::{EncodeOptions, Tokenizer};
use serde_json::{Value, json};

use super::{Caller, blocking, now_s, random};
use crate::adapters::Chosen;
use crate::app::{App, ServedModel};
use crate::error::{ApiError, json_response};
use crate::fields::Fields;
use crate::worker::Asking;

/// Texts of one call at most.
const MAX_TEXTS: usize = 256;
/// Labels at most.
const MAX_LABELS: usize = 64;
/// What a text and its labels are put into.
const PROMPT: &str = "Classify the text as one of: {labels}.\n\nText: {input}\nClass:";

/// What a body asks for.
struct Asked {
    model: Chosen,
    labels: Vec<String>,
    /// By the mean of a label's tokens, so that long labels are not at a disadvantage.
    by_mean: bool,
    texts: Vec<Scoring>,
}

/// One text: its prompt, and each label's tokens after it.
struct Scoring {
    prompt: Vec<u32>,
    labels: Vec<Vec<u32>>,
}

/// `POST /v1/classify` with `input` and `labels`, and perhaps `prompt` and `length_normalized`.
pub async fn handle(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let caller = Caller::of(&app, request.headers())?;
    let body = app.read_json(request).await?;
    if Fields::of(&body)?.value("labels").is_none() {
        let answer = blocking(move || by_classifier(&app, &body)).await?;
        return Ok(json_response(StatusCode::OK, &answer));
    }
    let model = app.serving.lease().await;
    let reader = model.clone();
    let asked = blocking(move || read(&reader, &body)).await?;
    let (mut data, mut tokens, mut cached) = (Vec::new(), 0, 0);
    for (index, text) in asked.texts.iter().enumerate() {
        let scores = score(&app, &asked, text, &caller).await?;
        tokens += text.prompt.len();
        cached += scores.cached_tokens;
        let probs = softmax(&scores.logprobs);
        let best = (0..probs.len()).max_by(|&a, &b| probs[a].total_cmp(&probs[b]));
        data.push(json!({
            "index": index,
            "label": best.map(|best| asked.labels[best].as_str()),
            "probs": probs,
            "logprobs": scores.logprobs,
            "num_classes": asked.labels.len(),
        }));
    }
    let answer = json!({
        "id": format!("classify-{:016x}", random()),
        "object": "list",
        "created": now_s(),
        "model": asked.model.id,
        "labels": asked.labels,
        "data": data,
        "usage": {
            "prompt_tokens": tokens,
            "completion_tokens": 0,
            "total_tokens": tokens,
            "prompt_tokens_details": {"cached_tokens": cached},
        },
    });
    Ok(json_response(StatusCode::OK, &answer))
}

/// Without labels: by a model that has classes of its own.
fn by_classifier(app: &App, body: &Value) -> Result<Value, ApiError> {
    let fields = Fields::of(body)?;
    let Some(model) = &app.classifier else {
        return Err(ApiError::field(
            "labels",
            "`labels` must be given: no model with classes of its own is served here (--classifier-model)",
        ));
    };
    match fields.string("model")? {
        Some(id) if id != model.id => Err(super::models::unknown(id, &model.id)),
        _ => model.classify(&strings(&fields, "input", 1..=MAX_TEXTS)?),
    }
}

fn read(model: &ServedModel, body: &Value) -> Result<Asked, ApiError> {
    let fields = Fields::of(body)?;
    let chosen = model.choose(&fields)?;
    let texts = strings(&fields, "input", 1..=MAX_TEXTS)?;
    let labels = strings(&fields, "labels", 2..=MAX_LABELS)?;
    let distinct = |label: &String| labels.iter().filter(|other| *other == label).count() == 1;
    if !labels.iter().all(distinct) {
        return Err(fields.wrong("labels", "texts that differ"));
    }
    let template = fields.string("prompt")?.unwrap_or(PROMPT);
    if !template.contains("{input}") {
        return Err(fields.wrong("prompt", "a text with {input} in it, and perhaps {labels}"));
    }
    let scoring = |text: &String| {
        // In one pass, so that a text that contains a placeholder stays as it is.
        let parts = template.split("{input}");
        let parts: Vec<String> = parts
            .map(|p| p.replace("{labels}", &labels.join(", ")))
            .collect();
        Scoring::read(&model.tokenizer, &parts.join(text), &labels)
    };
    Ok(Asked {
        model: chosen,
        by_mean: fields.flag("length_normalized")?,
        texts: texts.iter().map(scoring).collect::<Result<_, _>>()?,
        labels,
    })
}

impl Scoring {
    /// Prompt and labels, as the tokenizer reads them together: what is common to all is the prompt.
    fn read(tokenizer: &Tokenizer, prompt: &str, labels: &[String]) -> Result<Self, ApiError> {
        let encode = |text: &str| {
            let tokens = tokenizer.encode(text, EncodeOptions::default());
            tokens.map_err(|why| ApiError::field("input", why.to_string()))
        };
        let alone = encode(prompt)?;
        let space = if prompt.ends_with(char::is_whitespace) {
            ""
        } else {
            " "
        };
        let whole = labels
            .iter()
            .map(|label| encode(&format!("{prompt}{space}{label}")));
        let mut whole: Vec<Vec<u32>> = whole.collect::<Result<_, _>>()?;
        let shared = whole.iter().map(|tokens| {
            let same = tokens.iter().zip(&alone).take_while(|(a, b)| a == b);
            // Something is left to be scored.
            same.count().min(tokens.len() - 1)
        });
        let shared = shared.min().unwrap_or(0);
        if shared == 0 {
            let message = "`prompt` must begin with something before {input} and the labels";
            return Err(ApiError::field("prompt", message));
        }
        let prompt = whole[0][..shared].to_vec();
        for tokens in &mut whole {
            tokens.drain(..shared);
        }
        Ok(Self {
            prompt,
            labels: whole,
        })
    }
}

/// What a text's labels come to.
struct Scores {
    logprobs: Vec<f64>,
    cached_tokens: usize,
}

async fn score(
    app: &App,
    asked: &Asked,
    text: &Scoring,
    caller: &Caller,
) -> Result<Scores, ApiError> {
    let request = |label: &Vec<u32>| EngineRequest {
        prompt: text.prompt.clone(),
        forced: label.clone(),
        max_new_tokens: Some(label.len()),
        top_logprobs: Some(0),
        tenant: caller.tenant.clone(),
        adapter: asked.model.adapter.clone(),
        ..EngineRequest::default()
    };
    let asking = Asking {
        session: None,
        operation: "text_completion",
        trace: caller.trace,
    };
    let requests: Vec<EngineRequest> = text.labels.iter().map(request).collect();
    let submitted = app.engine.submit(requests, asking).await;
    let mut events = submitted.map_err(|mut why| {
        why.param = why.param.map(|param| param.replace("prompt", "input"));
        why
    })?;
    let mut sums = vec![0.0; text.labels.len()];
    let (mut unfinished, mut cached_tokens) = (sums.len(), usize::MAX);
    while unfinished > 0 {
        let Some((index, event)) = events.recv().await else {
            return Err(ApiError::unavailable("the engine has ended"));
        };
        match event {
            Event::Token { logprobs, .. } => {
                sums[index] += logprobs.first().map_or(0.0, |own| f64::from(own.logprob));
            }
            Event::Finished {
                reason: FinishReason::Length,
                usage,
                ..
            } => {
                unfinished -= 1;
                cached_tokens = cached_tokens.min(usage.cached_tokens);
            }
            Event::Finished { reason, .. } => {
                return Err(ApiError::unavailable(reason.to_string()));
            }
        }
    }
    if asked.by_mean {
        let lengths = text.labels.iter().map(|label| label.len() as f64);
        sums.iter_mut().zip(lengths).for_each(|(sum, n)| *sum /= n);
    }
    Ok(Scores {
        logprobs: sums,
        cached_tokens,
    })
}

fn softmax(logprobs: &[f64]) -> Vec<f64> {
    let most = logprobs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = logprobs.iter().map(|l| (l - most).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// A text, or a list of so many.
fn strings(
    fields: &Fields<'_>,
    name: &str,
    bounds: std::ops::RangeInclusive<usize>,
) -> Result<Vec<String>, ApiError> {
    let must = format!("a list of {} to {} texts", bounds.start(), bounds.end());
    let wrong = || fields.wrong(name, &must);
    let one = |value: &Value| value.as_str().filter(|t| !t.is_empty()).map(str::to_owned);
    let list: Option<Vec<String>> = match fields.value(name) {
        Some(Value::Array(list)) => list.iter().map(one).collect(),
        Some(value) => one(value).map(|text| vec![text]),
        None => None,
    };
    list.filter(|l| bounds.contains(&l.len())).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_add_up_however_small_they_are() {
        let probs = softmax(&[-1000.0, -1000.0 + 2f64.ln(), -5000.0]);
        assert!((probs[0] - 1.0 / 3.0).abs() < 1e-12 && (probs[1] - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(probs[2], 0.0);
    }
}
