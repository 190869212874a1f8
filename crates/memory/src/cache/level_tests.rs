//! Blocks at several levels, against the naive model that a block at a level is what its codec makes of the
//! hot one.

use super::free::COLD_MS;
use super::sink::Running;
use super::*;
use crate::budget::Budget;
use crate::codec::fake::{self, EveryNth, Trimmed};
use crate::codec::{CodecError, INT4_PACKED_ID, fingerprint};
use crate::disk::fake::FakeStorage;
use crate::disk::{DiskOptions, Storage};
use crate::governor::Occasion;
use crate::level::Level;
use proptest::prelude::*;

const BLOCK_TOKENS: usize = 8;
/// Four pages, so that int8 takes two and int4 one.
const BLOCK_BYTES: usize = 16 << 10;
const TOKEN_BYTES: usize = BLOCK_BYTES / BLOCK_TOKENS;

struct World {
    budget: Budget,
    pool: KvPool,
    cache: KvCache,
    exact: Namespace,
    now_ms: u64,
}

/// A sequence that runs.
struct Sequence {
    table: BlockTable,
    namespace: Namespace,
    tokens: Vec<u32>,
}

impl World {
    fn new(blocks: u64, storage: Option<Arc<FakeStorage>>) -> Self {
        let budget = Budget::new(u64::MAX);
        let pool = KvPool::new(&budget, BLOCK_BYTES, BLOCK_TOKENS);
        let fingerprint = Fingerprint::of_parts(&[("model", b"fake")]);
        let disk = storage.map(|storage| {
            let options = DiskOptions {
                limit_bytes: 64 << 20,
                segment_bytes: 1 << 20,
            };
            Arc::new(DiskStore::open(storage as Arc<dyn Storage>, options).unwrap())
        });
        let options = CacheOptions {
            disk,
            quantized: fake::levels_and_packed(),
            ..CacheOptions::new(fingerprint)
        };
        let mut cache = KvCache::new(&pool, options).unwrap();
        cache.fix_costs();
        // One block more for what is in flight.
        budget.set_limit(budget.charged() + (blocks + 1) * BLOCK_BYTES as u64);
        Self {
            cache,
            exact: Namespace::new(&[1; 32], "t", &fingerprint),
            budget,
            pool,
            now_ms: 0,
        }
    }

    /// Runs a prompt to its end; `None` if there is no room, not even when others sink.
    fn start(
        &mut self,
        quality: KvQuality,
        tokens: &[u32],
        others: &mut [Sequence],
    ) -> Option<Sequence> {
        self.now_ms += 1000;
        let namespace = self.exact.with_quality(quality);
        let mut table = BlockTable::new(&self.pool);
        let known = &tokens[..tokens.len() - 1];
        let cached = self
            .cache
            .attach(&namespace, known, &mut table, self.now_ms);
        check(&table, &tokens[..cached], quality);
        while let Err(refusal) = table.reserve(tokens.len() - cached) {
            let missing = refusal.needed.saturating_sub(refusal.available).max(1);
            let mut tables: Vec<&mut BlockTable> =
                others.iter_mut().map(|s| &mut s.table).collect();
            let occasion = Occasion::Admission;
            if self
                .cache
                .free_with(missing, occasion, self.now_ms, &mut tables)
                == 0
            {
                return None;
            }
        }
        for (t, &token) in tokens.iter().enumerate().skip(cached) {
            write(table.block_mut(t / BLOCK_TOKENS), t, token);
        }
        table.advance(tokens.len() - cached);
        self.cache
            .insert(&namespace, tokens, &mut table, self.now_ms);
        check(&table, tokens, quality);
        Some(Sequence {
            table,
            namespace,
            tokens: tokens.to_vec(),
        })
    }

    fn kv_bytes(&self) -> u64 {
        self.budget.snapshot().of_kind(ChargeKind::Kv)
    }
}

fn write(block: &mut [u8], t: usize, token: u32) {
    let at = t % BLOCK_TOKENS * TOKEN_BYTES;
    for (i, byte) in block[at..at + 32].iter_mut().enumerate() {
        *byte = (token as usize * 37 + t * 11 + i * 5 + 1) as u8;
    }
}

/// Byte `at` of a block as attention reads it.
fn read(view: crate::table::BlockView<'_>, at: usize) -> u8 {
    match view.level {
        Level::Int8 => EveryNth::INT8.read(view.bytes, at),
        Level::Int4 => EveryNth::INT4.read(view.bytes, at),
        _ => view.bytes[at],
    }
}

/// Every byte is the one that was written, or one that the lowest level of the quality loses.
fn check(table: &BlockTable, tokens: &[u32], quality: KvQuality) {
    assert_eq!(table.len_tokens(), tokens.len());
    let lowest = quality.lowest(true);
    let lost = |at: usize| match lowest {
        Level::Int8 => !at.is_multiple_of(2),
        Level::Int4 => !at.is_multiple_of(4),
        _ => false,
    };
    for (t, &token) in tokens.iter().enumerate() {
        let view = table.view(t / BLOCK_TOKENS);
        assert!(view.level <= lowest, "{quality}: {}", view.level);
        let mut expected = vec![0; BLOCK_BYTES];
        write(&mut expected, t, token);
        let first = t % BLOCK_TOKENS * TOKEN_BYTES;
        for (at, &wanted) in expected.iter().enumerate().skip(first).take(32) {
            let byte = read(view, at);
            assert!(
                byte == wanted || (byte == 0 && lost(at)),
                "{quality}: byte {at} of token {t} is {byte} and not {wanted}"
            );
        }
    }
}

fn prompt(talk: u32, len: usize) -> Vec<u32> {
    (0..len as u32)
        .map(|i| if i < 20 { i } else { talk * 1000 + i })
        .collect()
}

/// Blocks of the table at each of hot, int8 and int4.
fn levels(table: &BlockTable) -> [usize; 3] {
    let mut counts = [0; 3];
    for block in table.blocks() {
        counts[block.level() as usize] += 1;
    }
    counts
}

#[test]
fn running_blocks_sink_in_place_when_the_budget_shrinks() {
    let mut world = World::new(100, None);
    let mut long = world
        .start(KvQuality::Small, &prompt(1, 400), &mut [])
        .unwrap();
    assert_eq!(levels(&long.table), [50, 0, 0]);
    world.budget.set_limit(world.budget.charged() * 11 / 20);
    let excess = world
        .cache
        .shrink_with(world.now_ms, &mut [&mut long.table]);
    assert_eq!(excess, 0);
    let [hot, int8, int4] = levels(&long.table);
    // The first block and the newest 128 tokens stay; of the 33 others enough sank.
    assert_eq!(
        (hot >= 17, hot + int8 + int4),
        (true, 50),
        "{hot} {int8} {int4}"
    );
    assert!(long.table.view(0).level == Level::Hot && long.table.view(34).level == Level::Hot);
    assert_eq!(world.cache.stats().dropped_blocks, 0);
    check(&long.table, &long.tokens, KvQuality::Small);
    world.cache.check_conservation().unwrap();
    assert_eq!(
        world.pool.stats().level_bytes[..3].iter().sum::<u64>(),
        world.kv_bytes()
    );
}

#[test]
fn exact_sequences_keep_their_bytes_whatever_the_budget() {
    let mut world = World::new(100, None);
    let mut exact = world
        .start(KvQuality::Exact, &prompt(1, 400), &mut [])
        .unwrap();
    world.budget.set_limit(world.budget.charged() / 2);
    assert!(
        world
            .cache
            .shrink_with(world.now_ms, &mut [&mut exact.table])
            > 0
    );
    assert_eq!(levels(&exact.table), [50, 0, 0]);
    let mut cold = exact;
    cold.table.clear();
    world.now_ms += 10 * 60_000;
    assert_eq!(world.cache.shrink(world.now_ms), 0);
    assert_eq!(world.pool.stats().level_bytes[1..3], [0, 0]);
}

#[test]
fn a_level_that_is_asked_for_is_taken_at_once_and_shared() {
    let mut world = World::new(200, None);
    let tokens = prompt(1, 400);
    let mut first = world.start(KvQuality::High, &tokens, &mut []).unwrap();
    let mut second = world.start(KvQuality::High, &tokens, &mut []).unwrap();
    let before = world.kv_bytes();
    for sequence in [&mut first, &mut second] {
        let blocks = sequence.table.sinkable_blocks();
        assert_eq!(blocks, 1..34);
        // Int4 is lower than the quality allows.
        let (namespace, table) = (&sequence.namespace, &mut sequence.table);
        world
            .cache
            .sink(namespace, &tokens, table, blocks, Level::Int4);
        assert_eq!(levels(table), [17, 33, 0]);
    }
    assert!(first.table.blocks()[5].is_same(&second.table.blocks()[5]));
    assert_eq!(world.kv_bytes(), before - 33 * BLOCK_BYTES as u64 / 2);
    check(&first.table, &tokens, KvQuality::High);
    world.cache.check_conservation().unwrap();
    // A third one attaches what has sunk, and goes on within a block that had.
    let mut branch = tokens[..101].to_vec();
    branch.extend([77; 30]);
    let third = world.start(KvQuality::High, &branch, &mut []).unwrap();
    assert_eq!(levels(&third.table)[1], 11);
    assert!(world.cache.stats().lossy_hit_tokens > 0);
}

#[test]
fn lossy_blocks_go_to_disk_as_they_are_and_come_back_at_their_level() {
    let storage = Arc::new(FakeStorage::default());
    let mut world = World::new(100, Some(Arc::clone(&storage)));
    world.cache.costs_mut().recompute.observe(1, 1, 1e6);
    let tokens = prompt(1, 400);
    let mut sequence = world.start(KvQuality::Small, &tokens, &mut []).unwrap();
    let blocks = sequence.table.sinkable_blocks();
    let (namespace, table) = (sequence.namespace, &mut sequence.table);
    world
        .cache
        .sink(&namespace, &tokens, table, blocks, Level::Int4);
    let counts = levels(table);
    assert_eq!(counts, [17, 0, 33]);
    assert_eq!(world.cache.store(&namespace, &tokens), tokens.len());
    drop(sequence);
    let mut again = World::new(100, Some(Arc::new(storage.after_kill())));
    let back = again.start(KvQuality::Small, &tokens, &mut []).unwrap();
    assert_eq!(levels(&back.table), counts);
    assert_eq!(again.cache.stats().disk_hit_tokens, 392, "whole blocks");
    let disk = again.cache.options.disk.as_ref().unwrap();
    let packed = (1..50).filter(|&block| {
        let found = again.cache.tree.peek(&namespace, &tokens).full[block];
        let hash = again.cache.tree.info(found).unwrap().hash;
        let meta = disk.meta(&hash, &again.cache.options.fingerprint);
        meta.unwrap().codec == INT4_PACKED_ID
    });
    assert_eq!(packed.count(), 33, "packed where they were int4");
    // The exact namespace knows nothing of them.
    assert!(again.cache.forecast(&again.exact, &tokens).tokens == 0);
}

#[test]
fn balanced_blocks_sink_to_int4_when_they_are_cold_only() {
    let mut world = World::new(100, None);
    world.cache.costs_mut().recompute.observe(1, 1, 1e9);
    let long = world.start(KvQuality::Balanced, &prompt(1, 400), &mut []);
    drop(long);
    let kv = world.kv_bytes();
    let other = world.budget.charged() - kv;
    world.budget.set_limit(other + kv * 3 / 4);
    assert_eq!(world.cache.shrink(world.now_ms), 0);
    assert_eq!(world.pool.stats().level_bytes[2], 0);
    world.now_ms += 2 * COLD_MS;
    world.budget.set_limit(other + kv * 3 / 8);
    assert_eq!(world.cache.shrink(world.now_ms), 0);
    // As they are, or packed.
    let levels = world.pool.stats().level_bytes;
    assert!(levels[2] + levels[3] > 0, "{levels:?}");
    world.cache.check_conservation().unwrap();
}

#[test]
fn what_is_packed_loses_what_its_quality_allows_and_no_more() {
    for (quality, is_cold, expected) in [
        (KvQuality::Exact, true, [50, 0, 0]),
        (KvQuality::High, true, [50, 0, 0]),
        (KvQuality::Balanced, false, [50, 0, 0]),
        (KvQuality::Balanced, true, [1, 0, 49]),
        (KvQuality::Small, false, [1, 0, 49]),
    ] {
        let mut world = World::new(200, None);
        let tokens = prompt(1, 400);
        let namespace = world.start(quality, &tokens, &mut []).unwrap().namespace;
        let path = world.cache.tree.peek(&namespace, &tokens).full;
        for node in path {
            let entry = world.cache.tree.get(node).unwrap();
            let how = (Level::Packed, world.cache.lowest(node, entry, is_cold));
            assert!(world.cache.demote(node, how, &mut Running::new(&mut [])));
        }
        world.cache.check_conservation().unwrap();
        assert_eq!(world.pool.stats().level_bytes[..3], [0; 3]);
        let mut asked = tokens.clone();
        asked.push(1);
        // What comes back is checked against what was written.
        let back = world.start(quality, &asked, &mut []).unwrap();
        let mut found = levels(&back.table);
        found[0] -= 1;
        assert_eq!(found, expected, "{quality}");
        assert_eq!(world.cache.stats().packed_hit_tokens, 400);
    }
}

/// The stand-in in another version.
struct Newer;

impl BlockCodec for Newer {
    fn id(&self) -> u16 {
        Trimmed.id()
    }

    fn version(&self) -> u16 {
        Trimmed.version() + 1
    }

    fn level(&self) -> Level {
        Trimmed.level()
    }

    fn max_encoded_bytes(&self, hot_bytes: usize) -> usize {
        Trimmed.max_encoded_bytes(hot_bytes)
    }

    fn encode(&self, hot: &[u8], out: &mut [u8]) -> Result<usize, CodecError> {
        Trimmed.encode(hot, out)
    }

    fn decode(&self, encoded: &[u8], block: &mut [u8]) -> Result<(), CodecError> {
        Trimmed.decode(encoded, block)
    }
}

#[test]
fn blocks_stored_by_another_version_of_a_codec_are_misses() {
    let storage = Arc::new(FakeStorage::default());
    let mut world = World::new(100, Some(Arc::clone(&storage)));
    let levels = fake::levels_and_packed();
    let newer = QuantizedLevels {
        packed: Some(Arc::new(Newer)),
        ..levels.clone()
    };
    let (old, new) = (
        fingerprint(&[7; 32], &[], &levels),
        fingerprint(&[7; 32], &[], &newer),
    );
    assert_ne!(old, new);
    assert_ne!(old, fingerprint(&[8; 32], &[], &levels));
    assert_ne!(old, fingerprint(&[7; 32], &[1, 0], &levels));
    world.cache.options.fingerprint = old;
    let tokens = prompt(1, 400);
    let sequence = world.start(KvQuality::Small, &tokens, &mut []).unwrap();
    assert_eq!(world.cache.store(&sequence.namespace, &tokens), 400);
    for (fingerprint, found) in [(new, 0), (old, 392)] {
        let mut again = World::new(100, Some(Arc::new(storage.after_kill())));
        again.cache.options.fingerprint = fingerprint;
        again.start(KvQuality::Small, &tokens, &mut []).unwrap();
        assert_eq!(again.cache.stats().disk_hit_tokens, found);
        assert_eq!(again.cache.stats().failed_blocks, 0, "a clean miss");
    }
}

#[derive(Clone, Debug)]
enum Op {
    Start {
        talk: u32,
        quality: usize,
        blocks: usize,
        keep: bool,
    },
    End(usize),
    Sink {
        which: usize,
        int4: bool,
    },
    Limit(u64),
    Wait,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (0..3u32, 0..4usize, 1..35usize, any::<bool>())
            .prop_map(|(talk, quality, blocks, keep)| Op::Start { talk, quality, blocks, keep }),
        1 => (0..8usize).prop_map(Op::End),
        2 => (0..8usize, any::<bool>()).prop_map(|(which, int4)| Op::Sink { which, int4 }),
        2 => (20..160u64).prop_map(Op::Limit),
        1 => Just(Op::Wait),
    ]
}

/// One step of a workload; the lengths of prompts fall within a block now and then.
fn apply(world: &mut World, running: &mut Vec<Sequence>, op: &Op, step: usize) {
    match *op {
        Op::Start {
            talk,
            quality,
            blocks,
            keep,
        } => {
            let tokens = prompt(talk, blocks * BLOCK_TOKENS + step % BLOCK_TOKENS);
            let quality = KvQuality::ALL[quality];
            let started = world.start(quality, &tokens, running);
            running.extend(started.filter(|_| keep));
        }
        Op::End(which) => {
            if which < running.len() {
                running.swap_remove(which);
            }
        }
        Op::Sink { which, int4 } => {
            if let Some(s) = running.get_mut(which) {
                let level = if int4 { Level::Int4 } else { Level::Int8 };
                let blocks = s.table.sinkable_blocks();
                world
                    .cache
                    .sink(&s.namespace, &s.tokens, &mut s.table, blocks, level);
            }
        }
        Op::Limit(blocks) => {
            world.budget.set_limit(blocks * BLOCK_BYTES as u64);
            let mut tables: Vec<&mut BlockTable> =
                running.iter_mut().map(|s| &mut s.table).collect();
            let excess = world.cache.shrink_with(world.now_ms, &mut tables);
            let freeable = world.cache.freeable_bytes();
            assert!(
                excess == 0 || freeable == 0,
                "{excess} over, {freeable} could go"
            );
        }
        Op::Wait => world.now_ms += 2 * COLD_MS,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_workload_keeps_every_law(ops in prop::collection::vec(op(), 1..40), disk in any::<bool>()) {
        let storage = disk.then(|| Arc::new(FakeStorage::default()));
        let mut world = World::new(100, storage);
        let mut running = Vec::new();
        for (step, op) in ops.iter().enumerate() {
            apply(&mut world, &mut running, op, step);
            world.cache.check_conservation().unwrap();
            for s in &running {
                check(&s.table, &s.tokens, s.namespace.quality());
                prop_assert_eq!(s.table.check_conservation(), Ok(()));
            }
        }
        running.clear();
        world.cache.free(u64::MAX, Occasion::Shrink, world.now_ms);
        prop_assert_eq!((world.kv_bytes(), world.pool.stats().held_blocks), (0, 0));
    }
}
