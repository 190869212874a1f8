//! Inspections.

use neap_kernels::format::WeightFormat;
use neap_model::inspect::{Inspection, MemoryCost};
use serde_json::json;

use crate::tiny::{Tiny, write_gguf};

fn tiny() -> Tiny {
    Tiny {
        format: WeightFormat::Q8_0,
        ..Tiny::default()
    }
}

fn inspect(bytes: &[u8]) -> Inspection {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    std::fs::write(&path, bytes).unwrap();
    Inspection::open(path).unwrap()
}

#[test]
fn a_gguf_file_is_summed_up() {
    let mut inspection = inspect(&tiny().gguf());
    assert_eq!(inspection.container, "GGUF 3");
    assert_eq!((inspection.files, inspection.problem.clone()), (1, None));
    assert_eq!(inspection.architecture, "llama");
    // Two matrices of the vocabulary, a norm; per layer q, o, k, v, three of the feed-forward, two norms.
    let parameters = 2 * 40 * 32 + 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32 + 64);
    assert_eq!(inspection.parameters, parameters);
    let vectors = 32 * 5;
    let bytes = (parameters - vectors) / 32 * 34 + vectors * 4;
    assert_eq!(inspection.tensor_bytes, bytes);
    assert!(inspection.file_bytes > bytes);
    let formats: Vec<_> = inspection
        .formats
        .iter()
        .map(|share| (share.format, share.tensors, share.parameters))
        .collect();
    assert_eq!(
        formats,
        [("Q8_0", 16, parameters - vectors), ("F32", 5, vectors)]
    );
    let tokenizer = inspection.tokenizer.clone().unwrap();
    assert_eq!((tokenizer.model.as_str(), tokenizer.tokens), ("llama", 40));
    assert!(!inspection.chat_template);
    inspection.set_memory(100, 3, 1000);
    let memory = inspection.memory.unwrap();
    assert_eq!(memory.kv_bytes_per_token, 2 * 2 * 2 * 8 * 2);
    assert_eq!(memory.kv_bytes, 128 * 128 * 3);
    assert_eq!(memory.total_bytes, bytes + 128 * 128 * 3 + 1000);
}

#[test]
fn the_text_shows_what_the_json_holds() {
    let mut inspection = inspect(&tiny().gguf());
    inspection.set_memory(64, 1, 0);
    let short = inspection.to_string();
    for part in [
        "m.gguf",
        "llama",
        "Q8_0",
        "chat template  no",
        "keys and values",
        "8.0 KiB, 128 B a token",
    ] {
        assert!(short.contains(part), "'{part}' is not in:\n{short}");
    }
    assert!(!short.contains("blk.0.attn_q.weight"));
    let long = format!("{inspection:#}");
    assert!(long.contains("blk.0.attn_k.weight"));
    assert!(long.contains("16 x 32"));
    let value = serde_json::to_value(&inspection).unwrap();
    assert_eq!(value["config"]["architecture"], "llama");
    assert_eq!(
        value["config"]["rope"]["scaling"],
        json!({ "type": "none" })
    );
    assert_eq!(value["tensors"][3]["format"], "F32");
    assert_eq!(value["memory"]["kv_bytes"], 8192);
    assert_eq!(value["problem"], json!(null));
}

#[test]
fn a_model_that_cannot_be_run_is_still_shown() {
    let mut metadata = tiny().metadata();
    metadata[0].1 = "gpt5\u{1b}[2J".into();
    let inspection = inspect(&write_gguf(&metadata, &tiny().gguf_tensors()));
    assert!(
        inspection
            .problem
            .clone()
            .unwrap()
            .contains("general.architecture")
    );
    assert_eq!(inspection.config, None);
    assert_eq!(inspection.tensors.len(), 21);
    assert!(!format!("{inspection:#}").contains('\u{1b}'));
    let mut tensors = tiny().gguf_tensors();
    tensors.pop();
    let inspection = inspect(&write_gguf(&tiny().metadata(), &tensors));
    assert!(inspection.config.is_some());
    assert!(
        inspection
            .problem
            .unwrap()
            .contains("'blk.1.ffn_down.weight'")
    );
}

#[test]
fn a_folder_is_summed_up() {
    let folder = tempfile::tempdir().unwrap();
    Tiny::default().write_folder(folder.path());
    let inspection = Inspection::open(folder.path()).unwrap();
    assert_eq!(inspection.container, "safetensors");
    assert_eq!((inspection.tokenizer, inspection.problem), (None, None));
    let tokenizer = json!({
        "model": { "type": "BPE", "vocab": { "a": 0, "b": 1 }, "merges": [] },
        "added_tokens": [{ "id": 1, "content": "b" }, { "id": 6, "content": "<|end|>" }],
    });
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let inspection = Inspection::open(folder.path()).unwrap();
    let summary = inspection.tokenizer.unwrap();
    assert_eq!((summary.model.as_str(), summary.tokens), ("BPE", 7));
    std::fs::write(&path, r#"{"model": {"vocab": 3}}"#).unwrap();
    let error = Inspection::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
}

#[test]
fn costs_do_not_overflow() {
    let inspection = inspect(&tiny().gguf());
    let config = inspection.config.unwrap();
    let cost = MemoryCost::new(&config, u64::MAX, u64::MAX, u64::MAX, u64::MAX);
    assert_eq!((cost.kv_bytes, cost.total_bytes), (u64::MAX, u64::MAX));
}

#[test]
fn keys_and_values_cost_what_their_blocks_take() {
    let inspection = inspect(&tiny().gguf());
    let config = inspection.config.unwrap();
    let block_bytes = neap_model::decoder::kv_block_bytes(&config).unwrap() as u64;
    let cost = MemoryCost::new(&config, 0, 33, 1, 0);
    assert_eq!(cost.kv_bytes, 2 * block_bytes);
}

#[test]
fn windows_of_layers_cost_less_where_room_is_short() {
    let inspection = inspect(&tiny().gguf());
    let mut config = inspection.config.unwrap();
    let cost = |config: &_, context| MemoryCost::new(config, 0, context, 2, 0);
    assert_eq!(cost(&config, 10_000).kv_bytes_trimmed, None);
    // Of two layers with a window, the first keeps everything; blocks are of whole pages.
    config.layers = 2;
    config.kv_heads = 8;
    config.head_dim = 64;
    config.context_length = 100_000;
    config.sliding_window = Some(992);
    config.layer_kinds = vec![config.layer_kinds[0]; 2];
    config
        .layer_kinds
        .iter_mut()
        .for_each(|kind| kind.window = true);
    let cost = |context| cost(&config, context);
    assert_eq!(cost(1000).kv_bytes_trimmed, Some(cost(1000).kv_bytes));
    let blocks = [33 + 1, 300 - 34].map(|blocks| blocks * 2);
    let block_bytes = cost(32).kv_bytes / 2;
    let expected = blocks[0] * block_bytes + blocks[1] * block_bytes / 2;
    assert_eq!(cost(9600).kv_bytes_trimmed, Some(expected));
}

#[test]
fn a_budget_tells_what_will_be_read_from_the_file() {
    let mut inspection = inspect(&tiny().gguf());
    let mut text = |streamed, disk| {
        inspection.set_budget(1 << 30, streamed, disk);
        inspection.to_string()
    };
    assert!(text(None, None).ends_with("in a budget of 1.0 GiB: too small to run\n"));
    assert!(text(Some(0), None).ends_with("all weights find room\n"));
    assert!(
        text(Some(3 << 20), None)
            .ends_with("3.0 MiB of weights are read from the file at each step\n")
    );
    let text = text(Some(3 << 20), Some(6e6));
    assert!(
        text.ends_with("gives 5.7 MiB a second, so 1.9 tokens a second at most\n"),
        "{text}"
    );
}
