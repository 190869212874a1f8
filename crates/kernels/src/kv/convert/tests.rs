use super::*;
use crate::format::{bf16_to_f32, f32_to_bf16};
use crate::kv::tests::numbers;
use crate::kv::{read_kv, write_kv_run};
use proptest::prelude::*;

/// What a group is of.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Keys,
    Values,
}

/// Keys and values `[32 tokens][width]` of every layer.
type Numbers = Vec<(Vec<f32>, Vec<f32>)>;

fn block(layout: &KvLayout, format: KvFormat, numbers: &Numbers) -> Vec<u8> {
    let mut bytes = vec![0; layout.block_bytes(format)];
    for (layer, (keys, values)) in numbers.iter().enumerate() {
        write_kv_run(
            Isa::Scalar,
            layout,
            format,
            layer,
            &mut bytes,
            0,
            keys,
            values,
        );
    }
    bytes
}

fn converted(isa: Isa, layout: &KvLayout, from: KvFormat, bytes: &[u8], to: KvFormat) -> Vec<u8> {
    // What was in the memory before must not matter.
    let mut out = vec![0xA5; layout.block_bytes(to)];
    let from = KvBlock {
        format: from,
        bytes,
    };
    convert_block(isa, layout, from, to, &mut out);
    out
}

fn read(layout: &KvLayout, format: KvFormat, bytes: &[u8]) -> Numbers {
    let width = layout.width();
    let layer = |layer| {
        let (mut keys, mut values) = (
            vec![0.0; BLOCK_TOKENS * width],
            vec![0.0; BLOCK_TOKENS * width],
        );
        for slot in 0..BLOCK_TOKENS {
            let own = slot * width..(slot + 1) * width;
            let (keys, values) = (&mut keys[own.clone()], &mut values[own]);
            read_kv(layout, KvBlock { format, bytes }, layer, slot, keys, values);
        }
        (keys, values)
    };
    (0..layout.layers()).map(layer).collect()
}

/// Calls `f` with every group of numbers: the channels of keys, and a head's values of a token, or 64 of them.
fn for_each_group(
    layout: &KvLayout,
    format: KvFormat,
    numbers: &mut Numbers,
    f: &mut impl FnMut(Kind, &mut [f32]),
) {
    let values_len = if format == KvFormat::Int4 { 64 } else { 1024 };
    let width = layout.width();
    for (keys, values) in numbers {
        for channel in 0..width {
            let mut group: Vec<f32> = keys.iter().skip(channel).step_by(width).copied().collect();
            f(Kind::Keys, &mut group);
            for (slot, x) in group.into_iter().enumerate() {
                keys[slot * width + channel] = x;
            }
        }
        for head in values.chunks_exact_mut(layout.head_dim()) {
            head.chunks_mut(values_len)
                .for_each(|group| f(Kind::Values, group));
        }
    }
}

fn extremes(group: &[f32]) -> (f32, f32) {
    group
        .iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &x| {
            (low.min(x), high.max(x))
        })
}

/// What a group becomes in eight bits, as the format's documentation says.
fn plain_8(_: Kind, group: &mut [f32]) {
    let (low, high) = extremes(group);
    let scale = f16_to_f32(f32_to_f16(high.max(-low) * (1.0 / 127.0)));
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    for x in group {
        *x = (*x * inverse).clamp(-127.0, 127.0).round_ties_even() * scale;
    }
}

/// What a group becomes in four bits: three scales are tried for values, two for keys.
fn plain_4(kind: Kind, group: &mut [f32]) {
    let tried = if kind == Kind::Keys { 2 } else { 3 };
    let (low, high) = extremes(group);
    let covering = scale_code(((high - low) * (1.0 / 15.0)).max(low.abs() * (1.0 / 112.0)));
    let mut best: Option<(f32, Vec<f32>)> = None;
    for i in 0..tried {
        let scale = scale(covering.saturating_sub(i));
        let inverse = 1.0 / scale;
        let mut offset = (0.5 * (low + high) * inverse - 7.5).round_ties_even();
        offset = if low <= 0.0 && high >= 0.0 {
            offset.clamp(-15.0, 0.0)
        } else {
            offset.clamp(-127.0, 112.0)
        };
        let stored = |x: f32| {
            let code = x.mul_add(inverse, -offset).clamp(0.0, 15.0);
            (code.round_ties_even() + offset) * scale
        };
        let mut errors = [0.0_f32; LANES];
        // The last vector is filled up with the first number.
        for i in 0..group.len().next_multiple_of(LANES) {
            let x = group.get(i).copied().unwrap_or(group[0]);
            let error = x - stored(x);
            errors[i % LANES] = error.mul_add(error, errors[i % LANES]);
        }
        let mut width = LANES / 2;
        while width > 0 {
            (0..width).for_each(|i| errors[i] += errors[i + width]);
            width /= 2;
        }
        if best.as_ref().is_none_or(|(least, _)| errors[0] < *least) {
            best = Some((errors[0], group.iter().map(|&x| stored(x)).collect()));
        }
    }
    group.copy_from_slice(&best.expect("some were tried").1);
}

/// Numbers of several kinds: from about ±8 down to ±1e-6, off zero, and zeros.
fn mixed_numbers(layout: &KvLayout, seed: u32) -> Numbers {
    let width = layout.width();
    let mixed = |seed: u32| {
        let mut x = numbers(BLOCK_TOKENS * width, seed);
        for (i, x) in x.iter_mut().enumerate() {
            let (slot, channel) = (i / width, i % width);
            match (channel + seed as usize) % 7 {
                0 => *x *= 1e-3,
                1 => *x += 40.0,
                2 => *x -= 300.0,
                3 if slot % 5 == 0 => *x = 0.0,
                4 => *x *= 1e-7,
                5 => *x = x.powi(3),
                _ => {}
            }
            if slot == 7 {
                *x = 0.0;
            }
        }
        x
    };
    (0..layout.layers() as u32)
        .map(|layer| (mixed(seed + 2 * layer), mixed(seed + 2 * layer + 1)))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn blocks_become_what_the_documentation_says(
        (layers, kv_heads, head_dim) in (1..3_usize, 1..3_usize, 1..140_usize),
        written in prop::sample::select(KvFormat::WRITTEN.to_vec()),
        to in prop::sample::select(vec![KvFormat::Int8, KvFormat::Int4]),
        seed in 0..1000_u32,
    ) {
        let layout = KvLayout::new(layers, kv_heads, head_dim).unwrap();
        let bytes = block(&layout, written, &mixed_numbers(&layout, seed));
        let before = read(&layout, written, &bytes);
        let mut expected = before.clone();
        let plain = if to == KvFormat::Int8 { plain_8 } else { plain_4 };
        for_each_group(&layout, to, &mut expected, &mut |kind, group| plain(kind, group));
        let mut first: Option<Vec<u8>> = None;
        for isa in Isa::available() {
            let out = converted(isa, &layout, written, &bytes, to);
            prop_assert!(read(&layout, to, &out) == expected, "{}", isa);
            let first = first.get_or_insert_with(|| out.clone());
            prop_assert!(*first == out, "{}", isa);
        }
        // The promised bounds, group by group.
        let mut after = Vec::new();
        for_each_group(&layout, to, &mut expected, &mut |_, group| after.push(group.to_vec()));
        let mut after = after.into_iter();
        let mut worst: f32 = 0.0;
        for_each_group(&layout, to, &mut before.clone(), &mut |_, group| {
            worst = worst.max(excess(to, group, &after.next().expect("as many groups")));
        });
        prop_assert!(worst <= 1.0, "{} of the bound", worst);
    }

    #[test]
    fn every_format_becomes_every_other(
        (kv_heads, head_dim) in (1..3_usize, 1..100_usize),
        from in prop::sample::select(KvFormat::ALL.to_vec()),
        to in prop::sample::select(KvFormat::ALL.to_vec()),
    ) {
        let layout = KvLayout::new(1, kv_heads, head_dim).unwrap();
        let written = block(&layout, KvFormat::F16, &mixed_numbers(&layout, 1));
        let bytes = converted(Isa::best(), &layout, KvFormat::F16, &written, from);
        let mut expected = read(&layout, from, &bytes);
        match to {
            _ if from == to => {}
            KvFormat::Int8 => for_each_group(&layout, to, &mut expected, &mut plain_8),
            KvFormat::Int4 => for_each_group(&layout, to, &mut expected, &mut plain_4),
            KvFormat::F16 | KvFormat::Bf16 => {
                let stored = |x: f32| if to == KvFormat::F16 {
                    f16_to_f32(f32_to_f16(x))
                } else {
                    bf16_to_f32(f32_to_bf16(x))
                };
                for_each_group(&layout, to, &mut expected, &mut |_, group| {
                    group.iter_mut().for_each(|x| *x = stored(*x));
                });
            }
        }
        for isa in Isa::available() {
            let out = converted(isa, &layout, from, &bytes, to);
            prop_assert!(read(&layout, to, &out) == expected, "{}", isa);
        }
    }
}

/// By how much a group's error exceeds what is promised.
fn excess(format: KvFormat, before: &[f32], after: &[f32]) -> f32 {
    let (low, high) = extremes(before);
    let errors = before.iter().zip(after).map(|(a, b)| (a - b).abs());
    if format == KvFormat::Int8 {
        let half = high.max(-low) / 127.0 / 2.0 * (1.0 + 1.0 / 1024.0);
        return errors.fold(0.0, f32::max) / (half + 4e-6);
    }
    let covering = 1.125 * ((high - low) / 15.0).max(low.abs() / 112.0) + 8e-6;
    let square = errors.map(|error| error * error).sum::<f32>() / before.len() as f32;
    // The last vector of an odd head counts its first number several times.
    let counted_more = if before.len().is_multiple_of(16) {
        1.0
    } else {
        4.0
    };
    square.sqrt() / (covering / 2.0 * 1.01 * counted_more)
}

#[test]
fn hostile_numbers_stay_in_their_group() {
    let layout = KvLayout::new(1, 1, 8).unwrap();
    let hostile = [
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        3e38,
        -3e38,
        65504.0,
        1e-40,
        -0.0,
    ];
    for to in [KvFormat::Int8, KvFormat::Int4] {
        for (i, &x) in hostile.iter().enumerate() {
            let (mut keys, mut values) = (vec![1.0; 32 * 8], vec![2.0; 32 * 8]);
            (keys[5 * 8 + i], values[9 * 8 + i]) = (x, x);
            let bytes = block(&layout, KvFormat::Bf16, &vec![(keys, values)]);
            let mut all = Vec::new();
            for isa in Isa::available() {
                all.push(converted(isa, &layout, KvFormat::Bf16, &bytes, to));
            }
            assert!(all.iter().all(|out| *out == all[0]), "{to} {x}");
            let (keys, values) = &read(&layout, to, &all[0])[0];
            let stored = if x.is_nan() {
                0.0
            } else {
                x.clamp(-65504.0, 65504.0)
            };
            for (found, own) in [(keys, 5 * 8 + i), (values, 9 * 8 + i)] {
                let bound = stored.abs() * 0.04 + 0.1;
                assert!(
                    (found[own] - stored).abs() <= bound,
                    "{to} {x}: {}",
                    found[own]
                );
            }
            // Others than those of the same channel, and of the same token.
            let others = |own: &dyn Fn(usize) -> bool, found: &[f32], number: f32| {
                let apart = (0..256).filter(|&j| !own(j));
                apart.into_iter().all(|j| (found[j] - number).abs() < 0.1)
            };
            assert!(others(&|j| j % 8 == i, keys, 1.0), "{to} {x}");
            assert!(others(&|j| j / 8 == 9, values, 2.0), "{to} {x}");
        }
    }
}

#[test]
fn hostile_scales_give_no_infinite_numbers() {
    // A block that claims scales that are not numbers, as only damage can make.
    let layout = KvLayout::new(1, 2, 24).unwrap();
    for from in [KvFormat::Int8, KvFormat::Int4] {
        let bytes = vec![0xFF; layout.block_bytes(from)];
        for to in [KvFormat::F16, KvFormat::Bf16, KvFormat::Int4] {
            let out = converted(Isa::best(), &layout, from, &bytes, to);
            let finite = |x: &Vec<f32>| x.iter().all(|x| x.is_finite());
            let numbers = read(&layout, to, &out);
            assert!(from == to || numbers.iter().all(|(k, v)| finite(k) && finite(v)));
        }
    }
}

#[test]
fn a_partial_blocks_empty_slots_stay_zero() {
    for head_dim in [8, 64, 80] {
        let layout = KvLayout::new(1, 2, head_dim).unwrap();
        let width = layout.width();
        let mut keys: Vec<f32> = numbers(32 * width, 3).iter().map(|x| x + 12.0).collect();
        let mut values = keys.clone();
        keys[20 * width..].fill(0.0);
        values[20 * width..].fill(0.0);
        let bytes = block(&layout, KvFormat::F16, &vec![(keys, values)]);
        for to in [KvFormat::Int8, KvFormat::Int4] {
            let out = converted(Isa::best(), &layout, KvFormat::F16, &bytes, to);
            let (keys, values) = &read(&layout, to, &out)[0];
            assert!(keys[20 * width..].iter().all(|x| *x == 0.0), "{to}");
            assert!(values[20 * width..].iter().all(|x| *x == 0.0), "{to}");
            assert!(keys[..20 * width].iter().all(|x| *x > 1.0), "{to}");
        }
    }
    // And a block of zero bytes holds zeros in every format.
    let layout = KvLayout::new(1, 1, 20).unwrap();
    for format in KvFormat::ALL {
        let bytes = vec![0; layout.block_bytes(format)];
        let (keys, values) = &read(&layout, format, &bytes)[0];
        assert!(keys.iter().chain(values).all(|x| *x == 0.0), "{format}");
    }
}

#[test]
fn the_bytes_are_those_of_the_documentation() {
    // Four channels: key = channel + 1 at slot 0, its negative at slot 1, else zero; value = token / 2 for channel 0.
    let layout = KvLayout::new(1, 1, 4).unwrap();
    let (mut keys, mut values) = (vec![0.0; 32 * 4], vec![0.0; 32 * 4]);
    for channel in 0..4 {
        keys[channel] = (channel + 1) as f32;
        keys[4 + channel] = -keys[channel];
    }
    for token in 0..32 {
        values[4 * token] = token as f32 / 2.0;
    }
    let bytes = block(&layout, KvFormat::F16, &vec![(keys, values)]);

    let out = converted(Isa::best(), &layout, KvFormat::F16, &bytes, KvFormat::Int8);
    assert_eq!(out.len(), 384);
    assert_eq!(out[..8], [127, 127, 127, 127, 129, 129, 129, 129]);
    assert!(out[8..128].iter().all(|code| *code == 0));
    // Values: tokens 0 to 3 of channel 0, then of channel 1.
    assert_eq!(out[128..136], [0, 127, 127, 127, 0, 0, 0, 0]);
    // 1 / 127 and 2 / 127 in half precision.
    assert_eq!(out[256..260], [0x08, 0x20, 0x08, 0x24]);
    assert_eq!(out[264..268], [0, 0, 0x08, 0x1C]);
    assert!(out[328..].iter().all(|filler| *filler == 0));

    let out = converted(Isa::best(), &layout, KvFormat::F16, &bytes, KvFormat::Int4);
    assert_eq!(out.len(), 320);
    // Channel 0: scale 9/8 * 2^-3 = 0.140625 covers 2 / 15, so 1 is 7 of them and -1 is -7, with an offset of -8.
    assert_eq!(out[..8], [15, 15, 15, 15, 1, 1, 1, 1]);
    assert_eq!(out[192..196], [113, 121, 125, 129]);
    assert_eq!(
        out[196..200]
            .iter()
            .map(|x| x.cast_signed())
            .collect::<Vec<_>>(),
        [-8; 4]
    );
}

#[test]
#[should_panic(expected = "the converted block's bytes")]
fn a_short_block_is_refused() {
    let layout = KvLayout::new(1, 1, 4).unwrap();
    let bytes = vec![0; layout.block_bytes(KvFormat::F16)];
    let from = KvBlock {
        format: KvFormat::F16,
        bytes: &bytes,
    };
    convert_block(Isa::best(), &layout, from, KvFormat::Int8, &mut [0; 100]);
}
