use super::*;
use crate::kv::{KvFormat, convert_block, write_kv_run};
use crate::{Isa, ThreadPool};
use proptest::prelude::*;

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
}

impl Cache {
    /// `tokens` random tokens; block i is of format `formats[i % formats.len()]`.
    fn random(layout: &KvLayout, formats: &[KvFormat], tokens: usize, random: &mut Random) -> Self {
        let blocks = (0..tokens.div_ceil(BLOCK_TOKENS)).map(|i| {
            let format = formats[i % formats.len()];
            let written = if KvFormat::WRITTEN.contains(&format) {
                format
            } else {
                KvFormat::F16
            };
            let mut bytes = vec![0; layout.block_bytes(written)];
            let n = BLOCK_TOKENS.min(tokens - i * BLOCK_TOKENS);
            for layer in 0..layout.layers() {
                let (k, v) = (
                    random.numbers(n * layout.width()),
                    random.numbers(n * layout.width()),
                );
                write_kv_run(Isa::Scalar, layout, written, layer, &mut bytes, 0, &k, &v);
            }
            let mut converted = vec![0; layout.block_bytes(format)];
            let from = KvBlock {
                format: written,
                bytes: &bytes,
            };
            convert_block(Isa::best(), layout, from, format, &mut converted);
            (format, converted)
        });
        Self {
            blocks: blocks.collect(),
        }
    }

    fn view(&self) -> Vec<KvBlock<'_>> {
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

/// A case: several sequences with a cache each.
#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    kv_heads: usize,
    group: usize,
    head_dim: usize,
    /// Tokens before, and rows.
    sequences: Vec<(usize, usize)>,
    window: Option<usize>,
    softcap: Option<f32>,
    sinks: bool,
    formats: Vec<KvFormat>,
}

/// A case's inputs.
struct Inputs {
    layout: KvLayout,
    caches: Vec<Cache>,
    q: Vec<f32>,
    sinks: Option<Vec<f32>>,
}

impl Case {
    fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    fn inputs(&self) -> Inputs {
        let mut random = Random::new(self.seed);
        let layout = KvLayout::new(2, self.kv_heads, self.head_dim).unwrap();
        let cache = |&(before, rows): &(usize, usize)| {
            Cache::random(&layout, &self.formats, before + rows, &mut random)
        };
        let caches = self.sequences.iter().map(cache).collect();
        let rows: usize = self.sequences.iter().map(|&(_, rows)| rows).sum();
        let q = random.numbers(rows * self.heads() * self.head_dim);
        let sinks = self.sinks.then(|| random.numbers(self.heads()));
        Inputs {
            layout,
            caches,
            q,
            sinks,
        }
    }

    fn shape<'a>(&self, inputs: &'a Inputs) -> AttentionShape<'a> {
        AttentionShape {
            layer: 1,
            heads: self.heads(),
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            window: self.window,
            softcap: self.softcap,
            sinks: inputs.sinks.as_deref(),
        }
    }

    /// The result with everything in one call.
    fn run(&self, inputs: &Inputs, isa: Isa, threads: usize) -> Vec<f32> {
        let views: Vec<_> = inputs.caches.iter().map(Cache::view).collect();
        let sequences: Vec<_> = self
            .sequences
            .iter()
            .zip(&views)
            .map(|(&(first_position, rows), blocks)| AttentionSequence {
                blocks,
                rows,
                first_position,
            })
            .collect();
        run(
            isa,
            threads,
            &inputs.layout,
            &self.shape(inputs),
            &sequences,
            &inputs.q,
        )
    }

    /// The result in chunks of `chunk` rows, one sequence at a time.
    fn run_in_chunks(&self, inputs: &Inputs, isa: Isa, threads: usize, chunk: usize) -> Vec<f32> {
        let width = self.heads() * self.head_dim;
        let mut out = Vec::new();
        for (&(before, rows), cache) in self.sequences.iter().zip(&inputs.caches) {
            let blocks = cache.view();
            for row in (0..rows).step_by(chunk) {
                let (first_position, rows) = (before + row, chunk.min(rows - row));
                let sequence = AttentionSequence {
                    blocks: &blocks,
                    rows,
                    first_position,
                };
                let q = &inputs.q[out.len()..out.len() + rows * width];
                out.extend(run(
                    isa,
                    threads,
                    &inputs.layout,
                    &self.shape(inputs),
                    &[sequence],
                    q,
                ));
            }
        }
        out
    }

    /// The numbers as the definition gives them, and what each may differ by.
    fn reference(&self, inputs: &Inputs) -> (Vec<f64>, Vec<f64>) {
        let views: Vec<_> = inputs.caches.iter().map(Cache::view).collect();
        let sequences: Vec<_> = self
            .sequences
            .iter()
            .zip(&views)
            .map(|(&(first_position, rows), blocks)| AttentionSequence {
                blocks,
                rows,
                first_position,
            })
            .collect();
        let (layout, shape) = (&inputs.layout, self.shape(inputs));
        let numbers = reference::attention(layout, &shape, &sequences, &inputs.q);
        let bounds = reference::bounds(layout, &shape, &sequences, &inputs.q);
        (numbers, bounds)
    }
}

fn assert_same_bits(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len());
    let differ = found
        .iter()
        .zip(expected)
        .position(|(a, b)| a.to_bits() != b.to_bits());
    if let Some(i) = differ {
        panic!(
            "{what}: number {i} is {:e}, not {:e}",
            found[i], expected[i]
        );
    }
}

/// Values are about normal, so this is 3e-6 of one: rounding in `f32`.
const ERROR: f64 = 3e-6;

/// Every number differs by no more than its bound and what rounding in `f32` makes of it.
fn assert_bounded(found: &[f32], (expected, bounds): &(Vec<f64>, Vec<f64>)) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, (expected, bound))) in found.iter().zip(expected.iter().zip(bounds)).enumerate()
    {
        let error = (f64::from(*found) - expected).abs();
        let most = ERROR + 1.001 * bound;
        assert!(
            error < most,
            "number {i} is {found:e}, not {expected:e}, {most:e} apart at most"
        );
    }
}

fn assert_within(bound: f64, found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*found) - expected).abs();
        assert!(error < bound, "number {i} is {found:e}, not {expected:e}");
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let head_dims = prop::sample::select(vec![1, 17, 32, 40, 64, 80, 96, 128, 256]);
    let groups = prop::sample::select(vec![1, 2, 3, 4, 7, 9]);
    let sequences = prop::collection::vec((0..150_usize, 1..50_usize), 1..4);
    let formats = prop::sample::select(vec![
        vec![KvFormat::F16],
        vec![KvFormat::Bf16],
        vec![KvFormat::F16, KvFormat::Bf16, KvFormat::Bf16],
        vec![KvFormat::Int8],
        vec![KvFormat::Int4],
        vec![KvFormat::Int4, KvFormat::Int8, KvFormat::F16],
    ]);
    let windows = prop::option::of(1..120_usize);
    let softcaps = prop::option::of(0.5..30.0_f32);
    let (seed, kv_heads) = (any::<u64>(), 1..4_usize);
    let numbers = (seed, kv_heads, groups, head_dims, sequences);
    (numbers, windows, softcaps, any::<bool>(), formats).prop_map(
        |((seed, kv_heads, group, head_dim, sequences), window, softcap, sinks, formats)| Case {
            seed,
            kv_heads,
            group,
            head_dim,
            sequences,
            window,
            softcap,
            sinks,
            formats,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn agrees_with_its_definition(case in cases()) {
        let inputs = case.inputs();
        let out = case.run(&inputs, Isa::best(), 2);
        assert_bounded(&out, &case.reference(&inputs));
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits(case in cases()) {
        let inputs = case.inputs();
        let expected = case.run(&inputs, Isa::Scalar, 2);
        for isa in Isa::available() {
            assert_same_bits(&case.run(&inputs, isa, 2), &expected, &isa.to_string());
        }
    }

    #[test]
    fn chunks_threads_and_batches_do_not_matter(case in cases(), threads in 1..6_usize) {
        let inputs = case.inputs();
        let expected = case.run(&inputs, Isa::best(), 1);
        assert_same_bits(&case.run(&inputs, Isa::best(), threads), &expected, "all at once");
        for chunk in [1, 2, 5, 16, 1000] {
            let out = case.run_in_chunks(&inputs, Isa::best(), threads, chunk);
            assert_same_bits(&out, &expected, &format!("in chunks of {chunk}"));
        }
    }
}

/// A context of several splits, whose last one is begun within the rows.
fn long_case() -> Case {
    Case {
        seed: 5,
        kv_heads: 2,
        group: 3,
        head_dim: 48,
        sequences: vec![(2 * SPLIT_TOKENS + 1010, 40), (7, 3), (SPLIT_TOKENS, 1)],
        window: None,
        softcap: None,
        sinks: true,
        formats: vec![
            KvFormat::F16,
            KvFormat::Bf16,
            KvFormat::Int8,
            KvFormat::Int4,
            KvFormat::Int4,
        ],
    }
}

#[test]
fn long_contexts_are_merged() {
    for window in [None, Some(1500), Some(SPLIT_TOKENS)] {
        let case = Case {
            window,
            ..long_case()
        };
        let inputs = case.inputs();
        let expected = case.run(&inputs, Isa::Scalar, 1);
        assert_bounded(&expected, &case.reference(&inputs));
        for isa in Isa::available() {
            for threads in [1, 2, 7] {
                let out = case.run(&inputs, isa, threads);
                assert_same_bits(&out, &expected, "all at once");
            }
            for chunk in [1, 13] {
                let out = case.run_in_chunks(&inputs, isa, 3, chunk);
                assert_same_bits(&out, &expected, "in chunks");
            }
        }
    }
}

#[test]
fn rising_scores_raise_the_maximum() {
    // Keys that grow along the context make every block exceed the maximum so far.
    let layout = KvLayout::new(1, 1, 16).unwrap();
    let mut blocks = vec![vec![0; layout.block_bytes(KvFormat::F16)]; 8];
    let mut random = Random::new(3);
    for token in 0..256 {
        let keys = vec![token as f32 / 32.0; 16];
        let bytes = &mut blocks[token / BLOCK_TOKENS];
        write_kv_run(
            Isa::Scalar,
            &layout,
            KvFormat::F16,
            0,
            bytes,
            token % 32,
            &keys,
            &random.numbers(16),
        );
    }
    let views: Vec<_> = blocks
        .iter()
        .map(|bytes| KvBlock {
            format: KvFormat::F16,
            bytes,
        })
        .collect();
    for sign in [1.0, -1.0] {
        let shape = AttentionShape {
            layer: 0,
            heads: 1,
            scale: sign,
            window: None,
            softcap: None,
            sinks: None,
        };
        let sequence = AttentionSequence {
            blocks: &views,
            rows: 250,
            first_position: 6,
        };
        let q = vec![1.0; 250 * 16];
        let expected = reference::attention(&layout, &shape, &[sequence], &q);
        // Scores reach 128, of which a unit in the last place is 1.5e-5 (and their rounding is relative to them).
        let out = run(Isa::best(), 2, &layout, &shape, &[sequence], &q);
        assert_within(3e-5, &out, &expected);
    }
}

#[test]
fn blocks_before_the_window_are_not_read() {
    let case = Case {
        window: Some(40),
        ..long_case()
    };
    let inputs = case.inputs();
    let expected = case.run(&inputs, Isa::best(), 2);
    let mut out = Vec::new();
    for (&(first_position, rows), cache) in case.sequences.iter().zip(&inputs.caches) {
        let mut blocks = cache.view();
        let unseen = plan::first_seen(case.window, first_position) / BLOCK_TOKENS;
        blocks[..unseen]
            .iter_mut()
            .for_each(|block| block.bytes = &[]);
        let sequence = AttentionSequence {
            blocks: &blocks,
            rows,
            first_position,
        };
        let q = &inputs.q[out.len()..][..rows * case.heads() * case.head_dim];
        out.extend(run(
            Isa::best(),
            2,
            &inputs.layout,
            &case.shape(&inputs),
            &[sequence],
            q,
        ));
    }
    assert_same_bits(&out, &expected, "without the blocks before the window");
}

#[test]
fn later_tokens_of_the_last_block_do_not_matter() {
    let case = Case {
        sequences: vec![(70, 1)],
        formats: vec![KvFormat::F16],
        ..long_case()
    };
    let mut inputs = case.inputs();
    let expected = case.run(&inputs, Isa::best(), 1);
    let (k, v) = (vec![3.0; 2 * 48], vec![-5.0; 2 * 48]);
    let bytes = &mut inputs.caches[0].blocks[2].1;
    for slot in 71 % BLOCK_TOKENS..BLOCK_TOKENS {
        write_kv_run(
            Isa::Scalar,
            &inputs.layout,
            KvFormat::F16,
            1,
            bytes,
            slot,
            &k,
            &v,
        );
    }
    assert_same_bits(
        &case.run(&inputs, Isa::best(), 1),
        &expected,
        "with later tokens",
    );
}

#[test]
fn no_rows_need_nothing() {
    let layout = KvLayout::new(1, 1, 64).unwrap();
    let shape = AttentionShape {
        layer: 0,
        heads: 1,
        scale: 1.0,
        window: None,
        softcap: None,
        sinks: None,
    };
    let none = AttentionSequence {
        blocks: &[],
        rows: 0,
        first_position: 100,
    };
    assert!(run(Isa::best(), 2, &layout, &shape, &[none], &[]).is_empty());
    assert!(run(Isa::best(), 2, &layout, &shape, &[], &[]).is_empty());
}

#[test]
#[should_panic(expected = "blocks for 33 tokens")]
fn missing_blocks_are_refused() {
    let layout = KvLayout::new(1, 1, 16).unwrap();
    let bytes = vec![0; layout.block_bytes(KvFormat::F16)];
    let blocks = [KvBlock {
        format: KvFormat::F16,
        bytes: &bytes,
    }];
    let shape = AttentionShape {
        layer: 0,
        heads: 1,
        scale: 1.0,
        window: None,
        softcap: None,
        sinks: None,
    };
    let sequence = AttentionSequence {
        blocks: &blocks,
        rows: 1,
        first_position: 32,
    };
    run(Isa::best(), 1, &layout, &shape, &[sequence], &[0.0; 16]);
}

#[test]
#[should_panic(expected = "a block's bytes")]
fn short_blocks_are_refused() {
    let layout = KvLayout::new(1, 1, 16).unwrap();
    let bytes = vec![0; layout.block_bytes(KvFormat::F16) - 1];
    let blocks = [KvBlock {
        format: KvFormat::F16,
        bytes: &bytes,
    }];
    let shape = AttentionShape {
        layer: 0,
        heads: 1,
        scale: 1.0,
        window: None,
        softcap: None,
        sinks: None,
    };
    let sequence = AttentionSequence {
        blocks: &blocks,
        rows: 1,
        first_position: 3,
    };
    run(Isa::best(), 1, &layout, &shape, &[sequence], &[0.0; 16]);
}

#[test]
fn the_bench_measures_what_it_says() {
    let pool = ThreadPool::new(2);
    let ctx = Context {
        isa: Isa::best(),
        pool: &pool,
    };
    let model = bench::BenchModel {
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        layers: 2,
    };
    let mut bench = bench::AttentionBench::new(ctx, model, KvFormat::F16, 128).unwrap();
    let row = bench.run(ctx, 3, 63, 1, 1).unwrap();
    // Two blocks of two heads of keys and values of 32 tokens of 32 f16 numbers.
    assert_eq!(row.bytes, 3 * 2 * 2 * 2 * 32 * 32 * 2);
    assert_eq!(row.ops, 3 * 64 * 4 * 32 * 4);
    assert!(row.seconds > 0.0 && row.seconds < 10.0);
    assert!(bench.read_peak(ctx, 1).unwrap() > 1e6);
    assert!(bench::fma_peak(ctx, 1).unwrap() > 1e6);
}
