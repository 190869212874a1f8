//! Finds every tensor that a configuration asks for in a model's files.

use std::collections::HashMap;
use std::ops::Range;

use neap_kernels::format::WeightFormat;

use super::files::{self, HF_PREFIXES, Naming, Part, candidates};
use super::names::TensorName;
use super::packed::{self, Packed};
use super::tensor::{Stored, TensorInfo};
use super::{Container, ModelFileError};
use crate::config::ModelConfig;

/// Where a wanted tensor is.
#[derive(Clone, Debug)]
pub(super) struct Located {
    /// The number of the file's tensor in the container.
    pub tensor: u32,
    /// The wanted shape, outermost first.
    pub shape: Vec<usize>,
    /// Which part of the file's tensor it is.
    pub part: Part,
    /// The format that the decoder is given.
    pub format: WeightFormat,
    /// Whether the values stand in the file one after another, in that format.
    pub direct: bool,
    /// Bytes in that format.
    pub bytes: usize,
    /// The scales of an FP8 tensor.
    pub scale: Option<F8Scale>,
    /// The parts of a matrix that is packed in 4 bits.
    pub packed: Option<Packed>,
}

/// The scales of an FP8 tensor: the number of their tensor, and how many rows and columns share one.
#[derive(Clone, Copy, Debug)]
pub(super) struct F8Scale {
    pub tensor: u32,
    pub rows_per_scale: usize,
    pub cols_per_scale: usize,
    pub scales_per_row: usize,
}

impl Located {
    /// The bytes in the file: the part's own where it is contiguous, else the whole tensor's.
    pub fn range(&self, info: &TensorInfo) -> Range<usize> {
        if !self.direct {
            return info.range();
        }
        let values: usize = self.shape.iter().product();
        let cols = self.shape.last().copied().unwrap_or(1);
        let first = match self.part {
            Part::Rows { first, .. } if self.shape.len() == 1 => first,
            Part::Rows { first, .. } => first * cols,
            Part::Stacked { index, .. } => index * values,
            _ => 0,
        };
        let bytes = |values: usize| values / info.format.block_len() * info.format.block_bytes();
        let start = info.offset + bytes(first);
        start..start + bytes(values)
    }
}

/// How names stand in the container.
pub(super) fn naming(config: &ModelConfig, container: &Container) -> Naming {
    if matches!(container, Container::Gguf(_)) {
        return Naming::Gguf;
    }
    let has_embedding = |prefix: &&'static str| {
        let naming = Naming::HuggingFace(prefix);
        let names = candidates(TensorName::TokenEmbedding, config, &naming);
        names
            .iter()
            .any(|(name, _)| container.tensor_number(name).is_some())
    };
    Naming::HuggingFace(
        HF_PREFIXES
            .iter()
            .find(|p| has_embedding(p))
            .unwrap_or(&"model."),
    )
}

/// The name of the tensor in a GGUF file that holds `name`, and which part of it that is.
pub(crate) fn gguf_place(name: TensorName, config: &ModelConfig) -> (String, Part) {
    candidates(name, config, &Naming::Gguf).swap_remove(0)
}

/// Finds every tensor that the configuration asks for, checks its shape, and refuses tensors that it does not know:
/// leaving one out would give wrong results without a word.
pub(super) fn locate(
    config: &ModelConfig,
    container: &Container,
) -> Result<HashMap<TensorName, Located>, ModelFileError> {
    let naming = naming(config, container);
    let mut used = vec![false; container.tensors().len()];
    // Grows tensor by tensor, so that a false number of layers costs nothing.
    let mut located = HashMap::new();
    for name in TensorName::all(config) {
        let place = find(name, config, container, &naming)?;
        used[place.tensor as usize] = true;
        located.insert(name, place);
    }
    let unknown = container
        .tensors()
        .iter()
        .zip(used)
        .find(|(info, used)| !used && !files::is_harmless(&info.name, config));
    if let Some((info, _)) = unknown {
        let reason = format!(
            "is not known for the architecture {:?} with these options",
            config.architecture
        );
        let path = container.file_path(info.file);
        return Err(ModelFileError::tensor(path, &info.name, reason));
    }
    Ok(located)
}

fn find(
    name: TensorName,
    config: &ModelConfig,
    container: &Container,
    naming: &Naming,
) -> Result<Located, ModelFileError> {
    let candidates = candidates(name, config, naming);
    let shape = name.shape(config);
    let mut misshapen = None;
    for (file_name, part) in &candidates {
        let Some(number) = container.tensor_number(file_name) else {
            if let Some(found) = packed::find(file_name, *part, &shape, config, container)? {
                return Ok(place_packed(found, shape));
            }
            continue;
        };
        let info = &container.tensors()[number];
        let expected = file_shape(&shape, *part);
        if info.shape == expected {
            return place(number, shape, *part, container);
        }
        misshapen.get_or_insert((info, expected));
    }
    let Some((info, expected)) = misshapen else {
        let wanted = candidates[0].0.clone();
        return Err(ModelFileError::tensor(
            container.path(),
            wanted,
            "is missing",
        ));
    };
    let reason = format!("has the shape {:?}, not {expected:?}", info.shape);
    let path = container.file_path(info.file);
    Err(ModelFileError::tensor(path, &info.name, reason))
}

/// The shape of the file's tensor of which a tensor of shape `wanted` is a part.
fn file_shape(wanted: &[usize], part: Part) -> Vec<usize> {
    let cols = wanted.last().copied().unwrap_or(0);
    let rest = |first: usize| [&[first], &wanted[1..]].concat();
    match part {
        Part::Whole => wanted.to_vec(),
        Part::Rows { of, .. } => rest(of),
        Part::Stacked { of, .. } => [&[of], wanted].concat(),
        Part::Columns { of, .. } => vec![cols, of],
        Part::ThirdOfHeads(_) => rest(3 * wanted[0]),
        Part::Row => [&[1], wanted].concat(),
    }
}

fn place_packed((packed, format): packed::Found, shape: Vec<usize>) -> Located {
    let values: usize = shape.iter().product();
    Located {
        tensor: packed.codes,
        bytes: values / format.block_len() * format.block_bytes(),
        shape,
        part: Part::Whole,
        format,
        direct: false,
        scale: None,
        packed: Some(packed),
    }
}

fn place(
    number: usize,
    shape: Vec<usize>,
    part: Part,
    container: &Container,
) -> Result<Located, ModelFileError> {
    let info = &container.tensors()[number];
    let refuse = |reason: String| {
        let path = container.file_path(info.file);
        Err(ModelFileError::tensor(path, &info.name, reason))
    };
    let contiguous = matches!(
        part,
        Part::Whole | Part::Rows { .. } | Part::Stacked { .. } | Part::Row
    );
    if matches!(part, Part::Columns { .. }) && !info.format.is_float() {
        return refuse("is transposed and cannot be quantized".to_owned());
    }
    if let Part::Rows { first, .. } = part
        && shape.len() == 1
        && !(first.is_multiple_of(info.format.block_len())
            && shape[0].is_multiple_of(info.format.block_len()))
    {
        return refuse(format!("is in blocks of {}", info.format.name()));
    }
    let values: usize = shape.iter().product();
    if !values.is_multiple_of(info.format.block_len()) {
        return refuse(format!("is in blocks of {}", info.format.name()));
    }
    let scale = match info.stored {
        Stored::AsFormat => None,
        Stored::I32 => return refuse("holds integers, not weights".to_owned()),
        _ if shape.len() != 2 => {
            return refuse("FP8 is supported for matrices only".to_owned());
        }
        _ if part != Part::Whole => {
            return refuse("FP8 is not supported for fused matrices".to_owned());
        }
        _ => f8_scale(info, container)?,
    };
    Ok(Located {
        tensor: number as u32,
        bytes: values / info.format.block_len() * info.format.block_bytes(),
        shape,
        part,
        format: info.format,
        direct: contiguous && info.stored == Stored::AsFormat,
        scale,
        packed: None,
    })
}

/// The scales of an FP8 matrix: one for all of it, one for each row, or one for each block of 128 rows and columns.
fn f8_scale(info: &TensorInfo, container: &Container) -> Result<Option<F8Scale>, ModelFileError> {
    const BLOCK: usize = 128;
    let base = info.name.strip_suffix(".weight").unwrap_or(&info.name);
    let number = ["weight_scale_inv", "weight_scale"]
        .iter()
        .find_map(|suffix| container.tensor_number(&format!("{base}.{suffix}")));
    let Some(number) = number else {
        return Ok(None); // values as they are
    };
    let scales = &container.tensors()[number];
    let (rows, cols) = (info.rows(), info.cols());
    let blocks = [rows.div_ceil(BLOCK), cols.div_ceil(BLOCK)];
    let (rows_per_scale, cols_per_scale, scales_per_row) = match scales.shape[..] {
        [1] | [1, 1] => (rows, cols, 1),
        [n] | [n, 1] if n == rows => (1, cols, 1),
        [a, b] if [a, b] == blocks => (BLOCK, BLOCK, b),
        _ => {
            let reason = format!(
                "has the shape {:?}, which fits no matrix of {rows} rows and {cols} columns",
                scales.shape
            );
            let path = container.file_path(scales.file);
            return Err(ModelFileError::tensor(path, &scales.name, reason));
        }
    };
    if scales.stored != Stored::AsFormat || !scales.format.is_float() {
        let path = container.file_path(scales.file);
        let reason = format!("is {}, no scale", scales.type_name());
        return Err(ModelFileError::tensor(path, &scales.name, reason));
    }
    Ok(Some(F8Scale {
        tensor: number as u32,
        rows_per_scale,
        cols_per_scale,
        scales_per_row,
    }))
}
