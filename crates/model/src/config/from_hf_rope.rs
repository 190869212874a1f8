//! Rotary embedding out of a Hugging Face folder's `config.json`.

use serde::Deserialize;
use serde_json::Value;

use super::from_hf::{MISSING, Reader};
use super::{ArchitectureRow, RopeConfig, RopeLayout, RopeScaling, WindowPattern};
use crate::source::ModelFileError;

/// `rope_scaling` or `rope_parameters`.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct RawRope {
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

impl Reader<'_> {
    /// The rotary embedding of all layers, and that of the layers with a window where it is another.
    pub(super) fn ropes(
        &self,
        row: &ArchitectureRow,
        head_dim: usize,
        context: usize,
    ) -> Result<(RopeConfig, Option<RopeConfig>), ModelFileError> {
        let (joint, local) = self.rope_parameters()?;
        let raw = self.raw;
        let scaling = raw.rope_scaling.as_ref().or(joint.as_ref());
        let base = joint.as_ref().and_then(|joint| joint.rope_theta);
        let base = base
            .or(raw.rope_theta)
            .or(raw.rotary_emb_base)
            .or(raw.global_rope_theta);
        let rope = self.rope(scaling, base.unwrap_or(10_000.0), head_dim, context)?;
        let local_base = raw.rope_local_base_freq.or(raw.local_rope_theta);
        let local = match (local, local_base) {
            (Some(local), _) => {
                let base = local.rope_theta.unwrap_or(10_000.0);
                Some(self.rope(Some(&local), base, head_dim, context)?)
            }
            (None, Some(base)) => Some(self.rope(None, base, head_dim, context)?),
            (None, None) if matches!(row.window_pattern, WindowPattern::AllButEvery(6)) => {
                Some(self.rope(None, 10_000.0, head_dim, context)?)
            }
            (None, None) => None,
        };
        let local = local.filter(|local| *local != rope);
        Ok((rope, local))
    }

    /// `rope_parameters`: for all layers, or one for each kind of layer.
    fn rope_parameters(&self) -> Result<(Option<RawRope>, Option<RawRope>), ModelFileError> {
        let Some(value) = &self.raw.rope_parameters else {
            return Ok((None, None));
        };
        let read = |value: &Value| {
            RawRope::deserialize(value)
                .map_err(|error| self.refuse("rope_parameters", error.to_string()))
        };
        match (value.get("full_attention"), value.get("sliding_attention")) {
            (None, None) => Ok((Some(read(value)?), None)),
            (full, sliding) => Ok((full.map(read).transpose()?, sliding.map(read).transpose()?)),
        }
    }

    fn rope(
        &self,
        raw: Option<&RawRope>,
        base: f32,
        head_dim: usize,
        context: usize,
    ) -> Result<RopeConfig, ModelFileError> {
        let part = raw.and_then(|raw| raw.partial_rotary_factor);
        let part = part
            .or(self.raw.partial_rotary_factor)
            .or(self.raw.rotary_pct);
        let part = part.unwrap_or(1.0);
        if !(part > 0.0 && part <= 1.0) {
            let reason = format!("must lie between 0 and 1, not {part}");
            return Err(self.refuse("partial_rotary_factor", reason));
        }
        Ok(RopeConfig {
            base,
            dims: (head_dim as f64 * f64::from(part)) as usize,
            scaling: match raw {
                Some(raw) => self.rope_scaling(raw, context)?,
                None => RopeScaling::None,
            },
            layout: RopeLayout::Halves,
        })
    }

    fn rope_scaling(&self, raw: &RawRope, context: usize) -> Result<RopeScaling, ModelFileError> {
        let need = |name: &str, value: Option<f32>| {
            value.ok_or_else(|| self.refuse(&format!("rope_scaling.{name}"), MISSING))
        };
        let original_context = raw
            .original_max_position_embeddings
            .or(self.raw.original_max_position_embeddings);
        let kind = raw.rope_type.as_deref().or(raw.old_type.as_deref());
        match kind.unwrap_or("default") {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear {
                factor: need("factor", raw.factor)?,
            }),
            "dynamic" => Ok(RopeScaling::Dynamic {
                factor: need("factor", raw.factor)?,
                original_context: original_context.unwrap_or(context),
            }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: need("factor", raw.factor)?,
                low_freq_factor: need("low_freq_factor", raw.low_freq_factor)?,
                high_freq_factor: need("high_freq_factor", raw.high_freq_factor)?,
                original_context: original_context.ok_or_else(|| {
                    self.refuse("rope_scaling.original_max_position_embeddings", MISSING)
                })?,
            }),
            "yarn" => Ok(yarn(raw, original_context.unwrap_or(context), context)),
            // "su" is what the first files called it.
            "longrope" | "su" => self.long_rope(raw, original_context.unwrap_or(context), context),
            other => Err(self.refuse(
                "rope_scaling.rope_type",
                format!(
                    "'{other}' is not supported; supported are default, linear, dynamic, llama3, yarn and longrope"
                ),
            )),
        }
    }

    fn long_rope(
        &self,
        raw: &RawRope,
        original_context: usize,
        context: usize,
    ) -> Result<RopeScaling, ModelFileError> {
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
}

fn yarn(raw: &RawRope, original_context: usize, context: usize) -> RopeScaling {
    let factor = raw
        .factor
        .unwrap_or(context as f32 / original_context.max(1) as f32);
    RopeScaling::Yarn {
        factor,
        original_context,
        beta_fast: raw.beta_fast.unwrap_or(32.0),
        beta_slow: raw.beta_slow.unwrap_or(1.0),
        attention_factor: raw
            .attention_factor
            .unwrap_or_else(|| yarn_attention_factor(factor, raw.mscale, raw.mscale_all_dim)),
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
