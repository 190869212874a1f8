//! Adapters made by Hugging Face PEFT (`golden/adapters.py`): logits on models in folders and in GGUF files, rows of one
//! batch with different adapters, and what is refused.

mod support;

use std::path::{Path, PathBuf};

use neap_kernels::Isa;
use neap_memory::{BlockTable, Budget, ChargeKind, KvPool};
use neap_model::adapter::{Adapter, AdapterError, AdapterFile};
use neap_model::decoder::{CpuDecoder, Decoder, LogitsWanted, Repack, SequenceChunk};
use neap_model::source::ModelSource;
use serde::Deserialize;
use serde_json::{Value, json};

use support::{
    PLAIN, Prompt, Setup, Tolerance, converted, decoder, errors, fast, golden, open, read_logits,
};

#[derive(Deserialize)]
struct Manifest {
    models: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    /// How far the adapter moves the logits.
    moves: f64,
    tolerance: Tolerance,
}

fn base(name: &str) -> ModelSource {
    open(&format!("architectures/{name}"))
}

fn base_file(name: &str) -> ModelSource {
    converted(&base(name)).unwrap()
}

fn adapter_path(name: &str) -> PathBuf {
    golden().join("adapters").join(name)
}

fn roomy() -> Budget {
    Budget::new(64 << 20)
}

fn loaded(path: &Path, source: &ModelSource) -> Adapter {
    AdapterFile::open(path, source)
        .unwrap()
        .load(&roomy())
        .unwrap()
}

/// The logits of all `tokens`, `chunk` at a time.
fn logits(
    (decoder, kv): &mut (CpuDecoder, KvPool),
    adapter: Option<&Adapter>,
    tokens: &[u32],
    chunk: usize,
) -> Vec<Vec<f32>> {
    let mut table = BlockTable::new(kv);
    let mut rows = Vec::new();
    for tokens in tokens.chunks(chunk) {
        table.reserve(tokens.len()).unwrap();
        let mut batch = [SequenceChunk {
            tokens,
            table: &mut table,
            logits: LogitsWanted::All,
            adapter,
            second_segment: None,
        }];
        let vocab = decoder.vocab_size();
        let logits = decoder.forward(&mut batch).unwrap();
        rows.extend(logits.chunks_exact(vocab).map(<[f32]>::to_vec));
    }
    rows
}

/// What is wrong with a model's logits with an adapter, if anything.
fn fault(entry: &Entry, source: ModelSource, path: &Path, setup: Setup) -> Option<String> {
    let prompt = Prompt::read();
    let adapter = loaded(path, &source);
    let vocab = source.config().vocab_size;
    let mut parts = decoder(source, setup);
    let logits = logits(&mut parts, Some(&adapter), &prompt.tokens, 64);
    let expected = read_logits(&adapter_path(&entry.name).join("logits.f32"), vocab);
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
        "{:14} relative L2 {:.2e} (at most {:.2e}), largest {:.2e} (at most {:.2e}), moved by {:.2e}",
        entry.name, worst.0, tolerance.relative_l2, worst.1, tolerance.largest, entry.moves
    );
    println!("{line}");
    assert!(entry.moves > 20.0 * tolerance.relative_l2, "it matters");
    let within = worst.0 <= tolerance.relative_l2 && worst.1 <= tolerance.largest;
    (!within).then_some(line)
}

#[test]
fn logits_are_those_of_peft() {
    let mut failures = Vec::new();
    for entry in &support::json::<Manifest>("adapters.json").models {
        let path = adapter_path(&entry.name);
        failures.extend(fault(entry, base(&entry.name), &path, fast()));
        failures.extend(fault(entry, base(&entry.name), &path, PLAIN));
        failures.extend(fault(entry, base_file(&entry.name), &path, fast()));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn gguf_adapters_give_the_same() {
    let entries = support::json::<Manifest>("adapters.json").models;
    let entry = entries.iter().find(|e| e.name == "llama-biases").unwrap();
    let path = adapter_path("llama-biases").join("adapter.gguf");
    for source in [base(&entry.name), base_file(&entry.name)] {
        assert_eq!(fault(entry, source, &path, fast()), None);
    }
}

fn bits(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    let bits = |row: &Vec<f32>| row.iter().map(|v| v.to_bits()).collect();
    rows.iter().map(bits).collect()
}

/// Whatever the chunks, the threads, the instruction set's own best, and the neighbours.
#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    let source = || base("qwen3");
    let first = loaded(&adapter_path("qwen3"), &source());
    let other = scratch();
    write_adapter(&other, &json!({}), |tensors| {
        for (_, shape, values) in tensors {
            values.clear();
            let count: usize = shape.iter().product();
            values.extend((0..count).map(|i| (i % 7) as f32 * 0.1 - 0.3));
        }
    });
    let second = loaded(&other, &source());
    let adapters = [None, Some(&first), Some(&second), Some(&first), None];
    let prompts: Vec<Vec<u32>> = (0..5_u32)
        .map(|n| (0..=n * 7).map(|i| (i * 31 + n) % 250).collect())
        .collect();
    let mut parts = decoder(source(), fast());
    let alone: Vec<_> = prompts
        .iter()
        .zip(adapters)
        .map(|(prompt, adapter)| bits(&logits(&mut parts, adapter, prompt, 5)))
        .collect();
    let plain = logits(&mut parts, None, &prompts[4], 64);
    let adapted = logits(&mut parts, Some(&second), &prompts[4], 64);
    assert_ne!(bits(&plain), bits(&adapted));
    for setup in [
        fast(),
        Setup {
            threads: 1,
            ..fast()
        },
        Setup {
            repack: Repack::Never,
            ..fast()
        },
    ] {
        let (mut decoder, kv) = decoder(source(), setup);
        let mut tables: Vec<BlockTable> = prompts.iter().map(|_| BlockTable::new(&kv)).collect();
        let mut batch = Vec::new();
        for ((table, prompt), adapter) in tables.iter_mut().zip(&prompts).zip(adapters) {
            table.reserve(prompt.len()).unwrap();
            batch.push(SequenceChunk {
                tokens: prompt,
                table,
                logits: LogitsWanted::Last,
                adapter,
                second_segment: None,
            });
        }
        // More tokens than one step takes.
        let (head, tail) = batch.split_at_mut(3);
        let vocab = decoder.vocab_size();
        let mut together = Vec::new();
        for batch in [head, tail] {
            let rows = decoder.forward(batch).unwrap();
            together.extend(rows.chunks_exact(vocab).map(<[f32]>::to_vec));
        }
        for (row, alone) in bits(&together).iter().zip(&alone) {
            assert!(row == alone.last().unwrap(), "bit for bit");
        }
    }
}

#[test]
fn instruction_sets_agree() {
    let prompt = Prompt::read();
    let source = || base("llama-biases");
    let adapter = loaded(&adapter_path("llama-biases"), &source());
    let run = |isa| {
        let setup = Setup { isa, ..fast() };
        bits(&logits(
            &mut decoder(source(), setup),
            Some(&adapter),
            &prompt.tokens,
            64,
        ))
    };
    // All of the model is in BF16, whose products are the same on every instruction set.
    let expected = run(Isa::Scalar);
    for isa in Isa::available() {
        let differs = run(isa)
            .iter()
            .flatten()
            .zip(expected.iter().flatten())
            .map(|(a, b)| (f32::from_bits(*a) - f32::from_bits(*b)).abs())
            .fold(0.0, f32::max);
        assert!(differs < 1e-4, "{isa}: {differs}");
    }
}

#[test]
fn weights_are_charged_as_foretold() {
    let source = base("qwen3");
    let file = AdapterFile::open(adapter_path("qwen3"), &source).unwrap();
    let budget = Budget::new(file.charged_bytes());
    let adapter = file.load(&budget).unwrap();
    assert_eq!(adapter.charged_bytes(), file.charged_bytes());
    assert_eq!(
        budget.snapshot().of_kind(ChargeKind::Adapters),
        file.charged_bytes()
    );
    assert!(matches!(
        file.load(&budget),
        Err(AdapterError::OverBudget(_))
    ));
    drop(adapter);
    assert_eq!(budget.charged(), 0);
    file.load(&budget).unwrap();
}

/// A folder that goes with the test.
fn scratch() -> PathBuf {
    tempfile::tempdir().unwrap().keep()
}

type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

/// An adapter for qwen3's first query matrix of rank 2, changed by `config` and `change`.
fn write_adapter(folder: &Path, config: &Value, change: impl FnOnce(&mut Tensors)) {
    let module = "base_model.model.model.layers.0.self_attn.q_proj";
    let mut tensors: Tensors = vec![
        (
            format!("{module}.lora_A.weight"),
            vec![2, 36],
            vec![0.5; 72],
        ),
        (
            format!("{module}.lora_B.weight"),
            vec![60, 2],
            vec![0.25; 120],
        ),
    ];
    change(&mut tensors);
    let mut whole = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"});
    for (key, value) in config.as_object().unwrap() {
        whole[key] = value.clone();
    }
    std::fs::write(folder.join("adapter_config.json"), whole.to_string()).unwrap();
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, shape, values)| {
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            (name, shape, bytes)
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (name.as_str(), view.unwrap())
    });
    let file = safetensors::serialize(views, None).unwrap();
    std::fs::write(folder.join("adapter_model.safetensors"), file).unwrap();
}

/// The message with which an adapter is refused.
fn refusal(config: &Value, change: impl FnOnce(&mut Tensors)) -> String {
    let folder = scratch();
    write_adapter(&folder, config, change);
    let why = AdapterFile::open(&folder, &base("qwen3"))
        .unwrap_err()
        .to_string();
    std::fs::remove_dir_all(folder).unwrap();
    why
}

#[test]
fn bad_configurations_are_refused_by_name() {
    for (config, named) in [
        (json!({"peft_type": "IA3"}), "peft_type"),
        (json!({"use_dora": true}), "use_dora"),
        (json!({"modules_to_save": ["lm_head"]}), "modules_to_save"),
        (json!({"bias": "all"}), "bias"),
        (json!({"r": 0}), "r: must be"),
        (
            json!({"r": 4}),
            "has the rank 2, adapter_config.json says 4",
        ),
        (json!({"rank_pattern": {"q_(": 2}}), "rank_pattern"),
        (json!({"lora_alpha": "x"}), "JSON"),
    ] {
        let why = refusal(&config, |_| {});
        assert!(why.contains(named), "{why} should name {named}");
    }
}

/// Names a tensor of every module otherwise.
fn renamed(tensors: &mut Tensors, from: &str, to: &str) {
    tensors.iter_mut().for_each(|t| t.0 = t.0.replace(from, to));
}

#[test]
fn bad_tensors_are_refused_by_name() {
    for (change, named) in [
        (
            |t| t[0].1 = vec![2, 18],
            "lora_A.weight': has the shape [2, 18]",
        ),
        (
            |t| t[1].1 = vec![30, 4],
            "lora_B.weight': has the shape [30, 4]",
        ),
        (|t| t[1].2[7] = f32::NAN, "is not a finite number"),
        (|t| drop(t.pop()), "has no partner"),
        (|t| t[1].0.push('x'), "neither the A nor the B"),
        (|t| renamed(t, "q_proj", "w_proj"), "w_proj"),
        (|t| renamed(t, "layers.0", "layers.9"), "layers.9"),
        (|t| t[0].1 = vec![513, 36], "has the rank 513"),
    ] as [(fn(&mut Tensors), &str); 8]
    {
        let why = refusal(&json!({}), |tensors| {
            change(tensors);
            for (_, shape, values) in tensors {
                values.resize(shape.iter().product(), 0.5);
            }
        });
        assert!(why.contains(named), "{why} should name {named}");
    }
}

/// PEFT saves the model's own output matrix beside an adapter of it.
#[test]
fn a_copy_of_the_output_matrix_is_no_part_of_the_adapter() {
    let name = "base_model.model.lm_head.base_layer.weight";
    let folder = scratch();
    let with = |shape: Vec<usize>| {
        let values = vec![0.0; shape.iter().product()];
        write_adapter(&folder, &json!({}), |t| {
            t.push((name.to_owned(), shape, values))
        });
        AdapterFile::open(&folder, &base("qwen3")).map(|file| file.charged_bytes())
    };
    assert!(with(vec![267, 36]).is_ok());
    let why = with(vec![268, 36]).unwrap_err().to_string();
    assert!(why.contains(name), "{why}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn files_that_are_cut_off_changed_or_of_another_model_are_refused() {
    let folder = scratch();
    write_adapter(&folder, &json!({}), |_| {});
    let source = base("qwen3");
    let file = AdapterFile::open(&folder, &source).unwrap();
    let weights = folder.join("adapter_model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    for len in [0, 7, 40, whole.len() - 1] {
        std::fs::write(&weights, &whole[..len]).unwrap();
        let why = AdapterFile::open(&folder, &source).unwrap_err().to_string();
        assert!(why.contains("adapter_model.safetensors"), "{why}");
        assert!(file.load(&roomy()).is_err());
    }
    let mut changed = whole.clone();
    *changed.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, &changed).unwrap();
    let why = file.load(&roomy()).unwrap_err().to_string();
    assert!(why.contains("has changed since"), "{why}");
    std::fs::remove_file(&weights).unwrap();
    assert!(matches!(file.load(&roomy()), Err(AdapterError::File(_))));
    std::fs::remove_dir_all(folder).unwrap();
    let other = AdapterFile::open(adapter_path("gpt2"), &source)
        .unwrap_err()
        .to_string();
    assert!(other.contains("adapts \"transformer.h.0"), "{other}");
    let gguf = adapter_path("llama-biases").join("adapter.gguf");
    let other = AdapterFile::open(&gguf, &source).unwrap_err().to_string();
    assert!(other.contains("general.architecture"), "{other}");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/neap-tiny.gguf");
    let no_adapter = AdapterFile::open(model, &source).unwrap_err().to_string();
    assert!(no_adapter.contains("general.type"), "{no_adapter}");
}
