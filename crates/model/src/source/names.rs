//! The tensors that a decoder wants, under one name each, and what the files call them.

use std::fmt;

use crate::config::ModelConfig;

/// A tensor by what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorName {
    /// Embedding of the tokens: `[vocab_size, hidden_size]`.
    TokenEmbedding,
    /// Norm after the last layer: `[hidden_size]`.
    OutputNorm,
    /// Output matrix: `[vocab_size, hidden_size]`. Answered with the token embedding where the two are tied.
    Output,
    /// A tensor of a layer, counted from 0.
    Layer(usize, LayerTensor),
}

/// A tensor that every layer has one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerTensor {
    /// Norm before attention: `[hidden_size]`.
    AttnNorm,
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
    /// Norm of every query head: `[head_dim]`; only with `qk_norm`.
    AttnQNorm,
    /// Norm of every key head: `[head_dim]`; only with `qk_norm`.
    AttnKNorm,
    /// Output of attention: `[hidden_size, heads * head_dim]`.
    AttnOutput,
    /// Bias of the output of attention: `[hidden_size]`; only with `attn_output_bias`.
    AttnOutputBias,
    /// Norm before the feed-forward network: `[hidden_size]`.
    FfnNorm,
    /// Gate of the feed-forward network: `[ffn_size, hidden_size]`.
    FfnGate,
    /// Up projection: `[ffn_size, hidden_size]`.
    FfnUp,
    /// Down projection: `[hidden_size, ffn_size]`.
    FfnDown,
}

use LayerTensor::*;

/// Each layer tensor, the end of its name in GGUF files (after `blk.N.`) and in Hugging Face folders (after
/// `model.layers.N.`), in the order of the enum.
const LAYER_NAMES: [(LayerTensor, &str, &str); 15] = [
    (AttnNorm, "attn_norm.weight", "input_layernorm.weight"),
    (AttnQ, "attn_q.weight", "self_attn.q_proj.weight"),
    (AttnK, "attn_k.weight", "self_attn.k_proj.weight"),
    (AttnV, "attn_v.weight", "self_attn.v_proj.weight"),
    (AttnQBias, "attn_q.bias", "self_attn.q_proj.bias"),
    (AttnKBias, "attn_k.bias", "self_attn.k_proj.bias"),
    (AttnVBias, "attn_v.bias", "self_attn.v_proj.bias"),
    (AttnQNorm, "attn_q_norm.weight", "self_attn.q_norm.weight"),
    (AttnKNorm, "attn_k_norm.weight", "self_attn.k_norm.weight"),
    (AttnOutput, "attn_output.weight", "self_attn.o_proj.weight"),
    (AttnOutputBias, "attn_output.bias", "self_attn.o_proj.bias"),
    (
        FfnNorm,
        "ffn_norm.weight",
        "post_attention_layernorm.weight",
    ),
    (FfnGate, "ffn_gate.weight", "mlp.gate_proj.weight"),
    (FfnUp, "ffn_up.weight", "mlp.up_proj.weight"),
    (FfnDown, "ffn_down.weight", "mlp.down_proj.weight"),
];

/// The tensors outside the layers: name in GGUF files and in Hugging Face folders.
const OUTER_NAMES: [(TensorName, &str, &str); 3] = [
    (
        TensorName::TokenEmbedding,
        "token_embd.weight",
        "model.embed_tokens.weight",
    ),
    (
        TensorName::OutputNorm,
        "output_norm.weight",
        "model.norm.weight",
    ),
    (TensorName::Output, "output.weight", "lm_head.weight"),
];

impl LayerTensor {
    /// Every layer tensor.
    pub const ALL: [LayerTensor; 15] = [
        AttnNorm,
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
        FfnNorm,
        FfnGate,
        FfnUp,
        FfnDown,
    ];

    /// Whether a model of this configuration has the tensor.
    pub fn is_part_of(self, config: &ModelConfig) -> bool {
        match self {
            AttnQBias | AttnKBias | AttnVBias => config.qkv_bias,
            AttnQNorm | AttnKNorm => config.qk_norm,
            AttnOutputBias => config.attn_output_bias,
            _ => true,
        }
    }
}

/// Which way of naming tensors a file follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    Gguf,
    HuggingFace,
}

impl TensorName {
    /// Every tensor of a model of this configuration. A tied output matrix is left out.
    pub fn all(config: &ModelConfig) -> impl Iterator<Item = TensorName> + '_ {
        let outer = OUTER_NAMES
            .iter()
            .map(|(name, ..)| *name)
            .filter(|name| *name != Self::Output || !config.tied_embeddings);
        let layers = (0..config.layers).flat_map(move |layer| {
            let tensors = LayerTensor::ALL
                .into_iter()
                .filter(|tensor| tensor.is_part_of(config));
            tensors.map(move |tensor| Self::Layer(layer, tensor))
        });
        outer.chain(layers)
    }

    /// The shape, outermost first, in a model of this configuration.
    pub fn shape(self, config: &ModelConfig) -> Vec<usize> {
        let (hidden, ffn) = (config.hidden_size, config.ffn_size);
        let (q, kv) = (config.q_size(), config.kv_size());
        let Self::Layer(_, tensor) = self else {
            return match self {
                Self::OutputNorm => vec![hidden],
                _ => vec![config.vocab_size, hidden],
            };
        };
        match tensor {
            AttnNorm | FfnNorm | AttnOutputBias => vec![hidden],
            AttnQ => vec![q, hidden],
            AttnK | AttnV => vec![kv, hidden],
            AttnQBias => vec![q],
            AttnKBias | AttnVBias => vec![kv],
            AttnQNorm | AttnKNorm => vec![config.head_dim],
            AttnOutput => vec![hidden, q],
            FfnGate | FfnUp => vec![ffn, hidden],
            FfnDown => vec![hidden, ffn],
        }
    }

    /// A dense number: the outer tensors first, then layer by layer.
    pub(super) fn index(self) -> usize {
        match self {
            Self::TokenEmbedding => 0,
            Self::OutputNorm => 1,
            Self::Output => 2,
            Self::Layer(layer, tensor) => {
                OUTER_NAMES.len() + layer * LayerTensor::ALL.len() + tensor as usize
            }
        }
    }

    /// The name in a file.
    pub(super) fn in_file(self, naming: Naming) -> String {
        if let Self::Layer(layer, tensor) = self {
            let (_, gguf, hf) = LAYER_NAMES[tensor as usize];
            return match naming {
                Naming::Gguf => format!("blk.{layer}.{gguf}"),
                Naming::HuggingFace => format!("model.layers.{layer}.{hf}"),
            };
        }
        let (_, gguf, hf) = OUTER_NAMES[self.index()];
        match naming {
            Naming::Gguf => gguf.to_owned(),
            Naming::HuggingFace => hf.to_owned(),
        }
    }
}

/// Whether a tensor may be left unread: it is derived from the configuration, already part of it, or tied.
pub(super) fn is_harmless(name: &str, config: &ModelConfig) -> bool {
    let in_config = [
        "rope_freqs.weight",
        "rope_factors_short.weight",
        "rope_factors_long.weight",
    ];
    let tied = config.tied_embeddings && name == TensorName::Output.in_file(Naming::HuggingFace);
    in_config.contains(&name) || name.ends_with(".rotary_emb.inv_freq") || tied
}

impl fmt::Display for TensorName {
    /// Writes the GGUF name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.in_file(Naming::Gguf))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_follow_the_enums() {
        for (i, tensor) in LayerTensor::ALL.into_iter().enumerate() {
            assert_eq!(tensor as usize, i);
            assert_eq!(LAYER_NAMES[i].0, tensor);
            assert_eq!(TensorName::Layer(2, tensor).index(), 3 + 2 * 15 + i);
        }
        for (i, (name, ..)) in OUTER_NAMES.into_iter().enumerate() {
            assert_eq!(name.index(), i);
        }
        assert_eq!(TensorName::Layer(0, AttnNorm).index(), OUTER_NAMES.len());
        let name = TensorName::Layer(7, AttnQ);
        assert_eq!(name.to_string(), "blk.7.attn_q.weight");
        assert_eq!(
            name.in_file(Naming::HuggingFace),
            "model.layers.7.self_attn.q_proj.weight"
        );
    }
}
