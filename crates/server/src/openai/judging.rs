//! Classifiers beside the model that writes: classes of texts, and scores of pairs by a cross-encoder.

use std::sync::{Mutex, PoisonError};

use neap_model::classify::{Classifier, ClassifierInput, Outcome, PairPrompt};
use neap_model::tokenizer::{EncodeOptions, Tokenizer};
use serde_json::{Value, json};

use super::embeddings::refusal;
use super::{now_s, random};
use crate::error::ApiError;

/// Texts that are computed before others have their turn.
const AT_ONCE: usize = 32;

/// A model that classifies, or judges pairs.
pub struct ClassifierModel {
    /// Its name in the API.
    pub id: String,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// One call at a time goes through it.
    pub classifier: Mutex<Classifier>,
    /// The names of its classes.
    pub labels: Vec<String>,
    /// What becomes of its logits.
    pub outcome: Outcome,
    /// How a decoder is asked about two texts.
    prompt: Option<PairPrompt>,
    is_decoder: bool,
}

/// A text or two, as tokens.
struct Encoded {
    tokens: Vec<u32>,
    second_segment: Option<usize>,
}

impl ClassifierModel {
    /// A model by the name `id`.
    #[must_use]
    pub fn new(id: impl Into<String>, tokenizer: Tokenizer, classifier: Classifier) -> Self {
        Self {
            id: id.into(),
            tokenizer,
            labels: classifier.labels().to_vec(),
            outcome: classifier.outcome(),
            prompt: classifier.pair_prompt(),
            is_decoder: classifier.is_decoder(),
            classifier: Mutex::new(classifier),
        }
    }

    fn encode(&self, field: &str, text: &str) -> Result<Vec<u32>, ApiError> {
        self.tokenizer
            .encode(text, EncodeOptions::default())
            .map_err(|why| ApiError::field(field, why.to_string()))
    }

    /// Both texts, as the model's tokenizer joins them, or in the prompt that a decoder was trained with.
    fn pair(&self, (field, first): (&str, &str), second: &str) -> Result<Encoded, ApiError> {
        if let Some(prompt) = &self.prompt {
            let options = EncodeOptions {
                add_bos: false,
                parse_special: true,
            };
            let encoded = self.tokenizer.encode(&prompt.text(first, second), options);
            return Ok(Encoded {
                tokens: encoded.map_err(|why| ApiError::field(field, why.to_string()))?,
                second_segment: None,
            });
        }
        if self.is_decoder {
            let why = "the model's files do not say how it is asked about two texts";
            return Err(ApiError::field("model", why));
        }
        let encoded = self.tokenizer.encode_pair(first, second);
        let (tokens, second_segment) =
            encoded.map_err(|why| ApiError::field(field, why.to_string()))?;
        Ok(Encoded {
            tokens,
            second_segment,
        })
    }

    /// What each comes to, and the tokens of all.
    fn judge(&self, field: &str, all: &[Encoded]) -> Result<(Vec<Vec<f64>>, usize), ApiError> {
        let mut out = Vec::with_capacity(all.len());
        for some in all.chunks(AT_ONCE) {
            let inputs: Vec<ClassifierInput<'_>> = some
                .iter()
                .map(|encoded| ClassifierInput {
                    tokens: &encoded.tokens,
                    second_segment: encoded.second_segment,
                })
                .collect();
            let mut classifier = self
                .classifier
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let logits = classifier
                .logits(&inputs)
                .map_err(|why| refusal(field, why))?;
            out.extend(logits.iter().map(|logits| self.outcome.of(logits)));
        }
        Ok((out, all.iter().map(|encoded| encoded.tokens.len()).sum()))
    }

    /// Scores of pairs, and the tokens of all.
    pub fn scores(
        &self,
        field: &str,
        pairs: &[(&str, &str)],
    ) -> Result<(Vec<f64>, usize), ApiError> {
        let encoded = pairs.iter().map(|(a, b)| self.pair((field, a), b));
        let encoded: Vec<Encoded> = encoded.collect::<Result<_, _>>()?;
        let (judged, tokens) = self.judge(field, &encoded)?;
        let scores = judged
            .iter()
            .map(|scores| scores.first().copied().unwrap_or(0.0));
        Ok((scores.collect(), tokens))
    }

    /// The body of an answer to `/v1/classify`.
    pub fn classify(&self, texts: &[String]) -> Result<Value, ApiError> {
        let encoded = texts.iter().map(|text| {
            Ok(Encoded {
                tokens: self.encode("input", text)?,
                second_segment: None,
            })
        });
        let encoded: Vec<Encoded> = encoded.collect::<Result<_, ApiError>>()?;
        let (judged, tokens) = self.judge("input", &encoded)?;
        let data = judged.iter().enumerate().map(|(index, probs)| {
            let best = (0..probs.len()).max_by(|&a, &b| probs[a].total_cmp(&probs[b]));
            json!({
                "index": index,
                "label": best.map(|best| self.labels[best].as_str()),
                "probs": probs,
                "num_classes": self.labels.len(),
            })
        });
        Ok(json!({
            "id": format!("classify-{:016x}", random()),
            "object": "list",
            "created": now_s(),
            "model": self.id,
            "labels": self.labels,
            "data": data.collect::<Vec<_>>(),
            "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
        }))
    }
}
