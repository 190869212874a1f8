//! The configuration out of GGUF metadata.

use std::path::Path;

use neap_kernels::format::WeightFormat;

use super::{
    ARCHITECTURES, ArchitectureRow, Dialect, Field, ModelConfig, QkNorm, RopeConfig, RopeScaling,
};
use crate::gguf::{Array, GgufFile, Value};
use crate::source::ModelFileError;

const ARCHITECTURE_KEY: &str = "general.architecture";

/// `general.architecture` of a file.
pub(crate) fn architecture_name(file: &GgufFile) -> Result<&str, ModelFileError> {
    let value = file.metadata(ARCHITECTURE_KEY);
    value.and_then(Value::as_str).ok_or_else(|| {
        ModelFileError::config(file.path(), ARCHITECTURE_KEY, "is missing or no string")
    })
}

impl ModelConfig {
    /// Reads and checks the configuration of a GGUF model. Options that show only in the tensors (biases, norms on
    /// heads, tied embeddings) are taken from there.
    ///
    /// # Errors
    /// If the architecture is not known, or a field is missing, out of range, or asks for something not supported.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, ModelFileError> {
        let name = architecture_name(file)?;
        let row = ARCHITECTURES.iter().find(|row| row.gguf_name == Some(name));
        let Some(row) = row else {
            let known: Vec<_> = ARCHITECTURES
                .iter()
                .filter_map(|row| row.gguf_name)
                .collect();
            let reason = format!(
                "'{name}' is not supported; supported are {}",
                known.join(", ")
            );
            return Err(ModelFileError::config(
                file.path(),
                ARCHITECTURE_KEY,
                reason,
            ));
        };
        let reader = Reader {
            file,
            path: file.path(),
            architecture: name,
        };
        reader.refuse_unsupported(row)?;
        let config = reader.config(row)?;
        config.validate(file.path(), Dialect::Gguf(name))?;
        Ok(config)
    }
}

pub(super) struct Reader<'a> {
    pub(super) file: &'a GgufFile,
    path: &'a Path,
    pub(super) architecture: &'a str,
}

impl Reader<'_> {
    fn config(&self, row: &ArchitectureRow) -> Result<ModelConfig, ModelFileError> {
        let hidden_size = self.need(Field::HiddenSize)?;
        let heads = self.need(Field::Heads)?;
        let head_dim = self.head_dim(hidden_size, heads)?;
        let layers = self.need(Field::Layers)?;
        let context_length = self.need(Field::ContextLength)?;
        let scaling = self.rope_scaling()?;
        let rope = RopeConfig {
            base: self.number(Field::RopeBase)?.unwrap_or(10_000.0),
            dims: self.size(Field::RopeDims)?.unwrap_or(head_dim),
            scaling,
            layout: row.gguf_rope_layout,
        };
        let sliding_window = self.window(row)?;
        let experts = self.experts(row)?;
        let layer_kinds =
            self.layer_kinds(row, layers, (sliding_window.is_some(), experts.is_some()))?;
        let window_rope = self
            .window_rope(row, &rope)?
            .filter(|_| sliding_window.is_some());
        let root = (hidden_size as f32).sqrt();
        Ok(ModelConfig {
            architecture: row.architecture,
            name: self.text("general.name"),
            vocab_size: self.vocab_size()?,
            hidden_size,
            layers,
            heads,
            kv_heads: self.size(Field::KvHeads)?.unwrap_or(heads),
            head_dim,
            ffn_size: self.need(Field::FfnSize)?,
            experts,
            layer_kinds,
            context_length,
            norm: self.norm(row)?,
            rope,
            window_rope,
            learned_positions: self.rows_if(row.learned_positions, "position_embd.weight")?,
            token_types: self.rows_if(self.has("token_types.weight"), "token_types.weight")?,
            attention_scale: self.attention_scale(row, hidden_size, heads, head_dim, layers)?,
            attention_cap: self.cap(row, Field::AttentionCap, 50.0)?,
            sliding_window,
            causal: row.causal,
            qkv_bias: row.needs_qkv_bias
                || self.has("blk.0.attn_q.bias")
                || self.has("blk.0.attn_qkv.bias"),
            attn_output_bias: row.ffn_bias || self.has("blk.0.attn_output.bias"),
            qk_norm: match row.qk_norm {
                QkNorm::None if self.has("blk.0.attn_q_norm.weight") => QkNorm::Heads,
                norm => norm,
            },
            activation: row.activation,
            gated: row.gated,
            ffn_bias: row.ffn_bias || self.has("blk.0.ffn_up.bias"),
            parallel_residual: self
                .flag("use_parallel_residual")?
                .unwrap_or(row.parallel_residual),
            embedding_scale: self
                .scale(row, Field::EmbeddingScale)?
                .unwrap_or(if row.scales_embedding { root } else { 1.0 }),
            residual_scale: self.scale(row, Field::ResidualScale)?.unwrap_or(1.0),
            logit_scale: 1.0 / self.scale(row, Field::LogitScale)?.unwrap_or(1.0),
            logit_cap: self.cap(row, Field::LogitCap, 30.0)?,
            int4: None,
            has_output: row.causal,
            tied_embeddings: row.causal && !self.has("output.weight"),
            bos: self.token("tokenizer.ggml.bos_token_id")?,
            eos: self.end_tokens()?,
        })
    }

    pub(super) fn refuse(&self, field: &str, reason: impl Into<String>) -> ModelFileError {
        ModelFileError::config(self.path, field, reason)
    }

    pub(super) fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.architecture)
    }

    pub(super) fn has(&self, tensor: &str) -> bool {
        self.file.tensor(tensor).is_some()
    }

    fn text(&self, key: &str) -> Option<String> {
        self.file
            .metadata(key)
            .and_then(Value::as_str)
            .map(str::to_owned)
    }

    pub(super) fn size(&self, field: Field) -> Result<Option<usize>, ModelFileError> {
        self.size_at(&Dialect::Gguf(self.architecture).name(field))
    }

    pub(super) fn need(&self, field: Field) -> Result<usize, ModelFileError> {
        self.size(field)?
            .ok_or_else(|| self.refuse(&Dialect::Gguf(self.architecture).name(field), MISSING))
    }

    /// A whole number. Some files give one number per layer; they are accepted if all are the same.
    pub(super) fn size_at(&self, key: &str) -> Result<Option<usize>, ModelFileError> {
        let number = |value: &Value| match value {
            Value::Array(Array::U32(each)) => uniform(each).map(u64::from),
            Value::Array(Array::I32(each)) => uniform(each).and_then(|n| u64::try_from(n).ok()),
            other => other.as_u64(),
        };
        let Some(value) = self.file.metadata(key) else {
            return Ok(None);
        };
        let size = number(value).and_then(|size| usize::try_from(size).ok());
        size.map(Some).ok_or_else(|| {
            let reason = match value {
                Value::Array(_) => "must be one number, or the same number for every layer",
                _ => "must be a whole number that is not negative",
            };
            self.refuse(key, reason)
        })
    }

    pub(super) fn number(&self, field: Field) -> Result<Option<f32>, ModelFileError> {
        self.number_at(&Dialect::Gguf(self.architecture).name(field))
    }

    pub(super) fn number_at(&self, key: &str) -> Result<Option<f32>, ModelFileError> {
        let Some(value) = self.file.metadata(key) else {
            return Ok(None);
        };
        match value.as_f32() {
            Some(number) => Ok(Some(number)),
            None => Err(self.refuse(key, "must be a floating-point number")),
        }
    }

    fn head_dim(&self, hidden_size: usize, heads: usize) -> Result<usize, ModelFileError> {
        let key = Dialect::Gguf(self.architecture).name(Field::HeadDim);
        let head_dim = match self.size_at(&key)? {
            Some(head_dim) => head_dim,
            None if heads == 0 || !hidden_size.is_multiple_of(heads) => {
                let reason = format!("{heads} heads do not divide a width of {hidden_size}");
                return Err(self.refuse(&self.key("attention.head_count"), reason));
            }
            None => hidden_size / heads,
        };
        let value_key = self.key("attention.value_length");
        match self.size_at(&value_key)? {
            Some(value_dim) if value_dim != head_dim => Err(self.refuse(
                &value_key,
                format!(
                    "values of {value_dim} dimensions beside keys of {head_dim} are not supported"
                ),
            )),
            _ => Ok(head_dim),
        }
    }

    fn vocab_size(&self) -> Result<usize, ModelFileError> {
        let name = "token_embd.weight";
        let Some(embedding) = self.file.tensor(name) else {
            return Err(ModelFileError::tensor(self.path, name, MISSING));
        };
        let rows = embedding.rows();
        let tokens_key = "tokenizer.ggml.tokens";
        let tokens = self.file.metadata(tokens_key).and_then(Value::as_array);
        if let Some(tokens) = tokens.map(Array::len).filter(|&tokens| tokens > rows) {
            let reason = format!("has {tokens} tokens, but tensor '{name}' has {rows} rows");
            return Err(self.refuse(tokens_key, reason));
        }
        match self.size(Field::VocabSize)? {
            Some(size) if size != rows => {
                let key = Dialect::Gguf(self.architecture).name(Field::VocabSize);
                Err(self.refuse(
                    &key,
                    format!("is {size}, but tensor '{name}' has {rows} rows"),
                ))
            }
            _ => Ok(rows),
        }
    }

    /// A token id; the largest number stands for none.
    fn token(&self, key: &str) -> Result<Option<u32>, ModelFileError> {
        match self.file.metadata(key) {
            None => Ok(None),
            Some(value) => match value.as_u32() {
                Some(u32::MAX) => Ok(None),
                Some(token) => Ok(Some(token)),
                None => Err(self.refuse(key, "must be a token id")),
            },
        }
    }

    fn end_tokens(&self) -> Result<Vec<u32>, ModelFileError> {
        let mut tokens = Vec::new();
        for kind in ["eos", "eot", "eom"] {
            let token = self.token(&format!("tokenizer.ggml.{kind}_token_id"))?;
            tokens.extend(token.filter(|token| !tokens.contains(token)));
        }
        Ok(tokens)
    }

    fn rope_scaling(&self) -> Result<RopeScaling, ModelFileError> {
        if let Some(divisors) = self.factors("rope_freqs.weight")? {
            return Ok(RopeScaling::Divisors { divisors });
        }
        let type_key = self.key("rope.scaling.type");
        let factor = match self.number_at(&self.key("rope.scaling.factor"))? {
            Some(factor) => Some(factor),
            None => self.number_at(&self.key("rope.scale_linear"))?,
        };
        let kind = match self.file.metadata(&type_key) {
            None if factor.is_some_and(|factor| factor > 1.0) => "linear",
            None => "none",
            Some(value) => value
                .as_str()
                .ok_or_else(|| self.refuse(&type_key, "must be a string"))?,
        };
        let factor = factor.filter(|&factor| factor != 0.0).unwrap_or(1.0);
        let attention_factor = self
            .number_at(&self.key("rope.scaling.attn_factor"))?
            .unwrap_or(1.0);
        match kind {
            "none" => self.long_rope(attention_factor),
            "linear" => Ok(RopeScaling::Linear { factor }),
            "yarn" => Ok(RopeScaling::Yarn {
                factor,
                original_context: self.original_context()?,
                beta_fast: self
                    .number_at(&self.key("rope.scaling.yarn_beta_fast"))?
                    .unwrap_or(32.0),
                beta_slow: self
                    .number_at(&self.key("rope.scaling.yarn_beta_slow"))?
                    .unwrap_or(1.0),
                attention_factor: attention_factor * RopeScaling::yarn_attention_factor(factor),
            }),
            "longrope" => self.long_rope(attention_factor),
            other => Err(self.refuse(&type_key, format!("'{other}' is not supported"))),
        }
    }

    fn original_context(&self) -> Result<usize, ModelFileError> {
        match self.size_at(&self.key("rope.scaling.original_context_length"))? {
            Some(tokens) => Ok(tokens),
            None => self.need(Field::ContextLength),
        }
    }

    fn long_rope(&self, attention_factor: f32) -> Result<RopeScaling, ModelFileError> {
        let short = self.factors("rope_factors_short.weight")?;
        let long = self.factors("rope_factors_long.weight")?;
        match (short, long) {
            (Some(short), Some(long)) => Ok(RopeScaling::LongRope {
                short,
                long,
                original_context: self.original_context()?,
                attention_factor,
            }),
            (None, None) => Ok(RopeScaling::None),
            _ => Err(self.refuse(
                &self.key("rope.scaling"),
                "only one of the tensors 'rope_factors_short.weight' and 'rope_factors_long.weight' is there",
            )),
        }
    }

    /// The numbers of a small F32 tensor.
    fn factors(&self, name: &str) -> Result<Option<Vec<f32>>, ModelFileError> {
        let Some(info) = self.file.tensor(name) else {
            return Ok(None);
        };
        if info.format != WeightFormat::F32 || info.shape.len() != 1 {
            let reason = format!(
                "must be a list of F32, not {} of shape {:?}",
                info.format.name(),
                info.shape
            );
            return Err(ModelFileError::tensor(self.path, name, reason));
        }
        let (numbers, _) = self.file.tensor_data(info).as_chunks::<4>();
        Ok(Some(
            numbers.iter().map(|&n| f32::from_le_bytes(n)).collect(),
        ))
    }
}

pub(super) const MISSING: &str = "is missing";

fn uniform<T: Copy + PartialEq>(values: &[T]) -> Option<T> {
    let first = *values.first()?;
    values.iter().all(|&value| value == first).then_some(first)
}
