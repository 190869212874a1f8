//! What kind of model a file holds: its shape and its options, read from GGUF metadata or from `config.json`.
//!
//! Every number is checked before anything is computed from it, and a refusal names the field as the file calls it.

mod field;
mod from_gguf;
mod from_hf;

#[cfg(test)]
mod tests;

use std::path::Path;

use serde::Serialize;

use crate::source::ModelFileError;
pub(crate) use field::{Dialect, Field};
pub(crate) use from_gguf::architecture_name;
pub(crate) use from_hf::{HfConfigFiles, model_type};

/// A family of models that differ only in numbers and options: a row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// Llama 1 to 3.x and what is built alike (SmolLM2, TinyLlama, Mistral in GGUF files).
    Llama,
    /// Mistral, as Hugging Face folders call it: Llama with an optional sliding window.
    Mistral,
    /// Qwen 2 and 2.5: Llama with biases on queries, keys and values.
    Qwen2,
    /// Qwen 3: Llama with a norm on every query and key head.
    Qwen3,
}

/// What is fixed for an architecture.
#[derive(Clone, Copy, Debug)]
pub struct ArchitectureRow {
    /// The row's key.
    pub architecture: Architecture,
    /// `general.architecture` in GGUF files, if they know it.
    pub gguf_name: Option<&'static str>,
    /// `model_type` in `config.json`.
    pub hf_name: &'static str,
    /// Which elements RoPE pairs in GGUF files. (In Hugging Face folders always [`RopeLayout::Halves`].)
    pub gguf_rope_layout: RopeLayout,
    /// Whether the tensors for biases on queries, keys and values must be there.
    pub needs_qkv_bias: bool,
    /// Whether the tensors for norms of query and key heads must be there.
    pub needs_qk_norm: bool,
}

/// All architectures.
pub const ARCHITECTURES: &[ArchitectureRow] = &[
    ArchitectureRow {
        architecture: Architecture::Llama,
        gguf_name: Some("llama"),
        hf_name: "llama",
        gguf_rope_layout: RopeLayout::Interleaved,
        needs_qkv_bias: false,
        needs_qk_norm: false,
    },
    ArchitectureRow {
        architecture: Architecture::Mistral,
        gguf_name: None, // converted to "llama"
        hf_name: "mistral",
        gguf_rope_layout: RopeLayout::Interleaved,
        needs_qkv_bias: false,
        needs_qk_norm: false,
    },
    ArchitectureRow {
        architecture: Architecture::Qwen2,
        gguf_name: Some("qwen2"),
        hf_name: "qwen2",
        gguf_rope_layout: RopeLayout::Halves,
        needs_qkv_bias: true,
        needs_qk_norm: false,
    },
    ArchitectureRow {
        architecture: Architecture::Qwen3,
        gguf_name: Some("qwen3"),
        hf_name: "qwen3",
        gguf_rope_layout: RopeLayout::Halves,
        needs_qkv_bias: false,
        needs_qk_norm: true,
    },
];

impl Architecture {
    /// The row of the table.
    pub fn row(self) -> &'static ArchitectureRow {
        let row = ARCHITECTURES.iter().find(|row| row.architecture == self);
        row.expect("every architecture has a row")
    }
}

/// Which elements of a head rotary embedding pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RopeLayout {
    /// `(0, 1), (2, 3), …`: GGUF files of Llama.
    Interleaved,
    /// `(0, d/2), (1, d/2 + 1), …`: Hugging Face folders, and GGUF files of most other architectures.
    Halves,
}

/// How rotary frequencies are changed to reach contexts longer than those trained on at first.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase", tag = "type")]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// At least 1.
        factor: f32,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// At least 1.
        factor: f32,
        /// Wavelengths above `original_context / low_freq_factor` are scaled in full.
        low_freq_factor: f32,
        /// Wavelengths below `original_context / high_freq_factor` are kept. Greater than `low_freq_factor`.
        high_freq_factor: f32,
        /// Tokens.
        original_context: usize,
    },
    /// Each frequency divided by its own number: the tensor `rope_freqs.weight` of GGUF files, in which converters
    /// write what `Llama3` describes.
    Divisors {
        /// `dims / 2` divisors, finite and positive.
        divisors: Vec<f32>,
    },
    /// YaRN (Peng et al. 2023, "YaRN: Efficient Context Window Extension of Large Language Models").
    Yarn {
        /// At least 1.
        factor: f32,
        /// Tokens.
        original_context: usize,
        /// Rotations over the original context above which a frequency is kept; 32 by default.
        beta_fast: f32,
        /// Rotations below which it is scaled in full; 1 by default.
        beta_slow: f32,
        /// Multiplies cosine and sine.
        attention_factor: f32,
    },
    /// LongRoPE (Ding et al. 2024): each frequency divided by its own number, out of one of two lists.
    LongRope {
        /// For contexts up to `original_context`; `dims / 2`, finite and positive.
        short: Vec<f32>,
        /// For longer ones; `dims / 2`, finite and positive.
        long: Vec<f32>,
        /// Tokens.
        original_context: usize,
        /// Multiplies cosine and sine.
        attention_factor: f32,
    },
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RopeConfig {
    /// Base of the geometric series of wavelengths: frequency `i` is `base^(-2i / dims)`.
    pub base: f32,
    /// Leading dimensions of each head that are rotated; even, at most the head's.
    pub dims: usize,
    /// Scaling for long contexts.
    pub scaling: RopeScaling,
    /// Which elements are paired.
    pub layout: RopeLayout,
}

/// The shape and the options of a model. Validated: no size is 0, `heads` is a multiple of `kv_heads`, products of
/// any three sizes fit in `usize`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelConfig {
    /// Row of the table of architectures.
    pub architecture: Architecture,
    /// The name that the file gives the model.
    pub name: Option<String>,
    /// Tokens: rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Dimensions of a head, of keys and values alike.
    pub head_dim: usize,
    /// Width of the feed-forward layers.
    pub ffn_size: usize,
    /// Tokens that the model was made for.
    pub context_length: usize,
    /// Added to the mean square in RMS norms.
    pub rms_eps: f32,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// Attention scores are multiplied by this before the softmax.
    pub attention_scale: f32,
    /// A token attends to this many tokens up to and with itself; to all where there is none.
    pub sliding_window: Option<usize>,
    /// Biases on queries, keys and values.
    pub qkv_bias: bool,
    /// Bias on the output of attention.
    pub attn_output_bias: bool,
    /// RMS norm on every query and key head before rotation.
    pub qk_norm: bool,
    /// The output matrix is the token embedding.
    pub tied_embeddings: bool,
    /// Token that starts a text.
    pub bos: Option<u32>,
    /// Tokens that end a text or a turn. May be empty.
    pub eos: Vec<u32>,
}

impl ModelConfig {
    /// Width of all query heads together.
    pub fn q_size(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key heads together, and of all value heads.
    pub fn kv_size(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Query heads per key head.
    pub fn group_size(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Checks what the types do not say; `dialect` gives the fields their names in the file.
    fn validate(&self, path: &Path, dialect: Dialect<'_>) -> Result<(), ModelFileError> {
        let refuse = |field: Field, reason: String| {
            Err(ModelFileError::config(path, dialect.name(field), reason))
        };
        let sizes = [
            (Field::VocabSize, self.vocab_size, 1 << 24),
            (Field::HiddenSize, self.hidden_size, 1 << 20),
            (Field::Layers, self.layers, 1 << 12),
            (Field::Heads, self.heads, 1 << 14),
            (Field::KvHeads, self.kv_heads, 1 << 14),
            (Field::HeadDim, self.head_dim, 1 << 12),
            (Field::FfnSize, self.ffn_size, 1 << 22),
            (Field::ContextLength, self.context_length, 1 << 32),
            (
                Field::SlidingWindow,
                self.sliding_window.unwrap_or(1),
                1 << 32,
            ),
        ];
        for (field, size, most) in sizes {
            if size == 0 || size as u64 > most {
                return refuse(field, format!("must be from 1 to {most}, not {size}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return refuse(
                Field::KvHeads,
                format!("{} does not divide the {} heads", self.kv_heads, self.heads),
            );
        }
        if !(self.rms_eps > 0.0 && self.rms_eps < 1.0) {
            return refuse(
                Field::RmsEps,
                format!("must lie between 0 and 1, not {}", self.rms_eps),
            );
        }
        if !(self.attention_scale > 0.0 && self.attention_scale.is_finite()) {
            return refuse(
                Field::AttentionScale,
                format!("must be positive, not {}", self.attention_scale),
            );
        }
        for &token in self.bos.iter().chain(&self.eos) {
            if token as usize >= self.vocab_size {
                let field = if self.eos.contains(&token) {
                    Field::Eos
                } else {
                    Field::Bos
                };
                return refuse(
                    field,
                    format!(
                        "token {token} is outside the vocabulary of {}",
                        self.vocab_size
                    ),
                );
            }
        }
        self.validate_rope(path, dialect)
    }

    fn validate_rope(&self, path: &Path, dialect: Dialect<'_>) -> Result<(), ModelFileError> {
        let rope = &self.rope;
        let refuse = |field: Field, reason: String| {
            Err(ModelFileError::config(path, dialect.name(field), reason))
        };
        if !(rope.base > 1.0 && rope.base.is_finite()) {
            return refuse(
                Field::RopeBase,
                format!("must be greater than 1, not {}", rope.base),
            );
        }
        if rope.dims == 0 || !rope.dims.is_multiple_of(2) || rope.dims > self.head_dim {
            let reason = format!(
                "must be even and from 2 to the head's {} dimensions, not {}",
                self.head_dim, rope.dims
            );
            return refuse(Field::RopeDims, reason);
        }
        match rope.scaling.fault(rope.dims / 2) {
            Some(reason) => refuse(Field::RopeScaling, reason),
            None => Ok(()),
        }
    }
}

impl RopeScaling {
    /// What is wrong with the numbers, if anything; `frequencies` is how many there are.
    fn fault(&self, frequencies: usize) -> Option<String> {
        let positive = |name: &str, value: f32| {
            let good = value > 0.0 && value.is_finite();
            (!good).then(|| format!("{name} must be positive, not {value}"))
        };
        let factor = |value: f32| {
            let good = value >= 1.0 && value.is_finite();
            (!good).then(|| format!("factor must be at least 1, not {value}"))
        };
        let context = |tokens: usize| {
            let good = (1..=1usize << 32).contains(&tokens);
            (!good).then(|| format!("original context of {tokens} tokens"))
        };
        let list = |name: &str, values: &[f32]| {
            if values.len() != frequencies {
                return Some(format!(
                    "{name} has {} numbers for {frequencies} frequencies",
                    values.len()
                ));
            }
            values.iter().find_map(|&value| positive(name, value))
        };
        match self {
            Self::None => None,
            Self::Linear { factor: by } => factor(*by),
            Self::Llama3 {
                factor: by,
                low_freq_factor: low,
                high_freq_factor: high,
                original_context,
            } => factor(*by)
                .or_else(|| positive("low_freq_factor", *low))
                .or_else(|| positive("high_freq_factor", *high))
                .or_else(|| context(*original_context))
                .or_else(|| {
                    (low >= high).then(|| {
                        format!("low_freq_factor {low} must be less than high_freq_factor {high}")
                    })
                }),
            Self::Divisors { divisors } => list("list of divisors", divisors),
            Self::Yarn {
                factor: by,
                original_context,
                beta_fast,
                beta_slow,
                attention_factor,
            } => factor(*by)
                .or_else(|| context(*original_context))
                .or_else(|| positive("beta_fast", *beta_fast))
                .or_else(|| positive("beta_slow", *beta_slow))
                .or_else(|| positive("attention_factor", *attention_factor))
                .or_else(|| {
                    (beta_slow >= beta_fast).then(|| {
                        format!("beta_slow {beta_slow} must be less than beta_fast {beta_fast}")
                    })
                }),
            Self::LongRope {
                short,
                long,
                original_context,
                attention_factor,
            } => list("short_factor", short)
                .or_else(|| list("long_factor", long))
                .or_else(|| context(*original_context))
                .or_else(|| positive("attention_factor", *attention_factor)),
        }
    }

    /// The factor on cosine and sine that YaRN's authors advise for a context stretched `factor` times.
    fn yarn_attention_factor(factor: f32) -> f32 {
        if factor > 1.0 {
            0.1 * factor.ln() + 1.0
        } else {
            1.0
        }
    }
}
