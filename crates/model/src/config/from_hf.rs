//! The configuration out of a Hugging Face folder's `config.json`.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::{
    ARCHITECTURES, ArchitectureRow, Dialect, Field, ModelConfig, RopeConfig, RopeLayout,
    RopeScaling,
};
use crate::source::ModelFileError;

/// The fields of `config.json` that matter here. What may be absent or null is an `Option`.
#[derive(Debug, Deserialize)]
struct RawConfig {
    model_type: Option<String>,
    #[serde(rename = "_name_or_path")]
    name: Option<String>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f32>,
    rope_theta: Option<f32>,
    rope_scaling: Option<RawRope>,
    /// Holds `rope_theta` and `rope_scaling` together in newer files.
    rope_parameters: Option<RawRope>,
    partial_rotary_factor: Option<f32>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    layer_types: Option<Vec<String>>,
    tie_word_embeddings: Option<bool>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    quantization_config: Option<Value>,
    num_local_experts: Option<usize>,
    num_experts: Option<usize>,
    bos_token_id: Option<Value>,
    eos_token_id: Option<Value>,
}

/// `rope_scaling` or `rope_parameters`.
#[derive(Clone, Debug, Default, Deserialize)]
struct RawRope {
    rope_type: Option<String>,
    /// The older name of `rope_type`; some files give both.
    #[serde(rename = "type")]
    old_type: Option<String>,
    rope_theta: Option<f32>,
    partial_rotary_factor: Option<f32>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    original_max_position_embeddings: Option<usize>,
    beta_fast: Option<f32>,
    beta_slow: Option<f32>,
    attention_factor: Option<f32>,
    mscale: Option<f32>,
    mscale_all_dim: Option<f32>,
    short_factor: Option<Vec<f32>>,
    long_factor: Option<Vec<f32>>,
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
}

impl ModelConfig {
    /// Reads and checks the configuration of a Hugging Face folder. `has_tensor` tells whether the weights hold a
    /// tensor for a canonical suffix such as `self_attn.q_proj.bias` in layer 0.
    pub(crate) fn from_hf(
        files: HfConfigFiles<'_>,
        has_tensor: &dyn Fn(&str) -> bool,
    ) -> Result<Self, ModelFileError> {
        let path = files.path;
        let model_type = model_type(path, files.config)?;
        let raw: RawConfig = parse(path, files.config)?;
        let row = ARCHITECTURES.iter().find(|row| row.hf_name == model_type);
        let row = row.ok_or_else(|| {
            let known: Vec<_> = ARCHITECTURES.iter().map(|row| row.hf_name).collect();
            let reason = format!(
                "'{model_type}' is not supported; supported are {}",
                known.join(", ")
            );
            ModelFileError::config(path, "model_type", reason)
        })?;
        let reader = Reader { path, raw: &raw };
        reader.refuse_unsupported()?;
        let mut config = reader.config(row, has_tensor)?;
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

/// `model_type` of a `config.json`.
pub(crate) fn model_type(path: &Path, contents: &[u8]) -> Result<String, ModelFileError> {
    // Apart from the rest, which an unknown architecture may write in other ways.
    #[derive(Deserialize)]
    struct Typed {
        model_type: Option<String>,
    }
    let typed: Typed = parse(path, contents)?;
    typed
        .model_type
        .ok_or_else(|| ModelFileError::config(path, "model_type", MISSING))
}

/// Parses JSON; the message names line and column.
fn parse<'a, T: Deserialize<'a>>(path: &Path, contents: &'a [u8]) -> Result<T, ModelFileError> {
    serde_json::from_slice(contents)
        .map_err(|error| ModelFileError::config(path, "JSON", error.to_string()))
}

struct Reader<'a> {
    path: &'a Path,
    raw: &'a RawConfig,
}

impl Reader<'_> {
    fn config(
        &self,
        row: &ArchitectureRow,
        has_tensor: &dyn Fn(&str) -> bool,
    ) -> Result<ModelConfig, ModelFileError> {
        let raw = self.raw;
        let need = |field: Field, value: Option<usize>| {
            value.ok_or_else(|| self.refuse(&Dialect::HuggingFace.name(field), MISSING))
        };
        let hidden_size = need(Field::HiddenSize, raw.hidden_size)?;
        let heads = need(Field::Heads, raw.num_attention_heads)?;
        let head_dim = match raw.head_dim {
            Some(head_dim) => head_dim,
            None if heads == 0 || !hidden_size.is_multiple_of(heads) => {
                let reason = format!("{heads} heads do not divide a width of {hidden_size}");
                return Err(self.refuse("num_attention_heads", reason));
            }
            None => hidden_size / heads,
        };
        let context_length = need(Field::ContextLength, raw.max_position_embeddings)?;
        let biased = raw.attention_bias == Some(true);
        Ok(ModelConfig {
            architecture: row.architecture,
            name: raw.name.clone().filter(|name| !name.is_empty()),
            vocab_size: need(Field::VocabSize, raw.vocab_size)?,
            hidden_size,
            layers: need(Field::Layers, raw.num_hidden_layers)?,
            heads,
            kv_heads: raw.num_key_value_heads.unwrap_or(heads),
            head_dim,
            ffn_size: need(Field::FfnSize, raw.intermediate_size)?,
            context_length,
            rms_eps: raw
                .rms_norm_eps
                .ok_or_else(|| self.refuse("rms_norm_eps", MISSING))?,
            rope: self.rope(head_dim, context_length)?,
            attention_scale: 1.0 / (head_dim as f32).sqrt(),
            sliding_window: self.sliding_window()?,
            qkv_bias: row.needs_qkv_bias || biased || has_tensor("self_attn.q_proj.bias"),
            attn_output_bias: biased || has_tensor("self_attn.o_proj.bias"),
            qk_norm: row.needs_qk_norm || has_tensor("self_attn.q_norm.weight"),
            tied_embeddings: raw.tie_word_embeddings.unwrap_or(false),
            bos: tokens(self.path, "bos_token_id", raw.bos_token_id.as_ref())?
                .first()
                .copied(),
            eos: tokens(self.path, "eos_token_id", raw.eos_token_id.as_ref())?,
        })
    }

    fn refuse(&self, field: &str, reason: impl Into<String>) -> ModelFileError {
        ModelFileError::config(self.path, field, reason)
    }

    fn refuse_unsupported(&self) -> Result<(), ModelFileError> {
        let raw = self.raw;
        match raw.hidden_act.as_deref() {
            None | Some("silu" | "swish") => {}
            Some(other) => {
                return Err(self.refuse("hidden_act", format!("'{other}' is not supported")));
            }
        }
        if raw.mlp_bias == Some(true) {
            return Err(self.refuse("mlp_bias", "is not supported"));
        }
        if let Some(quantization) = &raw.quantization_config {
            let method = quantization["quant_method"]
                .as_str()
                .unwrap_or("of an unnamed method");
            let reason = format!("quantized weights ({method}) are not supported");
            return Err(self.refuse("quantization_config", reason));
        }
        for (field, experts) in [
            ("num_local_experts", raw.num_local_experts),
            ("num_experts", raw.num_experts),
        ] {
            if experts.is_some_and(|experts| experts > 0) {
                return Err(self.refuse(field, "mixtures of experts are not supported"));
            }
        }
        Ok(())
    }

    /// The window of all layers. Layers with a window beside layers without one are not supported.
    fn sliding_window(&self) -> Result<Option<usize>, ModelFileError> {
        let raw = self.raw;
        let window = raw.sliding_window.filter(|_| {
            // Qwen's files carry a window that they switch off.
            raw.use_sliding_window
                .unwrap_or(raw.model_type.as_deref() == Some("mistral"))
        });
        let Some(kinds) = &raw.layer_types else {
            if window.is_some() && raw.use_sliding_window == Some(true) {
                // Without the list, Qwen's own rule puts a window on some layers only.
                let reason = "a sliding window on some of the layers is not supported";
                return Err(self.refuse("use_sliding_window", reason));
            }
            return Ok(window);
        };
        let sliding = kinds
            .iter()
            .filter(|kind| *kind == "sliding_attention")
            .count();
        let full = kinds
            .iter()
            .filter(|kind| *kind == "full_attention")
            .count();
        match (sliding, full, window) {
            (0, full, _) if full == kinds.len() => Ok(None),
            (sliding, 0, Some(window)) if sliding == kinds.len() => Ok(Some(window)),
            _ => Err(self.refuse(
                "layer_types",
                "layers that attend in different ways are not supported",
            )),
        }
    }

    fn rope(&self, head_dim: usize, context: usize) -> Result<RopeConfig, ModelFileError> {
        let raw = self.raw;
        let joint = raw.rope_parameters.clone().unwrap_or_default();
        let part = joint.partial_rotary_factor.or(raw.partial_rotary_factor);
        let part = part.unwrap_or(1.0);
        if !(part > 0.0 && part <= 1.0) {
            let reason = format!("must lie between 0 and 1, not {part}");
            return Err(self.refuse("partial_rotary_factor", reason));
        }
        let scaling = raw.rope_scaling.as_ref().or(raw.rope_parameters.as_ref());
        Ok(RopeConfig {
            base: joint.rope_theta.or(raw.rope_theta).unwrap_or(10_000.0),
            dims: (head_dim as f64 * f64::from(part)) as usize,
            scaling: match scaling {
                Some(scaling) => self.rope_scaling(scaling, context)?,
                None => RopeScaling::None,
            },
            layout: RopeLayout::Halves,
        })
    }

    fn rope_scaling(&self, raw: &RawRope, context: usize) -> Result<RopeScaling, ModelFileError> {
        let need = |name: &str, value: Option<f32>| {
            value.ok_or_else(|| self.refuse(&format!("rope_scaling.{name}"), MISSING))
        };
        let original_context = raw.original_max_position_embeddings;
        let kind = raw.rope_type.as_deref().or(raw.old_type.as_deref());
        match kind.unwrap_or("default") {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear {
                factor: need("factor", raw.factor)?,
            }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: need("factor", raw.factor)?,
                low_freq_factor: need("low_freq_factor", raw.low_freq_factor)?,
                high_freq_factor: need("high_freq_factor", raw.high_freq_factor)?,
                original_context: original_context.ok_or_else(|| {
                    self.refuse("rope_scaling.original_max_position_embeddings", MISSING)
                })?,
            }),
            "yarn" => {
                let original_context = original_context.unwrap_or(context);
                let factor = match raw.factor {
                    Some(factor) => factor,
                    None => context as f32 / original_context.max(1) as f32,
                };
                Ok(RopeScaling::Yarn {
                    factor,
                    original_context,
                    beta_fast: raw.beta_fast.unwrap_or(32.0),
                    beta_slow: raw.beta_slow.unwrap_or(1.0),
                    attention_factor: raw.attention_factor.unwrap_or_else(|| {
                        yarn_attention_factor(factor, raw.mscale, raw.mscale_all_dim)
                    }),
                })
            }
            "longrope" => {
                let original_context = original_context.unwrap_or(context);
                let factor = context as f32 / original_context.max(1) as f32;
                let factor = raw.factor.unwrap_or(factor);
                let list = |name: &str, list: &Option<Vec<f32>>| {
                    list.clone()
                        .ok_or_else(|| self.refuse(&format!("rope_scaling.{name}"), MISSING))
                };
                Ok(RopeScaling::LongRope {
                    short: list("short_factor", &raw.short_factor)?,
                    long: list("long_factor", &raw.long_factor)?,
                    original_context,
                    attention_factor: raw.attention_factor.unwrap_or_else(|| {
                        if factor <= 1.0 {
                            return 1.0;
                        }
                        (1.0 + factor.ln() / (original_context as f32).ln()).sqrt()
                    }),
                })
            }
            other => Err(self.refuse(
                "rope_scaling.rope_type",
                format!("'{other}' is not supported"),
            )),
        }
    }
}

/// The rule of the `transformers` library.
fn yarn_attention_factor(factor: f32, mscale: Option<f32>, mscale_all_dim: Option<f32>) -> f32 {
    let scaled = |mscale: f32| {
        if factor > 1.0 {
            0.1 * mscale * factor.ln() + 1.0
        } else {
            1.0
        }
    };
    match (mscale, mscale_all_dim) {
        (Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => scaled(mscale) / scaled(all),
        _ => RopeScaling::yarn_attention_factor(factor),
    }
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

const MISSING: &str = "is missing";
