//! Logits of tiny classifiers made by Hugging Face transformers (`golden/classifiers.py`), one by one and together.

mod support;

use neap_model::classify::{Classifier, ClassifierError, ClassifierInput, Outcome};
use neap_model::convert::ConvertError;
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
    labels: Vec<String>,
    second: usize,
    one: Vec<f32>,
    pair: Vec<f32>,
    texts: [String; 2],
    tokens: Vec<u32>,
}

fn classifier(name: &str, setup: Setup) -> Classifier {
    of(open(&format!("classifiers/{name}")), setup)
}

fn of(source: ModelSource, setup: Setup) -> Classifier {
    let (decoder, kv) = decoder(source, setup);
    Classifier::new(decoder, kv).unwrap()
}

/// The model as a GGUF file, if one can mean the same.
fn as_file(name: &str) -> Result<ModelSource, ConvertError> {
    converted(&open(&format!("classifiers/{name}")))
}

/// Logits are of the order of 1; keys and values are rounded to f16, by one part in 2048 at most.
#[test]
fn logits_are_those_of_transformers() {
    let prompt = Prompt::read();
    for entry in json::<Manifest>("classifiers.json").models {
        let one = ClassifierInput {
            tokens: &prompt.tokens,
            second_segment: None,
        };
        let pair = ClassifierInput {
            second_segment: Some(entry.second),
            ..one
        };
        let from_folder = [fast(), PLAIN].map(|setup| classifier(&entry.name, setup));
        let from_file = as_file(&entry.name).map(|source| of(source, fast()));
        assert_eq!(from_file.is_ok(), entry.name != "modern-bert");
        for mut model in from_folder.into_iter().chain(from_file.ok()) {
            assert_eq!(model.labels(), entry.labels);
            // The step of the test takes 64 tokens: each is computed alone.
            let logits = model.logits(&[one, pair, one]).unwrap();
            for (got, expected) in logits.iter().zip([&entry.one, &entry.pair, &entry.one]) {
                assert_eq!(got.len(), expected.len());
                for (got, expected) in got.iter().zip(expected) {
                    println!("{:14} {got:.5} {expected:.5}", entry.name);
                    assert!((got - expected).abs() < 2e-3, "{got} {expected}");
                }
            }
        }
    }
    let cross = classifier("cross-encoder", fast());
    assert_eq!(cross.outcome(), Outcome::Sigmoid);
    assert_eq!(
        classifier("modern-bert", fast()).outcome(),
        Outcome::Softmax
    );
}

#[test]
fn two_texts_are_joined_as_the_tokenizer_was_made_to() {
    for entry in json::<Manifest>("classifiers.json").models {
        let [first, second] = &entry.texts;
        let folder = open(&format!("classifiers/{}", entry.name));
        for source in [Some(folder), as_file(&entry.name).ok()] {
            let Some(source) = source else { continue };
            let tokenizer = Tokenizer::from_source(&source).unwrap();
            let (tokens, second) = tokenizer.encode_pair(first, second).unwrap();
            assert_eq!(tokens, entry.tokens, "{}", source.path().display());
            // [CLS] t h e h e n s a t [SEP], or pieces that are not told apart.
            if let Some(second) = second {
                assert!(tokens[second - 1] < 4, "{tokens:?} {second}");
            }
        }
    }
}

#[test]
fn texts_together_give_the_same_bits_as_alone() {
    let texts: Vec<Vec<u32>> = [5, 12, 30, 1, 40, 18]
        .iter()
        .map(|&n| (0..n).map(|i| (i * 37 + n) % 260).collect())
        .collect();
    let input = |(index, tokens): (usize, &'static [u32])| ClassifierInput {
        tokens,
        second_segment: (index % 2 == 0).then_some(tokens.len() / 2),
    };
    let texts: &'static [Vec<u32>] = texts.leak();
    let inputs: Vec<_> = texts
        .iter()
        .map(Vec::as_slice)
        .enumerate()
        .map(input)
        .collect();
    for name in ["cross-encoder", "modern-bert", "xlm-roberta"] {
        let mut model = classifier(name, fast());
        let alone: Vec<_> = inputs
            .iter()
            .map(|one| model.logits(&[*one]).unwrap()[0].clone())
            .collect();
        assert_eq!(model.logits(&inputs).unwrap(), alone, "{name}");
    }
    for (name, pooling) in [
        ("bert", Pooling::Mean),
        ("modern-bert", Pooling::Cls),
        ("qwen3-embedding", Pooling::Last),
    ] {
        let (decoder, kv) = decoder(open(&format!("embedders/{name}")), fast());
        let mut model = Embedder::new(decoder, kv, pooling);
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let alone: Vec<_> = texts
            .iter()
            .map(|text| model.embed(text, None).unwrap())
            .collect();
        assert_eq!(model.embed_all(&texts, None).unwrap(), alone, "{name}");
    }
}

#[test]
fn what_is_no_classifier_or_too_long_is_refused() {
    let (decoder, kv) = decoder(open("embedders/bert"), fast());
    let why = Classifier::new(decoder, kv).err().unwrap();
    assert!(matches!(why, ClassifierError::NoHead { .. }), "{why}");
    let mut model = classifier("cross-encoder", fast());
    let input = |tokens| ClassifierInput {
        tokens,
        second_segment: None,
    };
    assert!(matches!(
        model.logits(&[input(&[])]),
        Err(EmbedError::Empty)
    ));
    let long = model.logits(&[input(&[1]), input(&[5; 65])]);
    assert!(matches!(
        long,
        Err(EmbedError::TooLong {
            tokens: 65,
            most: 64
        })
    ));
    let why = as_file("modern-bert").err().unwrap();
    assert!(
        matches!(&why, ConvertError::NotInGguf(reason) if reason.contains("mean of all rows")),
        "{why}"
    );
}

#[derive(Deserialize)]
struct Rerankers {
    query: String,
    tolerance: f32,
    pairs: Vec<Pair>,
}

#[derive(Deserialize)]
struct Pair {
    document: String,
    tokens: Vec<u32>,
    logit: f32,
}

/// A decoder with a head, as Qwen3-Reranker is published for it, beside `golden/rerankers.py`. A prompt is longer than a
/// step: its beginning is computed before its end.
#[test]
fn a_decoder_judges_pairs_by_its_last_token() {
    let expected: Rerankers = json("rerankers.json");
    let folder = || open("classifiers/qwen3-reranker");
    assert!(!folder().config().has_output);
    let file = converted(&folder()).unwrap();
    for (source, setup) in [(folder(), fast()), (folder(), PLAIN), (file, fast())] {
        let tokenizer = Tokenizer::from_source(&source).unwrap();
        let mut model = of(source, setup);
        assert_eq!(
            (model.outcome(), model.is_decoder()),
            (Outcome::Sigmoid, true)
        );
        let prompt = model.pair_prompt().unwrap();
        for pair in &expected.pairs {
            let options = EncodeOptions {
                add_bos: false,
                parse_special: true,
            };
            let text = prompt.text(&expected.query, &pair.document);
            let tokens = tokenizer.encode(&text, options).unwrap();
            assert_eq!(tokens, pair.tokens);
            let input = ClassifierInput {
                tokens: &tokens,
                second_segment: None,
            };
            let logits = model.logits(&[input]).unwrap();
            println!("{:?} {}", logits[0], pair.logit);
            assert!((logits[0][0] - pair.logit).abs() < expected.tolerance);
        }
    }
}
