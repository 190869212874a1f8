//! Which models can be tuned: Llama and what is built alike.

use neap_model::config::{Activation, Architecture, ModelConfig, NormKind, NormPlace, QkNorm};

/// What of a model training cannot compute, if anything.
pub fn unsupported(config: &ModelConfig) -> Option<String> {
    let architecture = format!("the architecture {:?}", config.architecture);
    let known = matches!(
        config.architecture,
        Architecture::Llama
            | Architecture::Mistral
            | Architecture::Qwen2
            | Architecture::Qwen3
            | Architecture::Granite
            | Architecture::SmolLm3
    );
    let refused = [
        (!known, architecture.as_str()),
        (config.experts.is_some(), "a model with experts"),
        (config.norm.kind != NormKind::Rms, "a model with LayerNorm"),
        (
            config.norm.place != NormPlace::Before,
            "a model with norms after its layers' parts",
        ),
        (config.norm.bias, "a model with norms that have biases"),
        (
            config.qk_norm == QkNorm::Whole,
            "a model with norms on whole queries",
        ),
        (
            config.activation != Activation::Silu || !config.gated,
            "a model without SwiGLU",
        ),
        (
            config.attn_output_bias || config.ffn_bias,
            "a model with biases after attention",
        ),
        (
            config.attention_cap.is_some() || config.logit_cap.is_some(),
            "a model with soft caps",
        ),
        (
            config.learned_positions.is_some(),
            "a model with learned positions",
        ),
        (config.parallel_residual, "a model with parallel layers"),
        (!config.causal || !config.has_output, "an encoder"),
        (
            config.rope.dims != config.head_dim,
            "a model whose heads are rotated in part",
        ),
    ];
    let found = refused.into_iter().find(|(is_refused, _)| *is_refused);
    found.map(|(_, what)| what.to_owned())
}
