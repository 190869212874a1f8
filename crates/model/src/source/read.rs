//! Values that do not stand in a file as the decoder wants them: transposed, head by head, in FP8, packed in
//! 4 bits, or to be quantized.

use neap_kernels::format::WeightFormat;

use super::files::Part;
use super::locate::F8Scale;
use super::names::{LayerTensor, TensorName};
use super::tensor::{Stored, TensorInfo};
use super::{ModelFileError, ModelSource, SourceTensor};

impl SourceTensor<'_> {
    /// Whether the values stand in the file one after another in [`SourceTensor::format`], so that
    /// [`SourceTensor::bytes`] are they.
    pub fn is_direct(&self) -> bool {
        self.located.direct && self.format == self.info().format
    }

    fn info(&self) -> &TensorInfo {
        &self.source.container.tensors()[self.located.tensor as usize]
    }

    /// Writes the values of one row into `out`.
    ///
    /// # Panics
    /// If there is no such row or `out` has not the length of a row.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows() && out.len() == self.cols(), "a row");
        if let Some(packed) = self.located.packed {
            return packed.read_row(&self.source.container, row, out);
        }
        let info = self.info();
        let file = &self.source.container.file_bytes(info.file)[info.range()];
        let cols = self.cols();
        match self.located.part {
            Part::Columns { first, of } => {
                for (col, value) in out.iter_mut().enumerate() {
                    self.dequantize(file, col * of + first + row, std::slice::from_mut(value));
                }
            }
            Part::ThirdOfHeads(third) if self.shape.len() == 1 => {
                let head_dim = self.source.config.head_dim;
                for (i, value) in out.iter_mut().enumerate() {
                    let from = third_of_heads(i, third, head_dim);
                    self.dequantize(file, from, std::slice::from_mut(value));
                }
            }
            Part::ThirdOfHeads(third) => {
                let from = third_of_heads(row, third, self.source.config.head_dim);
                self.dequantize(file, from * cols, out);
            }
            Part::Rows { first, .. } if self.shape.len() == 1 => self.dequantize(file, first, out),
            Part::Rows { first, .. } => self.dequantize(file, (first + row) * cols, out),
            Part::Stacked { index, .. } => {
                self.dequantize(file, (index * self.rows() + row) * cols, out);
            }
            Part::Whole | Part::Row => self.dequantize(file, row * cols, out),
        }
        if let Some(scale) = self.located.scale {
            self.scale_row(scale, row, out);
        }
    }

    /// Values of the file's tensor from number `first` on.
    fn dequantize(&self, file: &[u8], first: usize, out: &mut [f32]) {
        let info = self.info();
        let byte = match info.stored {
            Stored::AsFormat => {
                let bytes =
                    |values: usize| values / info.format.block_len() * info.format.block_bytes();
                let block = &file[bytes(first)..][..bytes(out.len())];
                if let Err(error) = info.format.dequantize(block, out) {
                    unreachable!("lengths were checked when the file was opened: {error}");
                }
                return;
            }
            Stored::F8E4M3 => f8_e4m3_to_f32,
            Stored::F8E5M2 => f8_e5m2_to_f32,
            Stored::I32 => unreachable!("integers are refused where weights are wanted"),
        };
        for (value, &bits) in out.iter_mut().zip(&file[first..]) {
            *value = byte(bits);
        }
    }

    fn scale_row(&self, scale: F8Scale, row: usize, out: &mut [f32]) {
        let info = &self.source.container.tensors()[scale.tensor as usize];
        let file = &self.source.container.file_bytes(info.file)[info.range()];
        let first = row / scale.rows_per_scale * scale.scales_per_row;
        for (i, part) in out.chunks_mut(scale.cols_per_scale).enumerate() {
            let size = info.format.block_bytes();
            let bytes = &file[(first + i) * size..][..size];
            let mut factor = [0.0];
            if info.format.dequantize(bytes, &mut factor).is_ok() {
                part.iter_mut().for_each(|value| *value *= factor[0]);
            }
        }
    }

    /// Writes all values in [`SourceTensor::format`] into `out`, row by row.
    ///
    /// # Errors
    /// If a value is no finite number.
    ///
    /// # Panics
    /// If `out` has not [`SourceTensor::encoded_bytes`].
    pub fn read(&self, out: &mut [u8]) -> Result<(), ModelFileError> {
        assert_eq!(out.len(), self.encoded_bytes(), "the length of a tensor");
        if self.is_direct() {
            self.validate_finite()?;
            out.copy_from_slice(self.bytes);
            return Ok(());
        }
        let mut values = vec![0.0; self.cols()];
        let row_bytes = out.len() / self.rows().max(1);
        for (row, out) in out.chunks_exact_mut(row_bytes.max(1)).enumerate() {
            if self.keeps_codes(row, out)? {
                continue;
            }
            self.read_row(row, &mut values);
            if let Some(col) = values.iter().position(|value| !value.is_finite()) {
                let reason = format!("the value in row {row}, column {col} is not a finite number");
                return Err(ModelFileError::tensor(self.path, self.name, reason));
            }
            if let Err(error) = self.format.quantize(&values, out) {
                unreachable!("lengths were checked when the file was opened: {error}");
            }
        }
        Ok(())
    }

    /// Writes one row in [`SourceTensor::format`], if its codes stand in the file packed in another way. Whether they do.
    ///
    /// # Errors
    /// If a scale is no finite number.
    pub(crate) fn keeps_codes(&self, row: usize, out: &mut [u8]) -> Result<bool, ModelFileError> {
        let Some(packed) = self.located.packed else {
            return Ok(false);
        };
        if !matches!(self.format, WeightFormat::Q4_0 | WeightFormat::Q4_1) {
            return Ok(false);
        }
        let container = &self.source.container;
        match packed.encode_row(container, self.format, row, out) {
            Ok(()) => Ok(true),
            Err(reason) => Err(ModelFileError::tensor(self.path, self.name, reason)),
        }
    }
}

/// The row (or value, of a bias) of heads that lie queries, keys, values, head by head.
pub(crate) fn third_of_heads(row: usize, third: usize, head_dim: usize) -> usize {
    (row / head_dim * 3 + third) * head_dim + row % head_dim
}

impl ModelSource {
    /// Has matrices in 16 or 32 bits (or FP8) quantized as they are read: to `format`; embeddings and the output matrix
    /// to Q8_0, which they need more and cost little. Routers, learned positions and rows that are no whole number of
    /// blocks stay as they are.
    pub fn set_quantize(&mut self, format: WeightFormat) {
        self.quantize = Some(format);
        for (name, place) in &mut self.located {
            let info = &self.container.tensors()[place.tensor as usize];
            let is_float = info.format.is_float() && place.packed.is_none();
            let Some(format) = quantized(*name, format).filter(|_| is_float) else {
                continue;
            };
            let cols = place.shape.last().copied().unwrap_or(0);
            if place.shape.len() != 2 || !cols.is_multiple_of(format.block_len()) {
                continue;
            }
            let values: usize = place.shape.iter().product();
            place.format = format;
            place.direct = false;
            place.bytes = values / format.block_len() * format.block_bytes();
        }
        self.weight_bytes = self.located.values().map(|place| place.bytes as u64).sum();
    }

    /// The weight of norms in Hugging Face folders of some architectures lacks this much.
    pub(crate) fn norm_offset(&self, name: TensorName) -> f32 {
        let less_one = self.config.architecture.row().hf_norm_less_one;
        match name.is_norm_weight() && less_one && self.folder().is_some() {
            true => 1.0,
            false => 0.0,
        }
    }
}

/// The format that a matrix is quantized to.
fn quantized(name: TensorName, format: WeightFormat) -> Option<WeightFormat> {
    match name {
        TensorName::TokenEmbedding | TensorName::Output => Some(WeightFormat::Q8_0),
        TensorName::PositionEmbedding | TensorName::TypeEmbedding => None,
        TensorName::Layer(_, LayerTensor::Router) => None,
        TensorName::Layer(..) | TensorName::Expert(..) => Some(format),
        _ => None,
    }
}

/// 8-bit floating point with 4 bits of exponent and 3 of fraction: the largest is 448, all ones are no number
/// (Micikevicius et al. 2022, "FP8 formats for deep learning").
fn f8_e4m3_to_f32(bits: u8) -> f32 {
    let magnitude = match (bits >> 3 & 0xF, bits & 7) {
        (0xF, 7) => f32::NAN,
        (0, fraction) => f32::from(fraction) * 2f32.powi(-9),
        (exponent, fraction) => f32::from(8 + fraction) * 2f32.powi(i32::from(exponent) - 10),
    };
    if bits & 0x80 == 0 {
        magnitude
    } else {
        -magnitude
    }
}

/// 8-bit floating point with 5 bits of exponent and 2 of fraction: half precision without its lower byte.
fn f8_e5m2_to_f32(bits: u8) -> f32 {
    neap_kernels::format::f16_to_f32(u16::from(bits) << 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fp8_values_are_those_of_the_paper() {
        for (bits, value) in [
            (0x00, 0.0),
            (0x01, 0.001_953_125),
            (0x08, 0.015_625),
            (0x38, 1.0),
            (0x3F, 1.875),
            (0x7E, 448.0),
            (0xFE, -448.0),
        ] {
            assert_eq!(f8_e4m3_to_f32(bits), value, "{bits:#x}");
        }
        assert!(f8_e4m3_to_f32(0x7F).is_nan() && f8_e4m3_to_f32(0xFF).is_nan());
        for (bits, value) in [
            (0x3C, 1.0),
            (0x01, 2f32.powi(-16)),
            (0x7B, 57_344.0),
            (0xBE, -1.5),
        ] {
            assert_eq!(f8_e5m2_to_f32(bits), value, "{bits:#x}");
        }
        assert!(f8_e5m2_to_f32(0x7C).is_infinite());
    }
}
