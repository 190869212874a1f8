//! Steps of training.

use candle_core::{Device, Tensor};
use neap_model::source::ModelSource;

use crate::adam::Adam;
use crate::adapter::Adapter;
use crate::data::Example;
use crate::network::{Network, cross_entropy};
use crate::run::Options;
use crate::{TuneError, unsupported};

/// A model with an adapter that is learned.
pub struct Trainer {
    network: Network,
    pub(crate) adapter: Adapter,
    pub(crate) adam: Adam,
}

impl Trainer {
    /// Reads the model's weights and makes an adapter that changes nothing yet. Weights take four bytes each.
    ///
    /// # Errors
    /// If the model has what training cannot compute, or its file is damaged.
    pub fn new(source: &ModelSource, options: &Options) -> Result<Self, TuneError> {
        if let Some(what) = unsupported(source.config()) {
            return Err(TuneError::Unsupported(what));
        }
        let shape = (options.rank, options.alpha);
        let adapter = Adapter::new(source.config(), &options.targets, shape, options.seed)?;
        let adam = Adam::new(adapter.variables())?;
        Ok(Self {
            network: Network::load(source, options.max_tokens)?,
            adapter,
            adam,
        })
    }

    /// Learns from some examples; gives their mean loss before, in nats a token.
    ///
    /// # Errors
    /// If an operation fails.
    pub fn step(&mut self, examples: &[&Example], learning_rate: f64) -> Result<f32, TuneError> {
        let losses = self.losses(examples)?;
        let loss = losses.mean_all()?;
        let gradients = loss.backward()?;
        let variables: Vec<_> = self.adapter.variables().collect();
        self.adam
            .update(variables.iter().copied(), &gradients, learning_rate)?;
        Ok(loss.to_scalar()?)
    }

    /// The sum of the losses of some examples, and how many tokens it is of.
    ///
    /// # Errors
    /// If an operation fails.
    pub fn loss(&self, examples: &[&Example]) -> Result<(f64, usize), TuneError> {
        let losses = self.losses(examples)?;
        let sum: f32 = losses.sum_all()?.to_scalar()?;
        Ok((f64::from(sum), losses.elem_count()))
    }

    /// The loss of every token that is to be learned.
    fn losses(&self, examples: &[&Example]) -> Result<Tensor, TuneError> {
        let longest = examples.iter().map(|e| e.tokens.len()).max().unwrap_or(0);
        let (mut ids, mut places, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        for (row, example) in examples.iter().enumerate() {
            ids.extend_from_slice(&example.tokens);
            ids.resize((row + 1) * longest, 0);
            // The token at a place is foretold at the one before.
            for at in example.learned() {
                places.push((row * longest + at - 1) as u32);
                targets.push(example.tokens[at]);
            }
        }
        let count = targets.len();
        let ids = Tensor::from_vec(ids, (examples.len(), longest), &Device::Cpu)?;
        let places = Tensor::from_vec(places, count, &Device::Cpu)?;
        let targets = Tensor::from_vec(targets, count, &Device::Cpu)?;
        let logits = self.network.logits(&ids, &places, &self.adapter)?;
        Ok(cross_entropy(&logits, &targets)?)
    }

    /// Logits at every place of a text, `[tokens][vocab_size]`: to compare with another engine's.
    ///
    /// # Errors
    /// If an operation fails.
    pub fn logits(&self, tokens: &[u32]) -> Result<Vec<Vec<f32>>, TuneError> {
        let places: Vec<u32> = (0..tokens.len() as u32).collect();
        let ids = Tensor::from_slice(tokens, (1, tokens.len()), &Device::Cpu)?;
        let places = Tensor::from_vec(places, tokens.len(), &Device::Cpu)?;
        Ok(self
            .network
            .logits(&ids, &places, &self.adapter)?
            .to_vec2()?)
    }
}
