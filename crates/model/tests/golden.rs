//! Logits and greedy tokens of tiny models against an independent implementation.
//!
//! `golden/README.md` says how the models and their logits were made, and what the tolerances mean.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use neap_kernels::{Isa, ThreadPool};
use neap_memory::{BlockTable, Budget, KvPool};
use neap_model::decoder::{
    BLOCK_TOKENS, CpuDecoder, Decoder, DecoderLimits, LoadOptions, LogitsWanted, Model, Repack,
    SequenceChunk, kv_block_bytes,
};
use neap_model::source::ModelSource;
use serde::Deserialize;

#[derive(Deserialize)]
struct Manifest {
    tokens: Vec<u32>,
    positions: Vec<usize>,
    models: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    file: PathBuf,
    logits: PathBuf,
    vocab: usize,
    greedy: Vec<u32>,
    tolerance: Tolerance,
}

#[derive(Deserialize)]
struct Tolerance {
    /// Of the root mean square of a position's error, in that of its logits.
    relative_l2: f64,
    /// Of the largest error of a position, in the same unit.
    largest: f64,
}

/// How a model is run.
#[derive(Clone, Copy, Debug)]
struct Setup {
    repack: Repack,
    isa: Isa,
    threads: usize,
}

const PLAIN: Setup = Setup {
    repack: Repack::Never,
    isa: Isa::Scalar,
    threads: 1,
};

fn fast() -> Setup {
    Setup {
        repack: Repack::Always,
        isa: Isa::best(),
        threads: 2,
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn manifest() -> Manifest {
    let text = std::fs::read_to_string(folder().join("manifest.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// A decoder with room for every token of a test, and an empty block table.
struct Runner {
    decoder: CpuDecoder,
    table: BlockTable,
    vocab: usize,
}

impl Runner {
    fn new(entry: &Entry, setup: Setup) -> Self {
        let budget = Budget::new(64 << 20);
        let pool = Arc::new(ThreadPool::new(setup.threads));
        let source = Arc::new(ModelSource::open(folder().join(&entry.file)).unwrap());
        let block_bytes = kv_block_bytes(source.config()).unwrap();
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
        assert_eq!(decoder.vocab_size(), entry.vocab);
        let table = BlockTable::new(&KvPool::new(&budget, block_bytes, BLOCK_TOKENS));
        Self {
            decoder,
            table,
            vocab: entry.vocab,
        }
    }

    /// The logits of every token, fed `chunk` at a time.
    fn logits(&mut self, tokens: &[u32], chunk: usize) -> Vec<Vec<f32>> {
        let mut rows = Vec::new();
        for tokens in tokens.chunks(chunk) {
            self.table.reserve(tokens.len()).unwrap();
            let mut batch = [SequenceChunk {
                tokens,
                table: &mut self.table,
                logits: LogitsWanted::All,
            }];
            let logits = self.decoder.forward(&mut batch).unwrap();
            rows.extend(logits.chunks_exact(self.vocab).map(<[f32]>::to_vec));
        }
        rows
    }
}

fn golden(entry: &Entry) -> Vec<Vec<f32>> {
    let bytes = std::fs::read(folder().join(&entry.logits)).unwrap();
    let values: Vec<f32> = bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect();
    values
        .chunks_exact(entry.vocab)
        .map(<[f32]>::to_vec)
        .collect()
}

/// The relative L2 error and the largest error in units of the expected root mean square.
fn errors(actual: &[f32], expected: &[f32]) -> (f64, f64) {
    assert_eq!(actual.len(), expected.len());
    let difference = |(a, e): (&f32, &f32)| -> f64 { (f64::from(*a) - f64::from(*e)).abs() };
    let pairs = || actual.iter().zip(expected).map(difference);
    let norm = expected
        .iter()
        .map(|e| f64::from(*e).powi(2))
        .sum::<f64>()
        .sqrt();
    let relative = pairs().map(|d| d * d).sum::<f64>().sqrt() / norm;
    // `f64::max` would drop a NaN.
    let larger = |most: f64, d: f64| if most.is_nan() || d <= most { most } else { d };
    let largest = pairs().fold(0.0, larger);
    (relative, largest / norm * (expected.len() as f64).sqrt())
}

fn compare(setup: Setup) {
    let manifest = manifest();
    let mut failures = Vec::new();
    for entry in &manifest.models {
        let logits = Runner::new(entry, setup).logits(&manifest.tokens, manifest.tokens.len());
        let expected = golden(entry);
        assert_eq!(expected.len(), manifest.positions.len());
        let mut worst = (0.0_f64, 0.0_f64);
        for (position, expected) in manifest.positions.iter().zip(&expected) {
            let (relative, largest) = errors(&logits[*position], expected);
            worst = (worst.0.max(relative), worst.1.max(largest));
            let tolerance = &entry.tolerance;
            let within = relative <= tolerance.relative_l2 && largest <= tolerance.largest;
            if !within {
                failures.push(format!(
                    "{} at position {position}: relative L2 {relative:.2e} of {:.2e}, largest {largest:.2e} of {:.2e}",
                    entry.name, tolerance.relative_l2, tolerance.largest
                ));
            }
        }
        println!(
            "{:12} relative L2 {:.2e} (at most {:.2e}), largest {:.2e} (at most {:.2e})",
            entry.name, worst.0, entry.tolerance.relative_l2, worst.1, entry.tolerance.largest
        );
    }
    assert!(failures.is_empty(), "{setup:?}\n{}", failures.join("\n"));
}

#[test]
fn logits_of_the_plain_path() {
    compare(PLAIN);
}

#[test]
fn logits_of_the_fast_path() {
    compare(fast());
}

#[test]
fn greedy_tokens() {
    let manifest = manifest();
    for entry in &manifest.models {
        let mut runner = Runner::new(entry, fast());
        let mut next = manifest.tokens.clone();
        let mut chosen = Vec::new();
        while chosen.len() < entry.greedy.len() {
            let logits = runner.logits(&next, next.len());
            let last = logits.last().unwrap();
            let best = (0..entry.vocab).max_by(|a, b| last[*a].total_cmp(&last[*b]));
            chosen.push(best.unwrap() as u32);
            next = vec![*chosen.last().unwrap()];
        }
        assert_eq!(chosen, entry.greedy, "{}", entry.name);
    }
}

/// Neither the chunks, nor the threads, nor repacking change a single bit.
#[test]
fn chunks_threads_and_panels_change_nothing() {
    let manifest = manifest();
    for entry in &manifest.models {
        let whole = Runner::new(entry, fast()).logits(&manifest.tokens, manifest.tokens.len());
        for chunk in [1, 7, 33] {
            let chunked = Runner::new(entry, fast()).logits(&manifest.tokens, chunk);
            assert_eq!(whole, chunked, "{} in chunks of {chunk}", entry.name);
        }
        let mapped = Setup {
            repack: Repack::Never,
            threads: 1,
            ..fast()
        };
        let mapped = Runner::new(entry, mapped).logits(&manifest.tokens, 40);
        assert_eq!(whole, mapped, "{} mapped, on one thread", entry.name);
    }
}

#[test]
fn the_manifest_names_every_file() {
    let listed: BTreeSet<PathBuf> = manifest()
        .models
        .iter()
        .map(|m| folder().join(&m.file))
        .collect();
    let present = std::fs::read_dir(folder().join("models")).unwrap();
    let present: BTreeSet<PathBuf> = present.map(|file| file.unwrap().path()).collect();
    assert_eq!(listed, present);
}

#[test]
fn an_error_of_nan_is_not_within_any_tolerance() {
    for actual in [[1.0, f32::NAN], [f32::NAN, 2.0]] {
        let (relative, largest) = errors(&actual, &[1.0, 2.0]);
        assert!(relative.is_nan() && largest.is_nan());
    }
}
