//! Logits and greedy tokens of tiny models against an independent implementation.
//!
//! `golden/README.md` says how the models and their logits were made, and what the tolerances mean.

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use neap_model::decoder::Repack;
use neap_model::source::ModelSource;
use serde::Deserialize;

use support::{PLAIN, Runner, Setup, errors, fast, read_logits};

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

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn manifest() -> Manifest {
    let text = std::fs::read_to_string(folder().join("manifest.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn runner(entry: &Entry, setup: Setup) -> Runner {
    let runner = Runner::new(
        ModelSource::open(folder().join(&entry.file)).unwrap(),
        setup,
    );
    assert_eq!(runner.vocab, entry.vocab);
    runner
}

fn golden(entry: &Entry) -> Vec<Vec<f32>> {
    read_logits(&folder().join(&entry.logits), entry.vocab)
}

fn compare(setup: Setup) {
    let manifest = manifest();
    let mut failures = Vec::new();
    for entry in &manifest.models {
        let logits = runner(entry, setup).logits(&manifest.tokens, manifest.tokens.len());
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
        let mut runner = runner(entry, fast());
        let chosen = runner.greedy(&manifest.tokens, entry.greedy.len());
        assert_eq!(chosen, entry.greedy, "{}", entry.name);
    }
}

/// Neither the chunks, nor the threads, nor repacking change a single bit.
#[test]
fn chunks_threads_and_panels_change_nothing() {
    let manifest = manifest();
    for entry in &manifest.models {
        let whole = runner(entry, fast()).logits(&manifest.tokens, manifest.tokens.len());
        for chunk in [1, 7, 33] {
            let chunked = runner(entry, fast()).logits(&manifest.tokens, chunk);
            assert_eq!(whole, chunked, "{} in chunks of {chunk}", entry.name);
        }
        let mapped = Setup {
            repack: Repack::Never,
            threads: 1,
            ..fast()
        };
        let mapped = runner(entry, mapped).logits(&manifest.tokens, 40);
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
