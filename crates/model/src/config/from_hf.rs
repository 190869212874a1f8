//! The configuration out of a Hugging Face folder's `config.json`.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::from_hf_rope::RawRope;
use super::text_part::text_part;
use super::{
    ARCHITECTURES, Activation, Architecture, ArchitectureRow, Dialect, ExpertsConfig, Field,
    Int4Config, LayerKind, MAX_LAYERS, ModelConfig, NormConfig, NormKind, QkNorm, WindowPattern,
};
use crate::source::ModelFileError;

/// The fields of `config.json` that matter here. What may be absent or null is an `Option`.
#[derive(Debug, Deserialize)]
pub(super) struct RawConfig {
    model_type: Option<String>,
    #[serde(rename = "_name_or_path")]
    name: Option<String>,
    vocab_size: Option<usize>,
    #[serde(alias = "n_embd")]
    hidden_size: Option<usize>,
    #[serde(alias = "n_layer")]
    num_hidden_layers: Option<usize>,
    #[serde(alias = "n_head")]
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    #[serde(alias = "n_inner")]
    intermediate_size: Option<usize>,
    #[serde(alias = "n_positions")]
    max_position_embeddings: Option<usize>,
    pub(super) original_max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f32>,
    #[serde(alias = "layer_norm_epsilon")]
    layer_norm_eps: Option<f32>,
    pub(super) rope_theta: Option<f32>,
    pub(super) rotary_emb_base: Option<f32>,
    pub(super) rope_local_base_freq: Option<f32>,
    pub(super) rope_scaling: Option<RawRope>,
    /// Holds `rope_theta` and `rope_scaling` together in newer files.
    pub(super) rope_parameters: Option<Value>,
    pub(super) partial_rotary_factor: Option<f32>,
    pub(super) rotary_pct: Option<f32>,
    no_rope_layers: Option<Vec<u8>>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    sliding_window_pattern: Option<usize>,
    /// ModernBERT's: to both sides together.
    local_attention: Option<usize>,
    global_attn_every_n_layers: Option<usize>,
    pub(super) global_rope_theta: Option<f32>,
    pub(super) local_rope_theta: Option<f32>,
    norm_eps: Option<f32>,
    norm_bias: Option<bool>,
    layer_types: Option<Vec<String>>,
    tie_word_embeddings: Option<bool>,
    hidden_act: Option<String>,
    /// Gemma's name for `hidden_act`, which its files may give beside it.
    hidden_activation: Option<String>,
    /// GPT-2's.
    activation_function: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    use_parallel_residual: Option<bool>,
    qk_layernorm: Option<bool>,
    quantization_config: Option<Value>,
    num_local_experts: Option<usize>,
    num_experts: Option<usize>,
    num_experts_per_tok: Option<usize>,
    moe_intermediate_size: Option<usize>,
    shared_expert_intermediate_size: Option<usize>,
    norm_topk_prob: Option<bool>,
    decoder_sparse_step: Option<usize>,
    mlp_only_layers: Option<Vec<usize>>,
    clip_qkv: Option<f32>,
    query_pre_attn_scalar: Option<f32>,
    attn_logit_softcapping: Option<f32>,
    final_logit_softcapping: Option<f32>,
    attention_multiplier: Option<f32>,
    embedding_multiplier: Option<f32>,
    residual_multiplier: Option<f32>,
    logits_scaling: Option<f32>,
    use_bidirectional_attention: Option<bool>,
    scale_attn_by_inverse_layer_idx: Option<bool>,
    scale_attn_weights: Option<bool>,
    position_embedding_type: Option<String>,
    type_vocab_size: Option<usize>,
    pad_token_id: Option<i64>,
    bos_token_id: Option<Value>,
    eos_token_id: Option<Value>,
}

/// `generation_config.json`: it may name more tokens that end a text.
#[derive(Debug, Deserialize)]
struct RawGeneration {
    eos_token_id: Option<Value>,
}

/// The files that the configuration is read from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HfConfigFiles<'a> {
    /// Path of `config.json`, for messages.
    pub path: &'a Path,
    /// Contents of `config.json`.
    pub config: &'a [u8],
    /// Path and contents of `generation_config.json`, if there is one.
    pub generation: Option<(&'a Path, &'a [u8])>,
    /// Path and contents of `quantize_config.json`, if there is one.
    pub quantize: Option<(&'a Path, &'a [u8])>,
}

impl ModelConfig {
    /// Reads and checks the configuration of a Hugging Face folder. `has_tensor` tells whether the weights hold a
    /// tensor for a canonical suffix such as `self_attn.q_proj.bias` in layer 0.
    pub(crate) fn from_hf(
        files: HfConfigFiles<'_>,
        has_tensor: &dyn Fn(&str) -> bool,
    ) -> Result<Self, ModelFileError> {
        let path = files.path;
        let contents = text_part(files.config);
        let model_type = model_type(path, &contents)?;
        let row = ARCHITECTURES.iter().find(|row| row.hf_name == model_type);
        let row = row.ok_or_else(|| {
            let known: Vec<_> = ARCHITECTURES.iter().map(|row| row.hf_name).collect();
            let reason = format!(
                "'{model_type}' is not supported; supported are {}",
                known.join(", ")
            );
            ModelFileError::config(path, "model_type", reason)
        })?;
        let raw: RawConfig = parse(path, &contents)?;
        let reader = Reader { path, raw: &raw };
        reader.refuse_unsupported(row)?;
        let mut config = reader.config(row, has_tensor)?;
        config.int4 = reader.int4(files.quantize)?;
        if let Some((path, contents)) = files.generation {
            let generation: RawGeneration = parse(path, contents)?;
            for token in tokens(path, "eos_token_id", generation.eos_token_id.as_ref())? {
                if !config.eos.contains(&token) {
                    config.eos.push(token);
                }
            }
        }
        config.validate(path, Dialect::HuggingFace)?;
        Ok(config)
    }
}

/// `model_type` of a `config.json`, of its part for text if there are more.
pub(crate) fn model_type(path: &Path, contents: &[u8]) -> Result<String, ModelFileError> {
    // Apart from the rest, which an unknown architecture may write in other ways.
    #[derive(Deserialize)]
    struct Typed {
        model_type: Option<String>,
    }
    let typed: Typed = parse(path, &text_part(contents))?;
    typed
        .model_type
        .ok_or_else(|| ModelFileError::config(path, "model_type", MISSING))
}

/// Parses JSON; the message names line and column.
fn parse<'a, T: Deserialize<'a>>(path: &Path, contents: &'a [u8]) -> Result<T, ModelFileError> {
    serde_json::from_slice(contents)
        .map_err(|error| ModelFileError::config(path, "JSON", error.to_string()))
}

pub(super) struct Reader<'a> {
    path: &'a Path,
    pub(super) raw: &'a RawConfig,
}

impl Reader<'_> {
    fn config(
        &self,
        row: &ArchitectureRow,
        has_tensor: &dyn Fn(&str) -> bool,
    ) -> Result<ModelConfig, ModelFileError> {
        let raw = self.raw;
        let hidden_size = self.need(Field::HiddenSize, raw.hidden_size)?;
        let heads = self.need(Field::Heads, raw.num_attention_heads)?;
        let head_dim = self.head_dim(hidden_size, heads)?;
        let context_length = self.context_length(row)?;
        let layers = self.need(Field::Layers, raw.num_hidden_layers)?;
        let biased = raw.attention_bias == Some(true);
        let (rope, window_rope) = self.ropes(row, head_dim, context_length)?;
        let experts = self.experts(row)?;
        let (sliding_window, layer_kinds) = self.layers(row, layers, experts.is_some())?;
        let ffn_size = match raw.intermediate_size {
            None if row.architecture == Architecture::Gpt2 => hidden_size.saturating_mul(4),
            size => self.need(Field::FfnSize, size)?,
        };
        let root = (hidden_size as f32).sqrt();
        Ok(ModelConfig {
            architecture: row.architecture,
            name: raw.name.clone().filter(|name| !name.is_empty()),
            vocab_size: self.need(Field::VocabSize, raw.vocab_size)?,
            hidden_size,
            layers,
            heads,
            kv_heads: raw.num_key_value_heads.unwrap_or(heads),
            head_dim,
            ffn_size,
            experts,
            layer_kinds,
            context_length,
            norm: self.norm(row)?,
            rope,
            window_rope,
            learned_positions: row.learned_positions.then_some(context_length),
            token_types: raw.type_vocab_size.filter(|_| !row.causal),
            attention_scale: self.attention_scale(head_dim),
            attention_cap: raw.attn_logit_softcapping,
            sliding_window,
            causal: row.causal && raw.use_bidirectional_attention != Some(true),
            qkv_bias: row.needs_qkv_bias || biased || has_tensor("self_attn.q_proj.bias"),
            attn_output_bias: row.ffn_bias || biased || has_tensor("self_attn.o_proj.bias"),
            qk_norm: match row.qk_norm {
                QkNorm::None if has_tensor("self_attn.q_norm.weight") => QkNorm::Heads,
                norm => norm,
            },
            activation: self.activation(row)?,
            gated: row.gated,
            ffn_bias: row.ffn_bias || raw.mlp_bias == Some(true),
            parallel_residual: raw.use_parallel_residual.unwrap_or(row.parallel_residual),
            embedding_scale: raw.embedding_multiplier.unwrap_or(if row.scales_embedding {
                root
            } else {
                1.0
            }),
            residual_scale: raw.residual_multiplier.unwrap_or(1.0),
            logit_scale: 1.0 / raw.logits_scaling.unwrap_or(1.0),
            logit_cap: raw.final_logit_softcapping,
            int4: None,
            has_output: row.causal,
            tied_embeddings: row.causal && raw.tie_word_embeddings.unwrap_or(ties_by_default(row)),
            bos: tokens(self.path, "bos_token_id", raw.bos_token_id.as_ref())?
                .first()
                .copied(),
            eos: tokens(self.path, "eos_token_id", raw.eos_token_id.as_ref())?,
        })
    }

    /// Tokens that the model was made for: of RoBERTa's kind fewer than the rows of learned positions.
    fn context_length(&self, row: &ArchitectureRow) -> Result<usize, ModelFileError> {
        let rows = self.need(Field::ContextLength, self.raw.max_position_embeddings)?;
        let unused = row.hf_unused_positions;
        // Positions count from after the padding token's id.
        if unused > 0
            && self
                .raw
                .pad_token_id
                .is_some_and(|id| id + 1 != unused as i64)
        {
            let reason = format!("is not {}, so that positions begin elsewhere", unused - 1);
            return Err(self.refuse("pad_token_id", reason));
        }
        rows.checked_sub(unused).ok_or_else(|| {
            let field = Dialect::HuggingFace.name(Field::ContextLength);
            self.refuse(&field, format!("must be more than {unused}, not {rows}"))
        })
    }

    fn need(&self, field: Field, value: Option<usize>) -> Result<usize, ModelFileError> {
        value.ok_or_else(|| self.refuse(&Dialect::HuggingFace.name(field), MISSING))
    }

    pub(super) fn refuse(&self, field: &str, reason: impl Into<String>) -> ModelFileError {
        ModelFileError::config(self.path, field, reason)
    }

    fn head_dim(&self, hidden_size: usize, heads: usize) -> Result<usize, ModelFileError> {
        match self.raw.head_dim {
            Some(head_dim) => Ok(head_dim),
            None if heads == 0 || !hidden_size.is_multiple_of(heads) => {
                let reason = format!("{heads} heads do not divide a width of {hidden_size}");
                Err(self.refuse("num_attention_heads", reason))
            }
            None => Ok(hidden_size / heads),
        }
    }

    fn norm(&self, row: &ArchitectureRow) -> Result<NormConfig, ModelFileError> {
        let (field, eps) = match row.norm {
            NormKind::Rms => (Field::RmsEps, self.raw.rms_norm_eps),
            // ModernBERT's files may give both.
            NormKind::Layer => (
                Field::LayerNormEps,
                self.raw.norm_eps.or(self.raw.layer_norm_eps),
            ),
        };
        let eps = eps.ok_or_else(|| self.refuse(&Dialect::HuggingFace.name(field), MISSING))?;
        Ok(NormConfig {
            kind: row.norm,
            eps,
            place: row.norm_place,
            bias: self.raw.norm_bias.unwrap_or(row.norm_bias),
        })
    }

    fn attention_scale(&self, head_dim: usize) -> f32 {
        match (
            self.raw.attention_multiplier,
            self.raw.query_pre_attn_scalar,
        ) {
            (Some(scale), _) => scale,
            (None, Some(width)) => 1.0 / width.sqrt(),
            (None, None) if self.raw.scale_attn_weights == Some(false) => 1.0,
            (None, None) => 1.0 / (head_dim as f32).sqrt(),
        }
    }

    fn activation(&self, row: &ArchitectureRow) -> Result<Activation, ModelFileError> {
        // Gemma's older files say "gelu" and mean its tanh form.
        let gemma = row.scales_embedding;
        let raw = self.raw;
        let names = [
            &raw.hidden_activation,
            &raw.hidden_act,
            &raw.activation_function,
        ];
        match names.into_iter().flatten().next().map(String::as_str) {
            None => Ok(row.activation),
            Some("silu" | "swish" | "swiglu") => Ok(Activation::Silu),
            Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast") => Ok(Activation::GeluTanh),
            Some("gelu") if gemma => Ok(Activation::GeluTanh),
            Some("gelu") => Ok(Activation::GeluErf),
            Some(other) => Err(self.refuse("hidden_act", format!("'{other}' is not supported"))),
        }
    }

    fn experts(&self, row: &ArchitectureRow) -> Result<Option<ExpertsConfig>, ModelFileError> {
        let raw = self.raw;
        let count = raw.num_local_experts.or(raw.num_experts);
        let has_experts = matches!(
            row.architecture,
            Architecture::Mixtral
                | Architecture::Qwen2Moe
                | Architecture::Qwen3Moe
                | Architecture::Olmoe
        );
        if !has_experts {
            let field = match raw.num_local_experts {
                Some(_) => "num_local_experts",
                None => "num_experts",
            };
            return match count.filter(|&count| count > 0) {
                None => Ok(None),
                Some(_) => Err(self.refuse(
                    field,
                    format!("experts are not supported for '{}'", row.hf_name),
                )),
            };
        }
        Ok(Some(ExpertsConfig {
            count: self.need(Field::Experts, count)?,
            used: self.need(Field::ExpertsUsed, raw.num_experts_per_tok)?,
            ffn_size: match row.architecture {
                Architecture::Mixtral | Architecture::Olmoe => {
                    self.need(Field::FfnSize, raw.intermediate_size)?
                }
                _ => self.need(Field::ExpertFfnSize, raw.moe_intermediate_size)?,
            },
            normalized: match row.architecture {
                Architecture::Mixtral => true,
                // The library's default.
                _ => raw.norm_topk_prob.unwrap_or(false),
            },
            shared_ffn_size: match row.architecture {
                Architecture::Qwen2Moe => {
                    Some(self.need(Field::SharedFfnSize, raw.shared_expert_intermediate_size)?)
                }
                _ => None,
            },
        }))
    }

    fn refuse_unsupported(&self, row: &ArchitectureRow) -> Result<(), ModelFileError> {
        let raw = self.raw;
        if raw.mlp_bias == Some(true) && row.hf_name != "llama" {
            return Err(self.refuse("mlp_bias", "is not supported for this architecture"));
        }
        if row.architecture == Architecture::StableLm && raw.use_parallel_residual == Some(true) {
            return Err(self.refuse("use_parallel_residual", "is not supported for StableLM"));
        }
        for (field, set) in [
            ("qk_layernorm", raw.qk_layernorm == Some(true)),
            ("clip_qkv", raw.clip_qkv.is_some()),
            (
                "scale_attn_by_inverse_layer_idx",
                raw.scale_attn_by_inverse_layer_idx == Some(true),
            ),
            (
                "use_bidirectional_attention",
                row.causal && raw.use_bidirectional_attention == Some(true),
            ),
        ] {
            if set {
                return Err(self.refuse(field, "is not supported"));
            }
        }
        match raw.position_embedding_type.as_deref() {
            None | Some("absolute") => {}
            Some(other) => {
                let reason = format!("'{other}' is not supported");
                return Err(self.refuse("position_embedding_type", reason));
            }
        }
        Ok(())
    }

    /// How weights are packed. FP8 weights carry their scales beside them; other methods lay weights out in their own ways.
    fn int4(&self, beside: Option<(&Path, &[u8])>) -> Result<Option<Int4Config>, ModelFileError> {
        if let Some(quantization) = &self.raw.quantization_config {
            let read = Int4Config::read(quantization);
            return read.map_err(|reason| self.refuse("quantization_config", reason));
        }
        let Some((path, contents)) = beside else {
            return Ok(None);
        };
        Int4Config::read(&parse(path, contents)?)
            .map_err(|reason| ModelFileError::config(path, "bits", reason))
    }

    /// The window, and what each layer is.
    fn layers(
        &self,
        row: &ArchitectureRow,
        layers: usize,
        experts: bool,
    ) -> Result<(Option<usize>, Vec<LayerKind>), ModelFileError> {
        let windows = self.windows(row, layers)?;
        let sparse_step = self.raw.decoder_sparse_step.unwrap_or(1).max(1);
        let dense = self.raw.mlp_only_layers.as_deref().unwrap_or_default();
        let no_rope = self.raw.no_rope_layers.as_deref();
        let kind = |layer: usize| LayerKind {
            window: windows.get(layer).copied().unwrap_or(false),
            rope: !row.learned_positions
                && match (no_rope, row.no_rope_step) {
                    (Some(list), Some(_)) => list.get(layer).is_none_or(|&rotated| rotated != 0),
                    (_, Some(step)) => !(layer + 1).is_multiple_of(step),
                    _ => true,
                },
            experts: experts && (layer + 1).is_multiple_of(sparse_step) && !dense.contains(&layer),
        };
        let kinds: Vec<LayerKind> = (0..layers.min(MAX_LAYERS)).map(kind).collect();
        let used = kinds.iter().any(|kind| kind.window);
        Ok((self.sliding_window(row).filter(|_| used), kinds))
    }

    /// Tokens of the window: up to and with the token itself, or of encoders to each side.
    fn sliding_window(&self, row: &ArchitectureRow) -> Option<usize> {
        match row.architecture {
            Architecture::ModernBert => Some(self.raw.local_attention.unwrap_or(128) / 2),
            _ => self.raw.sliding_window,
        }
    }

    /// Which layers have the window.
    fn windows(&self, row: &ArchitectureRow, layers: usize) -> Result<Vec<bool>, ModelFileError> {
        let raw = self.raw;
        // Qwen's files carry a window that they switch off; others use what they carry.
        let always = !matches!(raw.model_type.as_deref(), Some(name) if name.starts_with("qwen"))
            && row.architecture != Architecture::Llama
            && row.architecture != Architecture::SmolLm3;
        let window = self.sliding_window(row);
        let on = window.is_some() && raw.use_sliding_window.unwrap_or(always);
        let layers = layers.min(MAX_LAYERS);
        let Some(kinds) = &raw.layer_types else {
            let pattern = match (row.window_pattern, raw.sliding_window_pattern) {
                (WindowPattern::AllButEvery(_), Some(n)) => WindowPattern::AllButEvery(n.max(1)),
                (WindowPattern::AllButFirstOf(_), _) => {
                    let n = raw.global_attn_every_n_layers.unwrap_or(3);
                    WindowPattern::AllButFirstOf(n.max(1))
                }
                (pattern, _) => pattern,
            };
            // Qwen's own rule: the first `max_window_layers` attend to everything.
            let first = match raw.use_sliding_window {
                Some(true) => raw.max_window_layers.unwrap_or(0),
                _ => 0,
            };
            let windowed = |layer: usize| {
                pattern.holds(layer) && (pattern != WindowPattern::All || layer >= first)
            };
            return Ok((0..layers).map(|layer| on && windowed(layer)).collect());
        };
        let kind = |kind: &String| match kind.as_str() {
            "sliding_attention" if window.is_some() => Ok(true),
            "full_attention" => Ok(false),
            other => Err(self.refuse("layer_types", format!("'{other}' is not supported here"))),
        };
        if kinds.len() != layers {
            let reason = format!("has {} entries for {layers} layers", kinds.len());
            return Err(self.refuse("layer_types", reason));
        }
        kinds.iter().map(kind).collect()
    }
}

/// Whether the library ties the output to the embedding where the file does not say.
fn ties_by_default(row: &ArchitectureRow) -> bool {
    row.scales_embedding || matches!(row.architecture, Architecture::Gpt2 | Architecture::SmolLm3)
}

/// A token id, a list of them, or null.
fn tokens(path: &Path, field: &str, value: Option<&Value>) -> Result<Vec<u32>, ModelFileError> {
    let token = |value: &Value| {
        let token = value.as_u64().and_then(|token| u32::try_from(token).ok());
        token.ok_or_else(|| ModelFileError::config(path, field, "must be token ids"))
    };
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(values)) => values.iter().map(token).collect(),
        Some(value) => Ok(vec![token(value)?]),
    }
}

pub(super) const MISSING: &str = "is missing";
