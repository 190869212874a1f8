//! Hugging Face folders: `config.json`, `tokenizer.json`, and weights in one safetensors file or several.
//!
//! ```text
//! model.safetensors = | header length u64 | header, JSON | data |
//! header = { "name": { "dtype": "BF16", "shape": [rows, cols], "data_offsets": [begin, end] }, … }
//! ```
//! Offsets count from the start of the data. Weights in F32, F16, BF16 and FP8 are read, and matrices that are packed in 4 bits.

mod header;
mod index;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::config::{HfConfigFiles, ModelConfig};
use crate::mmap::FileBytes;
use crate::source::HF_PREFIXES;
use crate::source::error::git_lfs_pointer;
use crate::source::tensor::NameIndex;
pub use crate::source::{ModelFileError, TensorInfo};

const PICKLED: &str = "are in PyTorch's own form, which can run code and is not read: save them as safetensors (save_pretrained does)";
/// JSON files beside the weights may be this long.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// The tensors of one or several safetensors files, open for reading.
#[derive(Debug)]
pub struct SafetensorsFiles {
    parts: Vec<Part>,
    tensors: Vec<TensorInfo>,
    tensor_index: NameIndex,
}

/// One file.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    bytes: FileBytes,
    header_bytes: usize,
}

impl SafetensorsFiles {
    /// Opens and checks files that together hold the tensors of one model.
    ///
    /// # Errors
    /// If a file cannot be mapped, breaks the format's rules, holds a tensor of a type that is not supported, or two
    /// files hold tensors of one name.
    pub fn open(paths: &[PathBuf]) -> Result<Self, ModelFileError> {
        let map = |path: &PathBuf| match FileBytes::open(path) {
            Ok(bytes) => Ok((path.clone(), bytes)),
            Err(error) => Err(ModelFileError::io(path, error)),
        };
        Self::assemble(paths.iter().map(map))
    }

    /// Reads one safetensors file from memory; `name` stands for the path in messages.
    ///
    /// # Errors
    /// As [`SafetensorsFiles::open`].
    pub fn from_vec(name: impl Into<PathBuf>, bytes: Vec<u8>) -> Result<Self, ModelFileError> {
        Self::assemble([Ok((name.into(), FileBytes::from_vec(bytes)))])
    }

    fn assemble(
        files: impl IntoIterator<Item = Result<(PathBuf, FileBytes), ModelFileError>>,
    ) -> Result<Self, ModelFileError> {
        let mut parts = Vec::new();
        let mut tensors = Vec::new();
        for file in files {
            let (path, bytes) = file?;
            let parsed = header::parse(&bytes, parts.len()).map_err(|fault| fault.at(&path))?;
            tensors.extend(parsed.tensors);
            parts.push(Part {
                path,
                bytes,
                header_bytes: parsed.end,
            });
        }
        let tensor_index = NameIndex::build(|i| &tensors[i].name, tensors.len());
        let tensor_index = tensor_index.map_err(|again| {
            let info: &TensorInfo = &tensors[again];
            let reason = "is in another file of the model too";
            ModelFileError::tensor(&parts[info.file].path, &info.name, reason)
        })?;
        Ok(Self {
            parts,
            tensors,
            tensor_index,
        })
    }

    /// All tensors in the order of the files and, within a file, of the data.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        Some(&self.tensors[self.tensor_number(name)?])
    }

    pub(crate) fn tensor_number(&self, name: &str) -> Option<usize> {
        self.tensor_index.find(|i| &self.tensors[i].name, name)
    }

    /// The bytes of a tensor of these files, as they lie there: not aligned.
    ///
    /// # Panics
    /// If `tensor` is not one of [`SafetensorsFiles::tensors`].
    pub fn tensor_data(&self, tensor: &TensorInfo) -> &[u8] {
        &self.parts[tensor.file].bytes[tensor.range()]
    }

    /// The number of files.
    pub fn file_count(&self) -> usize {
        self.parts.len()
    }

    /// The path of a file by its number in [`TensorInfo::file`].
    pub fn file_path(&self, file: usize) -> &Path {
        &self.parts[file].path
    }

    /// The contents of a file by its number in [`TensorInfo::file`].
    pub fn file_bytes(&self, file: usize) -> &FileBytes {
        &self.parts[file].bytes
    }

    /// The header of a file, as it is.
    pub fn header_bytes(&self, file: usize) -> &[u8] {
        let part = &self.parts[file];
        &part.bytes[..part.header_bytes]
    }
}

/// A Hugging Face folder, open for reading.
#[derive(Debug)]
pub struct HfFolder {
    folder: PathBuf,
    config_path: PathBuf,
    config: Vec<u8>,
    generation: Option<(PathBuf, Vec<u8>)>,
    quantize: Option<(PathBuf, Vec<u8>)>,
    weights: SafetensorsFiles,
}

impl HfFolder {
    /// Opens a folder with `config.json` and `model.safetensors` or `model.safetensors.index.json`.
    ///
    /// # Errors
    /// If a file is missing or malformed; the index names a file outside the folder; or a tensor is not in the file
    /// where the index puts it.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, ModelFileError> {
        let folder = folder.as_ref().to_owned();
        let config_path = folder.join("config.json");
        let config = read_json(&config_path)?;
        let optional = |name: &str| {
            let path = folder.join(name);
            let is_there = path.is_file();
            let read = is_there.then(|| read_json(&path)).transpose();
            read.map(|contents| contents.map(|contents| (path, contents)))
        };
        let generation = optional("generation_config.json")?;
        let quantize = optional("quantize_config.json")?;
        let weights = open_weights(&folder)?;
        Ok(Self {
            folder,
            config_path,
            config,
            generation,
            quantize,
            weights,
        })
    }

    /// Puts a folder together from the contents of `config.json` and `model.safetensors`; `name` stands for its path.
    ///
    /// # Errors
    /// As [`SafetensorsFiles::open`].
    pub fn from_vecs(
        name: impl Into<PathBuf>,
        config: Vec<u8>,
        weights: Vec<u8>,
    ) -> Result<Self, ModelFileError> {
        let folder = name.into();
        let weights = SafetensorsFiles::from_vec(folder.join("model.safetensors"), weights)?;
        Ok(Self {
            config_path: folder.join("config.json"),
            folder,
            config,
            generation: None,
            quantize: None,
            weights,
        })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// The weights.
    pub fn weights(&self) -> &SafetensorsFiles {
        &self.weights
    }

    /// The contents of `config.json`.
    pub fn config_json(&self) -> &[u8] {
        &self.config
    }

    /// The contents of `generation_config.json`, if there is one.
    pub fn generation_config_json(&self) -> Option<&[u8]> {
        self.generation
            .as_ref()
            .map(|(_, contents)| contents.as_slice())
    }

    /// The contents of `quantize_config.json`, if there is one.
    pub fn quantize_config_json(&self) -> Option<&[u8]> {
        self.quantize.as_ref().map(|(_, contents)| &contents[..])
    }

    /// The path of `tokenizer.json`, if there is one.
    pub fn tokenizer_json(&self) -> Option<PathBuf> {
        self.existing("tokenizer.json")
    }

    /// The path of `tokenizer_config.json`, if there is one.
    pub fn tokenizer_config_json(&self) -> Option<PathBuf> {
        self.existing("tokenizer_config.json")
    }

    /// The chat template: `chat_template.jinja`, or the (default) one in `tokenizer_config.json` or `chat_template.json`.
    ///
    /// # Errors
    /// If the file that holds it cannot be read, is not JSON or not UTF-8.
    pub fn chat_template(&self) -> Result<Option<String>, ModelFileError> {
        if let Some(path) = self.existing("chat_template.jinja") {
            let text = String::from_utf8(read_json(&path)?);
            return text
                .map(Some)
                .map_err(|_| ModelFileError::config(&path, "text", "is not UTF-8"));
        }
        // Models with more parts than one for text may have it in a file of its own.
        for path in [
            self.tokenizer_config_json(),
            self.existing("chat_template.json"),
        ]
        .into_iter()
        .flatten()
        {
            if let Some(template) = template_in_json(&path, &read_json(&path)?)? {
                return Ok(Some(template));
            }
        }
        Ok(None)
    }

    /// Reads and checks the configuration.
    ///
    /// # Errors
    /// If the architecture is not known, or a field is missing, out of range, or asks for something not supported.
    pub fn config(&self) -> Result<ModelConfig, ModelFileError> {
        fn lent(file: &(PathBuf, Vec<u8>)) -> (&Path, &[u8]) {
            (&file.0, &file.1)
        }
        let files = HfConfigFiles {
            path: &self.config_path,
            config: &self.config,
            generation: self.generation.as_ref().map(lent),
            quantize: self.quantize.as_ref().map(lent),
        };
        let mut config = ModelConfig::from_hf(files, &|suffix| {
            HF_PREFIXES.iter().any(|prefix| {
                let name = format!("{prefix}layers.0.{suffix}");
                self.weights.tensor(&name).is_some()
            })
        })?;
        // An inner model alone, as embedders are published, writes no text; nor does one with a head that judges texts.
        let has = |name: &str| self.weights.tensor(name).is_some();
        let is_inner = has("embed_tokens.weight") || has("score.weight");
        if is_inner && !config.tied_embeddings && !has("lm_head.weight") {
            config.has_output = false;
        }
        Ok(config)
    }

    /// `model_type` of `config.json`.
    pub(crate) fn model_type(&self) -> Result<String, ModelFileError> {
        crate::config::model_type(&self.config_path, &self.config)
    }

    fn existing(&self, name: &str) -> Option<PathBuf> {
        let path = self.folder.join(name);
        path.is_file().then_some(path)
    }
}

fn open_weights(folder: &Path) -> Result<SafetensorsFiles, ModelFileError> {
    let index_path = folder.join("model.safetensors.index.json");
    if !index_path.is_file() {
        let single = folder.join("model.safetensors");
        let pickled =
            ["pytorch_model.bin", "pytorch_model.bin.index.json"].map(|name| folder.join(name));
        let pickled = pickled.into_iter().find(|path| path.is_file());
        return match pickled.filter(|_| !single.is_file()) {
            Some(path) => Err(ModelFileError::config(&path, "weights", PICKLED)),
            None => SafetensorsFiles::open(&[single]),
        };
    }
    let index = index::parse(&index_path, &read_json(&index_path)?)?;
    let paths: Vec<_> = index.files.iter().map(|name| folder.join(name)).collect();
    let weights = SafetensorsFiles::open(&paths)?;
    for (tensor, file) in &index.weight_map {
        match weights.tensor(tensor) {
            Some(info) if index.files[info.file] == *file => {}
            None if header::is_derived(tensor) => {}
            _ => {
                let reason = format!("is not in '{file}', where the index puts it");
                return Err(ModelFileError::tensor(&index_path, tensor, reason));
            }
        }
    }
    Ok(weights)
}

/// Reads a whole text file of limited length.
pub(crate) fn read_json(path: &Path) -> Result<Vec<u8>, ModelFileError> {
    let io = |error| ModelFileError::io(path, error);
    let mut contents = Vec::new();
    let file = File::open(path).map_err(io)?;
    file.take(MAX_JSON_BYTES + 1)
        .read_to_end(&mut contents)
        .map_err(io)?;
    if contents.len() as u64 > MAX_JSON_BYTES {
        let reason = format!("is longer than {MAX_JSON_BYTES} bytes");
        return Err(ModelFileError::config(path, "file", reason));
    }
    if let Some(reason) = git_lfs_pointer(&contents) {
        return Err(ModelFileError::config(path, "file", reason));
    }
    Ok(contents)
}

/// `chat_template` of a `tokenizer_config.json`: a string, or a list of named ones with a default.
fn template_in_json(path: &Path, contents: &[u8]) -> Result<Option<String>, ModelFileError> {
    #[derive(serde::Deserialize)]
    struct TokenizerConfig {
        chat_template: Option<Templates>,
    }
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Templates {
        One(String),
        Named(Vec<Named>),
    }
    #[derive(serde::Deserialize)]
    struct Named {
        name: String,
        template: String,
    }
    let config: TokenizerConfig = serde_json::from_slice(contents)
        .map_err(|error| ModelFileError::config(path, "JSON", error.to_string()))?;
    Ok(match config.chat_template {
        None => None,
        Some(Templates::One(template)) => Some(template),
        Some(Templates::Named(all)) => all
            .into_iter()
            .find(|named| named.name == "default")
            .map(|named| named.template),
    })
}
