//! From a model's tensors to weights, tensor by tensor, charged as they come.

use neap_kernels::Context;
use neap_kernels::matrix::MatrixRef;
use neap_memory::{Budget, Buffer, ChargeKind};

use super::layer::{Experts, Ffn, LayerWeights, Linear, Mlp, NormWeights};
use super::weights::{LoadError, LoadOptions, LoadProgress, Matrix, Place, pack};
use crate::source::{
    ExpertTensor, LayerTensor, ModelFileError, ModelSource, SourceTensor, TensorName,
};

/// A load under way.
pub(super) struct Loader<'a, 'b> {
    source: &'a ModelSource,
    budget: &'a Budget,
    /// Bytes of matrices that were made and not repacked.
    pub made_bytes: u64,
    progress: LoadProgress,
    options: &'a mut LoadOptions<'b>,
}

impl<'a, 'b> Loader<'a, 'b> {
    pub fn new(
        source: &'a ModelSource,
        budget: &'a Budget,
        options: &'a mut LoadOptions<'b>,
    ) -> Self {
        Self {
            source,
            budget,
            made_bytes: 0,
            progress: LoadProgress {
                done_bytes: 0,
                total_bytes: source.weight_bytes(),
            },
            options,
        }
    }

    pub fn layer(&mut self, layer: usize, place: Place) -> Result<LayerWeights, LoadError> {
        use LayerTensor as T;
        Ok(LayerWeights {
            attention_norm: self.layer_norm(layer, T::AttnNorm, T::AttnNormBias)?,
            q: self.linear(layer, (T::AttnQ, T::AttnQBias), place)?,
            k: self.linear(layer, (T::AttnK, T::AttnKBias), place)?,
            v: self.linear(layer, (T::AttnV, T::AttnVBias), place)?,
            q_norm: self.optional(TensorName::Layer(layer, T::AttnQNorm))?,
            k_norm: self.optional(TensorName::Layer(layer, T::AttnKNorm))?,
            output: self.linear(layer, (T::AttnOutput, T::AttnOutputBias), place)?,
            attention_post_norm: self.layer_norm(layer, T::AttnPostNorm, T::AttnPostNormBias)?,
            ffn_norm: self.layer_norm(layer, T::FfnNorm, T::FfnNormBias)?,
            ffn: self.ffn(layer, place)?,
            ffn_post_norm: self.layer_norm(layer, T::FfnPostNorm, T::FfnPostNormBias)?,
        })
    }

    fn ffn(&mut self, layer: usize, place: Place) -> Result<Ffn, LoadError> {
        use LayerTensor as T;
        let config = self.source.config();
        let experts = config.experts.filter(|_| config.layer_kinds[layer].experts);
        let Some(experts) = experts else {
            let gate = match config.gated {
                true => Some(self.linear(layer, (T::FfnGate, T::FfnGateBias), place)?),
                false => None,
            };
            return Ok(Ffn::Dense(Mlp {
                gate,
                up: self.linear(layer, (T::FfnUp, T::FfnUpBias), place)?,
                down: self.linear(layer, (T::FfnDown, T::FfnDownBias), place)?,
                width: config.ffn_size,
            }));
        };
        let shared = match experts.shared_ffn_size {
            Some(width) => Some((
                Mlp {
                    gate: Some(self.plain(TensorName::Layer(layer, T::SharedGate), place)?),
                    up: self.plain(TensorName::Layer(layer, T::SharedUp), place)?,
                    down: self.plain(TensorName::Layer(layer, T::SharedDown), place)?,
                    width,
                },
                self.vector(TensorName::Layer(layer, T::SharedWeight))?,
            )),
            None => None,
        };
        let expert = |loader: &mut Self, expert: usize| {
            let mut matrix =
                |tensor| loader.plain(TensorName::Expert(layer, expert, tensor), place);
            Ok::<_, LoadError>(Mlp {
                gate: Some(matrix(ExpertTensor::Gate)?),
                up: matrix(ExpertTensor::Up)?,
                down: matrix(ExpertTensor::Down)?,
                width: experts.ffn_size,
            })
        };
        Ok(Ffn::Experts(Box::new(Experts {
            router: self.matrix(TensorName::Layer(layer, T::Router), place)?,
            experts: (0..experts.count)
                .map(|number| expert(self, number))
                .collect::<Result<_, _>>()?,
            shared,
        })))
    }

    fn plain(&mut self, name: TensorName, place: Place) -> Result<Linear, LoadError> {
        Ok(Linear {
            matrix: self.matrix(name, place)?,
            bias: None,
        })
    }

    fn linear(
        &mut self,
        layer: usize,
        (tensor, bias): (LayerTensor, LayerTensor),
        place: Place,
    ) -> Result<Linear, LoadError> {
        Ok(Linear {
            matrix: self.matrix(TensorName::Layer(layer, tensor), place)?,
            bias: self.optional(TensorName::Layer(layer, bias))?,
        })
    }

    fn layer_norm(
        &mut self,
        layer: usize,
        weight: LayerTensor,
        bias: LayerTensor,
    ) -> Result<Option<NormWeights>, LoadError> {
        self.norm(
            TensorName::Layer(layer, weight),
            TensorName::Layer(layer, bias),
        )
    }

    /// A norm, if the model has it.
    pub fn norm(
        &mut self,
        weight: TensorName,
        bias: TensorName,
    ) -> Result<Option<NormWeights>, LoadError> {
        let Some(weight) = self.optional(weight)? else {
            return Ok(None);
        };
        let bias = self.optional(bias)?;
        Ok(Some(NormWeights { weight, bias }))
    }

    /// A vector, if the model has it.
    fn optional(&mut self, name: TensorName) -> Result<Option<Vec<f32>>, LoadError> {
        match self.source.optional(name) {
            Some(_) => self.vector(name).map(Some),
            None => Ok(None),
        }
    }

    /// A norm or bias, as f32.
    pub fn vector(&mut self, name: TensorName) -> Result<Vec<f32>, LoadError> {
        let tensor = self.source.tensor(name)?;
        self.row(&tensor, 0, self.source.norm_offset(name))
    }

    /// The first rows of a matrix, so many at most; none if the model does not have it.
    pub fn rows(&mut self, name: TensorName, most: usize) -> Result<Vec<Vec<f32>>, LoadError> {
        let Some(tensor) = self.source.optional(name) else {
            return Ok(Vec::new());
        };
        let rows = 0..tensor.rows().min(most);
        rows.map(|row| self.row(&tensor, row, 0.0)).collect()
    }

    fn row(
        &mut self,
        tensor: &SourceTensor<'_>,
        row: usize,
        offset: f32,
    ) -> Result<Vec<f32>, LoadError> {
        tensor.validate_finite()?;
        let mut values = vec![0.0; tensor.cols()];
        tensor.read_row(row, &mut values);
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let reason = format!("value {at} is not a finite number");
            return Err(ModelFileError::tensor(tensor.path, tensor.name, reason).into());
        }
        values.iter_mut().for_each(|value| *value += offset);
        self.advance(tensor.encoded_bytes());
        Ok(values)
    }

    pub fn matrix(&mut self, name: TensorName, place: Place) -> Result<Matrix, LoadError> {
        let tensor = self.source.tensor(name)?;
        self.source.will_need(&tensor);
        let (format, rows, cols) = (tensor.format, tensor.rows(), tensor.cols());
        let made = match tensor.is_direct() {
            true => {
                tensor.validate_finite()?;
                None
            }
            false => {
                let kind = ChargeKind::Weights;
                let mut made = Buffer::zeroed(self.budget, kind, tensor.encoded_bytes())?;
                tensor.read(&mut made)?;
                Some(made)
            }
        };
        let bytes = made.as_deref().unwrap_or(tensor.bytes);
        let view = MatrixRef::new(format, rows, cols, bytes)?;
        let context = Context {
            isa: self.options.isa,
            pool: self.options.pool,
        };
        let panels = match place {
            Place::Panels => Some(pack(view, self.budget, context)?),
            Place::Mapped | Place::Streamed => None,
        };
        let made = made.filter(|_| panels.is_none());
        self.made_bytes += made.as_ref().map_or(0, Buffer::charged_bytes);
        if place != Place::Mapped || made.is_some() {
            self.source.done_with(&tensor);
        }
        self.advance(tensor.encoded_bytes());
        Ok(Matrix::new(name, &tensor, panels, made))
    }

    fn advance(&mut self, bytes: usize) {
        self.progress.done_bytes += bytes as u64;
        (self.options.progress)(self.progress);
    }
}
