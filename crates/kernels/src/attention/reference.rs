//! Attention as its definition says, in `f64`.

use super::{AttentionSequence, AttentionShape};
use crate::kv::{BLOCK_TOKENS, KvLayout, read_kv};

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

    /// The output of one query head at a position.
    fn attend(
        &self,
        shape: &AttentionShape<'_>,
        position: usize,
        head: usize,
        q: &[f32],
    ) -> Vec<f64> {
        let head_dim = self.layout.head_dim();
        let group = shape.heads / self.layout.kv_heads();
        let at = |token: usize| token * self.layout.width() + head / group * head_dim;
        let first = shape
            .window
            .map_or(0, |window| (position + 1).saturating_sub(window));
        let score = |token: usize| {
            let k = &self.keys[at(token)..][..head_dim];
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
        let output = |dim: usize| {
            let tokens = (first..=position).zip(&exps);
            let products = tokens.map(|(token, p)| p * f64::from(self.values[at(token) + dim]));
            products.sum::<f64>() / sum
        };
        (0..head_dim).map(output).collect()
    }
}
