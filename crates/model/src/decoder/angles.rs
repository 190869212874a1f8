//! Rotary embedding: from a model's configuration to the kernel's table.

use neap_kernels::rope::{self, RopeError, RopeParams, RopeTable};

use crate::config::{ModelConfig, RopeLayout, RopeScaling};

/// The table of a model's frequencies.
pub(super) fn rope_table(config: &ModelConfig) -> Result<RopeTable, RopeError> {
    let rope = &config.rope;
    RopeTable::new(&RopeParams {
        base: f64::from(rope.base),
        dims: rope.dims,
        head_dim: config.head_dim,
        layout: match rope.layout {
            RopeLayout::Interleaved => rope::RopeLayout::Interleaved,
            RopeLayout::Halves => rope::RopeLayout::Halves,
        },
        scaling: scaling(&rope.scaling, config.context_length),
    })
}

fn scaling(scaling: &RopeScaling, context: usize) -> rope::RopeScaling {
    match *scaling {
        RopeScaling::None => rope::RopeScaling::None,
        RopeScaling::Linear { factor } => rope::RopeScaling::Linear {
            factor: factor.into(),
        },
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_context,
        } => rope::RopeScaling::Llama3 {
            factor: factor.into(),
            low_freq_factor: low_freq_factor.into(),
            high_freq_factor: high_freq_factor.into(),
            original_context,
        },
        RopeScaling::Divisors { ref divisors } => rope::RopeScaling::Factors {
            factors: divisors.clone(),
            attention_factor: 1.0,
        },
        RopeScaling::Yarn {
            factor,
            original_context,
            beta_fast,
            beta_slow,
            attention_factor,
        } => rope::RopeScaling::Yarn {
            factor: factor.into(),
            original_context,
            beta_fast: beta_fast.into(),
            beta_slow: beta_slow.into(),
            attention_factor: Some(attention_factor.into()),
        },
        RopeScaling::LongRope {
            ref short,
            ref long,
            original_context,
            attention_factor,
        } => rope::RopeScaling::LongRope {
            short_factors: short.clone(),
            long_factors: long.clone(),
            original_context,
            context,
            attention_factor: Some(attention_factor.into()),
        },
    }
}
