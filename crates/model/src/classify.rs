//! Texts to classes, by an encoder or a decoder with a head that was trained for it: sequence classification, and
//! cross-encoders, which judge a pair of texts by one number.
//!
//! The head reads one hidden row (or their mean): perhaps a matrix, an activation, a norm, then a matrix with a row for
//! each class. Decoders have only the last of these, and it reads their last row; a pair comes to them as a [`PairPrompt`].

mod head;
mod pair;

use neap_memory::{BlockTable, KvPool, OverBudget};

use crate::config::Activation;
use crate::decoder::{CpuDecoder, Decoder, LogitsWanted, SequenceChunk};
use crate::embed::{EmbedError, Pooling, steps};
use crate::source::ModelFileError;
pub(crate) use head::Head;
pub(crate) use pair::GGUF_KEY;
pub use pair::PairPrompt;

/// A text, or two that are judged together.
#[derive(Clone, Copy, Debug)]
pub struct ClassifierInput<'a> {
    /// All tokens, the special ones among them.
    pub tokens: &'a [u32],
    /// Where the second text begins.
    pub second_segment: Option<usize>,
}

/// Why there is no classifier.
#[derive(Debug, thiserror::Error)]
pub enum ClassifierError {
    /// The files are at fault.
    #[error(transparent)]
    File(#[from] ModelFileError),
    /// The model was not made for it.
    #[error(
        "{path}: has no classification head (classifier.weight or classifier.out_proj.weight, score.weight of a decoder, or cls.output.weight in GGUF files)"
    )]
    NoHead {
        /// The model.
        path: String,
    },
    /// The budget has no room for the head.
    #[error("the classification head does not fit: {0}")]
    OverBudget(#[from] OverBudget),
}

/// What becomes of logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Of each by itself: `1 / (1 + e^-x)`.
    Sigmoid,
    /// Of all together: they sum to 1.
    Softmax,
    /// As they are.
    Identity,
}

impl Outcome {
    /// Probabilities, or scores, of logits.
    pub fn of(self, logits: &[f32]) -> Vec<f64> {
        let values = logits.iter().map(|&x| f64::from(x));
        match self {
            Self::Identity => values.collect(),
            Self::Sigmoid => values.map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
            Self::Softmax => {
                let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let powers: Vec<f64> = values.map(|x| (x - f64::from(most)).exp()).collect();
                let sum: f64 = powers.iter().sum();
                powers.into_iter().map(|power| power / sum).collect()
            }
        }
    }
}

/// A model with a head.
pub struct Classifier {
    decoder: CpuDecoder,
    kv: KvPool,
    head: Head,
}

impl Classifier {
    /// Reads the head of the decoder's model; keys and values lie in blocks of `kv` while a text is read.
    ///
    /// # Errors
    /// [`ClassifierError`].
    pub fn new(decoder: CpuDecoder, kv: KvPool) -> Result<Self, ClassifierError> {
        let source = decoder.model().source();
        let head = Head::read(source, kv.budget())?.ok_or_else(|| ClassifierError::NoHead {
            path: source.path().display().to_string(),
        })?;
        Ok(Self { decoder, kv, head })
    }

    /// The classes' names, in order.
    pub fn labels(&self) -> &[String] {
        &self.head.labels
    }

    /// What becomes of logits, as the model's files have it.
    pub fn outcome(&self) -> Outcome {
        self.head.outcome
    }

    /// How a query and a document are put together; encoders have their tokenizer for that.
    pub fn pair_prompt(&self) -> Option<PairPrompt> {
        PairPrompt::of(self.decoder.model().source())
    }

    /// Whether tokens attend only to those before them, as a decoder's do.
    pub fn is_decoder(&self) -> bool {
        self.decoder.model().config().causal
    }

    /// Tokens that a text may have.
    pub fn context_tokens(&self) -> usize {
        let context = self.decoder.context_tokens();
        match self.is_decoder() {
            true => context,
            // Every token sees all others: they are computed in one step.
            false => context.min(self.decoder.limits().batch_tokens),
        }
    }

    /// The logits of each text. As many are computed together as a step takes.
    ///
    /// # Errors
    /// [`EmbedError`].
    pub fn logits(&mut self, texts: &[ClassifierInput<'_>]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let most = self.context_tokens();
        for text in texts {
            match text.tokens.len() {
                0 => return Err(EmbedError::Empty),
                tokens if tokens > most => return Err(EmbedError::TooLong { tokens, most }),
                _ => {}
            }
        }
        let mut out = Vec::with_capacity(texts.len());
        let lengths: Vec<usize> = texts.iter().map(|text| text.tokens.len()).collect();
        let batch_tokens = self.decoder.limits().batch_tokens;
        for step in steps(&lengths, batch_tokens) {
            match &texts[step] {
                [long] if long.tokens.len() > batch_tokens => out.push(self.in_chunks(long)?),
                together => self.step(together, &mut out)?,
            }
        }
        Ok(out)
    }

    /// The logits of a text that is longer than a step: a decoder's, whose head reads the last row.
    fn in_chunks(&mut self, text: &ClassifierInput<'_>) -> Result<Vec<f32>, EmbedError> {
        let mut table = BlockTable::new(&self.kv);
        let mut last = Vec::new();
        for chunk in text.tokens.chunks(self.decoder.limits().batch_tokens) {
            table.reserve(chunk.len())?;
            let rows = self.decoder.hidden(&mut [SequenceChunk {
                tokens: chunk,
                table: &mut table,
                logits: LogitsWanted::Last,
                adapter: None,
                second_segment: None,
            }])?;
            last = rows.to_vec();
        }
        Ok(self.head.logits(&last))
    }

    fn step(
        &mut self,
        texts: &[ClassifierInput<'_>],
        out: &mut Vec<Vec<f32>>,
    ) -> Result<(), EmbedError> {
        let mut tables: Vec<BlockTable> = texts.iter().map(|_| BlockTable::new(&self.kv)).collect();
        let mut batch = Vec::with_capacity(texts.len());
        for (table, text) in tables.iter_mut().zip(texts) {
            table.reserve(text.tokens.len())?;
            batch.push(SequenceChunk {
                tokens: text.tokens,
                table,
                logits: LogitsWanted::All,
                adapter: None,
                second_segment: text.second_segment,
            });
        }
        let width = self.decoder.model().config().hidden_size;
        let mut rows = self.decoder.hidden(&mut batch)?;
        for text in texts {
            let (own, rest) = rows.split_at(text.tokens.len() * width);
            rows = rest;
            let pooled = match self.head.pooling {
                Pooling::Cls => own[..width].to_vec(),
                Pooling::Last => own[own.len() - width..].to_vec(),
                Pooling::Mean => mean(own, width),
            };
            out.push(self.head.logits(&pooled));
        }
        Ok(())
    }
}

fn mean(rows: &[f32], width: usize) -> Vec<f32> {
    let mut sum = vec![0.0f64; width];
    for row in rows.chunks_exact(width) {
        sum.iter_mut()
            .zip(row)
            .for_each(|(s, r)| *s += f64::from(*r));
    }
    let count = (rows.len() / width) as f64;
    sum.into_iter().map(|s| (s / count) as f32).collect()
}

/// `f(x)`, value by value.
fn activate(activation: Activation, x: f32) -> f32 {
    let x = f64::from(x);
    let y = match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::GeluErf => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
    };
    y as f32
}

/// The error function by its Taylor series, and beyond 4 by 1, from which it differs by 2e-8 there.
fn erf(x: f64) -> f64 {
    if x.abs() > 4.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-17 * sum.abs().max(1e-300) && n < 200.0 {
        n += 1.0;
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_function_is_that_of_the_tables() {
        for (x, y) in [
            (0.0, 0.0),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (-2.0, -0.995_322_265_018_952_7),
            (3.5, 0.999_999_256_901_627_7),
        ] {
            assert!((erf(x) - y).abs() < 1e-9, "{x}: {}", erf(x));
        }
    }

    #[test]
    fn outcomes_are_probabilities() {
        assert_eq!(Outcome::Identity.of(&[2.0]), [2.0]);
        assert_eq!(Outcome::Sigmoid.of(&[0.0]), [0.5]);
        let probs = Outcome::Softmax.of(&[100.0, 100.0, -900.0]);
        assert_eq!(probs, [0.5, 0.5, 0.0]);
    }
}
