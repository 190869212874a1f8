//! Configurations: read from both kinds of files, and refused by the name of the field.

use neap_kernels::format::WeightFormat;
use neap_model::config::{Architecture, ModelConfig, QkNorm, RopeLayout, RopeScaling};
use neap_model::gguf::{Array, GgufFile, ModelFileError, Value};
use neap_model::safetensors::HfFolder;
use serde_json::{Value as Json, json};

use crate::tiny::{Tensor, Tiny, write_gguf};

/// The configuration of a tiny GGUF model with other metadata (`None` takes the entry away) and more tensors.
fn gguf_with(
    tiny: &Tiny,
    changes: &[(&str, Option<Value>)],
    more: &[Tensor],
) -> Result<ModelConfig, ModelFileError> {
    let mut metadata = tiny.metadata();
    for (key, value) in changes {
        metadata.retain(|(known, _)| known != key);
        metadata.extend(value.clone().map(|value| ((*key).to_owned(), value)));
    }
    let mut tensors = tiny.gguf_tensors();
    tensors.extend_from_slice(more);
    let bytes = write_gguf(&metadata, &tensors);
    ModelConfig::from_gguf(&GgufFile::from_vec("model.gguf", bytes)?)
}

fn gguf(changes: &[(&str, Option<Value>)]) -> Result<ModelConfig, ModelFileError> {
    gguf_with(&Tiny::default(), changes, &[])
}

/// The configuration of a folder whose `config.json` has other fields.
fn folder(base: &Json, changes: Json) -> Result<ModelConfig, ModelFileError> {
    let folder = tempfile::tempdir().unwrap();
    Tiny::default().write_folder(folder.path());
    let mut config = base.clone();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    HfFolder::open(folder.path())?.config()
}

fn tiny_folder(changes: Json) -> Result<ModelConfig, ModelFileError> {
    folder(&Tiny::default().config_json(), changes)
}

fn names_field(result: Result<ModelConfig, ModelFileError>, expected: &str) {
    match result {
        Err(ModelFileError::Config { field, .. }) => assert_eq!(field, expected),
        other => panic!("{expected}: {other:?}"),
    }
}

#[test]
fn both_kinds_of_files_give_the_same_model() {
    let from_gguf = gguf(&[]).unwrap();
    let mut from_folder = tiny_folder(json!({})).unwrap();
    assert_eq!(from_folder.rope.layout, RopeLayout::Halves);
    from_folder.rope.layout = RopeLayout::Interleaved;
    assert_eq!(from_gguf, from_folder);
    assert_eq!((from_gguf.q_size(), from_gguf.kv_size()), (32, 16));
    assert_eq!(from_gguf.group_size(), 2);
    assert_eq!(from_gguf.rope.base, 10_000.0);
    assert_eq!(from_gguf.rope.dims, 8);
    assert_eq!(from_gguf.attention_scale, 1.0 / 8f32.sqrt());
}

#[test]
fn architectures_bring_their_options() {
    for architecture in [
        Architecture::Llama,
        Architecture::Qwen2,
        Architecture::Qwen3,
    ] {
        let tiny = Tiny {
            architecture,
            tied: true,
            ..Tiny::default()
        };
        let config = gguf_with(&tiny, &[], &[]).unwrap();
        assert_eq!(config.architecture, architecture);
        assert_eq!(config.qkv_bias, architecture == Architecture::Qwen2);
        let norm = config.qk_norm == QkNorm::Heads;
        assert_eq!(norm, architecture == Architecture::Qwen3);
        assert!(config.tied_embeddings);
        let interleaved = config.rope.layout == RopeLayout::Interleaved;
        assert_eq!(interleaved, architecture == Architecture::Llama);
    }
}

#[test]
fn gguf_fields_out_of_range_are_named() {
    let cases = [
        ("llama.embedding_length", Value::U32(0)),
        ("llama.embedding_length", Value::U64(1 << 40)),
        ("llama.embedding_length", Value::I32(-1)),
        ("llama.embedding_length", Value::from("32")),
        ("llama.block_count", Value::U32(0)),
        ("llama.block_count", Value::U32(u32::MAX)),
        ("llama.attention.head_count", Value::U32(0)),
        ("llama.attention.head_count_kv", Value::U32(0)),
        ("llama.attention.head_count_kv", Value::U32(3)),
        ("llama.attention.head_count_kv", Value::U32(8)),
        ("llama.attention.key_length", Value::U32(0)),
        ("llama.attention.key_length", Value::U64(u64::MAX)),
        ("llama.attention.value_length", Value::U32(16)),
        ("llama.feed_forward_length", Value::U32(0)),
        ("llama.context_length", Value::U32(0)),
        ("llama.context_length", Value::U64(1 << 50)),
        (
            "llama.attention.layer_norm_rms_epsilon",
            Value::F32(f32::NAN),
        ),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(0.0)),
        ("llama.attention.layer_norm_rms_epsilon", Value::U32(1)),
        ("llama.attention.scale", Value::F32(f32::INFINITY)),
        ("llama.rope.dimension_count", Value::U32(0)),
        ("llama.rope.dimension_count", Value::U32(7)),
        ("llama.rope.dimension_count", Value::U32(10)),
        ("llama.rope.freq_base", Value::F32(0.0)),
        ("llama.rope.freq_base", Value::F32(f32::NAN)),
        ("llama.rope.scaling.type", Value::from("dynamic")),
        ("llama.rope.scaling.type", Value::U8(1)),
        ("llama.vocab_size", Value::U32(41)),
        ("llama.logit_scale", Value::F32(2.0)),
        ("general.architecture", Value::from("gpt5")),
        ("general.architecture", Value::U32(1)),
        ("tokenizer.ggml.bos_token_id", Value::U32(40)),
        ("tokenizer.ggml.bos_token_id", Value::I32(-1)),
        ("tokenizer.ggml.eos_token_id", Value::U32(40)),
    ];
    for (key, value) in cases {
        names_field(gguf(&[(key, Some(value))]), key);
    }
}

#[test]
fn a_vocabulary_must_not_exceed_the_embedding() {
    let tokens = |count: usize| {
        let tokens = (0..count).map(|i| i.to_string()).collect();
        Some(Value::Array(Array::String(tokens)))
    };
    let key = "tokenizer.ggml.tokens";
    assert_eq!(gguf(&[(key, tokens(39))]).unwrap().vocab_size, 40);
    names_field(gguf(&[(key, tokens(41))]), key);
}

#[test]
fn missing_gguf_fields_are_named() {
    for key in [
        "general.architecture",
        "llama.embedding_length",
        "llama.block_count",
        "llama.attention.head_count",
        "llama.feed_forward_length",
        "llama.context_length",
        "llama.attention.layer_norm_rms_epsilon",
    ] {
        names_field(gguf(&[(key, None)]), key);
    }
    // These have defaults.
    let config = gguf(&[
        ("llama.attention.head_count_kv", None),
        ("llama.attention.key_length", None),
        ("tokenizer.ggml.bos_token_id", None),
        ("tokenizer.ggml.eos_token_id", None),
    ])
    .unwrap();
    assert_eq!((config.kv_heads, config.head_dim), (4, 8));
    assert_eq!((config.bos, config.eos.len()), (None, 0));
    names_field(
        gguf(&[
            ("llama.attention.key_length", None),
            ("llama.attention.head_count", Some(Value::U32(5))),
        ]),
        "llama.attention.head_count",
    );
}

#[test]
fn lists_of_one_number_per_layer_must_agree() {
    let key = "llama.attention.head_count_kv";
    let list = |values: [u32; 2]| Some(Value::Array(Array::U32(values.into())));
    assert_eq!(gguf(&[(key, list([2, 2]))]).unwrap().kv_heads, 2);
    names_field(gguf(&[(key, list([2, 1]))]), key);
    let empty = Some(Value::Array(Array::U32(Vec::new())));
    names_field(gguf(&[(key, empty)]), key);
}

#[test]
fn ends_of_text_are_collected_without_the_number_for_none() {
    let config = gguf(&[
        ("tokenizer.ggml.bos_token_id", Some(Value::U32(u32::MAX))),
        ("tokenizer.ggml.eot_token_id", Some(Value::U32(3))),
        ("tokenizer.ggml.eom_token_id", Some(Value::U32(2))),
    ])
    .unwrap();
    assert_eq!((config.bos, config.eos), (None, vec![2, 3]));
}

#[test]
fn gguf_rope_scaling_is_read() {
    let scaling = |changes: &[(&str, Option<Value>)]| gguf(changes).map(|c| c.rope.scaling);
    let kind = |kind: &str| ("llama.rope.scaling.type", Some(Value::from(kind)));
    let factor = ("llama.rope.scaling.factor", Some(Value::F32(4.0)));
    let original = (
        "llama.rope.scaling.original_context_length",
        Some(Value::U32(32)),
    );
    assert_eq!(scaling(&[kind("none")]).unwrap(), RopeScaling::None);
    let linear = RopeScaling::Linear { factor: 4.0 };
    assert_eq!(scaling(&[kind("linear"), factor.clone()]).unwrap(), linear);
    let old = ("llama.rope.scale_linear", Some(Value::F32(4.0)));
    assert_eq!(scaling(&[old]).unwrap(), linear);
    let yarn = scaling(&[kind("yarn"), factor, original]).unwrap();
    assert_eq!(
        yarn,
        RopeScaling::Yarn {
            factor: 4.0,
            original_context: 32,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 0.1 * 4f32.ln() + 1.0,
        }
    );
    let below = ("llama.rope.scaling.factor", Some(Value::F32(0.5)));
    names_field(gguf(&[kind("linear"), below]), "llama.rope.scaling");
    let nan = ("llama.rope.scaling.factor", Some(Value::F32(f32::NAN)));
    names_field(gguf(&[kind("yarn"), nan]), "llama.rope.scaling");
}

fn list_tensor(name: &str, values: &[f32]) -> Tensor {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes());
    (
        name.to_owned(),
        vec![values.len()],
        WeightFormat::F32,
        bytes.collect(),
    )
}

#[test]
fn divisors_in_tensors_are_read_and_checked() {
    let tiny = Tiny::default();
    let scaling = |more: &[Tensor]| gguf_with(&tiny, &[], more).map(|c| c.rope.scaling);
    let divisors = vec![1.0, 1.0, 8.0, 8.0];
    let read = scaling(&[list_tensor("rope_freqs.weight", &divisors)]).unwrap();
    assert_eq!(read, RopeScaling::Divisors { divisors });
    for bad in [
        &[1.0; 3][..],
        &[1.0, 1.0, 0.0, 1.0],
        &[1.0, f32::NAN, 1.0, 1.0],
    ] {
        let more = [list_tensor("rope_freqs.weight", bad)];
        names_field(gguf_with(&tiny, &[], &more), "llama.rope.scaling");
    }
    let long = scaling(&[
        list_tensor("rope_factors_short.weight", &[1.0; 4]),
        list_tensor("rope_factors_long.weight", &[2.0; 4]),
    ]);
    assert_eq!(
        long.unwrap(),
        RopeScaling::LongRope {
            short: vec![1.0; 4],
            long: vec![2.0; 4],
            original_context: 128,
            attention_factor: 1.0,
        }
    );
    let half = [list_tensor("rope_factors_long.weight", &[2.0; 4])];
    names_field(gguf_with(&tiny, &[], &half), "llama.rope.scaling");
}

#[test]
fn folder_fields_out_of_range_are_named() {
    let cases = [
        ("hidden_size", json!(0)),
        ("num_hidden_layers", json!(1u64 << 40)),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(0)),
        ("intermediate_size", json!(0)),
        ("vocab_size", json!(0)),
        ("max_position_embeddings", json!(0)),
        ("rms_norm_eps", json!(-1.0)),
        ("rope_theta", json!(0)),
        ("partial_rotary_factor", json!(1.5)),
        ("partial_rotary_factor", json!(0.01)),
        ("sliding_window", json!(0)),
        ("hidden_act", json!("relu")),
        ("quantization_config", json!({ "quant_method": "gptq" })),
        ("num_local_experts", json!(8)),
        ("model_type", json!("mamba")),
        ("bos_token_id", json!(-1)),
        ("bos_token_id", json!(40)),
        ("eos_token_id", json!([2, 40])),
        ("eos_token_id", json!("</s>")),
    ];
    let mut base = Tiny::default().config_json();
    base["use_sliding_window"] = json!(null);
    for (field, value) in cases {
        if field == "sliding_window" {
            names_field(
                tiny_folder(json!({ "model_type": "mistral", field: value })),
                field,
            );
        } else {
            names_field(folder(&base, json!({ field: value })), field);
        }
    }
    for field in [
        "model_type",
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "rms_norm_eps",
    ] {
        names_field(tiny_folder(json!({ field: null })), field);
    }
    names_field(tiny_folder(json!({ "hidden_size": "32" })), "JSON");
    names_field(tiny_folder(json!({ "hidden_size": -32 })), "JSON");
}

#[test]
fn folder_rope_scaling_is_read_in_old_and_new_spelling() {
    let scaling = |changes: Json| tiny_folder(changes).map(|config| config.rope);
    let old = scaling(json!({
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "rope_type": "llama3", "type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    }))
    .unwrap();
    assert_eq!(old.base, 500_000.0);
    assert_eq!(
        old.scaling,
        RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 64,
        }
    );
    let new = scaling(json!({
        "rope_parameters": {
            "rope_theta": 500_000.0, "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    }));
    assert_eq!(new.unwrap(), old);
    let linear = scaling(json!({ "rope_scaling": { "type": "linear", "factor": 2.0 } }));
    let factor = 2.0;
    assert_eq!(linear.unwrap().scaling, RopeScaling::Linear { factor });
    let yarn = json!({ "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32 });
    let yarn = scaling(json!({ "rope_scaling": yarn })).unwrap().scaling;
    assert!(
        matches!(yarn, RopeScaling::Yarn { attention_factor, original_context: 32, .. }
            if (attention_factor - 1.138_629_4).abs() < 1e-6)
    );
    let dynamic = scaling(json!({ "rope_scaling": { "type": "dynamic", "factor": 2.0 } }));
    assert_eq!(
        dynamic.unwrap().scaling,
        RopeScaling::Dynamic {
            factor: 2.0,
            original_context: 128,
        }
    );
    let long = json!({
        "type": "longrope", "short_factor": [1, 1, 1, 1], "long_factor": [2, 2, 2, 2],
        "original_max_position_embeddings": 32,
    });
    let long = scaling(json!({ "rope_scaling": long })).unwrap().scaling;
    // sqrt(1 + ln(128 / 32) / ln(32)) = sqrt(1.4)
    assert!(
        matches!(long, RopeScaling::LongRope { attention_factor, .. }
        if (attention_factor - 1.183_216).abs() < 1e-6)
    );
    let default = scaling(json!({ "rope_scaling": { "rope_type": "default" } }));
    assert_eq!(default.unwrap().scaling, RopeScaling::None);
    let part = scaling(json!({ "partial_rotary_factor": 0.5 })).unwrap();
    assert_eq!(part.dims, 4);
}

#[test]
fn bad_folder_rope_scaling_is_named() {
    let scaled = |scaling: Json| tiny_folder(json!({ "rope_scaling": scaling }));
    names_field(
        scaled(json!({ "rope_type": "spiral", "factor": 2.0 })),
        "rope_scaling.rope_type",
    );
    names_field(scaled(json!({ "type": "linear" })), "rope_scaling.factor");
    names_field(scaled(json!({ "type": "dynamic" })), "rope_scaling.factor");
    names_field(
        scaled(json!({ "type": "linear", "factor": 0.0 })),
        "rope_scaling",
    );
    let llama3 = |low: f32, high: f32| {
        scaled(json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": 64,
        }))
    };
    assert!(llama3(1.0, 4.0).is_ok());
    names_field(llama3(4.0, 4.0), "rope_scaling");
    names_field(llama3(0.0, 4.0), "rope_scaling");
    names_field(
        scaled(json!({ "type": "longrope", "short_factor": [1.0], "long_factor": [1.0] })),
        "rope_scaling",
    );
}

#[test]
fn windows_are_read_only_where_they_are_used() {
    let window = |changes: Json| tiny_folder(changes).map(|config| config.sliding_window);
    let mistral = json!({ "model_type": "mistral", "sliding_window": 16 });
    assert_eq!(window(mistral).unwrap(), Some(16));
    let none = json!({ "model_type": "mistral", "sliding_window": null });
    assert_eq!(window(none).unwrap(), None);
    let off = json!({ "sliding_window": 16, "use_sliding_window": false });
    assert_eq!(window(off).unwrap(), None);
    let (sliding, full) = ("sliding_attention", "full_attention");
    let listed = |kinds: [&str; 2]| json!({ "sliding_window": 16, "use_sliding_window": true, "layer_types": kinds });
    assert_eq!(window(listed([sliding, sliding])).unwrap(), Some(16));
    assert_eq!(window(listed([full, full])).unwrap(), None);
    let windows = |changes: Json| -> Vec<bool> {
        let config = tiny_folder(changes).unwrap();
        (0..2).map(|layer| config.window(layer).is_some()).collect()
    };
    assert_eq!(windows(listed([sliding, full])), [true, false]);
    names_field(tiny_folder(listed([full, "linear"])), "layer_types");
    let short = json!({ "sliding_window": 16, "layer_types": [full] });
    names_field(tiny_folder(short), "layer_types");
    // Without a list, Qwen's rule: the first `max_window_layers` see everything.
    let qwen = json!({
        "model_type": "qwen3", "sliding_window": 16, "use_sliding_window": true, "max_window_layers": 1,
    });
    assert_eq!(windows(qwen), [false, true]);
}

#[test]
fn generation_settings_add_ends_of_text() {
    let folder = tempfile::tempdir().unwrap();
    Tiny::default().write_folder(folder.path());
    let path = folder.path().join("generation_config.json");
    std::fs::write(&path, r#"{"eos_token_id": [2, 5], "temperature": 0.6}"#).unwrap();
    let config = HfFolder::open(folder.path()).unwrap().config().unwrap();
    assert_eq!(config.eos, [2, 5]);
    std::fs::write(&path, r#"{"eos_token_id": [2, "#).unwrap();
    let error = HfFolder::open(folder.path()).unwrap().config().unwrap_err();
    assert!(error.to_string().contains("generation_config.json"));
}

/// `config.json` as some well-known models publish it.
fn published(config: Json) -> ModelConfig {
    let weights = crate::tiny::raw_safetensors("{}", 0);
    let folder = HfFolder::from_vecs("folder", config.to_string().into_bytes(), weights).unwrap();
    folder.config().unwrap()
}

#[test]
fn published_configurations_are_read() {
    let llama = published(json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
        "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama", "num_attention_heads": 32,
        "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
        "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_cache": true,
        "vocab_size": 128256,
    }));
    assert_eq!(
        (llama.head_dim, llama.group_size(), llama.layers),
        (64, 4, 16)
    );
    assert!(llama.tied_embeddings && !llama.qkv_bias && !llama.attn_output_bias);
    assert!(matches!(
        llama.rope.scaling,
        RopeScaling::Llama3 {
            original_context: 8192,
            ..
        }
    ));
    assert_eq!(llama.eos, [128_001, 128_008, 128_009]);
    let mistral = published(json!({
        "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
        "sliding_window": 4096, "tie_word_embeddings": false, "vocab_size": 32000,
    }));
    assert_eq!(
        (mistral.head_dim, mistral.sliding_window),
        (128, Some(4096))
    );
    let qwen2 = published(json!({
        "bos_token_id": 151643, "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896,
        "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2",
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true, "use_mrope": false,
        "use_sliding_window": false, "vocab_size": 151936,
    }));
    assert_eq!((qwen2.head_dim, qwen2.sliding_window), (64, None));
    assert!(qwen2.qkv_bias && qwen2.qk_norm == QkNorm::None);
    let qwen3 = published(json!({
        "attention_bias": false, "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960,
        "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000,
        "sliding_window": null, "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151936,
    }));
    assert_eq!(
        (qwen3.head_dim, qwen3.q_size(), qwen3.hidden_size),
        (128, 2048, 1024)
    );
    assert!(qwen3.qk_norm == QkNorm::Heads && !qwen3.qkv_bias);
}
