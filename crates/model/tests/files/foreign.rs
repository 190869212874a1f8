//! Files that others wrote: ggml's Python package (see `tests/data/make_gguf.py`) and a published model.

use std::path::{Path, PathBuf};

use neap_kernels::format::WeightFormat;
use neap_model::gguf::{Array, GgufFile, Value};
use neap_model::source::{ModelSource, TensorName};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

#[test]
fn every_value_type_is_read_as_written_by_ggml() {
    let file = GgufFile::open(data("all_types.gguf")).unwrap();
    let strings = ["", "a", "東京", "\n"].into_iter().collect();
    let expected = [
        ("general.architecture", Value::from("llama")),
        ("general.alignment", Value::U32(64)),
        ("t.u8", Value::U8(200)),
        ("t.i8", Value::I8(-100)),
        ("t.u16", Value::U16(60_000)),
        ("t.i16", Value::I16(-30_000)),
        ("t.u32", Value::U32(4_000_000_000)),
        ("t.i32", Value::I32(-2_000_000_000)),
        ("t.f32", Value::F32(0.1)),
        ("t.bool", Value::Bool(true)),
        ("t.string", Value::from("grüße 東京")),
        ("t.u64", Value::U64(1 << 63)),
        ("t.i64", Value::I64(-(1 << 62))),
        ("t.f64", Value::F64(0.1)),
        ("t.strings", Value::Array(Array::String(strings))),
        ("t.ints", Value::Array(Array::I32(vec![1, -2, 3]))),
        ("t.floats", Value::Array(Array::F32(vec![0.5, -1.5]))),
        (
            "t.bools",
            Value::Array(Array::Bool(vec![true, false, true])),
        ),
        (
            "t.nested",
            Value::Array(Array::Array(vec![
                Array::I32(vec![1, 2]),
                Array::I32(vec![3]),
            ])),
        ),
    ];
    for (key, value) in &expected {
        assert_eq!(file.metadata(key), Some(value), "{key}");
    }
    assert_eq!(file.entries().len(), expected.len());
}

#[test]
fn tensors_are_read_as_written_by_ggml() {
    let file = GgufFile::open(data("all_types.gguf")).unwrap();
    let ramp: Vec<f32> = (0..192).map(|i| (i as f32 - 100.0) / 64.0).collect();
    let formats = [
        ("f32", WeightFormat::F32, 0.0),
        ("f16", WeightFormat::F16, 0.0),
        ("bf16", WeightFormat::BF16, 0.004),
        ("q8_0", WeightFormat::Q8_0, 0.01),
        ("q4_0", WeightFormat::Q4_0, 0.15),
    ];
    for (name, format, tolerance) in formats {
        let info = file.tensor(name).unwrap();
        assert_eq!((info.shape.as_slice(), info.format), (&[3, 64][..], format));
        assert_eq!(info.offset % 64, 0);
        let mut values = vec![0.0; 192];
        format
            .dequantize(file.tensor_data(info), &mut values)
            .unwrap();
        for (value, expected) in values.iter().zip(&ramp) {
            assert!(
                (value - expected).abs() <= tolerance,
                "{name}: {value} for {expected}"
            );
        }
    }
    assert_eq!(file.tensor("three").unwrap().shape, [2, 3, 4]);
    assert_eq!(file.tensor("one").unwrap().shape, [5]);
    assert_eq!(file.tensors().len(), 7);
}

#[test]
fn a_model_split_by_ggml_is_read_whole() {
    let file = GgufFile::open(data("split-00002-of-00003.gguf")).unwrap();
    assert_eq!(file.file_count(), 3);
    assert_eq!(file.metadata("llama.context_length"), Some(&Value::U32(7)));
    for i in 0..5 {
        let info = file.tensor(&format!("t{i}")).unwrap();
        let expected = [i as f32; 8].map(f32::to_le_bytes).concat();
        assert_eq!(file.tensor_data(info), expected);
    }
}

/// A published model of 260,032 parameters, if it is at hand.
#[test]
fn stories260k_is_read() {
    let folder = std::env::var_os("NEAP_TEST_DATA").map(PathBuf::from);
    let path = folder.map(|folder| folder.join("stories260K/stories260K.gguf"));
    let Some(path) = path.filter(|path| path.is_file()) else {
        eprintln!("skipped: stories260K/stories260K.gguf is not in NEAP_TEST_DATA");
        return;
    };
    let source = ModelSource::open(path).unwrap();
    let config = source.config();
    assert_eq!((config.vocab_size, config.hidden_size), (512, 64));
    assert_eq!((config.layers, config.heads, config.kv_heads), (5, 8, 4));
    assert_eq!((config.head_dim, config.ffn_size), (8, 172));
    assert_eq!((config.bos, config.eos.as_slice()), (Some(1), &[2][..]));
    assert!(!config.tied_embeddings);
    assert_eq!(source.file_bytes(), 1_185_376);
    assert_eq!(TensorName::all(config).count(), 48);
    for name in TensorName::all(config) {
        source.tensor(name).unwrap().validate_finite().unwrap();
    }
}
