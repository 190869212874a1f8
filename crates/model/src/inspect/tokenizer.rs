//! A summary of the tokenizer, without building it.

use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::gguf::{GgufFile, Value};
use crate::safetensors::{HfFolder, read_json};
use crate::source::ModelFileError;

/// What kind of tokenizer comes with a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenizerSummary {
    /// The kind, as the file calls it: `llama` or `gpt2` in GGUF files, `BPE` or `Unigram` in `tokenizer.json`.
    pub model: String,
    /// The rule by which texts are cut before merging, if the file names one.
    pub pre: Option<String>,
    /// Number of tokens.
    pub tokens: usize,
}

impl TokenizerSummary {
    pub(super) fn of_gguf(file: &GgufFile) -> Option<Self> {
        let text = |key: &str| file.metadata(key).and_then(Value::as_str);
        Some(Self {
            model: text("tokenizer.ggml.model")?.to_owned(),
            pre: text("tokenizer.ggml.pre").map(str::to_owned),
            tokens: file
                .metadata("tokenizer.ggml.tokens")
                .and_then(Value::as_array)
                .map_or(0, |tokens| tokens.len()),
        })
    }

    pub(super) fn of_folder(folder: &HfFolder) -> Result<Option<Self>, ModelFileError> {
        let Some(path) = folder.tokenizer_json() else {
            return Ok(None);
        };
        let raw: RawTokenizer = serde_json::from_slice(&read_json(&path)?)
            .map_err(|error| ModelFileError::config(&path, "JSON", error.to_string()))?;
        // Added tokens may be part of the vocabulary already: the highest number tells.
        let highest = raw
            .added_tokens
            .iter()
            .map(|token| token.id.saturating_add(1))
            .max();
        Ok(Some(Self {
            model: raw.model.kind.unwrap_or_else(|| "unnamed".to_owned()),
            pre: None,
            tokens: raw.model.vocab.0.max(highest.unwrap_or(0) as usize),
        }))
    }
}

#[derive(Deserialize)]
struct RawTokenizer {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    model: RawModel,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u64,
}

#[derive(Deserialize)]
struct RawModel {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: Count,
}

/// The number of entries of an object or a list, of which nothing is kept.
struct Count(usize);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counter;
        impl<'de> Visitor<'de> for Counter {
            type Value = Count;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object or a list")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Count, M::Error> {
                let mut count = 0;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Count(count))
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Count, S::Error> {
                let mut count = 0;
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Count(count))
            }
        }
        deserializer.deserialize_any(Counter)
    }
}
