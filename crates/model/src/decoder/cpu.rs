//! The decoder on CPU threads: one forward pass for every architecture, read from
//! [`CpuDecoder::forward`] down. What differs between architectures is data: see
//! [`crate::config::ModelConfig`].

use std::sync::Arc;

use neap_kernels::attention::{self, AttentionSequence, AttentionShape};
use neap_kernels::kv::{self, KvBlock, KvLayout};
use neap_kernels::matmul::{self, MatmulJob};
use neap_kernels::{Context, Isa, ThreadPool, WorkerPanic, norm, ops, rope};
use neap_memory::{Budget, OverBudget};

use super::levels::format_of;
use super::scratch::Scratch;
use super::weights::{KV_FORMAT, LayerWeights, Model};
use super::{Decoder, DecoderLimits, SequenceChunk, StepError};
use crate::config::ModelConfig;

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

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    fn check(&self, batch: &[SequenceChunk<'_>]) -> Result<(), StepError> {
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
        at_most("rows of logits", rows, self.limits.logit_rows)?;
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
        self.check(batch)?;
        let context = Context {
            isa: self.isa,
            pool: &self.pool,
        };
        let rows = Rows::of(batch);
        let mut pass = Pass {
            model: &self.model,
            context,
            s: &mut self.scratch,
            rows: &rows,
        };
        pass.embed(batch);
        for (index, layer) in self.model.layers().iter().enumerate() {
            self.model.before(index);
            pass.attention_inputs(layer)?;
            pass.write_kv(index, batch);
            pass.attend(index, batch)?;
            if index + 1 == self.model.layers().len() {
                // Nothing after this mixes rows: go on with those whose logits are wanted.
                pass.keep_wanted_rows();
            }
            pass.attention_output(layer)?;
            pass.feed_forward(layer)?;
            self.model.after(index);
        }
        self.model.before(self.model.layers().len());
        pass.logits()?;
        self.model.after(self.model.layers().len());
        for chunk in batch {
            chunk.table.advance(chunk.tokens.len());
        }
        let values = rows.wanted.len() * self.model.config().vocab_size;
        Ok(&mut self.scratch.logits[..values])
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

/// The rows of a step: one for each token, chunk after chunk.
struct Rows {
    /// Position of each row's token in its sequence.
    positions: Vec<usize>,
    /// Rows whose logits are wanted.
    wanted: Vec<usize>,
}

impl Rows {
    fn of(batch: &[SequenceChunk<'_>]) -> Self {
        let mut rows = Self {
            positions: Vec::new(),
            wanted: Vec::new(),
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
struct Pass<'a> {
    model: &'a Model,
    context: Context<'a>,
    s: &'a mut Scratch,
    rows: &'a Rows,
}

impl Pass<'_> {
    /// hidden = embedding of each token; cosines and sines of each position.
    fn embed(&mut self, batch: &[SequenceChunk<'_>]) {
        let width = self.model.config().hidden_size;
        self.s.rows = self.rows.positions.len();
        let tokens = batch.iter().flat_map(|chunk| chunk.tokens).copied();
        self.model
            .embed(tokens, &mut self.s.hidden[..self.s.rows * width]);
        let rope = self.model.rope();
        rope.fill(
            &self.rows.positions,
            &mut self.s.angles[..self.s.rows * rope.row_len()],
        );
    }

    /// q, k, v = projections of the normalized hidden rows, q and k rotated to their positions.
    fn attention_inputs(&mut self, layer: &LayerWeights) -> Result<(), WorkerPanic> {
        let config = self.model.config();
        let (n, s) = (self.s.rows, &mut *self.s);
        let (q_width, kv_width) = (config.q_size(), config.kv_size());
        let (q, k, v) = (
            &mut s.q[..n * q_width],
            &mut s.k[..n * kv_width],
            &mut s.v[..n * kv_width],
        );
        let hidden = &s.hidden[..n * config.hidden_size];
        let normed = &mut s.normed[..n * config.hidden_size];
        norm::rms_norm(
            self.context,
            hidden,
            &layer.attention_norm,
            config.rms_eps,
            normed,
        )?;
        let mut jobs = [
            MatmulJob {
                weights: layer.q.weights(self.model),
                out: q,
            },
            MatmulJob {
                weights: layer.k.weights(self.model),
                out: k,
            },
            MatmulJob {
                weights: layer.v.weights(self.model),
                out: v,
            },
        ];
        matmul::matmul(self.context, &mut jobs, normed, n, &mut s.matmul)?;
        for (rows, bias) in [
            (&mut *q, &layer.q_bias),
            (&mut *k, &layer.k_bias),
            (&mut *v, &layer.v_bias),
        ] {
            if let Some(bias) = bias {
                ops::add_bias(self.context.isa, rows, bias);
            }
        }
        for (heads, weight) in [(&mut *q, &layer.q_norm), (&mut *k, &layer.k_norm)] {
            if let Some(weight) = weight {
                norm::rms_norm_in_place(self.context, heads, weight, config.rms_eps)?;
            }
        }
        let rope = self.model.rope();
        let angles = &s.angles[..n * rope.row_len()];
        rope::apply(self.context, rope, angles, config.heads, q)?;
        rope::apply(self.context, rope, angles, config.kv_heads, k)
    }

    /// The new tokens' keys and values go into their sequences' blocks.
    fn write_kv(&mut self, layer: usize, batch: &mut [SequenceChunk<'_>]) {
        let width = self.model.config().kv_size();
        let layout = self.model.kv_layout();
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
                    layer,
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

    /// attended = softmax(q · K) · V over each sequence's blocks.
    fn attend(&mut self, layer: usize, batch: &[SequenceChunk<'_>]) -> Result<(), WorkerPanic> {
        let config = self.model.config();
        let blocks: Vec<Vec<KvBlock<'_>>> = batch
            .iter()
            .map(|chunk| {
                let used = (chunk.table.len_tokens() + chunk.tokens.len())
                    .div_ceil(chunk.table.block_tokens());
                (0..used)
                    .map(|i| {
                        let view = chunk.table.view(i);
                        KvBlock {
                            format: format_of(view.level),
                            bytes: view.bytes,
                        }
                    })
                    .collect()
            })
            .collect();
        let sequences: Vec<AttentionSequence<'_>> = batch
            .iter()
            .zip(&blocks)
            .map(|(chunk, blocks)| AttentionSequence {
                blocks,
                rows: chunk.tokens.len(),
                first_position: chunk.table.len_tokens(),
            })
            .collect();
        let shape = AttentionShape {
            layer,
            heads: config.heads,
            scale: config.attention_scale,
            window: config.sliding_window,
            softcap: None,
            sinks: None,
        };
        let n = self.s.rows * config.q_size();
        let (q, out) = (&self.s.q[..n], &mut self.s.attended[..n]);
        let layout = self.model.kv_layout();
        attention::attention(
            self.context,
            &layout,
            &shape,
            &sequences,
            q,
            out,
            &mut self.s.attention,
        )
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
    }

    /// hidden += projection of what was attended to.
    fn attention_output(&mut self, layer: &LayerWeights) -> Result<(), WorkerPanic> {
        let config = self.model.config();
        let (n, s) = (self.s.rows, &mut *self.s);
        let out = &mut s.projected[..n * config.hidden_size];
        let mut jobs = [MatmulJob {
            weights: layer.output.weights(self.model),
            out,
        }];
        matmul::matmul(
            self.context,
            &mut jobs,
            &s.attended[..n * config.q_size()],
            n,
            &mut s.matmul,
        )?;
        if let Some(bias) = &layer.output_bias {
            ops::add_bias(
                self.context.isa,
                &mut s.projected[..n * config.hidden_size],
                bias,
            );
        }
        ops::add(
            self.context,
            &mut s.hidden[..n * config.hidden_size],
            &s.projected[..n * config.hidden_size],
        )
    }

    /// hidden += down(silu(gate(x)) * up(x)), x being the normalized hidden rows.
    fn feed_forward(&mut self, layer: &LayerWeights) -> Result<(), WorkerPanic> {
        let config = self.model.config();
        let (n, s) = (self.s.rows, &mut *self.s);
        let (wide, width) = (n * config.ffn_size, n * config.hidden_size);
        let normed = &mut s.normed[..width];
        norm::rms_norm(
            self.context,
            &s.hidden[..width],
            &layer.ffn_norm,
            config.rms_eps,
            normed,
        )?;
        let (gate, up) = (&mut s.gate[..wide], &mut s.up[..wide]);
        let mut jobs = [
            MatmulJob {
                weights: layer.gate.weights(self.model),
                out: gate,
            },
            MatmulJob {
                weights: layer.up.weights(self.model),
                out: up,
            },
        ];
        matmul::matmul(self.context, &mut jobs, normed, n, &mut s.matmul)?;
        ops::swiglu(self.context, gate, up)?;
        let out = &mut s.projected[..width];
        let mut jobs = [MatmulJob {
            weights: layer.down.weights(self.model),
            out,
        }];
        matmul::matmul(self.context, &mut jobs, gate, n, &mut s.matmul)?;
        ops::add(self.context, &mut s.hidden[..width], &s.projected[..width])
    }

    /// logits = output projection of the normalized hidden rows.
    fn logits(&mut self) -> Result<(), WorkerPanic> {
        let config = self.model.config();
        let (n, s) = (self.s.rows, &mut *self.s);
        if n == 0 {
            return Ok(());
        }
        let normed = &mut s.normed[..n * config.hidden_size];
        let hidden = &s.hidden[..n * config.hidden_size];
        norm::rms_norm(
            self.context,
            hidden,
            self.model.output_norm(),
            config.rms_eps,
            normed,
        )?;
        let out = &mut s.logits[..n * config.vocab_size];
        let mut jobs = [MatmulJob {
            weights: self.model.output().weights(self.model),
            out,
        }];
        matmul::matmul(self.context, &mut jobs, normed, n, &mut s.matmul)
    }
}
