//! What the engine's tests share: a fake decoder whose next token is a hash of every token that it reads back from the
//! KV blocks, so that a wrong, stale or lost block changes what follows; and a token whose block has sunk reads as
//! another one.

#![allow(dead_code, reason = "not every test file uses everything")]

use std::collections::HashMap;

use neap_engine::{Engine, EngineConfig, Event, FinishReason, Request, RequestId, Usage};
use neap_memory::cache::{CacheOptions, KvCache};
use neap_memory::table::BlockView;
use neap_memory::{Budget, Charge, ChargeKind, KvPool, Level, Window};
use neap_model::decoder::{Decoder, DecoderLimits, SequenceChunk, StepError};

pub const BLOCK_TOKENS: usize = 4;
/// Whole pages, so that a block is charged what it holds, and so are halves and quarters.
pub const BLOCK_BYTES: usize = 65_536;
/// What is left of a trimmed block.
pub const HEAD_BYTES: usize = BLOCK_BYTES / 8;
pub const VOCAB: usize = 97;
pub const CONTEXT: usize = 240;
/// Weights come in pieces of two blocks' bytes, one of which can never be let go of.
pub const PIECE_BYTES: u64 = 2 * BLOCK_BYTES as u64;

pub struct FakeDecoder {
    logits: Vec<f32>,
    limits: DecoderLimits,
    /// The token that the forward pass fails at.
    pub fail_at: Option<u32>,
    pub context_tokens: usize,
    weights: Option<FakeWeights>,
    /// What it reads of tokens outside of the window is the first byte of their slot alone; of others, the tail besides.
    window: Option<Window>,
}

struct FakeWeights {
    held: Charge,
    whole_bytes: u64,
}

impl FakeDecoder {
    pub fn new() -> Self {
        let limits = DecoderLimits {
            batch_tokens: 512,
            logit_rows: 32,
        };
        Self {
            logits: Vec::new(),
            limits,
            fail_at: None,
            context_tokens: CONTEXT,
            weights: None,
            window: None,
        }
    }

    /// With layers that see only so many tokens, whose keys and values take five sixths of a block's bytes or so.
    pub fn with_window(tokens: usize) -> Self {
        Self {
            window: Some(Window {
                tokens,
                head_bytes: HEAD_BYTES,
            }),
            ..Self::new()
        }
    }

    /// With so many pieces of weights.
    pub fn with_weights(budget: &Budget, pieces: u64) -> Self {
        let whole_bytes = pieces * PIECE_BYTES;
        let held = budget.try_charge(ChargeKind::Weights, whole_bytes).unwrap();
        Self {
            weights: Some(FakeWeights { held, whole_bytes }),
            ..Self::new()
        }
    }
}

/// What the fake model says after `tokens`.
fn next_token(tokens: impl Iterator<Item = u32>) -> u32 {
    let hash = tokens.fold(0xcbf2_9ce4_8422_2325_u64, |h, t| {
        (h ^ u64::from(t)).wrapping_mul(0x100_0000_01b3)
    });
    (hash >> 33) as u32 % VOCAB as u32
}

/// What layers with a window keep of the token in a slot of a hot block.
fn read_tail(view: BlockView<'_>, slot: usize) -> u32 {
    u32::from(view.bytes[HEAD_BYTES + slot])
}

/// The token in a slot: its byte is one that every level keeps.
fn read(view: BlockView<'_>, slot: usize) -> u32 {
    match view.level {
        Level::Int8 => u32::from(view.bytes[slot * 2]) ^ 0x100,
        Level::Int4 => u32::from(view.bytes[slot]) ^ 0x200,
        _ => u32::from(view.bytes[slot * 4]),
    }
}

impl Decoder for FakeDecoder {
    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn context_tokens(&self) -> usize {
        self.context_tokens
    }

    fn limits(&self) -> DecoderLimits {
        self.limits
    }

    fn forward(&mut self, batch: &mut [SequenceChunk<'_>]) -> Result<&mut [f32], StepError> {
        self.logits.clear();
        let total: usize = batch.iter().map(|c| c.tokens.len()).sum();
        assert!(total <= self.limits.batch_tokens);
        for chunk in batch.iter_mut() {
            let start = chunk.table.len_tokens();
            for (i, &token) in chunk.tokens.iter().enumerate() {
                if self.fail_at == Some(token) {
                    return Err(StepError::UnknownToken {
                        id: token,
                        vocab_size: VOCAB,
                    });
                }
                let (block, slot) = ((start + i) / BLOCK_TOKENS, (start + i) % BLOCK_TOKENS);
                let bytes = chunk.table.block_mut(block);
                (bytes[slot * 4], bytes[HEAD_BYTES + slot]) = (token as u8, token as u8);
            }
            let end = start + chunk.tokens.len();
            let table = &*chunk.table;
            let tokens = (0..end).map(|t| read(table.view(t / BLOCK_TOKENS), t % BLOCK_TOKENS));
            let next = next_token(tokens);
            if let Some(window) = self.window {
                // The first of the chunk sees farthest back.
                let seen = (start + 1).saturating_sub(window.tokens)..end;
                for t in seen {
                    let (view, slot) = (table.view(t / BLOCK_TOKENS), t % BLOCK_TOKENS);
                    assert_eq!(read_tail(view, slot), read(view, slot), "token {t}");
                }
            }
            for _ in 0..chunk.logits.rows(chunk.tokens.len()) {
                let first = self.logits.len();
                self.logits.resize(first + VOCAB, 0.0);
                self.logits[first + next as usize] = 1.0;
            }
            chunk.table.advance(chunk.tokens.len());
        }
        Ok(&mut self.logits)
    }

    fn releasable_weight_bytes(&self) -> u64 {
        self.weights
            .as_ref()
            .map_or(0, |w| w.held.bytes() - PIECE_BYTES)
    }

    fn release_weights(&mut self, bytes: u64) -> u64 {
        let bytes = bytes
            .next_multiple_of(PIECE_BYTES)
            .min(self.releasable_weight_bytes());
        if let Some(weights) = &mut self.weights {
            weights.held.resize(weights.held.bytes() - bytes).unwrap();
        }
        bytes
    }

    fn take_weights_back(&mut self, spare_bytes: u64) -> Result<bool, StepError> {
        let Some(weights) = &mut self.weights else {
            return Ok(false);
        };
        let wanted = weights.held.bytes() + PIECE_BYTES;
        Ok(wanted <= weights.whole_bytes
            && PIECE_BYTES <= spare_bytes
            && weights.held.resize(wanted).is_ok())
    }
}

/// What a lone generation gives: the truth for every test.
pub fn expected(prompt: &[u32], n: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..n {
        tokens.push(next_token(tokens.iter().copied()));
    }
    tokens.split_off(prompt.len())
}

pub fn engine_of(decoder: FakeDecoder, blocks: usize, config: EngineConfig) -> Engine<FakeDecoder> {
    engine_within(
        &Budget::new(1 << 30),
        decoder,
        blocks,
        CacheOptions::new(config.fingerprint),
        config,
    )
}

/// With room for so many blocks beside what the decoder has charged.
pub fn engine_within(
    budget: &Budget,
    decoder: FakeDecoder,
    blocks: usize,
    options: CacheOptions,
    config: EngineConfig,
) -> Engine<FakeDecoder> {
    let kv = KvPool::with_window(budget, BLOCK_BYTES, BLOCK_TOKENS, decoder.window);
    let cache = KvCache::new(&kv, options).unwrap();
    let engine = Engine::new(decoder, None, cache, config);
    give_blocks(&engine, blocks);
    engine
}

/// Sets the budget to what holds so many blocks beside the cache's scratch.
pub fn give_blocks(engine: &Engine<FakeDecoder>, blocks: usize) {
    give_bytes(engine, blocks * BLOCK_BYTES);
}

/// Sets the budget to what holds so many bytes of blocks beside the cache's scratch.
pub fn give_bytes(engine: &Engine<FakeDecoder>, bytes: usize) {
    let scratch = engine.budget().charged() - kv_bytes(engine);
    engine.budget().set_limit(scratch + bytes as u64);
}

pub fn kv_bytes(engine: &Engine<FakeDecoder>) -> u64 {
    engine.budget().snapshot().of_kind(ChargeKind::Kv)
}

pub fn request(prompt: &[u32], n: usize) -> Request {
    Request {
        prompt: prompt.to_vec(),
        max_new_tokens: Some(n),
        ..Request::default()
    }
}

#[derive(Default)]
pub struct Results {
    pub tokens: HashMap<RequestId, Vec<u32>>,
    pub finished: HashMap<RequestId, (FinishReason, Usage)>,
}

impl Results {
    pub fn take(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Token { request, id, .. } => {
                    self.tokens.entry(request).or_default().push(id)
                }
                Event::Finished {
                    request,
                    reason,
                    usage,
                    ..
                } => {
                    assert!(
                        self.finished.insert(request, (reason, usage)).is_none(),
                        "finished twice"
                    );
                }
            }
        }
    }
}

pub fn run(engine: &mut Engine<FakeDecoder>) -> Results {
    let mut results = Results::default();
    for _ in 0..20_000 {
        if engine.is_idle() {
            engine.check_conservation().unwrap();
            assert_eq!(
                kv_bytes(engine),
                engine.cache_mut().freeable_bytes(),
                "idle, only the cache holds blocks"
            );
            return results;
        }
        results.take(engine.step(0));
    }
    panic!("the engine does not come to an end");
}
