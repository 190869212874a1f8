//! The products in plain Rust, straight from the rows: what every kernel must give, bit for bit.

use super::activation::{GROUP_LEN, Group, quantize_group, scaled};
use super::is_integer;
use crate::format::{DecodedBlock, decode_block};
use crate::matrix::MatrixRef;

/// The product of one row of weights with one row of activations.
pub(crate) fn dot_row(weights: &MatrixRef<'_>, row: usize, x: &[f32]) -> f32 {
    if is_integer(weights.format()) {
        quantized_dot(weights, row, x)
    } else {
        float_dot(weights, row, x)
    }
}

/// One chain of fused multiply-adds in the order of the columns.
fn float_dot(weights: &MatrixRef<'_>, row: usize, x: &[f32]) -> f32 {
    let mut values = vec![0.0; weights.cols()];
    weights.dequantize_row(row, &mut values);
    let mut sum = 0.0f32;
    for (w, x) in values.iter().zip(x) {
        sum = w.mul_add(*x, sum);
    }
    sum
}

/// For each group an exact integer dot product, brought to f32 and added by one fused
/// multiply-add; another takes off the minimum.
fn quantized_dot(weights: &MatrixRef<'_>, row: usize, x: &[f32]) -> f32 {
    let format = weights.format();
    let mut decoded = DecodedBlock::new();
    let mut sum = 0.0f32;
    let blocks = weights.row(row).chunks_exact(format.block_bytes());
    for (block, x) in blocks.zip(x.chunks_exact(format.block_len())) {
        decode_block(format, block, &mut decoded);
        for (g, x) in x.chunks_exact(GROUP_LEN).enumerate() {
            let x = quantize_group(x.as_chunks::<GROUP_LEN>().0[0]);
            let codes = &decoded.codes[g * GROUP_LEN..][..GROUP_LEN];
            sum = add_group(&decoded, g, codes, &x, sum);
        }
    }
    sum
}

fn add_group(block: &DecodedBlock, group: usize, codes: &[i8], x: &Group, sum: f32) -> f32 {
    let mut sum = sum;
    let len = block.group_len;
    for (part, (codes, x_codes)) in codes.chunks(len).zip(x.codes.chunks(len)).enumerate() {
        let at = group * (GROUP_LEN / len) + part;
        let dot: i32 = codes
            .iter()
            .zip(x_codes)
            .map(|(a, b)| i32::from(*a) * i32::from(*b))
            .sum();
        sum = block.scales[at].mul_add(scaled(x.magic, dot), sum);
        if block.has_mins {
            let total = x_codes.iter().map(|b| i32::from(*b)).sum();
            sum = (-block.mins[at]).mul_add(scaled(x.magic, total), sum);
        }
    }
    sum
}
