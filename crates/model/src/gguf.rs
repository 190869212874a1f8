//! GGUF files: metadata and tensors, mapped, never copied.
//!
//! Versions 2 and 3, little-endian, in one file or split over several. Nothing that a file says is believed before it
//! is checked against the bytes that are there; memory is taken only as far as the file's own length has earned it.

mod cursor;
mod ggml_type;
mod header;
mod split;
mod value;
mod writer;

use std::path::{Path, PathBuf};

pub use crate::source::error::ModelFileError;
pub use crate::source::tensor::TensorInfo;
pub use value::{Array, MAX_ARRAY_DEPTH, StringArray, Value};
pub use writer::{TensorWriter, WriteError, Writer};

use crate::mmap::FileBytes;
use crate::source::tensor::NameIndex;
use header::Header;

/// A GGUF model, open for reading.
#[derive(Debug)]
pub struct GgufFile {
    parts: Vec<Part>,
    header: Header,
    tensors: Vec<TensorInfo>,
    tensor_index: NameIndex,
}

/// One file of a model.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    bytes: FileBytes,
    header_bytes: usize,
}

impl GgufFile {
    /// Opens and checks a GGUF file. Given any file of a split model, opens all of them; the metadata is the first
    /// file's.
    ///
    /// # Errors
    /// If a file cannot be mapped, breaks the format's rules, or holds a tensor of a type that is not supported.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelFileError> {
        let path = path.as_ref();
        let bytes = map(path)?;
        let header = header::parse(&bytes, 0).map_err(|fault| fault.at(path))?;
        let Some(split) = split::read(&header, path)? else {
            return Self::assemble(vec![(path.to_owned(), bytes, header)]);
        };
        let mut parts = Vec::new();
        for (number, path) in split::paths(path, split)?.into_iter().enumerate() {
            let bytes = map(&path)?;
            let header = header::parse(&bytes, number).map_err(|fault| fault.at(&path))?;
            split::check_part(&path, &header, number, split)?;
            parts.push((path, bytes, header));
        }
        let file = Self::assemble(parts)?;
        split::check_total(path, split, file.tensors.len())?;
        Ok(file)
    }

    /// Reads a whole GGUF model from memory; `name` stands for the path in messages.
    ///
    /// # Errors
    /// As [`GgufFile::open`]; a part of a split model is refused.
    pub fn from_vec(name: impl Into<PathBuf>, bytes: Vec<u8>) -> Result<Self, ModelFileError> {
        Self::from_memory(name.into(), FileBytes::from_vec(bytes))
    }

    /// Reads a whole GGUF model that is part of the program; `name` stands for the path in messages.
    ///
    /// # Errors
    /// As [`GgufFile::from_vec`].
    pub fn from_static(
        name: impl Into<PathBuf>,
        bytes: &'static [u8],
    ) -> Result<Self, ModelFileError> {
        Self::from_memory(name.into(), FileBytes::from_static(bytes))
    }

    fn from_memory(path: PathBuf, bytes: FileBytes) -> Result<Self, ModelFileError> {
        let header = header::parse(&bytes, 0).map_err(|fault| fault.at(&path))?;
        if split::read(&header, &path)?.is_some() {
            let reason = "the model is split over several files, which must be opened by path";
            return Err(ModelFileError::config(&path, "split.count", reason));
        }
        Self::assemble(vec![(path, bytes, header)])
    }

    fn assemble(parts: Vec<(PathBuf, FileBytes, Header)>) -> Result<Self, ModelFileError> {
        let mut first = None;
        let mut files = Vec::with_capacity(parts.len());
        let mut tensors = Vec::new();
        for (path, bytes, mut header) in parts {
            files.push(Part {
                path,
                bytes,
                header_bytes: header.end,
            });
            tensors.append(&mut header.tensors);
            first.get_or_insert(header);
        }
        let tensor_index = NameIndex::build(|i| &tensors[i].name, tensors.len());
        let tensor_index = tensor_index.map_err(|again| {
            let info: &TensorInfo = &tensors[again];
            let reason = "is in another file of the model too";
            ModelFileError::tensor(&files[info.file].path, &info.name, reason)
        })?;
        Ok(Self {
            parts: files,
            header: first.expect("a model has at least one file"),
            tensors,
            tensor_index,
        })
    }

    /// The path that was opened; the first file of a split model.
    pub fn path(&self) -> &Path {
        &self.parts[0].path
    }

    /// The version of the format.
    pub fn version(&self) -> u32 {
        self.header.version
    }

    /// The metadata value under `key`.
    pub fn metadata(&self, key: &str) -> Option<&Value> {
        self.header.value(key)
    }

    /// All metadata in the order of the file.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> + '_ {
        self.header
            .metadata
            .iter()
            .map(|(key, value)| (key.as_str(), value))
    }

    /// Empties the arrays of the vocabulary (`tokenizer.ggml.*`), several megabytes in large models, once the tokenizer
    /// is built from them.
    pub fn discard_vocabulary(&mut self) {
        for (key, value) in &mut self.header.metadata {
            if key.starts_with("tokenizer.ggml.") && value.as_array().is_some() {
                *value = Value::Array(Array::U8(Vec::new()));
            }
        }
    }

    /// All tensors in the order of the files.
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

    /// The bytes of a tensor of this model, as they lie in the file.
    ///
    /// # Panics
    /// If `tensor` is not one of [`GgufFile::tensors`] of this model.
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

    /// The header of a file, as it is: metadata and tensor infos.
    pub fn header_bytes(&self, file: usize) -> &[u8] {
        let part = &self.parts[file];
        &part.bytes[..part.header_bytes]
    }
}

fn map(path: &Path) -> Result<FileBytes, ModelFileError> {
    FileBytes::open(path).map_err(|error| ModelFileError::io(path, error))
}
