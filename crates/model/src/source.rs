//! What the decoder loads from: a model's configuration and its tensors under canonical names, whether they lie in GGUF
//! files or in a Hugging Face folder.
//!
//! The bytes stay in the mapped file. A decoder that repacks weights asks for a tensor, tells the system that it will
//! need the next one, and that it is done with the last, so that no more than a few tensors of the file are resident.

pub mod error;
mod files;
mod fingerprint;
mod finite;
mod locate;
mod names;
mod packed;
mod read;
pub mod tensor;

use std::collections::HashMap;
use std::path::Path;

pub use error::ModelFileError;
pub(crate) use files::{HF_PREFIXES, Naming, Part, candidates};
pub use fingerprint::Fingerprint;
pub use finite::first_non_finite;
pub(crate) use locate::gguf_place;
pub use names::{ExpertTensor, LayerTensor, TensorName};
use neap_kernels::format::WeightFormat;
pub use tensor::{Stored, TensorInfo};

use crate::config::ModelConfig;
use crate::gguf::{GgufFile, Value};
use crate::mmap::FileBytes;
use crate::safetensors::HfFolder;
use locate::Located;
pub(crate) use read::third_of_heads;

/// A model, open for loading: every tensor that its configuration asks for is there, in the right shape.
#[derive(Debug)]
pub struct ModelSource {
    config: ModelConfig,
    container: Container,
    located: HashMap<TensorName, Located>,
    weight_bytes: u64,
    /// What matrices are quantized to as they are read.
    quantize: Option<WeightFormat>,
}

#[derive(Debug)]
enum Container {
    Gguf(GgufFile),
    HuggingFace(HfFolder),
}

/// One tensor as the decoder sees it.
#[derive(Clone, Copy, Debug)]
pub struct SourceTensor<'a> {
    /// The file, for messages.
    pub path: &'a Path,
    /// The name in the file, for messages.
    pub name: &'a str,
    /// How the values are encoded.
    pub format: WeightFormat,
    /// The dimensions, outermost first: `[rows, cols]` for a matrix, with `cols` contiguous.
    pub shape: &'a [usize],
    /// The encoded values where [`SourceTensor::is_direct`]; else what they are made from. Not aligned.
    pub bytes: &'a [u8],
    file: usize,
    offset: usize,
    located: &'a Located,
    source: &'a ModelSource,
}

impl SourceTensor<'_> {
    /// The product of all dimensions but the innermost; 1 for a vector.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    /// The innermost dimension.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(0)
    }

    /// The number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of the values in [`SourceTensor::format`].
    pub fn encoded_bytes(&self) -> usize {
        self.len() / self.format.block_len() * self.format.block_bytes()
    }

    /// Always false: there are no tensors without values.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Reads the whole tensor for values, or scales of quantized blocks, that are NaN or infinite.
    ///
    /// # Errors
    /// If there are any; the message names the tensor and the offset in the file.
    pub fn validate_finite(&self) -> Result<(), ModelFileError> {
        if !self.is_direct() {
            return Ok(()); // checked as they are made
        }
        let Some(block) = first_non_finite(self.format, self.bytes) else {
            return Ok(());
        };
        let at = self.offset + block * self.format.block_bytes();
        let what = if self.format.is_float() {
            "value"
        } else {
            "scale of the block"
        };
        let reason = format!(
            "the {what} at byte {at} is not a finite number ({})",
            self.format.name()
        );
        Err(ModelFileError::tensor(self.path, self.name, reason))
    }
}

impl ModelSource {
    /// Opens a GGUF file (any file of a split one), or a Hugging Face folder (or its `config.json` or safetensors file).
    ///
    /// # Errors
    /// If the files are malformed, the architecture or an option is not supported, or a tensor is missing, misshapen
    /// or not known.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelFileError> {
        let path = path.as_ref();
        match Self::folder_of(path) {
            Some(folder) => Self::from_folder(HfFolder::open(folder)?),
            None => Self::from_gguf(GgufFile::open(path)?),
        }
    }

    /// The Hugging Face folder that is meant by `path`, if it does not mean a GGUF file.
    pub(crate) fn folder_of(path: &Path) -> Option<&Path> {
        if path.is_dir() {
            return Some(path);
        }
        match path.extension()?.to_str()? {
            "json" | "safetensors" => path.parent(),
            _ => None,
        }
    }

    /// Takes an open Hugging Face folder.
    ///
    /// # Errors
    /// As [`ModelSource::open`].
    pub fn from_folder(folder: HfFolder) -> Result<Self, ModelFileError> {
        let config = folder.config()?;
        Self::assemble(config, Container::HuggingFace(folder))
    }

    /// Takes an open GGUF model.
    ///
    /// # Errors
    /// As [`ModelSource::open`].
    pub fn from_gguf(file: GgufFile) -> Result<Self, ModelFileError> {
        let config = ModelConfig::from_gguf(&file)?;
        Self::assemble(config, Container::Gguf(file))
    }

    fn assemble(config: ModelConfig, container: Container) -> Result<Self, ModelFileError> {
        let located = locate::locate(&config, &container)?;
        let weight_bytes = located.values().map(|place| place.bytes as u64).sum();
        Ok(Self {
            config,
            container,
            located,
            weight_bytes,
            quantize: None,
        })
    }

    /// The shape and options of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Allows another context than the file names, but for models whose positions are learned no longer one than
    /// those. Longer ones work as well as the model's rotary embedding reaches: that is for the user to judge.
    pub fn set_context_length(&mut self, tokens: usize) {
        let most = self.config.learned_positions.unwrap_or(usize::MAX);
        self.config.context_length = tokens.clamp(1, most);
    }

    /// The path that was opened: the (first) GGUF file, or the folder.
    pub fn path(&self) -> &Path {
        self.container.path()
    }

    /// The GGUF model behind this source, if it is one: it holds the tokenizer and the chat template.
    pub fn gguf(&self) -> Option<&GgufFile> {
        match &self.container {
            Container::Gguf(file) => Some(file),
            Container::HuggingFace(_) => None,
        }
    }

    /// Frees the copy of the vocabulary that comes with GGUF metadata, once the tokenizer is built from it.
    pub fn discard_vocabulary(&mut self) {
        match &mut self.container {
            Container::Gguf(file) => file.discard_vocabulary(),
            Container::HuggingFace(_) => {}
        }
    }

    /// The Hugging Face folder behind this source, if it is one.
    pub fn folder(&self) -> Option<&HfFolder> {
        match &self.container {
            Container::Gguf(_) => None,
            Container::HuggingFace(folder) => Some(folder),
        }
    }

    /// The text of the model's chat template, if it has one.
    ///
    /// # Errors
    /// If it cannot be read from the folder.
    pub fn chat_template(&self) -> Result<Option<String>, ModelFileError> {
        match &self.container {
            Container::Gguf(file) => {
                let template = file.metadata("tokenizer.chat_template");
                Ok(template.and_then(Value::as_str).map(str::to_owned))
            }
            Container::HuggingFace(folder) => folder.chat_template(),
        }
    }

    /// What tells this model from every other: see [`Fingerprint`].
    ///
    /// # Errors
    /// If `tokenizer.json` of a folder cannot be read.
    pub fn fingerprint(&self) -> Result<Fingerprint, ModelFileError> {
        fingerprint::of(&self.container, self.quantize)
    }

    /// A tensor. [`TensorName::Output`] answers with the token embedding where the two are tied.
    ///
    /// # Errors
    /// If a model of this configuration has no such tensor.
    pub fn tensor(&self, name: TensorName) -> Result<SourceTensor<'_>, ModelFileError> {
        self.optional(name).ok_or_else(|| {
            let name = name.to_string();
            ModelFileError::tensor(self.path(), name, "the model has no such tensor")
        })
    }

    /// A tensor that a model of this configuration may be without.
    pub fn optional(&self, name: TensorName) -> Option<SourceTensor<'_>> {
        let name = match name {
            TensorName::Output if self.config.tied_embeddings => TensorName::TokenEmbedding,
            other => other,
        };
        let located = self.located.get(&name)?;
        let info = &self.container.tensors()[located.tensor as usize];
        let range = located.range(info);
        Some(SourceTensor {
            path: self.container.file_path(info.file),
            name: &info.name,
            format: located.format,
            shape: &located.shape,
            bytes: &self.container.file_bytes(info.file)[range.clone()],
            file: info.file,
            offset: range.start,
            located,
            source: self,
        })
    }

    /// Whether some matrices do not stand in the files as the decoder wants them, and have to be made from them.
    pub fn makes_weights(&self) -> bool {
        self.located
            .values()
            .any(|place| !place.direct && place.shape.len() > 1)
    }

    /// Bytes of all tensors that the decoder uses, as they lie in the files.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Bytes of all files.
    pub fn file_bytes(&self) -> u64 {
        (0..self.container.file_count())
            .map(|file| self.container.file_bytes(file).len() as u64)
            .sum()
    }

    /// Tells the system that the tensor will be read soon, so that it may read ahead.
    pub fn will_need(&self, tensor: &SourceTensor<'_>) {
        let file = self.container.file_bytes(tensor.file);
        file.will_need(tensor.offset..tensor.offset + tensor.bytes.len());
    }

    /// Tells the system that the tensor's pages may leave this process's memory; another read brings them back.
    pub fn done_with(&self, tensor: &SourceTensor<'_>) {
        let file = self.container.file_bytes(tensor.file);
        file.done_with(tensor.offset..tensor.offset + tensor.bytes.len());
    }
}

impl Container {
    fn path(&self) -> &Path {
        match self {
            Self::Gguf(file) => file.path(),
            Self::HuggingFace(folder) => folder.path(),
        }
    }

    fn tensors(&self) -> &[TensorInfo] {
        match self {
            Self::Gguf(file) => file.tensors(),
            Self::HuggingFace(folder) => folder.weights().tensors(),
        }
    }

    fn tensor_number(&self, name: &str) -> Option<usize> {
        match self {
            Self::Gguf(file) => file.tensor_number(name),
            Self::HuggingFace(folder) => folder.weights().tensor_number(name),
        }
    }

    fn header_bytes(&self, file: usize) -> &[u8] {
        match self {
            Self::Gguf(gguf) => gguf.header_bytes(file),
            Self::HuggingFace(folder) => folder.weights().header_bytes(file),
        }
    }

    fn file_count(&self) -> usize {
        match self {
            Self::Gguf(file) => file.file_count(),
            Self::HuggingFace(folder) => folder.weights().file_count(),
        }
    }

    fn file_path(&self, file: usize) -> &Path {
        match self {
            Self::Gguf(gguf) => gguf.file_path(file),
            Self::HuggingFace(folder) => folder.weights().file_path(file),
        }
    }

    fn file_bytes(&self, file: usize) -> &FileBytes {
        match self {
            Self::Gguf(gguf) => gguf.file_bytes(file),
            Self::HuggingFace(folder) => folder.weights().file_bytes(file),
        }
    }
}
