//! Vectors of tiny models made by Hugging Face transformers (`golden/embedders.py`), from folders and from GGUF.

mod support;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use neap_model::convert;
use neap_model::decoder::Repack;
use neap_model::embed::{EmbedError, Embedder, Pooling};
use neap_model::gguf::GgufFile;
use neap_model::source::ModelSource;
use neap_model::tokenizer::{EncodeOptions, Tokenizer};
use serde::Deserialize;

use support::{PLAIN, Setup, decoder, fast};

#[derive(Deserialize)]
struct Manifest {
    models: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    pooling: String,
    vectors: HashMap<String, Vec<f32>>,
}

#[derive(Deserialize)]
struct Prompt {
    tokens: Vec<u32>,
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn json<T: for<'a> Deserialize<'a>>(name: &str) -> T {
    let text = std::fs::read_to_string(golden().join(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn open(name: &str) -> ModelSource {
    ModelSource::open(golden().join("embedders").join(name)).unwrap()
}

fn converted(name: &str) -> ModelSource {
    let bytes = convert::to_gguf(&open(name), Vec::new(), &mut |_, _| {}).unwrap();
    ModelSource::from_gguf(GgufFile::from_vec("converted.gguf", bytes).unwrap()).unwrap()
}

fn embedder(source: ModelSource, setup: Setup, pooling: Pooling) -> Embedder {
    let (decoder, kv) = decoder(source, setup);
    Embedder::new(decoder, kv, pooling)
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
        products.sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Keys and values are rounded to f16, at most by one part in 2048 each: the cosine stays within 1e-5 of 1.
#[test]
fn vectors_are_those_of_transformers() {
    let prompt: Prompt = json("manifest.json");
    for entry in json::<Manifest>("embedders.json").models {
        for (how, expected) in &entry.vectors {
            let pooling = Pooling::by_name(how).unwrap();
            let sources = [
                (open(&entry.name), fast()),
                (open(&entry.name), PLAIN),
                (converted(&entry.name), fast()),
            ];
            for (source, setup) in sources {
                let mut embedder = embedder(source, setup, pooling);
                let vector = embedder.embed(&prompt.tokens, None).unwrap();
                let cosine = cosine(&vector, expected);
                println!(
                    "{:16} {how:4} 1 - cosine = {:.1e}",
                    entry.name,
                    1.0 - cosine
                );
                assert!(cosine > 0.999_99, "{} {how}: {cosine}", entry.name);
                let length: f32 = vector.iter().map(|v| v * v).sum();
                assert!((length - 1.0).abs() < 1e-5);
            }
        }
        let usual = Pooling::of(&open(&entry.name)).unwrap();
        assert_eq!(Some(usual), Pooling::by_name(&entry.pooling));
    }
}

#[test]
fn vectors_are_cut_and_texts_refused() {
    let prompt: Prompt = json("manifest.json");
    let mut bert = embedder(open("bert"), fast(), Pooling::Mean);
    let whole = bert.embed(&prompt.tokens, None).unwrap();
    let cut = bert.embed(&prompt.tokens, Some(8)).unwrap();
    assert_eq!((whole.len(), cut.len()), (36, 8));
    assert!((cosine(&whole[..8], &cut) - 1.0).abs() < 1e-6);
    assert!(matches!(bert.embed(&[], None), Err(EmbedError::Empty)));
    let long = bert.embed(&[5; 65], None);
    assert!(matches!(
        long,
        Err(EmbedError::TooLong {
            tokens: 65,
            most: 64
        })
    ));
    let wide = bert.embed(&prompt.tokens, Some(37));
    assert!(matches!(wide, Err(EmbedError::Dimensions { .. })));
    assert!(bert.embed(&[9999], None).is_err());
    // None of that left anything behind.
    assert_eq!(bert.embed(&prompt.tokens, None).unwrap(), whole);
}

#[test]
fn vocabularies_survive_converting() {
    for (name, first, last) in [("bert", 2, 3), ("xlm-roberta", 0, 2)] {
        let [a, b] =
            [open(name), converted(name)].map(|source| Tokenizer::from_source(&source).unwrap());
        for text in [
            "The hen, 12 henned eggs.",
            "grüße",
            "a\tb  c",
            "東",
            "  ﬁve ½ eggs ",
            "Ｈｅｎ…\u{200b}é",
        ] {
            let encode = |of: &Tokenizer| of.encode(text, EncodeOptions::default()).unwrap();
            let expected = encode(&a);
            assert_eq!(expected, encode(&b), "{name} {text}");
            assert_eq!((expected[0], *expected.last().unwrap()), (first, last));
        }
    }
}

/// Every token sees all others, whatever the threads and the layout of weights.
#[test]
fn encoders_give_the_same_bits_however_they_run() {
    let prompt: Prompt = json("manifest.json");
    let run = |setup| {
        let mut bert = embedder(open("bert"), setup, Pooling::Cls);
        bert.embed(&prompt.tokens, None).unwrap()
    };
    let mapped = Setup {
        repack: Repack::Never,
        threads: 1,
        ..fast()
    };
    assert_eq!(run(fast()), run(mapped));
}
