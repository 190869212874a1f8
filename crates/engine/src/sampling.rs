//! From logits to the next token.
//!
//! The order is: logit bias, penalties, temperature, top-k, top-p, min-p, then one draw. A
//! temperature of zero is greedy: the most likely token after bias and penalties, the lowest id
//! among equals.

use std::collections::HashMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::request::TokenLogprob;

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy; 1 draws from the model's own distribution.
    pub temperature: f32,
    /// Only the `top_k` most likely tokens; 0 takes all.
    pub top_k: usize,
    /// Only the smallest set of most likely tokens that has this probability; 1 takes all
    /// (Holtzman et al. 2019, "The Curious Case of Neural Text Degeneration").
    pub top_p: f32,
    /// Only tokens at least `min_p` times as likely as the most likely one; 0 takes all
    /// (Nguyen et al. 2024, "Turning Up the Heat: Min-p Sampling").
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in the penalty window;
    /// 1 does nothing (Keskar et al. 2019, "CTRL").
    pub repetition_penalty: f32,
    /// Tokens of prompt and answer that `repetition_penalty` looks back on.
    pub penalty_window_tokens: usize,
    /// Taken off a token's logit for each time it was produced.
    pub frequency_penalty: f32,
    /// Taken off a token's logit if it was produced at all.
    pub presence_penalty: f32,
    /// Equal seeds give equal draws.
    pub seed: u64,
    /// Added to the logits of these tokens; `-inf` bans one.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            penalty_window_tokens: 64,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: 0,
            logit_bias: Vec::new(),
        }
    }
}

/// A parameter outside its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{name} is {value}; it must be {range}")]
pub struct SamplingError {
    name: &'static str,
    value: f32,
    range: &'static str,
}

impl SamplingParams {
    /// Checks every parameter's range.
    pub fn validate(&self, vocab_size: usize) -> Result<(), SamplingError> {
        let check = |ok: bool, name, value, range| {
            if ok {
                Ok(())
            } else {
                Err(SamplingError { name, value, range })
            }
        };
        let t = self.temperature;
        check(
            t.is_finite() && t >= 0.0,
            "temperature",
            t,
            "a number from 0 up",
        )?;
        check(
            self.top_p > 0.0 && self.top_p <= 1.0,
            "top_p",
            self.top_p,
            "over 0 and at most 1",
        )?;
        check(
            (0.0..=1.0).contains(&self.min_p),
            "min_p",
            self.min_p,
            "from 0 to 1",
        )?;
        let r = self.repetition_penalty;
        check(
            r.is_finite() && r > 0.0,
            "repetition_penalty",
            r,
            "a number over 0",
        )?;
        let f = self.frequency_penalty;
        check(f.is_finite(), "frequency_penalty", f, "a number")?;
        let p = self.presence_penalty;
        check(p.is_finite(), "presence_penalty", p, "a number")?;
        for &(id, bias) in &self.logit_bias {
            check(
                (id as usize) < vocab_size,
                "logit_bias token",
                id as f32,
                "in the vocabulary",
            )?;
            check(
                !bias.is_nan() && bias < f32::INFINITY,
                "logit_bias",
                bias,
                "a number or -inf",
            )?;
        }
        Ok(())
    }
}

/// The sampling state of one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: ChaCha8Rng,
    produced: HashMap<u32, u32>,
    candidates: Vec<Candidate>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    logit: f32,
}

impl Sampler {
    /// `params` must have passed [`SamplingParams::validate`].
    pub fn new(params: SamplingParams) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(params.seed);
        Self {
            params,
            rng,
            produced: HashMap::new(),
            candidates: Vec::new(),
        }
    }

    /// Chooses the next token. `logits` has one value a token and is changed in place; `context`
    /// is everything before, prompt and answer.
    ///
    /// Logits that are not numbers count as impossible; if all are, the answer is token 0.
    pub fn sample(&mut self, logits: &mut [f32], context: &[u32]) -> u32 {
        self.apply_bias(logits);
        self.apply_penalties(logits, context);
        let id = if self.params.temperature == 0.0 {
            argmax(logits)
        } else {
            self.draw(logits)
        };
        *self.produced.entry(id).or_default() += 1;
        id
    }

    fn apply_bias(&self, logits: &mut [f32]) {
        for &(id, bias) in &self.params.logit_bias {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit += bias;
            }
        }
    }

    fn apply_penalties(&self, logits: &mut [f32], context: &[u32]) {
        let p = &self.params;
        if p.repetition_penalty != 1.0 {
            let start = context.len().saturating_sub(p.penalty_window_tokens);
            let mut window = context[start..].to_vec();
            window.sort_unstable();
            window.dedup();
            for id in window {
                if let Some(logit) = logits.get_mut(id as usize) {
                    let up = *logit > 0.0;
                    *logit = if up {
                        *logit / p.repetition_penalty
                    } else {
                        *logit * p.repetition_penalty
                    };
                }
            }
        }
        if p.frequency_penalty != 0.0 || p.presence_penalty != 0.0 {
            for (&id, &count) in &self.produced {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit -= p.frequency_penalty * count as f32 + p.presence_penalty;
                }
            }
        }
    }

    fn draw(&mut self, logits: &[f32]) -> u32 {
        let Some(max) = logits
            .iter()
            .copied()
            .filter(|l| !l.is_nan())
            .reduce(f32::max)
        else {
            return 0;
        };
        if !max.is_finite() {
            return argmax(logits);
        }
        self.collect_candidates(logits, max);
        self.keep_top_k();
        self.keep_top_p();
        self.pick()
    }

    /// Fills the candidates with logits divided by the temperature, the largest being 0.
    fn collect_candidates(&mut self, logits: &[f32], max: f32) {
        let inverse = 1.0 / self.params.temperature;
        // exp(-104) is 0 in f32: such a token can never be drawn.
        let mut floor = -104.0_f32;
        if self.params.min_p > 0.0 {
            floor = floor.max(self.params.min_p.ln());
        }
        self.candidates.clear();
        for (id, &logit) in logits.iter().enumerate() {
            let scaled = (logit - max) * inverse;
            if scaled >= floor || logit == max {
                let scaled = if logit == max { 0.0 } else { scaled };
                self.candidates.push(Candidate {
                    id: id as u32,
                    logit: scaled,
                });
            }
        }
    }

    fn keep_top_k(&mut self) {
        let k = self.params.top_k;
        if k > 0 && k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(k - 1, by_likelihood);
            self.candidates.truncate(k);
        }
    }

    /// Sorts only as many of the most likely candidates as are needed to reach `top_p`.
    fn keep_top_p(&mut self) {
        if self.params.top_p >= 1.0 {
            return;
        }
        let total: f64 = self
            .candidates
            .iter()
            .map(|c| f64::from(c.logit).exp())
            .sum();
        let wanted = total * f64::from(self.params.top_p);
        let mut sorted = 64;
        loop {
            let n = sorted.min(self.candidates.len());
            if n < self.candidates.len() {
                self.candidates.select_nth_unstable_by(n - 1, by_likelihood);
            }
            self.candidates[..n].sort_unstable_by(by_likelihood);
            let mut sum = 0.0;
            for (i, candidate) in self.candidates[..n].iter().enumerate() {
                sum += f64::from(candidate.logit).exp();
                if sum >= wanted {
                    self.candidates.truncate(i + 1);
                    return;
                }
            }
            if n == self.candidates.len() {
                return;
            }
            sorted *= 8;
        }
    }

    fn pick(&mut self) -> u32 {
        // Order by id, so that the draw does not depend on how the selection left them.
        self.candidates.sort_unstable_by_key(|c| c.id);
        let total: f64 = self
            .candidates
            .iter()
            .map(|c| f64::from(c.logit).exp())
            .sum();
        let unit = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut left = unit * total;
        for candidate in &self.candidates {
            left -= f64::from(candidate.logit).exp();
            if left < 0.0 {
                return candidate.id;
            }
        }
        self.candidates.last().map_or(0, |c| c.id)
    }
}

/// Most likely first; equal ones by id.
fn by_likelihood(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// The largest logit's index, the lowest among equals; 0 if there is none.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    let mut best_logit = f32::NEG_INFINITY;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > best_logit {
            best = id;
            best_logit = logit;
        }
    }
    best as u32
}

/// Log probabilities under the raw `logits`: of `chosen` first, then of the `top` most likely.
pub fn logprobs(logits: &[f32], chosen: u32, top: usize) -> Vec<TokenLogprob> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
    let log_total = f64::from(max) + sum.ln();
    let of = |id: u32| TokenLogprob {
        id,
        logprob: (f64::from(logits[id as usize]) - log_total) as f32,
    };
    let mut all: Vec<Candidate> = logits
        .iter()
        .enumerate()
        .map(|(id, &logit)| Candidate {
            id: id as u32,
            logit,
        })
        .collect();
    let top = top.min(all.len());
    if top > 0 && top < all.len() {
        all.select_nth_unstable_by(top - 1, by_likelihood);
    }
    all.truncate(top);
    all.sort_unstable_by(by_likelihood);
    std::iter::once(of(chosen))
        .chain(all.into_iter().map(|c| of(c.id)))
        .collect()
}

#[cfg(test)]
mod tests;
