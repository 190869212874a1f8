//! Feed-forward networks: dense ones, and mixtures of experts.

use neap_kernels::matmul::{self, MatmulJob, MatmulScratch};
use neap_kernels::{Context, WorkerPanic, ops};

use super::adapt::{self, AdaptScratch, AdapterRun, Product};
use super::cpu::Pass;
use super::layer::{Experts, Ffn, LayerWeights, Linear, Mlp};
use super::scratch::Scratch;
use super::weights::Model;
use crate::config::{Activation, ExpertsConfig};
use crate::source::{LayerTensor, TensorName};

impl Pass<'_> {
    /// hidden += the feed-forward network of the normalized rows.
    pub(super) fn feed_forward(
        &mut self,
        index: usize,
        layer: &LayerWeights,
    ) -> Result<(), WorkerPanic> {
        match &layer.ffn {
            Ffn::Dense(mlp) => {
                let n = self.s.rows;
                let at = Place {
                    context: self.context,
                    model: self.model,
                    runs: self.runs,
                    layer: index,
                };
                run_mlp(at, self.s, mlp, n, Rows::Normed)?;
            }
            Ffn::Experts(experts) => self.mixture(index, experts)?,
        }
        self.add_projected(layer.ffn_post_norm.as_ref())
    }

    /// projected = for each row the sum of what its experts give, weighted by their probabilities.
    ///
    /// Experts are taken in the order of their numbers, so that a row's sum does not depend on other rows.
    fn mixture(&mut self, index: usize, layer: &Experts) -> Result<(), WorkerPanic> {
        let config = self.model.config();
        let (n, hidden) = (self.s.rows, config.hidden_size);
        let Some(experts) = config.experts else {
            unreachable!("weights of experts come with their configuration")
        };
        // Experts are not adapted.
        let at = Place {
            context: self.context,
            model: self.model,
            runs: &[],
            layer: 0,
        };
        let s = &mut *self.s;
        let chances = &mut s.routes[..n * experts.count];
        let mut jobs = [MatmulJob {
            weights: layer.router.weights(self.model),
            out: &mut *chances,
        }];
        let normed = &s.normed[..n * hidden];
        matmul::matmul(self.context, &mut jobs, normed, n, &mut s.matmul)?;
        for row in chances.chunks_exact_mut(experts.count) {
            ops::softmax(self.context.isa, row);
            keep_chosen(row, &experts);
        }
        let used = used_experts(&s.routes[..n * experts.count], experts.count);
        self.model.before_experts(index, used);
        s.mixed[..n * hidden].fill(0.0);
        for (number, mlp) in layer.experts.iter().enumerate() {
            let chance = |s: &Scratch, row: usize| s.routes[row * experts.count + number];
            let mut taken = 0;
            for row in 0..n {
                if chance(s, row) > 0.0 {
                    let from = &s.normed[row * hidden..][..hidden];
                    s.gathered[taken * hidden..][..hidden].copy_from_slice(from);
                    taken += 1;
                }
            }
            if taken == 0 {
                continue;
            }
            run_mlp(at, s, mlp, taken, Rows::Gathered)?;
            let mut taken = 0;
            for row in 0..n {
                let weight = chance(s, row);
                if weight > 0.0 {
                    let to = &mut s.mixed[row * hidden..][..hidden];
                    add_scaled(to, &s.projected[taken * hidden..][..hidden], weight);
                    taken += 1;
                }
            }
        }
        if let Some((mlp, gate)) = &layer.shared {
            run_mlp(at, s, mlp, n, Rows::Normed)?;
            for row in 0..n {
                let x = &s.normed[row * hidden..][..hidden];
                let dot = x
                    .iter()
                    .zip(gate)
                    .fold(0.0, |sum: f32, (x, w)| w.mul_add(*x, sum));
                let weight = 1.0 / (1.0 + (-dot).exp());
                let to = &mut s.mixed[row * hidden..][..hidden];
                add_scaled(to, &s.projected[row * hidden..][..hidden], weight);
            }
        }
        s.projected[..n * hidden].copy_from_slice(&s.mixed[..n * hidden]);
        Ok(())
    }
}

/// The experts, of `count`, that any row goes through by what is left of its probabilities.
fn used_experts(routes: &[f32], count: usize) -> impl Iterator<Item = usize> {
    (0..count).filter(move |&expert| routes.chunks_exact(count).any(|row| row[expert] > 0.0))
}

/// Leaves the probabilities of the experts that a row goes through, and makes the others 0. Of equals the first wins.
fn keep_chosen(chances: &mut [f32], experts: &ExpertsConfig) {
    // By repeated search: few are chosen, and nothing is allocated.
    let mut sum = 0.0;
    for _ in 0..experts.used {
        let best = (0..chances.len())
            .filter(|&i| chances[i].is_sign_positive())
            .reduce(|best, i| if chances[i] > chances[best] { i } else { best });
        let Some(best) = best else { break };
        sum += chances[best];
        // Marked by the sign until all are found.
        chances[best] = -chances[best];
    }
    let scale = if experts.normalized && sum > 0.0 {
        1.0 / sum
    } else {
        1.0
    };
    for chance in chances {
        *chance = if chance.is_sign_negative() {
            -*chance * scale
        } else {
            0.0
        };
    }
}

/// `to += x * weight`.
fn add_scaled(to: &mut [f32], x: &[f32], weight: f32) {
    for (to, x) in to.iter_mut().zip(x) {
        *to = x.mul_add(weight, *to);
    }
}

/// Where a network stands.
#[derive(Clone, Copy)]
struct Place<'a> {
    context: Context<'a>,
    model: &'a Model,
    /// Rows that go through adapters.
    runs: &'a [AdapterRun<'a>],
    layer: usize,
}

impl Place<'_> {
    /// Adds to a product from `x` to `out` its bias, and what adapters give.
    fn complete(
        &self,
        scratch: (&mut AdaptScratch, &mut MatmulScratch),
        (tensor, linear): (LayerTensor, &Linear),
        (x, out): (&[f32], &mut [f32]),
    ) -> Result<(), WorkerPanic> {
        if let Some(bias) = &linear.bias {
            ops::add_bias(self.context.isa, out, bias);
        }
        let name = TensorName::Layer(self.layer, tensor);
        adapt::add(self.context, self.runs, scratch, Product { name, x, out })
    }
}

/// Which rows a network reads.
#[derive(Clone, Copy)]
enum Rows {
    Normed,
    Gathered,
}

/// projected = down(f(gate(x)) * up(x)), or down(f(up(x))) without a gate, for the first `n` rows x.
fn run_mlp(
    at: Place<'_>,
    s: &mut Scratch,
    mlp: &Mlp,
    n: usize,
    rows: Rows,
) -> Result<(), WorkerPanic> {
    let (context, model) = (at.context, at.model);
    let config = model.config();
    let (wide, width) = (n * mlp.width, n * config.hidden_size);
    let x = match rows {
        Rows::Normed => &s.normed[..width],
        Rows::Gathered => &s.gathered[..width],
    };
    let up = &mut s.up[..wide];
    let up_job = MatmulJob {
        weights: mlp.up.matrix.weights(model),
        out: &mut *up,
    };
    let inner: &[f32] = match &mlp.gate {
        Some(linear) => {
            let gate = &mut s.gate[..wide];
            let gate_job = MatmulJob {
                weights: linear.matrix.weights(model),
                out: &mut *gate,
            };
            matmul::matmul(context, &mut [gate_job, up_job], x, n, &mut s.matmul)?;
            for (part, out) in [
                ((LayerTensor::FfnGate, linear), &mut *gate),
                ((LayerTensor::FfnUp, &mlp.up), &mut *up),
            ] {
                at.complete((&mut s.adapt, &mut s.matmul), part, (x, out))?;
            }
            match config.activation {
                Activation::Silu => ops::swiglu(context, gate, up)?,
                Activation::GeluTanh => ops::geglu_tanh(context, gate, up)?,
                Activation::GeluErf => ops::geglu_erf(context, gate, up)?,
            }
            gate
        }
        None => {
            matmul::matmul(context, &mut [up_job], x, n, &mut s.matmul)?;
            let part = (LayerTensor::FfnUp, &mlp.up);
            at.complete((&mut s.adapt, &mut s.matmul), part, (x, &mut *up))?;
            match config.activation {
                Activation::Silu => ops::silu(context, up)?,
                Activation::GeluTanh => ops::gelu_tanh(context, up)?,
                Activation::GeluErf => ops::gelu_erf(context, up)?,
            }
            up
        }
    };
    let out = &mut s.projected[..width];
    let mut jobs = [MatmulJob {
        weights: mlp.down.matrix.weights(model),
        out: &mut *out,
    }];
    matmul::matmul(context, &mut jobs, inner, n, &mut s.matmul)?;
    let part = (LayerTensor::FfnDown, &mlp.down);
    at.complete((&mut s.adapt, &mut s.matmul), part, (inner, out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_experts_are_kept_and_the_first_of_equals() {
        let mut experts = ExpertsConfig {
            count: 4,
            used: 2,
            ffn_size: 1,
            normalized: false,
            shared_ffn_size: None,
        };
        let mut chances = [0.1, 0.3, 0.3, 0.3];
        keep_chosen(&mut chances, &experts);
        assert_eq!(chances, [0.0, 0.3, 0.3, 0.0]);
        experts.normalized = true;
        let mut chances = [0.5, 0.0, 0.25, 0.25];
        keep_chosen(&mut chances, &experts);
        assert_eq!(chances, [0.5 / 0.75, 0.0, 0.25 / 0.75, 0.0]);
    }
}
