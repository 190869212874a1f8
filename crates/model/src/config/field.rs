//! The names of the fields in both kinds of model files.

/// A field of a model's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    VocabSize,
    HiddenSize,
    Layers,
    Heads,
    KvHeads,
    HeadDim,
    FfnSize,
    Experts,
    ExpertsUsed,
    ExpertFfnSize,
    SharedFfnSize,
    ContextLength,
    RmsEps,
    LayerNormEps,
    RopeBase,
    RopeDims,
    RopeScaling,
    AttentionScale,
    AttentionCap,
    LogitCap,
    EmbeddingScale,
    ResidualScale,
    LogitScale,
    SlidingWindow,
    Bos,
    Eos,
}

/// Where names come from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Dialect<'a> {
    /// GGUF metadata of this `general.architecture`.
    Gguf(&'a str),
    /// `config.json`.
    HuggingFace,
}

impl Dialect<'_> {
    pub(crate) fn name(self, field: Field) -> String {
        let (gguf, hf) = match field {
            Field::VocabSize => ("{}.vocab_size", "vocab_size"),
            Field::HiddenSize => ("{}.embedding_length", "hidden_size"),
            Field::Layers => ("{}.block_count", "num_hidden_layers"),
            Field::Heads => ("{}.attention.head_count", "num_attention_heads"),
            Field::KvHeads => ("{}.attention.head_count_kv", "num_key_value_heads"),
            Field::HeadDim => ("{}.attention.key_length", "head_dim"),
            Field::FfnSize => ("{}.feed_forward_length", "intermediate_size"),
            Field::Experts => ("{}.expert_count", "num_experts"),
            Field::ExpertsUsed => ("{}.expert_used_count", "num_experts_per_tok"),
            Field::ExpertFfnSize => ("{}.expert_feed_forward_length", "moe_intermediate_size"),
            Field::SharedFfnSize => (
                "{}.expert_shared_feed_forward_length",
                "shared_expert_intermediate_size",
            ),
            Field::ContextLength => ("{}.context_length", "max_position_embeddings"),
            Field::RmsEps => ("{}.attention.layer_norm_rms_epsilon", "rms_norm_eps"),
            Field::LayerNormEps => ("{}.attention.layer_norm_epsilon", "layer_norm_eps"),
            Field::RopeBase => ("{}.rope.freq_base", "rope_theta"),
            Field::RopeDims => ("{}.rope.dimension_count", "partial_rotary_factor"),
            Field::RopeScaling => ("{}.rope.scaling", "rope_scaling"),
            Field::AttentionScale => ("{}.attention.scale", "attention_multiplier"),
            Field::AttentionCap => ("{}.attn_logit_softcapping", "attn_logit_softcapping"),
            Field::LogitCap => ("{}.final_logit_softcapping", "final_logit_softcapping"),
            Field::EmbeddingScale => ("{}.embedding_scale", "embedding_multiplier"),
            Field::ResidualScale => ("{}.residual_scale", "residual_multiplier"),
            Field::LogitScale => ("{}.logit_scale", "logits_scaling"),
            Field::SlidingWindow => ("{}.attention.sliding_window", "sliding_window"),
            Field::Bos => ("tokenizer.ggml.bos_token_id", "bos_token_id"),
            Field::Eos => ("tokenizer.ggml.eos_token_id", "eos_token_id"),
        };
        match self {
            Self::Gguf(architecture) => gguf.replace("{}", architecture),
            Self::HuggingFace => hf.to_owned(),
        }
    }
}
