//! A quick search for numbers that would poison every result: NaN and infinity.

use neap_kernels::format::WeightFormat;

/// The first block of `bytes` that holds a NaN or an infinity, if any: for floating-point formats the first such value,
/// for quantized ones the first block whose scale or minimum is one (codes are always finite).
///
/// A trailing piece of a block is not looked at.
pub fn first_non_finite(format: WeightFormat, bytes: &[u8]) -> Option<usize> {
    const F16_EXPONENT: u16 = 0x7c00;
    const BF16_EXPONENT: u16 = 0x7f80;
    match format {
        WeightFormat::F32 => bytes
            .as_chunks::<4>()
            .0
            .iter()
            .position(|&value| !f32::from_le_bytes(value).is_finite()),
        WeightFormat::F16 => first_full_exponent(bytes, F16_EXPONENT),
        WeightFormat::BF16 => first_full_exponent(bytes, BF16_EXPONENT),
        // The exponent comes first; beyond this one the largest code would be infinite.
        WeightFormat::MXFP4 => bytes
            .chunks_exact(format.block_bytes())
            .position(|block| block[0] > 252),
        quantized => {
            let offsets = scale_offsets(quantized);
            bytes
                .chunks_exact(quantized.block_bytes())
                .position(|block| {
                    offsets.iter().any(|&at| {
                        u16::from_le_bytes([block[at], block[at + 1]]) & F16_EXPONENT
                            == F16_EXPONENT
                    })
                })
        }
    }
}

/// The first 16-bit value whose exponent bits are all set.
fn first_full_exponent(bytes: &[u8], exponent: u16) -> Option<usize> {
    let (values, _) = bytes.as_chunks::<2>();
    // By runs without an early exit, so that the compiler uses vectors.
    const RUN: usize = 4096;
    let is_full = |value: &[u8; 2]| u16::from_le_bytes(*value) & exponent == exponent;
    let run = values
        .chunks(RUN)
        .position(|run| run.iter().fold(false, |any, value| any | is_full(value)))?;
    let within = values[run * RUN..].iter().position(is_full)?;
    Some(run * RUN + within)
}

/// Where the f16 scales and minima lie in a block of a quantized format.
fn scale_offsets(format: WeightFormat) -> &'static [usize] {
    match format {
        WeightFormat::F32 | WeightFormat::F16 | WeightFormat::BF16 | WeightFormat::MXFP4 => &[],
        WeightFormat::IQ4NL | WeightFormat::IQ4XS => &[0],
        WeightFormat::Q4_0 | WeightFormat::Q5_0 | WeightFormat::Q8_0 => &[0],
        WeightFormat::Q4_1 | WeightFormat::Q5_1 | WeightFormat::Q4K | WeightFormat::Q5K => &[0, 2],
        WeightFormat::Q2K => &[80, 82],
        WeightFormat::Q3K => &[108],
        WeightFormat::Q6K => &[208],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_finds_the_block_that_dequantizes_to_no_number() {
        for format in WeightFormat::ALL {
            let (blocks, len, bytes) = (3, format.block_len(), format.block_bytes());
            let values: Vec<f32> = (0..blocks * len).map(|i| (i as f32).sin()).collect();
            let mut packed = vec![0; blocks * bytes];
            format.quantize(&values, &mut packed).unwrap();
            assert_eq!(first_non_finite(format, &packed), None, "{format:?}");
            // Whatever 16 bits are set to an f16 or bf16 NaN: found exactly if a decoded value is not finite.
            for at in (0..packed.len() - 1).step_by(if len == 1 { bytes } else { 1 }) {
                let mut poisoned = packed.clone();
                poisoned[at..at + 2].fill(0xff);
                if len == 1 {
                    let end = (at / bytes + 1) * bytes;
                    poisoned[end - 2..end].fill(0xff);
                }
                let mut decoded = vec![0.0; values.len()];
                format.dequantize(&poisoned, &mut decoded).unwrap();
                let first = decoded.iter().position(|value| !value.is_finite());
                assert_eq!(
                    first_non_finite(format, &poisoned),
                    first.map(|value| value / len),
                    "{format:?} at byte {at}"
                );
            }
        }
    }

    #[test]
    fn infinities_count_and_long_runs_are_searched_to_the_end() {
        let mut halves = vec![0u8; 2 * 10_001];
        assert_eq!(first_non_finite(WeightFormat::F16, &halves), None);
        halves[20_000..].copy_from_slice(&0xfc00u16.to_le_bytes());
        assert_eq!(first_non_finite(WeightFormat::F16, &halves), Some(10_000));
        assert_eq!(
            first_non_finite(WeightFormat::F32, &f32::INFINITY.to_le_bytes()),
            Some(0)
        );
        assert_eq!(first_non_finite(WeightFormat::F32, &[0xff; 3]), None);
    }
}
