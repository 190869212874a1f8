//! Every architecture: logits and greedy tokens of a tiny model made by Hugging Face transformers, from its folder and
//! from the GGUF file that it is converted to.
//!
//! `golden/architectures.py` makes the models and says what the tolerances mean.

mod support;

use std::path::PathBuf;

use neap_kernels::Isa;
use neap_kernels::format::WeightFormat;
use neap_model::decoder::Repack;
use neap_model::source::ModelSource;
use neap_model::tokenizer::{EncodeOptions, Tokenizer};
use serde::Deserialize;

use support::{
    PLAIN, Prompt, Runner, Setup, Tolerance, converted, errors, fast, golden, json, read_logits,
};

#[derive(Deserialize)]
struct Manifest {
    models: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    greedy: Vec<u32>,
    tolerance: Tolerance,
}

fn models() -> Vec<Entry> {
    json::<Manifest>("architectures.json").models
}

fn folder(entry: &Entry) -> PathBuf {
    golden().join("architectures").join(&entry.name)
}

fn from_folder(entry: &Entry) -> ModelSource {
    ModelSource::open(folder(entry)).unwrap()
}

/// What is wrong with a model's logits, if anything.
fn faults(entry: &Entry, kind: &str, source: ModelSource, setup: Setup) -> Option<String> {
    let prompt = Prompt::read();
    let mut runner = Runner::new(source, setup);
    let logits = runner.logits(&prompt.tokens, prompt.tokens.len());
    let expected = read_logits(&folder(entry).join("logits.f32"), runner.vocab);
    assert_eq!(expected.len(), prompt.positions.len());
    let mut worst = (0.0_f64, 0.0_f64);
    for (position, expected) in prompt.positions.iter().zip(&expected) {
        let (relative, largest) = errors(&logits[*position], expected);
        worst = (
            support::larger(worst.0, relative),
            support::larger(worst.1, largest),
        );
    }
    let tolerance = &entry.tolerance;
    let line = format!(
        "{:14} {kind:6} relative L2 {:.2e} (at most {:.2e}), largest {:.2e} (at most {:.2e})",
        entry.name, worst.0, tolerance.relative_l2, worst.1, tolerance.largest
    );
    println!("{line}");
    let chosen = runner.greedy(&prompt.tokens, entry.greedy.len());
    let within = worst.0 <= tolerance.relative_l2 && worst.1 <= tolerance.largest;
    match (within, chosen == entry.greedy) {
        (true, true) => None,
        (true, false) => Some(format!("{} {kind}: {chosen:?}", entry.name)),
        _ => Some(line),
    }
}

#[test]
fn folders_give_the_logits_of_transformers() {
    let mut failures = Vec::new();
    for entry in models() {
        failures.extend(faults(&entry, "folder", from_folder(&entry), fast()));
        failures.extend(faults(&entry, "plain", from_folder(&entry), PLAIN));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn converted_files_give_the_logits_of_transformers() {
    let mut failures = Vec::new();
    for entry in models() {
        // GGUF files know no such scaling.
        if entry.name == "llama-dynamic" {
            continue;
        }
        let source = converted(&from_folder(&entry)).unwrap();
        failures.extend(faults(&entry, "GGUF", source, fast()));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Neither chunks nor repacking nor threads change a bit, experts and windows among them.
#[test]
fn chunks_and_threads_change_nothing() {
    let prompt = Prompt::read();
    for entry in models() {
        let run = |setup: Setup, chunk: usize| {
            Runner::new(from_folder(&entry), setup).logits(&prompt.tokens, chunk)
        };
        let whole = run(fast(), prompt.tokens.len());
        let mapped = Setup {
            repack: Repack::Never,
            threads: 1,
            ..fast()
        };
        assert_eq!(whole, run(mapped, 7), "{}", entry.name);
        assert_eq!(whole, run(fast(), 1), "{}", entry.name);
    }
}

/// Blocks of a sequence that were trimmed, of how many, if trimming them behind the window changes no logits.
fn trimmed_blocks(name: &str, source: impl Fn() -> ModelSource) -> (usize, usize) {
    let mut tokens = Prompt::read().tokens;
    let len = source().config().context_length.min(100);
    let mut runner = Runner::new(source(), fast());
    tokens.extend(runner.greedy(&tokens, len - tokens.len()));
    let run = |setup: Setup, chunk: usize, trims: bool| {
        let mut runner = Runner::new(source(), setup);
        runner.trims = trims;
        let logits = runner.logits(&tokens, chunk);
        (logits, runner.blocks())
    };
    let (whole, _) = run(fast(), 40, false);
    let mut counts = (0, 0);
    for (setup, chunk) in [(fast(), 1), (fast(), 33), (PLAIN, 7)] {
        let (expected, _) = run(setup, 40, false);
        let (logits, blocks) = run(setup, chunk, true);
        assert!(logits == expected, "{name} in chunks of {chunk}");
        assert!(setup.isa != fast().isa || expected == whole);
        counts = blocks;
    }
    counts
}

/// Nothing reads what is behind the window, so nothing changes without it.
#[test]
fn trimmed_blocks_change_nothing() {
    let mut trimmed_models = Vec::new();
    for entry in models() {
        let (blocks, trimmed) = trimmed_blocks(&entry.name, || from_folder(&entry));
        if trimmed > 0 {
            // The window is 9 tokens.
            assert_eq!((blocks, trimmed), (4, 2), "{}", entry.name);
            trimmed_models.push(entry.name);
        }
    }
    // A block of Mistral's is one page here: there is nothing to give back.
    assert_eq!(trimmed_models, ["gemma2", "gemma3"]);
}

/// As Mistral has it, in blocks of more pages than one.
#[test]
fn trimmed_blocks_change_nothing_where_all_layers_have_a_window() {
    let entry = models().into_iter().find(|m| m.name == "gemma2").unwrap();
    let source = || {
        let all = |mut config: serde_json::Value| {
            config["layer_types"] = vec!["sliding_attention"; 3].into();
            config
        };
        published_as(&entry, str::to_owned, all)
    };
    let kinds = source().config().layer_kinds.clone();
    assert!(kinds.iter().all(|kind| kind.window));
    assert_eq!(trimmed_blocks("all windowed", source), (4, 2));
}

#[test]
fn converted_tokenizers_give_the_same_tokens() {
    let entry = models().into_iter().find(|m| m.name == "qwen3").unwrap();
    let source = from_folder(&entry);
    let file = converted(&source).unwrap();
    let (a, b) = (
        Tokenizer::from_source(&source).unwrap(),
        Tokenizer::from_source(&file).unwrap(),
    );
    for text in [
        "the hen and her, 12 eggs",
        " \n\t grüße 東京 🎉",
        "<|end_of_text|>x",
    ] {
        for parse_special in [false, true] {
            let options = EncodeOptions {
                add_bos: true,
                parse_special,
            };
            let expected = a.encode(text, options).unwrap();
            assert_eq!(expected, b.encode(text, options).unwrap(), "{text}");
        }
    }
    assert_eq!((a.bos(), a.eos()), (b.bos(), b.eos()));
}

/// Quantizing as the folder is read, and converting with it, are the same model; and it is near the one it was.
#[test]
fn quantizing_on_load_is_what_converting_gives() {
    let prompt = Prompt::read();
    for (name, format, most) in [
        ("smollm3", WeightFormat::Q8_0, 0.15),
        ("smollm3", WeightFormat::Q4_0, 0.6),
        ("mixtral", WeightFormat::Q8_0, 0.2),
    ] {
        let entry = models().into_iter().find(|m| m.name == name).unwrap();
        let mut source = from_folder(&entry);
        let before = source.weight_bytes();
        source.set_quantize(format);
        assert!(source.weight_bytes() < before * 3 / 4);
        let file = converted(&source).unwrap();
        let run = |source, repack| {
            let setup = Setup {
                repack,
                threads: 1,
                isa: Isa::best(),
            };
            Runner::new(source, setup).logits(&prompt.tokens, 40)
        };
        let loaded = run(source, Repack::Never);
        let mut again = from_folder(&entry);
        again.set_quantize(format);
        assert_eq!(loaded, run(again, Repack::Always), "{name} {format}");
        let from_file = run(file, Repack::Always);
        let exact = run(from_folder(&entry), Repack::Never);
        for ((loaded, file), exact) in loaded.iter().zip(&from_file).zip(&exact) {
            // Rows of queries and keys are in another order in the file, so sums may round otherwise.
            assert!(errors(file, loaded).0 < 1e-3, "{name} {format}");
            let (relative, _) = errors(loaded, exact);
            assert!(relative < most, "{name} {format}: {relative}");
        }
    }
}

/// A golden folder as it would be published otherwise: with other names of tensors, and another `config.json`.
fn published_as(
    entry: &Entry,
    rename: impl Fn(&str) -> String,
    config: impl Fn(serde_json::Value) -> serde_json::Value,
) -> ModelSource {
    let weights = std::fs::read(folder(entry).join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let tensors: serde_json::Map<_, _> = serde_json::from_slice(&weights[8..8 + header]).unwrap();
    let renamed = tensors
        .into_iter()
        .filter(|(name, _)| name != "__metadata__")
        .map(|(name, tensor)| (rename(&name), tensor));
    let text = serde_json::Value::Object(renamed.collect()).to_string();
    let length = (text.len() as u64).to_le_bytes();
    let weights = [&length[..], text.as_bytes(), &weights[8 + header..]].concat();
    let json = std::fs::read(folder(entry).join("config.json")).unwrap();
    let json = config(serde_json::from_slice(&json).unwrap()).to_string();
    let folder = neap_model::safetensors::HfFolder::from_vecs("f", json.into_bytes(), weights);
    ModelSource::from_folder(folder.unwrap()).unwrap()
}

#[test]
fn names_without_their_prefix_are_found() {
    let entry = models().into_iter().find(|m| m.name == "qwen3").unwrap();
    let bare = |name: &str| name.strip_prefix("model.").unwrap_or(name).to_owned();
    let source = published_as(&entry, bare, |config| config);
    assert!(faults(&entry, "inner", source, fast()).is_none());
}

/// Gemma 3 from 4 billion parameters on, and Mistral Small 3, are published with an encoder for images.
#[test]
fn the_part_for_text_of_a_model_with_more_parts_is_found() {
    for (name, outer) in [("gemma3", "gemma3"), ("mistral", "mistral3")] {
        let entry = models().into_iter().find(|m| m.name == name).unwrap();
        for prefix in ["language_model.model.", "model.language_model."] {
            let moved = |name: &str| match name.strip_prefix("model.") {
                Some(rest) => format!("{prefix}{rest}"),
                None if prefix.starts_with("language_model") => format!("language_model.{name}"),
                None => name.to_owned(),
            };
            let whole = |mut text: serde_json::Value| {
                let eos = text.as_object_mut().unwrap().remove("eos_token_id");
                // Newer files say it of the whole, and their parts have their own defaults.
                let tied = text["tie_word_embeddings"].as_bool().unwrap();
                text["tie_word_embeddings"] = (!tied).into();
                // What files of Gemma 3 leave to the library's defaults.
                for field in ["hidden_activation", "rms_norm_eps"] {
                    text.as_object_mut()
                        .unwrap()
                        .retain(|key, _| name != "gemma3" || key != field);
                }
                serde_json::json!({
                    "model_type": outer, "eos_token_id": eos, "tie_word_embeddings": tied, "text_config": text,
                    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
                })
            };
            let source = published_as(&entry, moved, whole);
            assert_eq!(source.config().eos, [257], "{name}");
            assert!(faults(&entry, "part", source, fast()).is_none(), "{name}");
        }
    }
}
