//! The working memory of a step, charged to the budget once for the largest step.

use neap_kernels::attention::AttentionScratch;
use neap_kernels::kv::KvLayout;
use neap_kernels::matmul::MatmulScratch;
use neap_kernels::rope::RopeTable;
use neap_memory::{Budget, Buffer, Charge, ChargeKind, OverBudget};

use super::DecoderLimits;
use super::adapt::AdaptScratch;
use super::weights::Model;
use crate::config::ModelConfig;

/// Buffers of `[rows, width]` values; `rows` says how many rows are in use.
pub(super) struct Scratch {
    pub rows: usize,
    pub hidden: Buffer<f32>,
    pub normed: Buffer<f32>,
    pub q: Buffer<f32>,
    pub k: Buffer<f32>,
    pub v: Buffer<f32>,
    pub attended: Buffer<f32>,
    pub projected: Buffer<f32>,
    pub gate: Buffer<f32>,
    pub up: Buffer<f32>,
    pub logits: Buffer<f32>,
    /// Cosines and sines of every row's position.
    pub angles: Buffer<f32>,
    /// Those for layers with a window, where they are others.
    pub window_angles: Buffer<f32>,
    /// Probabilities of every row's experts.
    pub routes: Buffer<f32>,
    /// The rows of one expert.
    pub gathered: Buffer<f32>,
    /// Sums of what experts give.
    pub mixed: Buffer<f32>,
    pub adapt: AdaptScratch,
    pub matmul: MatmulScratch,
    pub attention: AttentionScratch,
    /// Pays for what the kernels allocate themselves.
    _kernels: Charge,
}

impl Scratch {
    pub fn new(
        model: &Model,
        limits: DecoderLimits,
        threads: usize,
        budget: &Budget,
    ) -> Result<Self, OverBudget> {
        let config = model.config();
        let buffer = |len| Buffer::zeroed(budget, ChargeKind::Scratch, len);
        let n = limits.batch_tokens;
        let ffn = config.widest_ffn();
        let experts = config.experts.map_or(0, |experts| experts.count);
        let mixed = if experts > 0 {
            n * config.hidden_size
        } else {
            0
        };
        Ok(Self {
            rows: 0,
            hidden: buffer(n * config.hidden_size)?,
            normed: buffer(n * config.hidden_size)?,
            q: buffer(n * config.q_size())?,
            k: buffer(n * config.kv_size())?,
            v: buffer(n * config.kv_size())?,
            attended: buffer(n * config.q_size())?,
            projected: buffer(n * config.hidden_size)?,
            gate: buffer(n * ffn)?,
            up: buffer(n * ffn)?,
            logits: buffer(limits.logit_rows * config.vocab_size)?,
            angles: buffer(n * model.rope().row_len())?,
            window_angles: buffer(n * model.window_rope().map_or(0, RopeTable::row_len))?,
            routes: buffer(n * experts)?,
            gathered: buffer(mixed)?,
            mixed: buffer(mixed)?,
            adapt: AdaptScratch::new(config, n, budget)?,
            matmul: MatmulScratch::default(),
            attention: AttentionScratch::default(),
            _kernels: budget.try_charge(
                ChargeKind::Scratch,
                kernel_bytes(config, &model.kv_layout(), limits, threads),
            )?,
        })
    }

    /// Bytes that `new` charges at most.
    pub fn bytes_needed(
        config: &ModelConfig,
        layout: &KvLayout,
        limits: DecoderLimits,
        threads: usize,
    ) -> u64 {
        let n = limits.batch_tokens;
        let (h, q, kv, f) = (
            config.hidden_size,
            config.q_size(),
            config.kv_size(),
            config.widest_ffn(),
        );
        // Interleaved layouts hold every cosine and sine twice.
        let angles = 2 * config.rope.dims;
        let window_angles = config.window_rope.as_ref().map_or(0, |rope| 2 * rope.dims);
        let experts = config.experts.map_or(0, |experts| experts.count);
        let mixed = if experts > 0 { h } else { 0 };
        let widths = [
            h,
            h,
            q,
            kv,
            kv,
            q,
            h,
            f,
            f,
            angles,
            window_angles,
            experts,
            mixed,
            mixed,
        ];
        let lengths = widths.map(|width| n * width);
        let values = lengths
            .into_iter()
            .chain([limits.logit_rows * config.vocab_size])
            .chain(AdaptScratch::lengths(config, n));
        let bytes = |len: usize| Buffer::<f32>::charged_bytes_for(len).unwrap_or(usize::MAX) as u64;
        let kernels = kernel_bytes(config, layout, limits, threads);
        values.map(bytes).fold(kernels, u64::saturating_add)
    }
}

/// Bytes that the kernels hold between steps: quantized activations, packing tiles, partial softmax
/// states.
fn kernel_bytes(
    config: &ModelConfig,
    layout: &KvLayout,
    limits: DecoderLimits,
    threads: usize,
) -> u64 {
    let n = limits.batch_tokens;
    let widest = config
        .hidden_size
        .max(config.widest_ffn())
        .max(config.q_size());
    let matmul =
        MatmulScratch::bytes_needed(n, widest, threads).max(AdaptScratch::matmul_bytes(n, threads));
    let attention =
        AttentionScratch::bytes_needed(layout, config.heads, n, config.context_length, threads);
    matmul.saturating_add(attention) as u64
}
