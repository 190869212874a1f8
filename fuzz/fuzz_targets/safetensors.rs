//! Any bytes as a Hugging Face folder: `config.json` up to the first zero byte, then `model.safetensors`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use neap_model::inspect::Inspection;
use neap_model::safetensors::{HfFolder, SafetensorsFiles};
use neap_model::source::{ModelSource, TensorName};

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(2, |&byte| byte == 0);
    let config = parts.next().unwrap_or_default().to_vec();
    let weights = parts.next().unwrap_or_default().to_vec();
    let Ok(files) = SafetensorsFiles::from_vec("fuzz.safetensors", weights.clone()) else {
        return;
    };
    for info in files.tensors() {
        assert_eq!(files.tensor_data(info).len(), info.bytes);
        assert_eq!(info.rows() * info.cols(), info.len());
        assert_eq!(files.tensor(&info.name), Some(info));
    }
    let open = || HfFolder::from_vecs("/nonexistent", config.clone(), weights.clone());
    if let Ok(Ok(mut inspection)) = open().map(Inspection::of_folder) {
        inspection.set_memory(u64::MAX, 1, 0);
        let _ = format!("{inspection:#}");
    }
    let Ok(Ok(source)) = open().map(ModelSource::from_folder) else {
        return;
    };
    for name in TensorName::all(source.config()) {
        let tensor = source.tensor(name).expect("checked when opened");
        assert_eq!(tensor.shape, name.shape(source.config()));
        let _ = tensor.validate_finite();
    }
    let _ = source.fingerprint();
});
