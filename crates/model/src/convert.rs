//! A Hugging Face folder as a GGUF file, which Neap, llama.cpp and what is built on it read.
//!
//! Names, layouts and metadata are those that llama.cpp's own converter gives: matrices that GGUF files hold in one
//! tensor are joined, rows of queries and keys are reordered where the architecture's files pair neighbours, norms
//! get the 1 that folders leave out, and norms and biases are F32.

mod tokenizer;
mod unigram;

use std::io::Write;

use neap_kernels::format::WeightFormat;
use neap_memory::Budget;

use crate::adapter::of_neighbours;
use crate::classify::{ClassifierError, GGUF_KEY, Head, PairPrompt};
use crate::config::RopeLayout;
use crate::embed::Pooling;
use crate::gguf::{Array, Value, WriteError, Writer};
use crate::source::{
    LayerTensor, ModelFileError, ModelSource, Part, SourceTensor, TensorName, gguf_place,
};
use crate::tokenizer::TokenizerError;

/// Why a model could not be converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The folder is at fault.
    #[error(transparent)]
    File(#[from] ModelFileError),
    /// The tokenizer is.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The model is a GGUF file already.
    #[error("only Hugging Face folders are converted; this is a GGUF file")]
    AlreadyGguf,
    /// A GGUF file would mean another model.
    #[error("this model cannot be a GGUF file: {0}")]
    NotInGguf(String),
    /// The output failed.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// A tensor of the file, and the wanted tensors that it is made of, in order.
struct Joined {
    name: String,
    shape: Vec<usize>,
    format: WeightFormat,
    parts: Vec<(usize, TensorName)>,
}

/// Writes `source`, a Hugging Face folder, as a GGUF file to `out`, which should be buffered. Matrices are quantized if
/// [`ModelSource::set_quantize`] says so. `progress` is told the bytes written of all tensors' bytes.
///
/// # Errors
/// [`ConvertError`].
pub fn to_gguf<W: Write>(
    source: &ModelSource,
    out: W,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<W, ConvertError> {
    let folder = source.folder().ok_or(ConvertError::AlreadyGguf)?;
    let config = source.config();
    let head = head(source)?;
    let mut writer = Writer::new();
    let metadata = config
        .to_gguf()
        .map_err(|why| ConvertError::NotInGguf(why.to_string()))?;
    let mut metadata: Vec<(String, Value)> = metadata;
    // Of a decoder that writes nobody asks.
    if !config.causal || head.is_some() || Pooling::of(source)? != Pooling::Last {
        metadata.extend(pooling(source, head.as_ref())?);
    }
    if let Some(prompt) = head.as_ref().and_then(|_| PairPrompt::of(source)) {
        metadata.push((GGUF_KEY.to_owned(), Value::from(prompt.template())));
    }
    metadata.push(("general.quantization_version".to_owned(), Value::U32(2)));
    metadata.extend(tokenizer::metadata(folder, config)?);
    if let Some(template) = source.chat_template()? {
        let key = "tokenizer.chat_template".to_owned();
        metadata.push((key, Value::from(template.as_str())));
    }
    for (key, value) in metadata {
        writer.metadata(&key, value)?;
    }
    let divisors = config.gguf_divisors();
    for (name, values) in &divisors {
        writer.tensor(name, &[values.len()], WeightFormat::F32)?;
    }
    let tensors = joined(source)?;
    for tensor in &tensors {
        writer.tensor(&tensor.name, &tensor.shape, tensor.format)?;
    }
    let head = head.iter().flat_map(Head::in_gguf);
    let head: Vec<_> = head.collect();
    for (name, shape, _) in &head {
        writer.tensor(name, shape, WeightFormat::F32)?;
    }
    let total: usize = tensors.iter().map(Joined::bytes).sum();
    let mut out = writer.begin(out)?;
    for (_, values) in &divisors {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        out.write_tensor(&bytes)?;
    }
    let mut done = 0;
    for tensor in &tensors {
        for &(_, part) in &tensor.parts {
            write_part(source, part, tensor.format, |row| out.write_piece(row))?;
        }
        done += tensor.bytes();
        progress(done as u64, total as u64);
    }
    for (_, _, values) in head {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        out.write_tensor(&bytes)?;
    }
    Ok(out.finish()?)
}

/// The classification head, if the model has one and a GGUF file would mean the same.
fn head(source: &ModelSource) -> Result<Option<Head>, ConvertError> {
    let head = Head::read(source, &Budget::new(u64::MAX)).map_err(|why| match why {
        ClassifierError::File(why) => ConvertError::File(why),
        other => ConvertError::NotInGguf(other.to_string()),
    })?;
    let naming = source.config().architecture.row().hf_naming;
    match head.as_ref().and_then(|head| head.not_in_gguf(naming)) {
        Some(reason) => Err(ConvertError::NotInGguf(reason.to_owned())),
        None => Ok(head),
    }
}

/// How rows become one vector, or classes and their names.
fn pooling(
    source: &ModelSource,
    head: Option<&Head>,
) -> Result<Vec<(String, Value)>, ConvertError> {
    let row = source.config().gguf_architecture().row();
    let key = |suffix: &str| format!("{}.{suffix}", row.gguf_name.unwrap_or_default());
    let kind = match (head, Pooling::of(source)?) {
        (Some(_), _) => 4,
        (None, Pooling::Mean) => 1,
        (None, Pooling::Cls) => 2,
        (None, Pooling::Last) => 3,
    };
    let mut out = vec![(key("pooling_type"), Value::U32(kind))];
    if let Some(head) = head {
        let labels = head.labels.iter().cloned().collect();
        let labels = Value::Array(Array::String(labels));
        out.push((key("classifier.output_labels"), labels));
    }
    Ok(out)
}

impl Joined {
    fn bytes(&self) -> usize {
        let values: usize = self.shape.iter().product();
        values / self.format.block_len() * self.format.block_bytes()
    }
}

/// The tensors of the file in the order of the layers.
fn joined(source: &ModelSource) -> Result<Vec<Joined>, ConvertError> {
    let config = source.config();
    let mut all: Vec<Joined> = Vec::new();
    for name in TensorName::all(config) {
        let tensor = source.tensor(name)?;
        let (file_name, part) = gguf_place(name, config);
        let (shape, first) = match part {
            Part::Rows { first, of } => ([&[of], &tensor.shape[1..]].concat(), first),
            Part::Stacked { index, of } => ([&[of], tensor.shape].concat(), index),
            _ => (tensor.shape.to_vec(), 0),
        };
        let format = format_in_gguf(name, &tensor);
        // The parts of a tensor come within a layer: only its own tensors need to be looked at.
        let found = all.iter_mut().rev().take(64).find(|t| t.name == file_name);
        match found {
            Some(joined) if joined.format == format => joined.parts.push((first, name)),
            Some(joined) => {
                let reason = format!(
                    "is {format}, but must be in one tensor with others that are {}",
                    joined.format
                );
                return Err(ModelFileError::tensor(tensor.path, tensor.name, reason).into());
            }
            None => all.push(Joined {
                name: file_name,
                shape,
                format,
                parts: vec![(first, name)],
            }),
        }
    }
    for tensor in &mut all {
        tensor.parts.sort_by_key(|(first, _)| *first);
    }
    Ok(all)
}

/// Vectors, routers and what is added to embeddings are F32, as ggml's kernels want them.
fn format_in_gguf(name: TensorName, tensor: &SourceTensor<'_>) -> WeightFormat {
    let added = matches!(
        name,
        TensorName::PositionEmbedding
            | TensorName::TypeEmbedding
            | TensorName::Layer(_, LayerTensor::Router)
    );
    if tensor.shape.len() == 1 || added {
        WeightFormat::F32
    } else {
        tensor.format
    }
}

/// Writes a tensor's rows in the order of GGUF files.
fn write_part(
    source: &ModelSource,
    name: TensorName,
    format: WeightFormat,
    mut write: impl FnMut(&[u8]) -> Result<(), WriteError>,
) -> Result<(), ConvertError> {
    let tensor = source.tensor(name)?;
    let config = source.config();
    let offset = source.norm_offset(name);
    let mut values = vec![0.0; tensor.cols()];
    let mut bytes = vec![0; format.row_bytes(values.len()).unwrap_or(0)];
    let pairs_neighbours = config.gguf_rope_layout() == RopeLayout::Interleaved
        && config.layer_kinds.iter().any(|kind| kind.rope);
    use LayerTensor as T;
    let turned = pairs_neighbours
        && matches!(
            name,
            TensorName::Layer(_, T::AttnQ | T::AttnK | T::AttnQBias | T::AttnKBias)
        );
    for row in 0..tensor.rows() {
        let from = match turned && tensor.shape.len() == 2 {
            true => of_neighbours(row, config.head_dim),
            false => row,
        };
        if format == tensor.format && tensor.keeps_codes(from, &mut bytes)? {
            write(&bytes)?;
            continue;
        }
        tensor.read_row(from, &mut values);
        if turned && tensor.shape.len() == 1 {
            let turned = (0..values.len()).map(|i| values[of_neighbours(i, config.head_dim)]);
            values = turned.collect();
        }
        if let Some(col) = values.iter().position(|value| !value.is_finite()) {
            let reason = format!("the value in row {from}, column {col} is not a finite number");
            return Err(ModelFileError::tensor(tensor.path, tensor.name, reason).into());
        }
        values.iter_mut().for_each(|value| *value += offset);
        if let Err(why) = format.quantize(&values, &mut bytes) {
            return Err(ModelFileError::tensor(tensor.path, tensor.name, why.to_string()).into());
        }
        write(&bytes)?;
    }
    Ok(())
}
