//! Safetensors files and the folders around them.

use std::path::Path;

use neap_kernels::format::WeightFormat;
use neap_model::safetensors::{HfFolder, ModelFileError, SafetensorsFiles};
use serde_json::json;

use crate::tiny::{Tiny, raw_safetensors, write_safetensors};

fn read(bytes: Vec<u8>) -> Result<SafetensorsFiles, ModelFileError> {
    SafetensorsFiles::from_vec("model.safetensors", bytes)
}

fn refused(bytes: Vec<u8>, parts: &[&str]) {
    let error = read(bytes).expect_err("must be refused").to_string();
    for part in parts.iter().chain(&["model.safetensors"]) {
        assert!(error.contains(part), "'{part}' is not in: {error}");
    }
}

#[test]
fn reads_what_the_reference_implementation_wrote() {
    let tensors = [
        ("b".to_owned(), vec![2, 3], WeightFormat::F32, vec![1; 24]),
        ("a".to_owned(), vec![5], WeightFormat::BF16, vec![2; 10]),
        ("c".to_owned(), vec![1, 2, 2], WeightFormat::F16, vec![3; 8]),
    ];
    let files = read(write_safetensors(&tensors)).unwrap();
    assert_eq!(files.tensors().len(), 3);
    for (name, shape, format, bytes) in &tensors {
        let info = files.tensor(name).unwrap();
        assert_eq!((&info.shape, info.format), (shape, *format));
        assert_eq!(files.tensor_data(info), bytes);
    }
    assert_eq!(files.tensor("d"), None);
}

#[test]
fn metadata_and_unknown_fields_are_passed_over() {
    let header = r#"{"__metadata__": {"format": "pt", "deep": [[{}]]}, "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], "more": 1}}   "#;
    assert_eq!(read(raw_safetensors(header, 8)).unwrap().tensors().len(), 1);
    assert_eq!(read(raw_safetensors("{}", 0)).unwrap().tensors().len(), 0);
}

#[test]
fn bad_headers_are_refused() {
    refused(vec![0; 7], &["header length at byte 0", "ends after 7"]);
    refused(vec![0; 8], &["header at byte 8"]);
    let long = |length: u64| [&length.to_le_bytes()[..], b"{}"].concat();
    refused(long(3), &["header length", "says 3"]);
    refused(long(1 << 60), &["header length"]);
    refused(long(u64::MAX), &["header length"]);
    refused(raw_safetensors("[]", 0), &["header at byte"]);
    refused(raw_safetensors("{\"a\": ", 0), &["header at byte"]);
    refused(raw_safetensors("{}{}", 0), &["header at byte 10"]);
    let deep = format!("{{\"__metadata__\": {}", "[".repeat(100_000));
    refused(raw_safetensors(&deep, 0), &["header at byte"]);
    let deep = format!(
        "{{\"w\": {{\"dtype\": \"F32\", \"shape\": {}",
        "[".repeat(100_000)
    );
    refused(raw_safetensors(&deep, 0), &["header at byte"]);
    let not_utf8 = [&11u64.to_le_bytes()[..], b"{\"\xff\": null}"].concat();
    refused(not_utf8, &["header at byte"]);
}

#[test]
fn bad_tensors_are_refused_by_name() {
    let one = |dtype: &str, shape: &str, offsets: &str| {
        let header =
            format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#);
        raw_safetensors(&header, 64)
    };
    assert!(read(one("F32", "[2,2]", "[0,16]")).is_ok());
    let w = "tensor 'w'";
    refused(one("F32", "[2,2]", "[0,20]"), &[w, "20 bytes", "takes 16"]);
    refused(one("F16", "[2,2]", "[0,16]"), &[w, "takes 8"]);
    refused(one("F32", "[2,2]", "[16,0]"), &[w, "16..0"]);
    refused(one("F32", "[2,2]", "[56,72]"), &[w, "64 bytes of data"]);
    refused(one("F32", "[2,0]", "[0,0]"), &[w, "of 0"]);
    assert_eq!(
        read(one("F32", "[]", "[0,4]")).unwrap().tensors()[0].shape,
        [1]
    );
    refused(one("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), &[w, "9 dim"]);
    refused(
        one("F32", "[4294967296,4294967296,4294967296]", "[0,0]"),
        &[w, "too large"],
    );
    refused(
        one("F32", "[4611686018427387905]", "[0,4]"),
        &[w, "too large"],
    );
    refused(one("F32", "[-1]", "[0,4]"), &["header at byte"]);
    refused(one("F32", "[1.5]", "[0,4]"), &["header at byte"]);
    refused(
        one("F32", "[18446744073709551616]", "[0,4]"),
        &["header at byte"],
    );
    assert!(read(one("F8_E4M3", "[4]", "[0,4]")).is_ok());
    refused(one("F8_E5M2", "[4]", "[0,8]"), &[w, "8 bytes", "takes 4"]);
    refused(one("I64", "[1]", "[0,8]"), &[w, "I64 is not supported"]);
    refused(one("F9", "[1]", "[0,8]"), &[w, "'F9' is not known"]);
}

#[test]
fn tensors_may_not_overlap_or_share_a_name() {
    let two = |name: &str, begin: usize, end: usize| {
        let header = format!(
            r#"{{"a":{{"dtype":"F32","shape":[4],"data_offsets":[0,16]}},"{name}":{{"dtype":"F32","shape":[4],"data_offsets":[{begin},{end}]}}}}"#
        );
        raw_safetensors(&header, 64)
    };
    assert!(read(two("b", 16, 32)).is_ok());
    assert!(read(two("b", 48, 64)).is_ok());
    refused(two("b", 12, 28), &["tensor 'b'", "overlaps", "'a'"]);
    refused(two("b", 0, 16), &["overlaps"]);
    refused(two("a", 16, 32), &["tensor 'a'", "twice"]);
}

fn write_sharded(folder: &Path, weight_map: serde_json::Value) {
    let tiny = Tiny::default();
    tiny.write_folder(folder);
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    let tensors = tiny.hf_tensors();
    let (first, second) = tensors.split_at(7);
    for (name, part) in [("x.safetensors", first), ("y.safetensors", second)] {
        std::fs::write(folder.join(name), write_safetensors(part)).unwrap();
    }
    let index = json!({ "metadata": { "total_size": 1 }, "weight_map": weight_map });
    let path = folder.join("model.safetensors.index.json");
    std::fs::write(path, index.to_string()).unwrap();
}

fn full_map() -> serde_json::Value {
    let tensors = Tiny::default().hf_tensors();
    let entries = tensors.iter().enumerate().map(|(i, (name, ..))| {
        let file = if i < 7 {
            "x.safetensors"
        } else {
            "y.safetensors"
        };
        (name.clone(), json!(file))
    });
    serde_json::Value::Object(entries.collect())
}

#[test]
fn shards_are_opened_as_one() {
    let folder = tempfile::tempdir().unwrap();
    write_sharded(folder.path(), full_map());
    let model = HfFolder::open(folder.path()).unwrap();
    assert_eq!(model.weights().file_count(), 2);
    for (name, _, _, bytes) in Tiny::default().hf_tensors() {
        let info = model.weights().tensor(&name).unwrap();
        assert_eq!(model.weights().tensor_data(info), bytes);
    }
}

#[test]
fn bad_indices_are_refused() {
    let open = |weight_map: serde_json::Value| {
        let folder = tempfile::tempdir().unwrap();
        write_sharded(folder.path(), weight_map);
        let error = HfFolder::open(folder.path()).unwrap_err().to_string();
        error.replace(&folder.path().display().to_string(), "")
    };
    let with = |tensor: &str, file: &str| {
        let mut map = full_map();
        map[tensor] = json!(file);
        open(map)
    };
    for outside in [
        "../x.safetensors",
        "/etc/x.safetensors",
        "..\\x.safetensors",
        "C:x.safetensors",
        "sub/x.safetensors",
        "..",
        "",
        ".safetensors",
        "x.bin",
        "x.safetensors\0.safetensors",
    ] {
        let error = with("lm_head.weight", outside);
        assert!(error.contains("weight_map"), "{outside}: {error}");
    }
    let error = with("lm_head.weight", "y.safetensors");
    assert!(
        error.contains("'lm_head.weight': is not in 'y.safetensors'"),
        "{error}"
    );
    let error = with("no.such", "y.safetensors");
    assert!(error.contains("'no.such'"), "{error}");
    let error = with("lm_head.weight", "z.safetensors");
    assert!(error.starts_with("/z.safetensors: "), "{error}");
    assert!(open(json!({})).contains("weight_map: is empty"));
    assert!(open(json!([1])).contains("JSON"));
}

#[test]
fn folders_without_weights_or_configuration_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = HfFolder::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("config.json"), "{error}");
    Tiny::default().write_folder(folder.path());
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let error = HfFolder::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("model.safetensors"), "{error}");
}

#[test]
fn chat_templates_are_found() {
    let folder = tempfile::tempdir().unwrap();
    Tiny::default().write_folder(folder.path());
    let template = |file: &str, contents: &str| {
        std::fs::write(folder.path().join(file), contents).unwrap();
        HfFolder::open(folder.path()).unwrap().chat_template()
    };
    let config = "tokenizer_config.json";
    assert_eq!(template(config, "{}").unwrap(), None);
    let one = template(config, r#"{"chat_template": "A"}"#);
    assert_eq!(one.unwrap().as_deref(), Some("A"));
    let named = r#"{"chat_template": [{"name": "tool_use", "template": "B"}, {"name": "default", "template": "C"}]}"#;
    assert_eq!(template(config, named).unwrap().as_deref(), Some("C"));
    assert!(template(config, "{").is_err());
    let file = template("chat_template.jinja", "D");
    assert_eq!(file.unwrap().as_deref(), Some("D"));
}
