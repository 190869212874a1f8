use super::*;
use crate::kv::{KvFormat, write_kv_run};
use crate::{Isa, ThreadPool};

/// Numbers that look random and need no seed file: splitmix64, roughly normal.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// The sum of four uniform numbers, scaled to variance one.
    fn normal(&mut self) -> f32 {
        let bits = self.bits();
        let sum: f32 = (0..4)
            .map(|i| ((bits >> (16 * i)) & 0xFFFF) as f32 / 65536.0 - 0.5)
            .sum();
        sum * 3.0_f32.sqrt()
    }

    pub(super) fn numbers(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }
}

/// A sequence's cache, owned.
struct Cache {
    blocks: Vec<(KvFormat, Vec<u8>)>,
    tokens: usize,
}

impl Cache {
    /// `tokens` random tokens; block i is of format `formats[i % formats.len()]`.
    fn random(layout: &KvLayout, formats: &[KvFormat], tokens: usize, random: &mut Random) -> Self {
        let blocks = (0..tokens.div_ceil(BLOCK_TOKENS)).map(|i| {
            let format = formats[i % formats.len()];
            let mut bytes = vec![0; layout.block_bytes(format)];
            let n = BLOCK_TOKENS.min(tokens - i * BLOCK_TOKENS);
            for layer in 0..layout.layers() {
                let (k, v) = (
                    random.numbers(n * layout.width()),
                    random.numbers(n * layout.width()),
                );
                write_kv_run(Isa::Scalar, layout, format, layer, &mut bytes, 0, &k, &v);
            }
            (format, bytes)
        });
        Self {
            blocks: blocks.collect(),
            tokens,
        }
    }

    fn view(&self) -> Vec<KvBlock<'_>> {
        let view =
            |(format, bytes): &'_ (KvFormat, Vec<u8>)| (*format, bytes.as_ptr(), bytes.len());
        let _ = view;
        self.blocks
            .iter()
            .map(|(format, bytes)| KvBlock {
                format: *format,
                bytes,
            })
            .collect()
    }
}

fn run(
    isa: Isa,
    threads: usize,
    layout: &KvLayout,
    shape: &AttentionShape<'_>,
    sequences: &[AttentionSequence<'_>],
    q: &[f32],
) -> Vec<f32> {
    let pool = ThreadPool::new(threads);
    let mut out = vec![f32::NAN; q.len()];
    let mut scratch = AttentionScratch::new();
    attention(
        Context { isa, pool: &pool },
        layout,
        shape,
        sequences,
        q,
        &mut out,
        &mut scratch,
    )
    .unwrap();
    let rows: usize = sequences.iter().map(|s| s.rows).sum();
    let context = sequences
        .iter()
        .map(|s| s.first_position + s.rows)
        .max()
        .unwrap_or(0);
    let needed = AttentionScratch::bytes_needed(layout, shape.heads, rows, context, threads);
    assert!(
        scratch.bytes() <= needed,
        "{} bytes of {needed}",
        scratch.bytes()
    );
    out
}

#[test]
fn agrees_with_its_definition() {
    let mut random = Random::new(1);
    let layout = KvLayout::new(2, 2, 64).unwrap();
    let cache = Cache::random(&layout, &[KvFormat::F16], 1300, &mut random);
    let blocks = cache.view();
    let shape = AttentionShape {
        layer: 1,
        heads: 8,
        scale: 0.125,
        window: None,
        softcap: None,
        sinks: None,
    };
    let sequence = AttentionSequence {
        blocks: &blocks,
        rows: 40,
        first_position: cache.tokens - 40,
    };
    let q = random.numbers(40 * 8 * 64);
    let expected = reference::attention(&layout, &shape, &[sequence], &q);
    for isa in Isa::available() {
        let out = run(isa, 2, &layout, &shape, &[sequence], &q);
        for (out, expected) in out.iter().zip(&expected) {
            assert!(
                (f64::from(*out) - expected).abs() < 2e-6,
                "{isa}: {out} for {expected}"
            );
        }
    }
}
