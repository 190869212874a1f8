//! The weights of a layer.

use super::weights::Matrix;

/// A matrix and its bias.
pub(super) struct Linear {
    pub matrix: Matrix,
    pub bias: Option<Vec<f32>>,
}

/// The weight of a norm and its bias.
pub(super) struct NormWeights {
    pub weight: Vec<f32>,
    pub bias: Option<Vec<f32>>,
}

/// A feed-forward network.
pub(super) struct Mlp {
    pub gate: Option<Linear>,
    pub up: Linear,
    pub down: Linear,
    /// Its width.
    pub width: usize,
}

/// A mixture of experts.
pub(super) struct Experts {
    /// Chooses: `[experts, hidden_size]`.
    pub router: Matrix,
    pub experts: Vec<Mlp>,
    /// The network that all rows go through, and how much of it is added: `[hidden_size]`.
    pub shared: Option<(Mlp, Vec<f32>)>,
}

/// What follows attention.
#[allow(
    clippy::large_enum_variant,
    reason = "there is one for each layer, and nearly all are the large one"
)]
pub(super) enum Ffn {
    Dense(Mlp),
    Experts(Box<Experts>),
}

/// The weights of one layer.
pub(super) struct LayerWeights {
    pub attention_norm: Option<NormWeights>,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub q_norm: Option<Vec<f32>>,
    pub k_norm: Option<Vec<f32>>,
    pub output: Linear,
    pub attention_post_norm: Option<NormWeights>,
    pub ffn_norm: Option<NormWeights>,
    pub ffn: Ffn,
    pub ffn_post_norm: Option<NormWeights>,
}

impl Mlp {
    fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let all = self.gate.iter().chain([&self.up, &self.down]);
        all.map(|linear| &linear.matrix)
    }

    fn matrices_mut(&mut self) -> impl Iterator<Item = &mut Matrix> {
        let all = self.gate.iter_mut().chain([&mut self.up, &mut self.down]);
        all.map(|linear| &mut linear.matrix)
    }
}

impl LayerWeights {
    /// The matrices that every token is multiplied with: all but those of experts.
    pub fn dense_matrices(&self) -> Vec<&Matrix> {
        let attention = [&self.q, &self.k, &self.v, &self.output];
        let mut dense: Vec<&Matrix> = attention.map(|linear| &linear.matrix).to_vec();
        match &self.ffn {
            Ffn::Dense(mlp) => dense.extend(mlp.matrices()),
            Ffn::Experts(experts) => {
                dense.push(&experts.router);
                dense.extend(experts.shared.iter().flat_map(|(mlp, _)| mlp.matrices()));
            }
        }
        dense
    }

    /// Every matrix.
    pub fn matrices_mut(&mut self) -> Vec<&mut Matrix> {
        let attention = [&mut self.q, &mut self.k, &mut self.v, &mut self.output];
        let mut all: Vec<&mut Matrix> = attention
            .into_iter()
            .map(|linear| &mut linear.matrix)
            .collect();
        match &mut self.ffn {
            Ffn::Dense(mlp) => all.extend(mlp.matrices_mut()),
            Ffn::Experts(experts) => {
                let Experts {
                    router,
                    experts,
                    shared,
                } = &mut **experts;
                all.push(router);
                all.extend(experts.iter_mut().flat_map(Mlp::matrices_mut));
                all.extend(shared.iter_mut().flat_map(|(mlp, _)| mlp.matrices_mut()));
            }
        }
        all
    }
}
