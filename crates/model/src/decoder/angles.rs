//! Rotary embedding: from a model's configuration to the kernel's table.

use neap_kernels::rope::{self, RopeError, RopeParams, RopeTable};

use crate::config::{ModelConfig, RopeConfig, RopeLayout, RopeScaling};

/// The table of the frequencies of one of a model's rotary embeddings.
///
/// # Errors
/// If its parameters make none.
pub fn rope_table(config: &ModelConfig, rope: &RopeConfig) -> Result<RopeTable, RopeError> {
    if !config.layer_kinds.iter().any(|kind| kind.rope) {
        // No layer turns anything.
        return RopeTable::new(&RopeParams {
            base: f64::from(rope.base),
            dims: 0,
            head_dim: config.head_dim,
            layout: rope::RopeLayout::Halves,
            scaling: rope::RopeScaling::None,
        });
    }
    RopeTable::new(&RopeParams {
        base: base(rope, config.context_length),
        dims: rope.dims,
        head_dim: config.head_dim,
        layout: match rope.layout {
            RopeLayout::Interleaved => rope::RopeLayout::Interleaved,
            RopeLayout::Halves => rope::RopeLayout::Halves,
        },
        scaling: scaling(&rope.scaling, config.context_length),
    })
}

/// The table of the layers with a window, where they have one of their own.
pub(super) fn window_rope_table(config: &ModelConfig) -> Result<Option<RopeTable>, RopeError> {
    let rope = config.window_rope.as_ref();
    rope.map(|rope| rope_table(config, rope)).transpose()
}

/// The base; under dynamic scaling it grows once with the context that the model is run with, so that keys written
/// early stay right.
fn base(rope: &RopeConfig, context: usize) -> f64 {
    let base = f64::from(rope.base);
    let RopeScaling::Dynamic {
        factor,
        original_context,
    } = rope.scaling
    else {
        return base;
    };
    if context <= original_context || rope.dims <= 2 {
        return base;
    }
    let (factor, dims) = (f64::from(factor), rope.dims as f64);
    let stretch = factor * context as f64 / original_context as f64 - (factor - 1.0);
    base * stretch.powf(dims / (dims - 2.0))
}

fn scaling(scaling: &RopeScaling, context: usize) -> rope::RopeScaling {
    match *scaling {
        RopeScaling::None | RopeScaling::Dynamic { .. } => rope::RopeScaling::None,
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
