//! From values to blocks.
//!
//! The one-scale formats take the scale from the extreme value, as ggml's reference does. The K
//! formats search: for several step sizes round the values to codes, solve for the scale (and
//! minimum) that fits those codes best in the weighted least-squares sense, and keep the best;
//! then the scales themselves are rounded and the codes taken anew.

use super::blocks::{IQ4_CODES, MXFP4_CODES, half_power_of_two};
use super::{WeightFormat, f16_to_f32, f32_to_bf16, f32_to_f16};

/// Writes one block; both slices have the format's lengths.
pub(super) fn quantize_block(format: WeightFormat, values: &[f32], out: &mut [u8]) {
    match format {
        WeightFormat::F32 => out.copy_from_slice(&values[0].to_le_bytes()),
        WeightFormat::F16 => out.copy_from_slice(&f32_to_f16(values[0]).to_le_bytes()),
        WeightFormat::BF16 => out.copy_from_slice(&f32_to_bf16(values[0]).to_le_bytes()),
        WeightFormat::Q4_0 => {
            let codes = symmetric_codes(values, 8, &mut out[..2]);
            pack_nibbles(&codes, &mut out[2..18]);
        }
        WeightFormat::Q5_0 => {
            let codes = symmetric_codes(values, 16, &mut out[..2]);
            pack_fifth_bits(&codes, &mut out[2..6]);
            pack_nibbles(&codes, &mut out[6..22]);
        }
        WeightFormat::Q4_1 => {
            let codes = affine_codes(values, 15, &mut out[..4]);
            pack_nibbles(&codes, &mut out[4..20]);
        }
        WeightFormat::Q5_1 => {
            let codes = affine_codes(values, 31, &mut out[..4]);
            pack_fifth_bits(&codes, &mut out[4..8]);
            pack_nibbles(&codes, &mut out[8..24]);
        }
        WeightFormat::Q8_0 => quantize_q8_0(values, out),
        WeightFormat::Q2K => quantize_q2k(values, out),
        WeightFormat::Q3K => quantize_q3k(values, out),
        WeightFormat::Q4K | WeightFormat::Q5K => quantize_q4k_q5k(format, values, out),
        WeightFormat::Q6K => quantize_q6k(values, out),
        WeightFormat::IQ4NL => {
            let scale = put_half(extreme(values) / f32::from(IQ4_CODES[0]), &mut out[..2]);
            pack_nearest(values, scale, &IQ4_CODES, &mut out[2..18]);
        }
        WeightFormat::IQ4XS => quantize_iq4xs(values, out),
        WeightFormat::MXFP4 => {
            // The largest value gets the largest exponent of a code, 2.
            let largest = extreme(values).abs();
            let exponent = (largest.to_bits() >> 23) as i32 - 2;
            out[0] = if largest == 0.0 {
                0
            } else {
                exponent.clamp(0, 252) as u8
            };
            let scale = half_power_of_two(out[0]);
            pack_nearest(values, scale, &MXFP4_CODES, &mut out[1..17]);
        }
    }
}

/// Writes a half-precision number and returns it as it will be read back.
fn put_half(value: f32, out: &mut [u8]) -> f32 {
    let bits = f32_to_f16(value);
    out.copy_from_slice(&bits.to_le_bytes());
    f16_to_f32(bits)
}

/// 1/x, and 0 for 0: the step of a block of zeros.
fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// Nearest integer within `0..=max`; NaN gives 0.
fn code(x: f32, max: i32) -> u8 {
    x.round_ties_even().clamp(0.0, max as f32) as u8
}

/// The value of largest magnitude, with its sign.
fn extreme(values: &[f32]) -> f32 {
    let larger = |a: f32, b: &f32| if b.abs() > a.abs() { *b } else { a };
    values.iter().fold(0.0, larger)
}

/// Codes around `half`; the extreme value gets code 0, so that the longer negative side is used.
fn symmetric_codes(values: &[f32], half: i32, scale_out: &mut [u8]) -> [u8; 32] {
    let scale = extreme(values) / -half as f32;
    put_half(scale, scale_out);
    let inverse = inverse(scale);
    std::array::from_fn(|i| code(values[i] * inverse + half as f32, 2 * half - 1))
}

/// 32 values as indices of the nearest codes: the first 16 in the lower halves of bytes.
fn pack_nearest(values: &[f32], scale: f32, table: &[i8; 16], out: &mut [u8]) {
    let inverse = inverse(scale);
    let index = |value: f32| {
        let wanted = value * inverse;
        let distance = |code: i8| (wanted - f32::from(code)).abs();
        let nearest = |best: usize, i: usize| {
            if distance(table[i]) < distance(table[best]) {
                i
            } else {
                best
            }
        };
        (1..16).fold(0, nearest) as u8
    };
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = index(values[i]) | index(values[i + 16]) << 4;
    }
}

fn quantize_iq4xs(values: &[f32], out: &mut [u8]) {
    let scale_of = |group: &[f32]| extreme(group) / f32::from(IQ4_CODES[0]);
    let scales: [f32; 8] = std::array::from_fn(|g| scale_of(&values[g * 32..][..32]));
    let d = put_half(extreme(&scales) / -32.0, &mut out[..2]);
    let inverse = inverse(d);
    let (mut high, mut low) = (0u16, [0u8; 4]);
    for (g, values) in values.chunks_exact(32).enumerate() {
        let level = code(scales[g] * inverse + 32.0, 63);
        low[g / 2] |= (level & 0xF) << (g % 2 * 4);
        high |= u16::from(level >> 4) << (g * 2);
        let scale = d * (f32::from(level) - 32.0);
        pack_nearest(values, scale, &IQ4_CODES, &mut out[8 + g * 16..][..16]);
    }
    out[2..4].copy_from_slice(&high.to_le_bytes());
    out[4..8].copy_from_slice(&low);
}

/// Codes from the least to the greatest value.
fn affine_codes(values: &[f32], max_code: i32, scale_min_out: &mut [u8]) -> [u8; 32] {
    let min = values.iter().copied().fold(f32::INFINITY, f32::min);
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = (max - min) / max_code as f32;
    put_half(scale, &mut scale_min_out[..2]);
    put_half(min, &mut scale_min_out[2..]);
    let inverse = inverse(scale);
    std::array::from_fn(|i| code((values[i] - min) * inverse, max_code))
}

fn pack_nibbles(codes: &[u8], out: &mut [u8]) {
    let (low, high) = codes.split_at(out.len());
    for (o, (l, h)) in out.iter_mut().zip(low.iter().zip(high)) {
        *o = l & 0xF | (h & 0xF) << 4;
    }
}

fn pack_fifth_bits(codes: &[u8; 32], out: &mut [u8]) {
    out.fill(0);
    for (i, code) in codes.iter().enumerate() {
        out[i / 8] |= (code >> 4 & 1) << (i % 8);
    }
}

fn quantize_q8_0(values: &[f32], out: &mut [u8]) {
    let scale = extreme(values).abs() / 127.0;
    put_half(scale, &mut out[..2]);
    let inverse = inverse(scale);
    for (o, v) in out[2..].iter_mut().zip(values) {
        *o = (v * inverse).round() as i8 as u8;
    }
}

/// Weights of the squared errors: large values count more, none counts nothing.
fn importance<const N: usize>(values: &[f32]) -> [f32; N] {
    let mean_square = values.iter().map(|v| v * v).sum::<f32>() / N as f32;
    let base = mean_square.sqrt();
    std::array::from_fn(|i| base + values[i].abs())
}

/// Best `(scale, min)` for `value = scale * code - min`, codes `0..=max_code`, `min >= 0`.
fn fit_affine<const N: usize>(values: &[f32], max_code: i32) -> (f32, f32) {
    let weights = importance::<N>(values);
    let low = values.iter().copied().fold(0.0, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if high <= low || !(high - low).is_finite() {
        return (0.0, -low);
    }
    let mut best = ((high - low) / max_code as f32, -low);
    let mut best_error = f32::INFINITY;
    for trial in -10..=10 {
        let step = (high - low) / (max_code as f32 + 0.1 * trial as f32);
        let codes: [f32; N] =
            std::array::from_fn(|i| f32::from(code((values[i] - low) / step, max_code)));
        let fit = solve_affine(values, &weights, &codes);
        let error = affine_error(values, &weights, fit, max_code);
        if error < best_error {
            (best, best_error) = (fit, error);
        }
    }
    best
}

/// Weighted least squares for given codes, with the minimum held at or above zero.
fn solve_affine<const N: usize>(
    values: &[f32],
    weights: &[f32; N],
    codes: &[f32; N],
) -> (f32, f32) {
    let (mut sw, mut sc, mut scc, mut sv, mut svc) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for i in 0..N {
        let (w, c, v) = (weights[i], codes[i], values[i]);
        sw += w;
        sc += w * c;
        scc += w * c * c;
        sv += w * v;
        svc += w * v * c;
    }
    let determinant = sw * scc - sc * sc;
    let (scale, min) = if determinant > 0.0 {
        let scale = (sw * svc - sc * sv) / determinant;
        (scale, (sc * svc - scc * sv) / determinant)
    } else {
        (0.0, -sv / sw)
    };
    if min >= 0.0 {
        return (scale.max(0.0), min);
    }
    ((svc * inverse(scc)).max(0.0), 0.0)
}

/// Weighted squared error when the codes are taken anew for `(scale, min)`.
fn affine_error<const N: usize>(
    values: &[f32],
    weights: &[f32; N],
    (scale, min): (f32, f32),
    max_code: i32,
) -> f32 {
    let inverse = inverse(scale);
    let error = |(v, w): (&f32, &f32)| {
        let c = f32::from(code((v + min) * inverse, max_code));
        let e = scale * c - min - v;
        w * e * e
    };
    values.iter().zip(weights).map(error).sum()
}

/// Best scale for `value = scale * (code - half)`, codes `0..2 * half`; signed.
fn fit_symmetric<const N: usize>(values: &[f32], half: i32) -> f32 {
    let extreme = extreme(values);
    if extreme == 0.0 || !extreme.is_finite() {
        return 0.0;
    }
    let (mut best, mut best_gain) = (0.0, 0.0);
    for trial in -9..=9 {
        let inverse = -(half as f32 + 0.1 * trial as f32) / extreme;
        let (mut svc, mut scc) = (0.0, 0.0);
        for v in values {
            let c = signed_code(v * inverse, half);
            let w = v * v;
            svc += w * v * c;
            scc += w * c * c;
        }
        // The squared error is Σwv² - svc²/scc.
        if scc > 0.0 && svc * svc > best_gain * scc {
            (best, best_gain) = (svc / scc, svc * svc / scc);
        }
    }
    best
}

/// Nearest integer within `-half..half`.
fn signed_code(x: f32, half: i32) -> f32 {
    x.round_ties_even().clamp(-half as f32, (half - 1) as f32)
}

fn quantize_q2k(values: &[f32], out: &mut [u8]) {
    let fits: [(f32, f32); 16] =
        std::array::from_fn(|g| fit_affine::<16>(&values[g * 16..][..16], 3));
    let max_scale = fits.iter().map(|f| f.0).fold(0.0, f32::max);
    let max_min = fits.iter().map(|f| f.1).fold(0.0, f32::max);
    let d = put_half(max_scale / 15.0, &mut out[80..82]);
    let dmin = put_half(max_min / 15.0, &mut out[82..84]);
    let mut codes = [0u8; 256];
    for (g, fit) in fits.iter().enumerate() {
        let (scale, min) = (
            code(fit.0 * inverse(d), 15),
            code(fit.1 * inverse(dmin), 15),
        );
        out[g] = scale | min << 4;
        let step = inverse(d * f32::from(scale));
        for i in g * 16..g * 16 + 16 {
            codes[i] = code((values[i] + dmin * f32::from(min)) * step, 3);
        }
    }
    pack_two_bits(&codes, &mut out[16..80]);
}

/// 2-bit codes: byte `i` of each 32 holds values `i`, `i + 32`, `i + 64` and `i + 96`.
fn pack_two_bits(codes: &[u8; 256], out: &mut [u8]) {
    out.fill(0);
    for (i, code) in codes.iter().enumerate() {
        out[i / 128 * 32 + i % 32] |= (code & 3) << (i % 128 / 32 * 2);
    }
}

fn quantize_q3k(values: &[f32], out: &mut [u8]) {
    let fits: [f32; 16] = std::array::from_fn(|g| fit_symmetric::<16>(&values[g * 16..][..16], 4));
    let d = put_half(extreme(&fits) / -32.0, &mut out[108..110]);
    let mut codes = [0u8; 256];
    out[..32].fill(0);
    out[96..108].fill(0);
    for (g, fit) in fits.iter().enumerate() {
        let scale = signed_code(fit * inverse(d), 32);
        let bits = (scale + 32.0) as u8;
        out[96 + g % 8] |= (bits & 0xF) << (g / 8 * 4);
        out[104 + g % 4] |= bits >> 4 << (g / 4 * 2);
        let step = inverse(d * scale);
        for i in g * 16..g * 16 + 16 {
            codes[i] = (signed_code(values[i] * step, 4) + 4.0) as u8;
            out[i % 32] |= codes[i] >> 2 << (i / 32);
        }
    }
    pack_two_bits(&codes, &mut out[32..96]);
}

fn quantize_q4k_q5k(format: WeightFormat, values: &[f32], out: &mut [u8]) {
    let max_code = if format == WeightFormat::Q5K { 31 } else { 15 };
    let fits: [(f32, f32); 8] =
        std::array::from_fn(|g| fit_affine::<32>(&values[g * 32..][..32], max_code));
    let max_scale = fits.iter().map(|f| f.0).fold(0.0, f32::max);
    let max_min = fits.iter().map(|f| f.1).fold(0.0, f32::max);
    let d = put_half(max_scale / 63.0, &mut out[..2]);
    let dmin = put_half(max_min / 63.0, &mut out[2..4]);
    let scales = fits.map(|f| code(f.0 * inverse(d), 63));
    let mins = fits.map(|f| code(f.1 * inverse(dmin), 63));
    pack_scales_6bit(&scales, &mins, &mut out[4..16]);
    let codes: [u8; 256] = std::array::from_fn(|i| {
        let (scale, min) = (f32::from(scales[i / 32]), f32::from(mins[i / 32]));
        code((values[i] + dmin * min) * inverse(d * scale), max_code)
    });
    let low = if format == WeightFormat::Q5K { 48 } else { 16 };
    for (pair, o) in codes.chunks_exact(64).zip(out[low..].chunks_exact_mut(32)) {
        pack_nibbles(pair, o);
    }
    if format == WeightFormat::Q5K {
        out[16..48].fill(0);
        for (i, code) in codes.iter().enumerate() {
            out[16 + i % 32] |= code >> 4 << (i / 32);
        }
    }
}

fn pack_scales_6bit(scales: &[u8; 8], mins: &[u8; 8], out: &mut [u8]) {
    for i in 0..4 {
        out[i] = scales[i] | scales[4 + i] >> 4 << 6;
        out[4 + i] = mins[i] | mins[4 + i] >> 4 << 6;
        out[8 + i] = scales[4 + i] & 0xF | (mins[4 + i] & 0xF) << 4;
    }
}

fn quantize_q6k(values: &[f32], out: &mut [u8]) {
    let fits: [f32; 16] = std::array::from_fn(|g| fit_symmetric::<16>(&values[g * 16..][..16], 32));
    let d = put_half(extreme(&fits) / -128.0, &mut out[208..210]);
    out[..192].fill(0);
    for (g, fit) in fits.iter().enumerate() {
        let scale = signed_code(fit * inverse(d), 128);
        out[192 + g] = scale as i8 as u8;
        let step = inverse(d * scale);
        for i in g * 16..g * 16 + 16 {
            let code = (signed_code(values[i] * step, 32) + 32.0) as u8;
            let (half, quarter) = (i / 128, i % 128 / 32);
            out[half * 64 + i % 64] |= (code & 0xF) << (quarter / 2 * 4);
            out[128 + half * 32 + i % 32] |= code >> 4 << (quarter * 2);
        }
    }
}
