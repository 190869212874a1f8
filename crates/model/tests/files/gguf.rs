//! GGUF files: what is written is read; what is wrong is refused with the field and the offset.

use std::path::Path;

use neap_kernels::format::WeightFormat;
use neap_model::gguf::{Array, GgufFile, MAX_ARRAY_DEPTH, ModelFileError, Value, Writer};
use proptest::prelude::*;

use crate::tiny::{Raw, Tiny, write_gguf};

fn read(bytes: Vec<u8>) -> Result<GgufFile, ModelFileError> {
    GgufFile::from_vec("model.gguf", bytes)
}

/// Asserts that the bytes are refused for a reason that contains all of `parts`.
fn refused(bytes: Vec<u8>, parts: &[&str]) {
    let error = read(bytes).expect_err("must be refused").to_string();
    for part in parts.iter().chain(&["model.gguf"]) {
        assert!(error.contains(part), "'{part}' is not in: {error}");
    }
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        (-1e30f32..1e30).prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        ".{0,20}".prop_map(Value::String),
        array().prop_map(Value::Array),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        (-1e300..1e300).prop_map(Value::F64),
    ]
}

fn array() -> impl Strategy<Value = Array> {
    use proptest::collection::vec;
    let flat = prop_oneof![
        vec(any::<u8>(), 0..5).prop_map(Array::U8),
        vec(any::<i8>(), 0..5).prop_map(Array::I8),
        vec(any::<u16>(), 0..5).prop_map(Array::U16),
        vec(any::<i16>(), 0..5).prop_map(Array::I16),
        vec(any::<u32>(), 0..5).prop_map(Array::U32),
        vec(any::<i32>(), 0..5).prop_map(Array::I32),
        vec(-1e30f32..1e30, 0..5).prop_map(Array::F32),
        vec(any::<bool>(), 0..5).prop_map(Array::Bool),
        vec(".{0,8}", 0..5).prop_map(|s| Array::String(s.into_iter().collect())),
        vec(any::<u64>(), 0..5).prop_map(Array::U64),
        vec(any::<i64>(), 0..5).prop_map(Array::I64),
        vec(-1e300..1e300, 0..5).prop_map(Array::F64),
    ];
    flat.prop_recursive(MAX_ARRAY_DEPTH as u32 - 1, 20, 3, |inner| {
        vec(inner, 0..3).prop_map(Array::Array)
    })
}

proptest! {
    #[test]
    fn everything_written_is_read(
        entries in proptest::collection::btree_map("[a-z.]{1,12}", value(), 0..12),
        tensors in proptest::collection::btree_map(
            "[a-z.]{1,12}",
            (0..WeightFormat::ALL.len(), proptest::collection::vec(1usize..4, 0..4), 1usize..3, any::<u8>()),
            0..6,
        ),
        alignment in 0u32..8,
    ) {
        let mut writer = Writer::new();
        for (key, value) in &entries {
            writer.metadata(key, value.clone()).unwrap();
        }
        writer.metadata("general.alignment", 1u32 << alignment).unwrap();
        let mut contents = Vec::new();
        for (name, (format, outer, blocks, fill)) in &tensors {
            let format = WeightFormat::ALL[*format];
            let mut shape = outer.clone();
            shape.push(blocks * format.block_len());
            writer.tensor(name, &shape, format).unwrap();
            let bytes = outer.iter().product::<usize>() * blocks * format.block_bytes();
            contents.push((name, shape, format, vec![*fill; bytes]));
        }
        let mut out = writer.begin(Vec::new()).unwrap();
        for (.., bytes) in &contents {
            out.write_tensor(bytes).unwrap();
        }
        let file = read(out.finish().unwrap()).unwrap();
        prop_assert_eq!(file.entries().len(), entries.len() + 1);
        for (key, value) in &entries {
            prop_assert_eq!(file.metadata(key), Some(value));
        }
        prop_assert_eq!(file.tensors().len(), contents.len());
        for (name, shape, format, bytes) in &contents {
            let info = file.tensor(name).unwrap();
            prop_assert_eq!(&info.shape, shape);
            prop_assert_eq!(info.format, *format);
            prop_assert_eq!(info.offset % (1 << alignment), 0);
            prop_assert_eq!(file.tensor_data(info), bytes);
        }
    }
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let mut writer = Writer::new();
    writer.metadata("a", 1u8).unwrap();
    assert!(writer.metadata("a", 2u8).is_err());
    assert!(writer.metadata("", 2u8).is_err());
    assert!(writer.metadata("general.alignment", 24u32).is_err());
    writer.tensor("t", &[2], WeightFormat::F32).unwrap();
    assert!(writer.tensor("t", &[2], WeightFormat::F32).is_err());
    assert!(writer.tensor("u", &[], WeightFormat::F32).is_err());
    assert!(writer.tensor("u", &[0], WeightFormat::F32).is_err());
    assert!(writer.tensor("u", &[31], WeightFormat::Q8_0).is_err());
    assert!(writer.tensor("u", &[1; 5], WeightFormat::F32).is_err());
    let mut out = writer.clone().begin(Vec::new()).unwrap();
    assert!(out.write_tensor(&[0; 7]).is_err());
    let out = writer.clone().begin(Vec::new()).unwrap();
    assert!(out.finish().is_err());
    let mut out = writer.begin(Vec::new()).unwrap();
    out.write_tensor(&[0; 8]).unwrap();
    assert!(out.write_tensor(&[0; 8]).is_err());
}

#[test]
fn other_files_and_versions_are_refused_by_name() {
    refused(b"".to_vec(), &["magic at byte 0", "needs 4 bytes"]);
    refused(b"PK\x03\x04....".to_vec(), &["not a GGUF file"]);
    refused(b"tjgg\x01\0\0\0".to_vec(), &["old GGML file"]);
    let versioned = |version: [u8; 4]| [b"GGUF", &version[..], &[0; 16]].concat();
    refused(versioned([1, 0, 0, 0]), &["version at byte 4", "version 1"]);
    refused(versioned([4, 0, 0, 0]), &["version 4"]);
    refused(versioned([0, 0, 0, 0]), &["version 0"]);
    refused(versioned([0, 0, 0, 3]), &["big-endian"]);
    assert_eq!(read(versioned([2, 0, 0, 0])).unwrap().version(), 2);
}

#[test]
fn counts_beyond_the_file_are_refused() {
    let huge = 1 << 60;
    refused(
        Raw::header(huge, 0).0,
        &["tensor count at byte 8", "1152921504606846976"],
    );
    refused(Raw::header(0, huge).0, &["metadata count at byte 16"]);
    refused(Raw::header(0, 1).u64(huge).0, &["metadata count"]);
    let entry = || Raw::header(0, 1).string("key");
    refused(
        entry().u32(8).u64(huge).0,
        &["metadata 'key' at byte 39", "the 0 bytes left"],
    );
    refused(entry().u32(8).u64(u64::MAX).0, &["metadata 'key'"]);
    for element in 0..13 {
        refused(
            entry().u32(9).u32(element).u64(huge).0,
            &["metadata 'key' at byte 43"],
        );
    }
    // The product with the element size would wrap around to 0.
    refused(entry().u32(9).u32(6).u64(1 << 62).0, &["metadata 'key'"]);
}

#[test]
fn bad_metadata_is_refused() {
    let entry = |key: &str| Raw::header(0, 1).string(key);
    refused(
        entry("key").u32(13).u64(0).0,
        &["'key' at byte 35", "unknown value type 13"],
    );
    refused(
        entry("key").u32(9).u32(99).u64(0).0,
        &["unknown value type 99 of array elements"],
    );
    refused(
        entry("key").u32(7).u8(2).0,
        &["'key' at byte 39", "0 or 1, not 2"],
    );
    refused(
        entry("key").u32(9).u32(7).u64(2).u8(1).u8(3).0,
        &["at byte 52", "not 3"],
    );
    refused(
        entry("").u32(0).u64(0).0,
        &["key of metadata entry 0 at byte 24", "empty"],
    );
    let not_utf8 = Raw::header(0, 1).bytes(b"ab\xff").u32(0).u64(0);
    refused(not_utf8.0, &["entry 0 at byte 34", "UTF-8"]);
    let text = entry("key").u32(8).bytes(b"x\xc3").0;
    refused(text, &["metadata 'key'", "UTF-8"]);
    let twice = Raw::header(0, 2)
        .string("key")
        .u32(0)
        .u8(1)
        .string("key")
        .u32(0)
        .u8(1);
    refused(twice.0, &["'key' at byte 40", "twice"]);
    for alignment in [0u32, 3, 33, 1 << 21] {
        let raw = entry("general.alignment").u32(4).u32(alignment).0;
        refused(raw, &["'general.alignment' at byte 24", "power of two"]);
    }
    refused(
        entry("general.alignment").u32(8).string("32").0,
        &["general.alignment"],
    );
}

#[test]
fn arrays_in_arrays_end_somewhere() {
    let nested = |depth: usize| {
        let mut raw = Raw::header(0, 1).string("key").u32(9);
        for _ in 1..depth {
            raw = raw.u32(9).u64(1);
        }
        raw.u32(4).u64(1).u32(7).0
    };
    let file = read(nested(MAX_ARRAY_DEPTH)).unwrap();
    let mut array = file.metadata("key").unwrap().as_array().unwrap();
    while let Array::Array(inner) = array {
        array = &inner[0];
    }
    assert_eq!(*array, Array::U32(vec![7]));
    refused(nested(MAX_ARRAY_DEPTH + 1), &["metadata 'key'", "deep"]);
    refused(nested(100_000), &["metadata 'key'", "deep"]);
}

#[test]
fn bad_tensor_infos_are_refused() {
    let one = |dims: &[u64], type_id, offset| {
        Raw::header(1, 0)
            .info("w", dims, type_id, offset)
            .data(4096)
    };
    assert_eq!(read(one(&[4, 2], 0, 0)).unwrap().tensors()[0].shape, [2, 4]);
    refused(one(&[4, 0], 0, 0), &["dimensions of tensor 'w'", "of 0"]);
    refused(one(&[], 0, 0), &["dimensions of tensor 'w'", "not 0"]);
    refused(one(&[1; 5], 0, 0), &["1 to 4, not 5"]);
    refused(one(&[1 << 33, 1 << 33], 0, 0), &["too large"]);
    refused(one(&[1 << 62, 2, 2], 0, 0), &["too large"]);
    refused(one(&[1 << 62], 0, 0), &["too large"]);
    refused(one(&[48], 8, 0), &["no multiple of 32", "Q8_0"]);
    refused(one(&[128], 12, 0), &["no multiple of 256", "Q4_K"]);
    refused(
        one(&[256], 16, 0),
        &["type of tensor 'w'", "IQ2_XXS (type 16)"],
    );
    refused(one(&[32], 4, 0), &["type 4 is not known"]);
    refused(one(&[32], u32::MAX, 0), &["type 4294967295 is not known"]);
    refused(
        one(&[4], 0, 16),
        &["16 is no multiple of the alignment, 32"],
    );
    refused(
        one(&[1024], 0, 32),
        &["offset of tensor 'w'", "past the end"],
    );
    refused(one(&[1024], 0, u64::MAX - 31), &["past the end"]);
    refused(one(&[1 << 40], 0, 0), &["past the end"]);
    let bad_name = Raw::header(1, 0).bytes(b"\xff").u32(1).u64(1).u32(0).u64(0);
    refused(bad_name.data(32), &["name of tensor 0", "UTF-8"]);
}

#[test]
fn tensors_may_not_overlap_or_share_a_name() {
    let two = |name: &str, offset| {
        Raw::header(2, 0)
            .info("a", &[16], 0, 0)
            .info(name, &[16], 0, offset)
            .data(256)
    };
    assert!(read(two("b", 64)).is_ok());
    refused(two("b", 32), &["tensor 'b'", "overlaps tensor 'a'"]);
    refused(two("b", 0), &["overlaps"]);
    refused(two("a", 64), &["name of tensor 'a' at byte 57", "another"]);
    // Also out of order.
    let reversed = Raw::header(2, 0)
        .info("a", &[16], 0, 64)
        .info("b", &[17], 0, 0);
    refused(reversed.data(256), &["tensor 'a'", "overlaps tensor 'b'"]);
}

fn part(number: u32, count: u32, total: u32, tensors: &[&str]) -> Vec<u8> {
    let metadata = [
        ("split.no".to_owned(), Value::U16(number as u16)),
        ("split.count".to_owned(), Value::U16(count as u16)),
        ("split.tensors.count".to_owned(), Value::I32(total as i32)),
    ];
    let tensor = |name: &&str| {
        let fill = vec![number as u8; 8];
        ((*name).to_owned(), vec![2], WeightFormat::F32, fill)
    };
    write_gguf(&metadata, &tensors.iter().map(tensor).collect::<Vec<_>>())
}

fn write_parts(folder: &Path, parts: &[Vec<u8>]) -> std::path::PathBuf {
    let path = |i: usize| folder.join(format!("m-{:05}-of-{:05}.gguf", i + 1, parts.len()));
    for (i, bytes) in parts.iter().enumerate() {
        std::fs::write(path(i), bytes).unwrap();
    }
    path(0)
}

#[test]
fn split_models_are_opened_as_one_by_any_part() {
    let folder = tempfile::tempdir().unwrap();
    let first = write_parts(
        folder.path(),
        &[
            part(0, 3, 3, &["a"]),
            part(1, 3, 3, &["b"]),
            part(2, 3, 3, &["c"]),
        ],
    );
    let second = folder.path().join("m-00002-of-00003.gguf");
    for path in [&first, &second] {
        let file = GgufFile::open(path).unwrap();
        assert_eq!((file.file_count(), file.path()), (3, first.as_path()));
        for (i, name) in ["a", "b", "c"].into_iter().enumerate() {
            let info = file.tensor(name).unwrap();
            assert_eq!(info.file, i);
            assert_eq!(file.tensor_data(info), [i as u8; 8]);
        }
    }
}

#[test]
fn bad_splits_are_refused() {
    let open = |parts: &[Vec<u8>]| {
        let folder = tempfile::tempdir().unwrap();
        let first = write_parts(folder.path(), parts);
        GgufFile::open(first).unwrap_err().to_string()
    };
    let error = open(&[part(0, 2, 2, &["a"]), part(0, 2, 2, &["b"])]);
    assert!(error.contains("split.no"), "{error}");
    let error = open(&[part(0, 2, 2, &["a"]), part(1, 2, 2, &["a"])]);
    assert!(
        error.contains("'a'") && error.contains("another file"),
        "{error}"
    );
    let error = open(&[part(0, 2, 5, &["a"]), part(1, 2, 5, &["b"])]);
    assert!(error.contains("split.tensors.count"), "{error}");
    let error = open(&[part(0, 3, 2, &["a"]), part(1, 3, 2, &["b"])]);
    assert!(error.contains("'-00001-of-00003.gguf'"), "{error}");
    let error = open(&[part(0, 2, 2, &["a"]), Tiny::default().gguf()]);
    assert!(error.contains("split.count"), "{error}");
    let error = open(&[part(7, 2, 2, &["a"]), part(1, 2, 2, &["b"])]);
    assert!(error.contains("split.no"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("m-00001-of-00002.gguf");
    std::fs::write(&alone, part(0, 2, 2, &["a"])).unwrap();
    let error = GgufFile::open(alone).unwrap_err().to_string();
    assert!(
        error.contains("m-00002-of-00002.gguf") && error.contains("missing"),
        "{error}"
    );
    refused(part(0, 2, 2, &["a"]), &["split.count"]);
}

#[test]
fn a_missing_file_and_a_folder_are_refused() {
    let error = GgufFile::open("/no/such/file.gguf").unwrap_err();
    assert!(matches!(error, ModelFileError::Io { .. }));
    assert!(error.to_string().contains("/no/such/file.gguf"));
    assert!(GgufFile::open(std::env::temp_dir()).is_err());
}

#[test]
fn the_vocabulary_can_be_discarded() {
    let mut file = read(Tiny::default().gguf()).unwrap();
    let tokens = |file: &GgufFile| {
        let value = file.metadata("tokenizer.ggml.tokens").unwrap();
        value.as_array().unwrap().len()
    };
    assert_eq!(tokens(&file), 40);
    file.discard_vocabulary();
    assert_eq!(tokens(&file), 0);
    assert!(file.metadata("tokenizer.ggml.bos_token_id").is_some());
}
