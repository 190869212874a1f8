//! Runs models for tests, and compares logits.
#![allow(dead_code, reason = "each test uses its own part")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use neap_kernels::{Isa, ThreadPool};
use neap_memory::{BlockTable, Budget, KvPool};
use neap_model::convert::{self, ConvertError};
use neap_model::decoder::{
    CpuDecoder, Decoder, DecoderLimits, LoadOptions, LogitsWanted, Model, Repack, SequenceChunk,
    kv_pool,
};
use neap_model::gguf::GgufFile;
use neap_model::source::ModelSource;
use serde::Deserialize;

/// The tokens that golden models were asked with, and the positions whose logits are kept.
#[derive(Deserialize)]
pub struct Prompt {
    pub tokens: Vec<u32>,
    pub positions: Vec<usize>,
}

impl Prompt {
    pub fn read() -> Self {
        json("manifest.json")
    }
}

/// How far logits may be from those of another implementation.
#[derive(Deserialize)]
pub struct Tolerance {
    pub relative_l2: f64,
    pub largest: f64,
}

/// Where the golden models are.
pub fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// A file beside them.
pub fn json<T: for<'a> Deserialize<'a>>(name: &str) -> T {
    let text = std::fs::read_to_string(golden().join(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// A golden model, such as `architectures/qwen3`.
pub fn open(name: &str) -> ModelSource {
    ModelSource::open(golden().join(name)).unwrap()
}

/// A folder as a GGUF file in memory.
pub fn converted(folder: &ModelSource) -> Result<ModelSource, ConvertError> {
    let bytes = convert::to_gguf(folder, Vec::new(), &mut |_, _| {})?;
    let file = GgufFile::from_vec("converted.gguf", bytes).unwrap();
    Ok(ModelSource::from_gguf(file).unwrap())
}

/// How a model is run.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub repack: Repack,
    pub isa: Isa,
    pub threads: usize,
}

pub const PLAIN: Setup = Setup {
    repack: Repack::Never,
    isa: Isa::Scalar,
    threads: 1,
};

pub fn fast() -> Setup {
    Setup {
        repack: Repack::Always,
        isa: Isa::best(),
        threads: 2,
    }
}

/// A decoder of a model, and a pool for its keys and values.
pub fn decoder(source: ModelSource, setup: Setup) -> (CpuDecoder, KvPool) {
    let budget = Budget::new(64 << 20);
    let pool = Arc::new(ThreadPool::new(setup.threads));
    let source = Arc::new(source);
    let kv = kv_pool(&budget, source.config()).unwrap();
    let options = LoadOptions {
        repack: setup.repack,
        reserve_bytes: 0,
        pool: &pool,
        isa: setup.isa,
        progress: &mut |_| {},
    };
    let model = Arc::new(Model::load(source, &budget, options).unwrap());
    let limits = DecoderLimits {
        batch_tokens: 64,
        logit_rows: 64,
    };
    let decoder = CpuDecoder::new(model, pool, setup.isa, limits, &budget).unwrap();
    (decoder, kv)
}

/// A decoder with room for every token of a test, and an empty block table.
pub struct Runner {
    decoder: CpuDecoder,
    kv: KvPool,
    table: BlockTable,
    pub vocab: usize,
    /// Lets go of what is behind the window after every step.
    pub trims: bool,
}

impl Runner {
    pub fn new(source: ModelSource, setup: Setup) -> Self {
        let vocab = source.config().vocab_size;
        let (decoder, kv) = decoder(source, setup);
        assert_eq!(decoder.vocab_size(), vocab);
        let table = BlockTable::new(&kv);
        Self {
            decoder,
            kv,
            table,
            vocab,
            trims: false,
        }
    }

    /// The logits of every token, fed `chunk` at a time.
    pub fn logits(&mut self, tokens: &[u32], chunk: usize) -> Vec<Vec<f32>> {
        let mut rows = Vec::new();
        for tokens in tokens.chunks(chunk) {
            self.table.reserve(tokens.len()).unwrap();
            let mut batch = [SequenceChunk {
                tokens,
                table: &mut self.table,
                logits: LogitsWanted::All,
                adapter: None,
                second_segment: None,
            }];
            let logits = self.decoder.forward(&mut batch).unwrap();
            rows.extend(logits.chunks_exact(self.vocab).map(<[f32]>::to_vec));
            if self.trims {
                self.table.trim();
            }
        }
        rows
    }

    /// Blocks of the latest sequence, and those of them that were trimmed.
    pub fn blocks(&self) -> (usize, usize) {
        (self.table.len_blocks(), self.table.trimmed_blocks())
    }

    /// The most likely tokens after a prompt, in a sequence of their own.
    pub fn greedy(&mut self, prompt: &[u32], count: usize) -> Vec<u32> {
        self.table = BlockTable::new(&self.kv);
        let mut next = prompt.to_vec();
        let mut chosen = Vec::new();
        while chosen.len() < count {
            let logits = self.logits(&next, next.len());
            let last = logits.last().unwrap();
            let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b]));
            chosen.push(best.unwrap() as u32);
            next = vec![*chosen.last().unwrap()];
        }
        chosen
    }
}

/// Logits as they are kept: f32, little endian, `[positions, vocab]`.
pub fn read_logits(path: &Path, vocab: usize) -> Vec<Vec<f32>> {
    let bytes = std::fs::read(path).unwrap();
    let numbers = bytes.as_chunks::<4>().0.iter();
    let values: Vec<f32> = numbers.map(|b| f32::from_le_bytes(*b)).collect();
    values.chunks_exact(vocab).map(<[f32]>::to_vec).collect()
}

/// The larger of two; not a number if the second is none, which `f64::max` would drop.
pub fn larger(most: f64, d: f64) -> f64 {
    if most.is_nan() || d <= most { most } else { d }
}

/// The relative L2 error and the largest error in units of the expected root mean square.
pub fn errors(actual: &[f32], expected: &[f32]) -> (f64, f64) {
    assert_eq!(actual.len(), expected.len());
    let difference = |(a, e): (&f32, &f32)| -> f64 { (f64::from(*a) - f64::from(*e)).abs() };
    let pairs = || actual.iter().zip(expected).map(difference);
    let norm = expected
        .iter()
        .map(|e| f64::from(*e).powi(2))
        .sum::<f64>()
        .sqrt();
    let relative = pairs().map(|d| d * d).sum::<f64>().sqrt() / norm;
    let largest = pairs().fold(0.0, larger);
    (relative, largest / norm * (expected.len() as f64).sqrt())
}
