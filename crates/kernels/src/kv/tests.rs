use super::*;
use crate::format::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use proptest::prelude::*;

fn stored(format: KvFormat, x: f32) -> f32 {
    match format {
        KvFormat::F16 => f16_to_f32(f32_to_f16(x.clamp(-65504.0, 65504.0))),
        KvFormat::Bf16 => bf16_to_f32(f32_to_bf16(x)),
        KvFormat::Int8 | KvFormat::Int4 => unreachable!("tokens are not written in {format}"),
    }
}

pub(super) fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 20) as f32 - 8.0
    };
    std::iter::repeat_with(next).take(n).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read(
        (layers, kv_heads, head_dim) in (1..4_usize, 1..4_usize, 1..140_usize),
        (first_slot, n) in (0..32_usize).prop_flat_map(|slot| (Just(slot), 0..=32 - slot)),
        format in prop::sample::select(KvFormat::WRITTEN.to_vec()),
        layer in 0..4_usize,
    ) {
        let layout = KvLayout::new(layers, kv_heads, head_dim).unwrap();
        let (layer, width) = (layer % layers, layout.width());
        let (keys, values) = (numbers(n * width, 1), numbers(n * width, 2));
        let before: Vec<u8> = (0..layout.block_bytes(format)).map(|i| i as u8).collect();
        let mut expected: Option<Vec<u8>> = None;
        for isa in Isa::available() {
            let mut block = before.clone();
            write_kv_run(isa, &layout, format, layer, &mut block, first_slot, &keys, &values);
            let (mut k, mut v) = (vec![0.0; width], vec![0.0; width]);
            for token in 0..n {
                let view = KvBlock { format, bytes: &block };
                read_kv(&layout, view, layer, first_slot + token, &mut k, &mut v);
                let own = token * width..(token + 1) * width;
                let as_stored = |x: &[f32]| x.iter().map(|&x| stored(format, x)).collect::<Vec<_>>();
                prop_assert_eq!(&k, &as_stored(&keys[own.clone()]));
                prop_assert_eq!(&v, &as_stored(&values[own]));
            }
            // As many bytes have changed as were written, at most: nothing else was touched.
            let changed = block.iter().zip(&before).filter(|(a, b)| a != b).count();
            prop_assert!(changed <= n * width * 2 * 2);
            // One token at a time gives the same block.
            let mut one_by_one = before.clone();
            for token in 0..n {
                let own = token * width..(token + 1) * width;
                let (k, v) = (&keys[own.clone()], &values[own]);
                write_kv(isa, &layout, format, layer, &mut one_by_one, first_slot + token, k, v);
            }
            prop_assert_eq!(&block, &one_by_one);
            let expected = expected.get_or_insert_with(|| block.clone());
            prop_assert_eq!(&*expected, &block, "{}", isa);
        }
    }
}

#[test]
fn large_numbers_stay_finite_in_f16() {
    let layout = KvLayout::new(1, 1, 4).unwrap();
    let keys = [1e9, -1e9, f32::INFINITY, f32::NAN];
    for isa in Isa::available() {
        let mut block = vec![0; layout.block_bytes(KvFormat::F16)];
        write_kv(isa, &layout, KvFormat::F16, 0, &mut block, 5, &keys, &keys);
        let (mut k, mut v) = ([0.0; 4], [0.0; 4]);
        let view = KvBlock {
            format: KvFormat::F16,
            bytes: &block,
        };
        read_kv(&layout, view, 0, 5, &mut k, &mut v);
        assert_eq!(k[..3], [65504.0, -65504.0, 65504.0], "{isa}");
        assert!(k[3].is_nan() && v[3].is_nan(), "{isa}");
    }
}

#[test]
fn a_block_is_its_tiles() {
    let layout = KvLayout::new(16, 8, 64).unwrap();
    assert_eq!(layout.tile_bytes(KvFormat::F16), 8 << 10);
    assert_eq!(layout.block_bytes(KvFormat::F16), 1 << 20);
    assert_eq!(layout.tile_range(KvFormat::F16, 2, 3), 19 << 13..20 << 13);
    assert_eq!(layout.layer_range(KvFormat::Bf16, 15), 15 << 16..16 << 16);
    let odd = KvLayout::new(3, 5, 37).unwrap();
    for format in KvFormat::ALL {
        for layer in 0..3 {
            for kv_head in 0..5 {
                let tile = odd.tile_range(format, layer, kv_head);
                assert!(tile.start.is_multiple_of(64));
            }
        }
    }
}

#[test]
fn quantized_blocks_have_the_bits_that_are_documented() {
    for head_dim in [64, 128] {
        let layout = KvLayout::new(2, 3, head_dim).unwrap();
        let numbers = 2 * layout.layers() * layout.width() * BLOCK_TOKENS;
        let bits = |format| (8 * layout.block_bytes(format)) as f64 / numbers as f64;
        assert_eq!(bits(KvFormat::Int8), 8.25 + 8.0 / head_dim as f64);
        assert_eq!(bits(KvFormat::Int4), 4.375);
    }
}

#[test]
#[should_panic(expected = "not written in int8")]
fn tokens_are_not_written_in_quantized_blocks() {
    let layout = KvLayout::new(1, 1, 4).unwrap();
    let mut block = vec![0; layout.block_bytes(KvFormat::Int8)];
    write_kv(
        Isa::Scalar,
        &layout,
        KvFormat::Int8,
        0,
        &mut block,
        0,
        &[0.0; 4],
        &[0.0; 4],
    );
}

#[test]
fn impossible_dimensions_are_refused() {
    for (layers, kv_heads, head_dim) in [
        (0, 1, 64),
        (1, 0, 64),
        (1, 1, 0),
        (1, 1, 1025),
        (usize::MAX, 2, 64),
        (usize::MAX / 2, 2, usize::MAX),
        (1 << 14, 1 << 10, 128),
    ] {
        let error = KvLayout::new(layers, kv_heads, head_dim).unwrap_err();
        assert_eq!(
            error,
            KvLayoutError {
                layers,
                kv_heads,
                head_dim
            }
        );
        assert!(error.to_string().contains("KV heads"));
    }
}

#[test]
#[should_panic(expected = "the tokens fit")]
fn tokens_past_the_end_are_refused() {
    let layout = KvLayout::new(1, 1, 4).unwrap();
    let mut block = vec![0; layout.block_bytes(KvFormat::F16)];
    write_kv_run(
        Isa::Scalar,
        &layout,
        KvFormat::F16,
        0,
        &mut block,
        31,
        &[0.0; 8],
        &[0.0; 8],
    );
}

#[test]
#[should_panic(expected = "the block's bytes")]
fn a_short_block_is_refused() {
    let layout = KvLayout::new(1, 1, 4).unwrap();
    write_kv(
        Isa::Scalar,
        &layout,
        KvFormat::F16,
        0,
        &mut [0; 100],
        0,
        &[0.0; 4],
        &[0.0; 4],
    );
}
