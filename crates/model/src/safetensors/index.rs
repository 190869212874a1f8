//! `model.safetensors.index.json`: which tensor lies in which file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use crate::source::ModelFileError;

/// A checked index.
#[derive(Debug)]
pub(super) struct Index {
    /// Tensor to file name.
    pub weight_map: BTreeMap<String, String>,
    /// All file names in order.
    pub files: Vec<String>,
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: BTreeMap<String, String>,
}

/// Reads an index; file names that would leave the folder are refused.
pub(super) fn parse(path: &Path, contents: &[u8]) -> Result<Index, ModelFileError> {
    let raw: RawIndex = serde_json::from_slice(contents)
        .map_err(|error| ModelFileError::config(path, "JSON", error.to_string()))?;
    let files: BTreeSet<&String> = raw.weight_map.values().collect();
    if files.is_empty() {
        return Err(ModelFileError::config(path, "weight_map", "is empty"));
    }
    for name in &files {
        if !is_plain_file_name(name) {
            let reason = format!("'{name}' is not the name of a safetensors file in the folder");
            return Err(ModelFileError::config(path, "weight_map", reason));
        }
    }
    let files = files.into_iter().cloned().collect();
    Ok(Index {
        weight_map: raw.weight_map,
        files,
    })
}

/// Whether the name can only mean a file in the folder itself, on any system.
fn is_plain_file_name(name: &str) -> bool {
    name.len() > ".safetensors".len()
        && name.ends_with(".safetensors")
        && !name.starts_with('.')
        && !name.contains(['/', '\\', ':', '\0'])
}
