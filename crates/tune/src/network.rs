//! The model as candle computes it: rows of tokens to logits, with an adapter beside its matrices.

use candle_core::{D, Device, Tensor};
use neap_model::config::{ModelConfig, RopeLayout};
use neap_model::decoder::rope_table;
use neap_model::source::{LayerTensor, ModelSource, TensorName};

use crate::TuneError;
use crate::adapter::{Adapter, Target};

/// What hides a token from those before it.
const HIDDEN: f32 = -1e30;

/// Weights, in `f32`, as they stand in the model.
pub(crate) struct Network {
    config: ModelConfig,
    /// `[vocab_size, hidden_size]`.
    embedding: Tensor,
    layers: Vec<Layer>,
    /// `[hidden_size]`.
    norm: Tensor,
    /// `[vocab_size, hidden_size]`.
    output: Tensor,
    /// `[positions, head_dim / 2]`.
    cos: Tensor,
    sin: Tensor,
}

struct Layer {
    attention_norm: Tensor,
    /// Indexed by [`Target`]: `[rows, cols]`.
    matrices: Vec<Tensor>,
    /// Of queries, keys and values.
    biases: Option<[Tensor; 3]>,
    /// Of query and key heads.
    head_norms: Option<[Tensor; 2]>,
    ffn_norm: Tensor,
    is_rotated: bool,
    window: Option<usize>,
}

impl Network {
    /// Reads a model's weights, for rows of up to `positions` tokens.
    pub fn load(source: &ModelSource, positions: usize) -> Result<Self, TuneError> {
        let config = source.config().clone();
        let read = |name| read(source, name);
        let layers = (0..config.layers)
            .map(|number| Layer::load(source, &config, number))
            .collect::<Result<_, _>>()?;
        let (cos, sin) = angles(&config, positions)?;
        Ok(Self {
            embedding: read(TensorName::TokenEmbedding)?,
            norm: read(TensorName::OutputNorm)?,
            output: read(TensorName::Output)?,
            layers,
            cos,
            sin,
            config,
        })
    }

    /// Logits of some places of a batch, `[places, vocab_size]`. `ids` is `[batch, tokens]`, rows filled up at their ends;
    /// `places` are indices into its `batch * tokens` numbers.
    pub fn logits(
        &self,
        ids: &Tensor,
        places: &Tensor,
        adapter: &Adapter,
    ) -> Result<Tensor, candle_core::Error> {
        let (batch, tokens) = ids.dims2()?;
        let mut x = self.embedding.index_select(&ids.flatten_all()?, 0)?;
        x = (x * f64::from(self.config.embedding_scale))?;
        for (number, layer) in self.layers.iter().enumerate() {
            let linear = |x: &Tensor, target: Target| {
                adapter.linear(x, &layer.matrices[target as usize], number, target)
            };
            let normed = self.normed(&x, &layer.attention_norm)?;
            let attended = self.attend(layer, &normed, (batch, tokens), &linear)?;
            let attended = linear(&attended, Target::O)?;
            x = (x + (attended * f64::from(self.config.residual_scale))?)?;
            let normed = self.normed(&x, &layer.ffn_norm)?;
            let gate = linear(&normed, Target::Gate)?;
            let gate = (&gate / ((gate.neg()?.exp()? + 1.0)?))?;
            let inner = (gate * linear(&normed, Target::Up)?)?;
            let down = linear(&inner, Target::Down)?;
            x = (x + (down * f64::from(self.config.residual_scale))?)?;
        }
        let wanted = self.normed(&x.index_select(places, 0)?, &self.norm)?;
        wanted.matmul(&self.output.t()?)? * f64::from(self.config.logit_scale)
    }

    /// What attention gives for rows `[batch * tokens, hidden_size]`: `[batch * tokens, q_size]`.
    fn attend(
        &self,
        layer: &Layer,
        normed: &Tensor,
        (batch, tokens): (usize, usize),
        linear: &impl Fn(&Tensor, Target) -> Result<Tensor, candle_core::Error>,
    ) -> Result<Tensor, candle_core::Error> {
        let config = &self.config;
        let (heads, kv_heads, dim) = (config.heads, config.kv_heads, config.head_dim);
        let heads_of = |target, number: usize, heads| {
            let mut x = linear(normed, target)?;
            if let Some(biases) = &layer.biases {
                x = x.broadcast_add(&biases[number])?;
            }
            x.reshape((batch, tokens, heads, dim))
        };
        let [mut q, mut k] = [
            heads_of(Target::Q, 0, heads)?,
            heads_of(Target::K, 1, kv_heads)?,
        ];
        if let Some([of_q, of_k]) = &layer.head_norms {
            (q, k) = (self.normed(&q, of_q)?, self.normed(&k, of_k)?);
        }
        let v = heads_of(Target::V, 2, kv_heads)?;
        let turn = |x: Tensor| -> Result<Tensor, candle_core::Error> {
            let x = x.transpose(1, 2)?.contiguous()?;
            match layer.is_rotated {
                true => self.rotated(&x, tokens),
                false => Ok(x),
            }
        };
        let (q, k) = (turn(q)?, self.shared(&turn(k)?)?);
        let v = self.shared(&v.transpose(1, 2)?.contiguous()?)?;
        let scores = (q.matmul(&k.t()?)? * f64::from(config.attention_scale))?;
        let scores = scores.broadcast_add(&mask(tokens, layer.window)?)?;
        let weights = softmax(&scores)?;
        let attended = weights.matmul(&v)?.transpose(1, 2)?.contiguous()?;
        attended.reshape((batch * tokens, heads * dim))
    }

    /// KV heads for each query head: `[batch, heads, tokens, dim]`.
    fn shared(&self, x: &Tensor) -> Result<Tensor, candle_core::Error> {
        let (batch, kv_heads, tokens, dim) = x.dims4()?;
        let group = self.config.group_size();
        let each = x
            .unsqueeze(2)?
            .broadcast_as((batch, kv_heads, group, tokens, dim))?;
        each.contiguous()?
            .reshape((batch, kv_heads * group, tokens, dim))
    }

    /// RMSNorm over the innermost dimension.
    fn normed(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor, candle_core::Error> {
        let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
        let root = (mean_square + f64::from(self.config.norm.eps))?.sqrt()?;
        x.broadcast_div(&root)?.broadcast_mul(weight)
    }

    /// Rotary embedding of `[batch, heads, tokens, dim]`.
    fn rotated(&self, x: &Tensor, tokens: usize) -> Result<Tensor, candle_core::Error> {
        let (cos, sin) = (
            self.cos.narrow(0, 0, tokens)?,
            self.sin.narrow(0, 0, tokens)?,
        );
        let half = self.config.head_dim / 2;
        let turned = |a: &Tensor, b: &Tensor| -> Result<[Tensor; 2], candle_core::Error> {
            Ok([
                (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?,
                (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?,
            ])
        };
        match self.config.rope.layout {
            RopeLayout::Halves => {
                let pairs = turned(&x.narrow(3, 0, half)?, &x.narrow(3, half, half)?)?;
                Tensor::cat(&pairs, 3)
            }
            RopeLayout::Interleaved => {
                let (batch, heads, tokens, dim) = x.dims4()?;
                let x = x.reshape((batch, heads, tokens, half, 2))?;
                let [a, b] = [
                    x.narrow(4, 0, 1)?.squeeze(4)?,
                    x.narrow(4, 1, 1)?.squeeze(4)?,
                ];
                let pairs = turned(&a, &b)?;
                Tensor::stack(&pairs, 4)?.reshape((batch, heads, tokens, dim))
            }
        }
    }
}

impl Layer {
    fn load(source: &ModelSource, config: &ModelConfig, number: usize) -> Result<Self, TuneError> {
        use LayerTensor as T;
        let read = |tensor| read(source, TensorName::Layer(number, tensor));
        let kind = config.layer_kinds[number];
        let head_norm = source.optional(TensorName::Layer(number, T::AttnQNorm));
        Ok(Self {
            attention_norm: read(T::AttnNorm)?,
            matrices: Target::ALL
                .iter()
                .map(|target| read(target.tensor()))
                .collect::<Result<_, _>>()?,
            biases: match config.qkv_bias {
                true => Some([
                    read(T::AttnQBias)?,
                    read(T::AttnKBias)?,
                    read(T::AttnVBias)?,
                ]),
                false => None,
            },
            head_norms: match head_norm {
                Some(_) => Some([read(T::AttnQNorm)?, read(T::AttnKNorm)?]),
                None => None,
            },
            ffn_norm: read(T::FfnNorm)?,
            is_rotated: kind.rope,
            window: config.window(number),
        })
    }
}

/// A tensor's values; a vector is read as one.
fn read(source: &ModelSource, name: TensorName) -> Result<Tensor, TuneError> {
    let tensor = source.tensor(name)?;
    tensor.validate_finite()?;
    let mut values = vec![0.0; tensor.len()];
    for (row, out) in values.chunks_exact_mut(tensor.cols()).enumerate() {
        tensor.read_row(row, out);
    }
    source.done_with(&tensor);
    Ok(Tensor::from_vec(values, tensor.shape, &Device::Cpu)?)
}

/// Cosines and sines of each position and pair.
fn angles(config: &ModelConfig, positions: usize) -> Result<(Tensor, Tensor), TuneError> {
    let half = config.head_dim / 2;
    let table = rope_table(config, &config.rope)
        .map_err(|why| TuneError::Unsupported(format!("the model ({why})")))?;
    let row = table.row_len();
    let mut rows = vec![0.0; positions * row];
    table.fill(&(0..positions).collect::<Vec<_>>(), &mut rows);
    let (mut cos, mut sin) = (Vec::new(), Vec::new());
    for position in 0..positions {
        for pair in 0..half {
            // Of neighbours each has its own, the second one's sine with its sign.
            let at = match config.rope.layout {
                RopeLayout::Halves => pair,
                RopeLayout::Interleaved => 2 * pair + 1,
            };
            let at = if row == 0 {
                None
            } else {
                Some(position * row + at)
            };
            cos.push(at.map_or(1.0, |at| rows[at]));
            sin.push(at.map_or(0.0, |at| rows[at + row / 2]));
        }
    }
    let tensor = |values| Tensor::from_vec(values, (positions, half), &Device::Cpu);
    Ok((tensor(cos)?, tensor(sin)?))
}

/// What is added to scores: `[tokens, tokens]`.
fn mask(tokens: usize, window: Option<usize>) -> Result<Tensor, candle_core::Error> {
    let sees =
        |from: usize, to: usize| to <= from && window.is_none_or(|window| to + window > from);
    let numbers: Vec<f32> = (0..tokens)
        .flat_map(|from| (0..tokens).map(move |to| if sees(from, to) { 0.0 } else { HIDDEN }))
        .collect();
    Tensor::from_vec(numbers, (tokens, tokens), &Device::Cpu)
}

fn softmax(x: &Tensor) -> Result<Tensor, candle_core::Error> {
    let highest = x.max_keepdim(D::Minus1)?.detach();
    let powers = x.broadcast_sub(&highest)?.exp()?;
    powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)
}

/// Minus the logarithm of the probability of each row's target, `[rows]`.
pub(crate) fn cross_entropy(
    logits: &Tensor,
    targets: &Tensor,
) -> Result<Tensor, candle_core::Error> {
    let highest = logits.max_keepdim(D::Minus1)?.detach();
    let shifted = logits.broadcast_sub(&highest)?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let chosen = shifted.gather(&targets.unsqueeze(1)?, 1)?;
    (log_sum - chosen)?.squeeze(1)
}
