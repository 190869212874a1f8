//! Adapters in GGUF files, as llama.cpp's `convert_lora_to_gguf.py` writes them.

use super::{NamedPair, pair_up};
use crate::config::ModelConfig;
use crate::gguf::{GgufFile, Value};
use crate::source::ModelFileError;

/// What the file adapts, by the names that models have in GGUF files.
pub(super) fn pairs(
    file: &GgufFile,
    config: &ModelConfig,
) -> Result<Vec<NamedPair>, ModelFileError> {
    let text = |key: &str| file.metadata(key).and_then(Value::as_str).unwrap_or("");
    let refuse = |key: &str, reason: String| Err(ModelFileError::config(file.path(), key, reason));
    for (key, must) in [("general.type", "adapter"), ("adapter.type", "lora")] {
        if text(key) != must {
            return refuse(key, format!("is {:?}, not {must:?}", text(key)));
        }
    }
    let name = config.gguf_architecture().row().gguf_name.unwrap_or("");
    let key = "general.architecture";
    if text(key) != name {
        return refuse(key, format!("is {:?}, the model's is {name:?}", text(key)));
    }
    let key = "adapter.alora.invocation_tokens";
    if file.metadata(key).is_some() {
        return refuse(
            key,
            "adapters that begin with certain tokens are not supported".into(),
        );
    }
    let key = "adapter.lora.alpha";
    let Some(alpha) = file.metadata(key).and_then(Value::as_f32) else {
        return refuse(key, "must be a number".into());
    };
    let parts = file.tensors().iter().enumerate().map(|(number, info)| {
        let name = info.name.as_str();
        let part = match (name.strip_suffix(".lora_a"), name.strip_suffix(".lora_b")) {
            (Some(module), _) => Some((module, true)),
            (None, Some(module)) => Some((module, false)),
            (None, None) => None,
        };
        (number, name, part)
    });
    let pairs = pair_up(file.path(), parts)?.into_iter();
    let named = pairs.map(|(module, a, b)| {
        let rank = file.tensors()[a].shape[0] as f32;
        // As llama.cpp has it: without an alpha the product is added as it is.
        let scale = if alpha == 0.0 { 1.0 } else { alpha / rank };
        NamedPair {
            module: module.strip_suffix(".weight").unwrap_or(&module).to_owned(),
            a,
            b,
            scale,
        }
    });
    Ok(named.collect())
}
