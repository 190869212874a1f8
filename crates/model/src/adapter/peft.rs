//! Adapters as Hugging Face's PEFT saves them: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use regex::Regex;
use serde::Deserialize;
use serde_json::Value;

use super::{ModelConfig, NamedPair, SafetensorsFiles, pair_up};
use crate::safetensors::read_json;
use crate::source::{ModelFileError, TensorInfo};

/// What stands before the names of the model's own modules.
const PREFIX: &str = "base_model.model.";

/// An adapter's folder, open.
pub(super) struct Folder {
    path: PathBuf,
    /// `adapter_config.json`.
    pub config: Vec<u8>,
    pub weights: SafetensorsFiles,
}

impl Folder {
    pub fn open(folder: &Path) -> Result<Self, ModelFileError> {
        let path = folder.join("adapter_config.json");
        Ok(Self {
            config: read_json(&path)?,
            path,
            weights: SafetensorsFiles::open(&[folder.join("adapter_model.safetensors")])?,
        })
    }
}

/// The fields of `adapter_config.json` that say how to compute. Those that ask for something else are refused by
/// [`Config::check`].
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    peft_type: String,
    r: usize,
    lora_alpha: f32,
    #[serde(default)]
    use_rslora: bool,
    rank_pattern: Option<BTreeMap<String, usize>>,
    alpha_pattern: Option<BTreeMap<String, f32>>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

/// What the folder adapts, by the names that models have in Hugging Face folders.
pub(super) fn pairs(
    folder: &Folder,
    model: &ModelConfig,
) -> Result<Vec<NamedPair>, ModelFileError> {
    let config = Config::read(folder)?;
    let ranks = Patterns::new(folder, "rank_pattern", config.rank_pattern.as_ref())?;
    let alphas = Patterns::new(folder, "alpha_pattern", config.alpha_pattern.as_ref())?;
    let tensors = folder.weights.tensors();
    let parts = tensors.iter().enumerate().filter_map(|(number, info)| {
        let name = info.name.as_str();
        if is_output_of_model(info, model) {
            return None;
        }
        let module = name.strip_prefix(PREFIX).unwrap_or(name);
        let a = module.strip_suffix(".lora_A.weight").map(|m| (m, true));
        let b = module.strip_suffix(".lora_B.weight").map(|m| (m, false));
        Some((number, name, a.or(b)))
    });
    let weights_path = folder.weights.file_path(0);
    let mut named = Vec::new();
    for (module, a, b) in pair_up(weights_path, parts)? {
        let rank = ranks.of(&module).unwrap_or(config.r);
        let alpha = alphas.of(&module).unwrap_or(config.lora_alpha);
        let found = tensors[a].shape[0];
        if found != rank {
            let reason = format!("has the rank {found}, adapter_config.json says {rank}");
            return Err(ModelFileError::tensor(
                weights_path,
                &tensors[a].name,
                reason,
            ));
        }
        let over = match config.use_rslora {
            true => (rank as f32).sqrt(),
            false => rank as f32,
        };
        named.push(NamedPair {
            module,
            a,
            b,
            scale: alpha / over,
        });
    }
    Ok(named)
}

/// PEFT saves the model's own output matrix beside an adapter of it. One of another shape would be of another model.
fn is_output_of_model(info: &TensorInfo, model: &ModelConfig) -> bool {
    let is_output = info.name.ends_with("lm_head.base_layer.weight");
    is_output && info.shape == [model.vocab_size, model.hidden_size]
}

impl Config {
    fn read(folder: &Folder) -> Result<Self, ModelFileError> {
        let config: Self = serde_json::from_slice(&folder.config)
            .map_err(|error| ModelFileError::config(&folder.path, "JSON", error.to_string()))?;
        config.check(&folder.path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<(), ModelFileError> {
        let refuse = |field: &str, reason: String| Err(ModelFileError::config(path, field, reason));
        if self.peft_type != "LORA" {
            let reason = format!("is {:?}: only \"LORA\" is supported", self.peft_type);
            return refuse("peft_type", reason);
        }
        if self.r == 0 {
            return refuse("r", "must be at least 1".to_owned());
        }
        // Each would make other products of the same tensors, or come with tensors of its own.
        let must_be_off = [
            "use_dora",
            "use_qalora",
            "lora_bias",
            "modules_to_save",
            "alora_invocation_tokens",
            "trainable_token_indices",
            "target_parameters",
            "layer_replication",
            "megatron_config",
            "arrow_config",
        ];
        for field in must_be_off {
            let is_off = match self.rest.get(field) {
                None | Some(Value::Null | Value::Bool(false)) => true,
                Some(Value::Array(list)) => list.is_empty(),
                Some(Value::Object(map)) => map.is_empty(),
                Some(_) => false,
            };
            if !is_off {
                return refuse(field, "is not supported".to_owned());
            }
        }
        match self.rest.get("bias").and_then(Value::as_str) {
            None | Some("none") => Ok(()),
            Some(other) => refuse("bias", format!("{other:?} is not supported")),
        }
    }
}

/// Values for modules whose names end as an expression says.
struct Patterns<V>(Vec<(Regex, V)>);

impl<V: Copy> Patterns<V> {
    fn new(
        folder: &Folder,
        field: &str,
        patterns: Option<&BTreeMap<String, V>>,
    ) -> Result<Self, ModelFileError> {
        let patterns = patterns.into_iter().flatten();
        let compiled = patterns.map(|(pattern, value)| {
            let whole = Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"));
            let whole = whole.map_err(|why| {
                ModelFileError::config(&folder.path, field, format!("{pattern:?}: {why}"))
            })?;
            Ok((whole, *value))
        });
        compiled.collect::<Result<_, _>>().map(Self)
    }

    fn of(&self, module: &str) -> Option<V> {
        let found = self.0.iter().find(|(pattern, _)| pattern.is_match(module));
        found.map(|(_, value)| *value)
    }
}
