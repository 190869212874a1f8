//! Adapters in the engine, on a fake decoder whose next token is a hash of all tokens and of the adapter: which requests
//! get which, under which names blocks are cached, and how weights come and go within a budget.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use neap_engine::{AdmissionError, Engine, EngineConfig, Event, FinishReason, Request, RequestId};
use neap_memory::cache::{CacheOptions, KvCache};
use neap_memory::{Budget, ChargeKind, KvPool};
use neap_model::adapter::AdapterFile;
use neap_model::decoder::{Decoder, DecoderLimits, SequenceChunk, StepError};
use neap_model::source::ModelSource;

const BLOCK_TOKENS: usize = 4;
const BLOCK_BYTES: usize = 65_536;
const VOCAB: usize = 97;

#[derive(Default)]
struct FakeDecoder {
    logits: Vec<f32>,
    /// Changes of adapter within steps.
    changes: usize,
}

fn next_token(adapter: u8, tokens: impl Iterator<Item = u32>) -> u32 {
    let start = 0xcbf2_9ce4_8422_2325 ^ u64::from(adapter);
    let hash = tokens.fold(start, |h, t| {
        (h ^ u64::from(t)).wrapping_mul(0x100_0000_01b3)
    });
    (hash >> 33) as u32 % VOCAB as u32
}

impl Decoder for FakeDecoder {
    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn context_tokens(&self) -> usize {
        200
    }

    fn limits(&self) -> DecoderLimits {
        DecoderLimits {
            batch_tokens: 64,
            logit_rows: 8,
        }
    }

    fn forward(&mut self, batch: &mut [SequenceChunk<'_>]) -> Result<&mut [f32], StepError> {
        self.logits.clear();
        let adapters: Vec<_> = batch.iter().map(|c| c.adapter.map(|a| a.hash())).collect();
        self.changes += adapters.windows(2).filter(|w| w[0] != w[1]).count();
        for (chunk, adapter) in batch.iter_mut().zip(adapters) {
            // Keys and values of one adapter are none of another's.
            let adapter = adapter.map_or(0, |hash| hash[0] | 1);
            let start = chunk.table.len_tokens();
            for (i, &token) in chunk.tokens.iter().enumerate() {
                let (block, slot) = ((start + i) / BLOCK_TOKENS, (start + i) % BLOCK_TOKENS);
                let written = token ^ u32::from(adapter) << 24;
                chunk.table.block_mut(block)[slot * 4..slot * 4 + 4]
                    .copy_from_slice(&written.to_le_bytes());
            }
            let read = (0..start + chunk.tokens.len()).map(|i| {
                let bytes = &chunk.table.block(i / BLOCK_TOKENS)[i % BLOCK_TOKENS * 4..][..4];
                let word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                assert_eq!(word >> 24, u32::from(adapter), "a block of another adapter");
                word & 0x00FF_FFFF
            });
            let next = next_token(adapter, read);
            for _ in 0..chunk.logits.rows(chunk.tokens.len()) {
                let first = self.logits.len();
                self.logits.resize(first + VOCAB, 0.0);
                self.logits[first + next as usize] = 1.0;
            }
            chunk.table.advance(chunk.tokens.len());
        }
        Ok(&mut self.logits)
    }
}

fn golden(name: &str) -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden");
    tests.join(name)
}

/// An adapter of two blocks' bytes for a golden model; each number gives another.
fn file(number: u32) -> AdapterFile {
    let model = ModelSource::open(golden("architectures/gemma3")).unwrap();
    let folder = std::env::temp_dir().join(format!("neap-engine-{}-{number}", std::process::id()));
    let weights = folder.join("adapter_model.safetensors");
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap();
    if !weights.exists() {
        std::fs::create_dir_all(&folder).unwrap();
        let config =
            format!(r#"{{"peft_type": "LORA", "r": 512, "lora_alpha": 1, "note": {number}}}"#);
        std::fs::write(folder.join("adapter_config.json"), config).unwrap();
        let module = "base_model.model.model.layers.0.self_attn.q_proj";
        let header = format!(
            r#"{{"{module}.lora_A.weight":{{"dtype":"F32","shape":[512,32],"data_offsets":[0,65536]}},"{module}.lora_B.weight":{{"dtype":"F32","shape":[32,512],"data_offsets":[65536,131072]}}}}"#
        );
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        bytes.resize(bytes.len() + 131_072, 0);
        std::fs::write(&weights, bytes).unwrap();
    }
    let file = AdapterFile::open(folder, &model).unwrap();
    assert_eq!(file.charged_bytes(), 2 * BLOCK_BYTES as u64);
    file
}

fn engine(budget: &Budget) -> Engine<FakeDecoder> {
    let pool = KvPool::new(budget, BLOCK_BYTES, BLOCK_TOKENS);
    let config = EngineConfig {
        batch_tokens: 64,
        max_running: 8,
        ..EngineConfig::default()
    };
    let cache = KvCache::new(&pool, CacheOptions::new(config.fingerprint)).unwrap();
    Engine::new(FakeDecoder::default(), None, cache, config)
}

fn request(adapter: Option<&str>, new_tokens: usize) -> Request {
    let mut request = Request {
        prompt: (0..18).collect(),
        max_new_tokens: Some(new_tokens),
        adapter: adapter.map(str::to_owned),
        ..Request::default()
    };
    request.sampling.temperature = 0.0;
    request
}

/// The tokens of each request in order, and how it ended.
fn finish(engine: &mut Engine<FakeDecoder>, ids: &[RequestId]) -> Vec<(Vec<u32>, FinishReason)> {
    let mut out: Vec<(Vec<u32>, Option<FinishReason>)> = vec![(Vec::new(), None); ids.len()];
    for now_ms in 0..2000 {
        for event in engine.step(now_ms) {
            match event {
                Event::Token { request, id, .. } => {
                    let at = ids.iter().position(|i| *i == request).unwrap();
                    out[at].0.push(id);
                }
                Event::Finished {
                    request, reason, ..
                } => {
                    let at = ids.iter().position(|i| *i == request).unwrap();
                    out[at].1 = Some(reason);
                }
            }
        }
        engine.check_conservation().unwrap();
    }
    assert!(engine.is_idle());
    out.into_iter()
        .map(|(tokens, reason)| (tokens, reason.unwrap()))
        .collect()
}

fn expected(file: Option<&AdapterFile>, new_tokens: usize) -> Vec<u32> {
    let adapter = file.map_or(0, |file| file.hash()[0] | 1);
    let mut tokens: Vec<u32> = (0..18).collect();
    for _ in 0..new_tokens {
        tokens.push(next_token(adapter, tokens.iter().copied()));
    }
    tokens.split_off(18)
}

#[test]
fn requests_of_different_adapters_run_together_and_share_nothing() {
    let budget = Budget::new(1 << 30);
    let mut engine = engine(&budget);
    engine.add_adapter("a", file(1)).unwrap();
    engine.add_adapter("b", file(2)).unwrap();
    assert!(engine.add_adapter("a", file(3)).is_err());
    let names = [Some("a"), None, Some("b"), Some("a"), Some("b"), None];
    for round in 0..2 {
        let ids: Vec<RequestId> = names
            .iter()
            .map(|name| engine.submit(request(*name, 9)).unwrap())
            .collect();
        let done = finish(&mut engine, &ids);
        for (name, (tokens, reason)) in names.iter().zip(&done) {
            let file = match name {
                Some("a") => Some(file(1)),
                Some(_) => Some(file(2)),
                None => None,
            };
            assert_eq!(
                tokens,
                &expected(file.as_ref(), 9),
                "{name:?}, round {round}"
            );
            assert_eq!(reason, &FinishReason::Length);
        }
    }
    // Three groups have two changes in a step, whatever the order of requests.
    assert!(engine.decoder().changes <= 2 * engine.steps() as usize);
    assert!(engine.adapters().iter().all(|adapter| adapter.is_loaded));
    let unknown = engine.submit(request(Some("c"), 1));
    assert!(matches!(
        unknown,
        Err(AdmissionError::UnknownAdapter { .. })
    ));
}

#[test]
fn adapters_take_turns_where_only_one_finds_room() {
    let budget = Budget::new(1 << 30);
    let mut engine = engine(&budget);
    engine.add_adapter("a", file(1)).unwrap();
    engine.add_adapter("b", file(2)).unwrap();
    let block = engine.kv().charged_block_bytes();
    // Two sequences of six blocks, one adapter, and less than another.
    budget.set_limit(budget.charged() + 15 * block);
    let ids = ["a", "b", "a", "b"].map(|name| engine.submit(request(Some(name), 6)).unwrap());
    let done = finish(&mut engine, &ids);
    for (alpha, (tokens, reason)) in [1, 2, 1, 2].into_iter().zip(&done) {
        assert_eq!(
            (tokens, reason),
            (&expected(Some(&file(alpha)), 6), &FinishReason::Length)
        );
    }
}

#[test]
fn an_idle_adapter_gives_way_to_a_shrink_and_comes_back_when_used() {
    let budget = Budget::new(1 << 30);
    let mut engine = engine(&budget);
    engine.add_adapter("a", file(1)).unwrap();
    let id = engine.submit(request(Some("a"), 3)).unwrap();
    finish(&mut engine, &[id]);
    let held = |budget: &Budget| budget.snapshot().of_kind(ChargeKind::Adapters);
    assert_eq!(held(&budget), file(1).charged_bytes());
    let fixed = budget.charged() - budget.snapshot().of_kind(ChargeKind::Kv) - held(&budget);
    budget.set_limit(fixed);
    engine.rest(5000);
    assert_eq!((held(&budget), budget.excess()), (0, 0));
    budget.set_limit(1 << 30);
    let id = engine.submit(request(Some("a"), 3)).unwrap();
    let done = finish(&mut engine, &[id]);
    assert_eq!(done[0].0, expected(Some(&file(1)), 3));
    // Where its blocks leave no room for it, the request ends with the reason, and others run.
    budget.set_limit(fixed);
    engine.rest(9000);
    budget.set_limit(fixed + 6 * engine.kv().charged_block_bytes());
    let adapted = engine.submit(request(Some("a"), 3)).unwrap();
    let plain = engine.submit(request(None, 3)).unwrap();
    let done = finish(&mut engine, &[adapted, plain]);
    assert!(
        matches!(done[0].1, FinishReason::OutOfBudget { .. }),
        "{:?}",
        done[0].1
    );
    assert_eq!(done[1], (expected(None, 3), FinishReason::Length));
}

#[test]
fn a_removed_adapter_serves_who_has_it_and_nobody_else() {
    let budget = Budget::new(1 << 30);
    let mut engine = engine(&budget);
    engine.add_adapter("a", file(1)).unwrap();
    let id = engine.submit(request(Some("a"), 6)).unwrap();
    engine.step(0);
    assert!(engine.remove_adapter("a") && !engine.remove_adapter("a"));
    assert!(engine.adapters().is_empty());
    assert!(engine.submit(request(Some("a"), 1)).is_err());
    // Another of its name is another.
    engine.add_adapter("a", file(2)).unwrap();
    let other = engine.submit(request(Some("a"), 6)).unwrap();
    let done = finish(&mut engine, &[id, other]);
    assert_eq!(done[1].0, expected(Some(&file(2)), 6));
    assert_eq!(done[0].1, FinishReason::Length);
    engine.remove_adapter("a");
    assert_eq!(budget.snapshot().of_kind(ChargeKind::Adapters), 0);
}

#[test]
fn a_file_that_changed_fails_its_requests_only() {
    let budget = Budget::new(1 << 30);
    let mut engine = engine(&budget);
    let broken = file(77);
    let path = broken.path().join("adapter_model.safetensors");
    engine.add_adapter("broken", broken).unwrap();
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
    let bad = engine.submit(request(Some("broken"), 3)).unwrap();
    let good = engine.submit(request(None, 3)).unwrap();
    let done = finish(&mut engine, &[bad, good]);
    let FinishReason::Failed(why) = &done[0].1 else {
        panic!("{:?}", done[0].1)
    };
    assert!(
        why.contains("\"broken\"") && why.contains("adapter_model.safetensors"),
        "{why}"
    );
    assert_eq!(done[1], (expected(None, 3), FinishReason::Length));
    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
}

#[test]
fn forced_answers_have_the_log_probabilities_of_the_model() {
    let budget = Budget::new(1 << 30);
    let mut engine = engine(&budget);
    let likely = expected(None, 1)[0];
    let asked = Request {
        forced: vec![likely, (likely + 1) % VOCAB as u32],
        top_logprobs: Some(0),
        ..request(None, 50)
    };
    engine.submit(asked).unwrap();
    let (mut got, mut ended) = (Vec::new(), None);
    while ended.is_none() {
        for event in engine.step(0) {
            match event {
                Event::Token { id, logprobs, .. } => got.push((id, logprobs[0].logprob)),
                Event::Finished { reason, .. } => ended = Some(reason),
            }
        }
    }
    assert_eq!((got.len(), ended), (2, Some(FinishReason::Length)));
    // One logit of 1, the others 0.
    let sum = (1f32.exp() + (VOCAB - 1) as f32).ln();
    assert!((got[0].1 - (1.0 - sum)).abs() < 1e-5, "{got:?}");
    assert_eq!(got[1].0, (likely + 1) % VOCAB as u32);
    let outside = Request {
        forced: vec![VOCAB as u32],
        ..request(None, 1)
    };
    let why = engine.submit(outside).unwrap_err().to_string();
    assert!(why.contains("token 97 at position 18"), "{why}");
}
