//! Attention as its definition says, in `f64`.

use super::{AttentionSequence, AttentionShape};
use crate::kv::{BLOCK_TOKENS, KvLayout, read_kv};

pub(super) fn attention(
    layout: &KvLayout,
    shape: &AttentionShape<'_>,
    sequences: &[AttentionSequence<'_>],
    q: &[f32],
) -> Vec<f64> {
    let head_dim = layout.head_dim();
    let group = shape.heads / layout.kv_heads();
    let mut out = Vec::new();
    let mut queries = q.chunks_exact(head_dim);
    for sequence in sequences {
        let context = sequence.first_position + sequence.rows;
        let mut keys = vec![0.0; context * layout.width()];
        let mut values = keys.clone();
        let tokens = keys
            .chunks_exact_mut(layout.width())
            .zip(values.chunks_exact_mut(layout.width()));
        for (token, (keys, values)) in tokens.enumerate() {
            let block = sequence.blocks[token / BLOCK_TOKENS];
            if !block.bytes.is_empty() {
                read_kv(
                    layout,
                    block,
                    shape.layer,
                    token % BLOCK_TOKENS,
                    keys,
                    values,
                );
            }
        }
        for row in 0..sequence.rows {
            let position = sequence.first_position + row;
            let first = shape
                .window
                .map_or(0, |window| (position + 1).saturating_sub(window));
            for head in 0..shape.heads {
                let q = queries.next().expect("a query for every row and head");
                let at = |token: usize| token * layout.width() + head / group * head_dim;
                let scores: Vec<f64> = (first..=position)
                    .map(|token| {
                        let k = &keys[at(token)..][..head_dim];
                        let dot: f64 = q
                            .iter()
                            .zip(k)
                            .map(|(q, k)| f64::from(*q) * f64::from(*k))
                            .sum();
                        let score = dot * f64::from(shape.scale);
                        shape.softcap.map_or(score, |cap| {
                            f64::from(cap) * (score / f64::from(cap)).tanh()
                        })
                    })
                    .collect();
                let sink = shape.sinks.map(|sinks| f64::from(sinks[head]));
                let highest = scores
                    .iter()
                    .copied()
                    .chain(sink)
                    .fold(f64::NEG_INFINITY, f64::max);
                let exps: Vec<f64> = scores.iter().map(|score| (score - highest).exp()).collect();
                let sum: f64 =
                    exps.iter().sum::<f64>() + sink.map_or(0.0, |sink| (sink - highest).exp());
                out.extend((0..head_dim).map(|dim| {
                    let tokens = (first..=position).zip(&exps);
                    tokens
                        .map(|(token, p)| p * f64::from(values[at(token) + dim]))
                        .sum::<f64>()
                        / sum
                }));
            }
        }
    }
    out
}
