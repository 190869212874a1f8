//! Rotary position embedding and its ways to longer contexts.

use serde::Serialize;

use super::RopeLayout;

/// How rotary frequencies are changed to reach contexts longer than those trained on at first.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase", tag = "type")]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// At least 1.
        factor: f32,
    },
    /// Dynamic NTK: beyond the original context the base grows with the context that the model is run with.
    Dynamic {
        /// At least 1.
        factor: f32,
        /// Tokens.
        original_context: usize,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// At least 1.
        factor: f32,
        /// Wavelengths above `original_context / low_freq_factor` are scaled in full.
        low_freq_factor: f32,
        /// Wavelengths below `original_context / high_freq_factor` are kept. Greater than `low_freq_factor`.
        high_freq_factor: f32,
        /// Tokens.
        original_context: usize,
    },
    /// Each frequency divided by its own number: the tensor `rope_freqs.weight` of GGUF files, in which converters
    /// write what `Llama3` describes.
    Divisors {
        /// `dims / 2` divisors, finite and positive.
        divisors: Vec<f32>,
    },
    /// YaRN (Peng et al. 2023, "YaRN: Efficient Context Window Extension of Large Language Models").
    Yarn {
        /// At least 1.
        factor: f32,
        /// Tokens.
        original_context: usize,
        /// Rotations over the original context above which a frequency is kept; 32 by default.
        beta_fast: f32,
        /// Rotations below which it is scaled in full; 1 by default.
        beta_slow: f32,
        /// Multiplies cosine and sine.
        attention_factor: f32,
    },
    /// LongRoPE (Ding et al. 2024): each frequency divided by its own number, out of one of two lists.
    LongRope {
        /// For contexts up to `original_context`; `dims / 2`, finite and positive.
        short: Vec<f32>,
        /// For longer ones; `dims / 2`, finite and positive.
        long: Vec<f32>,
        /// Tokens.
        original_context: usize,
        /// Multiplies cosine and sine.
        attention_factor: f32,
    },
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RopeConfig {
    /// Base of the geometric series of wavelengths: frequency `i` is `base^(-2i / dims)`.
    pub base: f32,
    /// Leading dimensions of each head that are rotated; even, at most the head's.
    pub dims: usize,
    /// Scaling for long contexts.
    pub scaling: RopeScaling,
    /// Which elements are paired.
    pub layout: RopeLayout,
}

impl RopeScaling {
    /// What is wrong with the numbers, if anything; `frequencies` is how many there are.
    pub(super) fn fault(&self, frequencies: usize) -> Option<String> {
        let positive = |name: &str, value: f32| {
            let good = value > 0.0 && value.is_finite();
            (!good).then(|| format!("{name} must be positive, not {value}"))
        };
        let factor = |value: f32| {
            let good = value >= 1.0 && value.is_finite();
            (!good).then(|| format!("factor must be at least 1, not {value}"))
        };
        let context = |tokens: usize| {
            let good = (1..=1usize << 32).contains(&tokens);
            (!good).then(|| format!("original context of {tokens} tokens"))
        };
        let in_order = |low_name: &str, low: f32, high_name: &str, high: f32| {
            (low >= high).then(|| format!("{low_name} {low} must be less than {high_name} {high}"))
        };
        let list = |name: &str, values: &[f32]| {
            if values.len() != frequencies {
                return Some(format!(
                    "{name} has {} numbers for {frequencies} frequencies",
                    values.len()
                ));
            }
            values.iter().find_map(|&value| positive(name, value))
        };
        match self {
            Self::None => None,
            Self::Linear { factor: by } => factor(*by),
            Self::Dynamic {
                factor: by,
                original_context,
            } => factor(*by).or_else(|| context(*original_context)),
            Self::Llama3 {
                factor: by,
                low_freq_factor: low,
                high_freq_factor: high,
                original_context,
            } => factor(*by)
                .or_else(|| positive("low_freq_factor", *low))
                .or_else(|| positive("high_freq_factor", *high))
                .or_else(|| context(*original_context))
                .or_else(|| in_order("low_freq_factor", *low, "high_freq_factor", *high)),
            Self::Divisors { divisors } => list("list of divisors", divisors),
            Self::Yarn {
                factor: by,
                original_context,
                beta_fast: fast,
                beta_slow: slow,
                attention_factor,
            } => factor(*by)
                .or_else(|| context(*original_context))
                .or_else(|| positive("beta_fast", *fast))
                .or_else(|| positive("beta_slow", *slow))
                .or_else(|| positive("attention_factor", *attention_factor))
                .or_else(|| in_order("beta_slow", *slow, "beta_fast", *fast)),
            Self::LongRope {
                short,
                long,
                original_context,
                attention_factor,
            } => list("short_factor", short)
                .or_else(|| list("long_factor", long))
                .or_else(|| context(*original_context))
                .or_else(|| positive("attention_factor", *attention_factor)),
        }
    }

    /// The factor on cosine and sine that YaRN's authors advise for a context stretched `factor` times.
    pub(super) fn yarn_attention_factor(factor: f32) -> f32 {
        if factor > 1.0 {
            0.1 * factor.ln() + 1.0
        } else {
            1.0
        }
    }
}

impl RopeConfig {
    /// What each frequency is divided by under [`RopeScaling::Llama3`]; ones under any other rule.
    pub(super) fn llama3_divisors(&self) -> Vec<f32> {
        let RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_context,
        } = self.scaling
        else {
            return vec![1.0; self.dims / 2];
        };
        let (low, high) = (f64::from(low_freq_factor), f64::from(high_freq_factor));
        let divisor = |i: usize| {
            let frequency = f64::from(self.base).powf(-2.0 * i as f64 / self.dims as f64);
            let turns = original_context as f64 * frequency / std::f64::consts::TAU;
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - kept) / f64::from(factor) + kept)) as f32
        };
        (0..self.dims / 2).map(divisor).collect()
    }
}
