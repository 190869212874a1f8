//! Compares ways of quantizing keys and values by the error of attention's outputs.
//!
//! `cargo run --release -p neap-kernels --example kv_formats`
//!
//! The formats of [`neap_kernels::kv`] were chosen by this table. Keys and values are synthetic, made like those of large
//! models: keys have a few channels of large and steady magnitude before the rotary embedding (KIVI, Liu et al. 2024,
//! figure 2; KVQuant, Hooper et al. 2024, section 3.1; 6 to 20 times the others), and so do queries (Jin et al. 2025,
//! "Massive values in self-attention modules"); values have none, but tokens differ in size and tails are heavier than
//! normal. `plain` has no outlier channels. Half of the queries look for one token, so that attention is peaked.

use neap_kernels::Isa;
use neap_kernels::format::{f16_to_f32, f32_to_f16};
use neap_kernels::kv::{KvBlock, KvFormat, KvLayout, convert_block, read_kv, write_kv_run};

const TILE_TOKENS: usize = 32;
const TOKENS: usize = 2048;
const QUERIES: usize = 64;

/// Quantizes the numbers of one group in place.
type Group = fn(&mut [f32]);

/// A way of quantizing one head's keys or values of a tile, `[32 tokens][head_dim]`.
#[derive(Clone, Copy)]
enum Way {
    /// One group for each channel.
    PerChannel(Group),
    /// Groups of so many channels of a token.
    PerToken(usize, Group),
    /// The same after a Hadamard rotation of each token (QuaRot, Ashkboos et al. 2024; TurboQuant, Zandieh et al. 2025).
    RotatedPerToken(usize, Group),
    RotatedPerChannel(Group),
    /// One group for each channel as it was before the rotary embedding (KVQuant), which is then applied at each reading.
    BeforeRotary(Group),
    /// One group for each channel, but so many largest channels are kept in f16.
    OutliersApart(usize, Group),
    /// What the library does.
    StoredKeys(KvFormat),
    StoredValues(KvFormat),
}

struct Candidate {
    name: &'static str,
    way: Way,
    /// Bits of a code, and of a group's parameters.
    code_bits: f64,
    group_bits: f64,
}

impl Candidate {
    fn bits(&self, head_dim: usize) -> f64 {
        let per_group = |len: usize| self.code_bits + self.group_bits / len as f64;
        match self.way {
            Way::PerChannel(_)
            | Way::RotatedPerChannel(_)
            | Way::BeforeRotary(_)
            | Way::StoredKeys(_) => per_group(TILE_TOKENS),
            Way::StoredValues(KvFormat::Int4) => per_group(head_dim.min(64)),
            Way::StoredValues(_) => per_group(head_dim),
            Way::PerToken(len, _) | Way::RotatedPerToken(len, _) => per_group(len.min(head_dim)),
            Way::OutliersApart(count, _) => {
                let extra = (16.0 - self.code_bits) + 8.0 / TILE_TOKENS as f64;
                per_group(TILE_TOKENS) + count as f64 * extra / head_dim as f64
            }
        }
    }

    /// To a tile whose first token has this position.
    fn apply(&self, tile: &mut [f32], head_dim: usize, first: usize) {
        match self.way {
            Way::PerChannel(group) => per_channel(tile, head_dim, &[], group),
            Way::PerToken(len, group) => per_token(tile, head_dim, len, group),
            Way::RotatedPerToken(len, group) => {
                tile.chunks_exact_mut(head_dim).for_each(rotate);
                per_token(tile, head_dim, len, group);
                tile.chunks_exact_mut(head_dim).for_each(rotate);
            }
            Way::RotatedPerChannel(group) => {
                tile.chunks_exact_mut(head_dim).for_each(rotate);
                per_channel(tile, head_dim, &[], group);
                tile.chunks_exact_mut(head_dim).for_each(rotate);
            }
            Way::BeforeRotary(group) => {
                let turn = |tile: &mut [f32], sign: f64| {
                    for (slot, key) in tile.chunks_exact_mut(head_dim).enumerate() {
                        rotary(key, sign * (first + slot) as f64);
                    }
                };
                turn(tile, -1.0);
                per_channel(tile, head_dim, &[], group);
                turn(tile, 1.0);
            }
            Way::StoredKeys(format) => tile.copy_from_slice(&stored(tile, head_dim, format).0),
            Way::StoredValues(format) => tile.copy_from_slice(&stored(tile, head_dim, format).1),
            Way::OutliersApart(count, group) => {
                let size = |c: usize| {
                    let column = tile.iter().skip(c).step_by(head_dim);
                    column.fold(0.0_f32, |most, x| most.max(x.abs()))
                };
                let mut channels: Vec<usize> = (0..head_dim).collect();
                channels.sort_by(|&a, &b| size(b).total_cmp(&size(a)));
                channels.truncate(count);
                per_channel(tile, head_dim, &channels, group);
            }
        }
    }
}

fn per_channel(tile: &mut [f32], head_dim: usize, exact: &[usize], group: Group) {
    for channel in (0..head_dim).filter(|channel| !exact.contains(channel)) {
        let mut column: Vec<f32> = tile
            .iter()
            .skip(channel)
            .step_by(head_dim)
            .copied()
            .collect();
        group(&mut column);
        for (token, x) in column.into_iter().enumerate() {
            tile[token * head_dim + channel] = x;
        }
    }
}

fn per_token(tile: &mut [f32], head_dim: usize, len: usize, group: Group) {
    for token in tile.chunks_exact_mut(head_dim) {
        token.chunks_mut(len).for_each(group);
    }
}

/// What a tile becomes as the keys and as the values of a block of the format.
fn stored(tile: &[f32], head_dim: usize, format: KvFormat) -> (Vec<f32>, Vec<f32>) {
    let layout = KvLayout::new(1, 1, head_dim).expect("a head of at most 1024 channels");
    let isa = Isa::best();
    let mut hot = vec![0; layout.block_bytes(KvFormat::F16)];
    write_kv_run(isa, &layout, KvFormat::F16, 0, &mut hot, 0, tile, tile);
    let mut bytes = vec![0; layout.block_bytes(format)];
    let hot = KvBlock {
        format: KvFormat::F16,
        bytes: &hot,
    };
    convert_block(isa, &layout, hot, format, &mut bytes);
    let block = KvBlock {
        format,
        bytes: &bytes,
    };
    let (mut keys, mut values) = (vec![0.0; tile.len()], vec![0.0; tile.len()]);
    let tokens = keys
        .chunks_exact_mut(head_dim)
        .zip(values.chunks_exact_mut(head_dim));
    for (slot, (key, value)) in tokens.enumerate() {
        read_kv(&layout, block, 0, slot, key, value);
    }
    (keys, values)
}

/// The normalized Walsh-Hadamard transform, its own inverse.
fn rotate(x: &mut [f32]) {
    let mut width = 1;
    while width < x.len() {
        for pair in x.chunks_exact_mut(2 * width) {
            let (a, b) = pair.split_at_mut(width);
            for (a, b) in a.iter_mut().zip(b) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        width *= 2;
    }
    let factor = 1.0 / (x.len() as f32).sqrt();
    x.iter_mut().for_each(|x| *x *= factor);
}

fn extremes(x: &[f32]) -> (f32, f32) {
    x.iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &x| {
            (low.min(x), high.max(x))
        })
}

fn round_f16(x: f32) -> f32 {
    f16_to_f32(f32_to_f16(x))
}

fn symmetric(x: &mut [f32], most: f32) {
    let (low, high) = extremes(x);
    let step = round_f16(high.max(-low) / most);
    let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
    x.iter_mut()
        .for_each(|x| *x = (*x * inverse).round().clamp(-most, most) * step);
}

fn symmetric_8(x: &mut [f32]) {
    symmetric(x, 127.0);
}

fn symmetric_4(x: &mut [f32]) {
    symmetric(x, 7.0);
}

/// As llama.cpp's Q4_0: the number of largest magnitude has code -8.
fn q4_0(x: &mut [f32]) {
    let largest = x
        .iter()
        .copied()
        .fold(0.0_f32, |a, b| if b.abs() > a.abs() { b } else { a });
    let step = largest / -8.0;
    let (inverse, stored) = (if step != 0.0 { 1.0 / step } else { 0.0 }, round_f16(step));
    x.iter_mut()
        .for_each(|x| *x = ((*x * inverse + 8.5).floor().clamp(0.0, 15.0) - 8.0) * stored);
}

/// Scale and least number in f16.
fn asymmetric(x: &mut [f32], warp: fn(f32) -> f32) {
    let (low, high) = extremes(x);
    let (step, low) = (round_f16((high - low) / 15.0), round_f16(low));
    let levels: Vec<f32> = (0..16)
        .map(|code| low + step * (7.5 + 7.5 * warp((code as f32 - 7.5) / 7.5)))
        .collect();
    for x in x {
        let nearest = levels.iter().copied();
        let nearest = nearest.min_by(|a, b| (a - *x).abs().total_cmp(&(b - *x).abs()));
        *x = nearest.unwrap_or(0.0);
    }
}

fn asymmetric_f16(x: &mut [f32]) {
    asymmetric(x, |t| t);
}

/// Levels closer together in the middle.
fn non_uniform(x: &mut [f32]) {
    asymmetric(x, |t| 0.85 * t + 0.15 * t * t * t);
}

/// The scale in eight bits, three of them mantissa, and an integer zero point in eight.
fn compact(x: &mut [f32], tries: u32) {
    let (low, high) = extremes(x);
    let least = ((high - low) / 15.0).max(low.abs() / 112.0);
    let first = (least.to_bits() + 0xF_FFFF) >> 20;
    let candidate = |code: u32| {
        let step = f32::from_bits(code << 20);
        let mut zero = (7.5 - 0.5 * (low + high) / step)
            .round()
            .clamp(-112.0, 127.0);
        if low <= 0.0 && high >= 0.0 {
            zero = zero.clamp(0.0, 15.0);
        }
        let decode = move |x: f32| ((x / step + zero).round().clamp(0.0, 15.0) - zero) * step;
        let error: f32 = x.iter().map(|&x| (x - decode(x)).powi(2)).sum();
        (error, code, zero)
    };
    let best = (0..tries).map(|i| candidate(first - i));
    let Some((_, code, zero)) = best.min_by(|a, b| a.0.total_cmp(&b.0)) else {
        return;
    };
    let step = f32::from_bits(code << 20);
    x.iter_mut()
        .for_each(|x| *x = ((*x / step + zero).round().clamp(0.0, 15.0) - zero) * step);
}

fn compact_1(x: &mut [f32]) {
    compact(x, 1);
}

fn compact_3(x: &mut [f32]) {
    compact(x, 3);
}

fn compact_2(x: &mut [f32]) {
    compact(x, 2);
}

/// Sixteen levels that are best for normal numbers (Lloyd 1957, Max 1960), of the group's deviation in f16.
fn lloyd_max(x: &mut [f32]) {
    const LEVELS: [f32; 8] = [
        0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6181, 2.0690, 2.7326,
    ];
    let square: f32 = x.iter().map(|x| x * x).sum();
    let deviation = round_f16((square / x.len() as f32).sqrt());
    for x in x {
        let size = x.abs() / deviation.max(1e-30);
        let nearest = LEVELS
            .iter()
            .min_by(|a, b| (*a - size).abs().total_cmp(&(*b - size).abs()));
        *x = nearest.map_or(0.0, |level| level.copysign(*x) * deviation);
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

    fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }
}

/// A head's context and queries.
struct Head {
    head_dim: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
}

impl Head {
    fn new(head_dim: usize, outliers: bool, random: &mut Random) -> Self {
        let mut key_means = vec![0.0; head_dim];
        let mut query_means = vec![0.0; head_dim];
        if outliers {
            for _ in 0..head_dim / 16 {
                let channel = (random.uniform() * head_dim as f32) as usize;
                let sign = random.normal().signum();
                key_means[channel] = sign * (6.0 + 14.0 * random.uniform());
                query_means[channel] = random.normal() * 2.0;
            }
        }
        let mut keys = random.normals(TOKENS * head_dim);
        for (token, key) in keys.chunks_exact_mut(head_dim).enumerate() {
            for (x, mean) in key.iter_mut().zip(&key_means) {
                // Outlier channels vary more, too.
                *x = *x * (1.0 + 0.1 * mean.abs()) + mean;
            }
            rotary(key, token as f64);
        }
        let mut values = Vec::new();
        for _ in 0..TOKENS {
            let size = (0.4 * random.normal()).exp();
            values.extend((0..head_dim).map(|_| {
                // Student's t of six degrees of freedom, scaled to variance one.
                let square: f32 = (0..6).map(|_| random.normal().powi(2)).sum();
                size * random.normal() / (square / 6.0).sqrt() * (4.0_f32 / 6.0).sqrt()
            }));
        }
        let queries = Self::queries(head_dim, &keys, &query_means, random);
        Self {
            head_dim,
            keys,
            values,
            queries,
        }
    }

    fn queries(head_dim: usize, keys: &[f32], means: &[f32], random: &mut Random) -> Vec<f32> {
        let mut queries = Vec::new();
        for i in 0..QUERIES {
            let mut query = random.normals(head_dim);
            query.iter_mut().zip(means).for_each(|(x, mean)| *x += mean);
            rotary(&mut query, TOKENS as f64);
            if i % 2 == 0 {
                let token = (random.uniform() * TOKENS as f32) as usize;
                let key = &keys[token * head_dim..][..head_dim];
                let size = key.iter().map(|x| x * x).sum::<f32>().sqrt();
                let strength = 8.0 * (head_dim as f32).sqrt() / size;
                query
                    .iter_mut()
                    .zip(key)
                    .for_each(|(q, k)| *q += strength * k / size);
            }
            queries.extend(query);
        }
        queries
    }

    /// Outputs of all queries and their probabilities.
    fn attend(&self, keys: &[f32], values: &[f32]) -> (Vec<f64>, Vec<f64>) {
        let (mut outputs, mut all) = (Vec::new(), Vec::new());
        for query in self.queries.chunks_exact(self.head_dim) {
            let scores = keys.chunks_exact(self.head_dim).map(|key| {
                let dot: f64 = query.iter().zip(key).map(|(q, k)| f64::from(q * k)).sum();
                dot / (self.head_dim as f64).sqrt()
            });
            let scores: Vec<f64> = scores.collect();
            let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let mut probabilities: Vec<f64> = scores.iter().map(|s| (s - highest).exp()).collect();
            let sum: f64 = probabilities.iter().sum();
            probabilities.iter_mut().for_each(|p| *p /= sum);
            let mut output = vec![0.0; self.head_dim];
            for (p, value) in probabilities.iter().zip(values.chunks_exact(self.head_dim)) {
                output
                    .iter_mut()
                    .zip(value)
                    .for_each(|(o, v)| *o += p * f64::from(*v));
            }
            outputs.extend(output);
            all.extend(probabilities);
        }
        (outputs, all)
    }
}

/// The rotary embedding of base 500,000 (Llama 3), pairs being the two halves.
fn rotary(x: &mut [f32], position: f64) {
    let half = x.len() / 2;
    for i in 0..half {
        let angle = position * 500_000_f64.powf(-(i as f64) / half as f64);
        let (sin, cos) = ((angle.sin()) as f32, (angle.cos()) as f32);
        (x[i], x[i + half]) = (
            x[i] * cos - x[i + half] * sin,
            x[i] * sin + x[i + half] * cos,
        );
    }
}

fn quantized(candidate: &Candidate, numbers: &[f32], head_dim: usize) -> Vec<f32> {
    let mut numbers = numbers.to_vec();
    let tiles = numbers.chunks_exact_mut(TILE_TOKENS * head_dim);
    for (i, tile) in tiles.enumerate() {
        candidate.apply(tile, head_dim, i * TILE_TOKENS);
    }
    numbers
}

/// The outputs' error relative to their size, and the divergence of the probabilities, in thousandths.
fn errors(exact: &(Vec<f64>, Vec<f64>), found: &(Vec<f64>, Vec<f64>)) -> (f64, f64) {
    let error: f64 = exact
        .0
        .iter()
        .zip(&found.0)
        .map(|(a, b)| (a - b).powi(2))
        .sum();
    let size: f64 = exact.0.iter().map(|a| a * a).sum();
    let terms = exact.1.iter().zip(&found.1).filter(|(p, _)| **p > 1e-30);
    let divergence: f64 = terms.map(|(p, q)| p * (p / q.max(1e-300)).ln()).sum();
    (
        1e3 * (error / size).sqrt(),
        1e3 * divergence / QUERIES as f64,
    )
}

const CANDIDATES: &[Candidate] = &[
    Candidate {
        name: "8 bits per token, f16 scale",
        way: Way::PerToken(1024, symmetric_8),
        code_bits: 8.0,
        group_bits: 16.0,
    },
    Candidate {
        name: "8 bits per channel, f16 scale",
        way: Way::PerChannel(symmetric_8),
        code_bits: 8.0,
        group_bits: 16.0,
    },
    Candidate {
        name: "8 bits per token, rotated",
        way: Way::RotatedPerToken(1024, symmetric_8),
        code_bits: 8.0,
        group_bits: 16.0,
    },
    Candidate {
        name: "4 bits as Q4_0",
        way: Way::PerToken(32, q4_0),
        code_bits: 4.0,
        group_bits: 16.0,
    },
    Candidate {
        name: "per channel, symmetric f16",
        way: Way::PerChannel(symmetric_4),
        code_bits: 4.0,
        group_bits: 16.0,
    },
    Candidate {
        name: "per channel, KIVI: f16 scale, least",
        way: Way::PerChannel(asymmetric_f16),
        code_bits: 4.0,
        group_bits: 32.0,
    },
    Candidate {
        name: "per channel, the same, non-uniform",
        way: Way::PerChannel(non_uniform),
        code_bits: 4.0,
        group_bits: 32.0,
    },
    Candidate {
        name: "per channel, 8-bit scale and zero",
        way: Way::PerChannel(compact_1),
        code_bits: 4.0,
        group_bits: 16.0,
    },
    Candidate {
        name: "per channel, the same, 3 tried",
        way: Way::PerChannel(compact_3),
        code_bits: 4.0,
        group_bits: 16.0,
    },
    Candidate {
        name: "per channel, the same, 2 tried",
        way: Way::PerChannel(compact_2),
        code_bits: 4.0,
        group_bits: 16.0,
    },
    Candidate {
        name: "per channel, before the rotary, 2 tried",
        way: Way::BeforeRotary(compact_2),
        code_bits: 4.0,
        group_bits: 16.0,
    },
    Candidate {
        name: "per channel, symmetric, 2 apart",
        way: Way::OutliersApart(2, symmetric_4),
        code_bits: 4.0,
        group_bits: 16.0,
    },
    Candidate {
        name: "per token, KIVI: f16 scale, least",
        way: Way::PerToken(1024, asymmetric_f16),
        code_bits: 4.0,
        group_bits: 32.0,
    },
    Candidate {
        name: "per token, 8-bit scale and zero",
        way: Way::PerToken(1024, compact_1),
        code_bits: 4.0,
        group_bits: 16.0,
    },
    Candidate {
        name: "per token, the same, 3 tried",
        way: Way::PerToken(1024, compact_3),
        code_bits: 4.0,
        group_bits: 16.0,
    },
    Candidate {
        name: "per 64 of a token, 3 tried",
        way: Way::PerToken(64, compact_3),
        code_bits: 4.0,
        group_bits: 16.0,
    },
    Candidate {
        name: "per 32 of a token, 3 tried",
        way: Way::PerToken(32, compact_3),
        code_bits: 4.0,
        group_bits: 16.0,
    },
    Candidate {
        name: "per token, rotated, 3 tried",
        way: Way::RotatedPerToken(1024, compact_3),
        code_bits: 4.0,
        group_bits: 16.0,
    },
    Candidate {
        name: "per 32, rotated, 3 tried",
        way: Way::RotatedPerToken(32, compact_3),
        code_bits: 4.0,
        group_bits: 16.0,
    },
    Candidate {
        name: "per channel, rotated, 3 tried",
        way: Way::RotatedPerChannel(compact_3),
        code_bits: 4.0,
        group_bits: 16.0,
    },
    Candidate {
        name: "per token, rotated, Lloyd-Max",
        way: Way::RotatedPerToken(1024, lloyd_max),
        code_bits: 4.0,
        group_bits: 16.0,
    },
    Candidate {
        name: "stored: int8 keys",
        way: Way::StoredKeys(KvFormat::Int8),
        code_bits: 8.0,
        group_bits: 16.0,
    },
    Candidate {
        name: "stored: int8 values",
        way: Way::StoredValues(KvFormat::Int8),
        code_bits: 8.0,
        group_bits: 16.0,
    },
    Candidate {
        name: "stored: int4 keys",
        way: Way::StoredKeys(KvFormat::Int4),
        code_bits: 4.0,
        group_bits: 16.0,
    },
    Candidate {
        name: "stored: int4 values",
        way: Way::StoredValues(KvFormat::Int4),
        code_bits: 4.0,
        group_bits: 16.0,
    },
];

fn main() {
    println!("error of outputs / divergence of probabilities, in thousandths");
    for head_dim in [64, 128] {
        println!(
            "head_dim {head_dim:31} bits    keys: plain          outliers    values: outliers"
        );
        let heads: Vec<Vec<Head>> = [false, true]
            .map(|outliers| {
                (0..4)
                    .map(|i| Head::new(head_dim, outliers, &mut Random(i)))
                    .collect()
            })
            .into();
        for candidate in CANDIDATES {
            let mean = |heads: &[Head], keys: bool| {
                let mut sums = (0.0, 0.0);
                for head in heads {
                    let exact = head.attend(&head.keys, &head.values);
                    let found = if keys {
                        head.attend(&quantized(candidate, &head.keys, head_dim), &head.values)
                    } else {
                        head.attend(&head.keys, &quantized(candidate, &head.values, head_dim))
                    };
                    let (error, divergence) = errors(&exact, &found);
                    sums = (
                        sums.0 + error / heads.len() as f64,
                        sums.1 + divergence / heads.len() as f64,
                    );
                }
                sums
            };
            let (plain, outliers) = (mean(&heads[0], true), mean(&heads[1], true));
            let values = mean(&heads[1], false);
            println!(
                "{:39} {:6.3} {:8.2} /{:7.3} {:8.2} /{:7.3} {:8.2}",
                candidate.name,
                candidate.bits(head_dim),
                plain.0,
                plain.1,
                outliers.0,
                outliers.1,
                values.0
            );
        }
    }
}
