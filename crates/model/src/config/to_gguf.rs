//! A configuration as GGUF metadata: what [`ModelConfig::from_gguf`] reads.

use super::{Architecture, ModelConfig, NormKind, RopeLayout, RopeScaling};
use crate::gguf::Value;

/// A rule that GGUF files cannot express for this model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("GGUF files cannot say that {0}")]
pub struct NotInGguf(pub String);

impl ModelConfig {
    /// The row under whose name a GGUF file holds this model.
    pub(crate) fn gguf_architecture(&self) -> Architecture {
        match self.architecture {
            Architecture::Roberta | Architecture::XlmRoberta => Architecture::Bert,
            other if other.row().gguf_name.is_some() => other,
            _ => Architecture::Llama,
        }
    }

    /// Which elements rotary embedding pairs in a GGUF file of this model.
    pub(crate) fn gguf_rope_layout(&self) -> RopeLayout {
        self.gguf_architecture().row().gguf_rope_layout
    }

    /// The metadata, without that of the tokenizer.
    ///
    /// # Errors
    /// If the file would mean another model: where the architecture's rule, which such files rely on, is not this
    /// model's.
    pub(crate) fn to_gguf(&self) -> Result<Vec<(String, Value)>, NotInGguf> {
        self.check_rules()?;
        let row = self.gguf_architecture().row();
        let name = row.gguf_name.unwrap_or("llama");
        let mut out = vec![("general.architecture".to_owned(), Value::from(name))];
        if let Some(name) = &self.name {
            out.push(("general.name".to_owned(), Value::from(name.as_str())));
        }
        let mut put = |key: &str, value: Value| out.push((format!("{name}.{key}"), value));
        for (key, size) in self.sizes() {
            put(key, Value::U32(size.min(u32::MAX as usize) as u32));
        }
        let eps = match self.norm.kind {
            NormKind::Rms => "attention.layer_norm_rms_epsilon",
            NormKind::Layer => "attention.layer_norm_epsilon",
        };
        put(eps, Value::F32(self.norm.eps));
        if self.layer_kinds.iter().any(|kind| kind.rope) {
            put("rope.freq_base", Value::F32(self.rope.base));
            put("rope.dimension_count", Value::U32(self.rope.dims as u32));
            self.put_scaling(&mut put);
        }
        if let Some(local) = &self.window_rope {
            put("rope.freq_base_swa", Value::F32(local.base));
        }
        let usual_scale = 1.0 / (self.head_dim as f32).sqrt();
        if (self.attention_scale - usual_scale).abs() > 1e-6 * usual_scale {
            put("attention.scale", Value::F32(self.attention_scale));
        }
        if self.architecture == Architecture::Granite {
            put("embedding_scale", Value::F32(self.embedding_scale));
            put("residual_scale", Value::F32(self.residual_scale));
            put("logit_scale", Value::F32(1.0 / self.logit_scale));
        }
        if let Some(cap) = self.attention_cap {
            put("attn_logit_softcapping", Value::F32(cap));
        }
        if let Some(cap) = self.logit_cap {
            put("final_logit_softcapping", Value::F32(cap));
        }
        if matches!(
            self.architecture,
            Architecture::GptNeox | Architecture::StableLm
        ) {
            put("use_parallel_residual", Value::Bool(self.parallel_residual));
        }
        if !self.causal {
            put("attention.causal", Value::Bool(false));
        }
        Ok(out)
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        let mut sizes = vec![
            ("vocab_size", self.vocab_size),
            ("context_length", self.context_length),
            ("embedding_length", self.hidden_size),
            ("block_count", self.layers),
            ("feed_forward_length", self.ffn_size),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
        ];
        if let Some(window) = self.sliding_window {
            // As from_gguf reads it: of encoders both sides together.
            let window = if self.causal { window } else { 2 * window };
            sizes.push(("attention.sliding_window", window));
        }
        if let Some(experts) = &self.experts {
            sizes.push(("expert_count", experts.count));
            sizes.push(("expert_used_count", experts.used));
            sizes.push(("expert_feed_forward_length", experts.ffn_size));
            let shared = experts.shared_ffn_size;
            sizes.extend(shared.map(|size| ("expert_shared_feed_forward_length", size)));
        }
        sizes
    }

    /// Scaling that is a number; lists of divisors are tensors.
    fn put_scaling(&self, put: &mut impl FnMut(&str, Value)) {
        match self.rope.scaling {
            RopeScaling::Linear { factor } => {
                put("rope.scaling.type", Value::from("linear"));
                put("rope.scaling.factor", Value::F32(factor));
            }
            RopeScaling::Yarn {
                factor,
                original_context,
                beta_fast,
                beta_slow,
                attention_factor,
            } => {
                let usual = RopeScaling::yarn_attention_factor(factor);
                put("rope.scaling.type", Value::from("yarn"));
                put("rope.scaling.factor", Value::F32(factor));
                put(
                    "rope.scaling.original_context_length",
                    Value::U32(original_context as u32),
                );
                put("rope.scaling.yarn_beta_fast", Value::F32(beta_fast));
                put("rope.scaling.yarn_beta_slow", Value::F32(beta_slow));
                put(
                    "rope.scaling.attn_factor",
                    Value::F32(attention_factor / usual),
                );
            }
            RopeScaling::LongRope {
                original_context,
                attention_factor,
                ..
            } => {
                put(
                    "rope.scaling.original_context_length",
                    Value::U32(original_context as u32),
                );
                put("rope.scaling.attn_factor", Value::F32(attention_factor));
            }
            RopeScaling::None
            | RopeScaling::Dynamic { .. }
            | RopeScaling::Llama3 { .. }
            | RopeScaling::Divisors { .. } => {}
        }
    }

    /// The lists of divisors that GGUF files hold as tensors: name and values.
    pub(crate) fn gguf_divisors(&self) -> Vec<(&'static str, Vec<f32>)> {
        match &self.rope.scaling {
            RopeScaling::Divisors { divisors } => vec![("rope_freqs.weight", divisors.clone())],
            RopeScaling::LongRope { short, long, .. } => vec![
                ("rope_factors_long.weight", long.clone()),
                ("rope_factors_short.weight", short.clone()),
            ],
            RopeScaling::Llama3 { .. } => {
                vec![("rope_freqs.weight", self.rope.llama3_divisors())]
            }
            _ => Vec::new(),
        }
    }

    /// Which layers have a window or no rotary embedding is, in GGUF files, the architecture's rule.
    fn check_rules(&self) -> Result<(), NotInGguf> {
        let row = self.gguf_architecture().row();
        let refuse = |what: &str| Err(NotInGguf(what.to_owned()));
        for (layer, kind) in self.layer_kinds.iter().enumerate() {
            let windowed = row.window_pattern.holds(layer);
            if kind.window != (windowed && self.sliding_window.is_some()) {
                return refuse(&format!("layer {layer} attends as it does"));
            }
            let rotated = match row.no_rope_step {
                Some(step) => !(layer + 1).is_multiple_of(step),
                None => !row.learned_positions,
            };
            if kind.rope != rotated {
                return refuse(&format!("layer {layer} has rotary embedding or not"));
            }
            if kind.experts != self.experts.is_some() {
                return refuse("only some layers have experts");
            }
        }
        if self
            .experts
            .is_some_and(|experts| experts.normalized != row.normalizes_experts)
        {
            return refuse("the probabilities of experts are (not) brought to a sum of 1");
        }
        if self.activation != row.activation {
            return refuse("the activation is another than the architecture's usual one");
        }
        if matches!(self.rope.scaling, RopeScaling::Dynamic { .. }) {
            return refuse("the base of rotary embedding grows with the context");
        }
        let partial = self.rope.dims != self.head_dim;
        if partial && self.gguf_rope_layout() == RopeLayout::Interleaved {
            return refuse("only a part of each head is rotated");
        }
        Ok(())
    }
}
