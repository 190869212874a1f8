//! A model's weights: repacked for speed where the budget has room, mapped as they stand in the file
//! where it has less, and read from the file as they are used where it has too little for all.

use std::sync::Arc;

use neap_kernels::format::WeightFormat;
use neap_kernels::kv::{KvFormat, KvLayout, KvLayoutError};
use neap_kernels::matrix::{self, MatrixError, MatrixRef, PanelsRef, Weights};
use neap_kernels::rope::{RopeError, RopeTable};
use neap_kernels::{Context, Isa, ThreadPool, WorkerPanic, ops};
use neap_memory::{Budget, Buffer, Charge, ChargeKind, OverBudget};

use crate::config::ModelConfig;
use crate::source::{
    ExpertTensor, LayerTensor, ModelFileError, ModelSource, SourceTensor, TensorName,
};

use super::kv_order::kv_places;
use super::layer::{LayerWeights, NormWeights};
use super::loader::Loader;
use super::residency::{Residency, UnitBytes};
use super::{SequenceChunk, angles};

/// Whether matrices are repacked into panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repack {
    /// Those that the budget has room for; the others are streamed.
    Auto,
    /// All, or the load fails.
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
    /// Bytes of the budget that are left for KV blocks and scratch: weights that do not fit beside these
    /// are streamed.
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
    /// The repacked bytes; without them the file's own are used, or those made from it.
    panels: Option<Buffer<u8>>,
    /// Rows as in a file, where they do not stand in the file so: see [`SourceTensor::is_direct`].
    made: Option<Buffer<u8>>,
}

impl Matrix {
    /// The matrix in `tensor`; what is neither repacked nor made is read from the file.
    pub fn new(
        name: TensorName,
        tensor: &SourceTensor<'_>,
        panels: Option<Buffer<u8>>,
        made: Option<Buffer<u8>>,
    ) -> Self {
        Self {
            name,
            rows: tensor.rows(),
            cols: tensor.cols(),
            format: tensor.format,
            panels,
            made,
        }
    }

    /// The matrix for a product.
    pub fn weights<'a>(&'a self, model: &'a Model) -> Weights<'a> {
        let (format, rows, cols) = (self.format, self.rows, self.cols);
        let checked = match &self.panels {
            Some(panels) => PanelsRef::new(format, rows, cols, panels).map(Weights::Panels),
            None => {
                let bytes = match &self.made {
                    Some(made) => &made[..],
                    None => model.bytes(self.name),
                };
                MatrixRef::new(format, rows, cols, bytes).map(Weights::Rows)
            }
        };
        checked.expect("lengths were checked when the model was loaded")
    }
}

/// A loaded model.
pub struct Model {
    source: Arc<ModelSource>,
    embedding: Matrix,
    positions: Option<Matrix>,
    /// What is added to tokens' embeddings: that of their kind of segments.
    types: Vec<Vec<f32>>,
    embedding_norm: Option<NormWeights>,
    layers: Vec<LayerWeights>,
    output_norm: Option<NormWeights>,
    /// None where the output matrix is the embedding, or there is none.
    output: Option<Matrix>,
    rope: RopeTable,
    /// That of layers with a window, where it is another.
    window_rope: Option<RopeTable>,
    kv_layout: KvLayout,
    /// The place of each layer in a block.
    kv_places: Vec<usize>,
    /// Held matrices are in panels.
    repacked: bool,
    /// The units that weights are held or streamed by: each layer, then the output matrix.
    units: Vec<UnitBytes>,
    residency: Residency,
    /// Whether an embedding that is not the output matrix is charged. If not, its pages go back after use.
    holds_embedding: bool,
    vector_bytes: u64,
    /// Bytes of matrices made at load that were not repacked. Where there are any made, all is held.
    made_bytes: u64,
    /// Pays for vectors, for weights that stay mapped, and for the window of those that are streamed.
    charge: Charge,
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
        let repack = options.repack != Repack::Never;
        let config = source.config().clone();
        let kv_layout = kv_layout(&config)?;
        let units = unit_bytes(&source, repack);
        let (vector_bytes, embedding_bytes) = (vector_bytes(&source), embedding_bytes(&source));
        let room = budget
            .available()
            .saturating_sub(vector_bytes.saturating_add(options.reserve_bytes));
        let always = options.repack == Repack::Always || source.makes_weights();
        let (residency, holds_embedding) = choose(&units, embedding_bytes, room, always);
        let mut charge = budget.try_charge(ChargeKind::Weights, vector_bytes)?;
        let mapped = mapped_bytes(&units, &residency, repack)
            + if holds_embedding { embedding_bytes } else { 0 };
        charge.resize(vector_bytes + mapped)?;
        let place = |unit| match (repack, residency.is_held(unit)) {
            (true, true) => Place::Panels,
            (false, true) => Place::Mapped,
            (_, false) => Place::Streamed,
        };
        let mut loader = Loader::new(&source, budget, &mut options);
        let output_place = place(config.layers);
        // Rows of the embedding are looked up one by one: it stays as it is in the file, unless it is
        // the output matrix too.
        let embedding_place = match (config.tied_embeddings, holds_embedding) {
            (true, _) => output_place,
            (false, true) => Place::Mapped,
            (false, false) => Place::Streamed,
        };
        let embedding = loader.matrix(TensorName::TokenEmbedding, embedding_place)?;
        let layers = (0..config.layers)
            .map(|l| loader.layer(l, place(l)))
            .collect::<Result<_, _>>()?;
        let output = match config.has_output && !config.tied_embeddings {
            true => Some(loader.matrix(TensorName::Output, output_place)?),
            false => None,
        };
        let positions = match config.learned_positions {
            Some(_) => Some(loader.matrix(TensorName::PositionEmbedding, Place::Mapped)?),
            None => None,
        };
        let window_rope = angles::window_rope_table(&config)?;
        Ok(Self {
            embedding,
            positions,
            types: loader.rows(TensorName::TypeEmbedding, 2)?,
            embedding_norm: loader
                .norm(TensorName::EmbeddingNorm, TensorName::EmbeddingNormBias)?,
            layers,
            output_norm: loader.norm(TensorName::OutputNorm, TensorName::OutputNormBias)?,
            output,
            rope: angles::rope_table(&config, &config.rope)?,
            window_rope,
            made_bytes: loader.made_bytes,
            source: Arc::clone(&source),
            kv_layout,
            kv_places: kv_places(&config),
            repacked: repack,
            units,
            residency,
            holds_embedding,
            vector_bytes,
            charge,
        })
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

    /// The place of a layer's keys and values in a block.
    pub(super) fn kv_place(&self, layer: usize) -> usize {
        self.kv_places[layer]
    }

    /// Whether matrices were repacked.
    pub fn is_repacked(&self) -> bool {
        self.repacked
    }

    /// Bytes charged for weights.
    pub fn weights_bytes(&self) -> u64 {
        self.vector_bytes + self.residency_bytes() + self.made_bytes
    }

    /// Bytes of the file's pages that are held or are in the window.
    pub fn mapped_bytes(&self) -> u64 {
        self.charge.bytes() - self.vector_bytes
    }

    /// Bytes of weights that each forward pass reads from the file, since the budget has no room for them.
    pub fn streamed_bytes(&self) -> u64 {
        self.residency.streamed_bytes(&self.units)
    }

    /// How many of the layers, the output matrix counted as one, are streamed, and how many there are.
    pub fn streamed_layers(&self) -> (usize, usize) {
        (self.residency.streamed(), self.units.len())
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
        let width = tensor.cols();
        let rows = match &self.embedding.made {
            Some(made) => &made[..],
            None => tensor.bytes,
        };
        let rows = MatrixRef::new(tensor.format, tensor.rows(), width, rows);
        let mut encoded = vec![0; tensor.format.row_bytes(width).unwrap_or(0)];
        for (token, row) in tokens.zip(out.chunks_exact_mut(width)) {
            match &rows {
                Ok(rows) => rows.dequantize_row(token as usize, row),
                // Quantized as it was read, then repacked: made anew, to the same values.
                Err(_) => {
                    tensor.read_row(token as usize, row);
                    let through = tensor.format.quantize(row, &mut encoded);
                    let through = through.and_then(|()| tensor.format.dequantize(&encoded, row));
                    through.expect("lengths were checked when the model was loaded");
                }
            }
        }
        if !self.holds_embedding_pages() {
            // They are not charged.
            self.source.done_with(&tensor);
        }
    }

    /// Adds to each row of `hidden` the learned embedding of its position.
    pub(super) fn add_positions(&self, positions: &[usize], hidden: &mut [f32]) {
        let Some(matrix) = &self.positions else {
            return;
        };
        let Weights::Rows(rows) = matrix.weights(self) else {
            unreachable!("positions are not repacked")
        };
        let mut row = vec![0.0; matrix.cols];
        for (&position, hidden) in positions.iter().zip(hidden.chunks_exact_mut(matrix.cols)) {
            rows.dequantize_row(position, &mut row);
            hidden.iter_mut().zip(&row).for_each(|(h, p)| *h += p);
        }
    }

    /// Adds to each row of `hidden` the embedding of its token's segment.
    pub(super) fn add_types(&self, isa: Isa, batch: &[SequenceChunk<'_>], hidden: &mut [f32]) {
        let Some(first_type) = self.types.first() else {
            return;
        };
        let second_type = self.types.get(1).unwrap_or(first_type);
        let mut rest = hidden;
        for chunk in batch {
            let n = chunk.tokens.len();
            let second = chunk.second_segment.unwrap_or(n).min(n);
            for (count, values) in [(second, first_type), (n - second, second_type)] {
                let (rows, after) = rest.split_at_mut(count * values.len());
                ops::add_bias(isa, rows, values);
                rest = after;
            }
        }
    }

    pub(super) fn embedding_norm(&self) -> Option<&NormWeights> {
        self.embedding_norm.as_ref()
    }

    /// Whether the file's pages of the embedding are charged.
    fn holds_embedding_pages(&self) -> bool {
        match self.config().tied_embeddings {
            true => !self.repacked && self.residency.is_held(self.layers.len()),
            false => self.holds_embedding,
        }
    }

    pub(super) fn layers(&self) -> &[LayerWeights] {
        &self.layers
    }

    /// The bytes of the matrices that every token is multiplied with, as they are read: those that decoding must bring
    /// from memory at each step. Of experts' matrices none, since which are read depends on the token.
    pub fn dense_weights(&self) -> Vec<&[u8]> {
        let layers = self.layers.iter().flat_map(LayerWeights::dense_matrices);
        let all = layers.chain([self.output()]);
        all.map(|matrix| match matrix.weights(self) {
            Weights::Panels(panels) => panels.bytes(),
            Weights::Rows(rows) => rows.bytes(),
        })
        .collect()
    }

    pub(super) fn output_norm(&self) -> Option<&NormWeights> {
        self.output_norm.as_ref()
    }

    pub(super) fn output(&self) -> &Matrix {
        self.output.as_ref().unwrap_or(&self.embedding)
    }

    pub(super) fn rope(&self) -> &RopeTable {
        &self.rope
    }

    pub(super) fn window_rope(&self) -> Option<&RopeTable> {
        self.window_rope.as_ref()
    }

    /// To be called before a unit is used (the layers in turn, then the output matrix): asks the system to
    /// read the next streamed one meanwhile, but for its experts, of which it is not known yet which are used.
    pub(super) fn before(&self, unit: usize) {
        if self.residency.is_held(unit) {
            return;
        }
        if let Some(next) = self.residency.next_streamed(unit) {
            for tensor in dense_tensors(&self.source, next) {
                self.source.will_need(&tensor);
            }
        }
    }

    /// To be called when it is known which experts of a layer are used: where they are streamed, asks the system to read
    /// these, all at once. The others stay in the file.
    pub(super) fn before_experts(&self, layer: usize, used: impl Iterator<Item = usize>) {
        if self.residency.is_held(layer) {
            return;
        }
        for tensor in used.flat_map(|expert| expert_tensors(&self.source, layer, expert)) {
            self.source.will_need(&tensor);
        }
    }

    /// To be called after a unit was used: gives the pages of a streamed one back.
    pub(super) fn after(&self, unit: usize) {
        if !self.residency.is_held(unit) {
            self.give_pages_back(unit);
        }
    }

    fn give_pages_back(&self, unit: usize) {
        for tensor in self.unit_tensors(unit) {
            self.source.done_with(&tensor);
        }
    }

    fn unit_tensors(&self, unit: usize) -> impl Iterator<Item = SourceTensor<'_>> {
        unit_tensors(&self.source, unit)
    }

    /// Bytes charged for everything but vectors.
    fn residency_bytes(&self) -> u64 {
        self.residency.bytes(&self.units) + self.embedding_bytes()
    }

    fn embedding_bytes(&self) -> u64 {
        match self.holds_embedding {
            true => embedding_bytes(&self.source),
            false => 0,
        }
    }

    /// Bytes that [`Model::release`] can free.
    pub fn releasable_bytes(&self) -> u64 {
        if self.source.makes_weights() {
            return 0; // they could not be read again as they are needed
        }
        let least = Residency::least(&self.units).bytes(&self.units);
        self.residency_bytes().saturating_sub(least)
    }

    /// Streams as many more units as it takes to free `bytes`, or as free most. Returns the bytes freed.
    /// Products are the same to the bit.
    pub fn release(&mut self, bytes: u64) -> u64 {
        if self.source.makes_weights() {
            return 0;
        }
        let held = self.residency_bytes();
        let room = held.saturating_sub(bytes);
        let next =
            Residency::fitting(&self.units, room).unwrap_or_else(|| Residency::least(&self.units));
        let freed = held.saturating_sub(next.bytes(&self.units));
        if freed == 0 {
            return 0;
        }
        let old = std::mem::replace(&mut self.residency, next);
        self.holds_embedding = false;
        for unit in 0..self.units.len() {
            if old.is_held(unit) && !self.residency.is_held(unit) {
                self.drop_panels(unit);
                self.give_pages_back(unit);
            }
        }
        self.settle();
        freed
    }

    /// Holds one more unit, if that takes at most `spare_bytes`. Whether it did.
    ///
    /// # Errors
    /// If a worker panics while repacking; the unit is streamed as before.
    pub fn take_back(
        &mut self,
        spare_bytes: u64,
        context: Context<'_>,
    ) -> Result<bool, WorkerPanic> {
        let Some((unit, next)) = self.residency.with_one_more() else {
            return Ok(false);
        };
        let (now, then) = (self.residency.bytes(&self.units), next.bytes(&self.units));
        if then.saturating_sub(now) > spare_bytes {
            return Ok(false);
        }
        let packed = match self.repacked {
            true => self.repack_unit(unit, context),
            false => Ok(()),
        };
        let old = std::mem::replace(&mut self.residency, next);
        if packed.is_ok() && self.settle() {
            if self.repacked {
                self.give_pages_back(unit);
            }
            return Ok(true);
        }
        self.residency = old;
        self.drop_panels(unit);
        self.settle();
        match packed {
            Err(PackError::Worker(why)) => Err(why),
            Ok(()) | Err(PackError::OverBudget(_)) => Ok(false),
        }
    }

    fn repack_unit(&mut self, unit: usize, context: Context<'_>) -> Result<(), PackError> {
        let (source, budget) = (Arc::clone(&self.source), self.charge.budget().clone());
        for matrix in self.unit_matrices(unit) {
            let tensor = source
                .tensor(matrix.name)
                .expect("found when the model was loaded");
            let view = MatrixRef::new(matrix.format, matrix.rows, matrix.cols, tensor.bytes)
                .expect("lengths were checked when the model was loaded");
            matrix.panels = Some(pack(view, &budget, context)?);
        }
        Ok(())
    }

    /// Frees the panels of a unit; their charge becomes this model's own, until it settles.
    fn drop_panels(&mut self, unit: usize) {
        let freed: Vec<Buffer<u8>> = self
            .unit_matrices(unit)
            .into_iter()
            .filter_map(|matrix| matrix.panels.take())
            .collect();
        for panels in freed {
            // Of the same kind and budget. Were it not, it would be given back: no harm.
            let _ = self.charge.merge(panels.into_charge());
        }
    }

    fn unit_matrices(&mut self, unit: usize) -> Vec<&mut Matrix> {
        match self.layers.get_mut(unit) {
            Some(layer) => layer.matrices_mut(),
            None if !self.source.config().has_output => Vec::new(),
            None => vec![self.output.as_mut().unwrap_or(&mut self.embedding)],
        }
    }

    /// Makes the charge what is mapped. Whether the budget allowed it.
    fn settle(&mut self) -> bool {
        let mapped = mapped_bytes(&self.units, &self.residency, self.repacked);
        let needed = self.vector_bytes + mapped + self.embedding_bytes();
        self.charge.resize(needed).is_ok()
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

/// The fewest bytes that the weights can be held in, streamed as far as that helps.
pub fn least_weight_bytes(source: &ModelSource) -> u64 {
    if source.makes_weights() {
        return source.weight_bytes();
    }
    let units = unit_bytes(source, true);
    vector_bytes(source) + Residency::least(&units).bytes(&units)
}

/// Bytes of weights that each forward pass reads from the file if `room_bytes` of memory can be had for them; none if
/// that is too little for any.
pub fn streamed_bytes_within(source: &ModelSource, room_bytes: u64) -> Option<u64> {
    if source.makes_weights() {
        return (source.weight_bytes() <= room_bytes).then_some(0);
    }
    let units = unit_bytes(source, true);
    let room = room_bytes.checked_sub(vector_bytes(source))?;
    let residency = Residency::fitting(&units, room)?;
    Some(residency.streamed_bytes(&units))
}

fn unit_bytes(source: &ModelSource, repack: bool) -> Vec<UnitBytes> {
    let held = |tensor: &SourceTensor<'_>| match repack {
        true => {
            let bytes = matrix::panel_bytes(tensor.format, tensor.rows(), tensor.cols());
            Buffer::<u8>::charged_bytes_for(bytes).unwrap_or(usize::MAX)
        }
        false => mapped_len(tensor),
    };
    (0..=source.config().layers)
        .map(|unit| {
            unit_tensors(source, unit).fold(UnitBytes::default(), |sum, tensor| UnitBytes {
                file: sum.file + mapped_len(&tensor) as u64,
                held: sum.held.saturating_add(held(&tensor) as u64),
            })
        })
        .collect()
}

/// Bytes of a matrix in the file's pages; none where its values are made from them.
fn mapped_len(tensor: &SourceTensor<'_>) -> usize {
    match tensor.is_direct() {
        true => tensor.bytes.len(),
        false => 0,
    }
}

/// The matrices of a unit.
fn unit_tensors(source: &ModelSource, unit: usize) -> impl Iterator<Item = SourceTensor<'_>> {
    let experts = source.config().experts.map_or(0, |experts| experts.count);
    let of_experts = (0..experts).flat_map(move |expert| expert_tensors(source, unit, expert));
    dense_tensors(source, unit).chain(of_experts)
}

/// The matrices of a unit that every token is multiplied with.
fn dense_tensors(source: &ModelSource, unit: usize) -> impl Iterator<Item = SourceTensor<'_>> {
    let names: Vec<TensorName> = match unit < source.config().layers {
        true => {
            let layer = |tensor| TensorName::Layer(unit, tensor);
            LayerTensor::ALL.into_iter().map(layer).collect()
        }
        false => vec![TensorName::Output],
    };
    names
        .into_iter()
        .filter_map(|name| source.optional(name))
        .filter(|tensor| tensor.shape.len() > 1)
}

/// The matrices of an expert; none where the unit is no layer with experts.
fn expert_tensors(
    source: &ModelSource,
    unit: usize,
    expert: usize,
) -> impl Iterator<Item = SourceTensor<'_>> {
    let name = move |tensor| TensorName::Expert(unit, expert, tensor);
    let names = ExpertTensor::ALL.into_iter().map(name);
    names.filter_map(|name| source.optional(name))
}

/// Bytes of what is always held: norms and biases, as f32, and learned positions.
fn vector_bytes(source: &ModelSource) -> u64 {
    TensorName::all(source.config())
        .filter_map(|name| Some((name, source.optional(name)?)))
        .map(|(name, tensor)| match (name, tensor.shape.len()) {
            (TensorName::TypeEmbedding, _) => {
                tensor.rows().min(2) * tensor.cols() * size_of::<f32>()
            }
            (TensorName::PositionEmbedding, _) => mapped_len(&tensor),
            (_, 1) => tensor.len() * size_of::<f32>(),
            _ => 0,
        })
        .map(|bytes| bytes as u64)
        .sum()
}

/// Bytes of the embedding, unless it is the output matrix too.
fn embedding_bytes(source: &ModelSource) -> u64 {
    match source.config().tied_embeddings {
        true => 0,
        false => source
            .optional(TensorName::TokenEmbedding)
            .map_or(0, |tensor| mapped_len(&tensor) as u64),
    }
}

/// Which units to hold in `room_bytes`, and whether an embedding of its own is held too: all, if they fit or
/// `always`.
fn choose(
    units: &[UnitBytes],
    embedding_bytes: u64,
    room_bytes: u64,
    always: bool,
) -> (Residency, bool) {
    let whole = Residency::whole(units.len());
    if always || whole.bytes(units).saturating_add(embedding_bytes) <= room_bytes {
        return (whole, true);
    }
    let fitting = Residency::fitting(units, room_bytes);
    (fitting.unwrap_or_else(|| Residency::least(units)), false)
}

/// Bytes of the file's pages that have to be charged.
fn mapped_bytes(units: &[UnitBytes], residency: &Residency, repacked: bool) -> u64 {
    match repacked {
        true => residency.window_bytes(units),
        false => residency.bytes(units),
    }
}

/// Why a matrix was not repacked.
#[derive(Debug, thiserror::Error)]
pub(super) enum PackError {
    #[error(transparent)]
    OverBudget(#[from] OverBudget),
    #[error(transparent)]
    Worker(#[from] WorkerPanic),
}

impl From<PackError> for LoadError {
    fn from(why: PackError) -> Self {
        match why {
            PackError::OverBudget(why) => Self::OverBudget(why),
            PackError::Worker(why) => Self::Worker(why),
        }
    }
}

pub(super) fn pack(
    view: MatrixRef<'_>,
    budget: &Budget,
    context: Context<'_>,
) -> Result<Buffer<u8>, PackError> {
    let bytes = matrix::panel_bytes(view.format(), view.rows(), view.cols());
    let mut panels = Buffer::zeroed(budget, ChargeKind::Weights, bytes)?;
    panels.advise_huge();
    matrix::pack(context, view, &mut panels)?;
    Ok(panels)
}

/// Where a matrix is put.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Repacked.
    Panels,
    /// Held in the file's pages.
    Mapped,
    /// Nowhere: read at each use.
    Streamed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_no_part_of_what_is_read_ahead() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/architectures");
        let source = ModelSource::open(format!("{golden}/mixtral")).unwrap();
        let names = |tensors: &mut dyn Iterator<Item = SourceTensor<'_>>| -> Vec<String> {
            tensors.map(|tensor| tensor.name.to_string()).collect()
        };
        let ahead = names(&mut dense_tensors(&source, 1));
        assert_eq!(ahead.len(), 5, "{ahead:?}"); // queries, keys, values, output, router
        assert!(ahead.iter().all(|name| !name.contains(".experts.")));
        let all = names(&mut unit_tensors(&source, 1));
        assert_eq!(all.len(), 5 + 5 * 3);
        let third = names(&mut expert_tensors(&source, 1, 3));
        assert!(third.iter().all(|name| name.contains(".experts.3.")) && third.len() == 3);
        assert_eq!(names(&mut expert_tensors(&source, 2, 0)).len(), 0);
    }
}
