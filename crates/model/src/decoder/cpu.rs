//! The decoder on CPU threads: one forward pass for every architecture, read from
//! [`CpuDecoder::forward`] down. What differs between architectures is data: see
//! [`crate::config::ModelConfig`].

use std::sync::Arc;

use neap_kernels::kv::{self, KvLayout};
use neap_kernels::matmul::{self, MatmulJob};
use neap_kernels::{Context, Isa, ThreadPool, WorkerPanic, norm, ops, rope};
use neap_memory::{Budget, OverBudget};

use super::adapt::{self, AdapterRun, Product};
use super::layer::{LayerWeights, NormWeights};
use super::scratch::Scratch;
use super::weights::{KV_FORMAT, Model};
use super::{Decoder, DecoderLimits, SequenceChunk, StepError};
use crate::config::{ModelConfig, NormKind, NormPlace};
use crate::source::{LayerTensor, TensorName};

/// The decoder on CPU threads.
pub struct CpuDecoder {
    model: Arc<Model>,
    pool: Arc<ThreadPool>,
    isa: Isa,
    limits: DecoderLimits,
    scratch: Scratch,
}

impl CpuDecoder {
    /// Reserves the scratch for steps up to `limits`, charged to `budget`.
    ///
    /// # Errors
    /// When the budget has no room for the scratch.
    pub fn new(
        model: Arc<Model>,
        pool: Arc<ThreadPool>,
        isa: Isa,
        limits: DecoderLimits,
        budget: &Budget,
    ) -> Result<Self, OverBudget> {
        let scratch = Scratch::new(&model, limits, pool.threads(), budget)?;
        Ok(Self {
            model,
            pool,
            isa,
            limits,
            scratch,
        })
    }

    /// Bytes of scratch that [`CpuDecoder::new`] charges at most.
    pub fn scratch_bytes(
        config: &ModelConfig,
        layout: &KvLayout,
        limits: DecoderLimits,
        threads: usize,
    ) -> u64 {
        Scratch::bytes_needed(config, layout, limits, threads)
    }

    /// The threads and the instruction set that compute.
    pub fn context(&self) -> Context<'_> {
        Context {
            isa: self.isa,
            pool: &self.pool,
        }
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    fn check(&self, batch: &[SequenceChunk<'_>], give: Give) -> Result<(), StepError> {
        let at_most = |what, asked, limit| {
            if asked <= limit {
                Ok(())
            } else {
                Err(StepError::TooLarge { what, asked, limit })
            }
        };
        let tokens = batch.iter().map(|c| c.tokens.len()).sum();
        at_most("tokens", tokens, self.limits.batch_tokens)?;
        let rows = batch.iter().map(|c| c.logits.rows(c.tokens.len())).sum();
        if give == Give::Logits {
            at_most("rows of logits", rows, self.limits.logit_rows)?;
        }
        let vocab_size = self.vocab_size();
        for chunk in batch {
            let needed = chunk.table.len_tokens() + chunk.tokens.len();
            at_most("tokens of context", needed, self.context_tokens())?;
            let capacity = chunk.table.capacity_tokens();
            if needed > capacity {
                return Err(StepError::NotReserved { capacity, needed });
            }
            if let Some(&id) = chunk.tokens.iter().find(|&&id| id as usize >= vocab_size) {
                return Err(StepError::UnknownToken { id, vocab_size });
            }
        }
        Ok(())
    }
}

impl Decoder for CpuDecoder {
    fn vocab_size(&self) -> usize {
        self.model.config().vocab_size
    }

    fn context_tokens(&self) -> usize {
        self.model.config().context_length
    }

    fn limits(&self) -> DecoderLimits {
        self.limits
    }

    fn forward(&mut self, batch: &mut [SequenceChunk<'_>]) -> Result<&mut [f32], StepError> {
        self.pass(batch, Give::Logits)?;
        let rows = self.scratch.rows;
        Ok(&mut self.scratch.logits[..rows * self.model.config().vocab_size])
    }

    fn releasable_weight_bytes(&self) -> u64 {
        self.model.releasable_bytes()
    }

    fn release_weights(&mut self, bytes: u64) -> u64 {
        // A model that others hold too stays as it is.
        Arc::get_mut(&mut self.model).map_or(0, |model| model.release(bytes))
    }

    fn take_weights_back(&mut self, spare_bytes: u64) -> Result<bool, StepError> {
        let context = Context {
            isa: self.isa,
            pool: &self.pool,
        };
        match Arc::get_mut(&mut self.model) {
            Some(model) => Ok(model.take_back(spare_bytes, context)?),
            None => Ok(false),
        }
    }
}

/// What a pass ends with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Give {
    Logits,
    Hidden,
}

impl CpuDecoder {
    /// As [`Decoder::forward`], but gives the hidden rows after the last norm, `[rows, hidden_size]`, instead of logits:
    /// what embeddings are made of.
    ///
    /// # Errors
    /// As [`Decoder::forward`].
    pub fn hidden(&mut self, batch: &mut [SequenceChunk<'_>]) -> Result<&[f32], StepError> {
        self.pass(batch, Give::Hidden)?;
        let rows = self.scratch.rows;
        Ok(&self.scratch.normed[..rows * self.model.config().hidden_size])
    }

    fn pass(&mut self, batch: &mut [SequenceChunk<'_>], give: Give) -> Result<(), StepError> {
        self.check(batch, give)?;
        let context = Context {
            isa: self.isa,
            pool: &self.pool,
        };
        let rows = Rows::of(batch);
        let mut pass = Pass {
            model: &self.model,
            context,
            s: &mut self.scratch,
            runs: &rows.runs,
            rows: &rows,
        };
        pass.embed(batch)?;
        for (index, layer) in self.model.layers().iter().enumerate() {
            self.model.before(index);
            pass.attention_inputs(index, layer)?;
            pass.write_kv(index, batch);
            pass.attend(index, batch)?;
            if index + 1 == self.model.layers().len() {
                // Nothing after this mixes rows: go on with those whose logits are wanted.
                pass.keep_wanted_rows();
            }
            pass.attention_output(index, layer)?;
            pass.feed_forward(index, layer)?;
            self.model.after(index);
        }
        pass.last_norm()?;
        if give == Give::Logits {
            self.model.before(self.model.layers().len());
            pass.logits()?;
            self.model.after(self.model.layers().len());
        }
        for chunk in batch {
            chunk.table.advance(chunk.tokens.len());
        }
        Ok(())
    }
}

/// The rows of a step: one for each token, chunk after chunk.
struct Rows<'a> {
    /// Position of each row's token in its sequence.
    positions: Vec<usize>,
    /// Rows whose logits are wanted.
    wanted: Vec<usize>,
    /// Rows that go through adapters: of all, and of those that are wanted.
    runs: Vec<AdapterRun<'a>>,
    wanted_runs: Vec<AdapterRun<'a>>,
}

impl<'a> Rows<'a> {
    fn of(batch: &[SequenceChunk<'a>]) -> Self {
        let mut rows = Self {
            positions: Vec::new(),
            wanted: Vec::new(),
            runs: adapt::runs(batch, |chunk| chunk.tokens.len()),
            wanted_runs: adapt::runs(batch, |chunk| chunk.logits.rows(chunk.tokens.len())),
        };
        for chunk in batch {
            let (first, start) = (rows.positions.len(), chunk.table.len_tokens());
            let end = first + chunk.tokens.len();
            rows.positions.extend(start..start + chunk.tokens.len());
            rows.wanted
                .extend(end - chunk.logits.rows(chunk.tokens.len())..end);
        }
        rows
    }
}

/// One forward pass. The scratch names say what each buffer holds: `[rows, width]`, row-major.
pub(super) struct Pass<'a> {
    pub(super) model: &'a Model,
    pub(super) context: Context<'a>,
    pub(super) s: &'a mut Scratch,
    pub(super) runs: &'a [AdapterRun<'a>],
    rows: &'a Rows<'a>,
}

/// out = norm(x), row by row.
pub(super) fn normalize(
    context: Context<'_>,
    config: &ModelConfig,
    norm: &NormWeights,
    x: &[f32],
    out: &mut [f32],
) -> Result<(), WorkerPanic> {
    let eps = config.norm.eps;
    match config.norm.kind {
        NormKind::Rms => norm::rms_norm(context, x, &norm.weight, eps, out),
        NormKind::Layer => {
            norm::layer_norm(context, x, &norm.weight, norm.bias.as_deref(), eps, out)
        }
    }
}

impl Pass<'_> {
    /// hidden = embedding of each token; cosines and sines of each position.
    fn embed(&mut self, batch: &mut [SequenceChunk<'_>]) -> Result<(), WorkerPanic> {
        let config = self.model.config();
        self.s.rows = self.rows.positions.len();
        let n = self.s.rows;
        let tokens = batch.iter().flat_map(|chunk| chunk.tokens).copied();
        let hidden = &mut self.s.hidden[..n * config.hidden_size];
        self.model.embed(tokens, hidden);
        self.model.add_positions(&self.rows.positions, hidden);
        self.model.add_types(self.context.isa, batch, hidden);
        if config.embedding_scale != 1.0 {
            ops::scale(self.context, hidden, config.embedding_scale)?;
        }
        if let Some(norm) = self.model.embedding_norm() {
            let normed = &mut self.s.normed[..n * config.hidden_size];
            normalize(self.context, config, norm, hidden, normed)?;
            hidden.copy_from_slice(normed);
        }
        let positions = &self.rows.positions;
        let rope = self.model.rope();
        rope.fill(positions, &mut self.s.angles[..n * rope.row_len()]);
        if let Some(rope) = self.model.window_rope() {
            rope.fill(positions, &mut self.s.window_angles[..n * rope.row_len()]);
        }
        Ok(())
    }

    /// normed = norm(hidden), or hidden itself where the model has no norm here.
    pub(super) fn normalize_hidden(
        &mut self,
        norm: Option<&NormWeights>,
    ) -> Result<(), WorkerPanic> {
        let config = self.model.config();
        let n = self.s.rows * config.hidden_size;
        let (hidden, normed) = (&self.s.hidden[..n], &mut self.s.normed[..n]);
        match norm {
            Some(norm) => normalize(self.context, config, norm, hidden, normed),
            None => {
                normed.copy_from_slice(hidden);
                Ok(())
            }
        }
    }

    /// q, k, v = projections of the normalized hidden rows, q and k rotated to their positions.
    fn attention_inputs(&mut self, index: usize, layer: &LayerWeights) -> Result<(), WorkerPanic> {
        self.normalize_hidden(layer.attention_norm.as_ref())?;
        let config = self.model.config();
        let (n, s) = (self.s.rows, &mut *self.s);
        let (q_width, kv_width) = (config.q_size(), config.kv_size());
        let (q, k, v) = (
            &mut s.q[..n * q_width],
            &mut s.k[..n * kv_width],
            &mut s.v[..n * kv_width],
        );
        let normed = &s.normed[..n * config.hidden_size];
        let outputs = [
            (&layer.q, &mut *q),
            (&layer.k, &mut *k),
            (&layer.v, &mut *v),
        ];
        let mut jobs = outputs.map(|(linear, out)| MatmulJob {
            weights: linear.matrix.weights(self.model),
            out,
        });
        matmul::matmul(self.context, &mut jobs, normed, n, &mut s.matmul)?;
        for (rows, linear) in [
            (&mut *q, &layer.q),
            (&mut *k, &layer.k),
            (&mut *v, &layer.v),
        ] {
            if let Some(bias) = &linear.bias {
                ops::add_bias(self.context.isa, rows, bias);
            }
        }
        for (tensor, out) in [
            (LayerTensor::AttnQ, &mut *q),
            (LayerTensor::AttnK, &mut *k),
            (LayerTensor::AttnV, &mut *v),
        ] {
            let product = Product {
                name: TensorName::Layer(index, tensor),
                x: normed,
                out,
            };
            adapt::add(
                self.context,
                self.runs,
                (&mut s.adapt, &mut s.matmul),
                product,
            )?;
        }
        for (heads, weight) in [(&mut *q, &layer.q_norm), (&mut *k, &layer.k_norm)] {
            if let Some(weight) = weight {
                norm::rms_norm_in_place(self.context, heads, weight, config.norm.eps)?;
            }
        }
        let kind = config.layer_kinds[index];
        if !kind.rope {
            return Ok(());
        }
        let (rope, angles) = match self.model.window_rope() {
            Some(rope) if kind.window => (rope, &s.window_angles[..n * rope.row_len()]),
            _ => {
                let rope = self.model.rope();
                (rope, &s.angles[..n * rope.row_len()])
            }
        };
        rope::apply(self.context, rope, angles, config.heads, q)?;
        rope::apply(self.context, rope, angles, config.kv_heads, k)
    }

    /// The new tokens' keys and values go into their sequences' blocks.
    fn write_kv(&mut self, layer: usize, batch: &mut [SequenceChunk<'_>]) {
        let width = self.model.config().kv_size();
        let layout = self.model.kv_layout();
        let place = self.model.kv_place(layer);
        let mut row = 0;
        for chunk in batch {
            let (start, tokens) = (chunk.table.len_tokens(), chunk.tokens.len());
            let mut done = 0;
            while done < tokens {
                let (block, slot) = (
                    (start + done) / layout.block_tokens(),
                    (start + done) % layout.block_tokens(),
                );
                let n = (layout.block_tokens() - slot).min(tokens - done);
                let values = (row + done) * width..(row + done + n) * width;
                let bytes = chunk.table.block_mut(block);
                let (k, v) = (&self.s.k[values.clone()], &self.s.v[values]);
                kv::write_kv_run(
                    self.context.isa,
                    &layout,
                    KV_FORMAT,
                    place,
                    bytes,
                    slot,
                    k,
                    v,
                );
                done += n;
            }
            row += tokens;
        }
    }

    /// Moves the rows whose logits are wanted to the front and forgets the others.
    fn keep_wanted_rows(&mut self) {
        let config = self.model.config();
        for (to, &from) in self.rows.wanted.iter().enumerate() {
            let (h, q) = (config.hidden_size, config.q_size());
            self.s.hidden.copy_within(from * h..(from + 1) * h, to * h);
            self.s
                .attended
                .copy_within(from * q..(from + 1) * q, to * q);
        }
        self.s.rows = self.rows.wanted.len();
        self.runs = &self.rows.wanted_runs;
    }

    /// hidden += projection of what was attended to; normed = what the feed-forward network reads.
    fn attention_output(&mut self, index: usize, layer: &LayerWeights) -> Result<(), WorkerPanic> {
        let config = self.model.config();
        let (n, s) = (self.s.rows, &mut *self.s);
        let attended = &s.attended[..n * config.q_size()];
        let mut jobs = [MatmulJob {
            weights: layer.output.matrix.weights(self.model),
            out: &mut s.projected[..n * config.hidden_size],
        }];
        matmul::matmul(self.context, &mut jobs, attended, n, &mut s.matmul)?;
        if let Some(bias) = &layer.output.bias {
            let projected = &mut s.projected[..n * config.hidden_size];
            ops::add_bias(self.context.isa, projected, bias);
        }
        let product = Product {
            name: TensorName::Layer(index, LayerTensor::AttnOutput),
            x: attended,
            out: &mut s.projected[..n * config.hidden_size],
        };
        adapt::add(
            self.context,
            self.runs,
            (&mut s.adapt, &mut s.matmul),
            product,
        )?;
        if config.parallel_residual {
            self.normalize_hidden(layer.ffn_norm.as_ref())?;
            return self.add_projected(None);
        }
        self.add_projected(layer.attention_post_norm.as_ref())?;
        self.normalize_hidden(layer.ffn_norm.as_ref())
    }

    /// hidden += what attention or the feed-forward network gave, with the norm after it.
    pub(super) fn add_projected(&mut self, norm: Option<&NormWeights>) -> Result<(), WorkerPanic> {
        let config = self.model.config();
        let n = self.s.rows * config.hidden_size;
        let s = &mut *self.s;
        let (hidden, projected) = (&mut s.hidden[..n], &mut s.projected[..n]);
        if config.residual_scale != 1.0 {
            ops::scale(self.context, projected, config.residual_scale)?;
        }
        let Some(norm) = norm else {
            return ops::add(self.context, hidden, projected);
        };
        let normed = &mut s.normed[..n];
        if config.norm.place == NormPlace::AfterSum {
            ops::add(self.context, projected, hidden)?;
            return normalize(self.context, config, norm, projected, hidden);
        }
        normalize(self.context, config, norm, projected, normed)?;
        ops::add(self.context, hidden, normed)
    }

    /// normed = the last norm of the hidden rows.
    fn last_norm(&mut self) -> Result<(), WorkerPanic> {
        if self.s.rows == 0 {
            return Ok(());
        }
        self.normalize_hidden(self.model.output_norm())
    }

    /// logits = output projection of the normalized hidden rows.
    fn logits(&mut self) -> Result<(), WorkerPanic> {
        let config = self.model.config();
        let (n, s) = (self.s.rows, &mut *self.s);
        if n == 0 {
            return Ok(());
        }
        let logits = &mut s.logits[..n * config.vocab_size];
        let mut jobs = [MatmulJob {
            weights: self.model.output().weights(self.model),
            out: &mut *logits,
        }];
        let normed = &s.normed[..n * config.hidden_size];
        matmul::matmul(self.context, &mut jobs, normed, n, &mut s.matmul)?;
        let product = Product {
            name: TensorName::Output,
            x: normed,
            out: &mut *logits,
        };
        adapt::add(
            self.context,
            self.runs,
            (&mut s.adapt, &mut s.matmul),
            product,
        )?;
        if config.logit_scale != 1.0 {
            ops::scale(self.context, logits, config.logit_scale)?;
        }
        match config.logit_cap {
            Some(cap) => ops::soft_cap(self.context, logits, cap),
            None => Ok(()),
        }
    }
}
