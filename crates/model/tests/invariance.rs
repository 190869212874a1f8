//! Logits of the shipped model are the same to the bit however they are computed.

use std::path::Path;
use std::sync::Arc;

use neap_kernels::{Isa, ThreadPool};
use neap_memory::{BlockTable, Budget, KvPool, Level};
use neap_model::decoder::{
    BLOCK_TOKENS, CpuDecoder, Decoder, DecoderLimits, LoadOptions, LogitsWanted, Model, Repack,
    SequenceChunk, kv_block_bytes, least_weight_bytes, quantized_levels,
};
use neap_model::source::ModelSource;

struct Setup {
    decoder: CpuDecoder,
    kv: KvPool,
}

fn source() -> Arc<ModelSource> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/neap-tiny.gguf");
    Arc::new(ModelSource::open(path).unwrap())
}

fn setup(threads: usize, isa: Isa, repack: Repack) -> Setup {
    setup_within(&Budget::new(1 << 30), 0, threads, isa, repack)
}

fn setup_within(
    budget: &Budget,
    reserve_bytes: u64,
    threads: usize,
    isa: Isa,
    repack: Repack,
) -> Setup {
    setup_of(&source(), budget, reserve_bytes, threads, (isa, repack))
}

fn setup_of(
    source: &Arc<ModelSource>,
    budget: &Budget,
    reserve_bytes: u64,
    threads: usize,
    (isa, repack): (Isa, Repack),
) -> Setup {
    let pool = Arc::new(ThreadPool::new(threads));
    let options = LoadOptions {
        repack,
        reserve_bytes,
        pool: &pool,
        isa,
        progress: &mut |_| {},
    };
    let model = Arc::new(Model::load(Arc::clone(source), budget, options).unwrap());
    let kv = KvPool::new(
        budget,
        kv_block_bytes(model.config()).unwrap(),
        BLOCK_TOKENS,
    );
    let limits = DecoderLimits {
        batch_tokens: 256,
        logit_rows: 256,
    };
    let decoder = CpuDecoder::new(model, pool, isa, limits, budget).unwrap();
    Setup { decoder, kv }
}

/// Tokens with some structure, all in any vocabulary of 256 and more.
fn tokens(n: usize, seed: u32) -> Vec<u32> {
    (0..n as u32)
        .map(|i| (i * i + seed * 31 + i * 7) % 251 + 4)
        .collect()
}

/// Logits of every position, the tokens computed in chunks of the given sizes, over and over.
fn logits_in_chunks(setup: &mut Setup, tokens: &[u32], sizes: &[usize]) -> Vec<u32> {
    let mut table = BlockTable::new(&setup.kv);
    let mut all = Vec::new();
    let mut start = 0;
    for &size in sizes.iter().cycle() {
        if start == tokens.len() {
            break;
        }
        let end = (start + size).min(tokens.len());
        table.reserve(end - start).unwrap();
        let mut batch = [SequenceChunk {
            tokens: &tokens[start..end],
            table: &mut table,
            logits: LogitsWanted::All,
            adapter: None,
            second_segment: None,
        }];
        all.extend(
            setup
                .decoder
                .forward(&mut batch)
                .unwrap()
                .iter()
                .map(|l| l.to_bits()),
        );
        start = end;
    }
    all
}

#[test]
fn neither_chunks_nor_threads_nor_repacking_change_a_bit() {
    let tokens = tokens(200, 1);
    let isa = Isa::best();
    let expected = logits_in_chunks(&mut setup(1, isa, Repack::Always), &tokens, &[200]);
    for (threads, repack, sizes) in [
        (1, Repack::Always, &[1][..]),
        (1, Repack::Never, &[200]),
        (2, Repack::Always, &[200]),
        (3, Repack::Never, &[7, 1, 64, 33]),
        (4, Repack::Always, &[31, 32, 33]),
    ] {
        let got = logits_in_chunks(&mut setup(threads, isa, repack), &tokens, sizes);
        assert!(
            got == expected,
            "{threads} threads, {repack:?}, chunks of {sizes:?}"
        );
    }
}

#[test]
fn weights_that_come_and_go_change_no_bit() {
    let tokens = tokens(60, 3);
    let isa = Isa::best();
    for repack in [Repack::Always, Repack::Never] {
        let budget = Budget::new(1 << 30);
        let mut setup = setup_within(&budget, 0, 2, isa, repack);
        let whole = budget.charged();
        let expected = logits_in_chunks(&mut setup, &tokens, &[60]);
        let releasable = setup.decoder.releasable_weight_bytes();
        // A little, then all that can go; also while the budget is overdrawn.
        let some = setup.decoder.release_weights(releasable / 3);
        assert!(
            (releasable / 3..releasable).contains(&some),
            "{some} of {releasable}"
        );
        assert_eq!(budget.charged(), whole - some);
        assert!(logits_in_chunks(&mut setup, &tokens, &[25]) == expected);
        budget.set_limit(1);
        assert_eq!(setup.decoder.release_weights(u64::MAX), releasable - some);
        assert_eq!(setup.decoder.release_weights(u64::MAX), 0);
        assert_eq!(budget.charged(), whole - releasable);
        assert!(
            !setup.decoder.take_weights_back(u64::MAX).unwrap(),
            "there is no room"
        );
        budget.set_limit(1 << 30);
        assert!(logits_in_chunks(&mut setup, &tokens, &[60]) == expected);
        assert!(!setup.decoder.take_weights_back(0).unwrap());
        let mut taken = 0;
        while setup.decoder.take_weights_back(u64::MAX).unwrap() {
            taken += 1;
            assert!(
                logits_in_chunks(&mut setup, &tokens[..9], &[9]) == expected[..9 * vocab(&setup)]
            );
        }
        assert!(taken > 2);
        assert_eq!(budget.charged(), whole);
        budget.check_conservation().unwrap();
    }
}

/// Checks that a model within the least budget that it can have says what it says when all of it is held.
fn runs_streamed(source: &Arc<ModelSource>) {
    let tokens = tokens(40, 4);
    let held = |budget: &Budget| setup_of(source, budget, 0, 2, (Isa::best(), Repack::Never));
    let roomy = Budget::new(1 << 30);
    let mut all = held(&roomy);
    // What is not weights: scratch.
    let scratch = roomy.charged() - all.decoder.model().weights_bytes();
    let expected = logits_in_chunks(&mut all, &tokens, &[40]);
    let least = least_weight_bytes(source);
    assert!(least < source.weight_bytes(), "{least}");
    let blocks = 2 * all.kv.charged_block_bytes();
    let budget = Budget::new(least + scratch + blocks);
    let how = (Isa::best(), Repack::Auto);
    let mut setup = setup_of(source, &budget, scratch + blocks, 2, how);
    assert!(setup.decoder.model().streamed_bytes() > 0);
    for sizes in [&[40][..], &[1], &[7, 33]] {
        assert!(logits_in_chunks(&mut setup, &tokens, sizes) == expected);
    }
    assert!(budget.charged() <= budget.limit());
}

#[test]
fn a_model_larger_than_the_budget_runs() {
    runs_streamed(&source());
}

/// Of experts only those are read that a token goes through; which, is known when the layer is there.
#[test]
fn experts_that_do_not_fit_are_read_as_they_are_used() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/architectures");
    for name in ["mixtral", "qwen2-moe"] {
        runs_streamed(&Arc::new(ModelSource::open(golden.join(name)).unwrap()));
    }
}

fn vocab(setup: &Setup) -> usize {
    setup.decoder.vocab_size()
}

#[test]
fn neighbours_in_the_batch_change_no_bit() {
    let mut setup = setup(2, Isa::best(), Repack::Always);
    let prompts: Vec<Vec<u32>> = [50, 3, 77, 32]
        .iter()
        .zip(0..)
        .map(|(&n, seed)| tokens(n, seed))
        .collect();
    let vocab = setup.decoder.vocab_size();
    let alone: Vec<Vec<u32>> = prompts
        .iter()
        .map(|p| logits_in_chunks(&mut setup, p, &[p.len()]))
        .map(|all| all[all.len() - vocab..].to_vec())
        .collect();
    let mut tables: Vec<BlockTable> = prompts.iter().map(|_| BlockTable::new(&setup.kv)).collect();
    let mut batch: Vec<SequenceChunk<'_>> = Vec::new();
    for (table, prompt) in tables.iter_mut().zip(&prompts) {
        table.reserve(prompt.len()).unwrap();
        batch.push(SequenceChunk {
            tokens: prompt,
            table,
            logits: LogitsWanted::Last,
            adapter: None,
            second_segment: None,
        });
    }
    let together = setup.decoder.forward(&mut batch).unwrap();
    for (row, alone) in together.chunks_exact(vocab).zip(&alone) {
        assert!(row.iter().map(|l| l.to_bits()).eq(alone.iter().copied()));
    }
}

#[test]
fn every_instruction_set_says_the_same() {
    let tokens = tokens(40, 2);
    let expected = logits_in_chunks(&mut setup(1, Isa::Scalar, Repack::Always), &tokens, &[40]);
    for isa in Isa::available() {
        let got = logits_in_chunks(&mut setup(1, isa, Repack::Always), &tokens, &[40]);
        let worst = got
            .iter()
            .zip(&expected)
            .map(|(&a, &b)| (f32::from_bits(a) - f32::from_bits(b)).abs());
        let worst = worst.fold(0.0, f32::max);
        assert!(worst < 1e-3, "{isa}: logits differ by {worst}");
    }
}

#[test]
fn a_step_that_cannot_be_is_refused_and_changes_nothing() {
    let mut setup = setup(1, Isa::best(), Repack::Always);
    let vocab = setup.decoder.vocab_size() as u32;
    let mut table = BlockTable::new(&setup.kv);
    let mut step = |tokens: &[u32], table: &mut BlockTable, logits| {
        let result = setup.decoder.forward(&mut [SequenceChunk {
            tokens,
            table,
            logits,
            adapter: None,
            second_segment: None,
        }]);
        result.map(|_| ()).map_err(|why| why.to_string())
    };
    assert!(
        step(&[1], &mut table, LogitsWanted::Last)
            .unwrap_err()
            .contains("holds 0 tokens")
    );
    table.reserve(300).unwrap();
    assert!(
        step(&[vocab], &mut table, LogitsWanted::Last)
            .unwrap_err()
            .contains("not in the vocabulary")
    );
    assert!(
        step(&[1; 257], &mut table, LogitsWanted::None)
            .unwrap_err()
            .contains("257 tokens")
    );
    assert_eq!(table.len_tokens(), 0);
    assert_eq!(step(&[1; 256], &mut table, LogitsWanted::None), Ok(()));
    assert_eq!(table.len_tokens(), 256);
}

/// The logits of the last of 300 tokens, whose blocks sink as `levels` say before it is computed.
fn logits_over_levels(setup: &mut Setup, isa: Isa, levels: &[(usize, Level)]) -> Vec<u32> {
    let tokens = tokens(300, 5);
    let codecs = quantized_levels(setup.decoder.model().kv_layout(), isa);
    let mut table = BlockTable::new(&setup.kv);
    table.reserve(tokens.len()).unwrap();
    let mut scratch = vec![0; setup.kv.block_bytes()];
    let mut logits = Vec::new();
    for part in [&tokens[..256], &tokens[256..299], &tokens[299..]] {
        let rows = setup
            .decoder
            .forward(&mut [SequenceChunk {
                tokens: part,
                table: &mut table,
                logits: LogitsWanted::Last,
                adapter: None,
                second_segment: None,
            }])
            .unwrap();
        logits = rows.iter().map(|l| l.to_bits()).collect();
        for &(block, level) in levels {
            let codec = codecs.at(level).unwrap();
            table.sink(block..block + 1, &**codec, &mut scratch);
        }
    }
    for &(block, level) in levels {
        assert!(table.view(block).level >= level);
    }
    logits
}

#[test]
fn lossy_blocks_are_attended_to_whatever_the_threads() {
    let isa = Isa::best();
    let mixed = [
        (1, Level::Int8),
        (2, Level::Int4),
        (4, Level::Int8),
        (4, Level::Int4),
    ];
    let mut one = setup(1, isa, Repack::Always);
    let exact = logits_over_levels(&mut one, isa, &[]);
    let lossy = logits_over_levels(&mut one, isa, &mixed);
    let also = logits_over_levels(&mut setup(3, isa, Repack::Never), isa, &mixed);
    assert!(lossy == also, "bit for bit");
    assert!(lossy != exact, "something was lost");
    let worst = lossy.iter().zip(&exact).map(|(&a, &b)| {
        let (a, b) = (f32::from_bits(a), f32::from_bits(b));
        (a - b).abs()
    });
    // Logits of this model are up to about 20; a block read in the wrong format moves them by units.
    assert!(worst.fold(0.0, f32::max) < 0.5, "but not much");
}

#[test]
fn codecs_of_levels_refuse_what_is_no_block() {
    let setup = setup(1, Isa::best(), Repack::Always);
    let codecs = quantized_levels(setup.decoder.model().kv_layout(), Isa::best());
    let hot = vec![0x3C; setup.kv.block_bytes()];
    let mut back = vec![0; hot.len()];
    for codec in codecs.iter() {
        let mut encoded = vec![0; codec.max_encoded_bytes(hot.len())];
        let len = codec.encode(&hot, &mut encoded).unwrap();
        assert!(len == encoded.len() && codec.decode(&encoded, &mut back).is_ok());
        assert!(codec.encode(&hot[1..], &mut encoded).is_err());
        assert!(codec.encode(&hot, &mut encoded[1..]).is_err());
        assert!(codec.decode(&encoded[1..], &mut back).is_err());
        assert!(codec.decode(&encoded, &mut back[1..]).is_err());
        assert!(
            codec
                .encode_from(Level::Packed, &encoded, &mut back)
                .is_err()
        );
    }
}

/// What is left of a block that is trimmed, whole layers, is a block of its own at every level.
#[test]
fn the_first_layers_are_encoded_to_the_first_bytes() {
    let setup = setup(1, Isa::best(), Repack::Always);
    let layout = setup.decoder.model().kv_layout();
    let codecs = quantized_levels(layout, Isa::best());
    let hot: Vec<u8> = (0..setup.kv.block_bytes())
        .map(|i| (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0] & [0xFF, 0x3F][i % 2])
        .collect();
    let layer_bytes = hot.len() / layout.layers();
    for codec in codecs.iter() {
        let mut whole = vec![0; codec.max_encoded_bytes(hot.len())];
        codec.encode(&hot, &mut whole).unwrap();
        for layers in 1..=layout.layers() {
            let head = &hot[..layers * layer_bytes];
            let mut encoded = vec![0; codec.max_encoded_bytes(head.len())];
            assert_eq!(codec.encode(head, &mut encoded), Ok(encoded.len()));
            assert!(encoded == whole[..encoded.len()]);
            assert_eq!(encoded.len() * layout.layers(), whole.len() * layers);
            let (mut back, mut all) = (vec![0; head.len()], vec![0; hot.len()]);
            codec.decode(&encoded, &mut back).unwrap();
            codec.decode(&whole, &mut all).unwrap();
            assert!(back == all[..back.len()]);
            assert!(layers == layout.layers() || codec.decode(&encoded, &mut all).is_err());
        }
    }
    let (packed, int4) = (codecs.packed.unwrap(), codecs.int4.unwrap());
    let mut out = vec![0; packed.max_encoded_bytes(hot.len())];
    let len = packed.encode(&hot[..layer_bytes], &mut out).unwrap();
    let mut block = vec![0; int4.max_encoded_bytes(layer_bytes)];
    packed.decode(&out[..len], &mut block).unwrap();
    let mut again = vec![0; out.len()];
    let again_len = packed.encode_from(Level::Int4, &block, &mut again).unwrap();
    assert_eq!(again[..again_len], out[..len]);
}

#[test]
fn packed_blocks_come_back_as_int4_and_pack_to_the_same_bytes_again() {
    let setup = setup(1, Isa::best(), Repack::Always);
    let layout = setup.decoder.model().kv_layout();
    let levels = quantized_levels(layout, Isa::best());
    let (packed, int4) = (
        levels.packed.as_ref().unwrap(),
        levels.int4.as_ref().unwrap(),
    );
    let hot: Vec<u8> = (0..setup.kv.block_bytes())
        .map(|i| (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0] & [0xFF, 0x3F][i % 2])
        .collect();
    let mut block = vec![0; int4.max_encoded_bytes(hot.len())];
    assert_eq!(packed.decodes_to(), Level::Int4);
    for level in [Level::Hot, Level::Int8, Level::Int4] {
        let mut from = hot.clone();
        if let Some(codec) = levels.at(level) {
            from.truncate(codec.max_encoded_bytes(hot.len()));
            codec.encode(&hot, &mut from).unwrap();
        }
        let mut out = vec![0; packed.max_encoded_bytes(hot.len())];
        let len = packed.encode_from(level, &from, &mut out).unwrap();
        assert!(len < block.len(), "{level}: {len}");
        packed.decode(&out[..len], &mut block).unwrap();
        let mut again = vec![0; out.len()];
        let again_len = packed.encode_from(Level::Int4, &block, &mut again).unwrap();
        assert_eq!(again[..again_len], out[..len], "{level}");
        assert!(packed.encode_from(level, &from[1..], &mut out).is_err());
        assert!(packed.decode(&out[..len - 1], &mut block).is_err());
        assert!(packed.decode(&out[..len], &mut block[1..]).is_err());
    }
    let mut out = vec![0; packed.max_encoded_bytes(hot.len())];
    assert!(packed.encode_from(Level::Packed, &hot, &mut out).is_err());
}
