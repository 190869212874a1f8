//! What kind of model a file holds: its shape and its options, read from GGUF metadata or from `config.json`.
//!
//! Every number is checked before anything is computed from it, and a refusal names the field as the file calls it.

mod architectures;
mod experts;
mod field;
mod from_gguf;
mod from_gguf_options;
mod from_hf;
mod from_hf_rope;
mod int4;
mod rope;
mod text_part;
mod to_gguf;

#[cfg(test)]
mod tests;

use std::path::Path;

use serde::Serialize;

use crate::source::ModelFileError;
pub use architectures::{
    ARCHITECTURES, Activation, Architecture, ArchitectureRow, HfNaming, NormKind, NormPlace,
    QkNorm, RopeLayout, WindowPattern,
};
pub use experts::ExpertsConfig;
pub(crate) use field::{Dialect, Field};
pub(crate) use from_gguf::architecture_name;
pub(crate) use from_hf::{HfConfigFiles, model_type};
pub use int4::{Int4Config, Int4Layout};
pub use rope::{RopeConfig, RopeScaling};

/// Layers that a model may have.
const MAX_LAYERS: usize = 1 << 12;

/// How one layer differs from others of its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LayerKind {
    /// Its tokens attend to the sliding window only.
    pub window: bool,
    /// Its queries and keys are rotated.
    pub rope: bool,
    /// Its feed-forward network is a mixture of experts.
    pub experts: bool,
}

/// Norms of a model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct NormConfig {
    /// How rows are normalized.
    pub kind: NormKind,
    /// Added to the mean square, or to the variance.
    pub eps: f32,
    /// Where norms stand around attention and feed-forward networks.
    pub place: NormPlace,
    /// Whether norms have biases.
    pub bias: bool,
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
    /// Width of the feed-forward layers (of those without experts).
    pub ffn_size: usize,
    /// The experts of layers that have them.
    pub experts: Option<ExpertsConfig>,
    /// The layers' kinds, one for each.
    pub layer_kinds: Vec<LayerKind>,
    /// Tokens that the model was made for.
    pub context_length: usize,
    /// Norms.
    pub norm: NormConfig,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// That of the layers with a window, where it is another.
    pub window_rope: Option<RopeConfig>,
    /// Positions that have a learned embedding, where a model has those.
    pub learned_positions: Option<usize>,
    /// Kinds of segments that have an embedding of their own; the first one's is added to every token.
    pub token_types: Option<usize>,
    /// Attention scores are multiplied by this before the softmax.
    pub attention_scale: f32,
    /// Attention scores become `cap * tanh(score / cap)`.
    pub attention_cap: Option<f32>,
    /// In layers with a window a token attends to this many tokens up to and with itself; of encoders, to this many to
    /// each side.
    pub sliding_window: Option<usize>,
    /// Whether a token attends only to itself and those before it.
    pub causal: bool,
    /// Biases on queries, keys and values.
    pub qkv_bias: bool,
    /// Bias on the output of attention.
    pub attn_output_bias: bool,
    /// Norms on queries and keys before rotation.
    pub qk_norm: QkNorm,
    /// The activation of feed-forward networks.
    pub activation: Activation,
    /// Whether feed-forward networks have a gate: `down(f(gate(x)) * up(x))` instead of `down(f(up(x)))`.
    pub gated: bool,
    /// Biases on the projections of feed-forward networks.
    pub ffn_bias: bool,
    /// Attention and feed-forward network stand side by side: `x + attention(norm(x)) + ffn(norm(x))`.
    pub parallel_residual: bool,
    /// Embeddings are multiplied by this.
    pub embedding_scale: f32,
    /// What attention and feed-forward networks give is multiplied by this before it is added.
    pub residual_scale: f32,
    /// Logits are multiplied by this.
    pub logit_scale: f32,
    /// Logits become `cap * tanh(logit / cap)`.
    pub logit_cap: Option<f32>,
    /// How matrices are packed in 4 bits, if they are.
    pub int4: Option<Int4Config>,
    /// Whether there is an output matrix at all: encoders have none.
    pub has_output: bool,
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

    /// The window of a layer.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.sliding_window
            .filter(|_| self.layer_kinds[layer].window)
    }

    /// The rotary embedding of a layer, if it has one.
    pub fn layer_rope(&self, layer: usize) -> Option<&RopeConfig> {
        let LayerKind { window, rope, .. } = self.layer_kinds[layer];
        let local = self.window_rope.as_ref().filter(|_| window);
        rope.then(|| local.unwrap_or(&self.rope))
    }

    /// The widest feed-forward network.
    pub fn widest_ffn(&self) -> usize {
        let experts = self.experts.map_or(0, |experts| experts.widest());
        self.ffn_size.max(experts)
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
            (Field::Layers, self.layers, MAX_LAYERS as u64),
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
        let norm_eps = match self.norm.kind {
            NormKind::Rms => Field::RmsEps,
            NormKind::Layer => Field::LayerNormEps,
        };
        if !(self.norm.eps > 0.0 && self.norm.eps < 1.0) {
            return refuse(
                norm_eps,
                format!("must lie between 0 and 1, not {}", self.norm.eps),
            );
        }
        let numbers = [
            (Field::AttentionScale, Some(self.attention_scale)),
            (Field::AttentionCap, self.attention_cap),
            (Field::LogitCap, self.logit_cap),
            (Field::EmbeddingScale, Some(self.embedding_scale)),
            (Field::ResidualScale, Some(self.residual_scale)),
            (Field::LogitScale, Some(self.logit_scale)),
        ];
        for (field, number) in numbers {
            if let Some(number) = number.filter(|n| !(*n > 0.0 && n.is_finite())) {
                return refuse(field, format!("must be positive, not {number}"));
            }
        }
        if let Some((field, reason)) = self.experts.and_then(|experts| experts.fault()) {
            return refuse(field, reason);
        }
        self.validate_tokens(path, dialect)?;
        for rope in [Some(&self.rope), self.window_rope.as_ref()] {
            self.validate_rope(rope, path, dialect)?;
        }
        Ok(())
    }

    fn validate_tokens(&self, path: &Path, dialect: Dialect<'_>) -> Result<(), ModelFileError> {
        let refuse = |field: Field, reason: String| {
            Err(ModelFileError::config(path, dialect.name(field), reason))
        };
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
        Ok(())
    }

    fn validate_rope(
        &self,
        rope: Option<&RopeConfig>,
        path: &Path,
        dialect: Dialect<'_>,
    ) -> Result<(), ModelFileError> {
        let uses_rope = self.layer_kinds.iter().any(|kind| kind.rope);
        let Some(rope) = rope.filter(|_| uses_rope) else {
            return Ok(());
        };
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
