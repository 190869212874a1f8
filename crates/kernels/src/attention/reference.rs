//! Attention as its definition says, in `f64`.

use super::{AttentionSequence, AttentionShape};
use crate::format::f16_to_f32;
use crate::kv::quantized::{Parts, scale};
use crate::kv::{BLOCK_TOKENS, KvFormat, KvLayout, read_kv};

pub(super) fn attention(
    layout: &KvLayout,
    shape: &AttentionShape<'_>,
    sequences: &[AttentionSequence<'_>],
    q: &[f32],
) -> Vec<f64> {
    let mut out = Vec::new();
    let mut queries = q.chunks_exact(layout.head_dim());
    for sequence in sequences {
        let context = Context::read(layout, shape, sequence);
        for row in 0..sequence.rows {
            for head in 0..shape.heads {
                let q = queries.next().expect("a query for every row and head");
                out.extend(context.attend(shape, sequence.first_position + row, head, q));
            }
        }
    }
    out
}

/// Keys and values of a sequence, `[token][kv head][head_dim]`.
struct Context<'a> {
    layout: &'a KvLayout,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl<'a> Context<'a> {
    fn read(
        layout: &'a KvLayout,
        shape: &AttentionShape<'_>,
        sequence: &AttentionSequence<'_>,
    ) -> Self {
        let tokens = sequence.first_position + sequence.rows;
        let mut keys = vec![0.0; tokens * layout.width()];
        let mut values = keys.clone();
        let rows = keys
            .chunks_exact_mut(layout.width())
            .zip(values.chunks_exact_mut(layout.width()));
        for (token, (keys, values)) in rows.enumerate() {
            let block = sequence.blocks[token / BLOCK_TOKENS];
            if !block.bytes.is_empty() {
                let slot = token % BLOCK_TOKENS;
                read_kv(layout, block, shape.layer, slot, keys, values);
            }
        }
        Self {
            layout,
            keys,
            values,
        }
    }

    /// The first token that one query head attends to at a position, and its probability and those that follow.
    fn probabilities(
        &self,
        shape: &AttentionShape<'_>,
        position: usize,
        head: usize,
        q: &[f32],
    ) -> (usize, Vec<f64>) {
        let first = shape
            .window
            .map_or(0, |window| (position + 1).saturating_sub(window));
        let score = |token: usize| {
            let k = &self.keys[self.at(shape, token, head)..][..q.len()];
            let products = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k));
            let score = products.sum::<f64>() * f64::from(shape.scale);
            shape.softcap.map_or(score, |cap| {
                f64::from(cap) * (score / f64::from(cap)).tanh()
            })
        };
        let scores: Vec<f64> = (first..=position).map(score).collect();
        let sink = shape.sinks.map(|sinks| f64::from(sinks[head]));
        let all = scores.iter().copied().chain(sink);
        let highest = all.fold(f64::NEG_INFINITY, f64::max);
        let exps: Vec<f64> = scores.iter().map(|score| (score - highest).exp()).collect();
        let sum = exps.iter().sum::<f64>() + sink.map_or(0.0, |sink| (sink - highest).exp());
        (first, exps.into_iter().map(|exp| exp / sum).collect())
    }

    /// Where the keys, and the values, of a query head's KV head begin.
    fn at(&self, shape: &AttentionShape<'_>, token: usize, head: usize) -> usize {
        let group = shape.heads / self.layout.kv_heads();
        token * self.layout.width() + head / group * self.layout.head_dim()
    }

    /// The output of one query head at a position.
    fn attend(
        &self,
        shape: &AttentionShape<'_>,
        position: usize,
        head: usize,
        q: &[f32],
    ) -> Vec<f64> {
        let (first, probabilities) = self.probabilities(shape, position, head, q);
        let output = |dim: usize| {
            let tokens = (first..).zip(&probabilities);
            let value = |token| f64::from(self.values[self.at(shape, token, head) + dim]);
            tokens.map(|(token, p)| p * value(token)).sum::<f64>()
        };
        (0..q.len()).map(output).collect()
    }

    /// See [`bounds`].
    fn bound(
        &self,
        shape: &AttentionShape<'_>,
        sequence: &AttentionSequence<'_>,
        (position, head): (usize, usize),
        q: &[f32],
    ) -> Vec<f64> {
        let head_dim = q.len();
        let (first, probabilities) = self.probabilities(shape, position, head, q);
        let kv_head = head / (shape.heads / self.layout.kv_heads());
        let largest_q = q
            .iter()
            .fold(0.0_f64, |most, x| most.max(f64::from(x.abs())));
        let most_factor = if head_dim <= 512 { 32_512.0 } else { 16_000.0 };
        let (mut score_error, mut outputs, mut sizes) =
            (0.0_f64, vec![0.0; head_dim], vec![0.0; head_dim]);
        for (number, block) in sequence.blocks.iter().enumerate() {
            let tokens =
                (number * BLOCK_TOKENS).max(first)..((number + 1) * BLOCK_TOKENS).min(position + 1);
            if tokens.is_empty() || block.bytes.is_empty() {
                continue;
            }
            let p = |token: usize| probabilities[token - first];
            for token in tokens.clone() {
                let at = self.at(shape, token, head);
                for (size, v) in sizes.iter_mut().zip(&self.values[at..]) {
                    *size += p(token) * f64::from(v.abs());
                }
            }
            let tile = &block.bytes[self.layout.tile_range(block.format, shape.layer, kv_head)];
            let Some((key_scales, value_scales)) = scales(block.format, head_dim, tile) else {
                continue;
            };
            let most = |scales: &[f64]| scales.iter().copied().fold(1e-15, f64::max);
            let unit = largest_q * f64::from(shape.scale) * most(&key_scales) / most_factor;
            let highest = tokens.clone().map(p).fold(0.0, f64::max);
            for token in tokens {
                let at = self.at(shape, token, head);
                let code = |x: f32, scale: f64| {
                    if scale > 0.0 {
                        f64::from(x.abs()) / scale
                    } else {
                        0.0
                    }
                };
                let keys = self.keys[at..].iter().zip(&key_scales);
                let codes: f64 = keys.map(|(&k, &scale)| code(k, scale)).sum();
                score_error = score_error.max(0.5 * unit * codes);
                for (dim, output) in outputs.iter_mut().enumerate() {
                    let own = &value_scales[dim / 64 * BLOCK_TOKENS..][..BLOCK_TOKENS];
                    let code = code(self.values[at + dim], own[token % BLOCK_TOKENS]);
                    *output += highest * most(own) / 510.0 * code;
                }
            }
        }
        let changed = (2.0 * score_error).exp_m1();
        let both = outputs.iter().zip(sizes);
        both.map(|(output, size)| output + changed * size).collect()
    }
}

/// The scales of a quantized tile: of each channel's keys, and of each 64 channels of each token's values.
fn scales(format: KvFormat, head_dim: usize, tile: &[u8]) -> Option<(Vec<f64>, Vec<f64>)> {
    let half = |bytes: &[u8; 2]| f64::from(f16_to_f32(u16::from_le_bytes(*bytes)));
    match format {
        KvFormat::Int8 => {
            let parts = Parts::int8(head_dim);
            let of = |bytes: &[u8]| bytes.as_chunks().0.iter().map(half).collect::<Vec<f64>>();
            let values = of(&tile[parts.value_scales]);
            Some((
                of(&tile[parts.key_scales]),
                values.repeat(head_dim.div_ceil(64)),
            ))
        }
        KvFormat::Int4 => {
            let parts = Parts::int4(head_dim);
            let of = |bytes: &[u8]| bytes.iter().map(|&code| f64::from(scale(code))).collect();
            Some((of(&tile[parts.key_scales]), of(&tile[parts.value_scales])))
        }
        _ => None,
    }
}

/// What each number may differ by at most where blocks are quantized: a product of a query with a key's scale is within
/// half a unit, the largest such product / 32,512 (16,000 of heads above 512), a probability times a value's scale within
/// the largest such product of its block / 510. An error of scores changes probabilities by its exponential at most.
pub(super) fn bounds(
    layout: &KvLayout,
    shape: &AttentionShape<'_>,
    sequences: &[AttentionSequence<'_>],
    q: &[f32],
) -> Vec<f64> {
    let mut out = Vec::new();
    let mut queries = q.chunks_exact(layout.head_dim());
    for sequence in sequences {
        let context = Context::read(layout, shape, sequence);
        for row in 0..sequence.rows {
            for head in 0..shape.heads {
                let q = queries.next().expect("a query for every row and head");
                let at = (sequence.first_position + row, head);
                out.extend(context.bound(shape, sequence, at, q));
            }
        }
    }
    out
}
