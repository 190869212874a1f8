//! The tensors that a decoder wants, under one name each. What files call them is in `files`.

use std::fmt;

use crate::config::{ModelConfig, NormPlace, QkNorm};

use super::files::gguf_name;

/// A tensor by what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorName {
    /// Embedding of the tokens: `[vocab_size, hidden_size]`.
    TokenEmbedding,
    /// Embedding of the positions: `[learned_positions, hidden_size]`.
    PositionEmbedding,
    /// Embedding of the kinds of segments: `[token_types, hidden_size]`.
    TypeEmbedding,
    /// Norm of the embeddings: `[hidden_size]`.
    EmbeddingNorm,
    /// Its bias.
    EmbeddingNormBias,
    /// Norm after the last layer: `[hidden_size]`.
    OutputNorm,
    /// Its bias.
    OutputNormBias,
    /// Output matrix: `[vocab_size, hidden_size]`. Answered with the token embedding where the two are tied.
    Output,
    /// A tensor of a layer, counted from 0.
    Layer(usize, LayerTensor),
    /// A matrix of an expert: layer, expert, which.
    Expert(usize, usize, ExpertTensor),
}

/// A tensor that a layer has one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerTensor {
    /// Norm before attention: `[hidden_size]`.
    AttnNorm,
    /// Its bias.
    AttnNormBias,
    /// Queries: `[heads * head_dim, hidden_size]`.
    AttnQ,
    /// Keys: `[kv_heads * head_dim, hidden_size]`.
    AttnK,
    /// Values: `[kv_heads * head_dim, hidden_size]`.
    AttnV,
    /// Bias of the queries: `[heads * head_dim]`; only with `qkv_bias`.
    AttnQBias,
    /// Bias of the keys: `[kv_heads * head_dim]`; only with `qkv_bias`.
    AttnKBias,
    /// Bias of the values: `[kv_heads * head_dim]`; only with `qkv_bias`.
    AttnVBias,
    /// Norm of queries: `[head_dim]`, or of all heads.
    AttnQNorm,
    /// Norm of keys: `[head_dim]`, or of all heads.
    AttnKNorm,
    /// Output of attention: `[hidden_size, heads * head_dim]`.
    AttnOutput,
    /// Bias of the output of attention: `[hidden_size]`; only with `attn_output_bias`.
    AttnOutputBias,
    /// Norm after attention: `[hidden_size]`.
    AttnPostNorm,
    /// Its bias.
    AttnPostNormBias,
    /// Norm before the feed-forward network: `[hidden_size]`.
    FfnNorm,
    /// Its bias.
    FfnNormBias,
    /// Gate of the feed-forward network: `[ffn_size, hidden_size]`.
    FfnGate,
    /// Up projection: `[ffn_size, hidden_size]`.
    FfnUp,
    /// Down projection: `[hidden_size, ffn_size]`.
    FfnDown,
    /// Bias of the gate: `[ffn_size]`.
    FfnGateBias,
    /// Bias of the up projection: `[ffn_size]`.
    FfnUpBias,
    /// Bias of the down projection: `[hidden_size]`.
    FfnDownBias,
    /// Norm after the feed-forward network: `[hidden_size]`.
    FfnPostNorm,
    /// Its bias.
    FfnPostNormBias,
    /// Chooses experts: `[experts, hidden_size]`.
    Router,
    /// Gate of the shared expert's network.
    SharedGate,
    /// Its up projection.
    SharedUp,
    /// Its down projection.
    SharedDown,
    /// How much of the shared expert is added: `[hidden_size]`.
    SharedWeight,
}

/// A matrix that every expert has one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExpertTensor {
    /// `[ffn_size, hidden_size]`.
    Gate,
    /// `[ffn_size, hidden_size]`.
    Up,
    /// `[hidden_size, ffn_size]`.
    Down,
}

use LayerTensor::*;

impl ExpertTensor {
    /// Every matrix.
    pub const ALL: [ExpertTensor; 3] = [Self::Gate, Self::Up, Self::Down];
}

impl LayerTensor {
    /// Every layer tensor.
    pub const ALL: [LayerTensor; 29] = [
        AttnNorm,
        AttnNormBias,
        AttnQ,
        AttnK,
        AttnV,
        AttnQBias,
        AttnKBias,
        AttnVBias,
        AttnQNorm,
        AttnKNorm,
        AttnOutput,
        AttnOutputBias,
        AttnPostNorm,
        AttnPostNormBias,
        FfnNorm,
        FfnNormBias,
        FfnGate,
        FfnUp,
        FfnDown,
        FfnGateBias,
        FfnUpBias,
        FfnDownBias,
        FfnPostNorm,
        FfnPostNormBias,
        Router,
        SharedGate,
        SharedUp,
        SharedDown,
        SharedWeight,
    ];

    /// Whether a layer of a model of this configuration has the tensor.
    pub fn is_part_of(self, config: &ModelConfig, layer: usize) -> bool {
        let norm = config.norm;
        let has_experts = config
            .layer_kinds
            .get(layer)
            .is_some_and(|kind| kind.experts);
        let shared = has_experts && config.experts.is_some_and(|e| e.shared_ffn_size.is_some());
        match self {
            AttnNorm | FfnNorm => norm.place.is_before() && !self.is_spared(config, layer),
            AttnNormBias | FfnNormBias => {
                norm.place.is_before() && norm.bias && !self.is_spared(config, layer)
            }
            AttnPostNorm | FfnPostNorm => norm.place != NormPlace::Before,
            AttnPostNormBias | FfnPostNormBias => norm.place != NormPlace::Before && norm.bias,
            AttnQBias | AttnKBias | AttnVBias => config.qkv_bias,
            AttnQNorm | AttnKNorm => config.qk_norm != QkNorm::None,
            AttnOutputBias => config.attn_output_bias,
            AttnQ | AttnK | AttnV | AttnOutput => true,
            FfnGate => config.gated && !has_experts,
            FfnUp | FfnDown => !has_experts,
            FfnGateBias => config.gated && config.ffn_bias && !has_experts,
            FfnUpBias | FfnDownBias => config.ffn_bias && !has_experts,
            Router => has_experts,
            SharedGate | SharedUp | SharedDown | SharedWeight => shared,
        }
    }

    /// Whether the first norm of the first layer is spared, since embeddings are normalized.
    fn is_spared(self, config: &ModelConfig, layer: usize) -> bool {
        let first = layer == 0 && matches!(self, AttnNorm | AttnNormBias);
        first && config.architecture.row().embedding_norm
    }

    /// The shape, outermost first, in a model of this configuration.
    fn shape(self, config: &ModelConfig) -> Vec<usize> {
        let (hidden, ffn) = (config.hidden_size, config.ffn_size);
        let (q, kv) = (config.q_size(), config.kv_size());
        let shared = config.experts.and_then(|e| e.shared_ffn_size).unwrap_or(0);
        match self {
            AttnNorm | AttnNormBias | FfnNorm | FfnNormBias | AttnOutputBias | AttnPostNorm
            | AttnPostNormBias | FfnPostNorm | FfnPostNormBias | FfnDownBias => vec![hidden],
            AttnQ => vec![q, hidden],
            AttnK | AttnV => vec![kv, hidden],
            AttnQBias => vec![q],
            AttnKBias | AttnVBias => vec![kv],
            AttnQNorm if config.qk_norm == QkNorm::Whole => vec![q],
            AttnKNorm if config.qk_norm == QkNorm::Whole => vec![kv],
            AttnQNorm | AttnKNorm => vec![config.head_dim],
            AttnOutput => vec![hidden, q],
            FfnGate | FfnUp => vec![ffn, hidden],
            FfnGateBias | FfnUpBias => vec![ffn],
            FfnDown => vec![hidden, ffn],
            Router => vec![config.experts.map_or(0, |e| e.count), hidden],
            SharedGate | SharedUp => vec![shared, hidden],
            SharedDown => vec![hidden, shared],
            SharedWeight => vec![hidden],
        }
    }
}

impl TensorName {
    /// The tensors outside the layers.
    const OUTER: [TensorName; 8] = [
        Self::TokenEmbedding,
        Self::PositionEmbedding,
        Self::TypeEmbedding,
        Self::EmbeddingNorm,
        Self::EmbeddingNormBias,
        Self::OutputNorm,
        Self::OutputNormBias,
        Self::Output,
    ];

    /// Every tensor of a model of this configuration. A tied output matrix is left out.
    pub fn all(config: &ModelConfig) -> impl Iterator<Item = TensorName> + '_ {
        let outer = Self::OUTER
            .into_iter()
            .filter(|name| name.is_outer_part_of(config));
        let layers = (0..config.layers).flat_map(move |layer| {
            let tensors = LayerTensor::ALL
                .into_iter()
                .filter(move |tensor| tensor.is_part_of(config, layer));
            let has_experts = Router.is_part_of(config, layer);
            let experts = config.experts.filter(|_| has_experts);
            let experts = (0..experts.map_or(0, |e| e.count)).flat_map(move |expert| {
                let all = ExpertTensor::ALL.into_iter();
                all.map(move |tensor| Self::Expert(layer, expert, tensor))
            });
            tensors
                .map(move |tensor| Self::Layer(layer, tensor))
                .chain(experts)
        });
        outer.chain(layers)
    }

    fn is_outer_part_of(self, config: &ModelConfig) -> bool {
        let embedding_norm = config.architecture.row().embedding_norm;
        let output_norm = config.norm.place != NormPlace::AfterSum;
        match self {
            Self::PositionEmbedding => config.learned_positions.is_some(),
            Self::TypeEmbedding => config.token_types.is_some(),
            Self::EmbeddingNorm => embedding_norm,
            Self::EmbeddingNormBias => embedding_norm && config.norm.bias,
            Self::OutputNorm => output_norm,
            Self::OutputNormBias => output_norm && config.norm.bias,
            Self::Output => config.has_output && !config.tied_embeddings,
            _ => true,
        }
    }

    /// The shape, outermost first, in a model of this configuration.
    pub fn shape(self, config: &ModelConfig) -> Vec<usize> {
        let hidden = config.hidden_size;
        match self {
            Self::TokenEmbedding | Self::Output => vec![config.vocab_size, hidden],
            Self::PositionEmbedding => vec![config.learned_positions.unwrap_or(0), hidden],
            Self::TypeEmbedding => vec![config.token_types.unwrap_or(0), hidden],
            Self::EmbeddingNorm
            | Self::EmbeddingNormBias
            | Self::OutputNorm
            | Self::OutputNormBias => vec![hidden],
            Self::Layer(_, tensor) => tensor.shape(config),
            Self::Expert(_, _, tensor) => {
                let ffn = config.experts.map_or(0, |experts| experts.ffn_size);
                match tensor {
                    ExpertTensor::Gate | ExpertTensor::Up => vec![ffn, hidden],
                    ExpertTensor::Down => vec![hidden, ffn],
                }
            }
        }
    }

    /// Whether the tensor is the weight of a norm (not its bias).
    pub(crate) fn is_norm_weight(self) -> bool {
        matches!(
            self,
            Self::EmbeddingNorm
                | Self::OutputNorm
                | Self::Layer(
                    _,
                    AttnNorm | AttnQNorm | AttnKNorm | AttnPostNorm | FfnNorm | FfnPostNorm
                )
        )
    }
}

impl fmt::Display for TensorName {
    /// Writes the GGUF name that most architectures have for it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&gguf_name(*self))
    }
}
