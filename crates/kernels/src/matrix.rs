//! Weight matrices: as they stand in a file, or repacked into panels.

pub(crate) mod layout;
pub(crate) mod pack;
#[cfg(test)]
mod tests;

use std::sync::{Mutex, PoisonError};

use crate::Context;
use crate::format::WeightFormat;
use crate::pool::WorkerPanic;
use crate::simd::{LANES, kernels};
use layout::{GROUP_PANELS, panel_len};

/// Bytes that do not have the length of a matrix of this shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MatrixError {
    /// A row is no whole number of blocks, or the size is more than can be counted.
    #[error("a matrix of {rows} rows and {cols} columns cannot be {}", .format.name())]
    Shape {
        /// The format.
        format: WeightFormat,
        /// Rows (output features).
        rows: usize,
        /// Columns (input features).
        cols: usize,
    },
    /// The slice is too long or too short.
    #[error("{rows} rows and {cols} columns of {} take {needed} bytes, not {bytes}", .format.name())]
    Length {
        /// The format.
        format: WeightFormat,
        /// Rows (output features).
        rows: usize,
        /// Columns (input features).
        cols: usize,
        /// Bytes that the shape takes.
        needed: usize,
        /// Bytes given.
        bytes: usize,
    },
}

/// A weight matrix as it stands in a file: rows one after another, each a run of blocks.
#[derive(Clone, Copy, Debug)]
pub struct MatrixRef<'a> {
    format: WeightFormat,
    rows: usize,
    cols: usize,
    bytes: &'a [u8],
}

impl<'a> MatrixRef<'a> {
    /// A matrix of `rows` output features by `cols` input features.
    ///
    /// # Errors
    /// If a row is no whole number of blocks or `bytes` is not exactly as long as the shape needs.
    pub fn new(
        format: WeightFormat,
        rows: usize,
        cols: usize,
        bytes: &'a [u8],
    ) -> Result<Self, MatrixError> {
        let shape = MatrixError::Shape { format, rows, cols };
        let row_bytes = format.row_bytes(cols).ok_or(shape)?;
        let needed = row_bytes.checked_mul(rows).ok_or(shape)?;
        check_length(format, rows, cols, needed, bytes.len())?;
        Ok(MatrixRef {
            format,
            rows,
            cols,
            bytes,
        })
    }

    /// How the values are stored.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The whole matrix.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.cols / self.format.block_len() * self.format.block_bytes()
    }

    /// The bytes of one row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> &'a [u8] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let len = self.row_bytes();
        &self.bytes[row * len..][..len]
    }

    /// Writes the values of one row into `out`: the embedding of a token, for one.
    ///
    /// # Panics
    /// If there is no such row or `out` is not `cols` long.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "a row's length");
        if let Err(error) = self.format.dequantize(self.row(row), out) {
            unreachable!("the lengths were checked: {error}");
        }
    }
}

fn check_length(
    format: WeightFormat,
    rows: usize,
    cols: usize,
    needed: usize,
    bytes: usize,
) -> Result<(), MatrixError> {
    if needed == bytes {
        return Ok(());
    }
    Err(MatrixError::Length {
        format,
        rows,
        cols,
        needed,
        bytes,
    })
}

/// A weight matrix repacked by [`pack`].
#[derive(Clone, Copy, Debug)]
pub struct PanelsRef<'a> {
    format: WeightFormat,
    rows: usize,
    cols: usize,
    bytes: &'a [u8],
}

impl<'a> PanelsRef<'a> {
    /// Panels that [`pack`] wrote, of a matrix of this shape.
    ///
    /// # Errors
    /// If `bytes` is not [`panel_bytes`] long.
    pub fn new(
        format: WeightFormat,
        rows: usize,
        cols: usize,
        bytes: &'a [u8],
    ) -> Result<Self, MatrixError> {
        if format.row_bytes(cols).is_none() {
            return Err(MatrixError::Shape { format, rows, cols });
        }
        check_length(
            format,
            rows,
            cols,
            panel_bytes(format, rows, cols),
            bytes.len(),
        )?;
        Ok(PanelsRef {
            format,
            rows,
            cols,
            bytes,
        })
    }

    /// How the values were stored before packing.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The packed bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Bytes of a panel.
    pub(crate) fn panel_len(&self) -> usize {
        self.bytes.len() / self.rows.div_ceil(LANES).max(1)
    }
}

/// The weights of a product; both kinds give the same bits.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a> {
    /// As they stand in the file: nothing to hold in memory beside the mapping.
    Rows(MatrixRef<'a>),
    /// Repacked: faster.
    Panels(PanelsRef<'a>),
}

impl Weights<'_> {
    /// How the values are stored.
    pub fn format(&self) -> WeightFormat {
        match self {
            Weights::Rows(m) => m.format,
            Weights::Panels(m) => m.format,
        }
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        match self {
            Weights::Rows(m) => m.rows,
            Weights::Panels(m) => m.rows,
        }
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        match self {
            Weights::Rows(m) => m.cols,
            Weights::Panels(m) => m.cols,
        }
    }
}

/// Bytes that [`pack`] writes for a matrix of this shape; `usize::MAX` where the shape is not
/// possible, so that no buffer ever fits.
///
/// That is the bytes of the file and 0 % (most formats) to 5.9 % (MXFP4) more, and what the last panel lacks to 16 rows.
pub fn panel_bytes(format: WeightFormat, rows: usize, cols: usize) -> usize {
    let bytes = match format.row_bytes(cols) {
        None => None,
        Some(_) => panel_len(format, cols).and_then(|b| b.checked_mul(rows.div_ceil(LANES))),
    };
    bytes.unwrap_or(usize::MAX)
}

/// Repacks a matrix for the kernels; panels are the same for every instruction set.
///
/// `out` should begin at a multiple of 64 bytes: any address is right, this one is fastest.
///
/// # Errors
/// If a worker panicked.
///
/// # Panics
/// If `out` is not [`panel_bytes`] long.
pub fn pack(ctx: Context<'_>, matrix: MatrixRef<'_>, out: &mut [u8]) -> Result<(), WorkerPanic> {
    let needed = panel_bytes(matrix.format, matrix.rows, matrix.cols);
    assert_eq!(out.len(), needed, "the length of the panels");
    let group = GROUP_PANELS * panel_len(matrix.format, matrix.cols).unwrap_or(0);
    if group == 0 {
        return Ok(());
    }
    let kernels = kernels(ctx.isa);
    let groups: Vec<_> = out.chunks_mut(group).map(Mutex::new).collect();
    ctx.pool.run(groups.len(), &|task, _| {
        let mut out = groups[task].lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: `kernels` gives only what this machine has.
        unsafe { (kernels.pack_group)(&matrix, task, &mut out) }
    })
}
