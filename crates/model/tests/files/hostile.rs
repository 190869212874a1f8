//! Damaged files: whatever is cut off or flipped, there is an answer and no panic.

use neap_model::config::ModelConfig;
use neap_model::gguf::{GgufFile, ModelFileError, Value};
use neap_model::safetensors::SafetensorsFiles;
use neap_model::source::{ModelSource, TensorName};
use proptest::prelude::*;

use crate::tiny::{Tiny, write_gguf, write_safetensors};

/// Opens a GGUF model and touches everything that it offers.
fn open_and_use(bytes: Vec<u8>) -> Result<(), ModelFileError> {
    let file = GgufFile::from_vec("m.gguf", bytes)?;
    for info in file.tensors() {
        assert_eq!(file.tensor_data(info).len(), info.bytes);
        assert_eq!(file.tensor(&info.name), Some(info));
    }
    for (key, value) in file.entries() {
        // Compared as text: a damaged number may be NaN.
        assert_eq!(
            format!("{:?}", file.metadata(key)),
            format!("{:?}", Some(value))
        );
    }
    let source = ModelSource::from_gguf(file)?;
    for name in TensorName::all(source.config()) {
        let _ = source.tensor(name)?.validate_finite();
    }
    source.fingerprint()?;
    Ok(())
}

fn small_gguf() -> (Vec<u8>, usize) {
    let tiny = Tiny {
        vocab: 4,
        layers: 1,
        ..Tiny::default()
    };
    let mut metadata = tiny.metadata();
    metadata.push(("a.bool".to_owned(), Value::Bool(true)));
    let bytes = write_gguf(&metadata, &tiny.gguf_tensors());
    let file = GgufFile::from_vec("m.gguf", bytes.clone()).unwrap();
    let header = file.header_bytes(0).len();
    (bytes, header)
}

#[test]
fn no_truncation_is_taken_for_a_model() {
    let (bytes, header) = small_gguf();
    open_and_use(bytes.clone()).unwrap();
    let steps = (0..header + 64).chain((header + 64..bytes.len()).step_by(97));
    for len in steps {
        let error = open_and_use(bytes[..len].to_vec()).expect_err("cut short");
        assert!(matches!(error, ModelFileError::Malformed { offset, .. } if offset <= len as u64));
    }
}

#[test]
fn every_flipped_bit_of_the_header_is_survived() {
    let (mut bytes, header) = small_gguf();
    let mut refused = 0;
    for at in 0..header {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            refused += usize::from(open_and_use(bytes.clone()).is_err());
            bytes[at] ^= 1 << bit;
        }
    }
    // Only names of tokens and values like the context length may change unnoticed.
    assert!(refused > header * 8 / 2, "{refused} of {}", header * 8);
    open_and_use(bytes).unwrap();
}

#[test]
fn damaged_safetensors_are_survived() {
    let tiny = Tiny {
        vocab: 4,
        layers: 1,
        ..Tiny::default()
    };
    let mut bytes = write_safetensors(&tiny.hf_tensors());
    let read = |bytes: &[u8]| SafetensorsFiles::from_vec("m.safetensors", bytes.to_vec());
    let header = read(&bytes).unwrap().header_bytes(0).len();
    for len in (0..header + 64).chain((header + 64..bytes.len()).step_by(97)) {
        read(&bytes[..len]).expect_err("cut short");
    }
    for at in 0..header {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            if let Ok(files) = read(&bytes) {
                for info in files.tensors() {
                    assert_eq!(files.tensor_data(info).len(), info.bytes);
                }
            }
            bytes[at] ^= 1 << bit;
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_after_the_magic_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(&bytes);
        let _ = open_and_use(file);
        let _ = open_and_use(bytes.clone());
        let _ = SafetensorsFiles::from_vec("m", bytes);
    }

    #[test]
    fn random_patches_are_survived(
        patches in proptest::collection::vec((any::<prop::sample::Index>(), any::<[u8; 8]>(), 1usize..9), 1..4),
    ) {
        let (mut bytes, header) = small_gguf();
        for (at, patch, len) in patches {
            let at = at.index(header);
            let end = (at + len).min(bytes.len());
            bytes[at..end].copy_from_slice(&patch[..end - at]);
        }
        let _ = open_and_use(bytes);
    }

    #[test]
    fn random_numbers_in_the_configuration_are_survived(
        field in 0usize..8,
        value in prop_oneof![any::<u64>(), (0u32..64).prop_map(|bits| 1 << bits), 0u64..100],
    ) {
        let tiny = Tiny { vocab: 4, layers: 1, ..Tiny::default() };
        let mut metadata = tiny.metadata();
        let at = metadata.len() - 1 - field % metadata.len();
        metadata[at].1 = Value::U64(value);
        let bytes = write_gguf(&metadata, &tiny.gguf_tensors());
        let file = GgufFile::from_vec("m.gguf", bytes.clone()).unwrap();
        let _ = ModelConfig::from_gguf(&file);
        let _ = open_and_use(bytes);
    }
}
