//! The entry of one tensor in a model file, whatever the format of the file.

use std::ops::Range;

use neap_kernels::format::WeightFormat;

/// How values stand in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stored {
    /// In the tensor's format.
    #[default]
    AsFormat,
    /// One byte each: sign, 4 bits of exponent, 3 of fraction, no infinities.
    F8E4M3,
    /// One byte each: sign, 5 bits of exponent, 2 of fraction.
    F8E5M2,
    /// Integers of 32 bits, which are parts of something else: of the tensor's format they have only the size.
    I32,
}

/// Where a tensor lies and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name in the file.
    pub name: String,
    /// The dimensions, outermost first: `[rows, cols]` for a matrix, with `cols` contiguous. (GGUF stores them the
    /// other way round.) Never empty; no dimension is 0; the product fits.
    pub shape: Vec<usize>,
    /// How the values are encoded, or will be once they are read where [`TensorInfo::stored`] says so.
    pub format: WeightFormat,
    /// How they stand in the file.
    pub stored: Stored,
    /// Which file of a model in several files holds the tensor, from 0.
    pub file: usize,
    /// Offset in bytes from the start of that file. Not aligned in safetensors files.
    pub offset: usize,
    /// Length in bytes; `offset + bytes` lies within the file.
    pub bytes: usize,
}

impl TensorInfo {
    /// The number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The weights that it holds: of words of packed codes eight each, of other integers none.
    pub fn parameters(&self) -> u64 {
        let len = self.len() as u64;
        match self.stored {
            Stored::I32 if self.name.ends_with(".qweight") => 8 * len,
            Stored::I32 => 0,
            _ => len,
        }
    }

    /// Always false: a tensor without values is refused when the file is opened.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Values of one row: the innermost dimension.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(0)
    }

    /// The number of rows: the product of all dimensions but the innermost.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    /// The name of the type in the file.
    pub fn type_name(&self) -> &'static str {
        match self.stored {
            Stored::AsFormat => self.format.name(),
            Stored::F8E4M3 => "F8_E4M3",
            Stored::F8E5M2 => "F8_E5M2",
            Stored::I32 => "I32",
        }
    }

    /// The byte range in the file.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.bytes
    }
}

/// The number of values of `shape` (outermost first) and its bytes in `format`, or why there is no such tensor.
pub(crate) fn tensor_bytes(format: WeightFormat, shape: &[usize]) -> Result<usize, String> {
    let (&cols, outer) = shape.split_last().ok_or("has no dimensions")?;
    if shape.contains(&0) {
        return Err(format!("has a dimension of 0: {shape:?}"));
    }
    let too_large = || format!("dimensions {shape:?} are too large");
    let rows = outer
        .iter()
        .try_fold(1usize, |rows, &dim| rows.checked_mul(dim))
        .ok_or_else(too_large)?;
    rows.checked_mul(cols).ok_or_else(too_large)?;
    if cols % format.block_len() != 0 {
        return Err(format!(
            "rows of {cols} values are no multiple of {}, the block length of {}",
            format.block_len(),
            format.name()
        ));
    }
    let row_bytes = format.row_bytes(cols).ok_or_else(too_large)?;
    rows.checked_mul(row_bytes).ok_or_else(too_large)
}

/// Finds entries by name without a second copy of the names: indices in the order of the names.
#[derive(Clone, Debug, Default)]
pub(crate) struct NameIndex {
    order: Vec<u32>,
}

impl NameIndex {
    /// Builds the index; `Err` gives the position of an entry whose name an earlier entry has.
    pub(crate) fn build<'a>(names: impl Fn(usize) -> &'a str, len: usize) -> Result<Self, usize> {
        let count = u32::try_from(len).map_err(|_| len)?;
        let mut order: Vec<u32> = (0..count).collect();
        order.sort_by(|&a, &b| names(a as usize).cmp(names(b as usize)));
        match order
            .windows(2)
            .find(|pair| names(pair[0] as usize) == names(pair[1] as usize))
        {
            Some(pair) => Err(pair[1] as usize),
            None => Ok(Self { order }),
        }
    }

    pub(crate) fn find<'a>(&self, names: impl Fn(usize) -> &'a str, name: &str) -> Option<usize> {
        let found = self
            .order
            .binary_search_by(|&i| names(i as usize).cmp(name))
            .ok()?;
        Some(self.order[found] as usize)
    }
}
