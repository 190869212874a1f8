//! Vectors of tiny models made by Hugging Face transformers (`golden/embedders.py`), from folders and from GGUF.

mod support;

use std::collections::HashMap;

use neap_model::decoder::Repack;
use neap_model::embed::{EmbedError, Embedder, Pooling};
use neap_model::source::ModelSource;
use neap_model::tokenizer::{EncodeOptions, Tokenizer};
use serde::Deserialize;

use support::{PLAIN, Prompt, Setup, converted, decoder, fast, json, open};

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

fn folder(name: &str) -> ModelSource {
    open(&format!("embedders/{name}"))
}

fn file(name: &str) -> ModelSource {
    converted(&folder(name)).unwrap()
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
    let prompt = Prompt::read();
    for entry in json::<Manifest>("embedders.json").models {
        for (how, expected) in &entry.vectors {
            let pooling = Pooling::by_name(how).unwrap();
            let sources = [
                (folder(&entry.name), fast()),
                (folder(&entry.name), PLAIN),
                (file(&entry.name), fast()),
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
        let usual = Pooling::of(&folder(&entry.name)).unwrap();
        assert_eq!(Some(usual), Pooling::by_name(&entry.pooling));
    }
}

#[test]
fn vectors_are_cut_and_texts_refused() {
    let prompt = Prompt::read();
    let mut bert = embedder(folder("bert"), fast(), Pooling::Mean);
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
            [folder(name), file(name)].map(|source| Tokenizer::from_source(&source).unwrap());
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
    let prompt = Prompt::read();
    let run = |setup| {
        let mut bert = embedder(folder("bert"), setup, Pooling::Cls);
        bert.embed(&prompt.tokens, None).unwrap()
    };
    let mapped = Setup {
        repack: Repack::Never,
        threads: 1,
        ..fast()
    };
    assert_eq!(run(fast()), run(mapped));
}
