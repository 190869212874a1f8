//! Logits of the shipped model are the same to the bit however they are computed.

use std::path::Path;
use std::sync::Arc;

use neap_kernels::{Isa, ThreadPool};
use neap_memory::{BlockTable, Budget, KvPool};
use neap_model::decoder::{
    BLOCK_TOKENS, CpuDecoder, Decoder, DecoderLimits, LoadOptions, LogitsWanted, Model, Repack,
    SequenceChunk, kv_block_bytes,
};
use neap_model::source::ModelSource;

struct Setup {
    decoder: CpuDecoder,
    kv: KvPool,
}

fn setup(threads: usize, isa: Isa, repack: Repack) -> Setup {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/neap-tiny.gguf");
    let source = Arc::new(ModelSource::open(path).unwrap());
    let budget = Budget::new(1 << 30);
    let pool = Arc::new(ThreadPool::new(threads));
    let options = LoadOptions {
        repack,
        reserve_bytes: 0,
        pool: &pool,
        isa,
        progress: &mut |_| {},
    };
    let model = Arc::new(Model::load(source, &budget, options).unwrap());
    let kv = KvPool::new(
        &budget,
        kv_block_bytes(model.config()).unwrap(),
        BLOCK_TOKENS,
    );
    let limits = DecoderLimits {
        batch_tokens: 256,
        logit_rows: 256,
    };
    let decoder = CpuDecoder::new(model, pool, isa, limits, &budget).unwrap();
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
