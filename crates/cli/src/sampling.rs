//! Sampling flags to sampling parameters.

use std::hash::{BuildHasher, Hasher};

use neap_engine::SamplingParams;

use crate::args::SamplingArgs;

/// The parameters that `args` ask for; draws a seed if none is given.
pub fn params(args: &SamplingArgs) -> SamplingParams {
    SamplingParams {
        temperature: if args.greedy { 0.0 } else { args.temperature },
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty,
        penalty_window_tokens: args.penalty_window,
        frequency_penalty: args.frequency_penalty,
        presence_penalty: args.presence_penalty,
        seed: args.seed.unwrap_or_else(fresh_seed),
        logit_bias: args.logit_bias.clone(),
    }
}

/// A seed that differs from run to run: the standard library's hash keys come from the system's
/// random numbers.
fn fresh_seed() -> u64 {
    // Short enough to type again.
    std::hash::RandomState::new().build_hasher().finish() >> 32
}
