//! Texts to vectors: encoders (BERT, MiniLM) and decoders made for it (Qwen3-Embedding).
//!
//! A vector is one of the hidden rows after the last norm, or their mean, brought to length 1.

use std::ops::Range;

use neap_memory::{BlockTable, KvPool, OverBudget};
use serde::Deserialize;

use crate::decoder::{CpuDecoder, Decoder, LogitsWanted, SequenceChunk, StepError};
use crate::gguf::Value;
use crate::safetensors::{HfFolder, read_json};
use crate::source::{ModelFileError, ModelSource};

/// Which hidden rows make the vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The mean of all tokens' rows.
    Mean,
    /// The first token's row: that of `[CLS]`.
    Cls,
    /// The last token's row.
    Last,
}

/// Why a text has no vector.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// There are no tokens.
    #[error("the text is empty")]
    Empty,
    /// The text is longer than the model reads.
    #[error("the text has {tokens} tokens, the model reads {most}: shorten or split it")]
    TooLong {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens that may be.
        most: usize,
    },
    /// More dimensions than the model gives.
    #[error("{asked} dimensions are asked for, the model gives {given}")]
    Dimensions {
        /// Asked for.
        asked: usize,
        /// Given.
        given: usize,
    },
    /// The budget has no room for the text's keys and values.
    #[error("the keys and values of the text do not fit: {0}")]
    OverBudget(#[from] OverBudget),
    /// The step failed.
    #[error(transparent)]
    Step(#[from] StepError),
}

impl Pooling {
    /// `mean`, `cls` or `last`.
    pub fn by_name(name: &str) -> Option<Self> {
        match name {
            "mean" => Some(Self::Mean),
            "cls" => Some(Self::Cls),
            "last" => Some(Self::Last),
            _ => None,
        }
    }

    /// What the model's files ask for; if nothing, the mean for encoders and the last row for decoders.
    ///
    /// # Errors
    /// If the file that says it cannot be read, or asks for another way.
    pub fn of(source: &ModelSource) -> Result<Self, ModelFileError> {
        let asked = match (source.gguf(), source.folder()) {
            (Some(file), _) => {
                let name = source
                    .config()
                    .architecture
                    .row()
                    .gguf_name
                    .unwrap_or_default();
                let key = format!("{name}.pooling_type");
                match file.metadata(&key).and_then(Value::as_u32) {
                    None | Some(0) => None,
                    Some(1) => Some(Self::Mean),
                    Some(2) => Some(Self::Cls),
                    Some(3) => Some(Self::Last),
                    Some(4) => {
                        let reason = "kind 4 gives classes or scores of pairs, not vectors: the model is a classifier";
                        return Err(ModelFileError::config(file.path(), key, reason));
                    }
                    Some(other) => {
                        let reason = format!("kind {other} is not supported");
                        return Err(ModelFileError::config(file.path(), key, reason));
                    }
                }
            }
            (None, Some(folder)) => of_folder(folder)?,
            (None, None) => None,
        };
        let usual = match source.config().causal {
            true => Self::Last,
            false => Self::Mean,
        };
        Ok(asked.unwrap_or(usual))
    }
}

impl Pooling {
    /// The rows that are summed, of those that a step gives of a text.
    fn rows(self, rows: &[f32], width: usize) -> &[f32] {
        match self {
            Self::Cls => &rows[..width.min(rows.len())],
            Self::Mean | Self::Last => rows,
        }
    }
}

/// `1_Pooling/config.json`, as sentence-transformers writes it.
#[derive(Deserialize)]
struct PoolingConfig {
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
}

fn of_folder(folder: &HfFolder) -> Result<Option<Pooling>, ModelFileError> {
    let path = folder.path().join("1_Pooling").join("config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let config: PoolingConfig = serde_json::from_slice(&read_json(&path)?)
        .map_err(|error| ModelFileError::config(&path, "JSON", error.to_string()))?;
    match config {
        PoolingConfig {
            pooling_mode_mean_tokens: true,
            ..
        } => Ok(Some(Pooling::Mean)),
        PoolingConfig {
            pooling_mode_cls_token: true,
            ..
        } => Ok(Some(Pooling::Cls)),
        PoolingConfig {
            pooling_mode_lasttoken: true,
            ..
        } => Ok(Some(Pooling::Last)),
        _ => Err(ModelFileError::config(
            &path,
            "pooling_mode",
            "is none of mean, cls and last token",
        )),
    }
}

/// Makes vectors.
pub struct Embedder {
    decoder: CpuDecoder,
    kv: KvPool,
    pooling: Pooling,
}

impl Embedder {
    /// An embedder that keeps keys and values in blocks of `kv` while it reads a text.
    pub fn new(decoder: CpuDecoder, kv: KvPool, pooling: Pooling) -> Self {
        Self {
            decoder,
            kv,
            pooling,
        }
    }

    /// Numbers of a vector.
    pub fn dimensions(&self) -> usize {
        self.decoder.model().config().hidden_size
    }

    /// Tokens that a text may have.
    pub fn context_tokens(&self) -> usize {
        let context = self.decoder.context_tokens();
        match self.decoder.model().config().causal {
            true => context,
            // Every token sees all others: they are computed in one step.
            false => context.min(self.decoder.limits().batch_tokens),
        }
    }

    /// The vector of a text, of length 1. Of fewer `dimensions` it is the beginning, brought to length 1: for models
    /// trained so that this works (Matryoshka, Kusupati et al. 2022).
    ///
    /// # Errors
    /// [`EmbedError`].
    pub fn embed(
        &mut self,
        tokens: &[u32],
        dimensions: Option<usize>,
    ) -> Result<Vec<f32>, EmbedError> {
        let mut vectors = self.embed_all(&[tokens], dimensions)?;
        Ok(vectors.swap_remove(0))
    }

    /// The vectors of several texts; as many texts are computed together as a step takes, to the same bits as alone.
    ///
    /// # Errors
    /// [`EmbedError`], for the first text that is at fault.
    pub fn embed_all(
        &mut self,
        texts: &[&[u32]],
        dimensions: Option<usize>,
    ) -> Result<Vec<Vec<f32>>, EmbedError> {
        let (width, most) = (self.dimensions(), self.context_tokens());
        let asked = dimensions.unwrap_or(width);
        if asked == 0 || asked > width {
            return Err(EmbedError::Dimensions {
                asked,
                given: width,
            });
        }
        for text in texts {
            match text.len() {
                0 => return Err(EmbedError::Empty),
                tokens if tokens > most => return Err(EmbedError::TooLong { tokens, most }),
                _ => {}
            }
        }
        let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
        let batch_tokens = self.decoder.limits().batch_tokens;
        let mut vectors = Vec::with_capacity(texts.len());
        for step in steps(&lengths, batch_tokens) {
            match &texts[step] {
                [long] if long.len() > batch_tokens => vectors.push(self.pooled(long, width)?),
                together => self.pooled_together(together, width, &mut vectors)?,
            }
        }
        let unit = |mut vector: Vec<f64>| {
            vector.truncate(asked);
            let length = vector.iter().map(|v| v * v).sum::<f64>().sqrt();
            let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
            vector.into_iter().map(|v| (v * scale) as f32).collect()
        };
        Ok(vectors.into_iter().map(unit).collect())
    }

    /// The sums of the rows of texts that one step takes.
    fn pooled_together(
        &mut self,
        texts: &[&[u32]],
        width: usize,
        out: &mut Vec<Vec<f64>>,
    ) -> Result<(), EmbedError> {
        let logits = match self.pooling {
            Pooling::Mean | Pooling::Cls => LogitsWanted::All,
            Pooling::Last => LogitsWanted::Last,
        };
        let mut tables: Vec<BlockTable> = texts.iter().map(|_| BlockTable::new(&self.kv)).collect();
        let mut batch = Vec::with_capacity(texts.len());
        for (table, tokens) in tables.iter_mut().zip(texts) {
            table.reserve(tokens.len())?;
            batch.push(SequenceChunk {
                tokens,
                table,
                logits,
                adapter: None,
                second_segment: None,
            });
        }
        let mut rows = self.decoder.hidden(&mut batch)?;
        for tokens in texts {
            let (own, rest) = rows.split_at(logits.rows(tokens.len()) * width);
            rows = rest;
            let mut sum = vec![0.0; width];
            add_rows(&mut sum, self.pooling.rows(own, width));
            out.push(sum);
        }
        Ok(())
    }

    /// The sum of the rows that make the vector.
    fn pooled(&mut self, tokens: &[u32], width: usize) -> Result<Vec<f64>, EmbedError> {
        let mut table = BlockTable::new(&self.kv);
        let mut sum = vec![0.0f64; width];
        let step = self.decoder.limits().batch_tokens;
        let count = tokens.len().div_ceil(step);
        for (number, chunk) in tokens.chunks(step).enumerate() {
            table.reserve(chunk.len())?;
            let logits = match self.pooling {
                Pooling::Mean => LogitsWanted::All,
                Pooling::Cls if number == 0 => LogitsWanted::All,
                Pooling::Last if number + 1 == count => LogitsWanted::Last,
                _ => LogitsWanted::None,
            };
            let rows = self.decoder.hidden(&mut [SequenceChunk {
                tokens: chunk,
                table: &mut table,
                logits,
                adapter: None,
                second_segment: None,
            }])?;
            add_rows(&mut sum, self.pooling.rows(rows, width));
        }
        Ok(sum)
    }
}

/// Adds rows, each as long as the sum.
fn add_rows(sum: &mut [f64], rows: &[f32]) {
    for row in rows.chunks_exact(sum.len()) {
        sum.iter_mut()
            .zip(row)
            .for_each(|(s, r)| *s += f64::from(*r));
    }
}

/// Which of texts of these lengths are computed together: as many, in order, as `most` tokens hold; a longer one alone.
pub(crate) fn steps(lengths: &[usize], most: usize) -> Vec<Range<usize>> {
    let mut steps: Vec<Range<usize>> = Vec::new();
    let mut tokens = 0;
    for (index, &length) in lengths.iter().enumerate() {
        match steps.last_mut() {
            Some(step) if tokens + length <= most => {
                step.end = index + 1;
                tokens += length;
            }
            _ => {
                steps.push(index..index + 1);
                tokens = length;
            }
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_put_into_steps_in_order() {
        assert_eq!(steps(&[3, 4, 3, 20, 1, 9], 10), [0..3, 3..4, 4..6]);
        assert!(steps(&[], 10).is_empty());
    }
}
