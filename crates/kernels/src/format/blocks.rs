//! From the bytes of a quantized block to its codes, scales and minima.

use super::{WeightFormat, f16_to_f32};

/// Most values in a block.
pub(crate) const MAX_BLOCK_LEN: usize = 256;
/// Most groups in a block.
const MAX_GROUPS: usize = 16;

/// A quantized block taken apart: `value[i] = scales[g] * codes[i] - mins[g]` with
/// `g = i / group_len`.
pub(crate) struct DecodedBlock {
    /// Signed codes: the format's offset is already taken off.
    pub codes: [i8; MAX_BLOCK_LEN],
    /// Scale of each group.
    pub scales: [f32; MAX_GROUPS],
    /// Minimum of each group, zero in formats without.
    pub mins: [f32; MAX_GROUPS],
    /// Whether the format has minima.
    pub has_mins: bool,
    /// Values in a group.
    pub group_len: usize,
}

impl DecodedBlock {
    pub fn new() -> Self {
        DecodedBlock {
            codes: [0; MAX_BLOCK_LEN],
            scales: [0.0; MAX_GROUPS],
            mins: [0.0; MAX_GROUPS],
            has_mins: false,
            group_len: 32,
        }
    }

    /// Writes the block's values; `out` has the block's length.
    pub fn values(&self, out: &mut [f32]) {
        let groups = out.chunks_mut(self.group_len);
        for (g, (out, codes)) in groups.zip(self.codes.chunks(self.group_len)).enumerate() {
            let (scale, min) = (self.scales[g], self.mins[g]);
            for (o, &code) in out.iter_mut().zip(codes) {
                *o = scale * f32::from(code) - min;
            }
        }
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// Takes a block of a quantized format apart.
///
/// # Panics
/// If `format` is a float format or `block` is shorter than a block.
pub(crate) fn decode_block(format: WeightFormat, block: &[u8], out: &mut DecodedBlock) {
    out.has_mins = matches!(
        format,
        WeightFormat::Q4_1
            | WeightFormat::Q5_1
            | WeightFormat::Q2K
            | WeightFormat::Q4K
            | WeightFormat::Q5K
    );
    match format {
        WeightFormat::F32 | WeightFormat::F16 | WeightFormat::BF16 => {
            unreachable!("float formats have no codes")
        }
        WeightFormat::Q4_0 => {
            one_group(out, half_at(block, 0), 0.0);
            nibbles(&block[2..18], -8, &mut out.codes);
        }
        WeightFormat::Q4_1 => {
            one_group(out, half_at(block, 0), -half_at(block, 2));
            nibbles(&block[4..20], 0, &mut out.codes);
        }
        WeightFormat::Q5_0 => {
            one_group(out, half_at(block, 0), 0.0);
            nibbles(&block[6..22], -16, &mut out.codes);
            fifth_bits(&block[2..6], &mut out.codes);
        }
        WeightFormat::Q5_1 => {
            one_group(out, half_at(block, 0), -half_at(block, 2));
            nibbles(&block[8..24], 0, &mut out.codes);
            fifth_bits(&block[4..8], &mut out.codes);
        }
        WeightFormat::Q8_0 => {
            one_group(out, half_at(block, 0), 0.0);
            for (code, &byte) in out.codes.iter_mut().zip(&block[2..34]) {
                *code = byte as i8;
            }
        }
        WeightFormat::Q2K => decode_q2k(block, out),
        WeightFormat::Q3K => decode_q3k(block, out),
        WeightFormat::Q4K => decode_q4k(block, out),
        WeightFormat::Q5K => decode_q5k(block, out),
        WeightFormat::Q6K => decode_q6k(block, out),
        WeightFormat::IQ4NL => {
            one_group(out, half_at(block, 0), 0.0);
            table_nibbles(&block[2..18], &IQ4_CODES, &mut out.codes);
        }
        WeightFormat::IQ4XS => decode_iq4xs(block, out),
        WeightFormat::MXFP4 => {
            one_group(out, half_power_of_two(block[0]), 0.0);
            table_nibbles(&block[1..17], &MXFP4_CODES, &mut out.codes);
        }
    }
}

fn one_group(out: &mut DecodedBlock, scale: f32, min: f32) {
    out.group_len = 32;
    out.scales[0] = scale;
    out.mins[0] = min;
}

/// 16 bytes of nibbles: the low ones are values 0 to 15, the high ones 16 to 31.
fn nibbles(bytes: &[u8], offset: i8, codes: &mut [i8]) {
    for (i, byte) in bytes.iter().enumerate() {
        codes[i] = (byte & 0xF) as i8 + offset;
        codes[i + 16] = (byte >> 4) as i8 + offset;
    }
}

/// Codes of IQ4_NL and IQ4_XS: denser around 0, as weights are.
pub(crate) const IQ4_CODES: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// Twice the values of a 4-bit floating-point number with 2 bits of exponent and 1 of fraction.
pub(crate) const MXFP4_CODES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// `2^(exponent - 128)`: half of what an 8-bit exponent stands for, since codes are doubled.
#[inline(always)]
pub(crate) fn half_power_of_two(exponent: u8) -> f32 {
    match exponent {
        0 | 1 => f32::from_bits(0x0020_0000 << exponent), // subnormal
        _ => f32::from_bits(u32::from(exponent - 1) << 23),
    }
}

/// As [`nibbles`], but they are indices into `table`.
fn table_nibbles(bytes: &[u8], table: &[i8; 16], codes: &mut [i8]) {
    for (i, byte) in bytes.iter().enumerate() {
        codes[i] = table[usize::from(byte & 0xF)];
        codes[i + 16] = table[usize::from(byte >> 4)];
    }
}

/// 32 bits, one for each value.
fn fifth_bits(bytes: &[u8], codes: &mut [i8]) {
    for (i, code) in codes[..32].iter_mut().enumerate() {
        *code += ((bytes[i / 8] >> (i % 8) & 1) << 4) as i8;
    }
}

/// The 6-bit scales and minima of Q4_K and Q5_K: `(scales, mins)`.
///
/// Four bytes at a time: words 0 and 1 hold the lower six bits of the first four scales and
/// minima, word 2 the lower four bits of the others, whose upper two are those of words 0 and 1.
#[inline(always)]
pub(crate) fn unpack_scales_words([scales, mins, both]: [u32; 3]) -> ([u8; 8], [u8; 8]) {
    const SIX: u32 = 0x3F3F_3F3F;
    const FOUR: u32 = 0x0F0F_0F0F;
    const UPPER: u32 = 0x3030_3030;
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let scales = join(scales & SIX, both & FOUR | scales >> 2 & UPPER);
    let mins = join(mins & SIX, both >> 4 & FOUR | mins >> 2 & UPPER);
    (scales.to_le_bytes(), mins.to_le_bytes())
}

fn decode_q2k(block: &[u8], out: &mut DecodedBlock) {
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    out.group_len = 16;
    for (g, byte) in block[..16].iter().enumerate() {
        out.scales[g] = d * f32::from(byte & 0xF);
        out.mins[g] = dmin * f32::from(byte >> 4);
    }
    for (i, code) in out.codes.iter_mut().enumerate() {
        let byte = block[16 + i / 128 * 32 + i % 32];
        *code = (byte >> (i % 128 / 32 * 2) & 3) as i8;
    }
}

/// The scales of Q3_K: lower four bits of eight and of eight more, then their upper two, less 32.
#[inline(always)]
pub(crate) fn q3k_scales(packed: &[u8; 12]) -> [i8; 16] {
    std::array::from_fn(|g| {
        let four = packed[g % 8] >> (g / 8 * 4) & 0xF;
        let two = packed[8 + g % 4] >> (g / 4 * 2) & 3;
        (four | two << 4) as i8 - 32
    })
}

/// The scales of IQ4_XS: the upper two bits of all, then the lower four, less 32.
#[inline(always)]
pub(crate) fn iq4xs_scales(packed: &[u8; 6]) -> [i8; 8] {
    let high = u16::from_le_bytes([packed[0], packed[1]]);
    std::array::from_fn(|g| {
        let four = packed[2 + g / 2] >> (g % 2 * 4) & 0xF;
        let two = (high >> (g * 2) & 3) as u8;
        (four | two << 4) as i8 - 32
    })
}

fn decode_q3k(block: &[u8], out: &mut DecodedBlock) {
    let (high, low, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(block, 108);
    out.group_len = 16;
    let packed = std::array::from_fn(|i| packed[i]);
    for (g, scale) in q3k_scales(&packed).into_iter().enumerate() {
        out.scales[g] = d * f32::from(scale);
        out.mins[g] = 0.0;
    }
    for (i, code) in out.codes.iter_mut().enumerate() {
        let two = low[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        let third = high[i % 32] >> (i / 32) & 1;
        *code = (two | third << 2) as i8 - 4;
    }
}

fn decode_iq4xs(block: &[u8], out: &mut DecodedBlock) {
    let d = half_at(block, 0);
    let packed = std::array::from_fn(|i| block[2 + i]);
    out.group_len = 32;
    for (g, scale) in iq4xs_scales(&packed).into_iter().enumerate() {
        out.scales[g] = d * f32::from(scale);
        out.mins[g] = 0.0;
        let nibbles = &block[8 + g * 16..][..16];
        table_nibbles(nibbles, &IQ4_CODES, &mut out.codes[g * 32..]);
    }
}

fn decode_q4k(block: &[u8], out: &mut DecodedBlock) {
    scales_q4k(block, out);
    for (pair, bytes) in block[16..144].chunks_exact(32).enumerate() {
        for (i, byte) in bytes.iter().enumerate() {
            out.codes[pair * 64 + i] = (byte & 0xF) as i8;
            out.codes[pair * 64 + 32 + i] = (byte >> 4) as i8;
        }
    }
}

fn scales_q4k(block: &[u8], out: &mut DecodedBlock) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (scales, mins) = unpack_scales_words(std::array::from_fn(|i| {
        let at = 4 + i * 4;
        u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
    }));
    out.group_len = 32;
    for g in 0..8 {
        out.scales[g] = d * f32::from(scales[g]);
        out.mins[g] = dmin * f32::from(mins[g]);
    }
}

fn decode_q5k(block: &[u8], out: &mut DecodedBlock) {
    scales_q4k(block, out);
    let (high, low) = (&block[16..48], &block[48..176]);
    for (i, code) in out.codes.iter_mut().enumerate() {
        let four = low[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 0xF;
        let fifth = high[i % 32] >> (i / 32) & 1;
        *code = (four | fifth << 4) as i8;
    }
}

fn decode_q6k(block: &[u8], out: &mut DecodedBlock) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    out.group_len = 16;
    for (g, &scale) in scales.iter().enumerate() {
        out.scales[g] = d * f32::from(scale as i8);
        out.mins[g] = 0.0;
    }
    for (i, code) in out.codes.iter_mut().enumerate() {
        let (half, quarter) = (i / 128, i % 128 / 32);
        let four = low[half * 64 + i % 64] >> (quarter / 2 * 4) & 0xF;
        let two = high[half * 32 + i % 32] >> (quarter * 2) & 3;
        *code = (four | two << 4) as i8 - 32;
    }
}
