//! Any bytes as a GGUF model: opened, configured, loaded from, inspected.
#![no_main]

use libfuzzer_sys::fuzz_target;
use neap_model::gguf::{GgufFile, Value};
use neap_model::inspect::Inspection;
use neap_model::source::{ModelSource, TensorName};

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = GgufFile::from_vec("fuzz.gguf", bytes.to_vec()) else {
        return;
    };
    for info in file.tensors() {
        assert_eq!(file.tensor_data(info).len(), info.bytes);
        assert_eq!(info.rows() * info.cols(), info.len());
        assert_eq!(file.tensor(&info.name), Some(info));
    }
    for (key, value) in file.entries() {
        assert!(file.metadata(key).is_some());
        if let Value::Array(array) = value {
            assert!(array.len() <= bytes.len());
        }
    }
    if let Ok(file) = GgufFile::from_vec("fuzz.gguf", bytes.to_vec())
        && let Ok(mut inspection) = Inspection::of_gguf(file)
    {
        inspection.set_memory(u64::MAX, 1, 0);
        let _ = format!("{inspection:#}");
    }
    let Ok(mut source) = ModelSource::from_gguf(file) else {
        return;
    };
    use_source(&source);
    source.discard_vocabulary();
});

fn use_source(source: &ModelSource) {
    let config = source.config();
    assert!(config.heads.is_multiple_of(config.kv_heads));
    for name in TensorName::all(config) {
        let tensor = source.tensor(name).expect("checked when opened");
        assert_eq!(tensor.shape, name.shape(config));
        let _ = tensor.validate_finite();
        source.will_need(&tensor);
        source.done_with(&tensor);
    }
    let _ = source.fingerprint();
    let _ = source.chat_template();
}
