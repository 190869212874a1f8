//! Training the shipped model.

use std::path::PathBuf;
use std::sync::Arc;

use neap_kernels::{Isa, ThreadPool};
use neap_memory::{BlockTable, Budget, KvPool};
use neap_model::chat::ChatTemplate;
use neap_model::decoder::{
    self, CpuDecoder, Decoder, DecoderLimits, LoadOptions, LogitsWanted, Model, Repack,
    SequenceChunk,
};
use neap_model::source::ModelSource;
use neap_model::tokenizer::Tokenizer;
use neap_tune::{Example, Options, Reader, Run, Target, Trainer, TuneError};

fn shipped() -> ModelSource {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/neap-tiny.gguf");
    ModelSource::open(path).expect("the shipped model")
}

fn options() -> Options {
    Options {
        targets: Target::ALL.to_vec(),
        rank: 4,
        alpha: 8.0,
        learning_rate: 5e-3,
        epochs: 10,
        batch_tokens: 128,
        max_tokens: 64,
        save_every: 4,
        seed: 3,
    }
}

fn examples(source: &ModelSource) -> Vec<Example> {
    let tokenizer = Tokenizer::from_source(source).expect("a tokenizer");
    let template = ChatTemplate::from_source(source, &tokenizer).expect("a template");
    let mut reader = Reader {
        tokenizer: &tokenizer,
        template: &template,
        max_tokens: 64,
        left_out: 0,
    };
    let animals = ["cat", "dog", "bird", "fox", "cow", "hen", "bee", "pig"];
    let lines: Vec<String> = animals
        .iter()
        .map(|name| format!(r#"{{"prompt": "The {name} says", "completion": " zim zam {name}."}}"#))
        .collect();
    reader.json_lines(&lines.join("\n")).expect("examples")
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("neap-tune-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    folder
}

/// The last file of an adapter, byte for byte.
fn adapter(folder: &std::path::Path) -> Vec<u8> {
    std::fs::read(folder.join("adapter_model.safetensors")).expect("an adapter")
}

#[test]
fn logits_are_those_of_the_engine() {
    let source = Arc::new(shipped());
    let tokens: Vec<u32> = (0..40).map(|i| 300 + i * 37 % 1500).collect();
    let trained = Trainer::new(&source, &options()).expect("a trainer");
    let trained = trained.logits(&tokens).expect("logits");

    let budget = Budget::new(1 << 30);
    let pool = Arc::new(ThreadPool::new(1));
    let load = LoadOptions {
        repack: Repack::Never,
        reserve_bytes: 0,
        pool: &pool,
        isa: Isa::best(),
        progress: &mut |_| {},
    };
    let model = Arc::new(Model::load(Arc::clone(&source), &budget, load).expect("a model"));
    let limits = DecoderLimits {
        batch_tokens: 64,
        logit_rows: 64,
    };
    let mut decoder =
        CpuDecoder::new(model, Arc::clone(&pool), Isa::best(), limits, &budget).expect("a decoder");
    let block_bytes = decoder::kv_block_bytes(source.config()).expect("a layout");
    let kv = KvPool::new(&budget, block_bytes, decoder::BLOCK_TOKENS);
    let mut table = BlockTable::new(&kv);
    table.reserve(tokens.len()).expect("room");
    let chunk = SequenceChunk {
        tokens: &tokens,
        table: &mut table,
        logits: LogitsWanted::All,
        adapter: None,
        second_segment: None,
    };
    let computed = decoder.forward(&mut [chunk]).expect("logits");
    let vocab = source.config().vocab_size;
    for (place, (ours, theirs)) in trained.iter().zip(computed.chunks_exact(vocab)).enumerate() {
        let size = theirs.iter().map(|x| x * x).sum::<f32>().sqrt();
        let apart = ours
            .iter()
            .zip(theirs)
            .map(|(a, b)| (a - b) * (a - b))
            .sum::<f32>()
            .sqrt();
        // Keys and values are f16 in the engine.
        assert!(apart <= 2e-3 * size, "place {place}: {apart} of {size}");
    }
}

#[test]
fn a_run_that_was_stopped_ends_as_one_that_was_not() {
    let (source, options) = (shipped(), options());
    let examples = examples(&source);
    let (whole, parts) = (folder("whole"), folder("parts"));
    let open = |folder: &std::path::Path| {
        Run::open(
            folder,
            &source,
            "neap-tiny",
            (&examples, &examples[..2]),
            options.clone(),
        )
    };
    let mut run = open(&whole).expect("a run");
    run.train(&mut |_, _| true).expect("trained");
    let first = run.held_out()[0].1;
    let (steps, last) = *run.held_out().last().expect("measured");
    assert!(
        steps >= 10 && last < 0.2 * first,
        "{first} to {last} in {steps} steps"
    );
    drop(run);
    // Stopped after the seventh step, killed after the ninth, of which the eighth was stored.
    open(&parts)
        .expect("a run")
        .train(&mut |_, progress| progress.step < 7)
        .expect("trained");
    let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        open(&parts)
            .expect("a run")
            .train(&mut |_, progress| {
                assert!(progress.step < 9, "killed");
                true
            })
            .expect("trained");
    }));
    assert!(killed.is_err());
    let mut run = open(&parts).expect("a run");
    assert_eq!(run.steps_done(), 8);
    run.train(&mut |_, _| true).expect("trained");
    assert_eq!(adapter(&parts), adapter(&whole));
    let left: Vec<_> = std::fs::read_dir(parts.join("training"))
        .expect("a folder")
        .collect();
    assert_eq!(left.len(), 2, "{left:?}");
    for folder in [whole, parts] {
        let _ = std::fs::remove_dir_all(folder);
    }
}

#[test]
fn a_state_of_another_run_or_a_damaged_one_is_refused() {
    let (source, mut options) = (shipped(), options());
    let examples = examples(&source);
    let folder = folder("refused");
    let open = |options: &Options, examples| {
        Run::open(
            &folder,
            &source,
            "neap-tiny",
            (examples, &[]),
            options.clone(),
        )
        .map(|_| ())
    };
    Run::open(
        &folder,
        &source,
        "neap-tiny",
        (&examples, &[]),
        options.clone(),
    )
    .expect("a run")
    .train(&mut |_, progress| progress.step < 2)
    .expect("trained");
    let reason = |result: Result<(), TuneError>| result.expect_err("refused").to_string();
    assert!(reason(open(&options, &examples[1..])).contains("other data"));
    options.rank = 5;
    assert!(reason(open(&options, &examples)).contains("other options"));
    options.rank = 4;
    let stored = folder.join("training/step-2.safetensors");
    let bytes = std::fs::read(&stored).expect("tensors");
    for cut in [0, 7, 100, bytes.len() - 1] {
        std::fs::write(&stored, &bytes[..cut]).expect("written");
        assert!(
            reason(open(&options, &examples)).contains("step-2.safetensors"),
            "{cut}"
        );
    }
    std::fs::write(&stored, &bytes).expect("written");
    open(&options, &examples).expect("the state is whole again");
    std::fs::write(folder.join("training/state.json"), "{").expect("written");
    assert!(reason(open(&options, &examples)).contains("--restart"));
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn lines_that_make_no_example_are_named() {
    let source = shipped();
    let tokenizer = Tokenizer::from_source(&source).expect("a tokenizer");
    let template = ChatTemplate::from_source(&source, &tokenizer).expect("a template");
    let mut reader = Reader {
        tokenizer: &tokenizer,
        template: &template,
        max_tokens: 64,
        left_out: 0,
    };
    for (text, line) in [
        ("{\"text\": \"a b\"}\n\n{\"txt\": \"a\"}", 3),
        ("{\"prompt\": \"a\"}", 1),
        ("nothing", 1),
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}",
            1,
        ),
    ] {
        let error = reader.json_lines(text).expect_err("refused");
        assert_eq!(error.line, line, "{error}");
    }
    assert_eq!(
        reader
            .conll("Bob B-PER\nran", "{text} {word}:", 1)
            .expect_err("refused")
            .line,
        2
    );
    let examples = reader
        .conll("Bob B-PER\nran O\nfast O", "{text}\nTag of {word}:", 2)
        .expect("examples");
    assert_eq!(examples.len(), 2);
    let text = |example: &Example| {
        tokenizer.decode(
            &example.tokens,
            neap_model::tokenizer::DetokenizeOptions::default(),
        )
    };
    assert_eq!(text(&examples[0]), "Bob ran fast\nTag of Bob: B-PER");
    assert_eq!(text(&examples[1]), "Bob ran fast\nTag of fast: O");
    let messages = r#"{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Oh"}]}"#;
    let examples = reader.json_lines(messages).expect("examples");
    assert!(
        text(&examples[0]).contains("Oh")
            && examples[0].learned_tokens() < examples[0].tokens.len()
    );
}
