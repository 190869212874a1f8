//! Weight formats: the block layouts of ggml, byte for byte.
//!
//! A row of weights is a sequence of blocks; a block holds [`WeightFormat::block_len`] values in
//! [`WeightFormat::block_bytes`] bytes. Quantized blocks are runs of *groups* of 16 or 32 values
//! that share a scale and, in some formats, a minimum: `value = scale * code - min`.

mod blocks;
mod half;
mod quantize;
#[cfg(test)]
mod tests;

pub(crate) use blocks::{DecodedBlock, decode_block};
pub(crate) use blocks::{
    IQ4_CODES, MXFP4_CODES, half_power_of_two, iq4xs_scales, q3k_scales, unpack_scales_words,
};
pub use half::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};

use std::fmt;

/// How the values of a weight matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of [`WeightFormat::F32`].
    BF16,
    /// 4-bit codes around 8, one f16 scale for 32 values.
    Q4_0,
    /// 4-bit codes, f16 scale and minimum for 32 values.
    Q4_1,
    /// 5-bit codes around 16, one f16 scale for 32 values.
    Q5_0,
    /// 5-bit codes, f16 scale and minimum for 32 values.
    Q5_1,
    /// Signed 8-bit codes, one f16 scale for 32 values.
    Q8_0,
    /// 2-bit codes, 4-bit scales and minima of 16 groups of 16 values.
    Q2K,
    /// 3-bit codes around 4, 6-bit scales of 16 groups of 16 values.
    Q3K,
    /// 4-bit codes, 6-bit scales and minima of 8 groups of 32 values.
    Q4K,
    /// 5-bit codes, 6-bit scales and minima of 8 groups of 32 values.
    Q5K,
    /// 6-bit codes around 32, 8-bit scales of 16 groups of 16 values.
    Q6K,
    /// 4-bit indices into a table of 16 codes that are denser around 0, one f16 scale for 32 values.
    IQ4NL,
    /// The same table, 6-bit scales of 8 groups of 32 values.
    IQ4XS,
    /// 4-bit floating-point numbers, one power of two for 32 values (OCP Microscaling Formats 1.0).
    MXFP4,
}

/// A slice whose length does not fit the format or the other slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The number of values is no multiple of the block length.
    #[error("{values} values are no whole number of {} blocks of {}", .format.name(), .format.block_len())]
    PartialBlock {
        /// The format.
        format: WeightFormat,
        /// Number of values given.
        values: usize,
    },
    /// The number of bytes is not what the values take.
    #[error("{values} values take {needed} bytes as {}, not {bytes}", .format.name())]
    Length {
        /// The format.
        format: WeightFormat,
        /// Number of values given.
        values: usize,
        /// Bytes that they take.
        needed: usize,
        /// Bytes given.
        bytes: usize,
    },
}

/// One line of the table of formats.
struct Description {
    format: WeightFormat,
    name: &'static str,
    /// Number of this type in GGUF files (`enum ggml_type`).
    ggml_type: u32,
    block_len: usize,
    block_bytes: usize,
}

const fn describe(
    format: WeightFormat,
    name: &'static str,
    ggml_type: u32,
    block_len: usize,
    block_bytes: usize,
) -> Description {
    Description {
        format,
        name,
        ggml_type,
        block_len,
        block_bytes,
    }
}

/// The table, in the order of the enum.
const DESCRIPTIONS: [Description; 16] = [
    describe(WeightFormat::F32, "F32", 0, 1, 4),
    describe(WeightFormat::F16, "F16", 1, 1, 2),
    describe(WeightFormat::BF16, "BF16", 30, 1, 2),
    describe(WeightFormat::Q4_0, "Q4_0", 2, 32, 18),
    describe(WeightFormat::Q4_1, "Q4_1", 3, 32, 20),
    describe(WeightFormat::Q5_0, "Q5_0", 6, 32, 22),
    describe(WeightFormat::Q5_1, "Q5_1", 7, 32, 24),
    describe(WeightFormat::Q8_0, "Q8_0", 8, 32, 34),
    describe(WeightFormat::Q2K, "Q2_K", 10, 256, 84),
    describe(WeightFormat::Q3K, "Q3_K", 11, 256, 110),
    describe(WeightFormat::Q4K, "Q4_K", 12, 256, 144),
    describe(WeightFormat::Q5K, "Q5_K", 13, 256, 176),
    describe(WeightFormat::Q6K, "Q6_K", 14, 256, 210),
    describe(WeightFormat::IQ4NL, "IQ4_NL", 20, 32, 18),
    describe(WeightFormat::IQ4XS, "IQ4_XS", 23, 256, 136),
    describe(WeightFormat::MXFP4, "MXFP4", 39, 32, 17),
];

impl WeightFormat {
    /// Every format.
    pub const ALL: [WeightFormat; 16] = {
        let mut all = [WeightFormat::F32; 16];
        let mut i = 0;
        while i < all.len() {
            all[i] = DESCRIPTIONS[i].format;
            assert!(all[i] as usize == i, "the table follows the enum");
            i += 1;
        }
        all
    };

    fn description(self) -> &'static Description {
        &DESCRIPTIONS[self as usize]
    }

    /// Name as ggml writes it: `Q4_K`.
    pub fn name(self) -> &'static str {
        self.description().name
    }

    /// Number of this format in GGUF files.
    pub fn ggml_type(self) -> u32 {
        self.description().ggml_type
    }

    /// The format with this number in GGUF files.
    pub fn from_ggml_type(ggml_type: u32) -> Option<WeightFormat> {
        Self::ALL.into_iter().find(|f| f.ggml_type() == ggml_type)
    }

    /// Values in a block.
    pub fn block_len(self) -> usize {
        self.description().block_len
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.description().block_bytes
    }

    /// Whether values are floating-point numbers rather than codes with a scale.
    pub fn is_float(self) -> bool {
        self.block_len() == 1
    }

    /// Bytes of a row of `cols` values; `None` if they are no whole number of blocks or too many
    /// to count.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    fn check(self, values: usize, bytes: usize) -> Result<(), FormatError> {
        let partial = FormatError::PartialBlock {
            format: self,
            values,
        };
        let needed = self.row_bytes(values).ok_or(partial)?;
        if needed == bytes {
            return Ok(());
        }
        Err(FormatError::Length {
            format: self,
            values,
            needed,
            bytes,
        })
    }

    /// Writes the values of the blocks in `bytes` into `out`.
    ///
    /// # Errors
    /// If `out` is no whole number of blocks or `bytes` has another number of them.
    pub fn dequantize(self, bytes: &[u8], out: &mut [f32]) -> Result<(), FormatError> {
        self.check(out.len(), bytes.len())?;
        match self {
            WeightFormat::F32 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *o = f32::from_le_bytes(*b);
                }
            }
            WeightFormat::F16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = f16_to_f32(u16::from_le_bytes(*b));
                }
            }
            WeightFormat::BF16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = bf16_to_f32(u16::from_le_bytes(*b));
                }
            }
            _ => {
                let mut decoded = DecodedBlock::new();
                let blocks = bytes.chunks_exact(self.block_bytes());
                for (o, block) in out.chunks_exact_mut(self.block_len()).zip(blocks) {
                    decode_block(self, block, &mut decoded);
                    decoded.values(o);
                }
            }
        }
        Ok(())
    }

    /// Writes `values` as blocks of this format into `out`: to the nearest for the float formats
    /// and the 8-bit codes, by a search for the least weighted squared error for the K formats.
    ///
    /// Values should be finite; others give a block without meaning, never a panic.
    ///
    /// # Errors
    /// If `values` is no whole number of blocks or `out` has another number of them.
    pub fn quantize(self, values: &[f32], out: &mut [u8]) -> Result<(), FormatError> {
        self.check(values.len(), out.len())?;
        let blocks = values.chunks_exact(self.block_len());
        for (block, o) in blocks.zip(out.chunks_exact_mut(self.block_bytes())) {
            quantize::quantize_block(self, block, o);
        }
        Ok(())
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
