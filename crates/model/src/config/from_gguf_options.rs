//! The options of architectures out of GGUF metadata.

use super::from_gguf::{MISSING, Reader};
use super::{
    Architecture, ArchitectureRow, Dialect, ExpertsConfig, Field, LayerKind, MAX_LAYERS,
    NormConfig, NormKind, RopeConfig, RopeScaling, WindowPattern,
};
use crate::gguf::{Array, Value};
use crate::source::ModelFileError;

impl Reader<'_> {
    /// The first dimension of a tensor.
    pub(super) fn rows(&self, tensor: &str) -> Result<usize, ModelFileError> {
        let info = self.file.tensor(tensor);
        info.map(|info| info.rows())
            .ok_or_else(|| ModelFileError::tensor(self.file.path(), tensor, MISSING))
    }

    /// The first dimension of a tensor that a model has if `wanted`.
    pub(super) fn rows_if(
        &self,
        wanted: bool,
        tensor: &str,
    ) -> Result<Option<usize>, ModelFileError> {
        wanted.then(|| self.rows(tensor)).transpose()
    }

    pub(super) fn flag(&self, suffix: &str) -> Result<Option<bool>, ModelFileError> {
        let key = self.key(suffix);
        match self.file.metadata(&key) {
            None => Ok(None),
            Some(Value::Bool(set)) => Ok(Some(*set)),
            Some(_) => Err(self.refuse(&key, "must be true or false")),
        }
    }

    pub(super) fn norm(&self, row: &ArchitectureRow) -> Result<NormConfig, ModelFileError> {
        let field = match row.norm {
            NormKind::Rms => Field::RmsEps,
            NormKind::Layer => Field::LayerNormEps,
        };
        let eps = self
            .number(field)?
            .ok_or_else(|| self.refuse(&Dialect::Gguf(self.architecture).name(field), MISSING))?;
        Ok(NormConfig {
            kind: row.norm,
            eps,
            place: row.norm_place,
            bias: row.norm_bias,
        })
    }

    /// The scale of attention. Files of Gemma do not say it; those of its largest models mean another.
    pub(super) fn attention_scale(
        &self,
        row: &ArchitectureRow,
        hidden_size: usize,
        heads: usize,
        head_dim: usize,
        layers: usize,
    ) -> Result<f32, ModelFileError> {
        if let Some(scale) = self
            .number(Field::AttentionScale)?
            .filter(|&scale| scale != 0.0)
        {
            return Ok(scale);
        }
        let of_the_largest = matches!(
            (row.architecture, layers),
            (Architecture::Gemma2, 46) | (Architecture::Gemma3, 62)
        );
        let width = if of_the_largest {
            hidden_size as f32 / heads.max(1) as f32
        } else {
            head_dim as f32
        };
        Ok(1.0 / width.sqrt())
    }

    /// A cap on scores or logits: of Gemma 2 always, of others where the file has one.
    pub(super) fn cap(
        &self,
        row: &ArchitectureRow,
        field: Field,
        of_gemma2: f32,
    ) -> Result<Option<f32>, ModelFileError> {
        let always = row.architecture == Architecture::Gemma2;
        let cap = self.number(field)?.or(always.then_some(of_gemma2));
        Ok(cap.filter(|&cap| cap != 0.0))
    }

    /// One of Granite's multipliers; 0 stands for none.
    pub(super) fn scale(
        &self,
        row: &ArchitectureRow,
        field: Field,
    ) -> Result<Option<f32>, ModelFileError> {
        let scale = self.number(field)?.filter(|&scale| scale != 0.0);
        if scale.is_some() && row.architecture != Architecture::Granite {
            let name = Dialect::Gguf(self.architecture).name(field);
            return Err(self.refuse(&name, "is not supported for this architecture"));
        }
        Ok(scale)
    }

    pub(super) fn window(&self, row: &ArchitectureRow) -> Result<Option<usize>, ModelFileError> {
        let window = self.size(Field::SlidingWindow)?.filter(|&n| n != 0);
        // Of encoders files give both sides together.
        let window = window.map(|n| if row.causal { n } else { (n / 2).max(1) });
        let needed = matches!(row.window_pattern, WindowPattern::AllButEvery(_));
        if window.is_none() && needed && row.architecture == Architecture::Gemma2 {
            return Ok(Some(4096)); // what all of its models have, and the first files leave out
        }
        Ok(window)
    }

    /// The layers' kinds. Which have the window and the rotary embedding is the architecture's rule, where the file
    /// does not list it.
    pub(super) fn layer_kinds(
        &self,
        row: &ArchitectureRow,
        layers: usize,
        (has_window, has_experts): (bool, bool),
    ) -> Result<Vec<LayerKind>, ModelFileError> {
        let key = self.key("attention.sliding_window_pattern");
        let listed = match self.file.metadata(&key) {
            Some(Value::Array(Array::Bool(list))) => Some(list.clone()),
            _ => None,
        };
        let pattern = match (self.file.metadata(&key), row.window_pattern) {
            (Some(Value::U32(n)), WindowPattern::AllButEvery(_)) => {
                WindowPattern::AllButEvery((*n as usize).max(1))
            }
            (_, pattern) => pattern,
        };
        let in_pattern = |layer: usize| match (&listed, pattern) {
            (Some(list), _) => list.get(layer).copied().unwrap_or(false),
            (None, pattern) => pattern.holds(layer),
        };
        let rotated = |layer: usize| match row.no_rope_step {
            Some(step) => !(layer + 1).is_multiple_of(step),
            None => !row.learned_positions,
        };
        let kind = |layer: usize| LayerKind {
            window: has_window && in_pattern(layer),
            rope: rotated(layer),
            experts: has_experts && self.has(&format!("blk.{layer}.ffn_gate_inp.weight")),
        };
        Ok((0..layers.min(MAX_LAYERS)).map(kind).collect())
    }

    /// The rotary embedding of layers with a window: Gemma 3's has a base of its own and no scaling.
    pub(super) fn window_rope(
        &self,
        row: &ArchitectureRow,
        rope: &RopeConfig,
    ) -> Result<Option<RopeConfig>, ModelFileError> {
        let base = self.number_at(&self.key("rope.freq_base_swa"))?;
        let local = match (base, row.architecture) {
            (Some(base), _) => base,
            (None, Architecture::Gemma3) => 10_000.0,
            (None, _) => return Ok(None),
        };
        let local = RopeConfig {
            base: local,
            scaling: RopeScaling::None,
            ..rope.clone()
        };
        Ok(Some(local).filter(|local| local != rope))
    }

    pub(super) fn experts(
        &self,
        row: &ArchitectureRow,
    ) -> Result<Option<ExpertsConfig>, ModelFileError> {
        let Some(count) = self.size(Field::Experts)?.filter(|&count| count > 0) else {
            return Ok(None);
        };
        let name = |field| Dialect::Gguf(self.architecture).name(field);
        let takes_experts = matches!(
            row.architecture,
            Architecture::Llama
                | Architecture::Qwen2Moe
                | Architecture::Qwen3Moe
                | Architecture::Olmoe
        );
        if !takes_experts {
            let reason = "experts are not supported for this architecture";
            return Err(self.refuse(&name(Field::Experts), reason));
        }
        let ffn_size = match self.size(Field::ExpertFfnSize)? {
            Some(size) => size,
            None => self.need(Field::FfnSize)?,
        };
        let shared = self.has("blk.0.ffn_up_shexp.weight");
        Ok(Some(ExpertsConfig {
            count,
            used: self.need(Field::ExpertsUsed)?,
            ffn_size,
            normalized: self
                .flag("expert_weights_norm")?
                .unwrap_or(row.normalizes_experts),
            shared_ffn_size: match shared {
                true => Some(match self.size(Field::SharedFfnSize)? {
                    Some(size) => size,
                    None => self.rows("blk.0.ffn_up_shexp.weight")?,
                }),
                false => None,
            },
        }))
    }

    pub(super) fn refuse_unsupported(&self, row: &ArchitectureRow) -> Result<(), ModelFileError> {
        for suffix in [
            "attention.clamp_kqv",
            "attention.max_alibi_bias",
            "expert_weights_scale",
        ] {
            let key = self.key(suffix);
            if self
                .number_at(&key)?
                .is_some_and(|value| value != 0.0 && value != 1.0)
            {
                return Err(self.refuse(&key, "is not supported"));
            }
        }
        if row.architecture == Architecture::StableLm
            && self.flag("use_parallel_residual")? == Some(true)
            && !self.has("blk.0.ffn_norm.weight")
        {
            let key = self.key("use_parallel_residual");
            return Err(self.refuse(&key, "is not supported for StableLM"));
        }
        Ok(())
    }
}
