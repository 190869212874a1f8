//! How small and how fast entropy coding makes keys, values and weights.
//!
//! `cargo run --release -p neap-kernels --example entropy [MODEL.gguf]`
//!
//! One thread, the least time of several. Keys and values are synthetic, of the shape of Llama 3.2 1B: normal, channels of
//! different size, a few of the keys' large and steady (as in `kv_formats`, whose sources apply), not correlated from token to
//! token, which is the worst case. Weights are the last megabytes of an F16 file, as they are and quantized.

use neap_kernels::Isa;
use neap_kernels::format::{WeightFormat, f16_to_f32};
use neap_kernels::kv::{
    CodeBits, KvBlock, KvFormat, KvLayout, coarsen_block, convert_block, max_packed_bytes,
    pack_int4, unpack_int4, write_kv_run,
};
use neap_kernels::rans::bytes;
use std::time::Instant;

const TOKENS: usize = 32;
const REPEATS: usize = 15;

/// Seconds of the fastest of several calls.
fn least(mut f: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        let start = Instant::now();
        f();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

fn main() {
    let isa = Isa::best();
    let layout = KvLayout::new(16, 8, 64).expect("the shape of a 1 B model");
    let hot = hot_block(&layout);
    println!(
        "{:28} {:>6} {:>12} {:>15}",
        "blocks of 16 x 8 x 64", "bits", "encode GB/s", "decode GB/s"
    );
    println!("{:28}        of 16 bits   of what comes", "");
    let values = hot.len() / 2;
    row("16 bits, planes", planes(isa, &hot), (values, hot.len()));
    let mut int4 = vec![0; layout.block_bytes(KvFormat::Int4)];
    let from = KvBlock {
        format: KvFormat::F16,
        bytes: &hot,
    };
    let seconds = least(|| convert_block(isa, &layout, from, KvFormat::Int4, &mut int4));
    row(
        "int4, packed",
        packed(isa, &layout, &int4, seconds),
        (values, int4.len()),
    );
    for bits in [2.5, 2.8, 3.1] {
        let bits = CodeBits {
            keys: bits,
            values: bits,
        };
        let seconds = least(|| coarsen_block(isa, &layout, from, bits, &mut int4));
        row(
            &format!("int4 of {} bits, packed", bits.keys),
            packed(isa, &layout, &int4, seconds),
            (values, int4.len()),
        );
    }
    weights(isa);
}

/// Bytes, and seconds to encode and to decode.
type Found = (usize, f64, f64);

fn row(name: &str, (bytes, encode_s, decode_s): Found, (values, decoded_bytes): (usize, usize)) {
    println!(
        "{name:28} {:6.2} {:12.2} {:15.2}",
        8.0 * bytes as f64 / values as f64,
        2e-9 * values as f64 / encode_s,
        1e-9 * decoded_bytes as f64 / decode_s
    );
}

fn packed(isa: Isa, layout: &KvLayout, int4: &[u8], convert_s: f64) -> Found {
    let mut out = vec![0; max_packed_bytes(layout)];
    let mut len = 0;
    let encode_s = least(|| len = pack_int4(isa, layout, int4, &mut out).expect("room"));
    let mut back = vec![0; int4.len()];
    let decode_s =
        least(|| unpack_int4(isa, layout, &out[..len], &mut back).expect("what was packed"));
    assert!(back == int4, "bit for bit");
    (len, convert_s + encode_s, decode_s)
}

/// The high bytes of 16-bit numbers coded, the low ones as they are.
fn planes(isa: Isa, hot: &[u8]) -> Found {
    let mut out = vec![0; hot.len()];
    let mut len = 0;
    let encode_s = least(|| {
        let high: Vec<u8> = hot.as_chunks::<2>().0.iter().map(|x| x[1]).collect();
        let low: Vec<u8> = hot.as_chunks::<2>().0.iter().map(|x| x[0]).collect();
        len = bytes::encode(isa, &[&high], &mut out).expect("room");
        std::hint::black_box(&low);
    });
    let low: Vec<u8> = hot.as_chunks::<2>().0.iter().map(|x| x[0]).collect();
    let (mut back, mut high) = (vec![0; hot.len()], vec![0; hot.len() / 2]);
    let decode_s = least(|| {
        bytes::decode(isa, &out[..len], &mut [&mut high[..]]).expect("what was encoded");
        let pairs = back.as_chunks_mut::<2>().0.iter_mut();
        for ((pair, high), low) in pairs.zip(&high).zip(&low) {
            *pair = [*low, *high];
        }
    });
    assert!(back == hot, "bit for bit");
    (len + hot.len() / 2, encode_s, decode_s)
}

fn hot_block(layout: &KvLayout) -> Vec<u8> {
    let mut random = Random(1);
    let mut hot = vec![0; layout.block_bytes(KvFormat::F16)];
    let width = layout.width();
    for layer in 0..layout.layers() {
        let [keys, values] = [true, false].map(|is_keys| {
            let sizes: Vec<f32> = (0..width).map(|_| (0.5 * random.normal()).exp()).collect();
            let is_outlier: Vec<bool> = (0..width)
                .map(|_| is_keys && random.uniform() < 0.06)
                .collect();
            let mut all = Vec::new();
            for _ in 0..TOKENS {
                for (size, &is_outlier) in sizes.iter().zip(&is_outlier) {
                    let mean = if is_outlier { 10.0 } else { 0.0 };
                    all.push(random.normal() * size * (1.0 + 0.1 * mean) + mean);
                }
            }
            all
        });
        write_kv_run(
            Isa::Scalar,
            layout,
            KvFormat::F16,
            layer,
            &mut hot,
            0,
            &keys,
            &values,
        );
    }
    hot
}

fn weights(isa: Isa) {
    let path = std::env::args().nth(1);
    let path = path.unwrap_or_else(|| {
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/neap-tiny.gguf").to_owned()
    });
    let file = std::fs::read(&path).expect("a model file");
    let tail = &file[file
        .len()
        .saturating_sub(64 << 20)
        .max(file.len() / 8 / 64 * 64)..];
    let halves = &tail[tail.len() % 64..];
    println!(
        "\n{:28} {:>6} {:>12} {:>15}",
        "weights", "ratio", "", "decode GB/s"
    );
    let report = |name: &str, (bytes, _, decode_s): Found, whole: usize| {
        println!(
            "{name:28} {:6.3} {:12} {:15.2}",
            bytes as f64 / whole as f64,
            "",
            1e-9 * whole as f64 / decode_s
        );
    };
    report("F16, planes", planes(isa, halves), halves.len());
    let numbers: Vec<f32> = halves
        .as_chunks::<2>()
        .0
        .iter()
        .map(|x| f16_to_f32(u16::from_le_bytes(*x)))
        .collect();
    for format in [WeightFormat::Q8_0, WeightFormat::Q4_0] {
        let mut stored = vec![0; numbers.len() / 32 * format.block_bytes()];
        format
            .quantize(&numbers, &mut stored)
            .expect("whole blocks");
        // The scales apart from the codes, each by its own table.
        let blocks = stored.chunks_exact(format.block_bytes());
        let scale: Vec<u8> = blocks
            .clone()
            .flat_map(|block| block[..2].to_vec())
            .collect();
        let codes: Vec<u8> = blocks.flat_map(|block| block[2..].to_vec()).collect();
        let mut out = vec![0; stored.len() + 4096];
        let len = bytes::encode(isa, &[&scale, &codes], &mut out).unwrap_or(stored.len());
        let (mut a, mut b) = (scale.clone(), codes.clone());
        let decode_s = least(|| {
            bytes::decode(isa, &out[..len], &mut [&mut a, &mut b]).expect("what was encoded")
        });
        report(format.name(), (len, 0.0, decode_s), stored.len());
    }
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 24) as f32
    }

    fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f32::consts::TAU * self.uniform()).cos()
    }
}
