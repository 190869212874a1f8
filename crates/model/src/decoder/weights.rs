//! A model's weights: mapped as they stand in the file, or repacked for speed where the budget has
//! room.

use std::sync::Arc;

use neap_kernels::format::WeightFormat;
use neap_kernels::kv::{KvFormat, KvLayout, KvLayoutError};
use neap_kernels::matrix::{self, MatrixError, MatrixRef, PanelsRef, Weights};
use neap_kernels::rope::{RopeError, RopeTable};
use neap_kernels::{Context, Isa, ThreadPool, WorkerPanic};
use neap_memory::{Budget, Buffer, Charge, ChargeKind, OverBudget};

use crate::config::ModelConfig;
use crate::source::{LayerTensor, ModelFileError, ModelSource, TensorName};

use super::angles;

/// Whether matrices are repacked into panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repack {
    /// When all of them fit beside the bytes to be left free.
    Auto,
    /// Yes, or the load fails.
    Always,
    /// No.
    Never,
}

/// How far a load has come.
#[derive(Clone, Copy, Debug)]
pub struct LoadProgress {
    /// Bytes of weights that are ready.
    pub done_bytes: u64,
    /// Bytes of weights in all.
    pub total_bytes: u64,
}

/// How to load.
pub struct LoadOptions<'a> {
    /// Whether to repack.
    pub repack: Repack,
    /// Bytes of the budget that [`Repack::Auto`] leaves for KV blocks and scratch.
    pub reserve_bytes: u64,
    /// Threads that repack.
    pub pool: &'a ThreadPool,
    /// Instruction set that repacks.
    pub isa: Isa,
    /// Called as tensors become ready.
    pub progress: &'a mut dyn FnMut(LoadProgress),
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file is at fault.
    #[error(transparent)]
    File(#[from] ModelFileError),
    /// The budget is too small.
    #[error("the weights do not fit: {0}")]
    OverBudget(#[from] OverBudget),
    /// A tensor's bytes do not fit its shape.
    #[error(transparent)]
    Matrix(#[from] MatrixError),
    /// Heads that no KV block can hold.
    #[error(transparent)]
    KvLayout(#[from] KvLayoutError),
    /// Parameters that make no rotary embedding.
    #[error(transparent)]
    Rope(#[from] RopeError),
    /// A worker panicked while repacking.
    #[error(transparent)]
    Worker(#[from] WorkerPanic),
}

/// One weight matrix `[rows, cols]`.
pub(super) struct Matrix {
    name: TensorName,
    rows: usize,
    cols: usize,
    format: WeightFormat,
    /// The repacked bytes; without them the file's own are used.
    panels: Option<Buffer<u8>>,
}

impl Matrix {
    /// The matrix for a product.
    pub fn weights<'a>(&'a self, model: &'a Model) -> Weights<'a> {
        let (format, rows, cols) = (self.format, self.rows, self.cols);
        let checked = match &self.panels {
            Some(panels) => PanelsRef::new(format, rows, cols, panels).map(Weights::Panels),
            None => MatrixRef::new(format, rows, cols, model.bytes(self.name)).map(Weights::Rows),
        };
        checked.expect("lengths were checked when the model was loaded")
    }
}

/// The weights of one layer.
pub(super) struct LayerWeights {
    pub attention_norm: Vec<f32>,
    pub q: Matrix,
    pub k: Matrix,
    pub v: Matrix,
    pub q_bias: Option<Vec<f32>>,
    pub k_bias: Option<Vec<f32>>,
    pub v_bias: Option<Vec<f32>>,
    pub q_norm: Option<Vec<f32>>,
    pub k_norm: Option<Vec<f32>>,
    pub output: Matrix,
    pub output_bias: Option<Vec<f32>>,
    pub ffn_norm: Vec<f32>,
    pub gate: Matrix,
    pub up: Matrix,
    pub down: Matrix,
}

impl LayerWeights {
    fn matrices(&self) -> [&Matrix; 7] {
        [
            &self.q,
            &self.k,
            &self.v,
            &self.output,
            &self.gate,
            &self.up,
            &self.down,
        ]
    }
}

/// A loaded model.
pub struct Model {
    source: Arc<ModelSource>,
    embedding: Matrix,
    layers: Vec<LayerWeights>,
    output_norm: Vec<f32>,
    /// None where the output matrix is the embedding.
    output: Option<Matrix>,
    rope: RopeTable,
    kv_layout: KvLayout,
    repacked: bool,
    /// Pays for vectors, and for weights that stay mapped.
    charge: Charge,
    /// Bytes in panels.
    panel_bytes: u64,
}

impl Model {
    /// Loads the weights of `source`, charged to `budget`.
    ///
    /// # Errors
    /// When a tensor is missing, misshapen or holds values that are no numbers, or the budget has no
    /// room.
    pub fn load(
        source: Arc<ModelSource>,
        budget: &Budget,
        mut options: LoadOptions<'_>,
    ) -> Result<Self, LoadError> {
        let repack = match options.repack {
            Repack::Always => true,
            Repack::Never => false,
            Repack::Auto => panel_bytes(&source) + options.reserve_bytes <= budget.available(),
        };
        let total_bytes = source.weight_bytes();
        let config = source.config().clone();
        let kv_layout = kv_layout(&config)?;
        let mut loader = Loader {
            source: &source,
            budget,
            charge: budget.try_charge(ChargeKind::Weights, 0)?,
            repack,
            progress: LoadProgress {
                done_bytes: 0,
                total_bytes,
            },
            options: &mut options,
        };
        // Rows of the embedding are looked up one by one: it stays as it is in the file, unless it is
        // the output matrix too.
        let embedding =
            loader.matrix(TensorName::TokenEmbedding, repack && config.tied_embeddings)?;
        let layers = (0..config.layers)
            .map(|l| loader.layer(l))
            .collect::<Result<_, _>>()?;
        let output_norm = loader.vector(TensorName::OutputNorm)?;
        let output = match config.tied_embeddings {
            true => None,
            false => Some(loader.matrix(TensorName::Output, repack)?),
        };
        let charge = loader.charge;
        let rope = angles::rope_table(&config)?;
        let mut model = Self {
            source: Arc::clone(&source),
            embedding,
            layers,
            output_norm,
            output,
            rope,
            kv_layout,
            repacked: repack,
            charge,
            panel_bytes: 0,
        };
        model.panel_bytes = model
            .matrices()
            .filter_map(|m| m.panels.as_ref())
            .map(Buffer::charged_bytes)
            .sum();
        Ok(model)
    }

    /// Shape and options.
    pub fn config(&self) -> &ModelConfig {
        self.source.config()
    }

    /// The file.
    pub fn source(&self) -> &Arc<ModelSource> {
        &self.source
    }

    /// How keys and values lie in a block.
    pub fn kv_layout(&self) -> KvLayout {
        self.kv_layout
    }

    /// Whether matrices were repacked.
    pub fn is_repacked(&self) -> bool {
        self.repacked
    }

    /// Bytes charged for weights.
    pub fn weights_bytes(&self) -> u64 {
        self.charge.bytes() + self.panel_bytes
    }

    /// The bytes of a tensor that was found when the model was loaded.
    fn bytes(&self, name: TensorName) -> &[u8] {
        self.source
            .optional(name)
            .expect("found when the model was loaded")
            .bytes
    }

    /// Writes the embedding of each token, `[tokens, hidden_size]`, into `out`.
    pub(super) fn embed(&self, tokens: impl Iterator<Item = u32>, out: &mut [f32]) {
        let Some(tensor) = self.source.optional(TensorName::TokenEmbedding) else {
            unreachable!("found when the model was loaded")
        };
        let rows = MatrixRef::new(tensor.format, tensor.rows(), tensor.cols(), tensor.bytes)
            .expect("lengths were checked when the model was loaded");
        for (token, row) in tokens.zip(out.chunks_exact_mut(tensor.cols())) {
            rows.dequantize_row(token as usize, row);
        }
        if self.embedding.panels.is_some() {
            // Only the panels are charged: the pages of the file that were touched go back.
            self.source.done_with(&tensor);
        }
    }

    pub(super) fn layers(&self) -> &[LayerWeights] {
        &self.layers
    }

    pub(super) fn output_norm(&self) -> &[f32] {
        &self.output_norm
    }

    pub(super) fn output(&self) -> &Matrix {
        self.output.as_ref().unwrap_or(&self.embedding)
    }

    pub(super) fn rope(&self) -> &RopeTable {
        &self.rope
    }

    fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        self.layers
            .iter()
            .flat_map(LayerWeights::matrices)
            .chain([&self.embedding])
            .chain(&self.output)
    }
}

/// How keys and values of a model lie in a block.
///
/// # Errors
/// When the heads are larger than a block can hold.
pub fn kv_layout(config: &ModelConfig) -> Result<KvLayout, KvLayoutError> {
    KvLayout::new(config.layers, config.kv_heads, config.head_dim)
}

/// How a running decoder holds keys and values.
pub(super) const KV_FORMAT: KvFormat = KvFormat::F16;

/// Bytes of one block of keys and values.
///
/// # Errors
/// As [`kv_layout`].
pub fn kv_block_bytes(config: &ModelConfig) -> Result<usize, KvLayoutError> {
    Ok(kv_layout(config)?.block_bytes(KV_FORMAT))
}

/// Bytes that the weights take when repacked.
pub fn panel_bytes(source: &ModelSource) -> u64 {
    let config = source.config();
    let bytes = |name: TensorName| {
        let Some(tensor) = source.optional(name) else {
            return 0;
        };
        let packed = matrix::panel_bytes(tensor.format, tensor.rows(), tensor.cols());
        let kept = tensor.shape.len() == 1
            || (name == TensorName::TokenEmbedding && !config.tied_embeddings);
        if kept {
            tensor.bytes.len() as u64
        } else {
            packed as u64
        }
    };
    TensorName::all(config)
        .map(bytes)
        .fold(0, u64::saturating_add)
}

struct Loader<'a, 'b> {
    source: &'a ModelSource,
    budget: &'a Budget,
    charge: Charge,
    repack: bool,
    progress: LoadProgress,
    options: &'a mut LoadOptions<'b>,
}

impl Loader<'_, '_> {
    fn layer(&mut self, layer: usize) -> Result<LayerWeights, LoadError> {
        let name = |tensor| TensorName::Layer(layer, tensor);
        let repack = self.repack;
        Ok(LayerWeights {
            attention_norm: self.vector(name(LayerTensor::AttnNorm))?,
            q: self.matrix(name(LayerTensor::AttnQ), repack)?,
            k: self.matrix(name(LayerTensor::AttnK), repack)?,
            v: self.matrix(name(LayerTensor::AttnV), repack)?,
            q_bias: self.optional(layer, LayerTensor::AttnQBias)?,
            k_bias: self.optional(layer, LayerTensor::AttnKBias)?,
            v_bias: self.optional(layer, LayerTensor::AttnVBias)?,
            q_norm: self.optional(layer, LayerTensor::AttnQNorm)?,
            k_norm: self.optional(layer, LayerTensor::AttnKNorm)?,
            output: self.matrix(name(LayerTensor::AttnOutput), repack)?,
            output_bias: self.optional(layer, LayerTensor::AttnOutputBias)?,
            ffn_norm: self.vector(name(LayerTensor::FfnNorm))?,
            gate: self.matrix(name(LayerTensor::FfnGate), repack)?,
            up: self.matrix(name(LayerTensor::FfnUp), repack)?,
            down: self.matrix(name(LayerTensor::FfnDown), repack)?,
        })
    }

    fn optional(
        &mut self,
        layer: usize,
        tensor: LayerTensor,
    ) -> Result<Option<Vec<f32>>, LoadError> {
        let wanted = tensor.is_part_of(self.source.config());
        wanted
            .then(|| self.vector(TensorName::Layer(layer, tensor)))
            .transpose()
    }

    /// A norm or bias, as f32.
    fn vector(&mut self, name: TensorName) -> Result<Vec<f32>, LoadError> {
        let tensor = self.source.tensor(name)?;
        tensor.validate_finite()?;
        self.charge
            .resize(self.charge.bytes() + (tensor.len() * size_of::<f32>()) as u64)?;
        let mut values = vec![0.0; tensor.len()];
        MatrixRef::new(tensor.format, 1, tensor.len(), tensor.bytes)?
            .dequantize_row(0, &mut values);
        self.advance(tensor.bytes.len());
        Ok(values)
    }

    fn matrix(&mut self, name: TensorName, repack: bool) -> Result<Matrix, LoadError> {
        let tensor = self.source.tensor(name)?;
        let (format, rows, cols) = (tensor.format, tensor.rows(), tensor.cols());
        let view = MatrixRef::new(format, rows, cols, tensor.bytes)?;
        self.source.will_need(&tensor);
        tensor.validate_finite()?;
        let panels = if repack { Some(self.pack(view)?) } else { None };
        if repack {
            self.source.done_with(&tensor);
        } else {
            self.charge
                .resize(self.charge.bytes() + tensor.bytes.len() as u64)?;
        }
        self.advance(tensor.bytes.len());
        Ok(Matrix {
            name,
            rows,
            cols,
            format,
            panels,
        })
    }

    fn pack(&self, view: MatrixRef<'_>) -> Result<Buffer<u8>, LoadError> {
        let bytes = matrix::panel_bytes(view.format(), view.rows(), view.cols());
        let mut panels = Buffer::zeroed(self.budget, ChargeKind::Weights, bytes)?;
        panels.advise_huge();
        let context = Context {
            isa: self.options.isa,
            pool: self.options.pool,
        };
        matrix::pack(context, view, &mut panels)?;
        Ok(panels)
    }

    fn advance(&mut self, bytes: usize) {
        self.progress.done_bytes += bytes as u64;
        (self.options.progress)(self.progress);
    }
}
