use super::*;

/// Blocks and their values by the `gguf` Python package; see `tests/data/make_dequantize.py`.
const GOLDEN: &[u8] = include_bytes!("../../tests/data/dequantize.bin");

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

#[test]
fn every_format_reads_as_the_reference_reads_it() {
    let (mut rest, mut seen) = (GOLDEN, Vec::new());
    while !rest.is_empty() {
        let format = WeightFormat::from_ggml_type(word(rest, 0)).unwrap();
        let (bytes, values) = (word(rest, 4) as usize, word(rest, 8) as usize);
        let (data, after) = rest[12..].split_at(bytes);
        let (expected, after) = after.split_at(values * 4);
        let mut read = vec![0.0; values];
        format.dequantize(data, &mut read).unwrap();
        for (i, value) in read.iter().enumerate() {
            let expected = f32::from_bits(word(expected, i * 4));
            assert_eq!(
                value.to_bits(),
                expected.to_bits(),
                "{format} value {i}: {value} {expected}"
            );
        }
        seen.push(format);
        rest = after;
    }
    for format in WeightFormat::ALL {
        assert!(seen.contains(&format), "{format} is not in the golden file");
    }
}

#[test]
fn halves_round_trip_and_round_to_nearest() {
    for bits in 0..=u16::MAX {
        let value = f16_to_f32(bits);
        if !value.is_nan() {
            assert_eq!(f32_to_f16(value), bits, "{value}");
        } else {
            assert!(f16_to_f32(f32_to_f16(value)).is_nan());
        }
        let value = bf16_to_f32(bits);
        if !value.is_nan() {
            assert_eq!(f32_to_bf16(value), bits, "{value}");
        } else {
            assert!(bf16_to_f32(f32_to_bf16(value)).is_nan());
        }
    }
    // Between two neighbours the nearer one wins, in the middle the even one.
    for bits in 0..0x7BFFu16 {
        let (a, b) = (f16_to_f32(bits), f16_to_f32(bits + 1));
        let middle = (a + b) / 2.0;
        assert_eq!(f32_to_f16(middle), bits + (bits & 1));
        assert_eq!(f32_to_f16(middle.next_down()), bits);
        assert_eq!(f32_to_f16(middle.next_up()), bits + 1);
    }
    assert_eq!(f32_to_f16(65519.9), 0x7BFF);
    assert_eq!(f32_to_f16(65520.0), 0x7C00);
}

/// Normal deviates from a linear congruential generator (sum of twelve uniforms).
fn normal(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..count)
        .map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0)
        .collect()
}

/// Root of the mean squared error of a round trip, in units of the values' own.
fn round_trip_error(format: WeightFormat, values: &[f32]) -> f32 {
    let mut bytes = vec![0; format.row_bytes(values.len()).unwrap()];
    format.quantize(values, &mut bytes).unwrap();
    let mut back = vec![0.0; values.len()];
    format.dequantize(&bytes, &mut back).unwrap();
    let error: f32 = values
        .iter()
        .zip(&back)
        .map(|(a, b)| (a - b) * (a - b))
        .sum();
    let power: f32 = values.iter().map(|a| a * a).sum();
    (error / power).sqrt()
}

#[test]
fn quantizing_normal_weights_keeps_the_error_small() {
    let values = normal(256 * 64, 7);
    for (format, limit) in [
        (WeightFormat::F32, 0.0),
        (WeightFormat::F16, 0.0003),
        (WeightFormat::BF16, 0.002),
        (WeightFormat::Q8_0, 0.006),
        (WeightFormat::Q6K, 0.020),
        (WeightFormat::Q5K, 0.040),
        (WeightFormat::Q5_1, 0.042),
        (WeightFormat::Q5_0, 0.046),
        (WeightFormat::Q4K, 0.080),
        (WeightFormat::Q4_1, 0.085),
        (WeightFormat::Q4_0, 0.095),
        (WeightFormat::IQ4NL, 0.095),
        (WeightFormat::IQ4XS, 0.095),
        (WeightFormat::MXFP4, 0.13),
        (WeightFormat::Q3K, 0.18),
        (WeightFormat::Q2K, 0.33),
    ] {
        let error = round_trip_error(format, &values);
        println!("{format}: {error:.5}");
        assert!(error <= limit, "{format}: {error}");
    }
}

#[test]
fn constant_rows_and_zeros_survive() {
    for format in WeightFormat::ALL {
        assert_eq!(
            round_trip_error(format, &[1.0; 256]).max(0.04),
            0.04,
            "{format}"
        );
        let mut bytes = vec![0xA5; format.row_bytes(256).unwrap()];
        format.quantize(&[0.0; 256], &mut bytes).unwrap();
        let mut back = [1.0; 256];
        format.dequantize(&bytes, &mut back).unwrap();
        assert_eq!(back, [0.0; 256], "{format}");
    }
}

#[test]
fn hostile_values_and_bytes_do_not_panic() {
    for format in WeightFormat::ALL {
        for value in [f32::NAN, f32::INFINITY, f32::MAX, f32::MIN_POSITIVE / 8.0] {
            let mut bytes = vec![0; format.row_bytes(256).unwrap()];
            let mut values = [value; 256];
            values[3] = -1.0;
            format.quantize(&values, &mut bytes).unwrap();
            format.dequantize(&bytes, &mut values).unwrap();
        }
        let mut values = [0.0; 256];
        for byte in [0x7F, 0x80, 0xFF] {
            let bytes = vec![byte; format.row_bytes(256).unwrap()];
            format.dequantize(&bytes, &mut values).unwrap();
        }
    }
}

#[test]
fn wrong_lengths_are_errors() {
    let error = WeightFormat::Q4_0
        .dequantize(&[0; 18], &mut [0.0; 31])
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "31 values are no whole number of Q4_0 blocks of 32"
    );
    let error = WeightFormat::Q4_0
        .dequantize(&[0; 17], &mut [0.0; 32])
        .unwrap_err();
    assert_eq!(error.to_string(), "32 values take 18 bytes as Q4_0, not 17");
    assert!(WeightFormat::Q6K.row_bytes(usize::MAX & !255).is_some());
    assert!(WeightFormat::F32.row_bytes(usize::MAX).is_none());
}
