//! Writes GGUF files, version 3.

use std::io::{self, Write};

use neap_kernels::format::WeightFormat;

use super::header::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_ALIGNMENT, MAX_DIMENSIONS};
use super::value::{Array, Value};
use crate::source::tensor::tensor_bytes;

/// Why a GGUF file could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The output failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The key is there already, or empty.
    #[error("metadata '{0}': the key is empty or appears twice")]
    Key(String),
    /// The tensor cannot be written so.
    #[error("tensor '{tensor}': {reason}")]
    Tensor {
        /// The name given.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
}

/// Collects the header of a GGUF file: first all metadata and the description of every tensor, then the data in the
/// same order through the [`TensorWriter`] that [`Writer::begin`] gives. The data is never held.
///
/// ```
/// # use neap_model::gguf::{GgufFile, Writer};
/// # use neap_kernels::format::WeightFormat;
/// let mut writer = Writer::new();
/// writer.metadata("general.architecture", "llama")?;
/// writer.tensor("output_norm.weight", &[2], WeightFormat::F32)?;
/// let mut out = writer.begin(Vec::new())?;
/// out.write_tensor(&[0; 8])?;
/// let file = GgufFile::from_vec("example.gguf", out.finish()?)?;
/// assert_eq!(file.tensors()[0].shape, [2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Writer {
    metadata: Vec<(String, Value)>,
    tensors: Vec<Declared>,
    alignment: usize,
}

/// A tensor that is to be written.
#[derive(Clone, Debug)]
struct Declared {
    name: String,
    shape: Vec<usize>,
    type_id: u32,
    bytes: usize,
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

impl Writer {
    /// An empty file with the default alignment of 32 bytes.
    pub fn new() -> Self {
        Self {
            metadata: Vec::new(),
            tensors: Vec::new(),
            alignment: DEFAULT_ALIGNMENT,
        }
    }

    /// Adds a metadata entry. `general.alignment` takes effect as well.
    ///
    /// # Errors
    /// If the key is empty or was added before, or the alignment is no power of two.
    pub fn metadata(
        &mut self,
        key: &str,
        value: impl Into<Value>,
    ) -> Result<&mut Self, WriteError> {
        let value = value.into();
        if key.is_empty() || self.metadata.iter().any(|(known, _)| known == key) {
            return Err(WriteError::Key(key.to_owned()));
        }
        if key == ALIGNMENT_KEY {
            self.alignment = match value.as_u32() {
                Some(alignment)
                    if alignment.is_power_of_two() && alignment as usize <= MAX_ALIGNMENT =>
                {
                    alignment as usize
                }
                _ => return Err(WriteError::Key(key.to_owned())),
            };
        }
        self.metadata.push((key.to_owned(), value));
        Ok(self)
    }

    /// Declares a tensor; `shape` is outermost first.
    ///
    /// # Errors
    /// If the name was declared before, or the shape is not possible in this format.
    pub fn tensor(
        &mut self,
        name: &str,
        shape: &[usize],
        format: WeightFormat,
    ) -> Result<&mut Self, WriteError> {
        let error = |reason: String| WriteError::Tensor {
            tensor: name.to_owned(),
            reason,
        };
        if name.is_empty() || self.tensors.iter().any(|tensor| tensor.name == name) {
            return Err(error("the name is empty or appears twice".to_owned()));
        }
        if shape.len() > MAX_DIMENSIONS as usize {
            return Err(error(format!("has {} dimensions", shape.len())));
        }
        let bytes = tensor_bytes(format, shape).map_err(error)?;
        self.tensors.push(Declared {
            name: name.to_owned(),
            shape: shape.to_owned(),
            type_id: format.ggml_type(),
            bytes,
        });
        Ok(self)
    }

    /// Writes the header.
    ///
    /// # Errors
    /// If the output fails.
    pub fn begin<W: Write>(self, mut out: W) -> Result<TensorWriter<W>, WriteError> {
        let header = self.header();
        out.write_all(&header)?;
        let mut writer = TensorWriter {
            out,
            declared: self.tensors.into_iter(),
            alignment: self.alignment,
            written: header.len(),
            begun: 0,
        };
        writer.pad()?;
        Ok(writer)
    }

    fn header(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(MAGIC);
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_string(&mut out, key);
            out.extend(value.type_id().to_le_bytes());
            put_value(&mut out, value);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            put_string(&mut out, &tensor.name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            for &dim in tensor.shape.iter().rev() {
                out.extend((dim as u64).to_le_bytes());
            }
            out.extend(tensor.type_id.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset = (offset + tensor.bytes).next_multiple_of(self.alignment);
        }
        out
    }
}

/// Writes the data of the tensors in the order in which they were declared.
#[derive(Debug)]
pub struct TensorWriter<W> {
    out: W,
    declared: std::vec::IntoIter<Declared>,
    alignment: usize,
    written: usize,
    /// Bytes of the next tensor that are written already.
    begun: usize,
}

impl<W: Write> TensorWriter<W> {
    /// Writes the next tensor.
    ///
    /// # Errors
    /// If the length is not that of the declaration, all tensors are written already, one is half written, or the
    /// output fails.
    pub fn write_tensor(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let declared = self.declared.as_slice().first();
        match declared {
            Some(next) if self.begun == 0 && bytes.len() != next.bytes => Err(WriteError::Tensor {
                tensor: next.name.clone(),
                reason: format!("has {} bytes, not {}", bytes.len(), next.bytes),
            }),
            _ => self.write_piece(bytes),
        }
    }

    /// Writes the next bytes of the next tensor: once all of its bytes are written, the next begins.
    ///
    /// # Errors
    /// If the bytes go beyond the tensor's end, all tensors are written already, or the output fails.
    pub fn write_piece(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let Some(next) = self.declared.as_slice().first() else {
            return Err(WriteError::Tensor {
                tensor: String::new(),
                reason: "more tensors than were declared".to_owned(),
            });
        };
        let left = next.bytes - self.begun;
        if bytes.len() > left {
            return Err(WriteError::Tensor {
                tensor: next.name.clone(),
                reason: format!("{} bytes more where {left} are left", bytes.len()),
            });
        }
        self.out.write_all(bytes)?;
        self.written += bytes.len();
        self.begun += bytes.len();
        if self.begun == next.bytes {
            self.begun = 0;
            self.declared.next();
            self.pad()?;
        }
        Ok(())
    }

    /// Flushes and gives the output back.
    ///
    /// # Errors
    /// If a declared tensor was not written, or the output fails.
    pub fn finish(mut self) -> Result<W, WriteError> {
        if let Some(missing) = self.declared.next() {
            return Err(WriteError::Tensor {
                tensor: missing.name,
                reason: "was declared but not written".to_owned(),
            });
        }
        self.out.flush()?;
        Ok(self.out)
    }

    fn pad(&mut self) -> Result<(), WriteError> {
        let padded = self.written.next_multiple_of(self.alignment);
        io::copy(
            &mut io::Read::take(io::repeat(0), (padded - self.written) as u64),
            &mut self.out,
        )?;
        self.written = padded;
        Ok(())
    }
}

fn put_string(out: &mut Vec<u8>, string: &str) {
    out.extend((string.len() as u64).to_le_bytes());
    out.extend(string.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(value) => out.extend(value.to_le_bytes()),
        Value::I8(value) => out.extend(value.to_le_bytes()),
        Value::U16(value) => out.extend(value.to_le_bytes()),
        Value::I16(value) => out.extend(value.to_le_bytes()),
        Value::U32(value) => out.extend(value.to_le_bytes()),
        Value::I32(value) => out.extend(value.to_le_bytes()),
        Value::F32(value) => out.extend(value.to_le_bytes()),
        Value::Bool(value) => out.push(u8::from(*value)),
        Value::String(value) => put_string(out, value),
        Value::Array(array) => put_array(out, array),
        Value::U64(value) => out.extend(value.to_le_bytes()),
        Value::I64(value) => out.extend(value.to_le_bytes()),
        Value::F64(value) => out.extend(value.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend(array.type_id().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(values) => out.extend(values),
        Array::I8(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::U16(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::I16(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::U32(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::I32(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::F32(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::Bool(values) => out.extend(values.iter().map(|&value| u8::from(value))),
        Array::String(values) => values.iter().for_each(|value| put_string(out, value)),
        Array::Array(values) => values.iter().for_each(|value| put_array(out, value)),
        Array::U64(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::I64(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::F64(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
    }
}
